"""CutMix inside the batch (Section 4.2, reference [43])."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# UniMatch's ranges.
AREA = (0.02, 0.4)
ASPECT = (0.3, 1 / 0.3)


class CutMixPlan(NamedTuple):
    """Which pixels of which image are replaced by whose; the same plan serves images, labels and confidence.

    boxes: (B, 1, H, W) or (B, 1, D, H, W) bool, True where the partner's pixels are pasted.
    partners: (B,) int64, for every image the index of the one it is pasted from.
    """

    boxes: Tensor
    partners: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """Pastes partners into boxes: values of any dtype, with or without channels -> a new tensor.

        Raises:
            ValueError: the batch or the size of `values` is not that of the boxes.
        """
        boxes = self.boxes if values.ndim == self.boxes.ndim else self.boxes[:, 0]
        size = values.shape[-(self.boxes.ndim - 2) :]
        if values.ndim != boxes.ndim or (len(values), *size) != (len(boxes), *self.boxes.shape[2:]):
            raise ValueError(f"values {tuple(values.shape)} do not fit the boxes {tuple(self.boxes.shape)}")
        return torch.where(boxes, values[self.partners], values)


def sample_cutmix_plan(
    batch: int,
    size: Sequence[int],
    probability: float = 0.5,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> CutMixPlan:
    """One random box and partner per image; nobody is its own partner unless alone, where CutMix does nothing.

    A volume's box has share^(1/3) of the depth and share^(2/3) of the plane of height and width, to which `aspect`
    applies. Draws: share, aspect, top, left, chance, places along leading axes (none in 2D), partners.

    Args:
        size: (H, W) or (D, H, W).
        probability: chance in [0, 1] that an image gets a box at all.
        area: range of the box's share of the image or volume, uniform.
        aspect: range of the box's height / width in units of the image's, log-uniform, narrowed where a box of the
            drawn area would not fit.
    """

    def uniform() -> Tensor:
        return torch.rand(batch, device=device, generator=generator)

    def interval(extent: Tensor, length: int) -> Tensor:
        """(B, length) bool, where a side of the box lies that is `extent` of the whole."""
        side = (extent * length).round().clamp(1, length)[:, None]
        start = (uniform()[:, None] * (length - side + 1)).floor()
        places = torch.arange(length, device=device)[None]
        return (places >= start) & (places < start + side)

    *leading, height, width = size
    share = area[0] + (area[1] - area[0]) * uniform()
    plane = share ** (2 / len(size))
    lowest, highest = plane.clamp(min=aspect[0]).log(), (1 / plane).clamp(max=aspect[1]).log()
    ratio = (lowest + (highest - lowest) * uniform()).exp()
    in_plane = [interval((plane * ratio).sqrt(), height), interval((plane / ratio).sqrt(), width)]
    boxes = (uniform() < probability).view(batch, *[1] * (len(size) + 1))
    sides = [interval(share ** (1 / len(size)), length) for length in leading] + in_plane
    for axis, side in enumerate(sides, start=2):
        boxes = boxes & side.view(batch, *[1] * (axis - 1), -1, *[1] * (len(size) + 1 - axis))
    ring = torch.randperm(batch, device=device, generator=generator)
    partners = torch.empty_like(ring)
    partners[ring] = ring.roll(1)
    return CutMixPlan(boxes, partners)
