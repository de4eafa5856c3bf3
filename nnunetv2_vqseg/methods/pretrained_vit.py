"""What methods on a pretrained ViT share: where its weights come from, and how a training starts from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from torch import nn

from nnunetv2_vqseg.core.config import Config
from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import Method
from nnunetv2_vqseg.methods.vqseg import FoundationName, VQSegConfig
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
