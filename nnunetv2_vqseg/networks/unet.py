"""The U-Net of the semi-supervised literature (SSL4MIS), for any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.modules.nd import BATCH_NORM, CONV, LINEAR, MAX_POOL
from nnunetv2_vqseg.networks.backbone import Logits


class LiteratureUNet(nn.Module):
    """Two convolutions with batch normalisation a stage, element dropout in the encoder, interpolation in the decoder.

    Args:
        channels: of the images.
        classes: channels of the logits.
        widths: features of each stage, shallowest first; every further stage has half the size.
        rates: dropout between the two convolutions of each stage of the encoder.
        deep_supervision: logits are a list of one, as nnU-Net's loss with deep supervision wants it.
        ndim: 2 or 3 spatial dimensions.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: Sequence[int],
        rates: Sequence[float],
        deep_supervision: bool = False,
        ndim: int = 2,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, widths, rates, ndim)
        self.decoder = Decoder(classes, widths, deep_supervision, ndim)

    def forward(self, x: Tensor) -> Logits:
        """Logits (B, classes, ...) of images (B, channels, ...) with sides that are multiples of 2^(stages - 1)."""
        return self.decoder(self.encoder(x))


class Encoder(nn.Module):
    """Features of all stages, shallowest first."""

    def __init__(self, channels: int, widths: Sequence[int], rates: Sequence[float], ndim: int) -> None:
        super().__init__()
        self.output_channels = list(widths)
        self.strides = [[1 if stage == 0 else 2] * ndim for stage in range(len(widths))]
        sizes = zip((channels, *widths[:-1]), widths, rates, strict=True)
        stages = [_convolutions(ndim, *size) for size in sizes]
        self.stages = nn.ModuleList(
            [stages[0], *(nn.Sequential(MAX_POOL[ndim](2), *convolutions) for convolutions in stages[1:])]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of images (B, C, ...)."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Logits from the features of all stages.

    `deep_supervision` is what nnU-Net's trainer switches: logits in a list of one, or as they are.
    """

    def __init__(self, classes: int, widths: Sequence[int], deep_supervision: bool, ndim: int) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.reductions = nn.ModuleList(CONV[ndim](wide, narrow, kernel_size=1) for wide, narrow in pairs)
        self.upsample = nn.Upsample(scale_factor=2, mode=LINEAR[ndim], align_corners=True)
        self.stages = nn.ModuleList(_convolutions(ndim, 2 * narrow, narrow, 0.0) for _, narrow in pairs)
        self.seg_layers = nn.ModuleList([CONV[ndim](widths[0], classes, kernel_size=3, padding=1)])

    def forward(self, maps: list[Tensor]) -> Logits:
        """Logits (B, classes, ...) of features, shallowest first."""
        x = maps[-1]
        for skip, reduce, stage in zip(maps[-2::-1], self.reductions, self.stages, strict=True):
            x = stage(torch.cat((skip, self.upsample(reduce(x))), 1))
        logits = self.seg_layers[0](x)
        return [logits] if self.deep_supervision else logits


def _convolutions(ndim: int, inputs: int, outputs: int, rate: float) -> nn.Sequential:
    def convolution(channels: int) -> list[nn.Module]:
        return [
            CONV[ndim](channels, outputs, kernel_size=3, padding=1),
            BATCH_NORM[ndim](outputs),
            nn.LeakyReLU(),
        ]

    return nn.Sequential(*convolution(inputs), nn.Dropout(rate), *convolution(outputs))
