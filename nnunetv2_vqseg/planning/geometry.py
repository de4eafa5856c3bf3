"""Spacing and shape of the unlabelled images, which count for the plan as those of the labelled ones do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict, TypeGuard

from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from nnunetv2_vqseg.data.cases import UnlabeledCases
from nnunetv2_vqseg.data.images import read_case
from nnunetv2_vqseg.data.parallel import for_each_case


class Geometry(TypedDict):
    """One case: voxels per axis after cropping to nonzero, mm per axis, (size, time) of each file it was read from."""

    shape: list[int]
    spacing: list[float]
    files: list[list[int]]


def read_geometry(
    cases: UnlabeledCases,
    dataset_json: dict,
    reader_writer_class: type,
    cache_file: Path,
    num_processes: int,
    show_progress: bool = True,
) -> dict[str, Geometry]:
    """Read every unlabelled image once; what is in the cache and unchanged is not read again.

    Args:
        cache_file: a JSON file of our own; nnU-Net's `dataset_fingerprint.json` must stay what stock nnU-Net makes.
        num_processes: 0 or 1 stays in this process.

    Raises:
        DatasetError: one line per image that cannot be used.
    """
    known = _read_cache(cache_file)
    found = {
        case: known[case]
        for case, files in cases.files.items()
        if case in known and known[case]["files"] == _file_states(files)
    }
    jobs = {
        case: (files, dataset_json, reader_writer_class) for case, files in cases.files.items() if case not in found
    }
    if jobs:
        for_each_case(
            _read_case_geometry,
            jobs,
            num_processes,
            "Reading unlabelled images",
            show_progress,
            lambda case, geometry: found.update({case: geometry}),
        )
        cache_file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return {case: found[case] for case in cases.files}


def _read_cache(file: Path) -> dict[str, Geometry]:
    """A file that cannot be understood counts as an empty one."""
    content: Any = None
    with suppress(OSError, ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
    entries = content.items() if isinstance(content, dict) else ()
    return {case: entry for case, entry in entries if _is_geometry(entry)}


def _is_geometry(entry: object) -> TypeGuard[Geometry]:
    return isinstance(entry, dict) and set(entry) == set(Geometry.__annotations__)


def _read_case_geometry(case: str, files: Sequence[str], dataset_json: dict, reader_writer_class: type) -> Geometry:
    states = _file_states(files)
    image = read_case(case, files, dataset_json, reader_writer_class)
    cropped, _, _ = crop_to_nonzero(image.data)
    return Geometry(shape=[int(extent) for extent in cropped.shape[1:]], spacing=list(image.spacing), files=states)


def _file_states(files: Sequence[str]) -> list[list[int]]:
    """Size and time of each file; an empty pair for one that is missing."""
    states = []
    for file in files:
        try:
            status = Path(file).stat()
        except OSError:
            states.append([-1, -1])
        else:
            states.append([status.st_size, status.st_mtime_ns])
    return states
