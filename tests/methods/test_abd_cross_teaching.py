"""ABD with cross teaching: which views each network sees and learns, by hand-computed numbers."""

import math

import pytest
import torch
from torch import nn

from nnunetv2_vqseg.methods.abd_cross_teaching import ABDCrossTeaching, ABDCrossTeachingConfig
from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.networks.backbone import NetworkPlan

NAMES = ("supervised", "consistency", "displaced", "displaced_labeled")


class Margin(nn.Module):
    """Two classes; the margin of the second is the image times a weight; at full and at half resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.seen.append(x)
        logits = torch.cat((torch.zeros_like(x), self.scale * x), dim=1)
        return [logits, logits[..., 1::2, 1::2]]


def method(**settings: object) -> ABDCrossTeaching:
    plan = NetworkPlan((8, 8), [[1, 1], [2, 2]], 1, Margin)
    made = ABDCrossTeaching(ABDCrossTeachingConfig(**settings), Context(plan, device="cpu"))
    made.targets = []

    def supervised(outputs, target):
        made.targets.append(target)
        return torch.stack([nn.functional.cross_entropy(o, t[:, 0]) for o, t in zip(outputs, target, strict=True)])[0]

    made.begin(made.training_network(), supervised)
    made.strong = lambda x: (-x, torch.zeros(len(x), 1, 8, 8, dtype=torch.bool))
    return made


def batch() -> Batch:
    patches = torch.arange(16).view(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    labels = (patches % 2).expand(2, 1, 8, 8)
    labeled = 0.5 + labels + torch.arange(64).view(1, 1, 8, 8) / 64
    return Batch(labeled, [labels, labels[..., 1::2, 1::2]], torch.rand(3, 1, 8, 8) + 1)


def test_each_network_sees_its_view_and_both_displaced_ones():
    abd = method(displaced_labeled_share=1.0)
    drawn = batch()
    terms, _ = abd.terms(drawn, 0.5)
    assert terms.keys() == {name + end for name in NAMES for end in ("", "_second")}
    weak = torch.cat((drawn.labeled, drawn.unlabeled))
    assert torch.equal(abd.pair.first.seen[0], weak)
    assert torch.equal(abd.pair.second.seen[0], -weak)
    displaced = abd.pair.first.seen[1]
    assert torch.equal(abd.pair.second.seen[1], displaced)
    unlabeled, labeled = displaced.split([6, 4])
    for view, sign in zip((*unlabeled.chunk(2), *labeled.chunk(2)), (1, -1, 1, -1), strict=True):
        assert ((view * sign) < 0).flatten(1).sum(1).tolist() == [4] * len(view), "a patch of the other view"
    expected = nn.functional.cross_entropy(torch.cat((0 * -drawn.labeled, -drawn.labeled), 1), drawn.target[0][:, 0])
    assert terms["supervised_second"][1].item() == pytest.approx(expected.item(), rel=1e-5)


def test_labels_move_with_their_patches_at_every_scale():
    abd = method(displaced_labeled_share=1.0)
    drawn = batch()
    abd.terms(drawn, 0.5)
    _, moved, _, again = abd.targets
    images = abd.pair.first.seen[1][6:]
    # A pixel's label can be read from its brightness, from 0.5 to 1.5 or from 1.5 to 2.5; negative in the strong view.
    assert torch.equal(moved[0], (images.abs() >= 1.5).long())
    assert torch.equal(moved[1], moved[0][..., 1::2, 1::2])
    assert all(torch.equal(one, other) for one, other in zip(moved, again, strict=True))
    assert not torch.equal(moved[0][:2], drawn.target[0]), "something moved"


def test_the_second_network_learns_background_where_something_was_cut_out():
    abd = method(displaced_labeled_share=0.0)
    boxes = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    boxes[..., :4] = True
    abd.strong = lambda x: (-x, boxes.expand(len(x), -1, -1, -1))
    drawn = batch()
    abd.terms(drawn, 0.5)
    first, moved, second, _ = abd.targets
    assert first is drawn.target
    for level, whole in zip(second, drawn.target, strict=True):
        half = whole.shape[-1] // 2
        assert (level[..., :half] == 0).all()
        assert torch.equal(level[..., half:], whole[..., half:])
    assert torch.equal(moved[0], torch.cat((first[0], second[0])))


def test_weights_and_the_end_of_displaced_labelled_images():
    abd = method()
    drawn = batch()
    for progress, share in ((0.0, math.exp(-5)), (0.5, math.exp(-1.25)), (0.66, math.exp(-5 * 0.34**2))):
        terms, metrics = abd.terms(drawn, progress)
        for end in ("", "_second"):
            weights = [terms[name + end][0] for name in NAMES]
            assert weights == pytest.approx([1.0, 0.1 * share, 0.1 * share, 2.0])
        assert metrics["agreement"] == 0.0, "the strong view is the negative of the weak one"
    terms, _ = abd.terms(drawn, 0.67)
    assert terms.keys() == {name + end for name in NAMES[:3] for end in ("", "_second")}
    assert len(abd.pair.first.seen[-1]) == 6, "the displaced unlabelled images alone"


def test_without_moves_labelled_images_stay():
    abd = method(displaced_labeled_share=0.0)
    drawn = batch()
    abd.terms(drawn, 0.0)
    assert torch.equal(abd.pair.first.seen[1][6:], torch.cat((drawn.labeled, -drawn.labeled)))


def test_the_first_network_is_saved():
    abd = method()
    assert abd.predictor() is abd.pair.first
    assert not hasattr(abd, "teacher")
