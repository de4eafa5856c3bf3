"""How a method takes a segmentation network apart: encoder, features in between, decoder.

Adapters have no parameters, so that the keys of a `state_dict` stay those of the network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Strides = Sequence[Sequence[int]]
"""One entry a stage with a factor per spatial axis."""
Logits = Tensor | list[Tensor]
"""(B, K, ...), or a list of them, finest first, with deep supervision."""


class NetworkPlan(NamedTuple):
    """What a network is planned for.

    patch_size: pixels per spatial axis.
    strides: one entry a stage with a factor per axis, the first stage's first.
    channels: of the images.
    build: makes the planned U-Net, with fresh weights.
    heads: channels of the logits.
    deep_supervision: the planned U-Net gives logits at several resolutions.
    encoder: name of the planned ViT; None for a U-Net.
    unit_range: images have values from 0 to 1, and not a standard deviation of about 1.
    """

    patch_size: Sequence[int]
    strides: Strides
    channels: int
    build: Callable[[], nn.Module]
    heads: int = 2
    deep_supervision: bool = True
    encoder: str | None = None
    unit_range: bool = False

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.patch_size)


class Backbone(Protocol):
    """Takes a network with `encoder` and `decoder` apart.

    widths: channels of each stage's features, the shallowest first.
    strides: of each stage, per axis.
    replaceable: stages whose features may be replaced by others, from which those below follow.
    """

    widths: Sequence[int]
    strides: Strides
    replaceable: Sequence[int]

    def encode(self, net: Any, x: Tensor, stage: int | None = None) -> list[Tensor]:
        """Features of the stages up to `stage` (None: all) of images (B, C, ...)."""

    def resume(self, net: Any, maps: list[Tensor], stage: int, last: int | None = None) -> list[Tensor]:
        """Features of the stages up to `last` (None: all), those below `stage` computed from `maps[stage]`."""

    def decode(self, net: Any, maps: list[Tensor]) -> Logits:
        """Logits from the features of all stages."""

    def decoded(self, net: Any, maps: list[Tensor]) -> list[Tensor]:
        """Features of the decoder's stages, finest first, each of the width and size of its encoder stage."""

    def segment(self, net: Any, features: list[Tensor]) -> Logits:
        """Logits from the features of the decoder's stages: `decode` in two parts."""


class PlannedBackbone:
    """nnU-Net's PlainConvUNet and ResidualEncoderUNet, or any module that holds one's encoder and decoder."""

    def __init__(self, net: Any) -> None:
        self.widths: Sequence[int] = net.encoder.output_channels
        self.strides: Strides = net.encoder.strides
        self.replaceable: Sequence[int] = range(len(self.widths))

    def encode(self, net: Any, x: Tensor, stage: int | None = None) -> list[Tensor]:
        """Features of the stages up to `stage` (None: all) of images (B, C, ...)."""
        if getattr(net.encoder, "stem", None) is not None:
            x = net.encoder.stem(x)
        return self._stages(net, [], x, 0, None if stage is None else stage + 1)

    def resume(self, net: Any, maps: list[Tensor], stage: int, last: int | None = None) -> list[Tensor]:
        """Features of the stages up to `last` (None: all), those below `stage` computed from `maps[stage]`."""
        return self._stages(net, maps[: stage + 1], maps[stage], stage + 1, None if last is None else last + 1)

    def decode(self, net: Any, maps: list[Tensor]) -> Logits:
        """Logits from the features of all stages."""
        return net.decoder(maps)

    def decoded(self, net: Any, maps: list[Tensor]) -> list[Tensor]:
        """Features of the decoder's stages, finest first, each of the width and size of its encoder stage."""
        x, features = maps[-1], []
        for number, (upsample, stage) in enumerate(zip(net.decoder.transpconvs, net.decoder.stages, strict=True)):
            x = stage(torch.cat((upsample(x), maps[-2 - number]), dim=1))
            features.append(x)
        return features[::-1]

    def segment(self, net: Any, features: list[Tensor]) -> Logits:
        """Logits from the features of the decoder's stages: `decode` in two parts."""
        if not net.decoder.deep_supervision:
            return net.decoder.seg_layers[-1](features[0])
        return [layer(x) for layer, x in zip(reversed(net.decoder.seg_layers), features, strict=True)]

    @staticmethod
    def _stages(net: Any, maps: list[Tensor], x: Tensor, first: int, last: int | None) -> list[Tensor]:
        for module in net.encoder.stages[first:last]:
            x = module(x)
            maps.append(x)
        return maps


def backbone_of(net: nn.Module) -> Backbone:
    """The adapter for a network.

    Raises:
        NotImplementedError: it has no encoder with stages and decoder.
    """
    encoder: Any = getattr(net, "encoder", None)
    decoder = getattr(net, "decoder", None)
    if hasattr(encoder, "backbone"):
        return encoder.backbone(net)
    if encoder is None or decoder is None or not hasattr(encoder, "stages"):
        raise NotImplementedError(
            f"VQ-Seg knows PlainConvUNet and ResidualEncoderUNet plans, and nnUNetPlannerViT's; this plan asks for "
            f"{type(net).__name__}; plan with one of those."
        )
    return PlannedBackbone(net)
