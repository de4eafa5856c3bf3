"""The guard: when the unlabelled loss waits, by hand; and that every method with unlabelled images obeys it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_dimensions import IGNORED, METHODS, UNLABELED, Case, started
from torch import nn

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import Batch, Context, UnlabeledConfig, UnlabeledImagesConfig
from nnunetv2_vqseg.methods.guard import Guard, GuardConfig
from nnunetv2_vqseg.methods.mean_teacher import MeanTeacher, MeanTeacherConfig
from nnunetv2_vqseg.networks.backbone import NetworkPlan

WITH_UNLABELED = {name: case for name, case in METHODS.items() if issubclass(case.method.Config, UnlabeledImagesConfig)}
OF_LABELS = {"vq", "entropy", "feature", "reconstruction", "displaced_labeled", "displaced_labeled_second"}
"""Terms that do not begin with 'supervised' and still need no pseudo-label."""


def guard(log: list[str] | None = None, epochs: int = 10, **settings: Any) -> Guard:
    return Guard(GuardConfig(**settings), epochs, (log if log is not None else []).append)


@pytest.mark.parametrize(("share", "epochs", "end"), [(0.1, 10, 0.1), (0.1, 3, 1 / 3), (0.25, 10, 0.3), (0.0, 10, 0.0)])
def test_the_supervised_phase_is_so_many_whole_epochs(share, epochs, end):
    made = guard(epochs=epochs, guard_supervised=share)
    assert made.phase_end == pytest.approx(end)
    if end > 0:
        assert made.waits(0.0)
        assert made.waits(made.phase_end - 1e-6)
    assert not made.waits(made.phase_end)


def test_it_waits_while_pseudo_labels_have_lost_the_foreground():
    log: list[str] = []
    made = guard(log, guard_supervised=0.0, guard_foreground=0.5, guard_memory=0.5)
    made.look((20, 100), (20, 200))  # 20 % of labels, 10 % of pseudo-labels: just enough
    assert made.foreground_ratio == 0.5
    assert not made.waits(0.5)
    made.look((20, 100), (0, 200))  # running counts 30 of 150, 10 of 300
    assert made.foreground_ratio == pytest.approx(1 / 6)
    assert made.waits(0.5)
    assert made.waits(0.6)
    made.look((20, 100), (80, 200))  # 35 of 175, 85 of 350
    assert made.foreground_ratio == pytest.approx(85 / 350 / 0.2)
    assert not made.waits(0.7)
    assert log == [
        "Guard: the unlabelled loss waits: 3.33% of pseudo-labels are foreground, 20.00% of labels.",
        "Guard: the unlabelled loss counts.",
    ], "told once each"


def test_labels_without_foreground_stop_nothing():
    made = guard(guard_supervised=0.0)
    made.look((0, 100), (0, 100))
    assert not made.waits(0.5)


def test_it_waits_while_the_dice_is_below_the_best_of_the_supervised_phase():
    log: list[str] = []
    made = guard(log, epochs=10, guard_supervised=0.2, guard_margin=0.05)
    made.validated(0.6, 0.1)
    made.validated(0.4, 0.2)
    assert not made.waits(0.2)
    answers = []
    for epoch, dice in ((3, 0.56), (4, 0.54), (5, math.nan), (6, 0.55)):
        made.validated(dice, epoch / 10)
        answers.append(made.waits(epoch / 10))
    assert answers == [False, True, True, False], "0.6 - 0.05 is enough, and NaN says nothing"
    assert "the Dice on validation patches is 0.540, in the supervised phase it was 0.600" in log[0]
    without = guard(guard_supervised=0.0)
    without.validated(0.1, 0.1)
    assert not without.waits(0.2), "nothing to compare with"


def test_it_looks_every_so_many_steps_and_goes_on_where_it_was():
    first, second = (guard(guard_every=3, guard_supervised=0.1, guard_memory=0.5) for _ in range(2))
    assert [first.is_due() for _ in range(7)] == [True, False, False, True, False, False, True]
    first.look((1, 2), (3, 4))
    first.validated(0.7, 0.1)
    first.validated(0.6, 0.2)
    assert first.waits(0.2)
    second.load_state(first.state())
    assert second.state() == first.state()
    for made in (first, second):
        made.look((5, 6), (7, 8))
    assert second.state() == first.state()
    assert second.is_due() == first.is_due() is False
    assert second.waits(0.3)


class Margin(nn.Module):
    """Class 1, or the region, where the image is positive."""

    def __init__(self, regions: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.regions = regions

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training, "asked as in prediction"
        return self.scale * x if self.regions else torch.cat((torch.zeros_like(x), self.scale * x), 1)


@pytest.mark.parametrize("regions", [False, True])
def test_it_counts_known_labels_and_the_teacher_s_answers(regions):
    settings = {"guard": True, "guard_supervised": 0.0, "guard_every": 2}
    made = MeanTeacher(
        MeanTeacherConfig(**settings), Context(NetworkPlan((2, 4), [[1, 1]], 1, nn.Identity), "cpu", regions, 2)
    )
    made.begin(Margin(regions).eval(), lambda outputs, target: outputs[0].sum())
    labels = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])[None, None]
    ignored = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1]])[None, None]
    target = torch.cat((labels * (1 - ignored), ignored), 1) if regions else labels.where(ignored == 0, 2)
    unlabeled = torch.tensor([[-1.0, -1, 3, -1], [-1] * 4])[None, None]
    batch = Batch(torch.zeros(1, 1, 2, 4), [target], unlabeled)
    assert made.guarded(batch, 0.5) is batch
    assert made.guard.labeled == (2, 6)
    assert made.guard.pseudo == (1, 8)
    assert made.unlabeled_factor == 0.0
    assert made.unlabeled_weight(1.0) == 0.0, "3 of 8 against 1 of 3"
    assert made.schedule(1.0)["unlabeled_waits"] == 1.0
    made.guarded(batch._replace(unlabeled=-unlabeled), 0.5)
    assert made.guard.pseudo == (1, 8), "only every second step"
    made.guarded(batch._replace(unlabeled=-unlabeled), 0.5)
    assert made.guard.pseudo == pytest.approx((0.9 + 7, 0.9 * 8 + 8))
    assert made.unlabeled_weight(1.0) == 1.0


def guarded(case: Case, ndim: int, **labels: Any) -> tuple[Any, Batch]:
    return started(case._replace(keys={**case.keys, "guard": True, "guard_supervised": 0.1}), ndim, **labels)


@pytest.mark.parametrize("name", WITH_UNLABELED)
def test_every_method_waits_and_goes_on(name):
    case = WITH_UNLABELED[name]
    method, batch = guarded(case, 2)
    method.guard.phase_end = 0.6  # late, when everything is switched on
    modes = {key: part.training for key, part in method.student.named_modules()}
    random = torch.get_rng_state()
    seen = method.guarded(batch, 0.55)
    assert torch.equal(torch.get_rng_state(), random), "it draws no random numbers"
    assert {key: part.training for key, part in method.student.named_modules()} == modes
    method.before_step(0.55)
    terms, _ = method.terms(seen, 0.55)
    if isinstance(method.config, UnlabeledConfig):
        assert seen is batch
        waiting = {key for key in terms if not key.startswith("supervised")} - OF_LABELS
        assert waiting
        assert {key: terms[key][0] for key in waiting} == dict.fromkeys(waiting, 0.0)
        assert all(weight > 0 for key, (weight, _) in terms.items() if key not in waiting)
    else:
        assert seen.unlabeled is seen.unlabeled_target is None
    method.guard.config = GuardConfig(guard=True, guard_foreground=0.0)
    again = method.guarded(batch, 0.65)
    assert again is batch
    method.before_step(0.65)
    assert all(weight > 0 for weight, _ in method.terms(again, 0.65)[0].values())


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("labels", [{}, {"regions": True, "ignore_label": IGNORED}], ids=["classes", "regions"])
@pytest.mark.parametrize("name", ["mean teacher", "VQ-Seg", "CPS", "UA-MT", "nnFilterMatch", "self-training"])
def test_it_looks_at_images_and_volumes_of_any_labels(name, labels, ndim):
    try:
        method, batch = guarded(WITH_UNLABELED[name], ndim, **labels)
    except ConfigError:
        pytest.skip("not for these labels")
    method.guarded(batch, 0.5)
    pixels = UNLABELED * math.prod(batch.labeled.shape[2:])
    assert method.guard.pseudo[1] == pixels
    assert 0 < method.guard.labeled[0] < method.guard.labeled[1] <= pixels
    assert (method.guard.labeled[1] < pixels) == bool(labels)
