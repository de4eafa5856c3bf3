"""Adaptive bidirectional displacement: patches move between two views of an image (ABD, CVPR 2024).

The views are a weak one, seen by a first network, and a strong one of the same geometry, seen by a second. An image is
divided into a grid of patches; what remains of an axis that the grid does not divide, at its end, stays where it is.
Where two patches are as sure the first one is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Displacement(NamedTuple):
    """Which patches are replaced by which, of each image, (B,) int64: `weak_to` of the weak view by `weak_from` of the
    strong one, then `strong_to` of the strong view by `strong_from` of the weak one.

    grid: patches per axis.
    chosen: (B,) bool, the images in which anything moves.
    """

    weak_to: Tensor
    weak_from: Tensor
    strong_to: Tensor
    strong_from: Tensor
    grid: int
    chosen: Tensor

    def apply(self, weak: Tensor, strong: Tensor) -> tuple[Tensor, Tensor]:
        """Both views, or what belongs to them, such as labels, of any dtype, (B, C, ...) -> new tensors."""
        tiles, other = to_patches(weak, self.grid), to_patches(strong, self.grid)
        tiles = self._moved(tiles, self.weak_to, other, self.weak_from)
        other = self._moved(other, self.strong_to, tiles, self.strong_from)
        return from_patches(tiles, weak, self.grid), from_patches(other, strong, self.grid)

    def _moved(self, into: Tensor, to: Tensor, source: Tensor, origin: Tensor) -> Tensor:
        """Patches (B, P, ...) with the chosen images' patch `to` replaced by `source`'s patch `origin`."""
        places = torch.arange(into.shape[1], device=into.device)
        replaced = ((places == to[:, None]) & self.chosen[:, None]).view(*into.shape[:2], *[1] * (into.ndim - 2))
        origin = origin.view(-1, *[1] * (into.ndim - 1)).expand(-1, 1, *into.shape[2:])
        return torch.where(replaced, source.gather(1, origin), into)


@torch.no_grad()
def displace_unlabeled(
    first: Tensor,
    second: Tensor,
    by_divergence: Tensor,
    grid: int = 4,
    surest: int = 4,
    regions: bool = False,
) -> Displacement:
    """ABD-R: each view's least sure patch is replaced by a sure one of the other view.

    That is, of the `surest` patches of the other view, the one whose mean prediction has the smallest Kullback-Leibler
    divergence from that of the patch it replaces; or, without `by_divergence`, the surest of all.

    Args:
        first, second: logits (B, K, ...) of the weak view by the first network, of the strong one by the second.
        by_divergence: (B,) bool.
    """
    (confidence, mean), (other_confidence, other_mean) = (patch_statistics(x, grid, regions) for x in (first, second))
    weak_to, strong_to = confidence.argmin(1), other_confidence.argmin(1)

    def source(confidence: Tensor, mean: Tensor, replaced: Tensor) -> Tensor:
        best = confidence.topk(surest, dim=1).indices
        candidates = mean.gather(1, best[..., None].expand(-1, -1, mean.shape[2]))
        nearest = _divergence(replaced[:, None], candidates, regions).argmin(1, keepdim=True)
        return torch.where(by_divergence, best.gather(1, nearest)[:, 0], confidence.argmax(1))

    rows = torch.arange(len(first), device=first.device)
    return Displacement(
        weak_to,
        source(other_confidence, other_mean, mean[rows, weak_to]),
        strong_to,
        source(confidence, mean, other_mean[rows, strong_to]),
        grid,
        torch.ones_like(by_divergence),
    )


@torch.no_grad()
def displace_labeled(
    first: Tensor, second: Tensor, chosen: Tensor, grid: int = 4, regions: bool = False
) -> Displacement:
    """ABD-I: each view's surest patch is replaced by the other's least sure one; to be applied to labels as well.

    Args:
        first, second: logits (B, K, ...) of the weak view by the first network, of the strong one by the second.
        chosen: (B,) bool, of which images.
    """
    (confidence, _), (other, _) = (patch_statistics(logits, grid, regions) for logits in (first, second))
    return Displacement(confidence.argmax(1), other.argmin(1), other.argmax(1), confidence.argmin(1), grid, chosen)


def patch_statistics(logits: Tensor, grid: int, regions: bool = False) -> tuple[Tensor, Tensor]:
    """How sure a network is of each patch (B, P), the mean largest probability, and its mean logits (B, P, K).

    Of regions it is sure by max(p, 1 - p), the mean over all.
    """
    logits = logits.float()
    p = logits.sigmoid() if regions else logits.softmax(1)
    sure = torch.maximum(p, 1.0 - p).mean(1, keepdim=True) if regions else p.amax(1, keepdim=True)
    return to_patches(sure, grid).flatten(2).mean(2), to_patches(logits, grid).flatten(3).mean(3)


def _divergence(of: Tensor, to: Tensor, regions: bool) -> Tensor:
    """KL(of || to) of the predictions with these logits (..., K), over K; of regions the sum over all."""
    if regions:
        p = of.sigmoid()
        inside = p * (F.logsigmoid(of) - F.logsigmoid(to))
        return (inside + (1.0 - p) * (F.logsigmoid(-of) - F.logsigmoid(-to))).sum(-1)
    return (of.softmax(-1) * (of.log_softmax(-1) - to.log_softmax(-1))).sum(-1)


def to_patches(values: Tensor, grid: int) -> Tensor:
    """(B, C, ...) -> (B, P, C, ...) with P = `grid` to the power of the number of axes, in reading order."""
    sides = _sides(values.shape[2:], grid)
    ndim = len(sides)
    values = values[_divided(sides, grid)]
    values = values.reshape(*values.shape[:2], *(length for side in sides for length in (grid, side)))
    order = (0, *range(2, 2 + 2 * ndim, 2), 1, *range(3, 2 + 2 * ndim, 2))
    return values.permute(order).flatten(1, ndim)


def from_patches(patches: Tensor, whole: Tensor, grid: int) -> Tensor:
    """Patches (B, P, C, ...) put together, in a copy of what they were cut from, (B, C, ...)."""
    sides = _sides(whole.shape[2:], grid)
    ndim = len(sides)
    patches = patches.unflatten(1, [grid] * ndim)
    order = (0, ndim + 1, *(axis for i in range(ndim) for axis in (1 + i, ndim + 2 + i)))
    joined = patches.permute(order).reshape(*whole.shape[:2], *(grid * side for side in sides))
    result = whole.clone()
    result[_divided(sides, grid)] = joined
    return result


def _sides(size: Sequence[int], grid: int) -> list[int]:
    if min(size) < grid:
        raise ValueError(f"an image of {tuple(size)} pixels cannot be divided into {grid} patches along each axis")
    return [length // grid for length in size]


def _divided(sides: Sequence[int], grid: int) -> tuple[Any, ...]:
    """Index of the part of images that the grid divides."""
    return (..., *(slice(grid * side) for side in sides))
