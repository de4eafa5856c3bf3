"""Exact nearest-code search (Eq. 2) without a (tokens, codes) matrix."""

from __future__ import annotations

import torch
from torch import Tensor

# Scores of one chunk are reduced in blocks of this many codes: the plain maximum over a block vectorises, and only the
# winning block has to be searched for the index, which is much slower per element.
_BLOCK = 128
# (tokens, codes) of one chunk: 2 MB stay in a CPU core's cache, a GPU wants 64 MB to fill it.
_CPU_CHUNK = (256, 2048)
_GPU_CHUNK = (1024, 16_384)


def score_factors(tokens: Tensor, codes: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """Factors whose product ranks codes: left @ right = 2 x.c - |c|^2 = |x|^2 - |x - c|^2, about the codes' mean.

    Args:
        tokens: (N, d).
        codes: (K, d).
        multiple: K is padded to a multiple of this with codes that score -inf.

    Returns:
        left (N, d + 1) and right (d + 1, K padded), at least float32.
    """
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    tokens, codes = tokens.to(dtype), codes.to(dtype)
    # Distances do not change with the origin, but |c|^2 far from it would cancel the digits that decide near ties.
    center = codes.mean(dim=0)
    tokens, codes = tokens - center, codes - center
    left = torch.cat((tokens, tokens.new_ones(len(tokens), 1)), dim=1)
    right = torch.cat((2.0 * codes, -codes.square().sum(dim=1, keepdim=True)), dim=1)
    missing = -len(codes) % multiple
    if missing:
        padding = right.new_zeros(missing, right.shape[1])
        padding[:, -1].fill_(-torch.inf)  # by `=` some versions of torch copy the number from the host
        right = torch.cat((right, padding))
    return left, right.T


@torch.no_grad()
def nearest_codes(tokens: Tensor, codes: Tensor, chunk: tuple[int, int] | None = None) -> Tensor:
    """Index of each token's nearest code in Euclidean distance (Eq. 2), the lowest of identical codes.

    Exact up to the rounding of 2 x.c - |c|^2 in the inputs' precision, float32 or higher; call it with autocast off.
    Peak memory grows with N + K + one chunk.

    Args:
        tokens: (N, d).
        codes: (K, d).
        chunk: tokens and codes compared at once, the latter a multiple of 128; by default chosen for the device.

    Returns:
        (N,) int64.
    """
    rows, columns = chunk or (_CPU_CHUNK if tokens.device.type == "cpu" else _GPU_CHUNK)
    left, right = score_factors(tokens, codes, _BLOCK)
    best_indices = [left.new_empty(0, dtype=torch.int64)]
    for some_tokens in left.split(rows) if len(left) else ():
        best = torch.full_like(some_tokens[:, 0], -torch.inf)
        index = torch.zeros_like(best, dtype=torch.int64)
        each = torch.arange(len(best), device=best.device)
        for offset in range(0, right.shape[1], columns):
            scores = torch.mm(some_tokens, right[:, offset : offset + columns])
            blocks = scores.view(len(best), -1, _BLOCK)
            value, block = blocks.amax(dim=2).max(dim=1)
            candidate = offset + block * _BLOCK + blocks[each, block].argmax(dim=1)
            # Strictly better only: of equals, the earlier chunk keeps the lower index, and a token that is not finite
            # keeps 0 instead of pointing into the padding.
            better = value > best
            best = torch.where(better, value, best)
            index = torch.where(better, candidate, index)
        best_indices.append(index)
    return torch.cat(best_indices)
