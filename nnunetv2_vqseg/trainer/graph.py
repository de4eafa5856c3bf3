"""A step's forward and backward pass as one CUDA graph: the host launches once what it launched kernel by kernel.

Recorded is what a method does in `terms` (views, teacher, student, losses) and the backward pass. Everything that needs
the host stays outside: loading, tables, clipping, the optimiser, the EMA, restarts, numbers for the curves. What
changes from step to step is read from fixed places on the device: images, targets, the share of the training that is
over, the scaler's scale. Random numbers go on as without a graph, which needs none of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.methods.base import Batch
from nnunetv2_vqseg.trainer.step import Losses

T = TypeVar("T")

SWITCH = "nnUNet_vqseg_graph"
"""Environment variable; 0 for no graphs."""
WARM_UP_STEPS = 3
TOLERANCE = 1e-2
"""Relative, between losses and the gradient's norm of a replay and of a step without graph; in half precision sums of
another order differ by a tenth of that."""
FREE_SHARE = 0.15
"""Of the GPU's memory must be left once a graph is recorded: it keeps its own for ever, and validation needs some."""


class Recorder(Protocol):
    """Records work on the device and repeats it."""

    def warm_up(self, work: Callable[[], T]) -> T:
        """The work itself, as often as it takes until it does the same each time."""

    def record(self, work: Callable[[], T]) -> T:
        """The work's result, whose tensors each replay fills anew.

        Raises:
            Exception: the work cannot be recorded.
        """

    def replay(self) -> None:
        """What was recorded, with the values that are in its places now."""


class CudaRecorder:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self._graph: Any = None

    def warm_up(self, work: Callable[[], T]) -> T:
        """On a stream of its own, as torch's documentation asks."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = work()
        current.wait_stream(side)
        return result

    def record(self, work: Callable[[], T]) -> T:
        """The result, in memory of the graph's own."""
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            result = work()
        free, total = torch.cuda.mem_get_info()
        if free < FREE_SHARE * total:
            raise MemoryError(f"{free / 1e9:.1f} GB of the GPU's {total / 1e9:.1f} GB would be left")
        return result

    def replay(self) -> None:
        """One launch."""
        self._graph.replay()


class StepGraph:
    """Does a step's work, by replaying its record where that does the same.

    The record is made in the first step and compared with the work itself on the same batch with the same random
    numbers. Where that fails, the work is done as without a graph from then on, and the log says why.

    Args:
        work: (batch, progress) -> losses; gradients are in the parameters.
        network: what is trained; its buffers are put back after trying the work out.
        recorder: None for no graph.
        log: for a line.
    """

    def __init__(
        self,
        work: Callable[[Batch, Any], Losses],
        network: nn.Module,
        recorder: Recorder | None,
        log: Callable[[str], None],
    ) -> None:
        self.work = work
        self.network = network
        self.recorder = recorder
        self.log = log
        self._signature: Any = None
        self._batch: Batch | None = None
        self._progress: Tensor | None = None
        self._losses: Losses | None = None

    def __call__(self, batch: Batch, progress: float) -> Losses:
        """Losses and gradients of a batch on the device; `progress` is the share of the training that is over."""
        kinds = [type(part) for part in batch]
        signature = (kinds, [(tensor.shape, tensor.dtype, tensor.device) for tensor in _tensors(batch)])
        if self.recorder is not None and signature != self._signature:
            self._record(batch, progress)
            self._signature = signature
        if self.recorder is None:
            return self.work(batch, progress)
        assert self._losses is not None
        self._fill(batch, progress)
        self.recorder.replay()
        return self._losses

    def _record(self, batch: Batch, progress: float) -> None:
        assert self.recorder is not None
        device = batch.labeled.device
        self._batch = _cloned(batch)
        self._progress = torch.full((), progress, dtype=torch.float64, device=device)
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        before = _State(self.network, device)

        def work() -> Losses:
            return self.work(self._batch, self._progress)  # type: ignore[arg-type]

        try:
            for _ in range(WARM_UP_STEPS):
                before.restore()
                losses = self.recorder.warm_up(work)
            expected = _numbers(losses, parameters)
            for parameter in parameters:
                parameter.grad = None
            before.restore()
            self._losses = self.recorder.record(work)
            before.restore()
            self.recorder.replay()
            found = _numbers(self._losses, parameters)
            if not found[-1].isfinite() and not expected[-1].isfinite():  # AMP looks for its scale
                found[-1] = expected[-1] = 0.0
            if not torch.allclose(found, expected, rtol=TOLERANCE, atol=1e-6, equal_nan=True):
                raise ValueError(f"a replay gave {found.tolist()} and not {expected.tolist()}")
        except Exception as error:
            self.recorder = self._losses = None
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self.log(f"No CUDA graph of a step ({reason}); the same steps are launched kernel by kernel.")
        else:
            self.log(f"A step's forward and backward pass is one CUDA graph; {SWITCH}=0 for none.")
        before.restore()

    def _fill(self, batch: Batch, progress: float) -> None:
        assert self._batch is not None
        assert self._progress is not None
        for place, value in zip(_tensors(self._batch), _tensors(batch), strict=True):
            place.copy_(value, non_blocking=True)
        self._progress.fill_(progress)


def wanted(config: Any, is_static: bool, device: torch.device, distributed: bool) -> bool:
    """Whether to record a step at all."""
    asked = getattr(config, "faster_step", False) and os.environ.get(SWITCH, "1") not in ("0", "false", "f", "False")
    return asked and is_static and device.type == "cuda" and not distributed


class _State:
    """What trying a step out changes beside gradients: buffers (running statistics) and random numbers."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        self._device = device
        self._random = torch.get_rng_state()
        self._random_on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def restore(self) -> None:
        for buffer, kept in self._buffers:
            buffer.copy_(kept)
        torch.set_rng_state(self._random)
        if self._random_on_device is not None:
            torch.cuda.set_rng_state(self._random_on_device, self._device)


def _numbers(losses: Losses, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Losses and the norm of each gradient, on the host."""
    norms = [torch.zeros(()) if p.grad is None else p.grad.detach().float().norm().cpu() for p in parameters]
    total = torch.stack(norms).square().sum().sqrt()
    return torch.cat((losses.values.cpu(), total[None]))


def _tensors(batch: Batch) -> Iterator[Tensor]:
    for part in batch:
        yield from part if isinstance(part, list) else [] if part is None else [part]


def _cloned(batch: Batch) -> Batch:
    def clone(part: Any) -> Any:
        return [level.clone() for level in part] if isinstance(part, list) else None if part is None else part.clone()

    return Batch(*map(clone, batch))
