"""Several decoders on one encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_networks import CLASSES, KINDS, unet

from nnunetv2_vqseg.methods.base import switch_deep_supervision
from nnunetv2_vqseg.networks.decoders import Interpolation, SharedEncoder, interpolating_decoder


def shared(kind: type, ndim: int) -> Any:
    first = unet(kind, ndim)
    others = [interpolating_decoder(unet(kind, ndim), first.encoder, mode) for mode in ("linear", "nearest")]
    return SharedEncoder(first, others)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_decoders_differ_from_the_start_and_agree_in_shape(kind, ndim):
    network, x = shared(kind, ndim).train(), torch.randn(2, 1, *(16,) * ndim)
    decoded = network(x)
    assert len(decoded) == 3
    assert [[level.shape for level in levels] for levels in decoded] == [[level.shape for level in decoded[0]]] * 3
    assert decoded[0][0].shape == (2, CLASSES, *x.shape[2:])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(decoded[one][0], decoded[other][0], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_is_one_object_and_no_copy(kind):
    network = shared(kind, 2)
    assert all(decoder.encoder is network.unet.encoder for decoder in network.others)
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (network.unet.encoder, network.unet))
    own = [sum(p.numel() for p in other.parameters()) - encoder for other in network.others]
    assert sum(p.numel() for p in network.parameters()) == decoder + sum(own)
    network.train()(torch.randn(1, 1, 16, 16))[2][0].sum().backward()
    assert all(p.grad is not None for p in network.unet.encoder.parameters())


def test_in_evaluation_the_planned_network_answers_alone():
    network, x = shared(KINDS[0], 2), torch.randn(1, 1, 16, 16)
    switch_deep_supervision(network, False)
    assert torch.equal(network.eval()(x), network.unet(x))
    assert all(isinstance(logits, torch.Tensor) for logits in network.all_logits(x)), "all decoders are switched"
    stock = unet()
    assert network.unet.state_dict().keys() == stock.state_dict().keys()
    stock.load_state_dict(network.unet.state_dict(), strict=True)


def test_a_stride_may_differ_between_axes():
    x = torch.randn(2, 6, 4, 5)
    for mode in ("linear", "nearest"):
        assert Interpolation(6, 3, (1, 2), mode)(x).shape == (2, 3, 4, 10)
    assert Interpolation(6, 3, (1, 2, 2), "linear")(x[:, :, None]).shape == (2, 3, 1, 8, 10)


def test_interpolation_is_that_of_its_name():
    row = torch.tensor([[[[0.0, 3.0], [0.0, 3.0]]]])
    found = {}
    for mode in ("linear", "nearest"):
        up = Interpolation(1, 1, (2, 2), mode)
        torch.nn.init.ones_(up[0].weight)
        found[mode] = up(row)[0, 0, 0].tolist()
    assert found["linear"] == pytest.approx([0.0, 1.0, 2.0, 3.0])
    assert found["nearest"] == [0.0, 0.0, 3.0, 3.0]


def test_fresh_convolutions_start_as_nnunet_s():
    weight = Interpolation(400, 200, (2, 2), "linear")[0].weight
    assert weight.std().item() == pytest.approx((2 / (1 + 1e-4) / 400) ** 0.5, rel=0.02)
