"""Labelled images and their labels, checked as the unlabelled ones are, before nnU-Net works with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeGuard

import numpy as np

from nnunetv2_vqseg.core.errors import REPLACE, DatasetError, reason_of
from nnunetv2_vqseg.data.cases import (
    UNLABELED_FOLDER,
    TrainingCase,
    case_pattern,
    number_of_channels,
    segmentation_name_message,
)
from nnunetv2_vqseg.data.dataset_json import check_label_values, declared_labels
from nnunetv2_vqseg.data.images import CaseImage, check_file, placement, plain, read_case
from nnunetv2_vqseg.data.records import file_states, find_out, read_record

RECORD_FILE = "labeled_checked.json"


class CheckedCase(TypedDict):
    """What is known of a labelled case once it was read, as it stands in the record.

    `warnings` are sentences about what is odd but allowed; `spacing` is in mm. `files` (size and time) and `expected`
    (what the dataset should be) are what it was checked against.
    """

    spacing: list[float]
    has_foreground: bool
    warnings: list[str]
    files: list[list[int]]
    expected: list[Any]


def check_training_names(raw: Path, dataset_json: dict[str, Any]) -> None:
    """Refuse files in `imagesTr` that nnU-Net would take for images of a case without a name.

    Raises:
        DatasetError: naming the first.
    """
    folder, ending = raw / "imagesTr", dataset_json["file_ending"]
    if "dataset" in dataset_json or not folder.is_dir():
        return
    pattern = case_pattern(ending)
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(ending):
            continue
        match = pattern.fullmatch(path.name)
        if match is None or path.name.startswith("."):
            raise DatasetError(
                f"{path} is not named CASE_0000{ending} (case, channel number of four digits, the dataset's file "
                f"ending); rename it or move it out of imagesTr."
            )
        if match.group(1).endswith("_seg"):
            raise DatasetError(segmentation_name_message(path, match.group(1)))


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
        DatasetError: one line per case whose image cannot be used (see `check_images`), or whose label is missing,
            unreadable, on another grid than the image, or holds values that dataset.json does not declare; or no case
            has any foreground.
    """
    expected = [sorted(declared_labels(dataset_json)), number_of_channels(dataset_json), reader_writer_class.__name__]
    known = {case: entry for case, entry in read_record(record).items() if _is_checked_case(entry)}
    checked: dict[str, CheckedCase] = {
        case: known[case]
        for case, entry in cases.items()
        if case in known and known[case]["files"] == _states(entry) and known[case]["expected"] == expected
    }
    jobs = {
        case: (entry, dataset_json, reader_writer_class, expected)
        for case, entry in cases.items()
        if case not in checked
    }
    find_out(record, known, _check_labeled_case, jobs, num_processes, "Checking labelled images", show_progress)
    checked |= {case: known[case] for case in jobs}
    if not any(case["has_foreground"] for case in checked.values()):
        folder = Path(next(iter(cases.values()))["label"]).parent
        raise DatasetError(f"{folder} holds background only: not one label has a voxel above 0; add annotated cases.")
    return checked


def _is_checked_case(entry: object) -> TypeGuard[CheckedCase]:
    return isinstance(entry, dict) and set(entry) == set(CheckedCase.__annotations__)


def _states(entry: TrainingCase) -> list[list[int]]:
    return file_states([*entry["images"], entry["label"]])


def _check_labeled_case(
    case: str, entry: TrainingCase, dataset_json: dict[str, Any], reader_writer_class: Any, expected: list[Any]
) -> CheckedCase:
    states = _states(entry)
    image = read_case(case, entry["images"], dataset_json, reader_writer_class)
    label, properties = _read_label(entry["label"], reader_writer_class)
    check_label_values(entry["label"], label, declared_labels(dataset_json))
    warnings = _compare_with_image(entry, image, label, properties)
    return CheckedCase(
        spacing=list(image.spacing),
        has_foreground=bool((label > 0).any()),
        warnings=[*image.warnings, *warnings],
        files=states,
        expected=expected,
    )


def _read_label(file: str, reader_writer_class: Any) -> tuple[np.ndarray, dict[str, Any]]:
    check_file(file, missing=f"restore it, or move an image without a label to {UNLABELED_FOLDER}")
    try:
        label, properties = reader_writer_class().read_seg(str(file))
    except MemoryError:
        raise
    except Exception as error:  # each format's library raises its own kind
        raise DatasetError(f"{file} cannot be read as a label map ({reason_of(error)}); {REPLACE}.") from error
    if len(label) != 1:
        raise DatasetError(
            f"{file} has {len(label)} channels (a fourth dimension counts as channels), but a label map has one; "
            f"write it with one."
        )
    return label, properties


def _compare_with_image(
    entry: TrainingCase, image: CaseImage, label: np.ndarray, properties: dict[str, Any]
) -> list[str]:
    """Shape and spacing must be the image's; origin and direction should, as in nnU-Net."""
    names, remedy = (entry["label"], entry["images"][0]), "check which files belong together, or resample the label"
    if label.shape[1:] != image.data.shape[1:]:
        raise DatasetError(
            f"{names[0]} has the shape {label.shape[1:]}, but {names[1]} has {image.data.shape[1:]}; {remedy}."
        )
    if not np.allclose(properties["spacing"], image.spacing):
        raise DatasetError(
            f"{names[0]} has the spacing {plain(properties['spacing'])} mm, but {names[1]} has "
            f"{plain(image.spacing)}; {remedy}."
        )
    if not np.allclose(placement(properties), image.placement, atol=1e-4):
        return [f"{names[0]} and {names[1]} differ in origin or direction; check that the label lies on the image."]
    return []
