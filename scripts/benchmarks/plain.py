"""The quantiser and QPM as one would first write them: every distance at once, and a loop over the codes in use.

The yardstick of the benchmark, in the way the formulas read; autograd keeps what it likes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lookup(tokens: Tensor, codes: Tensor) -> Tensor:
    """Eq. 2: (N, d) tokens, (K, d) codes -> (N,) int64."""
    return torch.cdist(tokens, codes).argmin(dim=1)


def entropy(tokens: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Mean entropy of the assignments minus entropy of the mean assignment, a scalar."""
    p = (-torch.cdist(tokens, codes).square() / temperature).softmax(dim=1)
    mean = p.mean(dim=0)
    tiny = torch.finfo(p.dtype).tiny
    return (mean * mean.clamp_min(tiny).log()).sum() - (p * p.clamp_min(tiny).log()).sum(dim=1).mean()


def perturb(indices: Tensor, codes: Tensor, epsilon: float) -> Tensor:
    """Eq. 4, one distinct code after the other: (N,) int64 -> (N,) int64."""
    result = indices.clone()
    moves = torch.rand(indices.shape, device=indices.device) < epsilon
    for code in indices[moves].unique().tolist():
        tokens = (moves & (indices == code)).nonzero().flatten()
        weights = (-torch.cdist(codes[code : code + 1], codes)[0]).softmax(dim=0)
        weights[code] = 0.0
        result[tokens] = torch.multinomial(weights, len(tokens), replacement=True)
    return result


def forward_backward(
    tokens: Tensor, codebook: Tensor, mapping: Tensor, epsilon: float, beta: float, temperature: float, subset: int
) -> None:
    """Lookup, straight-through, L_vq, entropy term and QPM, forward and backward.

    Args:
        tokens: (N, d) leaf that gets a gradient.
        codebook: (K, d) frozen; `mapping`: (d, d) leaf that gets a gradient.
        subset: tokens drawn for the entropy term, so that it is as much work as ours.
    """
    codes = codebook @ mapping.T
    indices = lookup(tokens, codes)
    chosen = codes[indices]
    loss = (tokens.detach() - chosen).square().sum(dim=1).mean()
    loss = loss + beta * (tokens - chosen.detach()).square().sum(dim=1).mean()
    drawn = torch.randperm(len(tokens), device=tokens.device)[:subset]
    loss = loss + entropy(tokens[drawn], codes, temperature)
    quantized = chosen.detach() + (tokens - tokens.detach())
    moved = perturb(indices, codes.detach(), epsilon)
    quantized = quantized + (codes[moved] - codes[indices]).detach()
    (loss + quantized.square().mean()).backward()
