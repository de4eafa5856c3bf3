"""Where nnU-Net keeps a dataset, and which of its cases are compared; without importing nnU-Net."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nnunetv2_vqseg.core.errors import EvaluationError
from nnunetv2_vqseg.core.json import read_json
from nnunetv2_vqseg.data.patients import some

Split = Literal["test", "val"]
SPLITS: tuple[Split, ...] = ("test", "val")


@dataclass(frozen=True)
class Case:
    """The files of one case: image channels in order, and the reference segmentation."""

    images: tuple[Path, ...]
    reference: Path


def nnunet_folder(variable: str) -> Path:
    """The folder in nnU-Net's environment variable `nnUNet_raw`, `nnUNet_preprocessed` or `nnUNet_results`.

    Raises:
        EvaluationError: if the variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise EvaluationError(f"The environment variable {variable} is not set; export it as nnU-Net's set-up says.")
    return Path(value)


def dataset_name(name_or_id: str | int) -> str:
    """`DatasetXXX_Name` for a name or an id, looked up in nnUNet_raw.

    Raises:
        EvaluationError: if there is no such dataset, or several with this id.
    """
    text = str(name_or_id)
    raw = nnunet_folder("nnUNet_raw")
    if text.startswith("Dataset"):
        if not (raw / text).is_dir():
            there = sorted(folder.name for folder in raw.glob("Dataset*") if folder.is_dir())
            raise EvaluationError(f"{raw} holds no {text}, only {some(there) or 'no dataset at all'}; correct -d.")
        return text
    if not text.isdigit():
        raise EvaluationError(f"-d {text} is neither a dataset's number nor a name as Dataset027_ACDC; correct it.")
    found = sorted(folder.name for folder in raw.glob(f"Dataset{int(text):03d}_*") if folder.is_dir())
    if len(found) != 1:
        what = "no dataset" if not found else f"several datasets ({', '.join(found)})"
        raise EvaluationError(f"{raw} holds {what} with id {text}; give -d the name of the folder you mean.")
    return found[0]


def raw_folder(name_or_id: str | int) -> Path:
    """The dataset's folder in nnUNet_raw; raises as `dataset_name`."""
    return nnunet_folder("nnUNet_raw") / dataset_name(name_or_id)


def file_ending(dataset_json: dict[str, Any]) -> str:
    """`file_ending` of a dataset.json; raises EvaluationError if there is none."""
    ending = dataset_json.get("file_ending")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise EvaluationError('dataset.json has no "file_ending"; write for example "file_ending": ".nii.gz" into it.')
    return ending


def label_files(folder: Path, ending: str) -> dict[str, Path]:
    """Case to file, sorted, of the label maps in `folder`; not the `._` files that a Mac puts beside them.

    Raises:
        EvaluationError: if the folder does not exist or holds no file with this ending.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is not a folder; give the one that holds the reference segmentations.")
    found = [file for file in sorted(folder.glob(f"*{ending}")) if file.is_file() and not file.name.startswith("._")]
    files = {file.name.removesuffix(ending): file for file in found}
    if not files:
        raise EvaluationError(f"{folder} holds no *{ending} file; check the folder, and file_ending in dataset.json.")
    return files


def test_cases(raw: Path, dataset_json: dict[str, Any]) -> dict[str, Case]:
    """The cases of labelsTs with their images in imagesTs.

    Raises:
        EvaluationError: if labelsTs is empty or a case has no image.
    """
    ending = file_ending(dataset_json)
    references = label_files(raw / "labelsTs", ending)
    images = _ImageFolder(raw / "imagesTs", ending)
    return {case: Case(images.channels(case), file) for case, file in references.items()}


def validation_cases(
    raw: Path, dataset_json: dict[str, Any], fold: str, instead: str = "use --split test"
) -> dict[str, Case]:
    """The cases in `val` of a fold of splits_final.json, with their images in imagesTr and references in labelsTr.

    Args:
        instead: what one can do without validation cases, for the errors.

    Raises:
        EvaluationError: if there is no such fold, it has no validation cases, or a file of theirs is missing.
    """
    file = nnunet_folder("nnUNet_preprocessed") / raw.name / "splits_final.json"
    splits = read_json(file, f"train a fold first, which writes it, or {instead}", kind=list)
    if not fold.isdigit() or int(fold) >= len(splits):
        raise EvaluationError(
            f"Fold {fold} is not one of the {len(splits)} folds of {file}; use one that is, or {instead}."
        )
    cases = splits[int(fold)].get("val", [])
    if not cases:
        raise EvaluationError(f'Fold {fold} of {file} has no "val" cases; add some or {instead}.')
    ending = file_ending(dataset_json)
    listed = dataset_json.get("dataset", {})  # nnU-Net's other way to name the files of the training cases
    found, folder = {}, _ImageFolder(raw / "imagesTr", ending)
    for case in cases:
        if case in listed:
            images = tuple(raw / os.path.expandvars(image) for image in listed[case]["images"])
            reference = raw / os.path.expandvars(listed[case]["label"])
        else:
            images, reference = folder.channels(case), raw / "labelsTr" / f"{case}{ending}"
        if not reference.is_file():
            raise EvaluationError(
                f"{reference} does not exist, but {file} has {case} in fold {fold}; restore the file."
            )
        found[case] = Case(images, reference)
    return found


class _ImageFolder:
    """The channels of each case in a folder of images, which is listed once, when the first is asked for."""

    def __init__(self, folder: Path, ending: str) -> None:
        self._folder, self._ending = folder, ending

    def channels(self, case: str) -> tuple[Path, ...]:
        """In order; raises EvaluationError if there is none."""
        if case not in self._by_case:
            raise EvaluationError(
                f"{self._folder} holds no {case}_0000{self._ending}, the image of a reference; put it there."
            )
        return tuple(self._by_case[case])

    @cached_property
    def _by_case(self) -> dict[str, list[Path]]:
        pattern = re.compile(r"(.+)_\d{4}" + re.escape(self._ending))
        found: dict[str, list[Path]] = {}
        for file in sorted(self._folder.glob("*")):
            if match := pattern.fullmatch(file.name):
                found.setdefault(match[1], []).append(file)
        return found
