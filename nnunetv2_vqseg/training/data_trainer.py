"""nnU-Net's trainer with a configuration and an unlabelled loader beside the labelled one."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any, ClassVar

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.utilities.file_and_folder_operations import isfile
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import autocast

from nnunetv2_vqseg.config import ARCHITECTURE, VQSegConfig
from nnunetv2_vqseg.core.errors import DatasetError, explained_disk_errors
from nnunetv2_vqseg.data.cases import (
    UNLABELED_FOLDER,
    UnlabeledCases,
    collect_unlabeled_cases,
    find_unlabeled_cases,
    labeled_as_unlabeled,
    load_splits,
    number_of_channels,
    same_patient_message,
    training_cases,
)
from nnunetv2_vqseg.data.dataset_json import check_dataset_json
from nnunetv2_vqseg.data.labeled_cases import RECORD_FILE, check_labeled_cases
from nnunetv2_vqseg.data.loader import EndWithParent, build_unlabeled_loader, weak_transforms
from nnunetv2_vqseg.data.patients import shared_patients
from nnunetv2_vqseg.data.preprocessed_cases import (
    check_preprocessed_cases,
    check_split,
    preprocessed_cases,
    require_enough_cases,
)
from nnunetv2_vqseg.data.preprocessing import load_prepared_identifiers, prepare_unlabeled_cases, unlabeled_folder
from nnunetv2_vqseg.data.splits_file import load_fold_entry
from nnunetv2_vqseg.planning.plan_checks import check_network, check_plans, try_plans
from nnunetv2_vqseg.planning.plans import resolve_vqseg_block
from nnunetv2_vqseg.training.distributed import DistributedTrainer

# File systems that machines share show new files to the others with a delay.
SECONDS_UNTIL_FILES_APPEAR = 90.0


class UnlabeledDataTrainer(DistributedTrainer):
    """Configuration from class and plan, batch sizes, and `dataloader_unlabeled`."""

    dataloader_unlabeled: Any = None
    unlabeled_identifiers: Sequence[str] = ()

    locked: ClassVar[frozenset[str]] = frozenset()
    """Fields of the configuration that define the variant; a plan cannot change them."""

    @classmethod
    def default_config(cls) -> VQSegConfig:
        """The variant's own configuration, before the plan's `vqseg` block."""
        return VQSegConfig.default()

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 nnU-Net reads this signature
    ) -> None:
        block = resolve_vqseg_block(plans, configuration)
        self.config = self.default_config().override(block, self.locked)
        check_plans(plans, configuration)
        require_2d(plans, configuration)
        check_dataset_json(dataset_json, "dataset.json")
        try_plans(plans, configuration, number_of_channels(dataset_json))
        # Whole, because nnU-Net's inherits_from would drop a parent's keys, and with the architecture, so that a model
        # predicts the same when the defaults of a later version differ.
        architecture = {key: value for key, value in self.config.as_dict().items() if key in ARCHITECTURE}
        plans["configurations"][configuration]["vqseg"] = block | architecture
        with explained_disk_errors():
            super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.config.num_epochs
        self.num_iterations_per_epoch = self.config.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.config.val_iterations_per_epoch
        self.save_every = self.config.save_every
        self.initial_lr = self.config.initial_lr
        self.labeled_batch_size, self.unlabeled_batch_size = self._batch_sizes()
        self.configuration_manager.configuration["batch_size"] = self.labeled_batch_size

    def initialize(self) -> None:
        """nnU-Net's, where the planned network can be built and labelled cases are there.

        Raises:
            PlansError: the network cannot be built.
            DatasetError: no labelled case is preprocessed.
        """
        channels, heads = number_of_channels(self.dataset_json), self.label_manager.num_segmentation_heads
        plan = (self.plans_manager, self.configuration_manager)
        check_network(
            self.plans_manager.plans,
            self.configuration_name,
            self.configuration_manager.patch_size,
            channels,
            lambda: self.build_network_architecture(*plan, channels, heads, True),
        )
        preprocessed_cases(self.preprocessed_dataset_folder)
        super().initialize()

    def on_train_start(self) -> None:
        """nnU-Net's, once the labelled cases are known to be usable and the unlabelled ones are preprocessed.

        Raises:
            DatasetError: a case cannot be used, or a file cannot be read or written.
        """
        self.rank_0_first("checking the labelled cases", self._check_labeled, lambda: None)
        if self.config.use_unlabeled:
            self._prepare_unlabeled()
        self._tell_of_shared_patients()
        with explained_disk_errors():
            super().on_train_start()

    @explained_disk_errors()
    def _check_labeled(self) -> None:
        """The raw files where they are on this machine, which nnU-Net's own planning does not look into so closely."""
        cases = {case for keys in self.do_split() for case in keys}
        raw = self._raw_folder()
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
                Path(self.preprocessed_dataset_folder_base) / RECORD_FILE,
                num_processes=get_allowed_n_proc_DA(),
            )
        check_preprocessed_cases(self.preprocessed_dataset_folder, cases, self.dataset_json)

    def _tell_of_shared_patients(self) -> None:
        """nnU-Net's own split goes by cases, and `imagesUl` may hold further scans of a validation patient."""
        if self.fold == "all":  # validates on what it trains on
            return
        train, val = self.do_split()
        shared = shared_patients({*train, *self.unlabeled_identifiers}, val)
        if shared:
            where = f"the validation cases of fold {self.fold}"
            self.print_to_log_file(f"WARNING: {same_patient_message(*shared[0], where, len(shared))}")

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's, and every case that it names is there.

        Raises:
            DatasetError: a name that is not, an empty list, too few cases for nnU-Net to make up a split, or a fold
                that would read the labels of another fold's unlabelled cases.
        """
        base = self.preprocessed_dataset_folder_base
        load_fold_entry(base, self.fold)
        known = preprocessed_cases(self.preprocessed_dataset_folder)
        if self.fold != "all" and not load_splits(base):
            require_enough_cases(base, known)
        with explained_disk_errors():
            train, val = super().do_split()
        check_split(base, self.fold, {"train": train, "val": val}, known)
        return train, val

    def _batch_sizes(self) -> tuple[int, int]:
        """Labelled and unlabelled images a step, all ranks together."""
        fixed = self.config.labeled_batch_size
        low, high = self.config.batch_size_range
        labeled = fixed or int(min(max(self.configuration_manager.batch_size, low), high))
        labeled = self.even_batch(labeled, fixed is None, "labelled", "labeled_batch_size")
        if not self.config.use_unlabeled:
            return labeled, 0
        fixed = self.config.unlabeled_batch_size
        unlabeled = fixed or max(1, round(labeled / 2))
        return labeled, self.even_batch(unlabeled, fixed is None, "unlabelled", "unlabeled_batch_size")

    def _fold_entry(self) -> dict | None:
        return load_fold_entry(self.preprocessed_dataset_folder_base, self.fold)

    def _raw_folder(self) -> Path | None:
        if not nnUNet_raw.is_set():
            return None
        folder = Path(nnUNet_raw) / self.plans_manager.dataset_name
        # Without images it may still be there for its dataset.json and test cases, which comparisons need.
        has_images = any((folder / name).is_dir() for name in ("imagesTr", UNLABELED_FOLDER))
        return folder if has_images or (folder.is_dir() and "dataset" in self.dataset_json) else None

    def _unlabeled_cases(self) -> UnlabeledCases | None:
        """The fold's unlabelled cases; None where the raw dataset is not on this machine."""
        raw = self._raw_folder()
        if raw is None:
            return None
        found = (raw, self.dataset_json, self._fold_entry())
        if self.config.labeled_as_unlabeled and not collect_unlabeled_cases(*found).files:
            train_keys, _ = self.do_split()
            return labeled_as_unlabeled(raw, self.dataset_json, train_keys)
        return find_unlabeled_cases(*found)

    def _prepare_unlabeled(self) -> None:
        """Preprocess what is missing, on rank 0."""
        folder = unlabeled_folder(self.preprocessed_dataset_folder)
        self.unlabeled_identifiers = self.rank_0_first(
            "preprocessing the unlabelled cases",
            lambda: self._prepared_by_this_rank(folder),
            lambda: self._prepared_by_rank_0(folder),
        )
        self.print_to_log_file(f"{len(self.unlabeled_identifiers)} unlabelled cases from {folder}.")

    @explained_disk_errors()
    def _prepared_by_this_rank(self, folder: str) -> list[str]:
        cases = self._unlabeled_cases()
        if cases is None:
            return self._load_prepared(folder, None)
        return prepare_unlabeled_cases(
            cases,
            self.plans_manager,
            self.configuration_manager,
            self.dataset_json,
            folder,
            num_processes=get_allowed_n_proc_DA(),
            log=self.print_to_log_file,
        )

    def _prepared_by_rank_0(self, folder: str) -> list[str]:
        deadline = monotonic() + SECONDS_UNTIL_FILES_APPEAR
        while True:
            try:
                return self._load_prepared(folder, self._unlabeled_cases())
            except DatasetError as error:
                if monotonic() > deadline:
                    raise DatasetError(
                        f"Rank 0 has prepared the unlabelled cases, but {folder} as {socket.gethostname()} sees it is "
                        f"not complete; nnUNet_preprocessed must be one folder that all machines share."
                    ) from error
            sleep(1.0)

    def _load_prepared(self, folder: str, cases: UnlabeledCases | None) -> list[str]:
        labeled = self.do_split()[0] if cases is None and self.config.labeled_as_unlabeled else ()
        return load_prepared_identifiers(
            folder, cases, self._fold_entry(), self.plans_manager, self.configuration_manager, labeled
        )

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's, in workers that do not outlive a killed training."""
        return EndWithParent(DistributedTrainer.get_training_transforms(*args, **kwargs))

    @staticmethod
    def get_validation_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        """As `get_training_transforms`."""
        return EndWithParent(DistributedTrainer.get_validation_transforms(*args, **kwargs))

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's two loaders, and the unlabelled one as an attribute beside them."""
        loaders = super().get_dataloaders()
        if self.config.use_unlabeled:
            rotation, _, initial_patch_size, mirror_axes = (
                self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            )
            patch_size = self.configuration_manager.patch_size
            workers = get_allowed_n_proc_DA()
            self.dataloader_unlabeled = build_unlabeled_loader(
                unlabeled_folder(self.preprocessed_dataset_folder),
                self.unlabeled_identifiers,
                self.unlabeled_batch_size // self.world_size,
                initial_patch_size,
                patch_size,
                weak_transforms(patch_size, rotation, mirror_axes, self.configuration_manager.use_mask_for_norm),
                num_processes=0 if workers == 0 else max(1, workers // 2),
                pin_memory=self.device.type == "cuda",
            )
            next(self.dataloader_unlabeled)
        return loaders

    def on_train_end(self) -> None:
        """Final checkpoint, then stop the loaders' workers."""
        super().on_train_end()
        self.stop_loaders()

    def stop_loaders(self) -> None:
        """Stop the workers of all three loaders; nnU-Net stops those of its own two, and only where all went well."""
        for loader in (self.dataloader_train, self.dataloader_val, self.dataloader_unlabeled):
            if isinstance(loader, NonDetMultiThreadedAugmenter):
                loader._finish()

    def _to_device(self, value: Any) -> Any:
        if isinstance(value, list):
            return [item.to(self.device, non_blocking=True) for item in value]
        return value.to(self.device, non_blocking=True)

    def _autocast(self) -> Any:
        return autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context()


def require_2d(plans: dict, configuration: str) -> None:
    """Refuse what VQ-Seg does not support, before anything is written.

    Raises:
        NotImplementedError: a configuration whose patch is not 2D, or one of a cascade.
    """
    resolved = PlansManager(plans).get_configuration(configuration)
    if len(resolved.patch_size) != 2:
        raise NotImplementedError(
            f"VQ-Seg trains 2D configurations only, '{configuration}' has a {len(resolved.patch_size)}D patch; use 2d."
        )
    if resolved.previous_stage_name is not None:
        raise NotImplementedError(f"VQ-Seg does not train cascades, '{configuration}' is one; use 2d.")
