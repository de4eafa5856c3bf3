"""Pseudo-labels at every scale: by hand, and against nnU-Net's own loss."""

import math

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunetv2_vqseg.modules.losses.pseudo_label import EveryScale, PseudoLabelLoss, pseudo_labels
from nnunetv2_vqseg.modules.targets import at_scales

LN2 = math.log(2)


def loss(threshold: float = 0.0, regions: bool = False) -> EveryScale:
    return EveryScale(PseudoLabelLoss(True, threshold, regions, absent=True))


def test_two_scales_by_hand():
    """Three classes equally likely everywhere; class 1 in the left half, class 2 nowhere, half of the pixels kept."""
    outputs = [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 1, 1)]
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[..., :2] = 1
    confidence = torch.full((1, 4, 4), 0.5)
    confidence[:, :2] = 0.9
    found = loss(0.8)(outputs, labels, confidence)
    entropy = math.log(3) / 2  # of all pixels, half of which are kept
    values = []
    for pixels in (16, 4):
        kept, own = pixels / 2, pixels / 4  # kept pixels, and those of class 1 among them
        dice = [(2 * own / 3 + 1e-5) / (kept / 3 + own + 1e-5), 1e-5 / (kept / 3 + 1e-5)]
        values.append(entropy + (0.5 * (1 - dice[0]) + 0.5 * (1 - dice[1])) / 2)  # half of each is kept
    assert found.item() == pytest.approx(2 / 3 * values[0] + 1 / 3 * values[1], rel=1e-5), "the coarsest counts 0"


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("regions", [False, True])
def test_without_a_threshold_the_gradient_is_that_of_nnu_net_s_loss(regions, ndim):
    outputs = [torch.randn(2, 4, *[side] * ndim, requires_grad=True) for side in (8, 4, 2)]
    teacher = torch.randn(2, 4, *[8] * ndim)
    teacher[:, 3] = -9  # a class that the teacher calls nowhere
    labels, confidence = pseudo_labels(teacher, regions)
    soft_dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": regions, "ddp": False}
    kind = (
        DC_and_BCE_loss({}, soft_dice, dice_class=MemoryEfficientSoftDiceLoss)
        if regions
        else DC_and_CE_loss(soft_dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    )
    theirs = DeepSupervisionWrapper(kind, [2 / 3, 1 / 3, 0.0])
    target = at_scales(labels.float() if regions else labels[:, None].float(), outputs)
    expected, found = theirs(outputs, target), loss(regions=regions)(outputs, labels, confidence)
    assert found.item() == pytest.approx(expected.item() + 1, rel=1e-5), "1 - Dice instead of -Dice"
    for one, other in zip(
        torch.autograd.grad(found, outputs[:2]), torch.autograd.grad(expected, outputs[:2]), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_class_that_is_nowhere_counts_as_much_as_pixels_are_kept():
    logits, labels = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    confidence = torch.tensor([[[0.9, 0.9], [0.9, 0.5]]])
    found = PseudoLabelLoss(True, 0.8, absent=True)(logits, labels, confidence)
    assert found.item() == pytest.approx(0.75 * LN2 + 0.75 * (1 - 1e-5 / (1.5 + 1e-5)), rel=1e-5)
    none = PseudoLabelLoss(True, 1.0, absent=True)(logits, labels, confidence)
    assert none.item() == 0
