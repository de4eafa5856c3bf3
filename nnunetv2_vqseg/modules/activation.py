"""LeakyReLU that is as cheap to train as one in place, also behind an InstanceNorm."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class LeakyReLU(nn.Module):
    """`nn.LeakyReLU` with the same bits, forward and backward, which keeps its output for the backward pass.

    `nn.LeakyReLU(inplace=True)` behind an InstanceNorm writes into a view, for which autograd copies the whole map
    three times on the way back; `inplace=False` keeps a map more in memory. This one does neither: the sign of the
    output is that of the input.

    Args:
        negative_slope: > 0.
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        if not negative_slope > 0:
            raise ValueError(f"negative_slope must be positive, got {negative_slope}.")
        self.negative_slope = negative_slope

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"

    def forward(self, x: Tensor) -> Tensor:
        """Values of any shape."""
        return _LeakyReLU.apply(x, self.negative_slope)


class _LeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        y = torch.nn.functional.leaky_relu(x, slope)
        ctx.save_for_backward(y)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.leaky_relu_backward(gradient, y, ctx.slope, True), None


def use_cheap_activations(network: nn.Module) -> int:
    """Replace the LeakyReLU right behind each InstanceNorm by the one of this file; returns how many there were.

    Parameters, their names and all numbers stay.
    """
    found: dict[int, LeakyReLU] = {}
    for container in network.modules():
        if isinstance(container, nn.Sequential):
            parts: list[Any] = list(container)
            for first, second in pairwise(parts):
                is_cheap = isinstance(first, nn.modules.instancenorm._InstanceNorm) and type(second) is nn.LeakyReLU
                if is_cheap and second.negative_slope > 0:
                    found[id(second)] = LeakyReLU(second.negative_slope)
    for container in list(network.modules()):  # an activation may be a part of several
        for name, part in container.named_children():
            if id(part) in found:
                setattr(container, name, found[id(part)])
    return len(found)
