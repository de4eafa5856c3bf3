"""Versions and commits, for the records of trainings and reports."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nnunetv2_vqseg


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on; reads metadata, imports nothing."""
    found = {"nnunetv2_vqseg": nnunetv2_vqseg.__version__}
    if commit := own_commit():
        found["commit"] = commit
    for name in ("nnunetv2", "torch", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}


def package() -> str:
    """Name and version of this package, and its commit where it is a checkout."""
    commit = own_commit()
    name = f"nnunetv2_vqseg {nnunetv2_vqseg.__version__}"
    return f"{name}, {short_commit(commit)}" if commit else name


def own_commit() -> str | None:
    """`git_commit` of this package."""
    return git_commit(Path(nnunetv2_vqseg.__file__).parent)


def git_commit(folder: Path) -> str | None:
    """The commit that `folder` is at, marked where tracked files are changed; None outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        # an installed package may lie inside somebody else's repository, where it is not tracked
        tracked = git("ls-files", "--", ".")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    if not tracked:
        return None
    return f"{head} with uncommitted changes" if changed else head


def short_commit(commit: str) -> str:
    """Seven digits, and what `git_commit` says about uncommitted changes."""
    digits, _, remark = commit.partition(" ")
    return f"{digits[:7]} {remark}".strip()
