"""A planned network taken apart and put together again is the same network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_networks import KINDS, WIDTHS, plan_of, strides, unet
from torch import Tensor, nn

from nnunetv2_vqseg.methods.mean_teacher import StageDropout
from nnunetv2_vqseg.networks.backbone import backbone_of
from nnunetv2_vqseg.networks.pair import Pair
from nnunetv2_vqseg.networks.planned import ChangedUNet

EVERY_UNET = pytest.mark.parametrize(("kind", "ndim"), [(kind, ndim) for kind in KINDS for ndim in (2, 3)])
STAGES = range(len(WIDTHS))


def images(ndim: int, count: int = 2) -> Tensor:
    return torch.randn(count, 1, *plan_of(nn.Identity(), ndim).patch_size)


def same(first: Any, second: Any) -> bool:
    firsts, seconds = ([x] if isinstance(x, Tensor) else x for x in (first, second))
    return all(torch.equal(one, other) for one, other in zip(firsts, seconds, strict=True))


@EVERY_UNET
@pytest.mark.parametrize("deep_supervision", [True, False])
@torch.no_grad()
def test_encoding_and_decoding_gives_exactly_the_networks_own_output(kind, ndim, deep_supervision):
    network = unet(kind, ndim, deep_supervision)
    backbone, x = backbone_of(network), images(ndim)
    assert list(backbone.widths) == list(WIDTHS)
    assert [list(stride) for stride in backbone.strides] == strides(ndim)
    expected = network(x)
    assert same(backbone.decode(network, backbone.encode(network, x)), expected)
    for stage in STAGES:
        maps = backbone.encode(network, x, stage)
        assert [features.shape[1] for features in maps] == list(WIDTHS[: stage + 1])
        whole = backbone.resume(network, maps, stage)
        assert len(whole) == len(WIDTHS)
        assert same(backbone.decode(network, whole), expected)


@EVERY_UNET
@torch.no_grad()
def test_resuming_from_changed_features_changes_deeper_ones_only(kind, ndim):
    network = unet(kind, ndim)
    backbone = backbone_of(network)
    before = backbone.encode(network, images(ndim))
    for stage in STAGES:
        changed = [*before[:stage], before[stage] + 1, *before[stage + 1 :]]
        after = backbone.resume(network, changed, stage)
        equal = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
        assert equal == [index < stage for index in STAGES]
        assert torch.equal(after[stage], before[stage] + 1)


@EVERY_UNET
@torch.no_grad()
def test_a_changed_unet_keeps_the_keys_and_changes_the_images_it_is_told_to(kind, ndim):
    network = unet(kind, ndim)
    keys = list(network.state_dict())
    x, expected = images(ndim, 3), None
    for stage in (None, *STAGES):
        changed = ChangedUNet(network, StageDropout(0.9), stage)
        assert list(changed.state_dict()) == keys
        expected = network(x)
        assert same(changed(x), expected)
        assert same(changed(x, 3), expected), "no image is left to be changed"
        some = changed(x, 1)
        assert same([level[:1] for level in some], [level[:1] for level in expected])
        assert not torch.equal(some[0][1:], expected[0][1:])


def test_a_pair_is_its_first_network_in_evaluation():
    first, second = unet(), unet()
    pair, x = Pair(first, second), images(2)
    own, other = pair(x)
    assert same(own, first(x))
    assert same(other, second(x))
    assert same(pair.eval()(x), first.eval()(x))


@pytest.mark.parametrize("network", [nn.Linear(2, 2), nn.Sequential(nn.Conv2d(1, 1, 1))])
def test_a_network_without_encoder_and_decoder_is_refused(network):
    with pytest.raises(NotImplementedError) as error:
        backbone_of(network)
    assert str(error.value) == (
        "VQ-Seg knows PlainConvUNet and ResidualEncoderUNet plans, and nnUNetPlannerViT's; this plan asks for "
        f"{type(network).__name__}; plan with one of those."
    )
