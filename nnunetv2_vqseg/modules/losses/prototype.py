"""Distance of pixels' vectors from what a memory holds of their class (SS-Net, MICCAI 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_vqseg.modules.class_memory import ClassMemory
from nnunetv2_vqseg.modules.collectives import sum_over_processes


def memory_distance(vectors: Tensor, scores: Tensor, valid: Tensor, memory: ClassMemory, ddp: bool = False) -> Tensor:
    """Mean over pairs of a vector f and a remembered m of v (1 - cos(f, m)), where v are the scores scaled to mean 1.

    Args:
        vectors: (K, N, D).
        scores: (K, N), positive.
        valid: (K, N) bool, which vectors there are.
        memory: of the K classes; receives no gradient.
        ddp: over the vectors of all processes, so that gradients averaged by DistributedDataParallel are those of one
            process with the whole batch.

    Returns:
        (K,) in float32; 0, with a gradient path, for a class with fewer than two vectors here or in the memory.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        held = memory.held[..., None].float()
        known = F.normalize(memory.vectors.float(), dim=2)
        mean = (held * known).sum(dim=1) / held.sum(dim=1).clamp(min=1.0)  # (K, D): a mean of cosines is one product
        distance = 1.0 - (F.normalize(vectors.float(), dim=2) * mean[:, None]).sum(dim=2)
        scores = torch.where(valid, scores.float(), 0.0)
        sums = torch.stack(((scores * distance).sum(dim=1), scores.sum(dim=1), valid.sum(dim=1).float()))
        total, weight, number = sum_over_processes(sums) if ddp else sums
        counts = (number > 1) & (memory.sizes > 1)
        return torch.where(counts, total / weight.clamp(min=torch.finfo(weight.dtype).tiny), 0.0 * total)
