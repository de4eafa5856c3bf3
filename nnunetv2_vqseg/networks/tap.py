"""A planned U-Net that gives out features of its decoder in training."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from nnunetv2_vqseg.networks.backbone import Logits, backbone_of


class Tapped(NamedTuple):
    """What a tapped network returns in training.

    segmentation: logits (B, K, ...), or a list of them, finest first, with deep supervision.
    features: (B, C, ...) of one stage of the decoder.
    """

    segmentation: Logits
    features: Tensor


class TappedUNet(nn.Module):
    """A planned U-Net, in `unet`, with one more output in training; in evaluation it is that U-Net.

    The keys of `unet` stay those of the plan.

    Args:
        unet: PlainConvUNet or ResidualEncoderUNet.
        level: stage of the decoder whose features are given out, 0 is the one at full resolution.
        heads: (features of N pixels for each of K classes, (K, N, C)) -> what is made of them.

    Raises:
        ValueError: the decoder does not have that stage.
    """

    def __init__(self, unet: nn.Module, level: int = 0, heads: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone_of(unet)
        if not 0 <= level < len(self.backbone.widths) - 1:
            raise ValueError(f"level must be between 0 and {len(self.backbone.widths) - 2} for this plan, got {level}.")
        self.unet: Any = unet
        self.level = level
        self.heads: Any = heads

    def tap(self, images: Tensor) -> Tapped:
        """Logits and features of images (B, C, ...), in any mode."""
        features = self.backbone.decoded(self.unet, self.backbone.encode(self.unet, images))
        return Tapped(self.backbone.segment(self.unet, features), features[self.level])

    def forward(self, x: Tensor) -> Any:
        """Of images (B, C, ...) `tap` in training, else the U-Net's logits; of pixels (K, N, C) what the heads make."""
        if x.ndim == 3:
            return self.heads(x)
        return self.tap(x) if self.training else self.unet(x)
