"""Drawing pixels of each class, and reading features at them, with shapes that do not depend on the labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Drawn(NamedTuple):
    """Pixels of K classes: `places` (K, N) int64 in the flattened labels (B, ...), `valid` (K, N) bool."""

    places: Tensor
    valid: Tensor


@torch.no_grad()
def draw_per_class(labels: Tensor, classes: int, number: int, generator: torch.Generator | None = None) -> Drawn:
    """Up to `number` pixels of each class at random, without repetition: all of them where there are fewer.

    Nothing waits for the device: places that are left over hold any pixel and are not valid.

    Args:
        labels: (B, ...) integers; those outside 0 to `classes` - 1 are never drawn.
    """
    labels = labels.flatten()
    outside = (labels < 0) | (labels >= classes)
    # Sorted by class and, inside a class, at random; no class and its chance round to the next class.
    chance = 0.999 * torch.rand(labels.shape, device=labels.device, generator=generator)
    keys, order = (torch.where(outside, classes, labels) + chance).sort()
    borders = torch.searchsorted(keys, torch.arange(classes + 1, device=labels.device, dtype=keys.dtype))
    places = borders[:-1, None] + torch.arange(min(number, len(labels)), device=labels.device)
    return Drawn(order[places.clamp(max=len(labels) - 1)], places < borders[1:, None])


def features_at(features: Tensor, places: Tensor) -> Tensor:
    """Features (*places.shape, C) of maps (B, C, ...) at places of the flattened (B, ...)."""
    flat = features.flatten(2)
    return flat[places // flat.shape[2], :, places % flat.shape[2]]
