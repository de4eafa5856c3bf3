"""nnU-Net's `splits_final.json`.

A fold is `{"train": [...], "val": [...], "unlabeled": [...]}`. nnU-Net ignores the third list, so a stock trainer sees
the labelled cases only and both methods train from the same file. "patient_regex" beside the lists, where
`nnUNetv2_vqseg_split --patient-regex` made the fold, says which cases are one patient's.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.errors import DatasetError, and_more
from nnunetv2_vqseg.core.files import replace_text
from nnunetv2_vqseg.core.json import read_json
from nnunetv2_vqseg.data.patients import PATIENT_PATTERN

SPLITS_FILE = "splits_final.json"
LISTS, PATTERN = ("train", "val", "unlabeled"), "patient_regex"
"""What a fold has."""
FOLDS = 5
"""Of nnU-Net's own split, for which it needs as many cases."""
Fold = dict[str, Any]


def split_command(dataset_name: str) -> str:
    """The command that makes folds of a `DatasetXXX_NAME`."""
    return f"nnUNetv2_vqseg_split -d {int(dataset_name[7:10])}"


def load_splits(*folders: str | Path) -> list[Fold]:
    """The content of the first `splits_final.json` found in the folders; an empty list where there is none.

    Raises:
        DatasetError: the file is not a list of folds, each with lists of case names, or a pattern is no text.
    """
    for file in (Path(folder) / SPLITS_FILE for folder in folders):
        if not file.is_file():
            continue
        splits = read_json(file, "correct it or delete it")
        if not isinstance(splits, list) or not all(isinstance(fold, dict) for fold in splits):
            raise DatasetError(f'{file} is not a list of folds such as {{"train": [...], "val": [...]}}; correct it.')
        for number, fold in enumerate(splits):
            optional = ["unlabeled"] if fold.get("unlabeled") is not None else []
            for key in ("train", "val", *optional):
                if not _is_list_of_names(fold.get(key)):
                    raise DatasetError(
                        f'{file} has no list of case names under "{key}" in fold {number}; write for example "{key}": '
                        f'["CASE_1", "CASE_2"].'
                    )
            if not isinstance(fold.get(PATTERN, ""), str):
                raise DatasetError(f'"{PATTERN}" in fold {number} of {file} is no text; correct it or remove it.')
        return splits
    return []


def patient_pattern(fold: Fold | None) -> str:
    """What finds the patient in the names of a fold's cases."""
    return (fold or {}).get(PATTERN) or PATIENT_PATTERN


def load_fold_entry(preprocessed_dataset_folder_base: str | Path, fold: int | str) -> Fold | None:
    """One fold of `splits_final.json`, None where nnU-Net would make up its own split.

    Raises:
        DatasetError: fold `all`, or one that the file does not have, together with an `unlabeled` list; nnU-Net would
            train on the labels of those cases.
    """
    splits = load_splits(preprocessed_dataset_folder_base)
    if fold != "all" and int(fold) < len(splits):
        return splits[int(fold)]
    if any(entry.get("unlabeled") for entry in splits):
        raise DatasetError(
            f"Fold {fold} cannot be used with {Path(preprocessed_dataset_folder_base) / SPLITS_FILE}, which has "
            f'"unlabeled" cases: it would train on their labels; train one of the folds 0 to {len(splits) - 1}.'
        )
    return None


def check_same_folds(original_folder: Path, copy_folder: Path) -> None:
    """Planning copies `splits_final.json` from nnUNet_raw to nnUNet_preprocessed once, and training reads the copy.

    More folds in the copy, and `unlabeled` lists in the copy alone, are what users add to it.

    Raises:
        DatasetError: a fold of the original is another in the copy.
    """
    original, copy = original_folder / SPLITS_FILE, copy_folder / SPLITS_FILE
    if not (original.is_file() and copy.is_file()):
        return
    copied = load_splits(copy_folder)
    for number, fold in enumerate(load_splits(original_folder)):
        other = copied[number] if number < len(copied) else {"train": [], "val": []}
        keys = ("train", "val", *(["unlabeled"] if fold.get("unlabeled") else []))
        different = [key for key in keys if set(fold[key]) != set(other.get(key) or ())]
        if different:
            raise DatasetError(
                f'{original} and {copy}, which training reads, differ in "{different[0]}" of fold {number}; delete the '
                f"latter to use the former, or make them equal."
            )


def check_fold_entry(fold_entry: Mapping[str, Any], known_cases: Iterable[str]) -> list[str]:
    """The fold's `unlabeled` list, after a check of its names.

    Raises:
        DatasetError: not a list of names, a name twice, also in `train` or `val`, or not in `imagesTr`.
    """
    listed = fold_entry.get("unlabeled") or []
    if not _is_list_of_names(listed):
        raise DatasetError(f'"unlabeled" in {SPLITS_FILE} is not a list of case names; write it like "train".')
    twice = [case for case, count in Counter(listed).items() if count > 1]
    if twice:
        raise DatasetError(f'{SPLITS_FILE} names the case {twice[0]} twice under "unlabeled"; remove one of them.')
    for other in ("train", "val"):
        shared = sorted(set(listed) & set(fold_entry.get(other, ())))
        if shared:
            raise DatasetError(
                f'{SPLITS_FILE} names the case {shared[0]} both under "unlabeled" and under "{other}" of one fold'
                f"{and_more(shared)}; a case has a label or it has none, remove it from one of the lists."
            )
    missing = sorted(set(listed) - set(known_cases))
    if missing:
        raise DatasetError(
            f'{SPLITS_FILE} names the case {missing[0]} under "unlabeled", but imagesTr has no such case'
            f"{and_more(missing)}; correct the name or add the image."
        )
    return listed


def write_splits(
    folders: Sequence[Path], folds: list[Fold], overwrite: bool = False, append: bool = False
) -> list[Path]:
    """Write `splits_final.json` into every folder, the same everywhere; an old file is kept as `.bak-N`.

    Args:
        overwrite: replace the folds that are there.
        append: add the new folds behind those that are there.

    Returns:
        The backups made. Files that already hold exactly these folds are left alone.

    Raises:
        DatasetError: other folds are there without `overwrite` or `append`, or the files to append to differ.
    """
    files = [folder / SPLITS_FILE for folder in folders]
    present = {file: _read_folds(file, overwrite) for file in files if file.exists()}
    if append and present:
        first, *others = present.values()
        if any(other != first for other in others):
            raise DatasetError(f"{' and '.join(map(str, present))} differ, so nothing can be added; use --overwrite.")
        folds = [*first, *(fold for fold in folds if fold not in first)]
    outdated = [file for file in present if present[file] != folds]
    if outdated and not (overwrite or append):
        raise DatasetError(f"{outdated[0]} has other folds; add --append to keep them or --overwrite to replace them.")
    backups = [_back_up(file) for file in outdated]
    for file in files:
        if present.get(file) != folds:
            replace_text(file, json.dumps(folds, indent=4) + "\n")
    return backups


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(case, str) for case in value)


def _read_folds(file: Path, overwrite: bool) -> list[Fold]:
    try:
        return load_splits(file.parent)
    except DatasetError:
        if overwrite:  # whatever it is, it is backed up
            return []
        raise


def _back_up(file: Path) -> Path:
    number = 1
    while (backup := file.with_name(f"{file.name}.bak-{number}")).exists():
        number += 1
    shutil.copyfile(file, backup)
    return backup
