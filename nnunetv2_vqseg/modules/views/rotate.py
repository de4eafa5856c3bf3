"""Quarter turns and flips of images and everything that is measured on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Turn(NamedTuple):
    """A turn in the plane of the last two axes, then flips.

    quarters: turns by 90 degrees, from the second to last towards the last axis, as in `torch.rot90`.
    flips: axes counted from the end, -1 is the last.
    """

    quarters: int
    flips: tuple[int, ...] = ()

    def apply(self, values: Tensor) -> Tensor:
        """Images, labels or logits (B, C, ...) of any size; a new tensor of the same values."""
        turned = torch.rot90(values, self.quarters, (-2, -1))
        return torch.flip(turned, self.flips)


def sample_turn(
    sizes: Sequence[Sequence[int]], flip_probability: float = 0.5, generator: torch.Generator | None = None
) -> Turn:
    """A random turn that is never none, and flips along any axis (two may undo a half turn), for all of these sizes.

    Args:
        sizes: (H, W) or (D, H, W) of the images and of all that is turned along; where one has another height than
            width only the half turn keeps all shapes.
        flip_probability: chance in [0, 1] of a flip along each axis.
    """
    square = all(size[-1] == size[-2] for size in sizes)
    quarters = int(torch.randint(1, 4, (), generator=generator)) if square else 2
    chances = torch.rand(len(sizes[0]), generator=generator)
    return Turn(quarters, tuple(-1 - axis for axis, chance in enumerate(chances) if chance < flip_probability))
