"""Pseudo-labels with a confidence threshold (Eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import sum_over_processes
from nnunetv2_vqseg.modules.losses.region import scale_weights
from nnunetv2_vqseg.modules.nd import spatial_axes
from nnunetv2_vqseg.modules.targets import at_size

SMOOTH = 1e-5


@torch.no_grad()
def pseudo_labels(logits: Tensor, regions: bool = False) -> tuple[Tensor, Tensor]:
    """The teacher's hard labels and how sure it is of them (3.4).

    Args:
        logits: (B, K, ...) class logits, or (B, R, ...) region logits if `regions`.

    Returns:
        labels int64 and confidence float32: (B, ...) argmax and largest softmax; for regions (B, R, ...), 0 or 1 and
        max(p, 1 - p).
    """
    if regions:
        probability = logits.float().sigmoid()
        return (probability > 0.5).long(), torch.maximum(probability, 1.0 - probability)
    confidence, labels = logits.float().softmax(dim=1).max(dim=1)
    return labels, confidence


def kept_share(confidence: Tensor, threshold: float) -> Tensor:
    """Share of pixels in [0, 1] whose confidence reaches the threshold, a scalar."""
    return (confidence >= threshold).float().mean()


@dataclass(frozen=True)
class PseudoLabelLoss:
    """L_seg of Eq. 9 on the pixels the teacher is sure of, in float32.

    Cross entropy of the pixels with confidence >= threshold, divided by the number of *all* pixels (as FixMatch and
    UniMatch), so that its weight grows with the kept share. Optionally plus the mean over foreground classes of
    s_c (1 - soft Dice), both over the kept pixels of the whole batch, with s_c the kept share of the pixels that the
    teacher calls c, 0 where it calls none so: Dice divides by what is kept, and alone would pull the harder the less
    that is. Without a kept pixel both are 0, with a gradient path.

    Args:
        use_dice: add the Dice term.
        threshold: smallest confidence that counts, in [0, 1]; 0 keeps every pixel (the paper).
        regions: logits are independent regions (sigmoid) instead of classes (softmax).
        ddp: sum the Dice's numerators and denominators over all processes, so that gradients averaged by
            DistributedDataParallel are those of one process with the whole batch.
        absent: a class that the teacher calls nowhere has a Dice, too, with the kept share of all pixels for s_c, as
            nnU-Net's batch Dice has: without a threshold the gradient is that of nnU-Net's Dice and cross entropy.
    """

    use_dice: bool
    threshold: float = 0.95
    regions: bool = False
    ddp: bool = False
    absent: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold must be in [0, 1], got {self.threshold}")

    def __call__(self, logits: Tensor, labels: Tensor, confidence: Tensor) -> Tensor:
        """A scalar.

        Args:
            logits: student, (B, K, ...) classes with background first, or (B, R, ...) regions, in 2D or 3D.
            labels, confidence: from `pseudo_labels`: (B, ...), or (B, R, ...) for regions.

        Raises:
            ValueError: shapes do not match.
        """
        expected = logits.shape if self.regions else (logits.shape[0], *logits.shape[2:])
        if labels.shape != expected or confidence.shape != expected:
            raise ValueError(
                f"logits {tuple(logits.shape)} need labels and confidence {tuple(expected)}, "
                f"got {tuple(labels.shape)} and {tuple(confidence.shape)}"
            )
        logits = logits.float()
        kept = confidence >= self.threshold
        if self.regions:
            entropy = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        else:
            entropy = F.cross_entropy(logits, labels.long(), reduction="none")
        loss = torch.where(kept, entropy, 0.0).mean()
        return loss + self._dice_loss(logits, labels, kept) if self.use_dice else loss

    def _dice_loss(self, logits: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
        if self.regions:
            probability = logits.sigmoid()
            reference = labels.bool()
        else:
            probability = logits.softmax(dim=1)[:, 1:]
            classes = torch.arange(1, logits.shape[1], device=logits.device).view(-1, *[1] * (logits.ndim - 2))
            reference = labels[:, None] == classes
            kept = kept[:, None]
        axes = (0, *spatial_axes(logits))
        values = [
            torch.where(kept & reference, probability, 0.0).sum(axes),
            torch.where(kept, probability, 0.0).sum(axes),
            (kept & reference).sum(axes).float(),
            reference.sum(axes).float(),
        ]
        if self.absent:
            values += [of.expand_as(reference).sum(axes).float() for of in (kept, torch.ones_like(kept))]
        sums = torch.stack(values)  # (4 or 6, foreground classes)
        sums = sum_over_processes(sums) if self.ddp else sums
        intersection, predicted, referenced, labeled = sums[:4]
        dice = (2.0 * intersection + SMOOTH) / (predicted + referenced + SMOOTH)
        share = referenced / labeled.clamp(min=1.0)
        if self.absent:
            share = torch.where(labeled > 0, share, sums[4] / sums[5])
        return (share * (1.0 - dice)).mean()


@dataclass(frozen=True)
class EveryScale:
    """A loss of pseudo-labels at every scale of deep supervision, with nnU-Net's weights.

    Labels and confidence at each scale are those of the nearest pixel, as nnU-Net downsamples its targets.
    """

    loss: PseudoLabelLoss

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor, confidence: Tensor) -> Tensor:
        """A scalar.

        Args:
            outputs: logits (B, K, ...), finest first.
            labels, confidence: at full resolution, as for `PseudoLabelLoss`.
        """

        def there(values: Tensor, size: Sequence[int]) -> Tensor:
            return at_size(values, size) if self.loss.regions else at_size(values[:, None], size)[:, 0]

        values = [
            weight * self.loss(logits, there(labels, logits.shape[2:]), there(confidence, logits.shape[2:]))
            for weight, logits in zip(scale_weights(len(outputs)), outputs, strict=True)
            if weight
        ]
        return torch.stack(values).sum()
