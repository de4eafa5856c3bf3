"""The files of the cases that are compared, in nnU-Net's folders."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunetv2_vqseg.core.errors import EvaluationError, some
from nnunetv2_vqseg.core.folders import matching_datasets, nnunet_folder, preprocessed_folder
from nnunetv2_vqseg.core.json import read_json
from nnunetv2_vqseg.data.cases import channel_files, training_cases

Split = Literal["test", "val"]
SPLITS: tuple[Split, ...] = ("test", "val")


@dataclass(frozen=True)
class Case:
    """The files of one case: image channels in order, and the reference segmentation."""

    images: tuple[Path, ...]
    reference: Path


def dataset_name(name_or_id: str | int) -> str:
    """`DatasetXXX_Name` for a name or an id, looked up in nnUNet_raw.

    Raises:
        UserError: if there is no such dataset, or several with this id.
    """
    text, raw = str(name_or_id), nnunet_folder("nnUNet_raw")
    found = matching_datasets(text, raw)
    if len(found) == 1:
        return found[0]
    if text.startswith("Dataset"):
        there = sorted(folder.name for folder in raw.glob("Dataset*") if folder.is_dir())
        raise EvaluationError(f"{raw} holds no {text}, only {some(there) or 'no dataset at all'}; correct -d.")
    if not text.isdigit():
        raise EvaluationError(f"-d {text} is neither a dataset's number nor a name as Dataset027_ACDC; correct it.")
    what = f"several datasets ({', '.join(found)})" if found else "no dataset"
    raise EvaluationError(f"{raw} holds {what} with id {text}; give -d the name of the folder you mean.")


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
    if not found:
        raise EvaluationError(f"{folder} holds no *{ending} file; check the folder, and file_ending in dataset.json.")
    return {file.name.removesuffix(ending): file for file in found}


def test_cases(raw: Path, dataset_json: dict[str, Any]) -> dict[str, Case]:
    """The cases of labelsTs with their images in imagesTs.

    Raises:
        EvaluationError: if labelsTs is empty or a case has no image.
    """
    ending = file_ending(dataset_json)
    references, images = label_files(raw / "labelsTs", ending), channel_files(raw / "imagesTs", ending)
    _require_images(references, images, raw / "imagesTs", ending)
    return {case: Case(tuple(map(Path, images[case])), file) for case, file in references.items()}


def validation_cases(
    raw: Path, dataset_json: dict[str, Any], fold: str, instead: str = "use --split test"
) -> dict[str, Case]:
    """The cases in `val` of a fold of splits_final.json, with their images in imagesTr and references in labelsTr.

    Args:
        instead: what one can do without validation cases, for the errors.

    Raises:
        UserError: if there is no such fold, it has no validation cases, or a file of theirs is missing.
    """
    file = preprocessed_folder(raw.name) / "splits_final.json"
    splits = read_json(file, f"train a fold first, which writes it, or {instead}", list)
    if not fold.isdigit() or int(fold) >= len(splits):
        raise EvaluationError(
            f"Fold {fold} is not one of the {len(splits)} folds of {file}; use one that is, or {instead}."
        )
    cases = splits[int(fold)].get("val", [])
    if not cases:
        raise EvaluationError(f'Fold {fold} of {file} has no "val" cases; add some or {instead}.')
    known = training_cases(raw, dataset_json)
    _require_images(cases, known, raw / "imagesTr", file_ending(dataset_json))
    found = {case: Case(tuple(map(Path, known[case]["images"])), Path(known[case]["label"])) for case in cases}
    for case, files in found.items():
        if not files.reference.is_file():
            raise EvaluationError(
                f"{files.reference} does not exist, but {file} has {case} in fold {fold}; restore the file."
            )
    return found


def _require_images(cases: Iterable[str], known: Container[str], folder: Path, ending: str) -> None:
    for case in cases:
        if case not in known:
            raise EvaluationError(f"{folder} holds no {case}_0000{ending}, the image of a reference; put it there.")
