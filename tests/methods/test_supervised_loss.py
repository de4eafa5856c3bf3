"""The loss of labelled images: nnU-Net's unless a key asks for the original's own, by hand-computed numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_dimensions import METHODS
from tiny_networks import context, plan_of, unet

from nnunetv2_vqseg.methods.base import Method
from nnunetv2_vqseg.trainer.optimizers import FullResolutionCrossEntropy, chosen_loss

# Probabilities of class 1 of two pixels, of which the first is class 1, the second class 0; a third is ignored.
P = torch.tensor([0.5, 0.75, 0.9]).reshape(1, 1, 1, 3)
LOGITS = torch.cat((torch.zeros_like(P), torch.logit(P)), 1)
TARGET = torch.tensor([1, 0, 2]).reshape(1, 1, 1, 3)
COARSE = torch.full((1, 2, 1, 1), 7.0)
CE = -(math.log(0.5) + math.log(0.25)) / 2
DICE = 1 - (2 * 0.5 / (0.25 + 0.5625 + 1) + 2 * 0.25 / (0.25 + 0.0625 + 1)) / 2
OWN = {
    "U-Net": 0.5 * (CE + DICE),
    "UA-MT": 0.5 * (CE + DICE),
    "CPS": 0.5 * (CE + DICE),
    "ABD, cross teaching": 0.5 * (CE + DICE),
    "UniMatch": 0.5 * (CE + DICE),
    "UniMatch V2": CE,
    "MC-Net+": 0.5 * DICE,
    "SS-Net": DICE,
    "ARCO": CE + DICE,
    "VQ-Seg": CE,
}
AS_NNUNET = ("mean teacher", "nnFilterMatch", "self-training", "supervised, EMA")


def method(name: str, regions: bool = False, **keys: Any) -> Method[Any]:
    case = METHODS[name]
    plan = plan_of(unet())
    return case.method(case.method.Config(**case.keys, **keys), context(plan, regions=regions, ignore_label=2))


def nnunet(outputs: Any, target: Any) -> torch.Tensor:
    raise AssertionError("nnU-Net's is not asked for")


@pytest.mark.parametrize("name", OWN)
def test_that_of_the_original_has_its_weights_at_full_resolution(name):
    loss = chosen_loss(method(name, supervised_loss="literature"), nnunet)
    outputs = [LOGITS.clone().requires_grad_(), COARSE.clone().requires_grad_()]
    value = loss(outputs, [TARGET, TARGET[..., :1]])
    assert value.item() == pytest.approx(OWN[name], rel=1e-4)
    value.backward()
    assert (outputs[0].grad[..., 2] == 0).all(), "nobody knows what the third pixel is"
    assert (outputs[0].grad[..., :2] != 0).all()
    assert (outputs[1].grad == 0).all(), "in the graph, for DDP"


def test_mc_net_s_dice_has_half_the_gradient_of_a_dice_and_a_constant_less_than_its_own():
    own = 1 - (0.5 / (0.25 + 0.5625 + 1) + 0.25 / (0.25 + 0.0625 + 1)) / 2  # without the factor 2
    loss = chosen_loss(method("MC-Net+", supervised_loss="literature"), nnunet)
    assert loss([LOGITS], [TARGET]).item() == pytest.approx(own - 0.5, rel=1e-3)


@pytest.mark.parametrize("name", [*OWN, *AS_NNUNET])
def test_nnunet_s_is_the_default_of_all_but_the_literature_s_u_net(name):
    chosen = chosen_loss(method(name), nnunet)
    assert (chosen is nnunet) == (name != "U-Net")


@pytest.mark.parametrize("name", AS_NNUNET)
def test_of_those_that_are_built_on_nnunet_it_is_nnunet_s(name):
    assert chosen_loss(method(name, supervised_loss="literature"), nnunet) is nnunet


def test_cross_entropy_alone_is_for_classes():
    assert isinstance(chosen_loss(method("CPS", supervised_loss="ce"), nnunet), FullResolutionCrossEntropy)
    with pytest.raises(NotImplementedError, match="'ce' is not implemented for region-based labels; use 'nnunet'"):
        chosen_loss(method("CPS", regions=True, supervised_loss="ce"), nnunet)
