"""Methods on a plan of `nnUNetPlannerViT`: a pretrained ViT with a DPT decoder, the network of UniMatch V2 and VQ-Seg.

They differ from those on the planned U-Net in that the ViT's weights are read when a training starts. Validating and
predicting never need them again, nor does continuing, but for VQ-Seg's where it trains with the alignment (PFA).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from torch import nn

from nnunetv2_vqseg.core.config import Config
from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import CommonConfig, Method
from nnunetv2_vqseg.methods.mean_teacher import MeanTeacher, MeanTeacherConfig
from nnunetv2_vqseg.methods.supervised import Supervised
from nnunetv2_vqseg.methods.unimatch_v2 import UniMatchV2, UniMatchV2Config
from nnunetv2_vqseg.methods.vqseg import FoundationName, VQSeg, VQSegConfig
from nnunetv2_vqseg.modules.foundation import DEFAULT_MODEL, fingerprint, load_vit_weights


@dataclass(frozen=True)
class EncoderConfig(Config):
    """Where the ViT's weights come from.

    The foundation model is VQ-Seg's; the others have its keys because a plan that VQ-Seg trains is theirs, too.
    """

    encoder_weights: Annotated[
        Literal["pretrained", "random"], "weights of the plan's ViT when a training starts; random: fresh ones"
    ] = "pretrained"
    encoder_checkpoint: Annotated[
        str | None,
        "local file with the pretrained ones (.safetensors or .pth); null: `foundation_checkpoint`, where the "
        "foundation model is this ViT, else timm's cache or download",
    ] = None
    foundation_model: FoundationName = DEFAULT_MODEL
    foundation_checkpoint: Annotated[
        str | None,
        "local file with its weights (.safetensors or .pth); null: `encoder_checkpoint`, where it is the plan's ViT, "
        "else the hub's cache or download",
    ] = None

    def in_use(self, key: str) -> bool:
        """Not where the weights came from, once a training has begun."""
        start = {"encoder_weights", "encoder_checkpoint"}
        if not isinstance(self, VQSegConfig):
            start |= {"foundation_model", "foundation_checkpoint"}
        return key not in start and super().in_use(key)


E = TypeVar("E", bound=Any)


class PretrainedViT(Method[E]):
    """A method whose training network has a `ViTEncoder`, which starts from pretrained weights."""

    trains_vit: ClassVar = True
    encoder_status: str | None = None
    """Where the weights came from, as it was logged when the training started."""

    def training_network(self) -> nn.Module:
        """The method's, with the pretrained encoder unless a checkpoint follows.

        Raises:
            FoundationModelUnavailable: the weights cannot be had.
            ConfigError: the encoder cannot start from the plan's pixels.
        """
        network: Any = super().training_network()
        if not self.context.restores:
            self._load_encoder(network.encoder)
        return network

    def _load_encoder(self, encoder: Any) -> None:
        config, name = self.config, encoder.name
        if config.encoder_weights == "random":
            self.encoder_status = f"WARNING: the encoder {name} starts from RANDOM weights, as was asked for."
        else:
            file = config.encoder_checkpoint
            if file is None and config.foundation_model == name:
                file = config.foundation_checkpoint
            plan, key = self.context.plan, "encoder_checkpoint"
            try:
                load_vit_weights(encoder.vit, name, file, plan.channels, key, plan.unit_range)
            except ValueError as error:
                raise ConfigError(f"{error}; take a DINOv2 model, or plan with z-scored images.") from error
            if not (self.context.z_scored or plan.unit_range):
                self.context.log(
                    f"WARNING: {name} was trained with pixels whose standard deviation is about 1, and the plan's "
                    f"normalisation leaves others; plan with z-scored images (channel_names in dataset.json)."
                )
            source = f"the file {file}" if file is not None else "timm's cache or download"
            known = fingerprint(encoder.vit)
            self.encoder_status = f"The encoder {name} starts from weights of {source} (fingerprint {known})."
        self.context.log(self.encoder_status)

    def state(self) -> dict[str, Any]:
        """The method's, and where the encoder's weights came from."""
        return super().state() | {"encoder": self.encoder_status}

    def load_state(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore it."""
        super().load_state(state, strict)
        self.encoder_status = state.get("encoder")


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
