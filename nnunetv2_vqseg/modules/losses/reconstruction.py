"""Reconstruction of the image (Eq. 8, 9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_vqseg.modules.nd import spatial_axes


def channel_scale(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each image's channels, float32 (B, C, 1, 1) or (B, C, 1, 1, 1).

    A constant channel has a standard deviation of 1, so that one can divide by it.
    """
    std, mean = torch.std_mean(images.float(), dim=spatial_axes(images), keepdim=True)
    return mean, torch.where(std > 0, std, torch.ones_like(std))


def reconstruction_loss(image: Tensor, reconstruction: Tensor, standardize: bool = False) -> Tensor:
    """L_rec of Eq. 8 and 9: mean absolute difference, in float32.

    Args:
        image: (B, C, H, W) or (B, C, D, H, W).
        reconstruction: of the same shape.
        standardize: the reconstruction is one of the image in units of its `channel_scale`. For images that are not
            z-scored: raw intensities in the thousands would make the loss thousands of times as large.

    Raises:
        ValueError: shapes differ.
    """
    if image.shape != reconstruction.shape:
        raise ValueError(f"image {tuple(image.shape)} and reconstruction {tuple(reconstruction.shape)} differ in shape")
    target = image.float()
    if standardize:
        mean, std = channel_scale(target)
        target = (target - mean) / std
    return F.l1_loss(reconstruction.float(), target)
