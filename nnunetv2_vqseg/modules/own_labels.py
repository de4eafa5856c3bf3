"""What a network says of images whose labels it will learn itself in the same step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def own_outputs(network: nn.Module, images: Tensor) -> Any:
    """The network's outputs for images (B, C, ...), without a gradient, and with one in its next pass.

    In some versions of torch, weights that AMP cast without a gradient have none in the next pass either.
    """
    outputs = network(images)
    torch.clear_autocast_cache()
    return outputs
