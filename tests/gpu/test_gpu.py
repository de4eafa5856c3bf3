"""What only a GPU does: half precision, compiled kernels, CUDA graphs, pinned batches, NCCL."""

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

from nnunetv2_vqseg.modules import fused_norm
from nnunetv2_vqseg.trainer import graph
from nnunetv2_vqseg.trainer.checkpoint_files import BackgroundWriter, save_atomically

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


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.network.named_parameters()}


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


def losses_of(start: Callable[..., Any], batches: list[tuple[dict, dict]], name: str, compiled: bool) -> list[float]:
    """Of a step a batch, with the same random numbers each time; empty `batches` are drawn first."""
    trainer = start(name, compiled)
    assert hasattr(trainer.network, "_orig_mod") == compiled
    if not batches:
        batches += [(next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)) for _ in range(3)]
    losses = []
    for seed, (labeled, unlabeled) in enumerate(batches):
        torch.manual_seed(seed)  # of jitter and mixing, which are not compiled
        trainer.dataloader_unlabeled = iter([unlabeled])
        losses.append(float(trainer.train_step(labeled)["loss"]))
    return losses


@pytest.mark.parametrize("recorded", [False, True])
def test_compiled_steps_equal_eager_ones(start, monkeypatch: pytest.MonkeyPatch, recorded: bool) -> None:
    monkeypatch.setenv(graph.SWITCH, "1" if recorded else "0")
    batches: list[tuple[dict, dict]] = []
    name = "nnUNetTrainerVQSegBase"  # without perturbation: compiled kernels draw other numbers
    expected = losses_of(start, batches, name, compiled=False)
    assert losses_of(start, batches, name, compiled=True) == pytest.approx(expected, rel=1e-2)  # in half precision


def trained(start: Callable[..., Any], batches: list[tuple[dict, dict]]) -> tuple[Any, dict[str, Tensor], str]:
    """A mean teacher's trainer after a step for each batch, its weights and its log."""
    trainer = start("nnUNetTrainerMeanTeacher", seed=0)
    if not batches:
        batches += [(next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)) for _ in range(8)]
    torch.manual_seed(1)
    for labeled, unlabeled in batches:
        trainer.dataloader_unlabeled = iter([unlabeled])
        trainer.train_step(labeled)
    return trainer, weights(trainer), Path(trainer.log_file).read_text(encoding="utf-8")


def test_a_step_is_recorded_and_trains_as_one_that_is_not(start, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[dict, dict]] = []
    _, recorded, log = trained(start, batches)
    assert "A step's forward and backward pass is one CUDA graph" in log
    monkeypatch.setenv(graph.SWITCH, "0")
    trainer, eager, log = trained(start, batches)
    assert f"No CUDA graph of a step: {graph.SWITCH}=0." in log
    assert trainer.stepper.skipped_steps < len(batches)
    assert recorded.keys() == eager.keys()
    for name, value in eager.items():  # sums of half precision in another order
        torch.testing.assert_close(recorded[name], value, rtol=0.05, atol=0.01, msg=name)


@pytest.mark.parametrize("finds", [True, False])
def test_training_goes_on_after_a_wait_in_the_terms(start, monkeypatch: pytest.MonkeyPatch, finds: bool) -> None:
    """Found before the record, or by the record that it breaks."""
    from nnunetv2_vqseg.methods.mean_teacher import MeanTeacher

    terms = MeanTeacher.terms

    def waits(self: Any, batch: Any, progress: Any) -> Any:
        found = terms(self, batch, progress)
        float(found[0]["supervised"][1].detach())
        return found

    monkeypatch.setattr(MeanTeacher, "terms", waits)
    if not finds:
        monkeypatch.setattr(graph.CudaRecorder, "rehearse", graph.CudaRecorder.warm_up)
    trainer = start("nnUNetTrainerMeanTeacher")
    before = weights(trainer)
    losses = [trainer.train_step(next(trainer.dataloader_train))["loss"] for _ in range(8)]
    assert all(map(math.isfinite, losses))
    assert_moved(before, weights(trainer))
    log = Path(trainer.log_file).read_text(encoding="utf-8")
    assert "No CUDA graph of a step (" in log
    assert "test_gpu.py, line" in log
    assert torch.rand((), device=DEVICE) < 1, "the generator draws outside of a record"
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.skipif(not fused_norm.is_available(), reason="needs Triton")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_fused_norm_in_half_precision_is_that_of_torch(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    norm = torch.nn.InstanceNorm2d(24, affine=True).to(DEVICE)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    fused = fused_norm.FusedNormLeakyReLU(norm, 0.01)
    x = (3 * torch.randn(3, 24, 61, 50, device=DEVICE) + 1).half().to(memory_format=layout)
    inputs = [x.clone().requires_grad_(), x.double().requires_grad_()]
    output = fused(inputs[0])
    weight, bias = (p.detach().double().requires_grad_() for p in (norm.weight, norm.bias))
    expected = torch.nn.functional.instance_norm(inputs[1], weight=weight, bias=bias, eps=norm.eps)
    expected = torch.nn.functional.leaky_relu(expected, 0.01)
    direction = torch.randn_like(output)
    output.backward(direction)
    expected.backward(direction.double())
    assert output.dtype == HALF
    torch.testing.assert_close(output.double(), expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(inputs[0].grad.double(), inputs[1].grad, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(norm.weight.grad.double(), weight.grad, rtol=1e-2, atol=0.5)
    torch.testing.assert_close(norm.bias.grad.double(), bias.grad, rtol=1e-2, atol=0.5)


def test_a_checkpoint_behind_the_training_has_the_values_of_its_moment(tmp_path: Path) -> None:
    weight, writer = torch.ones(2**24, device=DEVICE), BackgroundWriter()
    writer.write({"weight": weight}, lambda kept: save_atomically(kept, tmp_path / "checkpoint_best.pth"))
    weight.zero_()
    assert writer.wait() is None
    found = torch.load(tmp_path / "checkpoint_best.pth", weights_only=True)["weight"]
    assert found.device.type == "cpu"
    assert bool((found == 1).all())


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
