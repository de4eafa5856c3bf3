"""Labels as nnU-Net's loader gives them, and at other resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def full_resolution(target: Tensor | list[Tensor]) -> Tensor:
    """The finest of a target's levels."""
    return target[0] if isinstance(target, list) else target


def split_ignored(target: Tensor, regions: bool = False, ignore_label: int | None = None) -> tuple[Tensor, Tensor]:
    """Labels, and where there are any.

    Args:
        target: (B, 1, ...) classes, or (B, R, ...) of 0 and 1 for `regions`; with an ignore label regions have one
            channel more, the last, which is 1 where a pixel is to be ignored.

    Returns:
        labels int64, 0 where ignored, (B, 1, ...) or (B, R, ...); known (B, 1, ...) bool.
    """
    if ignore_label is None:
        return target.long(), torch.ones_like(target[:, :1], dtype=torch.bool)
    known = ~target[:, -1:].bool() if regions else target != ignore_label
    labels = target[:, :-1] if regions else target
    return torch.where(known, labels, 0).long(), known


def foreground(labels: Tensor) -> Tensor:
    """(B, ...) bool of labels (B, C, ...): where any channel, of classes or of a region, is not 0."""
    return (labels > 0).any(1)


def at_size(values: Tensor, size: Sequence[int]) -> Tensor:
    """Labels or masks (B, C, ...) of any dtype at another size: the nearest pixel's, as nnU-Net downsamples targets."""
    if values.shape[2:] == tuple(size):
        return values
    return F.interpolate(values.float(), tuple(size), mode="nearest-exact").to(values.dtype)


def at_scales(target: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
    """A target at full resolution at the size of each output (B, K, ...) of deep supervision."""
    return [at_size(target, output.shape[2:]) for output in outputs]


def together(first: Tensor | list[Tensor], second: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """Two targets as one batch, level by level where they have levels."""
    if isinstance(first, list):
        return [torch.cat(pair) for pair in zip(first, second, strict=True)]
    assert isinstance(second, Tensor)
    return torch.cat((first, second))
