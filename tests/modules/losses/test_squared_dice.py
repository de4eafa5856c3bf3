"""Dice with squares and background, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nnunetv2_vqseg.modules.losses.squared_dice import squared_dice_loss

# Probabilities of class 1 in two images of two pixels, and labels.
P = torch.tensor([[[0.5, 0.25]], [[0.75, 0.5]]])
LABELS = torch.tensor([[[1, 0]], [[1, 0]]])
LOGITS = torch.stack((torch.zeros_like(P), torch.logit(P)), 1)


def test_both_classes_over_the_whole_batch():
    # Class 1: 2 (0.5 + 0.75) / (0.25 + 0.0625 + 0.5625 + 0.25 + 2); class 0 has 0.5, 0.75, 0.25, 0.5.
    one, zero = 2.5 / 3.125, 2 * (0.75 + 0.5) / (0.25 + 0.5625 + 0.0625 + 0.25 + 2)
    assert squared_dice_loss(LOGITS, LABELS).item() == pytest.approx(1 - (one + zero) / 2, rel=1e-4)


def test_only_kept_pixels_count():
    kept = torch.tensor([[[True, False]], [[False, True]]])
    # Class 1: p 0.5 (label 1) and 0.5 (label 0); class 0 the same the other way round.
    labels = torch.where(kept, LABELS, 255)
    expected = 1 - 2 * 0.5 / (0.25 + 0.25 + 1)
    assert squared_dice_loss(LOGITS, labels, kept).item() == pytest.approx(expected, rel=1e-4)
    logits = LOGITS.clone().requires_grad_(True)
    squared_dice_loss(logits, labels, kept).backward()
    assert (logits.grad[~kept[:, None].expand_as(logits)] == 0).all()
    assert (logits.grad[kept[:, None].expand_as(logits)] != 0).all()


def test_nothing_kept_is_zero_with_a_gradient_path():
    logits = LOGITS.clone().requires_grad_(True)
    loss = squared_dice_loss(logits, LABELS, torch.zeros_like(LABELS, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_regions_are_on_their_own():
    logits = torch.logit(torch.stack((P, torch.full_like(P, 0.5)), 1))
    labels = torch.stack((LABELS, torch.zeros_like(LABELS)), 1)
    expected = 1 - (2.5 / 3.125 + 0.0) / 2
    assert squared_dice_loss(logits, labels, regions=True).item() == pytest.approx(expected, rel=1e-4)
    kept = torch.ones_like(labels, dtype=torch.bool)
    kept[:, 1] = False  # a region without a pixel has its best value
    assert squared_dice_loss(logits, labels, kept, regions=True).item() == pytest.approx((1 - 0.8) / 2, rel=1e-4)


def test_volumes_have_the_loss_of_images_of_the_same_voxels():
    logits, labels = torch.randn(2, 3, 4, 5, 6), torch.randint(3, (2, 4, 5, 6))
    torch.testing.assert_close(
        squared_dice_loss(logits, labels), squared_dice_loss(logits.flatten(2, 3), labels.flatten(1, 2))
    )


def test_half_precision_logits_give_a_float32_loss():
    logits = LOGITS.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = squared_dice_loss(logits, LABELS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, squared_dice_loss(logits.float(), LABELS))


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="need labels"):
        squared_dice_loss(LOGITS, LABELS[:, None])
    with pytest.raises(ValueError, match="need labels"):
        squared_dice_loss(LOGITS, LABELS, torch.ones(1, dtype=torch.bool))


def _gradient_of_one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    scale = torch.ones((), requires_grad=True)
    squared_dice_loss(scale * LOGITS[[rank]], LABELS[[rank]], ddp=True).backward()
    dist.all_reduce(scale.grad)
    torch.save(scale.grad / 2, Path(folder) / f"{rank}.pt")  # averaged, as DDP does
    dist.destroy_process_group()


def test_two_processes_have_the_gradient_of_one(tmp_path):
    mp.spawn(_gradient_of_one_process, args=(str(tmp_path),), nprocs=2)
    scale = torch.ones((), requires_grad=True)
    squared_dice_loss(scale * LOGITS, LABELS).backward()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), scale.grad)
