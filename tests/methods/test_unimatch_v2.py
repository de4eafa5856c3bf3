"""UniMatch V2: two complementary strong views learn the teacher's labels, by hand-computed numbers."""

import math

import pytest
import torch
from tiny_networks import context, plan_of, unet
from torch import nn

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.methods.unimatch_v2 import DroppedPairs, UniMatchV2, UniMatchV2Config
from nnunetv2_vqseg.networks.backbone import NetworkPlan

UNCHANGED = {"jitter_strength": 0.0, "cutmix_probability": 0.0}


class Margin(nn.Module):
    """Two classes; the margin of class 1 is what the image says."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls: list[tuple[torch.Tensor, int | None]] = []

    def forward(self, x: torch.Tensor, first: int | None = None) -> torch.Tensor:
        self.calls.append((x, first))
        return torch.cat((torch.zeros_like(x), self.scale * x), dim=1)


def method(**settings: object) -> UniMatchV2:
    plan = NetworkPlan((1, 2), [[1, 1]], 1, nn.Identity)
    made = UniMatchV2(UniMatchV2Config(**settings), Context(plan, device="cpu"))
    made.begin(Margin(), lambda outputs, target: outputs[0].sum() * 0)
    return made


def test_both_views_learn_the_teacher_s_sure_labels_over_all_pixels():
    v2 = method(**UNCHANGED)
    with torch.no_grad():
        v2.teacher.module.scale.fill_(-4.0)
    # The student's margins are 1 and 0.5; the teacher's -4 and -2 say class 0, of which the first alone is sure (0.98).
    unlabeled = torch.tensor([[[[1.0, 0.5]]], [[[1.0, 0.5]]]])
    terms, metrics = v2.terms(Batch(torch.zeros(3, 1, 1, 2), torch.zeros(1), unlabeled), progress=0.0)
    for name in ("pseudo_first", "pseudo_second"):
        weight, value = terms[name]
        assert weight == 0.5
        assert value.item() == pytest.approx(math.log(1 + math.exp(1)) / 2, rel=1e-5), "half of the pixels count"
    assert terms["supervised"][0] == 1.0
    assert metrics["kept_share"] == 0.5
    ((images, first),) = v2.student.calls
    assert images.shape[0] == 3 + 2 + 2, "labelled images and both views pass the student once"
    assert first == 3, "labelled images keep their features"
    sum(weight * value for weight, value in terms.values()).backward()
    assert v2.student.scale.grad is not None
    assert v2.teacher.module.scale.grad is None


def test_each_view_has_a_jitter_and_a_box_of_its_own_and_labels_with_the_box():
    v2 = method(cutmix_probability=1.0, cutmix_area=(0.3, 0.4), confidence_threshold=0.0)
    pattern = torch.ones(1, 1, 40, 40)
    unlabeled = torch.cat((-4.0 * pattern, 4.0 * pattern))  # one image is class 0, the other class 1
    found = []
    v2.pseudo = lambda logits, labels, confidence: found.append((logits, labels)) or logits.sum() * 0
    v2.terms(Batch(torch.zeros(1, 1, 40, 40), torch.zeros(1), unlabeled), progress=0.0)
    (first, first_labels), (second, second_labels) = found
    assert not torch.equal(first, second)
    assert not torch.equal(first_labels, second_labels)
    for labels in (first_labels, second_labels):
        assert 0.25 < labels[0].float().mean() < 0.45, "a box of the other image's label"
        assert 0.55 < labels[1].float().mean() < 0.75


def test_the_two_views_of_an_image_get_the_two_masks_of_that_image():
    change = DroppedPairs(kept_images=0.0, stage=1)
    x = torch.rand(2, 12, 2, 2) + 1
    maps = [torch.ones(2 + 4, 3, 4, 4), torch.cat((torch.ones(2, 12, 2, 2), x, x))]
    shallow, deep = change(maps, 2)
    assert shallow is maps[0]
    assert torch.equal(deep[:2], maps[1][:2]), "labelled images keep everything"
    first, second = deep[2:4], deep[4:]
    torch.testing.assert_close(first + second, 2 * x)
    assert ((first == 0) ^ (second == 0)).all(), "what one view loses, the other has twice"


def test_weights_of_the_original():
    config = UniMatchV2Config()
    assert (config.ema_decay, config.ema_warmup, config.confidence_threshold) == (0.996, 1.0, 0.95)
    assert config.unlabeled_weight(0.0) == config.unlabeled_weight(1.0) == 1.0, "without a ramp"


def test_the_student_is_saved_as_in_the_original_or_the_teacher():
    v2 = method()
    assert v2.predictor() is v2.student
    teacher = method(saved_network="teacher")
    assert teacher.predictor() is teacher.teacher.module


def test_a_stage_that_the_plan_lacks_is_refused():
    made = UniMatchV2(UniMatchV2Config(first_dropped_stage=4), context(plan_of(unet())))
    with pytest.raises(ConfigError, match="stages 0 to 3"):
        made.training_network()
