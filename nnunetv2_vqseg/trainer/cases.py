"""The cases of one fold: checked where their raw files are, and the unlabelled ones preprocessed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import isfile
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_vqseg.core.errors import DatasetError, explained_disk_errors
from nnunetv2_vqseg.data.cases import (
    UNLABELED_FOLDER,
    UnlabeledCases,
    collect_unlabeled_cases,
    find_unlabeled_cases,
    labeled_as_unlabeled,
    training_cases,
)
from nnunetv2_vqseg.data.checks.labeled import RECORD_FILE, check_labeled_cases
from nnunetv2_vqseg.data.checks.preprocessed import check_preprocessed_cases
from nnunetv2_vqseg.data.preprocess import load_prepared_identifiers, prepare_unlabeled_cases, unlabeled_folder
from nnunetv2_vqseg.data.splits_file import load_fold_entry
from nnunetv2_vqseg.trainer.ranks import Ranks

# File systems that machines share show new files to the others with a delay.
SECONDS_UNTIL_FILES_APPEAR = 90.0


@dataclass(frozen=True)
class FoldCases:
    """What a training reads: one fold of a planned and preprocessed dataset.

    preprocessed: folder of the labelled cases; base: of the dataset.
    split: -> training and validation cases.
    """

    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict[str, Any]
    fold: int | str
    base: str
    preprocessed: str
    split: Callable[[], tuple[list[str], list[str]]]
    log: Callable[[str], None]

    @property
    def unlabeled_folder(self) -> str:
        """Where the unlabelled cases are preprocessed."""
        return unlabeled_folder(self.preprocessed)

    @property
    def raw_folder(self) -> Path | None:
        """The raw dataset, None where it is not on this machine."""
        if not nnUNet_raw.is_set():
            return None
        folder = Path(nnUNet_raw) / self.plans_manager.dataset_name
        # Without images it may still be there for its dataset.json and test cases, which comparisons need.
        has_images = any((folder / name).is_dir() for name in ("imagesTr", UNLABELED_FOLDER))
        return folder if has_images or (folder.is_dir() and "dataset" in self.dataset_json) else None

    @explained_disk_errors()
    def check_labeled(self) -> None:
        """The raw files where they are on this machine, which nnU-Net's own planning does not look into so closely.

        Raises:
            DatasetError: a case cannot be used, or a file cannot be read or written.
        """
        cases = {case for keys in self.split() for case in keys}
        raw = self.raw_folder
        training = training_cases(raw, self.dataset_json) if raw is not None else {}
        here = {
            case: training[case]
            for case in sorted(cases)
            if case in training and all(map(isfile, (*training[case]["images"], training[case]["label"])))
        }
        if here:
            check_labeled_cases(
                here,
                self.dataset_json,
                self.plans_manager.image_reader_writer_class,
                Path(self.base) / RECORD_FILE,
                num_processes=get_allowed_n_proc_DA(),
            )
        check_preprocessed_cases(self.preprocessed, cases, self.dataset_json)

    def prepare_unlabeled(self, ranks: Ranks, from_labeled: bool) -> list[str]:
        """Preprocess on rank 0 what is missing; the unlabelled cases' names.

        Args:
            from_labeled: the labelled images where there are no others.

        Raises:
            DatasetError: a case cannot be used, or a file cannot be read or written.
        """
        found = ranks.rank_0_first(
            "preprocessing the unlabelled cases",
            lambda: self._prepare(from_labeled),
            lambda: self._prepared_by_rank_0(from_labeled),
        )
        self.log(f"{len(found)} unlabelled cases from {self.unlabeled_folder}.")
        return found

    def _unlabeled_cases(self, from_labeled: bool) -> UnlabeledCases | None:
        """The fold's unlabelled cases; None where the raw dataset is not on this machine."""
        raw = self.raw_folder
        if raw is None:
            return None
        found = (raw, self.dataset_json, load_fold_entry(self.base, self.fold))
        if from_labeled and not collect_unlabeled_cases(*found).files:
            return labeled_as_unlabeled(raw, self.dataset_json, self.split()[0])
        return find_unlabeled_cases(*found)

    @explained_disk_errors()
    def _prepare(self, from_labeled: bool) -> list[str]:
        cases = self._unlabeled_cases(from_labeled)
        if cases is None:
            return self._load_prepared(None, from_labeled)
        return prepare_unlabeled_cases(
            cases,
            self.plans_manager,
            self.configuration_manager,
            self.dataset_json,
            self.unlabeled_folder,
            num_processes=get_allowed_n_proc_DA(),
            log=self.log,
        )

    def _prepared_by_rank_0(self, from_labeled: bool) -> list[str]:
        deadline = monotonic() + SECONDS_UNTIL_FILES_APPEAR
        while True:
            try:
                return self._load_prepared(self._unlabeled_cases(from_labeled), from_labeled)
            except DatasetError as error:
                if monotonic() > deadline:
                    raise DatasetError(
                        f"Rank 0 has prepared the unlabelled cases, but {self.unlabeled_folder} as "
                        f"{socket.gethostname()} sees it is not complete; nnUNet_preprocessed must be one folder that "
                        f"all machines share."
                    ) from error
            sleep(1.0)

    def _load_prepared(self, cases: UnlabeledCases | None, from_labeled: bool) -> list[str]:
        labeled: Sequence[str] = self.split()[0] if cases is None and from_labeled else ()
        return load_prepared_identifiers(
            self.unlabeled_folder,
            cases,
            load_fold_entry(self.base, self.fold),
            self.plans_manager,
            self.configuration_manager,
            labeled,
        )
