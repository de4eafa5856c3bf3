"""Supervised losses of the semi-supervised literature: cross entropy and Dice with squares and background."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import mean_over_processes
from nnunetv2_vqseg.modules.losses.squared_dice import squared_dice_loss
from nnunetv2_vqseg.modules.targets import split_ignored


@dataclass(frozen=True)
class CrossEntropyAndDice:
    """Cross entropy and Dice at full resolution over the pixels that have a label, in float32; 0 where none has.

    Coarser outputs stay in the graph with weight zero (DDP).

    Args:
        regions: logits are independent regions (sigmoid, binary cross entropy, its mean over regions).
        ignore_label: value of pixels without a label; None where all have one.
        ddp: counts and sums of all processes, so that gradients averaged by DistributedDataParallel are those of one
            process with the whole batch.
        cross_entropy, dice: weights of both.
    """

    regions: bool = False
    ignore_label: int | None = None
    ddp: bool = False
    cross_entropy: float = 0.5
    dice: float = 0.5

    def __call__(self, outputs: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> Tensor:
        """A scalar.

        Args:
            outputs: logits (B, K, ...), or a list of them, finest first.
            target: as nnU-Net's loader gives it, (B, 1, ...) labels or (B, R, ...) regions, or a list, finest first.
        """
        logits, *coarser = outputs if isinstance(outputs, list) else [outputs]
        target = target[0] if isinstance(target, list) else target
        labels, known = split_ignored(target, self.regions, self.ignore_label)
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            if self.regions:
                entropy = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1)
                dice = squared_dice_loss(logits, labels, known.expand_as(labels), regions=True, ddp=self.ddp)
            else:
                entropy = F.cross_entropy(logits, labels[:, 0], reduction="none")
                dice = squared_dice_loss(logits, labels[:, 0], known[:, 0], ddp=self.ddp)
            count = known.sum().float()
            count = mean_over_processes(count) if self.ddp else count
            mean = (entropy * known[:, 0]).sum() / count.clamp(min=1e-6)
            return self.cross_entropy * mean + self.dice * dice + 0 * sum(output.float().sum() for output in coarser)
