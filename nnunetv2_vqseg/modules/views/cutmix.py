"""CutMix inside the batch (Section 4.2, reference [43])."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CutMixPlan(NamedTuple):
    """Which pixels of which image are replaced by whose; the same plan serves images, labels and confidence.

    boxes: (B, 1, H, W) bool, True where the partner's pixels are pasted.
    partners: (B,) int64, for every image the index of the one it is pasted from.
    """

    boxes: Tensor
    partners: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """`cutmix` of (B, ..., H, W) values of any dtype; a new tensor."""
        return cutmix(values, self.boxes, self.partners)


def sample_cutmix_boxes(
    batch: int,
    height: int,
    width: int,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One random box per image, with UniMatch's ranges of area and aspect ratio.

    Args:
        probability: chance in [0, 1] that an image gets a box at all.
        area: range of the box's share of the image, uniform.
        aspect: range of the box's height / width in units of the image's, log-uniform, narrowed where a box of the
            drawn area would not fit.

    Returns:
        (B, 1, H, W) bool, True inside the box, all False for an image without one.
    """

    def uniform() -> Tensor:
        return torch.rand(batch, device=device, generator=generator)

    share = area[0] + (area[1] - area[0]) * uniform()
    lowest, highest = share.clamp(min=aspect[0]).log(), (1 / share).clamp(max=aspect[1]).log()
    ratio = (lowest + (highest - lowest) * uniform()).exp()
    box_height = ((share * ratio).sqrt() * height).round().clamp(1, height)
    box_width = ((share / ratio).sqrt() * width).round().clamp(1, width)
    top = (uniform() * (height - box_height + 1)).floor()
    left = (uniform() * (width - box_width + 1)).floor()
    rows = torch.arange(height, device=device)[None]  # (1, H)
    columns = torch.arange(width, device=device)[None]  # (1, W)
    in_rows = (rows >= top[:, None]) & (rows < (top + box_height)[:, None])  # (B, H)
    in_columns = (columns >= left[:, None]) & (columns < (left + box_width)[:, None])  # (B, W)
    in_rows &= (uniform() < probability)[:, None]
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def sample_cutmix_plan(
    batch: int,
    height: int,
    width: int,
    probability: float = 0.5,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> CutMixPlan:
    """Boxes and partners for a batch; no image is its own partner unless it is alone, where CutMix does nothing."""
    boxes = sample_cutmix_boxes(batch, height, width, probability, device=device, generator=generator)
    ring = torch.randperm(batch, device=device, generator=generator)
    partners = torch.empty_like(ring)
    partners[ring] = ring.roll(1)
    return CutMixPlan(boxes, partners)


def cutmix(values: Tensor, boxes: Tensor, partners: Tensor) -> Tensor:
    """Pastes each image's partner into its box.

    Args:
        values: (B, ..., H, W), any dtype and any number of dimensions in between.
        boxes: (B, 1, H, W) bool.
        partners: (B,) int64.

    Returns:
        A new tensor like `values`.

    Raises:
        ValueError: batch or image size of `values` and `boxes` differ.
    """
    batch, _, height, width = boxes.shape
    if values.shape[0] != batch or values.shape[-2:] != (height, width):
        raise ValueError(f"values {tuple(values.shape)} do not fit the boxes {tuple(boxes.shape)}")
    inside = boxes.reshape(batch, *[1] * (values.ndim - 3), height, width)
    return torch.where(inside, values[partners], values)
