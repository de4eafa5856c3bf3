"""What is left after a record that fails, with a CUDA that leaves behind what PyTorch up to 2.8 leaves.

`torch.cuda.graph` then stays on its stream, the generator draws nothing outside of a record until another one ends, and
the allocator keeps asking a graph that is gone.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_vqseg.methods.base import Batch
from nnunetv2_vqseg.trainer.graph import CudaRecorder, StepGraph
from nnunetv2_vqseg.trainer.step import Losses


class Cuda:
    """The state of a GPU as far as records change it."""

    def __init__(self) -> None:
        self.stream, self.mode, self.free = "default", 0, 90
        self.records: list[dict[str, Any]] = []
        self.allocates_to: list[Any] = []
        self.released: list[Any] = []
        self.capturing = self.broken = self.generator_captures = False

    def wait(self) -> None:
        """What an `.item()` does."""
        if self.mode == 2:
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.capturing:
            self.broken = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors")

    def rand(self) -> Tensor:
        if self.generator_captures and not self.capturing:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        return torch.rand(())

    @contextmanager
    def graph(self, graph: Any, pool: Any = "own", capture_error_mode: str = "global") -> Any:
        self.records.append({"mode": capture_error_mode, "graph": graph})
        self.stream, self.capturing, self.broken, self.generator_captures = "side", True, False, True
        self.allocates_to.append(pool)
        try:
            yield
        finally:
            self.capturing = False
            if self.broken:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.generator_captures, self.stream = False, "default"
            self.end(0, pool)

    def end(self, device: int, pool: Any) -> None:
        if pool not in self.allocates_to:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocates_to.remove(pool)


class Stream:
    def wait_stream(self, other: Any) -> None:
        pass


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()

    @contextmanager
    def on(stream: Any) -> Any:
        yield

    fakes: dict[str, Any] = {
        "CUDAGraph": lambda: type("Graph", (), {"replay": lambda self: None})(),
        "graph": cuda.graph,
        "graph_pool_handle": lambda: "pool",
        "current_device": lambda: 0,
        "current_stream": Stream,
        "Stream": Stream,
        "stream": on,
        "set_stream": lambda stream: setattr(cuda, "stream", "default"),
        "mem_get_info": lambda: (cuda.free, 100),
        "get_sync_debug_mode": lambda: cuda.mode,
        "set_sync_debug_mode": lambda mode: setattr(cuda, "mode", 2 if mode == "error" else mode),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: cuda.released.append(pool))
    monkeypatch.setattr(CudaRecorder, "_broken", [])
    return cuda


def steps(cuda: Cuda, number: int, waits_in: Any = ()) -> tuple[list[float], StepGraph, list[str]]:
    """Values of steps that draw, whose work waits in the calls of these numbers; the graph, and its log."""
    network, log, calls = nn.Linear(1, 1), [], []

    def work(batch: Batch, progress: Any) -> Losses:
        calls.append(len(calls))
        network.weight.grad = torch.ones_like(network.weight)
        value = cuda.rand()
        if calls[-1] in waits_in:
            cuda.wait()
        return Losses(("loss",), {}, value[None])

    graph = StepGraph(work, network, CudaRecorder(), log.append)
    torch.manual_seed(0)
    values = [float(graph(Batch(torch.zeros(1), torch.zeros(1)), 0.0).values) for _ in range(number)]
    return values, graph, log


def without_graph(number: int) -> list[float]:
    torch.manual_seed(0)
    return [float(torch.rand(())) for _ in range(number)]


def test_a_wait_that_breaks_a_record_leaves_nothing_behind(cuda: Cuda) -> None:
    values, graph, log = steps(cuda, 3, waits_in=(3,))
    assert values == without_graph(3)
    assert graph.recorder is None
    assert cuda.stream == "default"
    assert cuda.allocates_to == []
    assert cuda.released == ["pool"], "its memory"
    assert CudaRecorder._broken == [cuda.records[0]["graph"]]
    assert [record["mode"] for record in cuda.records] == ["thread_local"] * 2, "loaders pin batches meanwhile"
    assert len(log) == 1
    assert "due to a previous error during capture, after RuntimeError: CUDA error: operation not permitted" in log[0]
    assert "test_cuda_recorder.py, line" in log[0]


def test_a_wait_is_found_before_it_breaks_a_record(cuda: Cuda) -> None:
    values, graph, log = steps(cuda, 3, waits_in=(0, 1, 2))
    assert values == without_graph(3)
    assert graph.recorder is None
    assert cuda.records == []
    assert cuda.mode == 0
    assert "called a synchronizing CUDA operation; test_cuda_recorder.py, line" in log[0]


def test_a_record_without_room_beside_it_is_not_kept(cuda: Cuda) -> None:
    cuda.free = 10
    values, graph, log = steps(cuda, 2)
    assert values == without_graph(2)
    assert graph.recorder is None
    assert CudaRecorder._broken == cuda.released == []
    assert "would be left" in log[0]


def test_a_metric_may_differ_between_record_and_step(cuda: Cuda) -> None:
    """As a share of pixels beyond a threshold does."""
    network, log, calls = nn.Linear(1, 1), [], []

    def work(batch: Batch, progress: Any) -> Losses:
        calls.append(1)
        return Losses(("term", "loss", "kept_share"), {"term": 1.0}, torch.tensor([2.0, 2.0, len(calls) / 10]))

    graph = StepGraph(work, network, CudaRecorder(), log.append)
    graph(Batch(torch.zeros(1), torch.zeros(1)), 0.0)
    assert graph.recorder is not None
    assert log == ["A step's forward and backward pass is one CUDA graph; nnUNet_vqseg_graph=0 for none."]
