"""The U-Net of the semi-supervised literature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nnunetv2_vqseg.networks.backbone import backbone_of
from nnunetv2_vqseg.networks.unet import LiteratureUNet

WIDTHS = (16, 32, 64, 128, 256)
RATES = (0.05, 0.1, 0.2, 0.3, 0.5)


def test_it_has_the_parameters_of_the_original():
    network = LiteratureUNet(1, 4, WIDTHS, RATES)
    # Two convolutions with bias and norm a stage; the 1 x 1 convolutions; the head. Papers give it as 1.81 M.
    encoder = sum(9 * a * b + 9 * b * b + 6 * b for a, b in zip((1, *WIDTHS), WIDTHS, strict=False))
    decoder = sum(a * b + b + 9 * 2 * b * b + 9 * b * b + 6 * b for a, b in zip(WIDTHS[1:], WIDTHS, strict=False))
    head = 9 * 16 * 4 + 4
    assert sum(p.numel() for p in network.parameters()) == encoder + decoder + head
    assert round((encoder + decoder + head) / 1e6, 2) == 1.81


@pytest.mark.parametrize("ndim", [2, 3])
def test_sizes_of_all_stages_and_of_the_logits(ndim):
    network = LiteratureUNet(3, 4, (2, 3, 4, 5, 6), RATES, ndim=ndim).eval()
    x = torch.randn(2, 3, *(32, 64, 16)[:ndim])
    maps = network.encoder(x)
    assert [tuple(features.shape[1:3]) for features in maps] == [(2, 32), (3, 16), (4, 8), (5, 4), (6, 2)]
    assert network(x).shape == (2, 4, *x.shape[2:])
    backbone = backbone_of(network)
    assert list(backbone.widths) == [2, 3, 4, 5, 6]
    assert all(map(torch.equal, backbone.encode(network, x), maps))


def test_deep_supervision_is_a_list_of_one():
    network: Any = LiteratureUNet(1, 4, (2, 2), (0.0, 0.0), deep_supervision=True).eval()
    x = torch.randn(1, 1, 4, 4)
    (logits,) = network(x)
    network.decoder.deep_supervision = False
    assert torch.equal(network(x), logits)


def test_dropout_is_between_the_convolutions_of_the_encoder_alone():
    network = LiteratureUNet(1, 4, WIDTHS, RATES)
    rates = [module.p for module in network.encoder.modules() if isinstance(module, nn.Dropout)]
    assert rates == list(RATES)
    assert all(module.p == 0 for module in network.decoder.modules() if isinstance(module, nn.Dropout))
    kinds = [type(module) for module in network.encoder.stages[1]]
    block = [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
    assert kinds == [nn.MaxPool2d, *block, nn.Dropout, *block]


def test_upsampling_is_bilinear_between_the_corners():
    upsample = LiteratureUNet(1, 2, (2, 2), (0.0, 0.0)).decoder.upsample
    row = upsample(torch.tensor([[[[0.0, 3.0], [0.0, 3.0]]]]))[0, 0, 0]
    torch.testing.assert_close(row, torch.tensor([0.0, 1.0, 2.0, 3.0]))
