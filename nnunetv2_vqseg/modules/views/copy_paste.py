"""Bidirectional copy-paste: a box of one image in another, with its labels (BCP, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LabeledImages(NamedTuple):
    """Images with labels, of an expert or of a network.

    images: (B, C, ...).
    labels: integers (B, 1, ...), or one channel of 0 and 1 for each region, (B, R, ...).
    known: (B, 1, ...) bool, False where a pixel has no label.
    """

    images: Tensor
    labels: Tensor
    known: Tensor

    def halves(self, images: int) -> tuple[LabeledImages, LabeledImages]:
        """The batch in two parts of half of `images` each, rounded up; from its end it goes on at its beginning."""
        half = -(-images // 2)
        order = torch.arange(2 * half, device=self.images.device) % len(self.images)
        first, second = (LabeledImages(*(values[part] for values in self)) for part in order.split(half))
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


def paste(box: Tensor, inside: LabeledImages, outside: LabeledImages) -> LabeledImages:
    """Pixels of `inside` where the box is True, of `outside` elsewhere; labels and what is known of them with them."""
    return LabeledImages(*(torch.where(box, one, other) for one, other in zip(inside, outside, strict=True)))


def join(first: LabeledImages, second: LabeledImages) -> LabeledImages:
    """One batch after the other."""
    return LabeledImages(*(torch.cat(parts) for parts in zip(first, second, strict=True)))
