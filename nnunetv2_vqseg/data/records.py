"""What was found out about files once, kept beside the preprocessed data until the files change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from nnunetv2_vqseg.core.pools import for_each_case

Entry = TypeVar("Entry", bound=Mapping[str, Any])


def read_record(file: Path) -> dict[str, dict[str, Any]]:
    """Case -> what is known of it; a file that is missing or cannot be understood knows nothing."""
    content: Any = None
    with suppress(OSError, ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
    entries = content.items() if isinstance(content, dict) else ()
    return {case: entry for case, entry in entries if isinstance(entry, dict)}


def write_record(file: Path, cases: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what is known; where that cannot be written, it is found out again next time."""
    with suppress(OSError):
        file.write_text(json.dumps(cases, indent=1), encoding="utf-8")


def find_out(
    file: Path,
    known: dict[str, Entry],
    function: Callable[..., Entry],
    jobs: Mapping[str, tuple],
    num_processes: int,
    description: str,
    show_progress: bool,
) -> None:
    """`for_each_case`, whose results are added to `known` and kept, also those beside a case that cannot be used.

    Raises:
        DatasetError, RuntimeError: as `for_each_case`.
    """
    if not jobs:
        return
    try:
        for_each_case(
            function, jobs, num_processes, description, show_progress, lambda case, found: known.update({case: found})
        )
    finally:
        write_record(file, known)


def file_states(files: Sequence[str]) -> list[list[int]]:
    """Size and time of each file; -1 for both where it is missing."""
    states = []
    for file in files:
        try:
            status = Path(file).stat()
        except OSError:
            states.append([-1, -1])
        else:
            states.append([status.st_size, status.st_mtime_ns])
    return states
