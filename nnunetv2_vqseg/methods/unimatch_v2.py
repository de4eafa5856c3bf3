"""UniMatch V2 (Yang et al., TPAMI 2025, https://arxiv.org/abs/2410.10777).

An EMA teacher labels a weak view; two strong views learn the labels where it is sure, and lose complementary channels
of their features. Original code, from which the constants are:
https://github.com/LiheYoung/UniMatch-V2, unimatch_v2.py.

What differs, beside what docs/methods/README.md names for all: nnU-Net's U-Net and optimiser instead of DINOv2 with DPT
and AdamW. The whole sum counts, not half of it. Channels are dropped at the encoder's stages from `first_dropped_stage`
on, by default all, with a mask for each because their widths differ; the original drops four maps of one width with one
mask (as nnUNetTrainerUniMatchV2ViT does, whose network is the original's). Strong views have this package's jitter for
z-scored images instead of color jitter, grey and blur, and CutMix partners in a random ring instead of the batch in
reverse. The teacher's buffers are copied and not averaged: the planned U-Net has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import Batch, Metrics, Terms, finest, split
from nnunetv2_vqseg.methods.teacher import EMAWarmup, SavedNetwork, TeacherConfig, TeacherMethod
from nnunetv2_vqseg.modules.complementary_dropout import complementary_dropout
from nnunetv2_vqseg.networks.backbone import backbone_of
from nnunetv2_vqseg.networks.planned import ChangedUNet


@dataclass(frozen=True)
class UniMatchV2Config(TeacherConfig):
    """Hyper-parameters of UniMatch V2."""

    lambda_u: Annotated[float, Range(0, 1000), "weight of the unlabelled loss, the mean of both views'"] = 1.0
    ramp_up: Annotated[float, Range(0, 1), "share of the training over which it rises; 0: at once"] = 0.0
    pseudo_loss: Annotated[Literal["ce_dice", "ce"], "loss against the teacher's labels"] = "ce"
    ema_warmup: EMAWarmup = 1.0
    saved_network: SavedNetwork = "student"
    kept_images: Annotated[float, Range(0, 1), "share of the images whose features lose no channel"] = 0.5
    first_dropped_stage: Annotated[
        int, Range(0, 64), "shallowest stage of the encoder whose features lose channels; 0: all lose them"
    ] = 0


class DroppedPairs(nn.Module):
    """Complementary dropout of two views of each image, from one stage on.

    Args:
        kept_images: as of `complementary_dropout`.
        stage: the shallowest one.
        same_channels: stages of one width lose the same channels.
    """

    def __init__(self, kept_images: float, stage: int, same_channels: bool = False) -> None:
        super().__init__()
        self.kept_images = kept_images
        self.stage = stage
        self.same_channels = same_channels

    def forward(self, maps: list[Tensor], first: int) -> list[Tensor]:
        shallow, deep = maps[: self.stage], maps[self.stage :]
        dropped = complementary_dropout([features[first:] for features in deep], self.kept_images, self.same_channels)
        pairs = zip(deep, dropped, strict=True)
        return [*shallow, *(torch.cat((features[:first], views)) for features, views in pairs)]


class UniMatchV2(TeacherMethod[UniMatchV2Config]):
    """Two strong views with complementary features learn the teacher's labels."""

    Config = UniMatchV2Config
    literature = (1.0, 0.0)
    same_channels: ClassVar[bool] = False
    """Whether all stages, of one width, lose the same channels."""
    is_static = True

    def training_network(self) -> nn.Module:
        """The planned U-Net with complementary dropout between encoder and decoder."""
        unet, stage = self.network(self.context.plan, self.config), self.config.first_dropped_stage
        last = len(backbone_of(unet).widths) - 1
        if stage > last:
            raise ConfigError(f"vqseg.first_dropped_stage = {stage} is not valid; this plan has stages 0 to {last}.")
        return ChangedUNet(unet, DroppedPairs(self.config.kept_images, stage, self.same_channels))

    @property
    def unlabeled_views(self) -> int:
        """Both strong views."""
        return 2

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """The labels' loss, and the teacher's on two strong views."""
        assert batch.unlabeled is not None
        labels, confidence, metrics = self.teach(batch.unlabeled)
        views = [self.strong(batch.unlabeled, labels, confidence) for _ in range(2)]
        images = torch.cat((batch.labeled, *(view.images for view in views)))
        sizes = (len(batch.labeled), len(labels), len(labels))
        labeled, *strong = split(self.student(images, sizes[0]), *sizes)
        first, second = (
            self.pseudo(finest(logits), view.labels, view.confidence)
            for logits, view in zip(strong, views, strict=True)
        )
        weight = self.unlabeled_weight(progress) / 2
        return {
            "supervised": (1.0, self.supervised(labeled, batch.target)),
            "pseudo_first": (weight, first),
            "pseudo_second": (weight, second),
        }, metrics
