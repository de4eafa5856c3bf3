"""Perturbation radius KL(P||Q) of QPM and of dropout (3.2, 3.3, Appendices A and B)."""

from __future__ import annotations

import torch
from torch import Tensor


def qpm_kl(pi: Tensor) -> Tensor:
    """KL(P||Q) of a uniform P over the codes and the codes that QPM leaves, in nats (Eq. 6); a scalar.

    Q(c_j) = sum_i pi(j|i) / K with pi (K, K) from `transition_matrix`. Eq. 5 prints its first term as (1 - epsilon) / K
    times delta_ij, in which i is free; the sum over i, as in Eq. 23, leaves (1 - epsilon) / K for every j.

    Finite for every epsilon in [0, 1] in literal mode (Appendix B). Calibrated rows are zero beyond their nearest
    neighbours: with epsilon = 1 a code that is on nobody's list has Q = 0, and the divergence is infinite.

    Raises:
        ValueError: pi is not square.
    """
    if pi.ndim != 2 or pi.shape[0] != pi.shape[1]:
        raise ValueError(f"pi must be (K, K), got {tuple(pi.shape)}.")
    return -(len(pi) * pi.mean(dim=0)).log().mean()


def dropout_kl(p: float | Tensor) -> Tensor:
    """KL(P||Q) of a Gaussian and the Gaussian with dropout's variance, in nats (Eq. 1, 20).

    (p / (1 - p) + log(1 - p)) / 2 in the shape of the rates p, +inf at p = 1. It is exact for a variance shrunk by
    1 - p, that is for dropout without rescaling what it keeps.

    Raises:
        ValueError: a rate is not in [0, 1].
    """
    rate = torch.as_tensor(p, dtype=None if isinstance(p, Tensor) else torch.float64)
    if not bool(((rate >= 0) & (rate <= 1)).all()):
        raise ValueError("A dropout rate is a probability between 0 and 1.")
    kept = 1 - rate
    return torch.where(rate < 1, (rate / kept + kept.log()) / 2, torch.inf)
