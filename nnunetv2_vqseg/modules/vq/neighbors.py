"""Each code's nearest neighbours and how often QPM moves to them, without a (K, K) matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.vq.lookup import score_factors

# Scores of one chunk of rows, for a CPU core's cache and to fill a GPU.
_CPU_ELEMENTS = 2**20
_GPU_ELEMENTS = 2**24
# Rows of squared distances (rows, k) are calibrated in chunks of this many elements.
_CALIBRATION_ELEMENTS = 2**18
# The largest m of a row lie in the m strided groups with the largest maxima; finding those first halves the time.
_GROUPS = 8
_BISECTION_STEPS = 24


@torch.no_grad()
def nearest_neighbors(codes: Tensor, rows: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """The nearest other codes of some codes, in Euclidean distance.

    Args:
        codes: (K, d).
        rows: (R,) int64, the codes to look from.
        num_neighbors: k, at most K - 1.

    Returns:
        Squared distances (R, k) float32 and codes (R, k) int32, nearest first.
    """
    left, right = score_factors(codes, codes, _GROUPS)
    norms = -right[-1]
    elements = _CPU_ELEMENTS if codes.device.type == "cpu" else _GPU_ELEMENTS
    distances, neighbors = [], []
    for some in rows.split(max(1, elements // right.shape[1])):
        scores = torch.mm(left[some], right)
        scores[torch.arange(len(some), device=some.device), some] = -torch.inf
        value, index = _largest(scores, num_neighbors)
        distances.append((norms[some, None] - value).clamp_min_(0.0).float())
        neighbors.append(index.int())
    return torch.cat(distances), torch.cat(neighbors)


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`scores.topk(count)` of rows (R, M), M a multiple of the number of groups."""
    stride = scores.shape[1] // _GROUPS
    if stride <= count:
        return scores.topk(count, dim=1)
    groups = scores.view(len(scores), _GROUPS, stride).amax(dim=1).topk(count, dim=1, sorted=False).indices
    members = torch.arange(0, scores.shape[1], stride, device=scores.device)
    candidates = (groups[:, None, :] + members[:, None]).flatten(1)
    value, position = scores.gather(1, candidates).topk(count, dim=1)
    return value, candidates.gather(1, position)


@torch.no_grad()
def calibrated_probabilities(squared_distances: Tensor, perplexity: float) -> Tensor:
    """Neighbour distributions softmax(-d^2 / tau_i) whose perplexity exp(H) is the same in every row, as in t-SNE.

    1 / tau_i is found by bisection on its logarithm, with a Newton step wherever that stays inside the bracket.

    Args:
        squared_distances: (R, k).
        perplexity: target, in [1, k).

    Returns:
        (R, k). A row with more equally near neighbours than `perplexity` stays uniform over those.
    """
    chunks = squared_distances.split(max(1, _CALIBRATION_ELEMENTS // squared_distances.shape[1]))
    return torch.cat([_calibrate(chunk, math.log(perplexity)) for chunk in chunks])


def _calibrate(squared_distances: Tensor, target: float) -> Tensor:
    excess = squared_distances - squared_distances.amin(dim=1, keepdim=True)
    # In units of the row's own mean the answer lies within a few powers of e of 1.
    excess = excess / excess.mean(dim=1, keepdim=True).clamp_min(torch.finfo(excess.dtype).tiny)
    low = torch.full_like(excess[:, :1], -12.0)
    high = torch.full_like(low, 24.0)
    log_beta = torch.zeros_like(low)
    for _ in range(_BISECTION_STEPS):
        beta = log_beta.exp()
        weights = (-beta * excess).exp_()
        total = weights.sum(dim=1, keepdim=True)
        mean = (weights * excess).sum(dim=1, keepdim=True) / total
        variance = (weights * excess.square()).sum(dim=1, keepdim=True) / total - mean.square()
        surplus = total.log() + beta * mean - target
        low = torch.where(surplus > 0, log_beta, low)
        high = torch.where(surplus > 0, high, log_beta)
        # dH / dlog(beta) = -beta^2 Var(d^2)
        newton = log_beta + surplus / (beta.square() * variance).clamp_min(1e-12)
        log_beta = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
    return (-log_beta.exp() * excess).softmax(dim=1)
