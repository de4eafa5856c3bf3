"""Labelled images and their labels, checked as the unlabelled ones are, before nnU-Net works with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_vqseg.core.errors import REPLACE, DatasetError
from nnunetv2_vqseg.data.cases import UNLABELED_FOLDER, TrainingCase
from nnunetv2_vqseg.data.checks.dataset_json import IGNORE, check_label_values, declared_labels, number_of_channels
from nnunetv2_vqseg.data.checks.images import (
    check_file,
    check_spacing_file,
    compare_grids,
    grid_of,
    kind_of_channels,
    read_case,
    reason_of_reader,
)
from nnunetv2_vqseg.data.records import find_out
from nnunetv2_vqseg.data.side_files import spacing_file

RECORD_FILE = "labeled_checked.json"


class CheckedCase(TypedDict):
    """What is known of a labelled case once it was read: mm per axis, and sentences about what is odd but allowed."""

    spacing: list[float]
    has_foreground: bool
    warnings: list[str]


def check_labeled_cases(
    cases: Mapping[str, TrainingCase],
    dataset_json: dict[str, Any],
    reader_writer_class: type,
    record: Path,
    num_processes: int,
    show_progress: bool = True,
) -> dict[str, CheckedCase]:
    """Read every labelled image and its label once and refuse the broken ones, all of them in one message.

    Args:
        record: a JSON file of our own; what is in it and unchanged is not read again.
        num_processes: 0 or 1 stays in this process.

    Raises:
        DatasetError: one line per case whose image cannot be used (see `read_case`), or whose label is missing,
            unreadable, on another grid than the image, or holds values that dataset.json does not declare; or no case
            has any foreground.
    """
    checked: dict[str, CheckedCase] = find_out(
        record,
        _check_labeled_case,
        {case: [*entry["images"], entry["label"]] for case, entry in cases.items()},
        (dataset_json, reader_writer_class),
        frozenset(CheckedCase.__annotations__),
        num_processes,
        "Checking labelled images",
        show_progress,
        [dataset_json["labels"], number_of_channels(dataset_json), reader_writer_class.__name__],
    )
    if not any(case["has_foreground"] for case in checked.values()):
        folder = Path(next(iter(cases.values()))["label"]).parent
        raise DatasetError(
            f"{folder} holds background only: not one label has a voxel above 0"
            f"{', but for the ignore label' if IGNORE in dataset_json['labels'] else ''}; add annotated cases."
        )
    return checked


def _check_labeled_case(
    case: str, files: Sequence[str], dataset_json: dict[str, Any], reader_writer_class: Any
) -> CheckedCase:
    *images, file = files
    image = read_case(case, images, dataset_json, reader_writer_class)
    check_file(file, missing=f"restore it, or move an image without a label to {UNLABELED_FOLDER}")
    if issubclass(reader_writer_class, Tiff3DIO):
        check_spacing_file(spacing_file(Path(file), of_label=True))
    try:
        label, properties = reader_writer_class().read_seg(str(file))
    except MemoryError:
        raise
    except Exception as error:  # each format's library raises its own kind
        raise DatasetError(f"{file} cannot be read as a label map ({reason_of_reader(error)}); {REPLACE}.") from error
    if len(label) != 1:
        kind, remedy = kind_of_channels(file, "write it with one")
        raise DatasetError(f"{file} has {len(label)} channels ({kind}), but a label map has one; {remedy}.")
    check_label_values(file, label, declared_labels(dataset_json))
    foreground = declared_labels(dataset_json) - {0, dataset_json["labels"].get(IGNORE)}
    remedy, odd = "check which files belong together, or resample the label", "check that the label lies on the image"
    warnings = compare_grids(file, grid_of(label, properties), images[0], image.grid, remedy, odd)
    return CheckedCase(
        spacing=list(image.grid.spacing),
        has_foreground=bool(np.isin(label, [*foreground]).any()),
        warnings=[*image.warnings, *warnings],
    )
