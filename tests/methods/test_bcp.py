"""BCP: what is mixed, what each part is compared with, and the teacher before, at and after the change of stages."""

import math

import pytest
import torch
from torch import nn

from nnunetv2_vqseg.methods.base import Batch, Context
from nnunetv2_vqseg.methods.bcp import BCP, BCPConfig
from nnunetv2_vqseg.networks.backbone import NetworkPlan

BOX = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)[None, None]


class Margin(nn.Module):
    """Two classes, or one region; the margin of the second is what the image says."""

    def __init__(self, regions: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.regions = regions
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return self.scale * x if self.regions else torch.cat((torch.zeros_like(x), self.scale * x), dim=1)


def method(regions: bool = False, ignore_label: int | None = None, **settings: object) -> BCP:
    plan = NetworkPlan((3, 3), [[1, 1]], 1, nn.Identity)
    context = Context(plan, device="cpu", regions=regions, ignore_label=ignore_label)
    made = BCP(BCPConfig(**settings), context)
    made.begin(Margin(regions), lambda outputs, target: outputs[0].sum() * 0)
    made.box = lambda batch: BOX
    return made


def images(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 3, 3).clone()


def entropy(margin: float, label: int) -> float:
    return math.log(1 + math.exp(-margin if label else margin))


# Two labelled images of class 1 and 0, and two that the teacher calls class 1 and 0.
BATCH = Batch(images(3, 1), images(1, 0).long(), images(2, -4))


def test_the_first_stage_learns_mixed_labelled_images_alone():
    bcp = method(supervised_loss="ce")
    bcp.before_step(0.24)
    terms, _ = bcp.terms(BATCH._replace(unlabeled=images(math.nan)), 0.24)
    assert terms.keys() == {"supervised"}
    [seen] = bcp.student.seen
    assert torch.equal(seen, torch.where(BOX, images(3), images(1))), "half as many mixed images as labelled ones"
    weight, loss = terms["supervised"]
    assert weight == 1.0
    assert loss.item() == pytest.approx((entropy(3, 1) + entropy(1, 0)) / 2, rel=1e-5)


def test_the_second_stage_pastes_both_ways_and_weighs_what_the_teacher_says():
    bcp = method(supervised_loss="ce")
    bcp.before_step(0.25)
    terms, metrics = bcp.terms(BATCH, 0.25)
    mixed = bcp.student.seen[-1]
    assert torch.equal(mixed[:1], torch.where(BOX, images(3), images(2))), "a labelled box in an unlabelled image"
    assert torch.equal(mixed[1:], torch.where(BOX, images(-4), images(1))), "an unlabelled box in a labelled image"
    supervised, pseudo = terms["supervised"], terms["pseudo"]
    assert supervised[0] == 1.0
    assert supervised[1].item() == pytest.approx((entropy(3, 1) + entropy(1, 0)) / 2, rel=1e-5)
    assert pseudo[0] == 0.5
    assert pseudo[1].item() == pytest.approx((entropy(2, 1) + entropy(-4, 0)) / 2, rel=1e-5)
    assert metrics["foreground"] == 0.5
    (supervised[1] + pseudo[1]).backward()
    assert bcp.student.scale.grad is not None
    assert bcp.teacher.module.scale.grad is None


def test_the_labels_are_the_teacher_s_largest_components():
    unlabeled = torch.tensor([[1.0, -1, 1], [-1, -1, 1], [-1, -1, 1]])[None, None]
    bcp = method()
    taught, metrics = bcp.teach(unlabeled)
    assert taught.labels[0, 0].tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 1]]
    assert metrics["kept_by_component"].item() == pytest.approx(0.75)
    taught, metrics = method(largest_component=False).teach(unlabeled)
    assert taught.labels[0, 0].tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 1]]
    assert metrics["kept_by_component"] == 1.0
    taught, _ = method(regions=True).teach(unlabeled)
    assert taught.labels[0, 0].tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 1]]
    assert taught.known.all()


@pytest.mark.parametrize("progress", [0.0, 0.5])
@pytest.mark.parametrize("regions", [False, True])
def test_ignored_pixels_teach_nothing(progress, regions):
    bcp = method(regions=regions, ignore_label=2, lambda_u=0.0)
    bcp.before_step(progress)
    ignored = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    ignored[:, :, :2] = True
    labels = images(1, 0).long()
    target = torch.cat((labels, ignored.long()), 1) if regions else torch.where(ignored, 2, labels)
    losses = []
    for spoiled in (0.0, 100.0):
        batch = Batch(images(3, 1) + spoiled * ignored, target, images(2, -4))
        losses.append(bcp.terms(batch, progress)[0]["supervised"][1].item())
    assert losses[0] == losses[1] > 0


