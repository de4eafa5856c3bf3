"""Which cases are unlabelled, and do their files' names and numbers fit the dataset?

Two sources: the folder `imagesUl` beside `imagesTr`, and the optional list `"unlabeled"` in a fold of
`splits_final.json`, which names cases of `imagesTr` whose labels are then never opened. Nothing here opens an image.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.data.images import check_images
from nnunetv2_vqseg.data.patients import shared_patients
from nnunetv2_vqseg.data.splits_file import SPLITS_FILE, and_more, check_fold_entry, load_fold_entry, load_splits

__all__ = [
    "DatasetError",
    "Origin",
    "TrainingCase",
    "UnlabeledCases",
    "check_images",
    "find_unlabeled_cases",
    "labeled_as_unlabeled",
    "load_fold_entry",
    "load_splits",
    "training_cases",
]

Origin = Literal["imagesUl", "split", "labeled"]

UNLABELED_FOLDER = "imagesUl"
# What may lie beside images without being one: Tiff3DIO's spacing files and people's notes.
SIDE_FILES = (".json", ".txt", ".csv", ".tsv", ".md")


class TrainingCase(TypedDict):
    """A case of `imagesTr`: its channel files and its label's path."""

    images: list[str]
    label: str


@dataclass(frozen=True)
class UnlabeledCases:
    """The unlabelled cases of one training, by name.

    Attributes:
        files: case -> its channel files, in channel order.
        origin: case -> `imagesUl`, `split` (named by the fold's `unlabeled` list) or `labeled` (a labelled case that
            also serves as an unlabelled one).
        warnings: sentences about what is allowed but worth knowing.
    """

    files: dict[str, list[str]]
    origin: dict[str, Origin]
    warnings: tuple[str, ...] = field(default=())


def find_unlabeled_cases(
    raw_dataset_folder: str | Path, dataset_json: dict, fold_entry: Mapping[str, Any] | None
) -> UnlabeledCases:
    """All unlabelled cases of one fold: everything in `imagesUl` and the fold's own `unlabeled` list.

    Args:
        raw_dataset_folder: `nnUNet_raw/DatasetXXX_Name`.
        dataset_json: content of its `dataset.json`.
        fold_entry: the fold of `splits_final.json`; None where there is no such file or the fold is not in it.

    Raises:
        DatasetError: there are none at all, a name or a number of files does not fit, or a case is in two places.
    """
    cases = collect_unlabeled_cases(raw_dataset_folder, dataset_json, fold_entry)
    if not cases.files:
        raise DatasetError(no_unlabeled_cases_message(raw_dataset_folder))
    return cases


def no_unlabeled_cases_message(raw_dataset_folder: str | Path) -> str:
    """The sentence for a dataset without unlabelled images: both ways to provide them, and the way without."""
    return (
        f"There is no unlabelled image for {Path(raw_dataset_folder).name}: put some into "
        f"{Path(raw_dataset_folder) / UNLABELED_FOLDER} (named like those of imagesTr), or list cases of imagesTr "
        f'under "unlabeled" in this fold of {SPLITS_FILE}, or set "labeled_as_unlabeled": true in the plan\'s vqseg '
        f"block to use the labelled images as the unlabelled ones."
    )


def collect_unlabeled_cases(
    raw_dataset_folder: str | Path, dataset_json: dict, fold_entry: Mapping[str, Any] | None
) -> UnlabeledCases:
    """As `find_unlabeled_cases`, but an empty result is no error."""
    raw = Path(raw_dataset_folder)
    ending = dataset_json["file_ending"]
    labeled = {case: entry["images"] for case, entry in training_cases(raw, dataset_json).items()}
    separate = _images_in_folder(raw / UNLABELED_FOLDER, ending)
    listed = check_fold_entry(fold_entry, labeled) if fold_entry else []

    both = sorted(set(separate) & set(labeled))
    if both:
        raise DatasetError(
            f"The case {both[0]} is both in {raw / 'imagesTr'} and in {raw / UNLABELED_FOLDER}{and_more(both)}; keep "
            f"it in one of them, or name it otherwise if it is another image."
        )
    expected = _expected_channels(labeled, dataset_json)
    for case, files in separate.items():
        if len(files) != expected:
            raise DatasetError(
                f"The case {case} in {raw / UNLABELED_FOLDER} has {len(files)} channel file(s), but those of imagesTr "
                f"have {expected}; complete or correct it, or remove the case."
            )
    together = {**separate, **{case: labeled[case] for case in listed}}
    test = _images_in_folder(raw / "imagesTs", ending, strict=False)
    transductive = sorted(set(separate) & set(test))
    of_test_patients = shared_patients(set(together) - set(test), test)
    warnings = []
    if transductive:
        warnings.append(
            f"The case {transductive[0]} is both in {raw / UNLABELED_FOLDER} and in {raw / 'imagesTs'}"
            f"{and_more(transductive)}: the training sees test images (transductive), say so when you report results."
        )
    if of_test_patients:
        warnings.append(same_patient_message(*of_test_patients[0], "imagesTs", len(of_test_patients)))
    origin: dict[str, Origin] = dict.fromkeys(separate, "imagesUl")
    origin.update(dict.fromkeys(listed, "split"))
    return UnlabeledCases({case: together[case] for case in sorted(together)}, origin, tuple(warnings))


