"""Two processes with half a batch each have the averaged gradient, and the memories, of one with the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from nnunetv2_vqseg.modules.class_memory import ClassMemory
from nnunetv2_vqseg.modules.losses.class_contrast import class_means
from nnunetv2_vqseg.modules.losses.image_confidence import ImageConfidenceLoss
from nnunetv2_vqseg.modules.losses.prototype import memory_distance
from nnunetv2_vqseg.modules.losses.region import RegionLoss
from nnunetv2_vqseg.modules.queue import ClassQueue

WORLD, SHARE, CLASSES, SIDE, DIM, PIXELS = 2, 2, 3, 8, 4, 6


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LOGITS = _random(WORLD * SHARE, CLASSES, SIDE, SIDE, seed=0) * torch.linspace(0.5, 4, 4).view(-1, 1, 1, 1)
LABELS = _random(WORLD * SHARE, CLASSES, SIDE, SIDE, seed=1).argmax(1)
REGIONS = (_random(WORLD * SHARE, CLASSES, SIDE, SIDE, seed=2) > 0).long()
# The processes have masks, sure pixels and classes in different numbers, so that means of means are not the mean.
INSIDE = _random(WORLD * SHARE, 1, SIDE, SIDE, seed=3) > torch.linspace(-1, 1, 4).view(-1, 1, 1, 1)
CONFIDENCE = torch.sigmoid(_random(WORLD * SHARE, SIDE, SIDE, seed=4) + torch.linspace(-2, 2, 4).view(-1, 1, 1))
LABELED = torch.where(_random(WORLD * SHARE, SIDE, SIDE, seed=5) > 1.5, -1.0, CONFIDENCE)
VECTORS = _random(WORLD, CLASSES, PIXELS, DIM, seed=6)
SCORES = _random(WORLD, CLASSES, PIXELS, seed=7).abs()
VALID = torch.arange(PIXELS) < torch.tensor([[6, 2, 0], [3, 5, 4]])[..., None]
MEMORY = ClassMemory(_random(CLASSES, 5, DIM, seed=8), torch.tensor([5, 3, 2]))


def _region(own: slice, scale: Tensor, ddp: bool, **settings: Any) -> Tensor:
    regions = settings.get("regions", False)
    outputs = [scale * LOGITS[own], scale * LOGITS[own, :, ::2, ::2]]
    labels = REGIONS[own] if regions else LABELS[own, None]
    return RegionLoss(ddp=ddp, **settings)(outputs, labels, [INSIDE[own], ~INSIDE[own]]).sum()


def _image_confidence(own: slice, scale: Tensor, ddp: bool) -> Tensor:
    return ImageConfidenceLoss(0.6, ddp=ddp)(scale * LOGITS[own], LABELS[own], LABELED[own])


def _memory_distance(own: slice, scale: Tensor, ddp: bool) -> Tensor:
    """The pixels of a process are a part of all of them."""
    ranks = slice(own.start // SHARE, own.stop // SHARE)

    def pixels(values: Tensor) -> Tensor:
        return values[ranks].transpose(0, 1).flatten(1, 2)

    vectors = pixels(VECTORS) + scale.flatten() * 0.1
    return memory_distance(vectors, pixels(SCORES), pixels(VALID), MEMORY, ddp).sum()


LOSSES: dict[str, Callable[[slice, Tensor, bool], Tensor]] = {
    "regions of an image": _region,
    "regions of an image, squared Dice": lambda *a: _region(*a, dice="squared"),
    "regions of an image, cross entropy": lambda *a: _region(*a, dice=None),
    "regions of an image, independent": lambda *a: _region(*a, regions=True),
    "images by their confidence": _image_confidence,
    "distance from the memory": _memory_distance,
}


def _with_gradient(name: str, own: slice, ddp: bool) -> tuple[Tensor, Tensor]:
    scale = torch.ones(CLASSES, 1, 1, requires_grad=True) if "memory" not in name else torch.ones(1, requires_grad=True)
    loss = LOSSES[name](own, scale, ddp)
    loss.backward()
    assert scale.grad is not None
    return loss.detach(), scale.grad


def _kept(own: slice, ranks: list[int]) -> dict[str, Tensor]:
    """What memories hold after two pushes of these ranks' vectors, and the classes' means."""
    memory, queue = MEMORY, ClassQueue.empty(CLASSES, 8, DIM)
    for turn in range(2):
        parts = [(VECTORS[rank] + turn, SCORES[rank], VALID[rank]) for rank in ranks]
        vectors, scores, valid = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
        memory = memory.replaced(vectors, scores, valid)
        queue = queue.pushed(vectors, valid)
    means, there = class_means(LOGITS[own], LABELS[own], CLASSES, ddp=True)
    return {"means": means, "there": there, "memory": memory.vectors, "sizes": memory.sizes} | queue._asdict()


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    own, found = slice(SHARE * rank, SHARE * (rank + 1)), {}
    for name in LOSSES:
        loss, gradient = _with_gradient(name, own, ddp=True)
        dist.all_reduce(gradient)
        found[name] = (loss, gradient / WORLD)  # averaged, as DDP does
    torch.save((found, _kept(own, [rank])), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(_process, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_have_the_gradient_of_one(processes, name):
    loss, gradient = _with_gradient(name, slice(0, WORLD * SHARE), ddp=False)
    halves = [_with_gradient(name, slice(SHARE * rank, SHARE * (rank + 1)), ddp=False)[1] for rank in range(WORLD)]
    assert not torch.allclose(sum(halves) / WORLD, gradient, rtol=1e-3), "a mean of means would do, too"
    torch.testing.assert_close(torch.stack([found[name][0] for found, _ in processes]).mean(), loss)
    for found, _ in processes:
        torch.testing.assert_close(found[name][1], gradient)


def test_two_processes_keep_what_one_keeps(processes):
    expected = _kept(slice(0, WORLD * SHARE), [0, 1])
    for _, kept in processes:
        for name, values in expected.items():
            torch.testing.assert_close(kept[name], values, msg=lambda told, name=name: f"{name}: {told}")
