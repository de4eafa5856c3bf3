"""Which cases are unlabelled, and do their files' names and numbers fit the dataset?

Two sources: the folder `imagesUl` beside `imagesTr`, and the optional list `"unlabeled"` in a fold of
`splits_final.json`, which names cases of `imagesTr` whose labels are then never opened. Nothing here opens an image.
"""

from __future__ import annotations

import copy
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from nnunetv2_vqseg.core.errors import DatasetError, and_more
from nnunetv2_vqseg.data.checks.dataset_json import number_of_channels
from nnunetv2_vqseg.data.patients import same_patient_message, shared_patients
from nnunetv2_vqseg.data.splits_file import SPLITS_FILE, check_fold_entry

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
    warnings: tuple[str, ...] = ()


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
    raw = Path(raw_dataset_folder)
    return (
        f"There is no unlabelled image for {raw.name}: put some into {raw / UNLABELED_FOLDER} (named like those of "
        f'imagesTr), or list cases of imagesTr under "unlabeled" in this fold of {SPLITS_FILE}, or set '
        f'"labeled_as_unlabeled": true in the plan\'s vqseg block to use the labelled images as the unlabelled ones.'
    )


def collect_unlabeled_cases(
    raw_dataset_folder: str | Path, dataset_json: dict, fold_entry: Mapping[str, Any] | None
) -> UnlabeledCases:
    """As `find_unlabeled_cases`, but an empty result is no error."""
    raw = Path(raw_dataset_folder)
    labeled = {case: entry["images"] for case, entry in training_cases(raw, dataset_json).items()}
    separate = _separate_cases(raw, dataset_json, labeled)
    listed = check_fold_entry(fold_entry, labeled) if fold_entry else []
    files = {**separate, **{case: labeled[case] for case in listed}}
    origin: dict[str, Origin] = {**dict.fromkeys(separate, "imagesUl"), **dict.fromkeys(listed, "split")}

    test = channel_files(raw / "imagesTs", dataset_json["file_ending"])
    warnings = []
    transductive = sorted(set(separate) & set(test))
    if transductive:
        warnings.append(
            f"The case {transductive[0]} is both in {raw / UNLABELED_FOLDER} and in {raw / 'imagesTs'}"
            f"{and_more(transductive)}: the training sees test images (transductive), say so when you report results."
        )
    of_test_patients = shared_patients(set(files) - set(test), test)
    if of_test_patients:
        warnings.append(same_patient_message(of_test_patients, "imagesTs"))
    return UnlabeledCases(dict(sorted(files.items())), origin, tuple(warnings))


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
    files = {case: labeled[case]["images"] for case in sorted(train_cases)}
    return UnlabeledCases(files, dict.fromkeys(files, "labeled"))


def training_cases(raw: Path, dataset_json: dict) -> dict[str, TrainingCase]:
    """What nnU-Net trains on: `imagesTr` with `labelsTr`, or the explicit list that `dataset.json` may hold."""
    if "dataset" in dataset_json:
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        return get_filenames_of_train_images_and_targets(str(raw), copy.deepcopy(dataset_json))
    # nnU-Net's function starts a pool of twelve processes for this.
    ending = dataset_json["file_ending"]
    return {
        case: TrainingCase(images=files, label=str(raw / "labelsTr" / (case + ending)))
        for case, files in channel_files(raw / "imagesTr", ending).items()
    }


def channel_files(folder: Path, ending: str) -> dict[str, list[str]]:
    """Case -> its files `CASE_0000.ending`, `CASE_0001.ending`, ... in order; whatever else is there is passed over."""
    return _channel_files(_visible(folder), ending)


def _channel_files(files: Iterable[os.DirEntry[str]], ending: str) -> dict[str, list[str]]:
    pattern = _case_pattern(ending)
    found: dict[str, list[str]] = {}
    for file in files:
        match = pattern.fullmatch(file.name)
        if match and not file.is_dir():
            found.setdefault(match[1], []).append(file.path)
    return found


def check_training_names(raw: Path, dataset_json: dict[str, Any]) -> None:
    """Refuse files in `imagesTr` that nnU-Net would take for images of a case without a name.

    Raises:
        DatasetError: naming the first.
    """
    folder, ending = raw / "imagesTr", dataset_json["file_ending"]
    if "dataset" in dataset_json or not folder.is_dir():
        return
    for path in sorted(folder.glob(f"*{ending}")):
        match = _case_pattern(ending).fullmatch(path.name)
        if match is None or path.name.startswith("."):
            raise DatasetError(_misnamed(path, ending))
        _check_case_name(match[1], path)


def _separate_cases(raw: Path, dataset_json: dict, labeled: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The cases of `imagesUl`, whose names and channels must be as in `imagesTr`."""
    folder, ending = raw / UNLABELED_FOLDER, dataset_json["file_ending"]
    visible, pattern = _visible(folder), _case_pattern(ending)
    for file in visible:
        if file.is_dir():
            raise DatasetError(
                f"{file.path} is a folder; put its images into {folder.name} itself or move it out of it."
            )
        if not (pattern.fullmatch(file.name) or file.name.lower().endswith(SIDE_FILES)):
            raise DatasetError(_misnamed(Path(file), ending))
    found = _channel_files(visible, ending)
    for case, files in found.items():
        numbers = [int(file[: -len(ending)][-4:]) for file in files]
        if numbers != list(range(len(files))):
            raise DatasetError(
                f"The case {case} in {folder} has the channel numbers {_numbers(numbers)} instead of "
                f"{_numbers(range(len(files)))}; add or rename its files."
            )
        _check_case_name(case, files[0])
    both = sorted(set(found) & set(labeled))
    if both:
        raise DatasetError(
            f"The case {both[0]} is both in {raw / 'imagesTr'} and in {folder}{and_more(both)}; keep it in one of "
            f"them, or name it otherwise if it is another image."
        )
    # One file for an RGB image, whatever number of channels it holds.
    usual = Counter(map(len, labeled.values())).most_common(1)
    expected = usual[0][0] if usual else number_of_channels(dataset_json)
    for case, files in found.items():
        if len(files) != expected:
            raise DatasetError(
                f"The case {case} in {folder} has {len(files)} channel file(s), but those of imagesTr have {expected}; "
                f"complete or correct it, or remove the case."
            )
    return found


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """Sorted, without .DS_Store and ._CASE_0000.nii.gz; empty where there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as files:
        return sorted((file for file in files if not file.name.startswith(".")), key=lambda file: file.name)


def _case_pattern(ending: str) -> re.Pattern[str]:
    """Case and channel number in a file's name."""
    return re.compile(r"(.+)_([0-9]{4})" + re.escape(ending))


def _misnamed(path: Path, ending: str) -> str:
    return (
        f"{path} is not named CASE_0000{ending} (case, channel number of four digits, the dataset's file ending); "
        f"rename it or move it out of {path.parent.name}."
    )


def _check_case_name(case: str, file: str | Path) -> None:
    """nnU-Net would not find the preprocessed files of such a case."""
    if case.endswith("_seg"):
        raise DatasetError(f"{file}: nnU-Net takes names ending in _seg for segmentations; rename the case {case}.")


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number:04d}" for number in numbers)
