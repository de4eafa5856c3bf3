"""What methods share that read features of the decoder, class by class."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import Context, Method
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.networks.tap import TappedUNet

T = TypeVar("T", bound=Any)


class TappedMethod(Method[T]):
    """A method whose training network is a `TappedUNet`; the U-Net in it is saved and predicts.

    Raises:
        ConfigError: labels are regions, of which a pixel may have several.
    """

    def __init__(self, config: T, context: Context) -> None:
        super().__init__(config, context)
        if context.regions:
            raise ConfigError(
                f"{type(self).__name__} compares pixels class by class, and of overlapping regions a pixel may have "
                f"several; use nnUNetTrainerUniMatchV2 for this dataset."
            )

    @property
    def net(self) -> TappedUNet:
        """The student, without DDP's and torch.compile's wrappers."""
        network = unwrap(self.student)
        assert isinstance(network, TappedUNet)
        return network

    @property
    def main(self) -> nn.Module:
        """The U-Net without heads."""
        return self.net.unet
