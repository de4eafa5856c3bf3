"""What depends on the number of spatial dimensions, by that number: 2 for (B, C, H, W), 3 for (B, C, D, H, W)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
BATCH_NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
LINEAR = {2: "bilinear", 3: "trilinear"}
"""Names of linear interpolation."""
CONVOLVE: dict[int, Any] = {2: F.conv2d, 3: F.conv3d}
POOL_MAX: dict[int, Any] = {2: F.max_pool2d, 3: F.max_pool3d}
ADAPTIVE_MEAN: dict[int, Any] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
AXES = {2: "H, W", 3: "D, H, W"}


def spatial_axes(images: Tensor) -> tuple[int, ...]:
    """Axes of the height and width, or of depth, height and width.

    Raises:
        ValueError: neither (B, C, H, W) nor (B, C, D, H, W).
    """
    if images.ndim - 2 not in AXES:
        raise ValueError(f"expected (B, C, H, W) or (B, C, D, H, W), got {tuple(images.shape)}")
    return tuple(range(2, images.ndim))


def require_2d(images: Tensor, what: str) -> None:
    """Refuse volumes where there is no third dimension.

    Raises:
        ValueError: not (B, C, H, W).
    """
    if images.ndim != 4:
        raise ValueError(f"{what} is for 2D images (B, C, H, W) only, got {tuple(images.shape)}")


def channel_dropout(values: Tensor, rate: float) -> Tensor:
    """Sets whole channels of (B, C, ...) to zero at random, whatever the mode of the module that calls it."""
    spatial_axes(values)
    return torch.feature_dropout(values, rate, True)
