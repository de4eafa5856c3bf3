"""Bidirectional copy-paste: a part of one image in another, with its labels (BCP, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.nd import POOL_MAX
from nnunetv2_vqseg.modules.views.strong import UnlabeledView


class LabeledImages(NamedTuple):
    """Images with labels, of an expert or of a network.

    images: (B, C, ...).
    labels: integers (B, 1, ...), or one channel of 0 and 1 for each region, (B, R, ...).
    known: (B, 1, ...) bool, False where a pixel has no label.
    """

    images: Tensor
    labels: Tensor
    known: Tensor


M = TypeVar("M", LabeledImages, UnlabeledView)


def halves(batch: M, images: int) -> tuple[M, M]:
    """The batch in two parts of half of `images` each, rounded up; from its end it goes on at its beginning."""
    half = -(-images // 2)
    order = torch.arange(2 * half, device=batch.images.device) % len(batch.images)
    first, second = (type(batch)(*(values[part] for values in batch)) for part in order.split(half))
    return first, second


def random_box(
    size: Sequence[int],
    share: float = 2 / 3,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(1, 1, ...) bool, True in one box at a random place, each as likely as any other.

    Args:
        size: pixels per axis, of any number of axes.
        share: of each side, rounded down, at least one pixel.
        generator: of the CPU, where the place is drawn.
    """
    box = torch.zeros(1, 1, *size, dtype=torch.bool, device=device)
    sides = [max(1, int(share * length + 1e-6)) for length in size]
    starts = [int(torch.randint(n - side + 1, (), generator=generator)) for n, side in zip(size, sides, strict=True)]
    inside = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    box[0, 0][inside] = True
    return box


def organs(labels: Tensor, margin: int = 0, regions: bool = False) -> Tensor:
    """(B, 1, ...) bool, True at labels other than background and up to `margin` pixels around them along each axis.

    Args:
        labels: integers (B, ...), or (B, R, ...) of 0 and 1 for `regions`.
    """
    found = (labels > 0).any(1, keepdim=True) if regions else labels[:, None] > 0
    if margin == 0:
        return found
    return POOL_MAX[found.ndim - 2](found.float(), 2 * margin + 1, stride=1, padding=margin) > 0


def paste(mask: Tensor, inside: M, outside: M) -> M:
    """Pixels of `inside` where the mask is True, of `outside` elsewhere, and all that is known of them.

    Args:
        mask: (B, 1, ...) or (1, 1, ...) bool.
    """

    def mixed(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(mask if one.ndim == mask.ndim else mask[:, 0], one, other)

    return type(inside)(*(mixed(one, other) for one, other in zip(inside, outside, strict=True)))


def join(first: M, second: M) -> M:
    """One batch after the other."""
    return type(first)(*(torch.cat(parts) for parts in zip(first, second, strict=True)))


def both_ways(labeled: M, taught: M, images: int, mask_of: Callable[[M], Tensor]) -> M:
    """Parts of labelled images in taught ones, the first half, and parts of taught images in labelled ones, the second.

    Args:
        images: as many are mixed, one more where it is odd.
        mask_of: the pixels of the images given to it, (B, 1, ...) or (1, 1, ...), that are pasted into others.
    """
    (labeled_a, labeled_b), (taught_a, taught_b) = halves(labeled, images), halves(taught, images)
    inside, outside = join(labeled_a, taught_b), join(taught_a, labeled_b)
    return paste(mask_of(inside), inside, outside)
