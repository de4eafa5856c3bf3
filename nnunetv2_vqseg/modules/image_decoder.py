"""The image decoder D_i: from the quantised tokens alone back to the image (Section 3.4, Eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nnunetv2_vqseg.modules.nd import CONV, CONV_TRANSPOSE, INSTANCE_NORM

MAX_WIDENING = 8


class ImageDecoder(nn.Module):
    """D_i of Eq. 7, x^ = D_i(q(z)), without skip connections: with one to full resolution it would be a copy.

    Reconstruction is an auxiliary task, so the decoder is far narrower than a segmentation decoder: one convolution per
    resolution, `base_features / 2` wide at full resolution, doubling with every step towards the tokens up to
    `8 * base_features`.

    Args:
        in_channels: C of the quantised tokens.
        out_channels: channels of the image.
        strides: one (height, width) or (depth, height, width) of factors per upsampling step from the token grid to
            the image, deepest first.
        base_features: width one step below full resolution, an even number.
        ndim: 2 or 3 spatial dimensions; None: as many as the strides have, 2 where there are none.

    Raises:
        ValueError: a stride below 1 or of another length, or an odd or non-positive `base_features`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        strides: Sequence[Sequence[int]],
        base_features: int = 32,
        ndim: int | None = None,
    ):
        super().__init__()
        ndim = ndim or (len(strides[0]) if strides else 2)
        if ndim not in CONV or any(len(stride) != ndim or min(stride) < 1 for stride in strides):
            raise ValueError(f"every stride must be a pair or triple of integers >= 1, got {list(strides)}")
        if base_features < 2 or base_features % 2:
            raise ValueError(f"base_features must be a positive even number, got {base_features}")
        widths = [
            min(base_features * 2**steps_left // 2, base_features * MAX_WIDENING)
            for steps_left in range(len(strides), -1, -1)
        ]
        blocks: list[nn.Module] = [_conv_block(ndim, in_channels, widths[0])]
        for stride, wide, narrow in zip(strides, widths, widths[1:], strict=False):
            # The bias is left out where instance normalisation would subtract it again.
            blocks.append(CONV_TRANSPOSE[ndim](wide, narrow, kernel_size=stride, stride=stride, bias=False))
            blocks.append(_conv_block(ndim, narrow, narrow))
        blocks.append(CONV[ndim](widths[-1], out_channels, kernel_size=1))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, C, ...) quantised tokens -> (B, out_channels, ...) image, larger by the strides' product, unbounded."""
        return self.blocks(quantized)


def _conv_block(ndim: int, in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        CONV[ndim](in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        INSTANCE_NORM[ndim](out_channels, eps=1e-5, affine=True),
        nn.LeakyReLU(inplace=True),
    )
