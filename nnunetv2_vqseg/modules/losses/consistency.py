"""Consistency of probabilities where the teacher is certain (UA-MT, MICCAI 2019, Eq. 2 to 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import mean_over_processes


def predictive_entropy(p: Tensor, regions: bool = False) -> Tensor:
    """-sum_c p log(p + 1e-6) in nats and float32.

    Args:
        p: probabilities, (B, K, ...) over classes, or (B, R, ...) of independent `regions`.

    Returns:
        (B, ...); for regions the entropy of each between inside and outside, (B, R, ...).
    """
    p = p.float()
    with torch.autocast(p.device.type, enabled=False):
        if regions:
            return _surprise(p) + _surprise(1.0 - p)
        return _surprise(p).sum(dim=1)


def masked_mse(p: Tensor, q: Tensor, mask: Tensor, ddp: bool = False) -> Tensor:
    """sum over pixels of mask * sum_c (p - q)^2 / (2 * sum of mask + 1e-16), in float32.

    Args:
        p, q: probabilities (B, C, ...); both receive gradients.
        mask: (B, ...), bool or weights; or (B, R, ...) for regions, each a problem of two classes, inside and outside.
        ddp: divide by the mean of the masks' sums over all processes, so that gradients averaged by
            DistributedDataParallel are those of one process with the whole batch.

    Returns:
        A scalar, 0 with a gradient path where the mask is empty.

    Raises:
        ValueError: shapes do not match.
    """
    if p.shape != q.shape or mask.shape not in (p.shape, (p.shape[0], *p.shape[2:])):
        raise ValueError(
            f"p and q must be (B, C, ...) and the mask (B, ...) or (B, C, ...), got {tuple(p.shape)}, "
            f"{tuple(q.shape)} and {tuple(mask.shape)}"
        )
    with torch.autocast(p.device.type, enabled=False):
        squared = (p.float() - q.float()).square()
        squared = 2.0 * squared if mask.shape == p.shape else squared.sum(dim=1)
        mask = mask.float()
        count = mean_over_processes(mask.sum()) if ddp else mask.sum()
        return (mask * squared).sum() / (2.0 * count + 1e-16)


def _surprise(p: Tensor) -> Tensor:
    return -p * (p + 1e-6).log()
