"""Everything that can be known to be wrong with a raw dataset before nnU-Net works on it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_vqseg.core.errors import DatasetError, and_more
from nnunetv2_vqseg.core.folders import preprocessed_folder, raw_folder
from nnunetv2_vqseg.data.cases import check_training_names, no_unlabeled_cases_message
from nnunetv2_vqseg.data.checks.dataset_json import load_dataset_json
from nnunetv2_vqseg.data.checks.labeled import RECORD_FILE, CheckedCase, check_labeled_cases
from nnunetv2_vqseg.data.readers import find_reader
from nnunetv2_vqseg.data.roles import CaseRoles, read_roles
from nnunetv2_vqseg.data.splits_file import SPLITS_FILE


class CheckedDataset(NamedTuple):
    """A dataset in nnUNet_raw: names, splits and dataset.json fit together and the labelled cases can be read.

    `labeled` holds the cases whose labels may be opened, `reader` is nnU-Net's class for its files.
    """

    name: str
    dataset_json: dict[str, Any]
    roles: CaseRoles
    labeled: dict[str, CheckedCase]
    reader: type

    @property
    def raw(self) -> Path:
        """Its folder in nnUNet_raw."""
        return raw_folder(self.name)

    @property
    def preprocessed(self) -> Path:
        """Its folder in nnUNet_preprocessed."""
        return preprocessed_folder(self.name)


def check_dataset(
    name: str, num_processes: int, show_progress: bool = True, again: bool = False, log: Callable[[str], None] = print
) -> CheckedDataset:
    """Read a dataset's description, names, splits, labelled images and labels; unlabelled images are found only.

    What was found out about labelled cases is recorded in nnUNet_preprocessed, where training compares it.

    Args:
        name: `DatasetXXX_Name`.
        num_processes: 0 or 1 stays in this process.
        again: read the labelled cases, even those that have not changed.
        log: receives warnings, one line each.

    Raises:
        DatasetError: something cannot be used, or nnUNet_preprocessed cannot be written.
    """
    raw, preprocessed = raw_folder(name), preprocessed_folder(name)
    dataset_json = load_dataset_json(raw / "dataset.json")
    check_training_names(raw, dataset_json)
    roles = read_roles(name, dataset_json)
    for warning in _warnings(name, dataset_json, roles):
        log(f"WARNING: {warning}")
    _require_writable(preprocessed)
    record, images = preprocessed / RECORD_FILE, raw / "imagesTr"
    if again:
        record.unlink(missing_ok=True)
    if not roles.training:
        raise DatasetError(
            f"{images} has no file named CASE_0000{dataset_json['file_ending']}; nnU-Net needs its labelled images "
            f"there."
        )
    if not roles.visible:
        raise DatasetError(
            f'{SPLITS_FILE} lists every case of {images} under "unlabeled" and none under "train" or "val"; leave some '
            f"labelled."
        )
    reader = find_reader(dataset_json, [file for entry in roles.visible.values() for file in entry["images"]])
    labeled = check_labeled_cases(roles.visible, dataset_json, reader, record, num_processes, show_progress)
    for warning in (warning for case in labeled.values() for warning in case["warnings"]):
        log(f"WARNING: {warning}")
    return CheckedDataset(name, dataset_json, roles, labeled, reader)


def _warnings(name: str, dataset_json: dict[str, Any], roles: CaseRoles) -> Iterator[str]:
    raw, copy = raw_folder(name), preprocessed_folder(name) / SPLITS_FILE
    yield from roles.unlabeled.warnings
    if not roles.unlabeled.files:
        yield no_unlabeled_cases_message(raw)
    if roles.unused:
        yield (
            f"No fold of {SPLITS_FILE} names the case {roles.unused[0]} of imagesTr{and_more(roles.unused)}, so only a "
            f"training of fold all uses it; add it to a fold"
            f"{f', or delete {copy} where nnU-Net made it up' if copy.is_file() else ''}."
        )
    if dataset_json["numTraining"] != len(roles.training):
        yield (
            f"{raw / 'dataset.json'} says numTraining {dataset_json['numTraining']}, but there are "
            f"{len(roles.training)} labelled cases; correct it."
        )


def _require_writable(folder: Path) -> None:
    """Find out now, and not after nnU-Net has deleted what it was about to replace."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DatasetError(
            f"{folder} cannot be written to ({error.strerror}); make it writable or make room, and start again."
        ) from error
