"""What only a GPU does: half precision, compiled kernels, pinned batches, NCCL."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"
BACKEND = "nccl"
HALF = torch.float16
"""What autocast computes convolutions in on a GPU."""


@pytest.fixture
def start(make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """start(name, compiled=False, **keys of the vqseg block) -> a trainer before its first step."""

    def started(name: str = "nnUNetTrainerVQSeg", compiled: bool = False, **block: Any) -> Any:
        monkeypatch.setenv("nnUNet_compile", str(compiled))
        trainer = make_trainer(name, device=DEVICE, **block)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        return trainer

    return started


def student(trainer: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.method.net.state_dict().items()}


def assert_moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[name], value) for name, value in after.items())


def test_a_step_under_amp_computes_in_half_precision_and_moves_the_weights(start) -> None:
    trainer = start(reconstruct=True)
    seen: list[torch.dtype] = []
    hook = trainer.network.register_forward_hook(lambda _, __, output: seen.append(output.segmentation[0].dtype))
    before = student(trainer)
    # The scaler's first scale is 65536, and it may skip steps until it has found a smaller one.
    losses = [trainer.train_step(next(trainer.dataloader_train))["loss"] for _ in range(8)]
    hook.remove()
    assert set(seen) == {HALF}
    assert all(map(math.isfinite, losses))
    assert trainer.grad_scaler.get_scale() >= 1
    assert {value.dtype for value in student(trainer).values() if value.is_floating_point()} == {torch.float32}
    assert_moved(before, student(trainer))
    trainer.on_validation_epoch_start()
    assert math.isfinite(trainer.validation_step(next(trainer.dataloader_val))["loss"])


def test_compiled_steps_equal_eager_ones(start) -> None:
    batches: list[tuple[dict, dict]] = []
    losses: dict[bool, list[float]] = {}
    for compiled in (False, True):  # without perturbation: compiled kernels draw other numbers
        trainer = start("nnUNetTrainerVQSegBase", compiled)
        assert hasattr(trainer.network, "_orig_mod") == compiled
        batches = batches or [(next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)) for _ in range(3)]
        losses[compiled] = []
        for seed, (labeled, unlabeled) in enumerate(batches):
            torch.manual_seed(seed)  # of jitter and mixing, which are not compiled
            trainer.dataloader_unlabeled = iter([unlabeled])
            losses[compiled].append(float(trainer.train_step(labeled)["loss"]))
    assert losses[True] == pytest.approx(losses[False], rel=1e-2)  # in half precision


def test_loaders_with_workers_give_pinned_batches(start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = start()
    try:
        for loader in (trainer.dataloader_train, trainer.dataloader_unlabeled, trainer.dataloader_val):
            assert next(loader)["data"].is_pinned()
        assert math.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    finally:
        trainer.stop_loaders()


def test_one_process_with_nccl_trains_as_one_without(start, tmp_path: Path) -> None:
    alone = start()
    batch, unlabeled = next(alone.dataloader_train), next(alone.dataloader_unlabeled)
    alone.dataloader_unlabeled = iter([unlabeled])
    torch.manual_seed(1)
    expected = float(alone.train_step(batch)["loss"])
    dist.init_process_group(BACKEND, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        trainer = start()
        assert isinstance(trainer.network, DistributedDataParallel)
        assert trainer.device == torch.device(DEVICE, 0 if DEVICE == "cuda" else None)
        trainer.dataloader_unlabeled = iter([unlabeled])
        before = student(trainer)
        torch.manual_seed(1)
        assert float(trainer.train_step(batch)["loss"]) == pytest.approx(expected, rel=1e-2)  # in half precision
        for _ in range(7):
            trainer.dataloader_unlabeled = iter([unlabeled])
            trainer.train_step(batch)
        assert_moved(before, student(trainer))
    finally:
        dist.destroy_process_group()
