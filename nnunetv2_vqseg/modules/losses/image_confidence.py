"""Cross entropy against pseudo-labels that weighs whole images by how much of them is sure (ReCo, ARCO)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import mean_over_processes


@dataclass(frozen=True)
class ImageConfidenceLoss:
    """Mean over pixels with a cross entropy above 0 of their image's share of sure pixels times that cross entropy.

    Args:
        threshold: confidence from which a pixel is sure; all pixels of an image learn, sure or not, but those with a
            negative confidence, which have no label.
        ddp: the mean is over the pixels of all processes.
        regions: logits are independent regions (sigmoid), and a pixel of each counts for itself.
    """

    threshold: float
    ddp: bool = False
    regions: bool = False

    def __call__(self, logits: Tensor, labels: Tensor, confidence: Tensor) -> Tensor:
        """A scalar, in float32.

        Args:
            logits: student, (B, K, ...) classes, or (B, R, ...) regions.
            labels, confidence: of the teacher, (B, ...), or (B, R, ...) for regions.
        """
        share = (confidence >= self.threshold).float().flatten(1).mean(dim=1)
        if self.regions:
            entropy = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").flatten(1)
        else:
            entropy = F.cross_entropy(logits.float(), labels, reduction="none").flatten(1)
        entropy = torch.where(confidence.flatten(1) < 0, 0.0, entropy)
        number = (entropy > 0).sum().float()
        number = mean_over_processes(number) if self.ddp else number
        return (share[:, None] * entropy).sum() / number.clamp(min=torch.finfo(number.dtype).tiny)
