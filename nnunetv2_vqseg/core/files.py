"""Files that are written as a whole: a kill leaves the old one or the new one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

SECONDS_BETWEEN_SAVES = 5.0
SHARE_OF_SAVING = 0.05


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` as it is, in UTF-8."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`; errors as of `replace_pieces`."""
    replace_pieces(path, (content,))


def replace_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Write `pieces` to `path`, one after the other, so that the whole need not be in memory.

    Raises:
        OSError: it cannot be written; names `path`, also where the disk is full.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with partial.open("wb") as stream:
            stream.writelines(pieces)
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


class NowAndThen:
    """Saves while work goes on: not within `SECONDS_BETWEEN_SAVES`, and so that it takes a small share of the time.

    What is saved as a whole takes longer the more there is; at fixed times the work would slow down more and more.
    """

    def __init__(self, save: Callable[[], None]) -> None:
        self._save = save
        self._due = time.monotonic() + SECONDS_BETWEEN_SAVES

    def __call__(self) -> None:
        """Save if it is time."""
        start = time.monotonic()
        if start >= self._due:
            self._save()
            end = time.monotonic()
            self._due = end + max(SECONDS_BETWEEN_SAVES, (end - start) / SHARE_OF_SAVING)
