"""What one step feeds to whom: by values that only the right wiring gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nnunetv2_vqseg.modules.losses.image_confidence import ImageConfidenceLoss

pytestmark = pytest.mark.slow

LEVELS = torch.tensor([0.25, 1.25])
"""Intensities of two unlabelled images; the teacher below calls the first class 1 and the second class 2."""


class Seen:
    """What teacher, student and the loss on pseudo-labels were given in one step."""

    def __init__(self) -> None:
        self.teacher: list[Tensor] = []
        self.student: list[Tensor] = []
        self.labels: list[tuple[Tensor, Tensor]] = []


def teacher_of(trainer: Any) -> Any:
    return trainer.method.teacher


def student_of(trainer: Any) -> Any:
    return trainer.network


@pytest.fixture
def started(make_trainer, monkeypatch):
    """started(trainer's name, **keys) -> a trainer whose unlabelled images are constant, and what a step shows."""

    def start(name: str = "nnUNetTrainerVQSeg", **block: Any) -> tuple[Any, Seen]:
        seen = Seen()
        block = {"jitter_strength": 0.0, "cutmix_probability": 1.0, "confidence_threshold": 0.5} | block
        trainer = make_trainer(name, **block)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        unlabeled = LEVELS.view(2, 1, 1, 1).expand(2, 1, 32, 32).clone()
        trainer.dataloader_unlabeled = iter([{"data": unlabeled.clone()} for _ in range(10)])

        def teach(images: Tensor) -> Tensor:
            seen.teacher.append(images)
            classes = torch.where(images[:, 0] < 0.75, 1, 2)
            return 9.0 * torch.nn.functional.one_hot(classes, 4).movedim(-1, 1).float()

        monkeypatch.setattr(teacher_of(trainer), "forward", teach)
        forward, loss = trainer.network.forward, ImageConfidenceLoss.__call__

        def learn(images: Tensor, *others: Any) -> Any:
            seen.student.append(images.detach().clone())
            return forward(images, *others)

        def compare(self: Any, logits: Tensor, labels: Tensor, confidence: Tensor) -> Tensor:
            seen.labels.append((labels.clone(), confidence.clone()))
            return loss(self, logits, labels, confidence)

        monkeypatch.setattr(trainer.network, "forward", learn)
        monkeypatch.setattr(ImageConfidenceLoss, "__call__", compare)
        return trainer, seen

    return start


@pytest.mark.parametrize(
    ("name", "one_view"),
    [
        ("nnUNetTrainerVQSeg", {"strong_view": False}),
        ("nnUNetTrainerMeanTeacher", {"strong_view_count": 1}),
        ("nnUNetTrainerMeanTeacherDropout", {"strong_view_count": 1}),
    ],
)
def test_teacher_sees_the_weak_view_and_student_and_labels_are_mixed_by_the_same_boxes(started, name, one_view):
    trainer, seen = started(name, **one_view)
    batch = next(trainer.dataloader_train)
    labeled = batch["data"].clone()
    trainer.train_step(batch)
    assert [tuple(images.shape) for images in seen.teacher] == [(2, 1, 32, 32)], "once, and the unlabelled images only"
    assert torch.equal(seen.teacher[0][:, 0, 0, 0], LEVELS), "as they come from the loader"
    assert torch.equal(seen.teacher[0].amax((2, 3)), seen.teacher[0].amin((2, 3))), "not mixed"

    (images,) = seen.student
    assert torch.equal(images[:2], labeled), "labelled images come first, as they are"
    ((labels, confidence),) = seen.labels
    mixed = images[2:, 0]
    assert torch.equal(labels, torch.where(mixed < 0.75, 1, 2)), "a pixel's label is that of the image it is from"
    assert all(0 < (labels[image] == 1).float().mean() < 1 for image in range(2)), "each image has a part of the other"
    assert (confidence > 0.99).all()


def test_weak_view_is_what_qpm_perturbs_where_the_plan_says_so(started):
    trainer, seen = started(perturbed_view="weak", strong_view=False)
    trainer.train_step(next(trainer.dataloader_train))
    assert torch.equal(seen.student[0][2:, 0, 0, 0], LEVELS)
    assert torch.equal(seen.student[0][2:].amax((2, 3)), seen.student[0][2:].amin((2, 3)))


def test_teacher_follows_after_a_step_and_not_after_a_skipped_one(started):
    trainer, _ = started(ema_decay=0.75, ema_warmup=1.0)
    teacher, student = teacher_of(trainer), student_of(trainer)

    def weights(module: Any) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    trainer.train_step(next(trainer.dataloader_train))
    assert int(teacher.n_averaged) == 1
    assert torch.equal(weights(teacher.module), weights(student)), "the first update copies"
    before = weights(teacher.module)
    trainer.train_step(next(trainer.dataloader_train))
    assert int(teacher.n_averaged) == 2
    expected = 0.5 * before + 0.5 * weights(student)  # the decay is min(1 - 1 / 2, 0.75), and the student has moved
    torch.testing.assert_close(weights(teacher.module), expected)
    assert not torch.equal(before, weights(student))

    broken = next(trainer.dataloader_train)
    broken["data"][:] = float("nan")
    kept, moved = weights(student), weights(teacher.module)
    trainer.train_step(broken)
    assert int(teacher.n_averaged) == 2
    assert torch.equal(weights(teacher.module), moved)
    assert torch.equal(weights(student), kept)
    trainer.train_step(next(trainer.dataloader_train))
    assert int(teacher.n_averaged) == 3, "and goes on where it was"


def test_progress_counts_steps_of_the_whole_training(started):
    """2 epochs of 3 steps: the ramp is over after 0.5 of them."""
    trainer, _ = started(ramp_up=0.5, lambda_u=2.0)
    for _ in range(4):
        trainer.train_step(next(trainer.dataloader_train))
    total, count = trainer.curves._sums["ramp"]
    # exp(-5 (1 - t / 3)^2) for t = 0, 1, 2 and 1 from then on
    assert count == 4
    assert total == pytest.approx(0.0067379 + 0.1083680 + 0.5737534 + 1.0, abs=1e-6)
