"""Stock nnU-Net with the plan's budget, for comparisons at the same number of steps."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nnunetv2_vqseg.config import VQSegConfig
from nnunetv2_vqseg.core.json import write_json
from nnunetv2_vqseg.data.splits_file import load_fold_entry
from nnunetv2_vqseg.planning.plans import resolve_vqseg_block
from nnunetv2_vqseg.report.models import RUNTIME_FILE
from nnunetv2_vqseg.training.checkpoint import seed_everything, to_continue_from
from nnunetv2_vqseg.training.distributed import DistributedTrainer

WITHOUT: dict[str, Any] = {
    "use_unlabeled": False,
    "quantize": False,
    "perturbation": "none",
    "reconstruct": False,
    "foundation_policy": "off",
}
"""What other trainers make of the same plan and this one does not, so that its keys need not fit together here."""


class nnUNetTrainerSupervised(DistributedTrainer):
    """nnU-Net as it is, but for the number of steps and the seed, which it takes from the plan's `vqseg` block."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 nnU-Net reads this signature
    ) -> None:
        block = resolve_vqseg_block(plans, configuration)
        kept = {key: value for key, value in block.items() if key not in WITHOUT}
        config = replace(VQSegConfig.default(), **WITHOUT).override(kept)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = config.num_epochs
        self.num_iterations_per_epoch = config.iterations_per_epoch
        self.num_val_iterations_per_epoch = config.val_iterations_per_epoch
        self.save_every = config.save_every
        self._seed = config.seed
        if self.is_ddp:
            configuration_now = self.configuration_manager.configuration
            configuration_now["batch_size"] = self.even_batch(
                configuration_now["batch_size"], True, "labelled", "labeled_batch_size"
            )

    def initialize(self) -> None:
        """nnU-Net's, after seeding."""
        if self._seed is not None:
            seed_everything(self._seed + self.local_rank)
        super().initialize()

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's, unless it would train on the labels of cases that a fold lists as unlabelled.

        Raises:
            DatasetError: fold `all`, or one that `splits_final.json` does not have.
        """
        load_fold_entry(self.preprocessed_dataset_folder_base, self.fold)
        train, val = super().do_split()
        return train, val

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """nnU-Net's, from the furthest checkpoint of the newest training where `--c` finds several."""
        source = filename_or_checkpoint
        if isinstance(source, (str, os.PathLike)) and self.logger.resume:
            source = to_continue_from(source, self.print_to_log_file)
        super().load_checkpoint(source)

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's, and beside it `runtime.json`, for reports: nnU-Net's checkpoint has no room for it."""
        super().save_checkpoint(filename)
        if self.local_rank == 0 and not self.disable_checkpointing:
            about = {
                "seed": self._seed,
                "batch_size": self.configuration_manager.batch_size,
                "processes": self.world_size,
            }
            write_json(self.runtime() | about, Path(filename).with_name(RUNTIME_FILE))
