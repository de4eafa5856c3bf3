"""Self-training on nnU-Net, as the winner of FLARE 2022 did it (https://github.com/Ziyan-Huang/FLARE22).

Rounds: nnU-Net on the labelled images; its labels of all unlabelled cases, predicted with a sliding window and
mirroring; a new nnU-Net on both; and so on. Cases whose labels change most from round to round are left out:
differing voxels over foreground voxels of the later labels, averaged over the rounds so far; FLARE's 1924 of 2000 stay.

What differs: 2D plans of nnU-Net v2 instead of 3D ones of v1; all rounds share one budget in equal parts; the first is
one network instead of five folds' ensemble; half of a batch is labelled; the filter acts as soon as there are two
rounds of labels; the last network is as the others.

Each round has fresh weights (those of -pretrained_weights where there are any), an optimiser without memory and
nnU-Net's whole rate schedule. Scaler, curves and nnU-Net's moving average for checkpoint_best.pth go on: that file may
be an earlier round's. Rank 0 predicts and writes the labels, all ranks begin a round with its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import (
    Batch,
    CommonConfig,
    Context,
    Loss,
    Method,
    Metrics,
    Terms,
    UnlabeledImagesConfig,
)
from nnunetv2_vqseg.methods.case_filter import most_stable
from nnunetv2_vqseg.modules.collectives import copy_from_process_0
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.modules.targets import together


@dataclass(frozen=True)
class SelfTrainingConfig(UnlabeledImagesConfig):
    """Hyper-parameters of self-training."""

    rounds: Annotated[int, Range(1, 1000), "networks one after the other, the first on labelled images alone"] = 3
    unstable_share: Annotated[
        float, Range(0, 0.99), "share of the cases that is left out: whose labels changed most; 0: none"
    ] = 0.038

    same_to_continue: ClassVar[frozenset[str]] = CommonConfig.same_to_continue | {"rounds", "num_epochs"}


class SelfTraining(Method[SelfTrainingConfig]):
    """Each round's network learns the labels of the one before."""

    Config = SelfTrainingConfig
    is_static = True
    panels: ClassVar = {"self-training": ("round",), "unlabelled cases": ("unlabeled_cases",)}

    def __init__(self, config: SelfTrainingConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.rounds > config.num_epochs:
            raise ConfigError(
                f"vqseg.rounds = {config.rounds} needs as many epochs, this training has {config.num_epochs}; set "
                f"vqseg.rounds in the plan to {config.num_epochs} or less, or train for longer."
            )
        self.round = 0
        self.changes: dict[str, float] = {}
        """Of each case, how much its labels changed, summed over the rounds."""
        self.pretrained_weights: dict[str, Tensor] | None = None

    def begin(self, student: nn.Module, supervised: Loss) -> None:
        """Remember what fresh weights look like."""
        super().begin(student, supervised)
        self._fresh = checksum(student)

    def start(self, batches: Iterator[Batch]) -> None:
        """Where the weights are no longer the fresh ones, they were pretrained."""
        if checksum(self.student) != self._fresh:
            self.pretrained_weights = {key: value.clone() for key, value in unwrap(self.student).state_dict().items()}

    def first_epoch(self, number: int) -> int:
        """Of a round, counted from 0."""
        return number * self.config.num_epochs // self.config.rounds

    def round_of(self, epoch: int) -> int:
        """The round that an epoch belongs to."""
        return next(number for number in reversed(range(self.config.rounds)) if epoch >= self.first_epoch(number))

    def rate_epoch(self, epoch: int) -> float:
        """Every round goes through the whole schedule."""
        number = self.round_of(epoch)
        first, end = self.first_epoch(number), self.first_epoch(number + 1)
        return (epoch - first) / (end - first) * self.config.num_epochs

    def reads_unlabeled(self, progress: float) -> bool:
        """From the second round on."""
        return self.round > 0

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """nnU-Net's loss of one batch, labelled and pseudo-labelled images alike."""
        images, target = batch.labeled, batch.target
        if batch.unlabeled is not None and batch.unlabeled_target is not None:
            images = torch.cat((images, batch.unlabeled))
            target = together(target, batch.unlabeled_target)
        return {"supervised": (1.0, self.supervised(self.student(images), target))}, {}

    def before_epoch(self, epoch: int) -> None:
        """At the end of a round: label all cases, leave some out, begin anew."""
        due = self.round_of(epoch)
        if due <= self.round:
            return
        cases = self.context.cases
        assert cases is not None
        changes = cases.label()
        self.changes = {case: self.changes.get(case, 0.0) + change for case, change in changes.items()}
        if changes:
            cases.keep(most_stable(self.changes, self.config.unstable_share))
        self.begin_anew()
        self.round = due
        self.context.log(f"Round {due + 1} of {self.config.rounds} begins with fresh weights.")

    def begin_anew(self) -> None:
        """Fresh or pretrained weights, the same on all processes, and an optimiser without memory."""
        student = unwrap(self.student)
        student.load_state_dict(self.pretrained_weights or self.training_network().state_dict())
        copy_from_process_0(list(student.state_dict().values()))
        self.context.reset_optimizer()

    def on_epoch_done(self) -> dict[str, float]:
        """The round, counted from 1, and how many cases are in use."""
        cases = {} if self.context.cases is None else {"unlabeled_cases": float(len(self.context.cases.names))}
        return {"round": self.round + 1.0, **(cases if self.round else {})}

    def state(self) -> dict[str, Any]:
        """The round, what is known of the cases, and pretrained weights for the rounds to come."""
        return {"round": self.round, "changes": self.changes, "pretrained_weights": self.pretrained_weights}

    def load_state(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore them."""
        self.round = state.get("round", 0)
        self.changes = dict(state.get("changes", {}))
        self.pretrained_weights = state.get("pretrained_weights")


def checksum(network: nn.Module) -> float:
    """The sum of all weights."""
    return sum(float(values.detach().double().sum()) for values in unwrap(network).parameters())
