"""Dice and cross entropy inside parts of an image, at every scale of deep supervision (BCP, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import mean_over_processes, sum_over_processes
from nnunetv2_vqseg.modules.targets import at_size

SMOOTH = 1e-5


def scale_weights(scales: int) -> list[float]:
    """nnU-Net's weights of deep supervision, finest first: 1, 1/2, 1/4, ..., the coarsest 0, of sum 1."""
    weights = [0.5**scale for scale in range(max(1, scales - 1))]
    return [weight / sum(weights) for weight in weights] + [0.0] * (scales > 1)


@dataclass(frozen=True)
class RegionLoss:
    """Of each mask the Dice loss plus the mean cross entropy of its pixels alone, in float32.

    Every pixel counts in the masks that hold it and in no other, as background too. (The loss that BCP was published
    with scored the background over the whole image for each mask.) The Dice goes over the mask's pixels in the whole
    batch. At each scale labels and masks are those of the nearest pixel, as nnU-Net's; an empty mask gives 0.

    Args:
        dice: "nnunet": 2 sum py / (sum p + sum y), mean over classes without background, or over all regions;
            "squared": BCP's, 2 sum py / (sum p^2 + sum y^2) with background; None: cross entropy at full resolution.
        regions: logits are independent regions (sigmoid, binary cross entropy, its mean over regions).
        ddp: counts and sums of all processes, so that gradients averaged by DistributedDataParallel are those of one
            process with the whole batch.
        deep: at every scale; false: at full resolution alone.
    """

    dice: Literal["nnunet", "squared"] | None = "nnunet"
    regions: bool = False
    ddp: bool = False
    deep: bool = True

    def __call__(self, outputs: Tensor | Sequence[Tensor], labels: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """One loss a mask, (masks,).

        Args:
            outputs: logits (B, K, ...) of classes or regions, or a list of them, finest first.
            labels: integers (B, 1, ...), or (B, K, ...) of 0 and 1 for regions, at full resolution.
            masks: (B, 1, ...) bool.
        """
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        deep = self.deep and self.dice is not None
        weights = scale_weights(len(outputs)) if deep else [1.0] + [0.0] * (len(outputs) - 1)
        with torch.autocast(outputs[0].device.type, enabled=False):
            parts = [self._sums(logits.float(), labels, masks) for logits in outputs]
            sums, entropy, counts = (torch.stack(values) for values in zip(*parts, strict=True))
            counts = mean_over_processes(counts) if self.ddp else counts
            losses = entropy / counts.clamp(min=1e-6)  # (scales, masks)
            if self.dice:
                # (scales, masks, 3, classes): intersection, prediction, reference
                intersection, predicted, reference = (sum_over_processes(sums) if self.ddp else sums).unbind(2)
                dice = (2.0 * intersection + SMOOTH) / (predicted + reference + SMOOTH)
                losses = losses + 1.0 - dice.mean(-1)
            return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum(0)

    def _sums(self, logits: Tensor, labels: Tensor, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each mask the Dice's sums (masks, 3, classes), the entropies' (masks,) and the number of pixels."""
        size = logits.shape[2:]
        labels = at_size(labels, size).long()
        if self.regions:
            p, y = logits.sigmoid(), labels.float()
            entropy = F.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(1, keepdim=True)
        else:
            p, y = logits.softmax(1), torch.zeros_like(logits).scatter_(1, labels, 1.0)
            entropy = F.cross_entropy(logits, labels[:, 0], reduction="none")[:, None]
            if self.dice == "nnunet":
                p, y = p[:, 1:], y[:, 1:]
        values = torch.stack((p * y, p * p if self.dice == "squared" else p, y), 1)  # y is its own square
        inside = [at_size(mask, size).float() for mask in masks]
        axes = (0, *range(3, values.ndim))
        sums = torch.stack([(values * mask[:, None]).sum(axes) for mask in inside])
        entropies = torch.stack([(entropy * mask).sum() for mask in inside])
        return sums, entropies, torch.stack([mask.sum() for mask in inside])
