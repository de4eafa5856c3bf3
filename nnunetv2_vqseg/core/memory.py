"""How much memory there is to share out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes of this machine, or what a container or a job (Linux control groups) may take of it; 0 if nothing says.

    Args:
        root: of the file system.
    """
    limits = [*_physical(), *_of_control_groups(root)]
    return min(limits, default=0)


def _physical() -> Iterator[int]:
    try:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return


def _of_control_groups(root: Path) -> Iterator[int]:
    """Limits of this process's group and of those above it, in either version of the file system."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers == "":
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        own = Path(path.lstrip("/"))
        for folder in (own, *own.parents):
            try:
                text = (top / folder / name).read_text(encoding="utf-8").strip()
            except OSError:
                continue
            if text.isdigit():  # else 'max'
                yield int(text)
