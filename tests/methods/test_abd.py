"""ABD on BCP: which network sees and learns what, by hand-computed numbers."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.abd import ABD, ABDConfig
from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.networks.backbone import NetworkPlan

BOX = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
BOX[..., :5, :5] = True


class Margin(nn.Module):
    """Two classes; the margin of the second is the image times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return torch.cat((torch.zeros_like(x), self.scale * x), dim=1)


def method(progress: float = 0.5, ignore_label: int | None = None, **settings: object) -> ABD:
    plan = NetworkPlan((8, 8), [[1, 1]], 1, Margin)
    made = ABD(ABDConfig(**settings), Context(plan, device="cpu", ignore_label=ignore_label))
    made.begin(made.training_network(), lambda outputs, target: outputs[0].sum() * 0)
    made.box = lambda batch: BOX
    made.before_step(progress)
    return made


def images(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()


# Two labelled images of class 1 and 0, and two that the teacher calls class 1 and 0.
BATCH = Batch(images(3, 1), images(1, 0).long(), images(2, -4))


def entropy(margin: float, label: int) -> float:
    return math.log(1 + math.exp(-margin if label else margin))


def test_the_first_network_learns_the_weak_mixes_and_the_second_the_strong_ones():
    abd = method(supervised_loss="ce")
    with torch.no_grad():
        abd.pair.second.scale.fill_(-2.0)
    cut = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    abd.strong = lambda x: (x / 2, cut)
    terms, _ = abd.terms(BATCH, 0.5)
    weak = torch.cat((torch.where(BOX, images(3), images(2)), torch.where(BOX, images(-4), images(1))))
    assert torch.equal(abd.pair.first.seen[0], weak)
    assert torch.equal(abd.pair.second.seen[0], weak / 2), "strong views of the same mixes, with the same box"
    assert terms["supervised"][1].item() == pytest.approx((entropy(3, 1) + entropy(1, 0)) / 2, rel=1e-5)
    assert terms["supervised_second"][1].item() == pytest.approx((entropy(-3, 1) + entropy(-1, 0)) / 2, rel=1e-5)
    # The teacher is a copy of the first network's start, and labels the strong views by itself.
    assert terms["pseudo"][1].item() == pytest.approx((entropy(2, 1) + entropy(-4, 0)) / 2, rel=1e-5)
    assert terms["pseudo_second"][1].item() == pytest.approx((entropy(-2, 1) + entropy(4, 0)) / 2, rel=1e-5)
    assert (terms["pseudo"][0], terms["pseudo_second"][0]) == (0.5, 0.5)
    names = ("consistency", "consistency_second", "displaced", "displaced_second")
    assert [terms[name][0] for name in names] == [1.0] * 4


def test_each_network_s_dice_is_against_the_other_s_labels():
    abd = method()
    x = images(2.0)[:, :, :1, :2]
    with torch.no_grad():
        abd.pair.second.scale.fill_(-1.0)
    first, second = abd.mutual(abd.student(x))
    p = 1 / (1 + math.exp(-2))  # of class 1 by the first, of class 0 by the second
    # Two pixels. The first is compared with class 0: foreground has no intersection, background has.
    dice = (0.0 + 2 * 2 * (1 - p) / (2 * (1 - p) ** 2 + 2)) / 2
    assert first.item() == pytest.approx(1 - dice, abs=1e-4)
    assert second.item() == pytest.approx(1 - dice, abs=1e-4)
    first.backward(retain_graph=True)
    assert abd.pair.first.scale.grad is not None
    assert abd.pair.second.scale.grad is None, "the labels' network learns nothing from being a teacher"
    abd.pair.first.scale.grad = None
    second.backward()
    assert abd.pair.first.scale.grad is None
    assert abd.pair.second.scale.grad is not None


def test_both_networks_see_both_views_with_one_patch_of_the_other():
    abd = method(cutout_probability=0.0)
    abd.strong = lambda x: (x + 100, torch.zeros(len(x), 1, 8, 8, dtype=torch.bool))
    batch = Batch(torch.rand(2, 1, 8, 8), images(1, 0).long(), torch.rand(2, 1, 8, 8))
    abd.terms(batch, 0.5)
    mixed, displaced = abd.pair.first.seen
    assert torch.equal(abd.pair.second.seen[1], displaced)
    weak, strong = displaced.chunk(2)
    for view, before, other in ((weak, mixed, mixed + 100), (strong, mixed + 100, mixed)):
        moved = view != before
        assert moved.flatten(1).sum(1).tolist() == [4, 4], "one patch of 2 x 2 an image"
        assert torch.isin(view[moved], other).all()


def patched(others: tuple[float, ...], **patches: tuple[float, ...]) -> torch.Tensor:
    """Logits (400, 3, 8, 8) of 400 equal images: of some patches, by their number, and of all others."""
    tiles = torch.tensor([patches.get(f"p{number}", others) for number in range(16)]).T.view(1, 3, 4, 4)
    return tiles.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat(400, 1, 1, 1)


def test_the_choice_by_divergence_is_for_a_share_of_the_images():
    # The first patch of the weak view is the least sure one. Of the two surest of the strong view the sixth is surer,
    # and the seventh more like what it replaces.
    first = patched((4.0, 0.0, 0.0), p0=(0.0, 0.1, 0.0))
    second = patched((0.0, 0.0, 1.0), p5=(0.0, 0.0, 9.0), p6=(0.0, 5.0, 0.0))
    weak = torch.zeros(400, 1, 8, 8)
    strong = (
        torch.arange(1.0, 17.0).view(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3).repeat(400, 1, 1, 1)
    )
    taken = {}
    for share in (0.0, 0.5, 1.0):
        changed = method(divergence_share=share, sure_patches=2).displaced(weak, strong, first, second)[:400]
        assert (changed[:, :, 2:, :] == 0).all()
        taken[share] = changed[:, 0, :2, :2].mean((1, 2))
    assert (taken[0.0] == 6).all(), "the surest"
    assert (taken[1.0] == 7).all(), "the most alike"
    assert 150 < (taken[0.5] == 7).sum() < 250
    assert ((taken[0.5] == 6) | (taken[0.5] == 7)).all()


def test_labels_are_background_where_something_was_cut_out():
    abd = method(cutout_probability=1.0)
    batch = Batch(torch.randn(4, 1, 8, 8), [torch.ones(4, 1, 8, 8, dtype=torch.int16)], torch.randn(4, 1, 8, 8))
    boxes = None
    strong = abd.strong

    def kept(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal boxes
        result = strong(x)
        boxes = result[1] if boxes is None else boxes
        return result

    abd.strong = kept
    changed = abd.strong_batch(batch)
    assert boxes.any()
    assert torch.equal(changed.target == 0, boxes)
    assert (batch.target[0] == 1).all()
    assert changed.labeled.shape == batch.labeled.shape
    assert not torch.equal(changed.unlabeled, batch.unlabeled)


def test_both_networks_learn_the_first_stage():
    abd = method(progress=0.0, supervised_loss="ce")
    terms, _ = abd.terms(BATCH, 0.0)
    assert terms.keys() == {"supervised", "supervised_second"}
    assert torch.equal(abd.pair.first.seen[0], torch.where(BOX, images(3), images(1)))
    assert torch.equal(abd.pair.second.seen[0], abd.pair.first.seen[0])
    for _, loss in terms.values():
        assert loss.item() == pytest.approx((entropy(3, 1) + entropy(1, 0)) / 2, rel=1e-5)


def test_the_teacher_follows_the_first_network_which_is_saved():
    abd = method()
    assert abd.predictor() is abd.main is abd.pair.first
    assert abd.pretrained() == [abd.pair.first]
    with torch.no_grad():
        abd.pair.first.scale.fill_(3.0)
        abd.pair.second.scale.fill_(500.0)
    abd.after_step()
    assert abd.teacher.module.scale.item() == pytest.approx(0.99 * 1 + 0.01 * 3)
    teacher = method(saved_network="teacher")
    assert teacher.predictor() is teacher.teacher.module


def test_a_patch_that_has_no_four_parts_is_refused():
    plan = NetworkPlan((3, 8), [[1, 1]], 1, Margin)
    with pytest.raises(ConfigError, match=r"3x8 pixels .*patches_per_axis, or use nnUNetTrainerBCP"):
        ABD(ABDConfig(), Context(plan, device="cpu"))


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_ignored_pixels_teach_neither_network(progress):
    ignored = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    ignored[:, :, :3] = True
    target = torch.where(ignored, 2, images(1, 0).long())
    losses = []
    for spoiled in (0.0, 100.0):
        abd = method(progress, ignore_label=2, lambda_u=0.0)
        abd.strong = lambda x: (x / 2, torch.zeros(2, 1, 8, 8, dtype=torch.bool))
        terms, _ = abd.terms(Batch(images(3, 1) + spoiled * ignored, target, images(2, -4)), progress)
        losses.append([terms[name][1].item() for name in ("supervised", "supervised_second")])
    assert losses[0] == losses[1]
    assert all(loss > 0 for loss in losses[0])


@pytest.mark.parametrize("regions", [False, True])
def test_ignored_pixels_stay_ignored_where_something_was_cut_out(regions):
    ignored = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    ignored[..., ::2] = True
    labels = torch.ones(4, 1, 8, 8, dtype=torch.int16)
    target = torch.cat((labels * ~ignored, ignored.short()), 1) if regions else labels.where(~ignored, 2)
    abd = method(ignore_label=2, cutout_probability=1.0)
    abd.context = dataclasses.replace(abd.context, regions=regions)
    changed = abd.strong_batch(Batch(torch.randn(4, 1, 8, 8), [target], torch.randn(4, 1, 8, 8))).target
    kept = changed[:, 1:].bool() if regions else changed == 2
    assert torch.equal(kept, ignored)
    known = changed[:, :1][~ignored]
    assert (known == 0).any(), "background in a box"
    assert (known == 1).any()
