"""MC-Net+: mutual consistency (Wu et al., Medical Image Analysis 2022, https://arxiv.org/abs/2109.09960).

Decoders on one encoder that upsample differently agree with each other's sharpened probabilities, on labelled and on
unlabelled images. Original code, from which the constants are: https://github.com/ycwu1997/MC-Net, train_mcnet_2d.py.
With `nearest_decoder` false it is MC-Net (MICCAI 2021), with two decoders.

What differs, beside what docs/methods/README.md names for all: the decoder with transposed convolutions, the planned
one, is saved and predicts instead of the one with linear interpolation. The Dice of `supervised_loss` "literature" is
the original's less a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.methods.base import Batch, Method, Metrics, Terms, UnlabeledConfig, finest, split
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.modules.losses.mutual_consistency import mutual_consistency
from nnunetv2_vqseg.modules.losses.pseudo_label import pseudo_labels
from nnunetv2_vqseg.networks.backbone import Logits
from nnunetv2_vqseg.networks.decoders import Mode, SharedEncoder, interpolating_decoder

NAMES = ("transposed", "linear", "nearest")


@dataclass(frozen=True)
class MCNetConfig(UnlabeledConfig):
    """Hyper-parameters of MC-Net+."""

    lambda_u: Annotated[float, Range(0, 1000), "weight of the consistency, a sum over ordered pairs of decoders"] = 0.1
    ramp_up: Annotated[float, Range(0, 1), "share of the training over which it rises; 0: at once"] = 1.0
    sharpening_temperature: Annotated[float, Range(0.01, 1), "T of the sharpened probabilities; 1: as they are"] = 0.1
    detach_sharpened: Annotated[bool, "no gradient reaches the decoder whose probabilities are sharpened"] = False
    nearest_decoder: Annotated[bool, "a third decoder, with nearest neighbour upsampling; false: MC-Net's two"] = True

    same_to_continue: ClassVar[frozenset[str]] = UnlabeledConfig.same_to_continue | {"nearest_decoder"}


class MCNet(Method[MCNetConfig]):
    """Decoders agree with each other's sharpened probabilities; the planned one is saved and predicts."""

    Config = MCNetConfig
    literature = (0.0, 0.5)  # the original has no factor 2, which is half of this loss, and a constant
    is_static = True
    panels: ClassVar = {"consistency": ("ramp", "agreement")}

    def training_network(self) -> nn.Module:
        """The planned U-Net with one or two further decoders of fresh weights."""

        def build() -> nn.Module:
            return self.network(self.context.plan, self.config)

        unet = build()
        encoder = unet.encoder
        assert isinstance(encoder, nn.Module)
        modes: list[Mode] = ["linear", "nearest"] if self.config.nearest_decoder else ["linear"]
        return SharedEncoder(unet, [interpolating_decoder(build(), encoder, mode) for mode in modes])

    @property
    def networks(self) -> SharedEncoder:
        """All decoders, without DDP's and torch.compile's wrappers."""
        networks = unwrap(self.student)
        assert isinstance(networks, SharedEncoder)
        return networks

    def predictor(self) -> nn.Module:
        """The planned U-Net."""
        return self.networks.unet

    def pretrained(self) -> list[nn.Module]:
        """The planned U-Net: the other decoders start from fresh weights."""
        return [self.networks.unet]

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """Every decoder's supervised loss, and the consistency on all images."""
        assert batch.unlabeled is not None
        sizes = (len(batch.labeled), len(batch.unlabeled))
        decoded = self.student(torch.cat((batch.labeled, batch.unlabeled)))
        supervised = [self.supervised(split(logits, *sizes)[0], batch.target) for logits in decoded]
        consistency = mutual_consistency(
            [self.probabilities(finest(logits)) for logits in decoded],
            self.config.sharpening_temperature,
            self.config.detach_sharpened,
        )
        names = ("supervised", *(f"supervised_{name}" for name in NAMES[1 : len(decoded)]))
        terms: Terms = {name: (1.0, value) for name, value in zip(names, supervised, strict=True)}
        terms["consistency"] = (self.unlabeled_weight(progress), consistency)
        labels = torch.stack([pseudo_labels(finest(logits), self.context.regions)[0] for logits in decoded])
        return terms, {"agreement": (labels == labels[0]).all(0).float().mean()}

    @torch.no_grad()
    def preview(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Logits]]:
        """Every decoder's segmentation."""
        return {}, dict(zip(NAMES, self.networks.all_logits(images), strict=False))
