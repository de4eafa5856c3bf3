"""A ViT with a DPT decoder, the network of UniMatch V2 and VQ-Seg, as a network that nnU-Net builds from a plan.

The maps of four blocks are what the decoder reads (https://github.com/LiheYoung/UniMatch-V2, model/semseg/dpt.py):
blocks 2, 5, 8 and 11 of 12, each after the ViT's last normalisation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.modules.foundation import create_vit
from nnunetv2_vqseg.modules.nd import require_2d
from nnunetv2_vqseg.networks.backbone import Logits, Strides
from nnunetv2_vqseg.networks.dpt import DPTDecoder

NO_STAGES = "the decoder DPT has no stages of the width and size of the encoder's"


class ViTBackbone:
    """Takes a ViT with DPT apart: its four maps are the stages.

    They have one grid and are read by the decoder alone, so that only the last of them can be replaced in the sense of
    the protocol, where deeper stages follow from the replaced one.
    """

    def __init__(self, net: Any) -> None:
        self.widths: Sequence[int] = net.encoder.output_channels
        self.strides: Strides = net.encoder.strides
        self.replaceable: Sequence[int] = (len(self.widths) - 1,)

    def encode(self, net: Any, x: Tensor, stage: int | None = None) -> list[Tensor]:
        """The four maps of images (B, C, H, W); `stage` is None or the last.

        Raises:
            ValueError: another stage.
        """
        self._require_last(stage)
        return net.encoder(x)

    def resume(self, net: Any, maps: list[Tensor], stage: int, last: int | None = None) -> list[Tensor]:
        """The maps themselves: there is none below the last.

        Raises:
            ValueError: another stage.
        """
        self._require_last(stage)
        return maps

    def decode(self, net: Any, maps: list[Tensor]) -> Logits:
        """Logits from the four maps."""
        return net.decoder(maps)

    def decoded(self, net: Any, maps: list[Tensor]) -> list[Tensor]:
        """Not for DPT, whose levels are no mirror image of the encoder's stages.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(NO_STAGES)

    def segment(self, net: Any, features: list[Tensor]) -> Logits:
        """As `decoded`.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(NO_STAGES)

    def _require_last(self, stage: int | None) -> None:
        if stage is not None and stage not in self.replaceable:
            raise ValueError(f"only stage {self.replaceable[0]} of a ViT can be replaced, got {stage}")


class ViTEncoder(nn.Module):
    """The maps of some blocks of a timm ViT, without drop path.

    Position embeddings have the size of the pretrained model and are interpolated to the images' grid.

    Args:
        name: of timm.
        channels: of the images.
        blocks: whose output is a map, counted from 0, increasing.

    Raises:
        ValueError: blocks that the model does not have.
    """

    backbone: ClassVar[type[ViTBackbone]] = ViTBackbone

    def __init__(self, name: str, channels: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.vit: Any = create_vit(name, channels)
        if list(blocks) != sorted({*blocks} & set(range(len(self.vit.blocks)))):
            raise ValueError(f"{name} has the blocks 0 to {len(self.vit.blocks) - 1}, got {list(blocks)}")
        self.name, self.blocks = name, list(blocks)
        self.patch: tuple[int, int] = tuple(self.vit.patch_embed.patch_size)
        self.output_channels = [self.vit.embed_dim] * len(blocks)
        self.strides = [list(self.patch), *[[1, 1]] * (len(blocks) - 1)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> one map (B, embed_dim, H / patch, W / patch) a block.

        Raises:
            ValueError: volumes, or sides that are no multiples of the patch.
        """
        require_2d(x, "a ViT")
        if any(side % step for side, step in zip(x.shape[2:], self.patch, strict=True)):
            raise ValueError(f"the ViT's tokens have {' x '.join(map(str, self.patch))} pixels, which do not fit")
        return self.vit.forward_intermediates(
            x, indices=self.blocks, norm=True, stop_early=True, intermediates_only=True
        )


class ViTSegmenter(nn.Module):
    """A ViT and a DPT decoder; a plan's architecture names this class and its arguments.

    Args:
        input_channels: of the images.
        num_classes: channels of the logits.
        encoder: timm's name of the ViT; where a training gets its weights from is no part of the plan.
        blocks: four blocks of it whose maps are decoded.
        features: channels of the decoder.
        widths: of the four levels of the decoder before they get `features` channels, the finest first.
        strides: of the four maps, for nnU-Net, which looks for them in every plan; they follow from the ViT.
        deep_supervision: logits in a list of one, for trainers that want a list.

    Raises:
        ValueError: blocks or strides that the ViT does not have.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        encoder: str,
        blocks: Sequence[int],
        features: int,
        widths: Sequence[int],
        strides: Strides | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if not len(blocks) == len(widths) == 4:
            raise ValueError(f"a DPT decoder reads four maps, got {len(blocks)} blocks and {len(widths)} widths")
        self.encoder = ViTEncoder(encoder, input_channels, blocks)
        if strides is not None and [list(stride) for stride in strides] != self.encoder.strides:
            raise ValueError(f"{encoder} has the strides {self.encoder.strides}, got {strides}")
        width, patch = self.encoder.output_channels[0], self.encoder.patch
        self.decoder = DPTDecoder(width, widths, features, num_classes, patch, deep_supervision)

    def forward(self, x: Tensor) -> Logits:
        """Logits (B, num_classes, H, W) of images (B, C, H, W) with sides that are multiples of the patch."""
        return self.decoder(self.encoder(x))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Values that the layers give out for one image, by which nnU-Net's planner estimates memory."""
        sizes: list[int] = []
        network = copy.deepcopy(self).to("meta")
        for module in network.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                module.register_forward_hook(lambda _, __, output: sizes.append(output.numel()))
        with torch.no_grad():
            network(torch.empty(1, self.encoder.vit.patch_embed.proj.in_channels, *input_size, device="meta"))
        return sum(sizes)
