"""The strong view x_a of unlabelled images: intensity jitter, then CutMix inside the batch (Section 4.2)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from nnunetv2_vqseg.modules.views.cutmix import sample_cutmix_plan
from nnunetv2_vqseg.modules.views.jitter import IntensityJitter


class UnlabeledView(NamedTuple):
    """A view of unlabelled images and what it is compared with, all mixed by the same CutMix plan where there is one.

    images: (B, C, H, W).
    labels, confidence: (B, H, W), or (B, R, H, W) for regions, of the teacher.
    clean: (B, C, H, W), the images before the jitter.
    """

    images: Tensor
    labels: Tensor
    confidence: Tensor
    clean: Tensor


def strong_view(
    images: Tensor, labels: Tensor, confidence: Tensor, jitter: IntensityJitter, probability: float = 0.5
) -> UnlabeledView:
    """Intensity jitter, then CutMix inside the batch, with labels and confidence mixed in the same way.

    Args:
        images: (B, C, H, W) weak view; labels, confidence: (B, ..., H, W) of the teacher.
        probability: chance of an image to get a box.

    Returns:
        New tensors; a batch of one is jittered only.
    """
    batch, _, height, width = images.shape
    plan = sample_cutmix_plan(batch, height, width, probability, device=images.device)
    return UnlabeledView(plan.apply(jitter(images)), plan.apply(labels), plan.apply(confidence), plan.apply(images))
