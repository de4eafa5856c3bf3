"""Dice and cross entropy of each mask alone, by hand-computed numbers."""

import math

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunetv2_vqseg.modules.losses.region import RegionLoss, scale_weights


def logits_of(*p: float) -> torch.Tensor:
    """Two classes; the probability of the second of each pixel of one row."""
    p = torch.tensor(p)
    return torch.stack((torch.zeros_like(p), (p / (1 - p)).log()))[None, :, None]


P = (0.8, 0.6, 0.3, 0.1)
LABELS = torch.tensor([1, 1, 0, 1]).view(1, 1, 1, 4)
LEFT = torch.tensor([True, True, False, False]).view(1, 1, 1, 4)


def test_each_pixel_counts_once_in_its_mask():
    left, right = RegionLoss()(logits_of(*P), LABELS, (LEFT, ~LEFT))
    entropy = -(math.log(0.8) + math.log(0.6)) / 2
    assert left.item() == pytest.approx(1 - 2 * 1.4 / (1.4 + 2) + entropy, rel=1e-4)
    entropy = -(math.log(0.7) + math.log(0.1)) / 2
    assert right.item() == pytest.approx(1 - 2 * 0.1 / (0.4 + 1) + entropy, rel=1e-4)


def test_the_original_s_dice_has_squares_and_a_background_that_knows_the_mask():
    left, right = RegionLoss("squared")(logits_of(*P), LABELS, (LEFT, ~LEFT))
    # In the left mask there is no background: the p of 0.2 and 0.4 are its whole sum. Over the whole image, as in the
    # published figures, it would be 2 * 0.7 / (0.2^2 + 0.4^2 + 0.7^2 + 0.9^2 + 1).
    entropy = -(math.log(0.8) + math.log(0.6)) / 2
    foreground = 2 * 1.4 / (0.64 + 0.36 + 2)
    assert left.item() == pytest.approx(1 - (foreground + 0.0) / 2 + entropy, rel=1e-3)
    entropy = -(math.log(0.7) + math.log(0.1)) / 2
    background, foreground = 2 * 0.7 / (0.49 + 0.81 + 1), 2 * 0.1 / (0.09 + 0.01 + 1)
    assert right.item() == pytest.approx(1 - (background + foreground) / 2 + entropy, rel=1e-3)


@pytest.mark.parametrize("dice", ["nnunet", "squared"])
def test_a_pixel_outside_of_the_mask_changes_nothing_and_gets_no_gradient(dice):
    logits = logits_of(*P).requires_grad_()
    RegionLoss(dice)(logits, LABELS, (LEFT,)).sum().backward()
    assert (logits.grad[..., :2] != 0).all()
    assert (logits.grad[..., 2:] == 0).all()
    other = LABELS.clone()
    other[..., 2:] = 1 - other[..., 2:]
    assert torch.equal(RegionLoss(dice)(logits, LABELS, (LEFT,)), RegionLoss(dice)(logits, other, (LEFT,)))


@pytest.mark.parametrize("ndim", [2, 3])
def test_with_a_mask_of_everything_it_is_nnunet_s_loss_at_every_scale(ndim):
    size = (16, 8, 8)[:ndim]
    outputs = [torch.randn(2, 3, *(side // factor for side in size)) for factor in (1, 2, 4)]
    target = torch.randint(3, (2, 1, *size))
    targets = [
        torch.nn.functional.interpolate(target.float(), output.shape[2:], mode="nearest-exact") for output in outputs
    ]
    settings = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    weights = scale_weights(3)
    assert weights == pytest.approx([2 / 3, 1 / 3, 0])
    nnunet = DeepSupervisionWrapper(DC_and_CE_loss(settings, {}, dice_class=MemoryEfficientSoftDiceLoss), weights)
    everywhere = torch.ones_like(target, dtype=torch.bool)
    mine = RegionLoss()(outputs, target, (everywhere,))
    assert mine.item() == pytest.approx(nnunet(outputs, targets).item() + 1, abs=1e-5)  # nnU-Net's Dice is negative


def test_regions_are_nnunet_s_loss_too():
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(2, (2, 3, 8, 8))
    settings = {"batch_dice": True, "smooth": 1e-5, "do_bg": True, "ddp": False}
    nnunet = DC_and_BCE_loss({}, settings, dice_class=MemoryEfficientSoftDiceLoss)
    mine = RegionLoss(regions=True)(logits, labels, (torch.ones(2, 1, 8, 8, dtype=torch.bool),))
    assert mine.item() == pytest.approx(nnunet(logits, labels.float()).item() + 1, abs=1e-5)


def test_coarser_scales_have_the_nearest_pixel_s_mask():
    fine, coarse = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2, requires_grad=True)
    labels = torch.ones(1, 1, 4, 4, dtype=torch.long)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., :2, :2] = True
    RegionLoss()([fine, coarse, torch.zeros(1, 2, 1, 1)], labels, (mask,)).sum().backward()
    assert (coarse.grad != 0).any(1)[0].tolist() == [[True, False], [False, False]]


def test_cross_entropy_alone_is_at_full_resolution():
    outputs = [logits_of(*P).requires_grad_(), torch.randn(1, 2, 1, 2, requires_grad=True)]
    loss = RegionLoss(None)(outputs, LABELS, (LEFT,)).sum()
    assert loss.item() == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2, rel=1e-5)
    loss.backward()
    assert (outputs[1].grad == 0).all(), "in the graph for DDP, with weight 0"


def test_an_empty_mask_gives_zero():
    logits = logits_of(*P).requires_grad_()
    loss = RegionLoss()(logits, LABELS, (LEFT & ~LEFT,))
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert (logits.grad == 0).all()
