"""Dice between two maps of probabilities, which is 0 where they are equal."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import sum_over_processes
from nnunetv2_vqseg.modules.nd import spatial_axes


def soft_dice_loss(p: Tensor, q: Tensor, smooth: float = 1e-10, ddp: bool = False) -> Tensor:
    """1 - mean over channels of (2 sum p q + e) / (sum p^2 + sum q^2 + e), sums over the whole batch, in float32.

    Args:
        p, q: probabilities (B, K, ...), background included; both receive gradients.
        smooth: e.
        ddp: sums over all processes, so that gradients averaged by DistributedDataParallel are those of one process
            with the whole batch.

    Raises:
        ValueError: shapes differ.
    """
    if p.shape != q.shape:
        raise ValueError(f"probabilities {tuple(p.shape)} and {tuple(q.shape)} differ in shape")
    with torch.autocast(p.device.type, enabled=False):
        p, q = p.float(), q.float()
        axes = (0, *spatial_axes(p))
        sums = torch.stack(((p * q).sum(axes), (p.square() + q.square()).sum(axes)))
        both, either = sum_over_processes(sums) if ddp else sums
        return 1.0 - ((2.0 * both + smooth) / (either + smooth)).mean()
