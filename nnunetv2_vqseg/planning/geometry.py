"""Spacing and shape of the unlabelled images, which count for the plan as those of the labelled ones do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from nnunetv2_vqseg.data.cases import UnlabeledCases
from nnunetv2_vqseg.data.checks.images import read_case
from nnunetv2_vqseg.data.records import find_out


class Geometry(TypedDict):
    """One case: voxels per axis after cropping to nonzero, mm per axis."""

    shape: list[int]
    spacing: list[float]


def read_geometry(
    cases: UnlabeledCases,
    dataset_json: dict,
    reader_writer_class: type,
    record: Path,
    num_processes: int,
    show_progress: bool = True,
) -> dict[str, Geometry]:
    """Read every unlabelled image once; what is in the record (a JSON file of ours) and unchanged is not read again.

    Raises:
        DatasetError: one line per image that cannot be used.
    """
    return find_out(
        record,
        _read_case_geometry,
        cases.files,
        (dataset_json, reader_writer_class),
        frozenset(Geometry.__annotations__),
        num_processes,
        "Reading unlabelled images",
        show_progress,
    )


def _read_case_geometry(case: str, files: Sequence[str], dataset_json: dict, reader_writer_class: type) -> Geometry:
    image = read_case(case, files, dataset_json, reader_writer_class)
    cropped, _, _ = crop_to_nonzero(image.data)
    return Geometry(shape=[int(extent) for extent in cropped.shape[1:]], spacing=list(image.grid.spacing))
