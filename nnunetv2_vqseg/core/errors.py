"""The error whose message is shown to the user as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

REPLACE = "replace the file or remove the case"
"""What to do about a file that cannot be used."""


class DatasetError(ValueError):
    """One sentence (one line per file where several are wrong): which file, what is wrong with it, what to do next."""


def reason_of(error: BaseException) -> str:
    """What a library says about a failure, for a sentence: the last line of its message, or the error's kind."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


@contextmanager
def explained_disk_errors() -> Iterator[None]:
    """A sentence for what the operating system refuses inside the block: no permission, read only, full, missing.

    Raises:
        DatasetError: instead of an `OSError` that names a file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise DatasetError(
            f"{error.filename} cannot be used ({error.strerror}); restore it, make it writable or make room, and start "
            f"again."
        ) from error
