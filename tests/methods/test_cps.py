"""Cross pseudo supervision: each network learns the other's labels, by hand-computed numbers."""

import math

import pytest
import torch
from torch import nn

from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.methods.cps import CPS, CPSConfig
from nnunetv2_vqseg.networks.backbone import NetworkPlan


def method(**settings: object) -> CPS:
    plan = NetworkPlan((2, 2), [[1, 1]], 1, lambda: nn.Conv2d(1, 2, 1))
    made = CPS(CPSConfig(**settings), Context(plan, device="cpu"))
    made.supervised = lambda outputs, target: outputs[0].mean()
    return made


def two_opinions(first: float, second: float) -> nn.Module:
    """Both networks' logits: the margin of class 1 over class 0, on every image and pixel."""

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.margins = nn.ParameterList([torch.tensor(first), torch.tensor(second)])

        def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], ...]:
            zero = torch.zeros_like(x)
            return tuple([torch.cat((zero, zero + margin), 1)] for margin in self.margins)

    return Student()


def test_each_network_is_compared_with_the_other_s_label():
    cps = method(ramp_up=0.0)
    cps.student = two_opinions(3.0, -1.0)  # the first says class 1, the second class 0
    batch = Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(2, 1, 2, 2))
    terms, metrics = cps.terms(batch, progress=0.0)
    # Cross entropy of class 0 with margin 3, and of class 1 with margin -1: log(1 + e^3) and log(1 + e^1).
    assert terms["pseudo"][1].item() == pytest.approx(math.log(1 + math.exp(3)), rel=1e-5)
    assert terms["pseudo_second"][1].item() == pytest.approx(math.log(1 + math.exp(1)), rel=1e-5)
    assert (terms["pseudo"][0], terms["pseudo_second"][0], terms["supervised"][0]) == (0.1, 0.1, 1.0)
    assert metrics["agreement"] == 0.0
    terms["pseudo"][1].backward()
    first, second = cps.student.margins
    assert first.grad is not None
    assert second.grad is None, "the labels' network learns nothing from being a teacher"


def test_weight_rises_over_the_whole_training():
    cps = method()
    cps.student = two_opinions(1.0, 1.0)
    batch = Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    for progress, share in ((0.0, math.exp(-5)), (0.5, math.exp(-1.25)), (1.0, 1.0)):
        terms, metrics = cps.terms(batch, progress)
        assert terms["pseudo"][0] == terms["pseudo_second"][0] == pytest.approx(0.1 * share)
        assert metrics["agreement"] == 1.0


def test_second_network_is_never_a_copy_of_the_first():
    cps = method()
    cps.student = cps.training_network()
    first, second = cps.pair.first, cps.pair.second
    assert not torch.equal(first.weight, second.weight)
    assert cps.pretrained() == [first], "the second does not start from the same file"
    assert cps.predictor() is first
    x = torch.randn(1, 1, 2, 2)
    assert torch.equal(cps.student.eval()(x), first(x)), "in evaluation the first one answers alone"


def test_a_predictor_that_is_not_validated_is_a_sentence():
    class NoTeacher(CPS):
        def predictor(self) -> nn.Module:
            return nn.Identity()

    whole = method()
    made = NoTeacher(whole.config, whole.context)
    for each in (whole, made):
        each.begin(each.training_network(), whole.supervised)
    assert whole.saved_name == "first"
    with pytest.raises(TypeError, match=r"NoTeacher\.predictor\(\) .* validated\(\) \(first, second\)"):
        made.saved_name  # noqa: B018
