"""`step --against`: the step of another commit and today's, in turns in one run.

Each commit runs with its own package and scripts, on the same torch; of the other's scripts only what `serve.py` reads
must be there.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.output import Row

ROOT = Path(__file__).resolve().parents[2]
SERVER = Path(__file__).with_name("serve.py")


def compared(
    against: str, arguments: list[str], variants: list[str], rounds: int, steps: int, only_now: Sequence[str] = ()
) -> list[Row]:
    """Milliseconds a step of both commits, and the median of their ratios round by round.

    Args:
        against: a commit, or the JSON file of an earlier measurement, which names one.
        arguments: of `step`, as for a plain measurement.
        steps: of a round.
        only_now: more arguments, of today's step alone.

    Raises:
        SystemExit: the file names no commit, or one that is not in this repository or cannot be installed.
    """
    commit = commit_of(against)
    rows = []
    with checked_out(commit) as then:
        python = installed(then)
        for variant in variants:
            with ExitStack() as stack:
                before = stack.enter_context(server(then, python, [*arguments, variant]))
                now = stack.enter_context(server(ROOT, sys.executable, [*arguments, *only_now, variant]))
                turns = [(before, now), (now, before)]
                times = []
                for number in range(rounds):
                    seconds = {process: asked(process, steps) for process in turns[number % 2]}
                    times.append((seconds[before], seconds[now]))
            ratios = [new / old for old, new in times]
            old, new = (statistics.median(values) * 1e3 for values in zip(*times, strict=True))
            row: Row = {"variant": variant, "then": commit, "then_ms": old, "now_ms": new}
            row |= {"now / then": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
            rows.append(row)
    return rows


def commit_of(against: str) -> str:
    """The commit that a measurement is of, or the one that was named.

    Raises:
        SystemExit: the file does not say.
    """
    if not Path(against).is_file():
        return against
    commit = json.loads(Path(against).read_text(encoding="utf-8"))["machine"]["commit"]
    if commit is None:
        raise SystemExit(f"{against} does not say of which commit it is.")
    return commit


def installed(tree: Path) -> str:
    """Python of an environment beside a work tree that has its package, and of today's environment everything else.

    Raises:
        SystemExit: it cannot be installed.
    """
    home = Path(f"{tree}.venv")
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    # Only a path: the files in there that register today's package are not read.
    (next(home.glob("lib/*/site-packages")) / "today.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "-e", tree]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The package of {tree} cannot be installed: {done.stderr.strip()}")
    return str(python)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A work tree of a commit, for a while."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "then"
        git = ["git", "-C", str(ROOT), "worktree"]
        done = subprocess.run([*git, "add", "--detach", str(tree), commit], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"Commit {commit} cannot be checked out: {done.stderr.strip()}")
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=False, capture_output=True)


@contextmanager
def server(root: Path, python: str, arguments: list[str]) -> Iterator[subprocess.Popen]:
    """A process with package and scripts of `root` that steps when it is asked to."""
    paths = os.pathsep.join([str(root), str(root / "scripts")])
    own = {name: value for name, value in os.environ.items() if name != "nnUNet_extTrainer"}  # of today's package
    process = subprocess.Popen(
        [python, SERVER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=own | {"PYTHONPATH": paths},
        cwd=root,
    )
    try:
        found = Path(answer(process)["package"]).resolve()
        if root.resolve() not in found.parents:
            raise SystemExit(f"The package of {root} was to be measured, and {found} was imported.")
        yield process
    finally:
        process.kill()
        process.wait()


def asked(process: Any, steps: int) -> float:
    """Seconds a step of a server."""
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    return answer(process)["seconds"] / steps


def answer(process: Any) -> dict[str, Any]:
    """Its next line of JSON.

    Raises:
        SystemExit: it has ended.
    """
    line = process.stdout.readline()
    if not line:
        raise SystemExit("A measurement ended early; what it printed above says why.")
    return json.loads(line)
