"""The post-VQ feature adapter (Section 3.5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_vqseg.modules.nd import require_2d


class PostVQFeatureAdapter(nn.Module):
    """PFA: resizes q(z) to the foundation model's patch grid, then a 1x1 convolution to its width (Section 3.5).

    Args:
        in_channels: C of the quantised tokens.
        out_channels: C', the foundation model's `embed_dim`.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.projection = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, quantized: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, C, h, w) quantised tokens and the grid (H', W') -> (B, C', H', W').

        Raises:
            ValueError: tokens of volumes; the foundation model sees 2D images only.
        """
        require_2d(quantized, "the feature adapter")
        # Antialiasing changes nothing when enlarging; when shrinking, every token keeps its share in the result.
        resized = F.interpolate(quantized, size=grid, mode="bilinear", align_corners=False, antialias=True)
        return self.projection(resized)
