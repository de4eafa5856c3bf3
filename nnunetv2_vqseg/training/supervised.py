"""Stock nnU-Net with the plan's budget, for comparisons at the same number of steps."""

from __future__ import annotations

import torch

from nnunetv2_vqseg.config import VQSegConfig
from nnunetv2_vqseg.data.splits_file import load_fold_entry
from nnunetv2_vqseg.planning.plans import resolve_vqseg_block
from nnunetv2_vqseg.training.checkpoint import seed_everything
from nnunetv2_vqseg.training.log import LoggingTrainer


class nnUNetTrainerSupervised(LoggingTrainer):
    """nnU-Net as it is, but for the number of steps and the seed, which it takes from the plan's `vqseg` block."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 nnU-Net reads this signature
    ) -> None:
        config = VQSegConfig.default().override(resolve_vqseg_block(plans, configuration))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = config.num_epochs
        self.num_iterations_per_epoch = config.iterations_per_epoch
        self.num_val_iterations_per_epoch = config.val_iterations_per_epoch
        self.save_every = config.save_every
        self._seed = config.seed

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
