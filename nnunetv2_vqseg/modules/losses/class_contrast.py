"""Contrast of pixels of a class with the mean of that class and with pixels of the others (ARCO, NeurIPS 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import mean_over_processes


def class_contrast(
    anchors: Tensor, positive: Tensor, others: Tensor, places: Tensor, temperature: float = 0.5
) -> Tensor:
    """InfoNCE of one class, a scalar in float32: the mean over anchors of -log of the positive's softmax.

    Similarity is the cosine over the temperature. All similarities are computed and those that were drawn are read,
    which needs less memory than the drawn vectors.

    Args:
        anchors: (A, D); receive the gradient.
        positive: (D,), the same for all anchors; receives none.
        others: (M, D); receive none.
        places: (A, N) rows of `others` that are an anchor's negatives.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        queries = F.normalize(anchors.float(), dim=1)
        known = F.normalize(torch.cat((positive[None], others)).detach().float(), dim=1)
        similarity = queries @ known.T / temperature
        chosen = torch.cat((similarity[:, :1], similarity[:, 1:].gather(1, places)), dim=1)
        return (chosen.logsumexp(dim=1) - chosen[:, 0]).mean()


@torch.no_grad()
def class_means(vectors: Tensor, labels: Tensor, classes: int, ddp: bool = False) -> tuple[Tensor, Tensor]:
    """Mean vector of each class in float32, and whether there is one.

    Args:
        vectors: (B, D, ...).
        labels: (B, ...) integers; those outside 0 to `classes` - 1 do not count.
        ddp: over the pixels of all processes.

    Returns:
        (K, D), zeros for a class without pixels, and (K,) bool.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        member = (labels.flatten(1)[:, None] == torch.arange(classes, device=labels.device)[:, None]).float()
        total = torch.einsum("bks,bds->kd", member, vectors.flatten(2).float())
        sums = torch.cat((total, member.sum(dim=(0, 2))[:, None]), dim=1)
        sums = mean_over_processes(sums) if ddp else sums
        number = sums[:, -1:]
        return sums[:, :-1] / torch.where(number > 0, number, 1.0), number[:, 0] > 0
