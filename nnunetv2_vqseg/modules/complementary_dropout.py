"""Complementary channel dropout of two views of the same images (UniMatch V2, TPAMI 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.nd import spatial_axes


def complementary_masks(images: int, widths: Sequence[int], kept_images: float, like: Tensor) -> list[Tensor]:
    """Factors of the channels of two views, one draw for each stage.

    A channel that one view loses has twice its value in the other: the factors are m, 0 or 2 with equal chances, and
    2 - m. Of a random share of the images both views keep everything.

    Args:
        images: number of images, each of which has two views.
        widths: channels of each stage.
        kept_images: share of the images in [0, 1] that keep everything, rounded down to whole images.
        like: gives device and kind of number.

    Returns:
        (2 * images, channels) for each stage, the first views' before the second views'.

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0.0 <= kept_images <= 1.0:
        raise ValueError(f"the share of kept images must be in [0, 1], got {kept_images}")
    kept = (torch.randperm(images, device=like.device) < int(images * kept_images))[:, None]
    masks = []
    for width in widths:
        drawn = 2.0 * (torch.rand(images, width, device=like.device) < 0.5)
        first = torch.where(kept, 1.0, drawn)
        masks.append(torch.cat((first, 2.0 - first)).to(like.dtype))
    return masks


def complementary_dropout(maps: Sequence[Tensor], kept_images: float = 0.5) -> list[Tensor]:
    """Drops channels of two views so that what one loses the other has.

    Args:
        maps: one or more stages' features (2 B, C, ...): the first views of B images, then the second views.
        kept_images: as for `complementary_masks`.

    Raises:
        ValueError: an odd number of views.
    """
    views = len(maps[0])
    if views % 2:
        raise ValueError(f"expected two views of each image, got {views} in all")
    masks = complementary_masks(views // 2, [features.shape[1] for features in maps], kept_images, maps[0])
    return [
        features * mask.view(*mask.shape, *[1] * len(spatial_axes(features)))
        for features, mask in zip(maps, masks, strict=True)
    ]
