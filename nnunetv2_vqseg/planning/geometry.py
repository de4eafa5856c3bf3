"""Spacing and shape of the unlabelled images, which count for the plan as those of the labelled ones do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, TypeGuard

from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from nnunetv2_vqseg.data.cases import UnlabeledCases
from nnunetv2_vqseg.data.images import read_case
from nnunetv2_vqseg.data.records import file_states, find_out, read_record


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
    found: dict[str, Geometry] = {}
    for case, known in read_record(cache_file).items():
        if _is_geometry(known) and known["files"] == file_states(cases.files.get(case, ())):
            found[case] = known
    jobs = {
        case: (files, dataset_json, reader_writer_class) for case, files in cases.files.items() if case not in found
    }
    find_out(cache_file, found, _read_case_geometry, jobs, num_processes, "Reading unlabelled images", show_progress)
    return {case: found[case] for case in cases.files}


def _is_geometry(entry: object) -> TypeGuard[Geometry]:
    return isinstance(entry, dict) and set(entry) == set(Geometry.__annotations__)


def _read_case_geometry(case: str, files: Sequence[str], dataset_json: dict, reader_writer_class: type) -> Geometry:
    states = file_states(files)
    image = read_case(case, files, dataset_json, reader_writer_class)
    cropped, _, _ = crop_to_nonzero(image.data)
    return Geometry(shape=[int(extent) for extent in cropped.shape[1:]], spacing=list(image.spacing), files=states)
