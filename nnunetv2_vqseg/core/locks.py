"""One process at a time at a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def exclusive(folder: str | Path, log: Callable[[str], None], task: str) -> Iterator[bool]:
    """Only one process at a time works on a folder, the others wait; yields whether that is certain.

    The operating system frees the lock, a file beside the folder, of a process that dies. Where locks are not available
    (Windows, some network file systems) everyone works.

    Args:
        task: what those who wait are told that another run is doing, as in 'preparing the unlabelled cases'.

    Raises:
        OSError: the file beside the folder cannot be written.
    """
    with Path(folder).with_name(f".{Path(folder).name}.lock").open("a", encoding="utf-8") as lock:
        yield _acquire(lock.fileno(), log, task)


def _acquire(descriptor: int, log: Callable[[str], None], task: str) -> bool:
    if fcntl is None:
        return False
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not told:
                log(f"Another run is {task}; waiting for it.")
                told = True
            time.sleep(0.5)
        except OSError:
            return False
