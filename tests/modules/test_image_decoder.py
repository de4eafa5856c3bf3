"""D_i of Eq. 7: any stride of a plan, far cheaper than a segmentation decoder, able to learn."""

from __future__ import annotations

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_vqseg.modules.image_decoder import ImageDecoder


@pytest.mark.parametrize(
    ("strides", "token_grid", "image"),
    [
        ([(2, 2), (2, 2), (1, 2)], (5, 3), (20, 24)),
        ([(3, 1), (2, 5)], (2, 7), (12, 35)),
        ([(1, 1)], (6, 4), (6, 4)),
        ([], (6, 4), (6, 4)),
        ([(1, 2, 2), (2, 2, 3)], (3, 2, 4), (6, 8, 24)),
    ],
)
def test_the_image_has_the_product_of_the_strides_times_the_token_grid(strides, token_grid, image):
    reconstruction = ImageDecoder(6, 3, strides, base_features=4)(torch.randn(2, 6, *token_grid))
    assert reconstruction.shape == (2, 3, *image)


def test_a_decoder_without_steps_takes_volumes_where_that_is_said():
    assert ImageDecoder(6, 3, [], base_features=4, ndim=3)(torch.randn(2, 6, 3, 4, 5)).shape == (2, 3, 3, 4, 5)
    with pytest.raises(RuntimeError):
        ImageDecoder(6, 3, [], base_features=4)(torch.randn(2, 6, 3, 4, 5))


@pytest.mark.parametrize("strides", [[(2, 2), (1, 2)], [(2, 2, 2), (1, 2, 2)]])
def test_every_parameter_gets_a_gradient(strides):
    decoder = ImageDecoder(6, 1, strides, base_features=4)
    decoder(torch.randn(2, 6, *[4] * len(strides[0]))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 1e-6 for p in decoder.parameters())


def test_a_token_changes_only_its_own_surroundings_once_normalisation_is_left_out():
    """No path around the tokens and none across the image: a pixel depends on the tokens near it."""
    decoder = ImageDecoder(4, 1, [(2, 2), (2, 2)], base_features=4)
    for module in list(decoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.InstanceNorm2d):
                setattr(module, name, torch.nn.Identity())
    tokens = torch.randn(1, 4, 9, 9)
    moved = tokens.clone()
    moved[..., 4, 4] += 1
    changed = (decoder(moved) - decoder(tokens)).abs()[0, 0] > 0
    assert changed[16:20, 16:20].any()
    assert not changed[:8].any()
    assert not changed[:, 28:].any()


def test_it_costs_a_small_fraction_of_the_segmentation_decoder():
    """Stride 16 at 256 x 224, nnU-Net's default widths, as METHOD's rule places the quantiser."""
    widths = [32, 64, 128, 256, 512, 512]
    with torch.device("meta"):
        unet = PlainConvUNet(
            1, 6, widths, torch.nn.Conv2d, 3, [1] + 5 * [2], 2, 4, 2, conv_bias=True, norm_op=torch.nn.InstanceNorm2d
        )
        decoder = ImageDecoder(512, 1, 4 * [(2, 2)])
        skips = [torch.empty(1, c, 256 >> i, 224 >> i) for i, c in enumerate(widths)]
        with FlopCounterMode(display=False) as segmentation:
            unet.decoder(skips)
        with FlopCounterMode(display=False) as reconstruction:
            decoder(torch.empty(1, 512, 16, 14))
    assert reconstruction.get_total_flops() < 0.12 * segmentation.get_total_flops()


@pytest.mark.parametrize(
    ("strides", "base"), [([(2, 0)], 32), ([(2,)], 32), ([(2, 2), (1, 2, 2)], 32), ([(2, 2)], 5), ([(2, 2)], 0)]
)
def test_impossible_arguments_are_refused(strides, base):
    with pytest.raises(ValueError, match="must be"):
        ImageDecoder(4, 1, strides, base_features=base)
