"""Cutout: a box of noise in an image (ABD, CVPR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.nd import spatial_axes
from nnunetv2_vqseg.modules.views.cutmix import AREA, ASPECT, sample_cutmix_plan


@torch.no_grad()
def cutout(
    images: Tensor,
    probability: float = 0.5,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
) -> tuple[Tensor, Tensor]:
    """A box of each image at random in which every pixel is the channel's smallest or largest value, by chance.

    Args:
        images: (B, C, H, W) or (B, C, D, H, W).
        probability, area, aspect: as for `sample_cutmix_plan`.

    Returns:
        New images, and the boxes, (B, 1, ...) bool: what was there is gone, so that its label is background.
    """
    axes = spatial_axes(images)
    boxes = sample_cutmix_plan(len(images), images.shape[2:], probability, area, aspect, images.device).boxes
    low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
    noise = torch.where(torch.rand(images.shape, device=images.device) < 0.5, low, high)
    return torch.where(boxes, noise, images), boxes