def same_patient_message(case: str, other: str, where: str, number: int) -> str:
    """The sentence for images of one patient that are trained on and that the result is judged by.

    Args:
        case: trained on, with its label or without.
        other: of the same patient.
        where: that the other one is.
        number: of such patients.
    """
    more = f", one of {number} such patients" if number > 1 else ""
    return (
        f"The case {case} is trained on and {other} in {where} looks like another scan of the same patient{more}; then "
        f"scores of {where} promise too much, keep all scans of a patient on one side. If these are different "
        f"patients, ignore this."
    )


def labeled_as_unlabeled(
    raw_dataset_folder: str | Path, dataset_json: dict, train_cases: Sequence[str]
) -> UnlabeledCases:
    """The fold's labelled training cases as their own unlabelled set (Table 6, the 100 % rows).

    Raises:
        DatasetError: one of the names is not in `imagesTr`.
    """
    labeled = training_cases(Path(raw_dataset_folder), dataset_json)
    for case in train_cases:
        if case not in labeled:
            raise DatasetError(
                f"The training case {case} of {SPLITS_FILE} is not in {Path(raw_dataset_folder) / 'imagesTr'}; correct "
                f"the split or add the image."
            )
    return UnlabeledCases(
        {case: labeled[case]["images"] for case in sorted(train_cases)}, dict.fromkeys(train_cases, "labeled")
    )


def training_cases(raw: Path, dataset_json: dict) -> dict[str, TrainingCase]:
    """What nnU-Net trains on: `imagesTr` with `labelsTr`, or the explicit list that `dataset.json` may hold."""
    if "dataset" in dataset_json:
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        return get_filenames_of_train_images_and_targets(str(raw), copy.deepcopy(dataset_json))
    # nnU-Net's function starts a pool of twelve processes for this.
    ending = dataset_json["file_ending"]
    return {
        case: TrainingCase(images=files, label=str(raw / "labelsTr" / (case + ending)))
        for case, files in _images_in_folder(raw / "imagesTr", ending, strict=False).items()
    }


def case_pattern(ending: str) -> re.Pattern[str]:
    """Case and channel number in a file's name."""
    return re.compile(r"(.+)_(\d{4})" + re.escape(ending))


def segmentation_name_message(file: str | Path, case: str) -> str:
    """The sentence for a case whose preprocessed files nnU-Net would not find."""
    return f"{file}: nnU-Net takes names ending in _seg for segmentations; rename the case {case}."


def _images_in_folder(folder: Path, ending: str, strict: bool = True) -> dict[str, list[str]]:
    """Case -> channel files in order; `strict` refuses whatever is not named CASE_0000.ending, CASE_0001.ending, ..."""
    pattern = case_pattern(ending)
    found: dict[str, dict[int, str]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith("."):  # .DS_Store, ._CASE_0000.nii.gz
            continue
        match = pattern.fullmatch(path.name)
        if match and not path.is_dir():
            found.setdefault(match.group(1), {})[int(match.group(2))] = str(path)
        elif strict and path.is_dir():
            raise DatasetError(f"{path} is a folder; put its images into {folder.name} itself or move it out of it.")
        elif strict and not path.name.lower().endswith(SIDE_FILES):
            raise DatasetError(
                f"{path} is not named CASE_0000{ending} (case, channel number of four digits, the dataset's file "
                f"ending); rename it or move it out of {folder.name}."
            )
    if strict:
        for case, channels in found.items():
            if sorted(channels) != list(range(len(channels))):
                raise DatasetError(
                    f"The case {case} in {folder} has the channel numbers {_numbers(channels)} instead of "
                    f"{_numbers(range(len(channels)))}; add or rename its files."
                )
            if case.endswith("_seg"):
                raise DatasetError(segmentation_name_message(channels[0], case))
    return {case: [channels[number] for number in sorted(channels)] for case, channels in found.items()}


def _expected_channels(labeled: Mapping[str, Sequence[str]], dataset_json: dict) -> int:
    """Files per case as `imagesTr` has them: one for an RGB image, whatever number of channels it holds."""
    if labeled:
        return Counter(len(files) for files in labeled.values()).most_common(1)[0][0]
    return number_of_channels(dataset_json)


def number_of_channels(dataset_json: dict) -> int:
    """Input channels as `dataset.json` declares them."""
    return len(dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"])


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number:04d}" for number in sorted(numbers))
