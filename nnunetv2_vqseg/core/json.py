"""JSON files: those that people edit by hand, and those of ours (plain numbers, NaN and infinity as null)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.core.files import replace_pieces, replace_text

TRIES, SECONDS_BETWEEN_TRIES = 10, 0.05


def read_json(file: Path, remedy: str, kind: type | None = None, tries: int = TRIES) -> Any:
    """What is in a JSON file.

    Args:
        remedy: what to do where it cannot be read, the end of the sentence.
        kind: `dict` or `list`, where only that will do.
        tries: how often it is read where it is no JSON, because somebody may be writing it.

    Raises:
        DatasetError: it is missing, cannot be opened, is no JSON or holds something else.
    """
    for left in reversed(range(tries)):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            break
        except OSError as error:
            raise DatasetError(f"{file} cannot be read ({error.strerror}); {remedy}.") from None
        except (ValueError, RecursionError) as error:
            if not left:
                raise DatasetError(f"{file} is not valid JSON ({error}); {remedy}.") from None
            time.sleep(SECONDS_BETWEEN_TRIES)
    if kind is not None and not isinstance(content, kind):
        raise DatasetError(f"{file} does not hold a JSON {'list' if kind is list else 'object'}; {remedy}.")
    return content


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object that one can do without: empty where there is none, or something else."""
    try:
        return read_json(file, "", dict, tries=1)
    except DatasetError:
        return {}


def write_json(value: Any, file: Path) -> None:
    """Replace a file by `value`, see `to_jsonable`, making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(to_jsonable(value), indent=2, allow_nan=False) + "\n")


def write_entries(head: str, entries: Mapping[str, Any], tail: str, file: Path) -> None:
    """Replace a file by one JSON object with a line for each entry, however many there are.

    Args:
        head, tail: what stands before and behind the entries, `{` and `}` for an object of nothing else.
        entries: of plain values.
    """

    def pieces() -> Iterator[bytes]:
        separator = head + "\n"
        for key, value in entries.items():
            yield f"{separator}{json.dumps(key)}: {json.dumps(value)}".encode()
            separator = ",\n"
        yield ("\n" if entries else head).encode() + f"{tail}\n".encode()

    replace_pieces(file, pieces())


def to_jsonable(value: Any) -> Any:
    """A copy of nested dicts, lists, numpy values and paths that any JSON parser reads back."""
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return to_jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
