"""UA-MT: consistency where the teacher is certain, by hand-computed numbers."""

import math

import pytest
import torch
from torch import nn

from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.methods.ua_mt import UAMT, UAMTConfig
from nnunetv2_vqseg.networks.backbone import NetworkPlan


class Margin(nn.Module):
    """Two classes; the margin of class 1 is what the image says."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, first: int | None = None) -> torch.Tensor:
        assert first == 0, "dropout is on for every image, of the student and of the teacher"
        self.seen.append(x)
        return torch.cat((torch.zeros_like(x), self.scale * x), dim=1)


def method(**settings: object) -> UAMT:
    plan = NetworkPlan((1, 2), [[1, 1]], 1, nn.Identity)
    made = UAMT(UAMTConfig(**settings), Context(plan, device="cpu"))
    made.begin(Margin(), lambda outputs, target: outputs[0].sum() * 0)
    return made


def test_certain_pixels_agree_with_one_noisy_pass_of_the_teacher():
    ua = method(noise=0.0, ramp_up=0.0)
    with torch.no_grad():
        ua.teacher.module.scale.fill_(2.0)
    # The teacher's margins are 4 and 0: entropy 0.09 and ln 2 = 0.693, so that only the first pixel counts.
    unlabeled = torch.tensor([[[[2.0, 0.0]]]])
    terms, metrics = ua.terms(Batch(torch.zeros(1, 1, 1, 2), torch.zeros(1), unlabeled), progress=0.0)
    student, teacher = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-4))
    expected = 2 * (student - teacher) ** 2 / 2  # both classes differ by as much; the mask's sum is doubled
    assert terms["consistency"][1].item() == pytest.approx(expected, rel=1e-5)
    assert terms["consistency"][0] == pytest.approx(0.1)
    assert metrics["certain_share"] == 0.5
    terms["consistency"][1].backward()
    assert ua.student.scale.grad is not None
    assert ua.teacher.module.scale.grad is None


@pytest.mark.parametrize(
    ("progress", "limit"), [(0.0, 0.75 + 0.25 * math.exp(-5)), (0.5, 0.75 + 0.25 * math.exp(-1.25)), (1.0, 1.0)]
)
def test_limit_of_the_entropy_rises_to_ln_2(progress, limit):
    ua = method(noise=0.0)

    def share_at(entropy: float) -> float:
        low, high = 0.0, 20.0  # the margin with this entropy, by bisection
        for _ in range(60):
            margin = (low + high) / 2
            p = 1 / (1 + math.exp(-margin))
            low, high = (margin, high) if -p * math.log(p) - (1 - p) * math.log(1 - p) > entropy else (low, margin)
        image = torch.full((1, 1, 1, 2), low)
        return ua.terms(Batch(torch.zeros(1, 1, 1, 2), torch.zeros(1), image), progress)[1]["certain_share"].item()

    assert share_at((limit - 0.01) * math.log(2)) == 1.0
    assert progress == 1.0 or share_at((limit + 0.01) * math.log(2)) == 0.0


def test_noise_is_drawn_anew_for_each_of_nine_passes_and_limited():
    ua = method(noise=1.0, noise_limit=1.4)
    images = torch.full((4, 1, 1, 200), 5.0)
    ua.teach(images)
    seen = torch.stack(ua.teacher.module.seen) - images
    assert len(seen) == 1 + 8
    assert not torch.equal(seen[0], seen[1])
    assert seen.abs().max() == pytest.approx(1.4, abs=1e-5)
    assert seen.clamp(-1.39, 1.39).std() == pytest.approx(0.84, abs=0.03)  # of a normal distribution cut there
    relative = UAMT(UAMTConfig(noise=1.0), Context(ua.context.plan, device="cpu", z_scored=False))
    relative.begin(Margin(), ua.supervised)
    images = 100.0 * torch.randn(4, 1, 1, 200)
    relative.teach(images)
    assert (relative.teacher.module.seen[0] - images).std() > 50, "in units of the image's own spread"


def test_target_is_one_pass_and_not_the_mean_of_all():
    ua = method(noise=3.0, noise_limit=100.0)
    torch.manual_seed(1)
    target, _ = ua.teach(torch.zeros(1, 1, 1, 500))
    one = torch.sigmoid(ua.teacher.module.seen[0])[:, 0]
    torch.testing.assert_close(target[:, 1], one)


def test_the_student_is_saved_as_in_the_original_or_the_teacher():
    ua = method()
    assert ua.predictor() is ua.student
    teacher = method(saved_network="teacher")
    assert teacher.predictor() is teacher.teacher.module
