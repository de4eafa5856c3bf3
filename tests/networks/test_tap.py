"""A tapped network computes what the planned one does, and gives out the decoder's features."""

from __future__ import annotations

import pytest
import torch
from test_backbone import EVERY_UNET, images, same
from tiny_networks import WIDTHS, unet
from torch import nn

from nnunetv2_vqseg.networks.tap import RepresentedUNet, Tapped, TappedUNet


@EVERY_UNET
@pytest.mark.parametrize("deep_supervision", [True, False])
@torch.no_grad()
def test_it_computes_exactly_what_the_unet_does(kind, ndim, deep_supervision):
    network, x = unet(kind, ndim, deep_supervision), images(ndim)
    expected = network(x)
    for level in range(len(WIDTHS) - 1):
        tapped = TappedUNet(network, level)
        assert [key.removeprefix("unet.") for key in tapped.state_dict()] == list(network.state_dict())
        output = tapped(x)
        assert isinstance(output, Tapped)
        assert same(output.segmentation, expected)
        assert output.features.shape[1:] == (WIDTHS[level], *[side // 2**level for side in x.shape[2:]])
        layer = network.decoder.seg_layers[-1 - level]
        if deep_supervision:
            assert torch.equal(layer(output.features), expected[level])
        assert same(tapped.eval()(x), network(x))
        tapped.train()


@pytest.mark.parametrize("level", [-1, 3])
def test_a_stage_that_the_decoder_lacks_is_refused(level):
    with pytest.raises(ValueError, match="level must be between 0 and 2"):
        TappedUNet(unet(), level)


def test_pixels_pass_the_heads_alone():
    tapped = TappedUNet(unet(), 0, nn.Linear(WIDTHS[0], 2))
    pixels = torch.randn(3, 5, WIDTHS[0])
    assert torch.equal(tapped(pixels), tapped.heads(pixels))


@EVERY_UNET
def test_vectors_are_a_projection_and_a_student_s_a_prediction_of_it(kind, ndim):
    network, x = unet(kind, ndim), images(ndim)
    represented = RepresentedUNet(network, 1, 5, ndim)
    assert [key for key in represented.state_dict() if key.startswith("unet.")] == [
        f"unet.{key}" for key in network.state_dict()
    ]
    tapped = represented.tap(x)
    teacher, student = represented.represent(x), represented(x)
    assert teacher.features.shape == (len(x), 5, *[side // 2 for side in x.shape[2:]])
    torch.testing.assert_close(teacher.features, represented.projection(tapped.features))
    torch.testing.assert_close(student.features, represented.prediction(teacher.features))
    assert same(student.segmentation, tapped.segmentation)
    represented.eval()
    assert same(represented(x), network(x))
    torch.testing.assert_close(represented.represent(x).features, teacher.features)
