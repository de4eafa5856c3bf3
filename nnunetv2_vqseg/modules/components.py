"""Largest connected components of labels (BCP, CVPR 2023)."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


@torch.no_grad()
def largest_components(labels: Tensor) -> Tensor:
    """Of each image and class the largest connected component alone; what falls away becomes background, 0.

    Pixels that touch at a corner are connected, in 2D and 3D. Works on the host: about 2 ms for an image of 256 x 256
    with three classes.

    Args:
        labels: integers (B, C, ...); each channel by itself: one of classes, or one of 0 and 1 for each region.

    Returns:
        A new tensor of the same shape, type and device. Of components of equal size the first in reading order is kept.
    """
    found = labels.to("cpu", torch.int32).numpy()
    kept = np.zeros_like(found)
    for channel, into in zip(found.reshape(-1, *found.shape[2:]), kept.reshape(-1, *found.shape[2:]), strict=True):
        for label, box in enumerate(ndimage.find_objects(channel), start=1):
            if box is not None:
                into[box][_largest(channel[box] == label)] = label
    return torch.from_numpy(kept).to(labels.device, labels.dtype)


def cleaned(labels: Tensor) -> tuple[Tensor, Tensor]:
    """`largest_components` of labels (B, C, ...), and the share of their foreground that is left, 1 where none was."""
    kept = largest_components(labels)
    found, left = (labels > 0).float().mean(), (kept > 0).float().mean()
    return kept, (left + 1e-9) / (found + 1e-9)


def _largest(mask: np.ndarray) -> np.ndarray:
    parts, number = ndimage.label(mask, structure=np.ones([3] * mask.ndim))
    if number == 1:
        return mask
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1
