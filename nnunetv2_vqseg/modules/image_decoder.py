"""The image decoder D_i: from the quantised tokens alone back to the image (Section 3.4, Eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

MAX_WIDENING = 8


class ImageDecoder(nn.Module):
    """D_i of Eq. 7, x^ = D_i(q(z)), without skip connections: with one to full resolution it would be a copy.

    Reconstruction is an auxiliary task, so the decoder is far narrower than a segmentation decoder: one convolution per
    resolution, `base_features / 2` wide at full resolution, doubling with every step towards the tokens up to
    `8 * base_features`.

    Args:
        in_channels: C of the quantised tokens.
        out_channels: channels of the image.
        strides: one (height, width) factor per upsampling step from the token grid to the image, deepest first.
        base_features: width one step below full resolution, an even number.

    Raises:
        ValueError: a stride below 1, or an odd or non-positive `base_features`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, strides: Sequence[tuple[int, int]], base_features: int = 32
    ):
        super().__init__()
        if any(len(stride) != 2 or min(stride) < 1 for stride in strides):
            raise ValueError(f"every stride must be a pair of integers >= 1, got {list(strides)}")
        if base_features < 2 or base_features % 2:
            raise ValueError(f"base_features must be a positive even number, got {base_features}")
        widths = [
            min(base_features * 2**steps_left // 2, base_features * MAX_WIDENING)
            for steps_left in range(len(strides), -1, -1)
        ]
        self.scale = (prod(stride[0] for stride in strides), prod(stride[1] for stride in strides))
        blocks: list[nn.Module] = [_conv_block(in_channels, widths[0])]
        for stride, wide, narrow in zip(strides, widths, widths[1:], strict=False):
            size = (int(stride[0]), int(stride[1]))
            # The bias is left out where instance normalisation would subtract it again.
            blocks.append(nn.ConvTranspose2d(wide, narrow, kernel_size=size, stride=size, bias=False))
            blocks.append(_conv_block(narrow, narrow))
        blocks.append(nn.Conv2d(widths[-1], out_channels, kernel_size=1))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, C, h, w) quantised tokens -> (B, out_channels, h * scale[0], w * scale[1]) image, unbounded values."""
        return self.blocks(quantized)


def _conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.InstanceNorm2d(out_channels, eps=1e-5, affine=True),
        nn.LeakyReLU(inplace=True),
    )
