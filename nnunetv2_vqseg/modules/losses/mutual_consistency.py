"""Sharpened mutual consistency of several predictions (MC-Net, MICCAI 2021; MC-Net+, MedIA 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor


def sharpen(p: Tensor, temperature: float = 0.1) -> Tensor:
    """p^(1/T) / (p^(1/T) + (1 - p)^(1/T)) of each probability on its own, in float32.

    Classes are not normalised against each other: their sum is 1 for two classes alone.

    Args:
        p: probabilities of any shape.
        temperature: T in (0, 1]; 1 changes nothing.
    """
    with torch.autocast(p.device.type, enabled=False):
        p = p.float()
        inside, outside = p.pow(1.0 / temperature), (1.0 - p).pow(1.0 / temperature)
        return inside / (inside + outside)


def mutual_consistency(probabilities: Sequence[Tensor], temperature: float = 0.1, detach: bool = False) -> Tensor:
    """Sum over ordered pairs i != j of the mean squared difference of p_i and the sharpened p_j, in float32.

    Args:
        probabilities: one (B, K, ...) a decoder, of classes or of independent regions.
        temperature: as for `sharpen`.
        detach: the sharpened side gets no gradient; the original's does.
    """
    with torch.autocast(probabilities[0].device.type, enabled=False):
        plain = [p.float() for p in probabilities]
        sharp = [sharpen(p, temperature) for p in plain]
        sharp = [q.detach() for q in sharp] if detach else sharp
        pairs = permutations(range(len(plain)), 2)
        return torch.stack([(plain[i] - sharp[j]).square().mean() for i, j in pairs]).sum()
