"""What was found out about files once, kept beside the preprocessed data until the files change."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.files import NowAndThen
from nnunetv2_vqseg.core.json import read_object, write_entries
from nnunetv2_vqseg.core.pools import for_each_case
from nnunetv2_vqseg.data.side_files import with_side_files


def find_out(
    record: Path,
    function: Callable[..., Mapping[str, Any]],
    cases: Mapping[str, Sequence[str]],
    arguments: tuple,
    keys: frozenset[str],
    num_processes: int,
    description: str,
    show_progress: bool,
    expected: Any = None,
) -> dict[str, Any]:
    """`function(case, files, *arguments)` of every case, from the record where the files have not changed since.

    Args:
        record: a JSON file of ours: case -> what was found, its files' states and `expected`. One that is missing or
            cannot be understood knows nothing.
        function: picklable; returns plain values under these `keys`.
        cases: files of each case.
        expected: plain values that also must not have changed.

    Raises:
        DatasetError, RuntimeError: as `for_each_case`; what was found in other cases is kept.
    """
    complete = keys | {"files", "expected"}
    known = {case: entry for case, entry in read_record(record).items() if set(entry) == complete}
    jobs = {
        case: (function, files, arguments, expected)
        for case, files in cases.items()
        if case not in known or (known[case]["files"], known[case]["expected"]) != (case_states(files), expected)
    }
    if jobs:
        save_now_and_then = NowAndThen(lambda: write_record(record, known))

        def on_result(case: str, found: dict[str, Any]) -> None:
            known[case] = found
            save_now_and_then()

        try:
            for_each_case(_find_out_one, jobs, num_processes, description, show_progress, on_result)
        finally:
            write_record(record, known)
    return {case: known[case] for case in cases}


def _find_out_one(
    case: str, function: Callable[..., Mapping[str, Any]], files: Sequence[str], arguments: tuple, expected: Any
) -> dict[str, Any]:
    states = case_states(files)  # before they are read
    return {**function(case, files, *arguments), "files": states, "expected": expected}


def read_record(file: Path) -> dict[str, dict[str, Any]]:
    """Case -> what is known of it; a file that is missing or cannot be understood knows nothing."""
    return {case: entry for case, entry in read_object(file).items() if isinstance(entry, dict)}


def write_record(file: Path, cases: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what is known; where that cannot be written, it is found out again next time."""
    with suppress(OSError):
        write_entries("{", cases, "}", file)


def case_states(files: Sequence[str | Path]) -> list[list[int]]:
    """`file_states` of everything that is read for a case of these files."""
    return file_states(with_side_files(files))


def file_states(files: Sequence[str | Path]) -> list[list[int]]:
    """Size and time of each file; -1 for both where it is missing."""
    states = []
    for file in files:
        try:
            status = os.stat(file)  # noqa: PTH116  # making a Path takes longer than the call
        except (OSError, ValueError):  # the latter where this is no name for a file
            states.append([-1, -1])
        else:
            states.append([status.st_size, status.st_mtime_ns])
    return states
