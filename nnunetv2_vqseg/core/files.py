"""JSON as the reports write it (plain numbers, NaN and infinity as null), and files written as a whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.core.json import read_json as read_any_json
from nnunetv2_vqseg.report.errors import EvaluationError


def to_jsonable(value: Any) -> Any:
    """A copy of nested dicts, lists, numpy values and paths that any JSON parser reads back."""
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        return to_jsonable(value.tolist())
    if isinstance(value, np.generic):
        return to_jsonable(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def write_json(value: Any, path: Path) -> None:
    """Write `value` to `path`, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(to_jsonable(value), indent=2, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` as it is, in UTF-8; a kill leaves the old file or the new one."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """`replace_text` for other files."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)  # the file that the user knows, also where the disk is full
        raise


def read_json(path: Path, remedy: str, kind: type = dict) -> Any:
    """The object (or, with `kind=list`, the list) in a JSON file.

    Raises:
        EvaluationError: if the file is missing or holds something else; ends with `remedy`.
    """
    try:
        content = read_any_json(path, remedy)
    except DatasetError as error:
        raise EvaluationError(str(error)) from error
    if not isinstance(content, kind):
        raise EvaluationError(f"{path} does not hold a JSON {'list' if kind is list else 'object'}; {remedy}.")
    return content


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object that one can do without: empty where there is none, or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
