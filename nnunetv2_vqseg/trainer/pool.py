"""The unlabelled cases that a training draws from, where its method may leave some out or label them."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor

from nnunetv2_vqseg.core.errors import CheckpointError, DatasetError, explained_disk_errors
from nnunetv2_vqseg.core.memory import usable_memory
from nnunetv2_vqseg.data.label_store import LabelStore, instability
from nnunetv2_vqseg.data.loader import build_unlabeled_loader, weak_transforms
from nnunetv2_vqseg.data.unlabeled_dataset import UnlabeledDataset
from nnunetv2_vqseg.trainer.cases import SECONDS_UNTIL_FILES_APPEAR
from nnunetv2_vqseg.trainer.prediction import predict_cases

if TYPE_CHECKING:
    from nnunetv2_vqseg.trainer.trainer import MethodTrainer

T = TypeVar("T")


class CasePool:
    """`methods.base.Cases` of a trainer; what was left out and which labels were written is in the checkpoint.

    Attributes:
        found: all prepared cases.
        dropped: those that are left out.
        labels: the training's own labels of them; None before it has any.
        has_changed: the loader draws from other cases or labels than it should.
    """

    def __init__(self, trainer: MethodTrainer) -> None:
        self.trainer = trainer
        self.found: list[str] = []
        self.dropped: set[str] = set()
        self.labels: LabelStore | None = None
        self.has_changed = False
        self._times_labeled = 0

    def fill(self, found: Sequence[str]) -> None:
        """These are the prepared cases; those that were left out before the training was stopped stay out.

        Raises:
            CheckpointError: the labels of a training that is continued were changed.
            DatasetError: nothing is left.
        """
        self.found = list(found)
        if not self.names:
            raise DatasetError(
                f"The method has left out all of the {len(found)} unlabelled cases that are there now; put back those "
                f"that the training was started with, or start anew without --c."
            )
        self.trainer.ranks.rank_0_first("checking the pseudo-labels", self._check_labels, lambda: None)

    def _check_labels(self) -> None:
        changed = self.labels.changed() if self.labels is not None else []
        if self.labels is not None and changed:
            raise CheckpointError(
                f"The pseudo-labels of {len(changed)} cases in {self.labels.folder} are not those that this training "
                f"wrote ({changed[0]}); put them back, or start anew without --c."
            )

    @property
    def names(self) -> list[str]:
        """The cases that batches are drawn from."""
        return [
            case
            for case in self.found
            if case not in self.dropped and (self.labels is None or case in self.labels.files)
        ]

    def keep(self, names: Sequence[str]) -> None:
        """Draw from these alone from the next epoch on."""
        self.dropped = set(self.found) - set(names)
        self.has_changed = True
        self.trainer.print_to_log_file(f"{len(self.names)} of {len(self.found)} unlabelled cases are in use.")

    def predict(self, look: Callable[[str, Tensor], float]) -> dict[str, float]:
        """`look(name, logits)` of each case in use; on rank 0, and the same answers on all.

        Raises:
            SystemExit: the training was asked to stop; it is saved, and predicts them all when it is continued.
        """
        return self._on_rank_0(look, self.names)

    def label(self) -> dict[str, float]:
        """Write labels of all cases; how much those of each case have changed, nothing the first time.

        Labels of the round before stay, so that a training can be continued from before this.

        Raises:
            SystemExit: as `predict`.
            DatasetError: a file cannot be written, or another machine does not see it.
        """
        number, before = self._times_labeled + 1, self.labels
        store = LabelStore(self._own_folder() / f"round_{number}")

        def write(case: str, logits: Tensor) -> tuple[str, float]:
            labels = self._segmentation(case, logits)
            manager = self.trainer.label_manager
            classes = manager.foreground_regions if manager.has_regions else manager.foreground_labels
            written = store.write(case, labels, classes, self.trainer.configuration_manager.patch_size)
            known = before is not None and case in before.files
            return written, instability(before.read(case), labels) if before is not None and known else 0.0

        if self.trainer.ranks.rank == 0:
            for old in (store.folder, store.folder.with_name(f"round_{number - 2}")):
                shutil.rmtree(old, ignore_errors=True)
        answers = self._on_rank_0(write, self.found)
        store.files = {case: written for case, (written, _) in answers.items()}
        self._wait_for(store)
        self.labels, self._times_labeled, self.has_changed = store, number, True
        self.trainer.print_to_log_file(f"Labels of {len(answers)} unlabelled cases are in {store.folder}.")
        return {} if before is None else {case: change for case, (_, change) in answers.items()}

    def _segmentation(self, case: str, logits: Tensor) -> np.ndarray:
        """Labels as nnU-Net preprocesses them: -1 outside the image."""
        labels = np.asarray(self.trainer.label_manager.convert_logits_to_segmentation(logits.cpu()), dtype=np.int16)
        seg = nnUNetDatasetBlosc2(self.trainer.cases.unlabeled_folder, [case]).load_case(case)[1][:]
        return np.where((seg[:1] < 0) & (labels[None] == 0), np.int16(-1), labels[None])

    def _own_folder(self) -> Path:
        """Beside the unlabelled cases, of this training alone."""
        trainer = self.trainer
        own = Path(trainer.output_folder).resolve()
        place = hashlib.blake2b(str(own).encode(), digest_size=4).hexdigest()
        return Path(f"{trainer.cases.unlabeled_folder}_labels") / f"{own.parent.name}__{own.name}__{place}"

    def _wait_for(self, store: LabelStore) -> None:
        deadline = time.monotonic() + SECONDS_UNTIL_FILES_APPEAR
        while not store.is_there():
            if time.monotonic() > deadline:
                raise DatasetError(
                    f"Rank 0 has written pseudo-labels into {store.folder}, but this machine does not see them; "
                    f"nnUNet_preprocessed must be one folder that all machines share."
                )
            time.sleep(1.0)

    @explained_disk_errors()
    def _on_rank_0(self, look: Callable[[str, Tensor], T], cases: list[str]) -> dict[str, T]:
        ranks = self.trainer.ranks
        task = "predicting the unlabelled cases"
        answers = ranks.rank_0_first(task, lambda: predict_cases(self.trainer, cases, look), lambda: {})
        self.trainer.stop_if_asked()
        return ranks.from_rank_0(answers)

    def loader(self) -> Any:
        """An endless iterator of unlabelled batches; with labels they are drawn and augmented as labelled ones."""
        trainer = self.trainer
        plan = trainer.configuration_manager
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self.labels is None:
            transforms = weak_transforms(plan.patch_size, rotation, mirror_axes, plan.use_mask_for_norm)
        else:
            transforms = self._training_transforms(rotation, dummy_2d, mirror_axes)
        workers = get_allowed_n_proc_DA()
        workers = 0 if workers == 0 else max(1, workers // 2)
        return build_unlabeled_loader(
            self._dataset(max(1, workers)),
            trainer.unlabeled_batch_size // trainer.ranks.world_size,
            initial_patch_size,
            plan.patch_size,
            transforms,
            num_processes=workers,
            pin_memory=trainer.device.type == "cuda",
            masks=any(plan.use_mask_for_norm),
            oversample_foreground=0.0 if self.labels is None else trainer.oversample_foreground_percent,
        )

    def _dataset(self, readers: int) -> UnlabeledDataset:
        """The cases as each of so many processes of this rank reads them, and keeps what its part of memory holds."""
        trainer = self.trainer
        readers *= trainer.ranks.on_this_machine
        labels = None if self.labels is None else self.labels.folder
        room = int(trainer.config.unlabeled_memory_share * usable_memory() / readers)
        dataset = UnlabeledDataset(trainer.cases.unlabeled_folder, self.names, labels, room)
        trainer.print_to_log_file(
            f"{len(dataset.kept)} of {len(dataset.identifiers)} unlabelled cases stay decompressed in memory once they "
            f"are read, {dataset.kept_bytes / 2**20:.1f} MiB in each of {readers} process(es) that load them."
        )
        return dataset

    def _training_transforms(self, rotation: Any, dummy_2d: bool, mirror_axes: Any) -> BasicTransform:
        trainer = self.trainer
        plan, labels = trainer.configuration_manager, trainer.label_manager
        return trainer.get_training_transforms(
            plan.patch_size,
            rotation,
            trainer._get_deep_supervision_scales(),
            mirror_axes,
            dummy_2d,
            use_mask_for_norm=plan.use_mask_for_norm,
            is_cascaded=trainer.is_cascaded,
            foreground_labels=labels.foreground_labels,
            regions=labels.foreground_regions if labels.has_regions else None,
            ignore_label=labels.ignore_label,
        )

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        labels = None
        if self.labels is not None:
            place = self.labels.folder.relative_to(self.labels.folder.parents[1]).as_posix()
            labels = {"place": place, "number": self._times_labeled, "files": self.labels.files}
        return {"dropped": sorted(self.dropped), "labels": labels}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """As `state` gave it; without cases where an earlier version wrote the checkpoint."""
        self.dropped = set(state.get("dropped", ()))
        labels = state.get("labels")
        if labels is not None:
            folder = Path(f"{self.trainer.cases.unlabeled_folder}_labels") / labels["place"]
            self.labels, self._times_labeled = LabelStore(folder, labels["files"]), labels["number"]
