"""The row "U-Net" in the tables of semi-supervised papers: supervised training of a small U-Net.

Code whose form and constants this follows: https://github.com/HiLab-git/SSL4MIS, train_fully_supervised_2D.py and
networks/unet.py. Five stages of 16 to 256 features, batch normalisation, element dropout in the encoder, interpolation
in the decoder (the code's parameter `bilinear: False` does not arrive there), half cross entropy and half Dice.

What differs: nnU-Net's preprocessing, patches, augmentation, optimiser and sliding window instead of images that are
scaled to 256 x 256; volumes as well. On several GPUs batches are normalised over all of them, on CPUs each process's on
its own, with the mean of their running statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnunetv2_vqseg.core.config import Config, Range
from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import CommonConfig, Context, Loss, Method
from nnunetv2_vqseg.methods.supervised import Supervised
from nnunetv2_vqseg.modules.collectives import mean_over_processes
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.networks.backbone import NetworkPlan
from nnunetv2_vqseg.networks.unet import LiteratureUNet


@dataclass(frozen=True)
class UNetArchitecture(Config):
    """The network."""

    unet_features: Annotated[
        tuple[int, int, int, int, int], Range(1, 4096), "features of the five stages, shallowest first"
    ] = (16, 32, 64, 128, 256)
    unet_dropout: Annotated[
        tuple[float, float, float, float, float], Range(0, 0.99), "dropout between the two convolutions of each stage"
    ] = (0.05, 0.1, 0.2, 0.3, 0.5)

    architecture: ClassVar[frozenset[str]] = frozenset({"unet_features"})


@dataclass(frozen=True)
class UNetConfig(UNetArchitecture, CommonConfig):
    """Hyper-parameters of the literature's U-Net."""

    supervised_loss: Annotated[
        Literal["nnunet", "literature", "ce"],
        "nnU-Net's, half cross entropy and half Dice with background and squares, or cross entropy alone",
    ] = "literature"


class UNet(Method[UNetConfig]):
    """The literature's U-Net on labelled images alone."""

    Architecture = UNetArchitecture
    Config = UNetConfig
    literature = (0.5, 0.5)
    has_one_output = True
    terms = Supervised.terms

    def __init__(self, config: UNetConfig, context: Context) -> None:
        super().__init__(config, context)
        patch, factor = context.plan.patch_size, 2 ** (len(config.unet_features) - 1)
        if any(side % factor for side in patch):
            raise ConfigError(
                f"nnUNetTrainerUNet halves a patch four times and needs sides that are multiples of {factor}, the "
                f"plan's patch_size is {' x '.join(map(str, patch))}; change it there, or train nnU-Net's own U-Net "
                f"with nnUNetTrainerSupervised."
            )

    @classmethod
    def network(cls, plan: NetworkPlan, architecture: Any) -> nn.Module:
        """Of the plan only channels and dimensions count."""
        return LiteratureUNet(
            plan.channels,
            plan.heads,
            architecture.unet_features,
            architecture.unet_dropout,
            plan.deep_supervision,
            plan.ndim,
        )

    def begin(self, student: nn.Module, supervised: Loss) -> None:
        """Remember the running statistics."""
        super().begin(student, supervised)
        self._sound = torch.cat(self._statistics())

    def before_step(self, progress: float) -> None:
        """Forget the running statistics of a step that was skipped because it was not finite."""
        current = torch.cat(self._statistics())
        self._sound = torch.where(current.isfinite(), current, self._sound)
        self._set_statistics(self._sound)

    def after_step(self) -> dict[str, float]:
        """Every process has the same running statistics."""
        if self.context.ddp:
            self._set_statistics(mean_over_processes(torch.cat(self._statistics())))
        return {}

    def on_epoch_done(self) -> dict[str, float]:
        """Before the validation as before a step."""
        self.before_step(1.0)
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing of its own, but the running statistics that are saved are as before a step."""
        self.before_step(1.0)
        return super().state()

    def _statistics(self) -> list[Tensor]:
        norms = [module for module in unwrap(self.student).modules() if isinstance(module, _BatchNorm)]
        found: list[Any] = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
        return found

    @torch.no_grad()
    def _set_statistics(self, values: Tensor) -> None:
        buffers = self._statistics()
        for buffer, value in zip(buffers, values.split([len(buffer) for buffer in buffers]), strict=True):
            buffer.copy_(value)