@pytest.mark.parametrize(("labeled", "unlabeled"), [(1, 1), (3, 3), (1, 2), (3, 2)])
def test_any_batch_is_mixed_and_every_image_used(labeled, unlabeled):
    bcp = method()
    values = torch.arange(1.0, labeled + 1).tolist(), torch.arange(11.0, unlabeled + 11).tolist()
    batch = Batch(images(*values[0]), images(*values[0]).clamp(max=1).long(), images(*values[1]))
    for progress in (0.0, 0.5):
        bcp.before_step(progress)
        assert all(torch.isfinite(value) for _, value in bcp.terms(batch, progress)[0].values())
        seen = set(bcp.student.seen[-1].flatten().tolist())
        assert seen == set(values[0]) | set(values[1] if progress else [])
    assert len(bcp.student.seen[-1]) == 2 * math.ceil(max(labeled, unlabeled) / 2)


def moved(bcp: BCP, to: float, progress: float) -> float:
    """The teacher's weight after a step in which the student's has become another."""
    bcp.before_step(progress)
    with torch.no_grad():
        bcp.student.scale.fill_(to)
    bcp.after_step()
    return bcp.teacher.module.scale.item()


@pytest.mark.parametrize("resumed", [False, True], ids=["in one go", "continued at the change"])
def test_the_teacher_starts_the_second_stage_as_a_copy_and_follows_at_a_constant_rate(resumed):
    bcp = method()
    assert moved(bcp, 5.0, progress=0.1) == 5.0
    assert moved(bcp, 7.0, progress=0.2) == 7.0
    if resumed:
        before, bcp = bcp, method()
        bcp.student.load_state_dict(before.student.state_dict())
        bcp.load_state(before.state())
    bcp.before_step(0.25)
    assert bcp.teacher.module.scale == 7.0, "what labels the images of the second stage's first step"
    assert moved(bcp, 9.0, progress=0.25) == pytest.approx(0.99 * 7 + 0.01 * 9)
    assert moved(bcp, 9.0, progress=0.30) == pytest.approx(0.99 * (0.99 * 7 + 0.01 * 9) + 0.01 * 9)


def test_the_second_stage_once_begun_goes_on_where_the_training_was_made_longer():
    bcp = method()
    moved(bcp, 7.0, progress=0.2)
    moved(bcp, 9.0, progress=0.3)
    longer = method()
    longer.student.load_state_dict(bcp.student.state_dict())
    longer.load_state(bcp.state())
    longer.before_step(0.15)  # twice as many epochs
    assert longer.terms(BATCH, 0.15)[0].keys() == {"supervised", "pseudo"}
    before = longer.teacher.module.scale.item()
    assert moved(longer, 5.0, progress=0.15) == pytest.approx(0.99 * before + 0.01 * 5)


def test_the_loss_of_the_original_is_at_full_resolution_with_squares():
    bcp = method(supervised_loss="literature")
    wrong = torch.tensor([0.0, 50.0]).view(1, 2, 1, 1)
    coarse = [wrong.expand(1, 2, side, side) for side in (2, 1)]
    bcp.student.forward = lambda x: [torch.cat((torch.zeros_like(x), x), 1), *coarse]
    loss = bcp.terms(BATCH, 0.0)[0]["supervised"][1]
    # Inside class 1 with margin 3, outside class 0 with margin 1: 2 p / (p^2 + 1) and, of the class that is not there,
    # 0, of as many pixels.
    p, q = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(1))
    dice = 1 - (2 * p / (p**2 + 1)) / 2, 1 - (2 * q / (q**2 + 1)) / 2
    assert loss.item() == pytest.approx((sum(dice) + entropy(3, 1) + entropy(1, 0)) / 2, rel=1e-3)


def test_the_student_is_saved_as_in_the_original_or_the_teacher():
    bcp = method()
    assert bcp.predictor() is bcp.student
    teacher = method(saved_network="teacher")
    assert teacher.predictor() is teacher.teacher.module


def test_the_box_is_drawn_anew_each_step():
    bcp = method()
    del bcp.box
    torch.manual_seed(0)
    batch = Batch(torch.zeros(1, 1, 12, 12), torch.zeros(1))
    boxes = [bcp.box(batch) for _ in range(5)]
    assert all(box.sum() == 64 for box in boxes)
    assert any(not torch.equal(boxes[0], box) for box in boxes)
