"""ARCO: who is an anchor, a positive and a negative, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_networks import context, plan_of, unet
from torch import nn

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.arco import ARCO, ARCOConfig
from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.modules.losses.image_confidence import ImageConfidenceLoss
from nnunetv2_vqseg.modules.losses.pseudo_label import PseudoLabelLoss
from nnunetv2_vqseg.networks.tap import RepresentedUNet, Tapped


class Painted(RepresentedUNet):
    """The image's three channels: the margin of class 1 over class 0, and both numbers of the vectors.

    Vectors are half as large as the image; those of the student are turned by a right angle.
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.unet = nn.Module()
        self.unet.decoder = nn.Module()
        self.unet.decoder.num_classes = 2
        self.scale = nn.Parameter(torch.ones(()))

    def represent(self, images: torch.Tensor) -> Tapped:
        logits = torch.cat((torch.zeros_like(images[:, :1]), images[:, :1]), 1) * self.scale
        return Tapped(logits, images[:, 1:, ::2, ::2] * self.scale)

    def forward(self, x: torch.Tensor) -> Any:
        logits, vectors = self.represent(x)
        turned = torch.stack((-vectors[:, 1], vectors[:, 0]), 1)
        return Tapped([logits], turned) if self.training else logits


def painted(**settings: Any) -> ARCO:
    keys = {"representation_dim": 2, "cutmix_probability": 0.0, "jitter_strength": 0.0, "anchors": 4, "negatives": 6}
    plan = plan_of(nn.Identity())
    made = ARCO(ARCOConfig(**{**keys, "queue_size": 8, "queue_push": 8} | settings), Context(plan, torch.device("cpu")))
    made.begin(Painted().train(), lambda outputs, target: outputs[0].sum() * 0)
    return made


def image(margins: list[float], first: list[float], second: list[float]) -> torch.Tensor:
    """(1, 3, 2, 2 N): one row of N places, each of four equal pixels."""
    places = torch.tensor([margins, first, second], dtype=torch.float32)[None, :, None]
    return places.repeat_interleave(2, 2).repeat_interleave(2, 3)


def labels(values: list[int]) -> torch.Tensor:
    return image(values, values, values)[:, :1]


LABELED = image([-2.0, 3.0, -3.0, 4.0], [1.0, 1.0, -1.0, 0.0], [0.0, 2.0, 2.0, 1.0])
TARGET = labels([0, 1, 1, 2])  # the third is unlikely to the teacher, the last has no label
UNLABELED = image([9.0, -8.0, 1.0, 0.1], [1.0, 1.0, 5.0, 5.0], [2.0, 0.0, 5.0, 5.0])


