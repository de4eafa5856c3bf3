"""A planned U-Net that gives out features of its decoder in training."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from nnunetv2_vqseg.modules.nd import CONV
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


class RepresentedUNet(TappedUNet):
    """A planned U-Net with a vector for each place of one of its decoder's stages.

    A teacher's vectors are a linear projection of the features; a student's pass two more linear layers, which learn to
    predict the teacher's. Pixel by pixel, without activations.

    Args:
        unet, level: as of `TappedUNet`.
        dim: of the vectors.
        ndim: number of spatial axes.
    """

    def __init__(self, unet: nn.Module, level: int, dim: int, ndim: int) -> None:
        super().__init__(unet, level)
        conv = CONV[ndim]
        self.projection: nn.Module = conv(self.backbone.widths[level], dim, 1)
        self.prediction = nn.Sequential(conv(dim, dim, 1), conv(dim, dim, 1))

    def represent(self, images: Tensor) -> Tapped:
        """A teacher's logits and vectors (B, dim, ...) of images (B, C, ...), in any mode."""
        logits, features = self.tap(images)
        return Tapped(logits, self.projection(features))

    def forward(self, x: Tensor) -> Any:
        """Of images (B, C, ...) a student's logits and vectors in training, else the U-Net's logits."""
        if not self.training:
            return self.unet(x)
        logits, vectors = self.represent(x)
        return Tapped(logits, self.prediction(vectors))
