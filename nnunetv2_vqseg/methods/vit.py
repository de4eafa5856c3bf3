"""Methods on a plan of `nnUNetPlannerViT`: a pretrained ViT with a DPT decoder, the network of UniMatch V2 and VQ-Seg.

They differ from those on the planned U-Net in that the ViT's weights are read when a training starts. Validating and
predicting never need them again, nor does continuing, but for VQ-Seg's where it trains with the alignment (PFA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nnunetv2_vqseg.methods.base import CommonConfig
from nnunetv2_vqseg.methods.mean_teacher import MeanTeacher, MeanTeacherConfig
from nnunetv2_vqseg.methods.pretrained_vit import EncoderConfig, PretrainedViT
from nnunetv2_vqseg.methods.supervised import Supervised
from nnunetv2_vqseg.methods.unimatch_v2 import UniMatchV2, UniMatchV2Config
from nnunetv2_vqseg.methods.vqseg import VQSeg, VQSegConfig


@dataclass(frozen=True)
class SupervisedViTConfig(EncoderConfig, CommonConfig):
    """Hyper-parameters of supervised training."""


class SupervisedViT(PretrainedViT[SupervisedViTConfig]):
    """The labelled images alone."""

    Config = SupervisedViTConfig
    is_static = True
    terms = Supervised.terms


@dataclass(frozen=True)
class MeanTeacherViTConfig(EncoderConfig, MeanTeacherConfig):
    """Hyper-parameters of the mean teacher."""


class MeanTeacherViT(PretrainedViT[MeanTeacherViTConfig], MeanTeacher):
    """The mean teacher."""

    Config = MeanTeacherViTConfig


@dataclass(frozen=True)
class UniMatchV2ViTConfig(EncoderConfig, UniMatchV2Config):
    """Hyper-parameters of UniMatch V2."""


class UniMatchV2ViT(PretrainedViT[UniMatchV2ViTConfig], UniMatchV2):
    """UniMatch V2 on its own network: one draw of channels for all four maps."""

    Config = UniMatchV2ViTConfig
    same_channels: ClassVar = True


@dataclass(frozen=True)
class VQSegViTConfig(EncoderConfig, VQSegConfig):
    """Hyper-parameters of VQ-Seg."""


class VQSegViT(PretrainedViT[VQSegViTConfig], VQSeg):
    """VQ-Seg on the paper's network: the last of the four maps is quantised."""

    Config = VQSegViTConfig

    @property
    def foundation_file(self) -> str | None:
        """The encoder's, where that is the foundation model and none is named for it."""
        config = self.config
        same = config.foundation_model == self.context.plan.encoder
        return config.encoder_checkpoint if same and config.foundation_checkpoint is None else super().foundation_file
