"""What processes hold, read from /proc."""

from __future__ import annotations

import re
from pathlib import Path

PROC = Path("/proc")


def resident_kib(pid: int) -> int:
    """Resident memory of a process, in KiB."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", (PROC / str(pid) / "status").read_text(encoding="utf-8"))[1])


def threads(pid: int) -> int:
    """Threads of a process, Python's and others."""
    return len(list((PROC / str(pid) / "task").iterdir()))


def open_files(pid: int) -> list[str]:
    """What the file descriptors of a process point at: paths, and kinds such as `pipe`, `socket` and `anon_inode`."""
    targets = []
    for descriptor in (PROC / str(pid) / "fd").iterdir():
        try:
            targets.append(re.sub(r":\[\d+\]$", "", str(descriptor.readlink())))
        except FileNotFoundError:  # the one that lists the folder
            continue
    return sorted(targets)


def children(pid: int) -> list[int]:
    """Direct children of a process, the oldest first."""
    listed = (PROC / str(pid) / "task" / str(pid) / "children").read_text(encoding="utf-8")
    return sorted(int(child) for child in listed.split())


def session(leader: int) -> dict[int, str]:
    """Processes of a session, orphans too, with their command; a child cannot hide by outliving its parent."""
    found = {}
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text(encoding="utf-8")
            if int(stat.rpartition(")")[2].split()[3]) == leader:
                found[int(folder.name)] = (folder / "cmdline").read_text(encoding="utf-8").replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return found


def shared_memory(pid: int) -> list[str]:
    """Segments and semaphores in /dev/shm that a process maps or has open, also those that have no name any more."""
    mapped = re.findall(r"/dev/shm/(\S+)", (PROC / str(pid) / "maps").read_text(encoding="utf-8"))
    opened = [file.removeprefix("/dev/shm/").split()[0] for file in open_files(pid) if file.startswith("/dev/shm/")]
    return sorted({*mapped, *opened})
