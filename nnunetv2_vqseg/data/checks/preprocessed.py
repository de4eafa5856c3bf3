"""The labelled cases that nnU-Net preprocessed, looked at before training starts.

They may come from nnU-Net's own planning, which checks labels on request only: a label that dataset.json does not
declare would stop training in the middle, on a GPU without a word on which case it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_vqseg.core.errors import DatasetError, and_more, reason_of
from nnunetv2_vqseg.data.checks.dataset_json import check_label_values, declared_labels, number_of_channels
from nnunetv2_vqseg.data.splits_file import FOLDS, SPLITS_FILE, split_command

OUTSIDE = -1  # nnU-Net's mark for background outside the nonzero region
AGAIN = "run nnUNetv2_vqseg_plan_and_preprocess"


def preprocessed_cases(folder: str | Path) -> list[str]:
    """Names of the cases in nnU-Net's folder of preprocessed labelled cases.

    Raises:
        DatasetError: there are none, or the folder holds something else too.
    """
    try:
        cases = infer_dataset_class(str(folder)).get_identifiers(str(folder))
    except (OSError, AssertionError, KeyError):
        cases = []
    if not cases:
        raise DatasetError(f"{folder} does not hold preprocessed cases, or not only such; {AGAIN}.")
    return sorted(cases)


def require_enough_cases(base: str | Path, known: Sequence[str]) -> None:
    """nnU-Net's own split has five folds, for which it needs five cases.

    Raises:
        DatasetError: there are fewer.
    """
    if len(known) < FOLDS:
        raise DatasetError(
            f"{len(known)} labelled case(s) are too few for nnU-Net's split into {FOLDS} folds; run "
            f"`{split_command(Path(base).name)}`, which makes one from 2 patients up, or train fold all."
        )


def check_split(base: str | Path, fold: int | str, lists: Mapping[str, Sequence[str]], known: Iterable[str]) -> None:
    """Refuse a fold that names cases which are not preprocessed, or none at all.

    Args:
        base: folder of the splits file.
        lists: the fold's `train` and `val`.
        known: names of the preprocessed cases.

    Raises:
        DatasetError: naming the list and a case.
    """
    file = Path(base) / SPLITS_FILE
    for key, cases in lists.items():
        if not cases:
            raise DatasetError(
                f'Fold {fold} of {file} has no case under "{key}"; nnU-Net needs at least one, add one or train '
                f"another fold."
            )
        missing = sorted(set(cases) - set(known))
        if missing:
            raise DatasetError(
                f'Fold {fold} of {file} names the case {missing[0]} under "{key}"{and_more(missing)}, which is not '
                f"preprocessed; correct the name, or add the case and {AGAIN}."
            )


def check_preprocessed_cases(folder: str | Path, cases: Iterable[str], dataset_json: dict[str, Any]) -> None:
    """Open every case and read its labels.

    Raises:
        DatasetError: a case cannot be read, does not have the dataset's channels, or has labels that dataset.json does
            not declare.
    """
    dataset: Any = infer_dataset_class(str(folder))(str(folder))
    known, channels = declared_labels(dataset_json), number_of_channels(dataset_json)
    for case in sorted(cases):
        file = Path(folder) / case
        try:
            data, seg, _, properties = dataset.load_case(case)
            labels, shape = np.asarray(seg[:]), tuple(data.shape)
            complete = "class_locations" in properties
        except Exception as error:  # blosc2, pickle and numpy raise what they like
            raise DatasetError(
                f"{file} cannot be read as a preprocessed case ({type(error).__name__}: {reason_of(error)}); {AGAIN}."
            ) from error
        if not complete or shape[1:] != labels.shape[1:]:
            raise DatasetError(f"{file} is not a complete preprocessed case with a label; {AGAIN}.")
        if shape[0] != channels:
            raise DatasetError(
                f"{file} was preprocessed with {shape[0]} channels, but dataset.json declares {channels}; {AGAIN}."
            )
        check_label_values(file, labels[labels != OUTSIDE], known)
