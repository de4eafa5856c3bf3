"""Errors whose message is shown to the user as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

REPLACE = "replace the file or remove the case"
"""What to do about a file that cannot be used."""


class UserError(Exception):
    """One sentence (one line per file where several are wrong): what is wrong, where, and what to do next."""


class ConfigError(UserError, ValueError):
    """A `vqseg` block or an option that cannot be used."""


class DatasetError(UserError, ValueError):
    """Images, labels, names, splits or a `dataset.json` that cannot be used."""


class PlansError(UserError, ValueError):
    """A plan that cannot be made or used."""


class EvaluationError(UserError, ValueError):
    """Something that cannot be scored or compared."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be used."""


class FoundationModelUnavailable(UserError, RuntimeError):
    """The foundation model's weights cannot be had, or the named file does not hold them."""


def reason_of(error: BaseException) -> str:
    """What a library says about a failure, for a sentence: the last line of its message, or the error's kind."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first few names, for a sentence."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def and_more(cases: Sequence[str]) -> str:
    """`` (and 3 more)`` where a message names the first of four cases."""
    return f" (and {len(cases) - 1} more)" if len(cases) > 1 else ""


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
