"""One encoder with several decoders that differ in how they upsample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from nnunetv2_vqseg.modules.nd import CONV, LINEAR
from nnunetv2_vqseg.networks.backbone import Logits, backbone_of

Mode = Literal["linear", "nearest"]


class Interpolation(nn.Sequential):
    """1 x 1 convolution, then interpolation: what takes the place of a transposed convolution.

    Args:
        inputs, outputs: channels.
        stride: factor per axis.
        mode: bi- or trilinear with aligned corners, or nearest neighbour.
    """

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int], mode: Mode) -> None:
        ndim = len(stride)
        convolution = CONV[ndim](inputs, outputs, kernel_size=1)
        nn.init.kaiming_normal_(convolution.weight, a=1e-2)  # as nnU-Net's other convolutions
        nn.init.zeros_(convolution.bias)
        linear = {"mode": LINEAR[ndim], "align_corners": True}
        upsample = nn.Upsample(scale_factor=tuple(map(float, stride)), **linear if mode == "linear" else {"mode": mode})
        super().__init__(convolution, upsample)


def interpolating_decoder(donor: nn.Module, encoder: nn.Module, mode: Mode) -> Any:
    """The decoder of a freshly built planned U-Net, on another one's encoder, with interpolation.

    Args:
        donor: PlainConvUNet or ResidualEncoderUNet with fresh weights; its encoder is left out.
        encoder: what the decoder's features come from; shared, not copied.
        mode: as for `Interpolation`.
    """
    decoder: Any = donor.decoder
    decoder.encoder = encoder
    decoder.transpconvs = nn.ModuleList(
        Interpolation(layer.in_channels, layer.out_channels, layer.stride, mode) for layer in decoder.transpconvs
    )
    return decoder


class SharedEncoder(nn.Module):
    """A planned U-Net with further decoders on its encoder; in evaluation the U-Net alone.

    Args:
        unet: the one that is validated, saved and predicts.
        others: decoders of the same features.
    """

    def __init__(self, unet: nn.Module, others: Sequence[nn.Module]) -> None:
        super().__init__()
        self.unet = unet
        self.others = nn.ModuleList(others)
        self.backbone = backbone_of(unet)

    def forward(self, x: Tensor) -> Logits | list[Logits]:
        """Logits of images (B, C, ...): one entry a decoder in training, else the U-Net's."""
        return self.all_logits(x) if self.training else self.unet(x)

    def all_logits(self, x: Tensor) -> list[Logits]:
        """Logits of every decoder, the U-Net's first."""
        maps = self.backbone.encode(self.unet, x)
        return [self.backbone.decode(self.unet, maps), *(decoder(maps) for decoder in self.others)]
