"""UniMatch V1: three streams learn the network's own labels, by hand-computed numbers."""

import math

import pytest
import torch
from torch import nn

from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.methods.unimatch import ChannelDropout, UniMatch, UniMatchConfig
from nnunetv2_vqseg.networks.backbone import NetworkPlan

UNCHANGED = {"jitter_strength": 0.0, "cutmix_probability": 0.0}


class Margin(nn.Module):
    """Two classes; the margin of class 1 is what the image says, half of it where features are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls: list[tuple[torch.Tensor, int | None, bool]] = []

    def forward(self, x: torch.Tensor, first: int | None = None) -> list[torch.Tensor]:
        self.calls.append((x, first, torch.is_grad_enabled()))
        margin = self.scale * torch.cat((x[:first], 0.5 * x[len(x[:first]) :]))
        return [torch.cat((torch.zeros_like(x), margin), dim=1)]


def method(**settings: object) -> UniMatch:
    plan = NetworkPlan((1, 2), [[1, 1]], 1, nn.Identity)
    made = UniMatch(UniMatchConfig(**settings), Context(plan, device="cpu"))
    made.begin(Margin(), lambda outputs, target: outputs[0].sum() * 0)
    return made


def dice_of_class_1(margin: float) -> float:
    """Of pixels that all have label 1, where the background has none: its Dice is e / sum p^2, next to nothing."""
    p = 1 / (1 + math.exp(-margin))
    return 1 - (2 * p / (p * p + 1) + 0.0) / 2


# Margins 4 and 1 say class 1 with 0.982 and 0.731: the first pixel alone is sure.
UNLABELED = torch.tensor([[[[4.0, 1.0]]], [[[4.0, 1.0]]]])
BATCH = Batch(torch.zeros(3, 1, 1, 2), torch.zeros(1), UNLABELED)


def test_three_streams_learn_the_own_sure_labels_by_dice_alone():
    v1 = method(**UNCHANGED)
    terms, metrics = v1.terms(BATCH, progress=0.0)
    weights = {name: weight for name, (weight, _) in terms.items()}
    assert weights == {"supervised": 1.0, "pseudo_first": 0.25, "pseudo_second": 0.25, "pseudo_perturbed": 0.5}
    assert terms["pseudo_first"][1].item() == pytest.approx(dice_of_class_1(4.0), abs=0.01)
    assert terms["pseudo_second"][1].item() == terms["pseudo_first"][1].item()
    assert terms["pseudo_perturbed"][1].item() == pytest.approx(dice_of_class_1(2.0), abs=0.01)
    assert metrics["kept_share"] == 0.5


def test_labels_are_without_gradient_and_the_weak_view_alone_loses_features():
    v1 = method(**UNCHANGED | {"jitter_strength": 1.0})
    terms, _ = v1.terms(BATCH, progress=0.0)
    (teaching, undropped, with_gradient), (images, first, learning) = v1.student.calls
    assert torch.equal(teaching, UNLABELED)
    assert undropped is None
    assert not with_gradient
    assert learning
    assert len(images) == 3 + 3 * 2
    assert first == 3 + 2 * 2
    assert torch.equal(images[first:], UNLABELED), "dropped is the weak view"
    strong = images[3:5], images[5:7]
    assert not torch.equal(*strong)
    assert not any(torch.equal(view, UNLABELED) for view in strong)
    sum(weight * value for weight, value in terms.values()).backward()
    assert v1.student.scale.grad != 0


@pytest.mark.parametrize(("loss", "with_dice"), [("ce", False), ("ce_dice", True)])
def test_other_losses_divide_by_all_pixels(loss, with_dice):
    v1 = method(**UNCHANGED, pseudo_loss=loss)
    p = 1 / (1 + math.exp(-4.0))
    expected = -math.log(p) / 2 + with_dice * (1 - 2 * p / (p + 1)) / 2  # half of the pixels of class 1 are kept
    assert v1.terms(BATCH, progress=0.0)[0]["pseudo_first"][1].item() == pytest.approx(expected, rel=1e-3)


def test_dropout_sets_whole_channels_of_every_stage_to_zero_from_an_image_on():
    maps = [torch.ones(3 + 2, 40, 3, 3), torch.ones(3 + 2, 60, 2, 2)]
    for before, after in zip(maps, ChannelDropout(0.5)(maps, 3), strict=True):
        assert torch.equal(after[:3], before[:3])
        channels = after[3:].flatten(2)
        assert torch.equal(channels.amin(2), channels.amax(2))
        assert set(channels.unique().tolist()) == {0.0, 2.0}


def test_without_a_sure_pixel_nothing_is_learned():
    v1 = method(**UNCHANGED, confidence_threshold=1.0)
    terms, _ = v1.terms(BATCH, progress=0.0)
    assert [terms[name][1].item() for name in terms if name != "supervised"] == [0.0] * 3
