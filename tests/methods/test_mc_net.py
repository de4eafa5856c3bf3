"""MC-Net+: decoders agree with each other's sharpened probabilities, by hand-computed numbers."""

import math
from itertools import combinations

import pytest
import torch
from tiny_networks import context, plan_of, unet
from torch import nn

from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.methods.mc_net import MCNet, MCNetConfig
from nnunetv2_vqseg.networks.backbone import NetworkPlan


class Opinions(nn.Module):
    """One logit map a decoder: the margin of class 1 over class 0, times what the image says."""

    def __init__(self, margins: tuple[float, ...]) -> None:
        super().__init__()
        self.margins = nn.ParameterList([torch.tensor(margin) for margin in margins])

    def forward(self, x: torch.Tensor) -> list[list[torch.Tensor]]:
        return [[torch.cat((torch.zeros_like(x), margin * x), 1)] for margin in self.margins]


def method(margins: tuple[float, ...], regions: bool = False, **settings: object) -> MCNet:
    plan = NetworkPlan((1, 1), [[1, 1]], 1, nn.Identity)
    made = MCNet(MCNetConfig(**settings), Context(plan, device="cpu", regions=regions))
    made.begin(Opinions(margins), lambda outputs, target: outputs[0][:, 1].sum())
    return made


def sigmoid(margin: float) -> float:
    return 1 / (1 + math.exp(-margin))


def test_consistency_of_all_images_over_ordered_pairs():
    margins = (1.0, -0.5, 0.25)
    mc = method(margins, ramp_up=0.0)
    # The labelled image says 1, the unlabelled one 2; sharpening with T = 0.1 multiplies a margin of two classes by 10.
    labeled, unlabeled = torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 2.0)
    terms, metrics = mc.terms(Batch(labeled, torch.zeros(1), unlabeled), progress=0.0)
    expected = sum(
        (sigmoid(scale * margins[i]) - sigmoid(10 * scale * margins[j])) ** 2
        for i in range(3)
        for j in range(3)
        if i != j
        for scale in (1.0, 2.0)
    )
    weight, value = terms["consistency"]
    assert weight == pytest.approx(0.1)
    assert value.item() == pytest.approx(expected / 2, rel=1e-4)
    assert metrics["agreement"] == 0.0
    for name, margin in zip(("supervised", "supervised_linear", "supervised_nearest"), margins, strict=True):
        assert terms[name][0] == 1.0
        assert terms[name][1].item() == margin, "the labelled image alone"


def test_regions_are_sharpened_as_they_are():
    mc = method((1.0, -0.5), regions=True, ramp_up=0.0)
    one = torch.ones(1, 1, 1, 1)
    value = mc.terms(Batch(one, torch.zeros(1), one), progress=0.0)[0]["consistency"][1]
    pairs = (sigmoid(1.0) - sigmoid(-5.0)) ** 2 + (sigmoid(-0.5) - sigmoid(10.0)) ** 2
    assert value.item() == pytest.approx(pairs / 2, rel=1e-4)  # the other region is a half for both


def test_weight_rises_over_the_whole_training():
    mc, one = method((1.0, 1.0)), torch.ones(1, 1, 1, 1)
    for progress, share in ((0.0, math.exp(-5)), (0.5, math.exp(-1.25)), (1.0, 1.0)):
        assert mc.terms(Batch(one, torch.zeros(1), one), progress)[0]["consistency"][0] == pytest.approx(0.1 * share)


def test_every_decoder_begins_with_weights_of_its_own_on_one_encoder():
    mc = MCNet(MCNetConfig(), context(plan_of(unet())._replace(build=unet)))
    networks = mc.training_network()
    decoders = [networks.unet.decoder, *networks.others]
    assert all(decoder.encoder is networks.unet.encoder for decoder in decoders)
    for one, other in combinations(decoders, 2):
        weights = [dict(decoder.stages.named_parameters()) for decoder in (one, other)]
        assert weights[0].keys() == weights[1].keys()
        convolutions = [key for key, value in weights[0].items() if value.ndim == 4]
        assert convolutions
        assert not any(torch.equal(weights[0][key], weights[1][key]) for key in convolutions)


@pytest.mark.parametrize("three", [True, False])
def test_the_planned_decoder_alone_is_saved_and_starts_from_a_file(three):
    plan = plan_of(unet())._replace(build=unet)
    mc = MCNet(MCNetConfig(nearest_decoder=three), context(plan))
    mc.begin(mc.training_network(), lambda outputs, target: outputs[0].mean())
    assert mc.predictor().state_dict().keys() == unet().state_dict().keys()
    assert mc.pretrained() == [mc.predictor()]
    assert len(mc.networks.others) == 1 + three
    _, columns = mc.preview(torch.randn(1, 1, 32, 32))
    assert list(columns) == ["transposed", "linear", "nearest"][: 2 + three]
