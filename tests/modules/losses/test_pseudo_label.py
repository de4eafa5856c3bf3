"""Pseudo-label losses against plain loops, and over two processes against one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nnunetv2_vqseg.modules.losses.pseudo_label import PseudoLabelLoss, kept_share, pseudo_labels
from nnunetv2_vqseg.modules.losses.reconstruction import channel_scale, reconstruction_loss

SMOOTH = 1e-5


def example(regions: bool, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 3, 4, 5, generator=generator) * 2
    teacher = torch.randn(4, 3, 4, 5, generator=generator) * 2
    return logits, *pseudo_labels(teacher, regions)


def cross_entropy_by_hand(logits, labels, confidence, threshold):
    batch, _, height, width = logits.shape
    total = 0.0
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                if confidence[b, y, x] >= threshold:
                    scores = [math.exp(v) for v in logits[b, :, y, x].tolist()]
                    total -= math.log(scores[labels[b, y, x]] / sum(scores))
    return total / (batch * height * width)


def dice_by_hand(probability, reference, kept):
    """Mean over classes of 1 - Dice over the kept pixels of the whole batch, times their share of the class."""
    losses = []
    for c in range(probability.shape[1]):
        p, r = probability[:, c][kept[:, c]].tolist(), reference[:, c][kept[:, c]].tolist()
        overlap = sum(a * b for a, b in zip(p, r, strict=True))
        share = sum(r) / max(1.0, float(reference[:, c].sum()))
        losses.append(share * (1 - (2 * overlap + SMOOTH) / (sum(p) + sum(r) + SMOOTH)))
    return sum(losses) / len(losses)


def test_pseudo_labels_are_the_largest_probability():
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.06, 0.04]])).T[None, :, :, None]  # (1, 3, 2, 1)
    labels, confidence = pseudo_labels(logits)
    assert labels.dtype == torch.int64
    assert labels[0, :, 0].tolist() == [1, 0]
    torch.testing.assert_close(confidence[0, :, 0], torch.tensor([0.5, 0.9]))


def test_pseudo_labels_of_regions_are_sure_on_both_sides():
    logits = torch.logit(torch.tensor([0.97, 0.2, 0.5])).reshape(1, 3, 1, 1)
    labels, confidence = pseudo_labels(logits, regions=True)
    assert labels.flatten().tolist() == [1, 0, 0]
    torch.testing.assert_close(confidence.flatten(), torch.tensor([0.97, 0.8, 0.5]))


def test_kept_share_counts_the_threshold_in():
    assert kept_share(torch.tensor([0.1, 0.5, 0.95, 0.99]), 0.95).item() == 0.5


@pytest.mark.parametrize("threshold", [0.0, 0.7, 0.95])
def test_cross_entropy_equals_a_loop(threshold):
    logits, labels, confidence = example(regions=False)
    loss = PseudoLabelLoss(use_dice=False, threshold=threshold)(logits, labels, confidence)
    assert loss.item() == pytest.approx(cross_entropy_by_hand(logits, labels, confidence, threshold), rel=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_dice_equals_a_loop(threshold):
    logits, labels, confidence = example(regions=False)
    both = PseudoLabelLoss(use_dice=True, threshold=threshold)(logits, labels, confidence)
    entropy = PseudoLabelLoss(use_dice=False, threshold=threshold)(logits, labels, confidence)
    reference = torch.stack([labels == 1, labels == 2], dim=1).float()
    kept = (confidence >= threshold)[:, None].expand_as(reference)
    expected = dice_by_hand(logits.softmax(dim=1)[:, 1:], reference, kept)
    assert (both - entropy).item() == pytest.approx(expected, rel=1e-5)


def test_regions_equal_a_loop():
    logits, labels, confidence = example(regions=True)
    kept = confidence >= 0.8
    total = 0.0
    for z, y, k in zip(logits.flatten().tolist(), labels.flatten().tolist(), kept.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        total -= k * math.log(p if y else 1 - p)
    entropy = PseudoLabelLoss(use_dice=False, threshold=0.8, regions=True)(logits, labels, confidence)
    assert entropy.item() == pytest.approx(total / logits.numel(), rel=1e-5)
    both = PseudoLabelLoss(use_dice=True, threshold=0.8, regions=True)(logits, labels, confidence)
    expected = dice_by_hand(logits.sigmoid(), labels.float(), kept)
    assert (both - entropy).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("use_dice", [False, True])
@pytest.mark.parametrize("foreground", [0.5, 0.02])
@pytest.mark.parametrize("regions", [False, True])
def test_the_gradient_never_grows_when_the_threshold_rises(regions, foreground, use_dice):
    """Whatever is dropped first: at random, or the foreground, as where the teacher is sure of the background only."""
    shape = (4, 4, 64, 64)
    logits = torch.randn(shape)
    labels = (torch.rand(shape if regions else (4, 64, 64)) < foreground) * torch.randint(1, 2 if regions else 4, ())
    for confidence in (torch.rand(labels.shape), torch.where(labels > 0, 0.5, 1.0) * torch.rand(labels.shape)):
        norms = []
        for threshold in (0.0, 0.2, 0.45, 0.6, 0.9, 0.99, 0.999):
            leaf = logits.clone().requires_grad_(True)
            PseudoLabelLoss(use_dice, threshold, regions)(leaf, labels, confidence).backward()
            norms.append(leaf.grad.norm().item())
        assert norms[0] > 0
        assert norms == sorted(norms, reverse=True), norms


def test_where_only_background_is_sure_dice_says_nothing():
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[0, :4] = 1
    confidence = torch.where(labels == 0, 1.0, 0.5)
    logits = torch.randn(1, 2, 8, 8)
    with_dice = PseudoLabelLoss(use_dice=True, threshold=0.9)(logits, labels, confidence)
    assert with_dice == PseudoLabelLoss(use_dice=False, threshold=0.9)(logits, labels, confidence)


@pytest.mark.parametrize("regions", [False, True])
def test_no_gradient_where_the_teacher_is_unsure(regions):
    logits, labels, confidence = example(regions)
    logits.requires_grad_(True)
    PseudoLabelLoss(use_dice=True, threshold=0.8, regions=regions)(logits, labels, confidence).backward()
    kept = confidence >= 0.8
    kept = kept if regions else kept[:, None].expand_as(logits)
    assert 0 < kept.float().mean() < 1
    assert (logits.grad[~kept] == 0).all()
    assert (logits.grad[kept] != 0).all()


@pytest.mark.parametrize("regions", [False, True])
def test_nothing_kept_is_zero_with_a_gradient_path(regions):
    logits, labels, confidence = example(regions)
    logits.requires_grad_(True)
    loss = PseudoLabelLoss(use_dice=True, threshold=1.0, regions=regions)(logits, labels, confidence * 0.99)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("regions", [False, True])
def test_volumes_have_the_loss_of_images_of_the_same_voxels(regions):
    teacher, logits = torch.randn(2, 2, 3, 4, 5, 6)
    loss = PseudoLabelLoss(use_dice=True, threshold=0.6, regions=regions)
    found = loss(logits, *pseudo_labels(teacher, regions))
    expected = loss(logits.flatten(2, 3), *pseudo_labels(teacher.flatten(2, 3), regions))
    torch.testing.assert_close(found, expected)
    assert found > 0.5


def test_a_perfect_student_has_no_loss():
    labels = torch.randint(3, (2, 6, 6))
    logits = 50 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    assert PseudoLabelLoss(use_dice=True)(logits, labels, torch.ones(2, 6, 6)).item() < 1e-6


def test_half_precision_logits_give_a_float32_loss():
    logits, labels, confidence = example(regions=False)
    half = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = PseudoLabelLoss(use_dice=True)(half, labels, confidence)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, PseudoLabelLoss(use_dice=True)(half.float(), labels, confidence))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 4e3])
def test_standardized_reconstruction_does_not_depend_on_the_images_scale(scale):
    image, guess = torch.randn(3, 2, 8, 9), torch.randn(3, 2, 8, 9)
    image[0, 1] = 0.5
    loss = reconstruction_loss(image * scale + 7 * scale, guess, standardize=True)
    torch.testing.assert_close(loss, reconstruction_loss(image, guess, standardize=True), rtol=1e-3, atol=1e-4)
    mean, std = channel_scale(image)
    torch.testing.assert_close(reconstruction_loss(image, (image - mean) / std, standardize=True), torch.tensor(0.0))
    assert std[0, 1].item() == 1.0


def test_the_scale_of_a_volume_s_channel_is_one_for_all_its_slices():
    volumes, guess = torch.randn(2, 3, 2, 4, 5, 6) * 3 + 1
    mean, std = channel_scale(volumes)
    assert mean.shape == std.shape == (3, 2, 1, 1, 1)
    torch.testing.assert_close(std.flatten(), volumes.flatten(2).std(dim=2).flatten())
    expected = reconstruction_loss(volumes.flatten(2, 3), guess.flatten(2, 3), standardize=True)
    torch.testing.assert_close(reconstruction_loss(volumes, guess, standardize=True), expected)


def test_reconstruction_is_the_mean_absolute_difference():
    image = torch.tensor([1.0, -2.0, 0.0, 4.0]).reshape(1, 1, 2, 2)
    assert reconstruction_loss(image, torch.zeros(1, 1, 2, 2)).item() == 7 / 4
    with pytest.raises(ValueError, match="differ in shape"):
        reconstruction_loss(image, torch.zeros(1, 2, 2, 2))


def test_impossible_arguments_are_refused():
    logits, labels, confidence = example(regions=False)
    with pytest.raises(ValueError, match="threshold"):
        PseudoLabelLoss(use_dice=True, threshold=1.5)
    with pytest.raises(ValueError, match="need labels"):
        PseudoLabelLoss(use_dice=True, regions=True)(logits, labels, confidence)


def _gradient_of_one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    logits, labels, confidence = example(regions=False)
    mine = slice(2 * rank, 2 * rank + 2)
    scale = torch.ones(3, 1, 1, requires_grad=True)
    loss = PseudoLabelLoss(use_dice=True, threshold=0.6, ddp=True)(scale * logits[mine], labels[mine], confidence[mine])
    loss.backward()
    dist.all_reduce(scale.grad)
    torch.save((loss.detach(), scale.grad / 2), Path(folder) / f"{rank}.pt")  # averaged, as DDP does
    dist.destroy_process_group()


def test_two_processes_have_the_gradient_of_one(tmp_path):
    mp.spawn(_gradient_of_one_process, args=(str(tmp_path),), nprocs=2)
    logits, labels, confidence = example(regions=False)
    scale = torch.ones(3, 1, 1, requires_grad=True)
    loss = PseudoLabelLoss(use_dice=True, threshold=0.6)(scale * logits, labels, confidence)
    loss.backward()
    losses, gradients = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    torch.testing.assert_close(sum(losses) / 2, loss.detach())
    for gradient in gradients:
        torch.testing.assert_close(gradient, scale.grad)