def members(arco: ARCO, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.cat((LABELED, UNLABELED))
    all_labels = torch.cat((TARGET, labels([1, 0, 1, 1])))[:, 0].long()
    _, found, likely = arco.members(images, arco.student(images), all_labels, 1, progress)
    return found[:, 0], likely[:, 0]


@pytest.mark.parametrize(
    ("certain", "progress", "unlabeled"),
    [(1.0, 0.0, [1, 0, 1, 1]), (0.5, 0.0, [1, 0, -1, -1]), (1.0, 0.5, [1, 0, -1, -1]), (1.0, 1.0, [1, -1, -1, -1])],
)
def test_unlabeled_places_take_part_where_the_student_has_the_least_entropy(certain, progress, unlabeled):
    found, likely = members(painted(certain_share=certain), progress)
    assert found[1].tolist() == unlabeled
    assert found[0].tolist() == [0, 1, 1, 2], "labelled ones always; 2 is no class"
    assert likely[0, :3].tolist() == [True, True, False]
    assert likely[1].tolist() == [True] * 4


def test_contrast_by_hand():
    arco = painted(certain_share=0.5)
    terms, metrics = arco.terms(Batch(LABELED, [TARGET], UNLABELED), 0.0)
    # The teacher's vectors of class 0 are (1, 0), of class 1 (1, 2), (-1, 2), which is no anchor, and (1, 2).
    # The student's are turned: anchors (0, 1) of class 0 and (-2, 1) of class 1; the means are (1, 0) and (1, 6) / 3.
    # All six negatives of a class 0 anchor have the cosine 2 / sqrt(5), those of class 1 its opposite.
    negative = 2 / math.sqrt(5)
    first = math.log(1 + 6 * math.exp(2 * negative))
    second = math.log(1 + 6 * math.exp(-2 * negative - 2 * 4 / math.sqrt(5 * 37)))
    assert terms["contrast"][0] == pytest.approx(0.01)
    assert terms["contrast"][1].item() == pytest.approx((first + second) / 2, rel=1e-5)
    assert metrics["classes_present"] == 1.0
    assert metrics["queue_share"] == 1.0
    terms["contrast"][1].backward()
    assert arco.student.scale.grad is not None
    assert arco.teacher.module.scale.grad is None


def test_a_class_that_the_teacher_finds_unlikely_has_no_anchor_but_is_a_negative():
    arco = painted(certain_share=0.0)
    sure_of_0 = image([-9.0, -8.0, -7.0, -6.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0])
    terms, metrics = arco.terms(Batch(LABELED, [labels([0, 2, 1, 2])], sure_of_0), 0.0)
    # Anchors (0, 1), mean (1, 0), negatives (-1, 2).
    assert terms["contrast"][1].item() == pytest.approx(math.log(1 + 6 * math.exp(2 * 2 / math.sqrt(5))), rel=1e-5)
    assert metrics["classes_present"] == 0.5


def test_a_class_alone_has_no_negatives_and_counts_nothing():
    arco = painted()
    terms, metrics = arco.terms(Batch(LABELED[..., 2:4], [TARGET[..., 2:4]], UNLABELED[..., :2]), 0.0)
    assert terms["contrast"][1] == 0.0
    assert metrics["classes_present"] == 0.0
    terms["contrast"][1].backward()
    assert arco.student.scale.grad == 0.0


def test_the_queues_keep_what_a_step_that_was_taken_put_in():
    arco, other = painted(), painted()
    arco.terms(Batch(LABELED, [TARGET], UNLABELED), 0.0)
    assert not arco.queue.sizes.any()
    arco.after_step()
    assert arco.queue.sizes.any()
    state = arco.state()
    other.load_state({"teacher": state["teacher"]}, strict=False)
    other.load_state(state)
    assert all(torch.equal(*pair) for pair in zip(arco.queue, other.queue, strict=True))
    with pytest.raises(KeyError):
        other.load_state({"teacher": state["teacher"]})


def test_losses_of_the_teacher_s_labels():
    assert isinstance(painted().pseudo, ImageConfidenceLoss)
    assert painted().pseudo.threshold == 0.97
    for name in ("ce", "ce_dice"):
        pseudo = painted(pseudo_loss=name).pseudo
        assert isinstance(pseudo, PseudoLabelLoss)
        assert pseudo.use_dice == (name == "ce_dice")
    terms, _ = painted().terms(Batch(LABELED, [TARGET], UNLABELED), 0.0)
    assert terms["pseudo_strong"][0] == 1.0
    margins = torch.tensor([9.0, -8.0, 1.0, 0.1])
    expected = 0.5 * (1 + (-margins.abs()).exp()).log().mean()  # the first two of four are sure
    torch.testing.assert_close(terms["pseudo_strong"][1], expected)


@pytest.mark.parametrize(("asked", "level"), [(0, 0), (2, 2), (9, 2)])
def test_vectors_are_of_the_asked_stage_or_the_deepest_of_the_decoder(asked, level):
    plan = plan_of(None)._replace(build=lambda: unet())
    network = ARCO(ARCOConfig(representation_level=asked), context(plan)).training_network()
    assert network(torch.randn(1, 1, 32, 32)).features.shape == (1, 128, 32 // 2**level, 32 // 2**level)


def test_the_student_or_the_teacher_is_saved_without_heads():
    for saved in ("student", "teacher"):
        plan = plan_of(None)._replace(build=lambda: unet())
        arco = ARCO(ARCOConfig(saved_network=saved), context(plan))
        arco.begin(arco.training_network(), lambda outputs, target: outputs[0].mean())
        expected = arco.student if saved == "student" else arco.teacher.module
        assert arco.predictor() is expected.unet
        assert arco.pretrained() == [arco.student.unet]
        assert list(arco.predictor().state_dict()) == list(unet().state_dict())


def test_regions_are_refused():
    with pytest.raises(ConfigError, match="ARCO compares pixels class by class"):
        ARCO(ARCOConfig(), replace(context(plan_of(nn.Identity())), regions=True))
