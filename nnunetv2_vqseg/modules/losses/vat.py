"""The direction in which a small change of an image changes the output most (virtual adversarial training).

Miyato et al., TPAMI 2018, https://arxiv.org/abs/1704.03976, Section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def adversarial_direction(
    divergence: Callable[[Tensor], Tensor],
    images: Tensor,
    xi: float,
    steps: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Power iteration for a direction like the images, with a root mean square of 1 in each image, without gradient.

    No parameter gets a gradient from it.

    Args:
        divergence: a change of the images -> scalar, how far it moves the output; 0 and flat at no change.
        images: (B, C, ...); only their shape, device and kind of number count.
        xi: root mean square of the change at which the gradient is taken, in the units of the change. Times sqrt(C H W)
            it is the L2 norm that is given in the literature.
        steps: of the iteration; with 0 the direction is a random one.

    Returns:
        (B, C, ...) float32; 0 for an image with no gradient.
    """
    start = torch.rand(images.shape, device=images.device, generator=generator, dtype=torch.float32) - 0.5
    direction = _unit(start)
    for _ in range(steps):
        direction.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(divergence(xi * direction), direction)
        direction = _unit(gradient)
    return direction.detach()


def _unit(values: Tensor) -> Tensor:
    """Of root mean square 1 in each image; by the largest first, because squares of small gradients underflow."""
    flat = values.flatten(1)
    flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    size = flat.square().mean(dim=1, keepdim=True).sqrt()
    return (flat / size.clamp(min=torch.finfo(flat.dtype).tiny)).view_as(values)
