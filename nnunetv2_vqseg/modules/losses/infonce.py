"""Patch-wise contrastive alignment (Section 3.5, Eq. 11)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import mean_over_processes


def patch_contrastive_loss(
    adapted: Tensor, target: Tensor, temperature: float = 0.07, mask: Tensor | None = None, ddp: bool = False
) -> Tensor:
    """InfoNCE between adapted tokens and foundation features, patch by patch within each image (Eq. 11).

    The positive of a patch is the target at its own place, its negatives are the targets at all other kept places of
    the same image; similarity is the cosine. Computed in float32 whatever the autocast context.

    Args:
        adapted: (B, C', ...) from `PostVQFeatureAdapter`; receives the gradient.
        target: (B, C', ...) features of the foundation model; receives none.
        temperature: tau > 0.
        mask: (B, ...) bool, True where a patch takes part, as a positive and as a negative; None keeps all.
        ddp: divide by the images of all processes that count, so that gradients averaged by DistributedDataParallel
            are those of one process with the whole batch.

    Returns:
        A scalar, the mean over images of the mean over an image's kept patches. Images with fewer than two of them do
        not count: one patch has no negative. 0 with a gradient path (needed by DDP) if none counts.

    Raises:
        ValueError: shapes do not match, or `temperature` is not positive.
    """
    if adapted.shape != target.shape or adapted.ndim < 3:
        raise ValueError(
            f"adapted and target must both be (B, C', ...), got {tuple(adapted.shape)} and {tuple(target.shape)}"
        )
    if mask is not None and mask.shape != (adapted.shape[0], *adapted.shape[2:]):
        raise ValueError(f"mask must be (B, ...) for {tuple(adapted.shape)}, got {tuple(mask.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    with torch.autocast(device_type=adapted.device.type, enabled=False):
        queries = F.normalize(adapted.float().flatten(2), dim=1, eps=1e-6)  # (B, C', N)
        keys = F.normalize(target.detach().float().flatten(2), dim=1, eps=1e-6)
        similarity = queries.transpose(1, 2) @ keys / temperature  # (B, N, N)
        positive = similarity.diagonal(dim1=1, dim2=2)
        if mask is None:
            return (similarity.logsumexp(dim=2) - positive).mean()
        kept = mask.flatten(1).bool()  # (B, N)
        # Finite, because an image without a kept patch has rows of nothing else, and -inf - -inf is not a number.
        negatives = similarity.masked_fill(~kept[:, None, :], torch.finfo(similarity.dtype).min)
        per_patch = torch.where(kept, negatives.logsumexp(dim=2) - positive, 0.0)
        number = kept.sum(dim=1)
        counts = number > 1
        per_image = torch.where(counts, per_patch.sum(dim=1) / number.clamp(min=1), 0.0)
        count = counts.sum().float()
        if ddp:
            count = mean_over_processes(count)
        return per_image.sum() / count.clamp(min=torch.finfo(count.dtype).tiny)
