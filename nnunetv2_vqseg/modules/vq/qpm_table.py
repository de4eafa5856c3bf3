"""QPM's table: each code's nearest neighbours and how often to move to them, without a (K, K) matrix."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.vq.lookup import score_factors

# Scores of one chunk of codes, for a CPU core's cache and to fill a GPU.
_CPU_ELEMENTS = 2**20
_GPU_ELEMENTS = 2**24
# Rows of squared distances (rows, k) are calibrated in chunks of this many elements; each launches 100 operators.
_CPU_CALIBRATION = 2**18
_GPU_CALIBRATION = 2**22
# The largest m of a row lie in the m strided groups with the largest maxima; finding those first halves the time.
_GROUPS = 8
_BISECTION_STEPS = 24


class NeighborTable(NamedTuple):
    """Row i: where code i may move, (K, k) int32, and cumulative probabilities of those codes, (K, k) float32."""

    neighbors: Tensor
    cumulative: Tensor

    @property
    def probabilities(self) -> Tensor:
        """(K, k), one for each neighbour."""
        return self.cumulative.diff(dim=1, prepend=torch.zeros_like(self.cumulative[:, :1]))


def build_table(codes: Tensor, perplexity: float, num_neighbors: int) -> NeighborTable:
    """The table of a book (K, d); the others as in `QuantizedPerturbation`."""
    neighbors, probabilities = neighborhood(codes, perplexity, num_neighbors)
    cumulative = probabilities.cumsum(dim=1)
    # Ends at exactly 1, so that every draw below 1 finds a neighbour of positive probability.
    return NeighborTable(neighbors, cumulative / cumulative[:, -1:])


def neighborhood(codes: Tensor, perplexity: float, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Neighbours and calibrated probabilities, each (K, k); in a book with fewer other codes than that, all of them."""
    others = len(codes) - 1
    if others < num_neighbors:
        num_neighbors, perplexity = others, min(perplexity, max(1.0, others / 2))
    squared, neighbors = nearest_neighbors(codes, num_neighbors)
    return neighbors, calibrated_probabilities(squared, perplexity)


def rows_of_chunk(num_codes: int, device: torch.device) -> int:
    """How many codes to compare with all others at once."""
    return max(1, (_CPU_ELEMENTS if device.type == "cpu" else _GPU_ELEMENTS) // num_codes)


@torch.no_grad()
def nearest_neighbors(codes: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """The nearest other codes of every code, in Euclidean distance.

    Args:
        codes: (K, d).
        num_neighbors: k, at most K - 1.

    Returns:
        Squared distances (K, k) float32 and codes (K, k) int32, nearest first.
    """
    left, right = score_factors(codes, codes, _GROUPS)
    distances, neighbors = [], []
    for own in torch.arange(len(codes), device=codes.device).split(rows_of_chunk(right.shape[1], codes.device)):
        scores = torch.mm(left[own], right)
        scores[own - own[0], own] = -torch.inf
        value, index = _largest(scores, num_neighbors)
        distances.append((-right[-1, own, None] - value).clamp_min_(0.0).float())
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
    elements = _CPU_CALIBRATION if squared_distances.device.type == "cpu" else _GPU_CALIBRATION
    chunks = squared_distances.split(max(1, elements // squared_distances.shape[1]))
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
