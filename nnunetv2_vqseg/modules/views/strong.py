"""The strong view x_a of unlabelled images: intensity jitter, then CutMix inside the batch (Section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from nnunetv2_vqseg.modules.views.cutmix import AREA, ASPECT, sample_cutmix_plan
from nnunetv2_vqseg.modules.views.jitter import IntensityJitter


class UnlabeledView(NamedTuple):
    """A view of unlabelled images and what it is compared with, all mixed by the same CutMix plan where there is one.

    images: (B, C, H, W) or (B, C, D, H, W).
    labels, confidence: of the teacher, as images but without channels, or with one for each region.
    clean: the images before the jitter.
    """

    images: Tensor
    labels: Tensor
    confidence: Tensor
    clean: Tensor


def strong_view(
    images: Tensor,
    labels: Tensor,
    confidence: Tensor,
    jitter: IntensityJitter,
    probability: float = 0.5,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
    masked: Sequence[bool] = (),
) -> UnlabeledView:
    """Intensity jitter, then CutMix inside the batch, with labels and confidence mixed in the same way.

    Args:
        images, labels, confidence: the weak view and the teacher's, shapes as in `UnlabeledView`.
        probability, area, aspect: as for `sample_cutmix_plan`.
        masked: as for `jittered`.

    Returns:
        New tensors; a batch of one is jittered only.
    """
    plan = sample_cutmix_plan(len(images), images.shape[2:], probability, area, aspect, device=images.device)
    changed = jittered(images, jitter, masked)
    return UnlabeledView(plan.apply(changed), plan.apply(labels), plan.apply(confidence), plan.apply(images))


def jittered(images: Tensor, jitter: IntensityJitter, masked: Sequence[bool] = ()) -> Tensor:
    """Images (B, C, ...) after the jitter, new tensors.

    Args:
        masked: of each channel, whether its background was set to 0 (nnU-Net's `use_mask_for_norm`) and stays so, as
            nnU-Net masks after its own intensity transforms; none for ().
    """
    changed = jitter(images)
    for channel in (number for number, is_masked in enumerate(masked) if is_masked):
        changed[:, channel].masked_fill_(images[:, channel] == 0, 0.0)
    return changed
