"""The Dice loss of the semi-supervised literature (V-Net, 3DV 2016): squares below, background included."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.losses.soft_dice import soft_dice_loss

SMOOTH = 1e-5


def squared_dice_loss(
    logits: Tensor, labels: Tensor, kept: Tensor | None = None, regions: bool = False, ddp: bool = False
) -> Tensor:
    """1 - mean over classes of (2 sum p y + e) / (sum p^2 + sum y^2 + e), in float32; 0 where no pixel is kept.

    Sums go over the kept pixels of the whole batch, e is 1e-5.

    Args:
        logits: (B, K, ...) classes, background first, or (B, R, ...) regions.
        labels: (B, ...) in 0 ... K - 1 where kept, or (B, R, ...) of 0 and 1 for regions.
        kept: pixels that count, as labels; None: all.
        regions: logits are independent regions (sigmoid) instead of classes (softmax).
        ddp: sums over all processes, so that gradients averaged by DistributedDataParallel are those of one process
            with the whole batch.

    Raises:
        ValueError: shapes do not match.
    """
    expected = logits.shape if regions else (logits.shape[0], *logits.shape[2:])
    if labels.shape != expected or (kept is not None and kept.shape != expected):
        raise ValueError(
            f"logits {tuple(logits.shape)} need labels and kept pixels {tuple(expected)}, got {tuple(labels.shape)}"
            + ("" if kept is None else f" and {tuple(kept.shape)}")
        )
    labels = labels if kept is None else torch.where(kept, labels, 0)
    with torch.autocast(logits.device.type, enabled=False):
        if regions:
            p, y = logits.float().sigmoid(), labels.float()
        else:
            p = logits.float().softmax(dim=1)
            y = torch.zeros_like(p).scatter_(1, labels.long()[:, None], 1.0)
        if kept is not None:
            weight = (kept if regions else kept[:, None]).float()
            p, y = p * weight, y * weight
        return soft_dice_loss(p, y, SMOOTH, ddp)
