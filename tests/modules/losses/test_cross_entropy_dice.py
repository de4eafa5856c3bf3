"""Half cross entropy and half Dice, by hand-computed numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nnunetv2_vqseg.modules.losses.cross_entropy_dice import CrossEntropyAndDice

# Probabilities of class 1, and labels, of two pixels.
P = torch.tensor([0.5, 0.75]).reshape(1, 1, 1, 2)
TARGET = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
LOGITS = torch.cat((torch.zeros_like(P), torch.logit(P)), 1)
ENTROPY = -(math.log(0.5) + math.log(0.25)) / 2
# Class 1: p 0.5 where it is; class 0: p 0.25 where it is, 0.5 elsewhere.
DICE = 1 - (2 * 0.5 / (0.25 + 0.5625 + 1) + 2 * 0.25 / (0.25 + 0.0625 + 1)) / 2


def test_of_classes_at_full_resolution():
    loss = CrossEntropyAndDice()
    assert loss(LOGITS, TARGET).item() == pytest.approx((ENTROPY + DICE) / 2, rel=1e-4)
    coarse = torch.zeros(1, 2, 1, 1)
    assert loss([LOGITS, coarse], [TARGET, TARGET[..., :1]]) == loss(LOGITS, TARGET)


def test_ignored_pixels_count_in_neither():
    more = torch.cat((LOGITS, torch.full_like(LOGITS, 3.0)), 3)
    target = torch.cat((TARGET, torch.full_like(TARGET, 4.0)), 3)
    more.requires_grad_(True)
    loss = CrossEntropyAndDice(ignore_label=4)(more, target)
    assert loss.item() == pytest.approx((ENTROPY + DICE) / 2, rel=1e-4)
    loss.backward()
    assert (more.grad[..., 2:] == 0).all()
    assert CrossEntropyAndDice(ignore_label=4)(LOGITS, torch.full_like(TARGET, 4.0)) == 0.0


def test_of_regions():
    # One region is class 1 of above, the other a half where there is nothing.
    logits = torch.cat((torch.logit(P), torch.zeros_like(P)), 1)
    target = torch.cat((TARGET, torch.zeros_like(TARGET)), 1)
    entropy = (ENTROPY + math.log(2)) / 2
    dice = 1 - (2 * 0.5 / (0.25 + 0.5625 + 1) + 0.0) / 2
    assert CrossEntropyAndDice(regions=True)(logits, target).item() == pytest.approx((entropy + dice) / 2, rel=1e-4)
    more = torch.cat((logits, torch.full_like(logits, 3.0)), 3)
    ignored = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 1, 4)
    target = torch.cat((torch.cat((target, target), 3), ignored), 1)
    loss = CrossEntropyAndDice(regions=True, ignore_label=4)(more, target)
    assert loss.item() == pytest.approx((entropy + dice) / 2, rel=1e-4)


def whole_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Of the second image a pixel is ignored."""
    return torch.cat((LOGITS, 2 * LOGITS)), torch.cat((TARGET, torch.tensor([[[[1.0, 4.0]]]])))


def _gradient_of_one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    logits, target = whole_batch()
    scale = torch.ones((), requires_grad=True)
    CrossEntropyAndDice(ignore_label=4, ddp=True)(scale * logits[[rank]], target[[rank]]).backward()
    dist.all_reduce(scale.grad)
    torch.save(scale.grad / 2, Path(folder) / f"{rank}.pt")  # averaged, as DDP does
    dist.destroy_process_group()


def test_two_processes_have_the_gradient_of_one(tmp_path):
    mp.spawn(_gradient_of_one_process, args=(str(tmp_path),), nprocs=2)
    logits, target = whole_batch()
    scale = torch.ones((), requires_grad=True)
    CrossEntropyAndDice(ignore_label=4)(scale * logits, target).backward()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), scale.grad)
