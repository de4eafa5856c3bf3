"""The mean teacher and what can be changed about it, each by hand-computed numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.methods.mean_teacher import MeanTeacher, MeanTeacherConfig
from nnunetv2_vqseg.modules.views.rotate import Turn
from nnunetv2_vqseg.networks.backbone import NetworkPlan

OFF = {"jitter_strength": 0.0, "cutmix_probability": 0.0, "confidence_threshold": 0.0, "pseudo_loss": "ce"}


class Margin(nn.Module):
    """Two classes, or one region; the margin of the second is what the image says. `levels` scales, finest first."""

    def __init__(self, regions: bool = False, levels: int = 1) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.regions = regions
        self.levels = levels
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> Any:
        self.seen.append(x)
        logits = self.scale * x if self.regions else torch.cat((torch.zeros_like(x), self.scale * x), dim=1)
        outputs = [logits[..., :: 2**level, :: 2**level] for level in range(self.levels)]
        return outputs if self.training and self.levels > 1 else logits


def method(regions: bool = False, ignore_label: int | None = None, levels: int = 1, **settings: Any) -> MeanTeacher:
    plan = NetworkPlan((4, 4), [[1, 1]], 1, nn.Identity, heads=1 if regions else 2)
    made = MeanTeacher(MeanTeacherConfig(**OFF | settings), Context(plan, "cpu", regions, ignore_label))
    made.begin(Margin(regions, levels), lambda outputs, target: outputs[0].sum() * 0)
    made.student.train()
    return made


def flat(*values: float, side: int = 4) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, side, side).clone()


def batch(labeled: torch.Tensor, target: torch.Tensor, unlabeled: torch.Tensor) -> Batch:
    return Batch(labeled, [target.long()], unlabeled)


def entropy(margin: float, label: int) -> float:
    return math.log(1 + math.exp(-margin if label else margin))


def test_today_s_term_is_the_teacher_s_label_on_one_view():
    teacher = method()
    terms, _ = teacher.terms(batch(flat(3), flat(1), flat(2, -1)), 1.0)
    weight, value = terms["pseudo_strong"]
    assert weight == 1.0
    assert value.item() == pytest.approx((entropy(2, 1) + entropy(-1, 0)) / 2, rel=1e-5)
    assert len(teacher.student.seen[-1]) == 3
    assert teacher.unlabeled_views == 1


def test_several_strong_views_are_averaged_and_each_has_its_own_jitter():
    teacher = method(strong_view_count=3, jitter_strength=1.0)
    losses = []
    teacher.learn = lambda outputs, view: losses.append(torch.tensor(float(len(losses)))) or losses[-1]
    terms, _ = teacher.terms(batch(flat(3), flat(1), torch.randn(2, 1, 4, 4)), 1.0)
    assert terms["pseudo_strong"][1].item() == 1.0, "the mean of 0, 1 and 2"
    seen = teacher.student.seen[-1]
    assert len(seen) == 1 + 3 * 2
    first, second, third = seen[1:].split(2)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert teacher.unlabeled_views == 3


def test_labels_at_every_scale():
    teacher = method(levels=3, pseudo_loss="nnunet")
    target = [flat(1).long()] * 3
    images = flat(2)
    images[..., 1::2, 1::2] = 1.0  # pixels that the second scale of labels has and its logits do not
    images[..., 3:, 3:] = -1.0
    terms, _ = teacher.terms(Batch(flat(3), target, images), 1.0)
    fine = (12 * entropy(2, 1) + 3 * entropy(1, 1) + entropy(-1, 0)) / 16
    p = [1 / (1 + math.exp(-margin)) for margin in (2, 1, -1)]
    overlap = 12 * p[0] + 3 * p[1]
    fine += 1 - (2 * overlap + 1e-5) / (overlap + p[2] + 15 + 1e-5)
    coarse = (3 * entropy(2, 1) + entropy(2, 0)) / 4 + 1 - (6 * p[0] + 1e-5) / (4 * p[0] + 3 + 1e-5)
    assert terms["pseudo_strong"][1].item() == pytest.approx(2 / 3 * fine + coarse / 3, rel=1e-5)


@pytest.mark.parametrize("regions", [False, True])
def test_images_may_count_by_their_share_of_sure_pixels(regions):
    teacher = method(regions, pseudo_loss="image", confidence_threshold=0.8)
    images = torch.cat((flat(2), flat(2)))
    images[0, ..., 2:] = -1.0  # a confidence of 0.73
    terms, _ = teacher.terms(batch(flat(3), flat(1), images), 1.0)
    expected = (0.5 * (entropy(2, 1) + entropy(-1, 0)) / 2 + entropy(2, 1)) / 2
    assert terms["pseudo_strong"][1].item() == pytest.approx(expected, rel=1e-5)


def test_views_are_turned_with_the_labels_and_what_is_known_of_them():
    teacher = method(turn_probability=1.0, flip_probability=1.0)
    image = torch.arange(16.0).view(1, 1, 4, 4) - 7.5
    found = []
    teacher.learn = lambda outputs, view: found.append(view) or outputs[0].sum()
    for _ in range(12):
        teacher.terms(batch(flat(3), flat(1), image), 1.0)
    for view, seen in zip(found, teacher.student.seen, strict=True):
        assert torch.equal(seen[1:], view.images)
        assert torch.equal(view.labels, (view.images[:, 0] > 0).long())
        torch.testing.assert_close(view.confidence, view.images[:, 0].abs().sigmoid())
    expected = [Turn(quarters, (-1, -2)).apply(image) for quarters in (1, 2, 3)]
    assert all(any(torch.equal(view.images, turned) for turned in expected) for view in found)
    assert len({view.images[0, 0, 0, 0].item() for view in found}) == 3


def test_a_share_of_the_steps_is_turned():
    teacher = method(turn_probability=0.3)
    image = torch.arange(16.0).view(1, 1, 4, 4) - 7.5
    made = Batch(image, image.long(), image)
    views = [teacher.view(made, image[:, 0].long(), image[:, 0]) for _ in range(300)]
    assert sum(not torch.equal(view.images, image) for view in views) == pytest.approx(90, abs=30)


def test_patches_that_are_not_square_keep_their_shape():
    teacher = method(turn_probability=1.0, flip_probability=0.0)
    image = torch.arange(8.0).view(1, 1, 2, 4) - 3.5
    view = teacher.view(Batch(image, image.long(), image), image[:, 0].long(), image[:, 0])
    assert torch.equal(view.images, image.flip(2, 3))


@pytest.mark.parametrize("regions", [False, True])
def test_boxes_are_pasted_both_ways_with_the_expert_s_labels(regions):
    teacher = method(regions, ignore_label=2, copy_paste="box", box_share=0.5)
    target = flat(1, 0).long()  # of images that say the contrary
    target[:, :, 0] = 0
    ignored = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    ignored[:, :, :, 0] = True
    whole = torch.cat((target, ignored.long()), 1) if regions else torch.where(ignored, 2, target)
    labels = flat(1, 0)[:, 0].long()
    confidence = flat(0.7, 0.6)[:, 0]
    taught = [values[:, None] if regions else values for values in (labels, confidence)]
    made = Batch(flat(-3, 3), [whole], flat(5, -5))
    for _ in range(5):
        images, found, sure, _ = teacher.view(made, *taught)
        found, sure = (values[:, 0] if regions else values for values in (found, sure))
        box = images[0, 0] == -3
        assert box.sum() == 4, "half of each side"
        assert torch.equal(images[1, 0], torch.where(box, -5.0, 3.0)), "the second unlabelled in the second labelled"
        known = ~ignored[0, 0]
        assert torch.equal(found[0], torch.where(box, torch.where(known, target[0, 0], 0), 1))
        assert torch.equal(sure[0], torch.where(box, torch.where(known, 1.0, -1.0), 0.7))
        assert torch.equal(found[1], torch.where(box, 0, torch.where(known, target[1, 0], 0)))
        assert torch.equal(sure[1], torch.where(box, 0.6, torch.where(known, 1.0, -1.0)))


def test_an_ignored_pixel_that_is_pasted_teaches_nothing_without_a_threshold():
    losses = []
    for value in (1.0, 50.0):
        teacher = method(copy_paste="box", box_share=1.0, ignore_label=2)
        labeled, target = flat(2), flat(1).long()
        labeled[..., :2], target[..., :2] = value, 2
        losses.append(teacher.terms(Batch(labeled, [target], flat(-5)), 1.0)[0]["pseudo_strong"][1].item())
    assert losses == pytest.approx([entropy(2, 1) / 2] * 2, rel=1e-5), "half of the pixels count"


def test_organs_are_pasted_with_a_margin():
    teacher = method(copy_paste="organs", organ_margin=1)
    target = torch.zeros(2, 1, 4, 4).long()
    target[0, 0, 0, 0] = 1
    labels = torch.zeros(2, 4, 4).long()
    labels[1, 3, 3] = 1
    images, found, sure, _ = teacher.view(Batch(flat(1, 2), [target], flat(11, 12)), labels, flat(0.7, 0.6)[:, 0])
    assert images[:, 0].tolist() == [
        [[1, 1, 11, 11], [1, 1, 11, 11], [11] * 4, [11] * 4],
        [[2] * 4, [2] * 4, [2, 2, 12, 12], [2, 2, 12, 12]],
    ]
    assert found.nonzero().tolist() == [[0, 0, 0], [1, 3, 3]]
    torch.testing.assert_close(sure[0], torch.where(images[0, 0] == 1, 1.0, 0.7))
    torch.testing.assert_close(sure[1], torch.where(images[1, 0] == 2, 1.0, 0.6))


@pytest.mark.parametrize(("labeled", "unlabeled"), [(1, 1), (1, 3), (4, 3), (3, 2)])
def test_as_many_views_as_unlabelled_images_whatever_the_batch(labeled, unlabeled):
    teacher = method(copy_paste="box")
    target = torch.zeros(labeled, 1, 4, 4).long()
    view = teacher.view(
        Batch(torch.ones(labeled, 1, 4, 4), target, torch.zeros(unlabeled, 1, 4, 4)),
        torch.zeros(unlabeled, 4, 4).long(),
        torch.ones(unlabeled, 4, 4),
    )
    assert [len(values) for values in view] == [unlabeled] * 4
    assert all(0 < image.mean() < 1 for image in view.images), "each is of both"


@pytest.mark.parametrize("regions", [False, True])
def test_only_the_largest_part_of_the_teacher_s_labels_stays(regions):
    image = torch.tensor([[2.0, -1, -1, 1], [-1, -1, 3, 1], [-1] * 4, [-1] * 4])[None, None]
    labels, confidence, metrics = method(regions, largest_component=True).teach(image)
    labels, confidence = labels.view(4, 4), confidence.view(4, 4)
    assert labels.nonzero().tolist() == [[0, 3], [1, 2], [1, 3]]
    torch.testing.assert_close(confidence, image[0, 0].abs().sigmoid())
    assert metrics["kept_by_component"].item() == pytest.approx(3 / 4)


@pytest.mark.parametrize("regions", [False, True])
def test_thresholds_of_classes_decide_what_counts(regions):
    teacher = method(regions, class_thresholds="flexmatch", confidence_threshold=0.8, class_threshold_momentum=0.0)
    sure, unsure = 2.0, 1.0  # sigmoid: 0.88 and 0.73
    image = torch.tensor([[-sure, -sure, -sure, -unsure], [sure, unsure, unsure, unsure]])[None, None]
    labels, judged, metrics = teacher.teach(image)
    # shares 3/4 and 1/4; b = 1 and 1/3; thresholds 0.8 and 0.8 / 5
    assert judged.flatten().tolist() == [1, 1, 1, -1, 1, 1, 1, 1]
    assert metrics["kept_share"].item() == 7 / 8
    assert metrics["lowest_threshold"].item() == pytest.approx(0.16)
    value = teacher.pseudo(image if regions else torch.cat((torch.zeros_like(image), image), 1), labels, judged)
    assert value.item() == pytest.approx((4 * entropy(sure, 1) + 3 * entropy(unsure, 1)) / 8, rel=1e-5)
    other = method(regions, class_thresholds="flexmatch", confidence_threshold=0.8, class_threshold_momentum=0.0)
    other.load_state(teacher.state())
    assert torch.equal(other.thresholds.thresholds, teacher.thresholds.thresholds)
    del (old := teacher.state())["class_thresholds"]
    method(regions, class_thresholds="flexmatch").load_state(old)  # a checkpoint of an earlier version


@pytest.mark.parametrize("regions", [False, True])
def test_with_the_default_s_loss_pixels_below_their_class_s_threshold_learn_too(regions):
    """They count less of their image as sure, and are not left out as pixels without a label are."""
    keys = {"class_thresholds": "flexmatch", "class_threshold_momentum": 0.0, "confidence_threshold": 0.8}
    teacher = method(regions, pseudo_loss="image", **keys)
    sure, unsure = 2.0, 1.0
    image = torch.tensor([[-sure, -sure, -sure, -unsure], [sure, unsure, unsure, unsure]])[None, None]
    labels, judged, metrics = teacher.teach(image)
    assert metrics["kept_share"].item() == 7 / 8
    logits = image if regions else torch.cat((torch.zeros_like(image), image), 1)
    value = teacher.pseudo(logits.requires_grad_(), labels, judged)
    assert value.item() == pytest.approx(7 / 8 * (4 * entropy(sure, 1) + 4 * entropy(unsure, 1)) / 8, rel=1e-5)
    value.backward()
    assert (logits.grad[:, -1] != 0).all()
