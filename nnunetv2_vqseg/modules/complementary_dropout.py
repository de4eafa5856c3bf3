"""Complementary channel dropout of two views of the same images (UniMatch V2, TPAMI 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.nd import spatial_axes


def complementary_masks(
    images: int, widths: Sequence[int], kept_images: float, like: Tensor, same: bool = False
) -> list[Tensor]:
    """Factors of the channels of two views, one draw for each stage, or one for all.

    A channel that one view loses has twice its value in the other: the factors are m, 0 or 2 with equal chances, and
    2 - m. Of a random share of the images both views keep everything.

    Args:
        images: number of images, each of which has two views.
        widths: channels of each stage.
        kept_images: share of the images in [0, 1] that keep everything, rounded down to whole images.
        like: gives device and kind of number.
        same: one draw for all stages, which are of one width.

    Returns:
        (2 * images, channels) for each stage, the first views' before the second views'.

    Raises:
        ValueError: a share outside [0, 1], or one draw for several widths.
    """
    if same and len({*widths}) > 1:
        raise ValueError(f"stages with the widths {list(widths)} cannot lose the same channels")
    if not 0.0 <= kept_images <= 1.0:
        raise ValueError(f"the share of kept images must be in [0, 1], got {kept_images}")
    kept = (torch.randperm(images, device=like.device) < int(images * kept_images))[:, None]
    masks = []
    for width in widths[:1] if same else widths:
        drawn = 2.0 * (torch.rand(images, width, device=like.device) < 0.5)
        first = torch.where(kept, 1.0, drawn)
        masks.append(torch.cat((first, 2.0 - first)).to(like.dtype))
    return masks * len(widths) if same else masks


def complementary_dropout(maps: Sequence[Tensor], kept_images: float = 0.5, same: bool = False) -> list[Tensor]:
    """Drops channels of two views so that what one loses the other has.

    Args:
        maps: one or more stages' features (2 B, C, ...): the first views of B images, then the second views.
        kept_images, same: as for `complementary_masks`.

    Raises:
        ValueError: an odd number of views, or as `complementary_masks`.
    """
    views = len(maps[0])
    if views % 2:
        raise ValueError(f"expected two views of each image, got {views} in all")
    masks = complementary_masks(views // 2, [features.shape[1] for features in maps], kept_images, maps[0], same)
    return [
        features * mask.view(*mask.shape, *[1] * len(spatial_axes(features)))
        for features, mask in zip(maps, masks, strict=True)
    ]
