"""nnFilterMatch: labels turn with the image, nothing unlabelled in the warm-up, and the surest cases go."""

import math

import pytest
import torch
from torch import nn

from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.methods.case_filter import without_extreme
from nnunetv2_vqseg.methods.nnfiltermatch import NNFilterMatch, NNFilterMatchConfig
from nnunetv2_vqseg.networks.backbone import NetworkPlan


class Sign(nn.Module):
    """Class 1, or region 1, where an image is positive; at the second scale where every second pixel is negative."""

    def __init__(self, regions: bool) -> None:
        super().__init__()
        self.regions = regions
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.seen.append(x)
        half = -x[..., ::2, ::2]
        return [x, half] if self.regions else [torch.cat((-values, values), 1) for values in (x, half)]


class HandMade:
    """Cases with logits of two classes on four voxels, as `methods.base.Cases`."""

    def __init__(self, margins: dict[str, float]) -> None:
        self.margins = margins
        self.asked = 0

    @property
    def names(self) -> list[str]:
        return list(self.margins)

    def predict(self, look):
        self.asked += 1
        logits = {}
        for name, margin in self.margins.items():
            logits[name] = torch.tensor([0.0, margin]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
        return {name: look(name, values) for name, values in logits.items()}

    def keep(self, names):
        self.margins = {name: self.margins[name] for name in names}


def method(regions: bool = False, ignore: int | None = None, cases=None, **settings: object) -> NNFilterMatch:
    plan = NetworkPlan((4, 4), [[1, 1]], 1, lambda: nn.Conv2d(1, 2, 1))
    made = NNFilterMatch(NNFilterMatchConfig(**settings), Context(plan, "cpu", regions, ignore, cases=cases))
    made.targets = []
    made.student = Sign(regions)
    made.supervised = lambda outputs, target: made.targets.append(target) or outputs[0].mean()
    return made


def batch(channels: int = 1, side: int = 4) -> Batch:
    shapes = (2, channels, 4, side), (2, channels, 2, side // 2)
    target = [torch.zeros(shape, dtype=torch.int16) for shape in shapes]
    return Batch(torch.full((2, 1, 4, side), 3.0), target, torch.randn(3, 1, 4, side))


@pytest.mark.parametrize("progress", [0.1, 0.9])
@pytest.mark.parametrize("side", [4, 8])
def test_labels_turn_with_the_image_at_every_scale(progress, side):
    made = method()
    for _ in range(10):
        terms, _ = made.terms(batch(side=side), progress)
        assert terms.keys() == {"supervised"}
        assert terms["supervised"][0] == 1.0
        own, turned = made.student.seen[-2:]
        fine, coarse = made.targets[-1]
        assert fine.dtype == coarse.dtype == torch.int16
        assert (turned[:2] == 3.0).all()
        assert (fine[:2] == 0).all()
        assert torch.equal(fine[2:], (turned[2:] > 0).short())
        # The coarse label is the coarse output's, turned: every second pixel of the image before the turn.
        assert progress >= 1 / 3 or not torch.equal(turned[2:], own)  # two flips may undo a half turn
        assert coarse[2:].sum() == (own[..., ::2, ::2] < 0).sum()
        if side == 8:
            assert any(torch.equal(own.rot90(2, (-2, -1)).flip(axes), turned[2:]) for axes in ([], [2], [3], [2, 3]))
            if progress < 1 / 3:
                assert torch.equal(coarse[2:], (own[..., ::2, ::2] < 0).short().rot90(2, (-2, -1)))


def test_no_flips_in_the_first_third():
    made = method()
    flipped = []
    for progress in [0.3] * 30 + [0.34] * 30:
        made.terms(batch(), progress)
        own, turned = made.student.seen[-2:]
        flipped.append(not any(torch.equal(own.rot90(k, (-2, -1)), turned[2:]) for k in (1, 2, 3)))
    assert not any(flipped[:30])
    assert any(flipped[30:])


def test_warm_up_sees_labelled_images_alone():
    made = method()
    for progress, images in ((0.0, [2]), (0.066, [2]), (0.067, [3, 5])):
        made.student.seen.clear()
        assert made.reads_unlabeled(progress) == (len(images) == 2)
        made.terms(batch(), progress)
        assert [len(seen) for seen in made.student.seen] == images


@pytest.mark.parametrize(("ignore", "channels"), [(None, 1), (4, 2)])
def test_regions_are_labelled_at_one_half_and_nothing_is_ignored(ignore, channels):
    made = method(regions=True, ignore=ignore)
    made.terms(batch(channels), 0.5)
    fine, coarse = made.targets[-1]
    assert fine.shape == (5, channels, 4, 4)
    assert coarse.shape == (5, channels, 2, 2)
    assert torch.equal(fine[2:, :1], (made.student.seen[-1][2:] > 0).short())
    assert (fine[2:, 1:] == 0).all()


def test_labels_have_no_gradient():
    made = method()
    made.student = nn.Conv2d(1, 2, 1)
    labels = made.label(torch.randn(1, 1, 4, 4), [torch.zeros(1, 1, 4, 4, dtype=torch.int16)])
    assert not labels[0].requires_grad


MARGINS = {"a": 5.0, "b": 0.0, "c": 9.0, "d": 1.0, "e": 2.0, "f": 3.0, "g": 4.0, "h": 0.5}


@pytest.mark.parametrize(("drops", "gone"), [("surest", ["a", "c"]), ("least_sure", ["b", "h"])])
def test_the_filter_drops_exactly_the_extreme_cases_at_its_time(drops, gone):
    cases = HandMade(MARGINS)
    made = method(cases=cases, num_epochs=300, filter_drops=drops)
    made.before_epoch(99)
    assert (cases.asked, made.filtered) == (0, 0)
    made.before_epoch(100)
    assert (cases.asked, made.filtered) == (1, 1)
    assert sorted(MARGINS.keys() - set(cases.names)) == gone
    assert made.on_epoch_done() == {"unlabeled_cases": 6.0}
    continued = method(cases=cases, num_epochs=300, filter_drops=drops)
    continued.load_state(made.state())
    continued.before_epoch(101)
    assert cases.asked == 1, "what was done before the stop is not done again"
    continued.before_epoch(200)
    continued.before_epoch(299)
    assert cases.asked == 2
    assert len(cases.names) == 5
    longer = method(cases=cases, num_epochs=600, filter_drops=drops)
    longer.load_state(continued.state())
    for epoch in (300, 400, 599):
        longer.before_epoch(epoch)
    assert cases.asked == 2, "both filters were before num_epochs was raised"
    assert longer.filtered == 2


def test_no_filter():
    cases = HandMade(MARGINS)
    for settings in ({"filter_share": 0.0}, {"filter_at": (1.0, 1.0)}):
        made = method(cases=cases, num_epochs=3, **settings)
        for epoch in range(3):
            made.before_epoch(epoch)
    assert cases.asked == 0


def test_entropy_by_hand():
    flat, two = torch.zeros(2, 2, 3, 4), torch.tensor([0.0, math.log(3)]).view(2, 1, 1, 1).expand(2, 2, 3, 4)
    of_two = math.log(4) - 0.75 * math.log(3)  # -1/4 ln 1/4 - 3/4 ln 3/4
    made = method()
    assert made.entropy("", flat) == pytest.approx(24 * math.log(2), rel=1e-5)
    assert made.entropy("", two) == pytest.approx(24 * of_two, rel=1e-5)
    assert method(filter_measure="mean").entropy("", two) == pytest.approx(of_two, rel=1e-5)
    # Two regions, each between inside and outside: ln 2 each where its logit is 0.
    assert method(regions=True).entropy("", flat) == pytest.approx(48 * math.log(2), rel=1e-5)


def test_as_many_go_as_with_the_original_s_percentile():
    import numpy as np

    for number in (1, 2, 7, 8, 21, 100, 126):
        values = {f"{index:03}": float(index) for index in range(number)}
        threshold = np.percentile(list(values.values()), 15)
        expected = [name for name, value in values.items() if value >= threshold]
        assert without_extreme(values, 0.15, smallest=True) == expected
    assert without_extreme({"a": 1.0, "b": 1.0}, 1.0, smallest=True) == ["b"]


def test_weights_that_were_cast_for_the_labels_are_cast_again_for_the_gradient(monkeypatch):
    """Some versions of torch keep them without a gradient, with which convolutions would not learn under AMP."""
    seen: list[str] = []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: seen.append("cleared"))
    made = method(warm_up=0.0)
    network = made.student

    def watched(images):
        seen.append("learns" if torch.is_grad_enabled() else "labels")
        return network(images)

    made.student = watched
    made.terms(batch(), 0.5)
    assert seen == ["labels", "cleared", "learns"]
