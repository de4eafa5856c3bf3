"""A step's forward and backward pass as one CUDA graph: the host launches once what it launched kernel by kernel.

Recorded is what a method does in `terms` (views, teacher, student, losses) and the backward pass. Everything that needs
the host stays outside: loading, tables, clipping, the optimiser, the EMA, restarts, numbers for the curves. What
changes from step to step is read from fixed places on the device: images, targets, the share of the training that is
over, the scaler's scale. Random numbers go on as without a graph, which needs none of its own.
"""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

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

    def rehearse(self, work: Callable[[], T]) -> T:
        """The work once more, as the last before it is recorded.

        Raises:
            Exception: the host waits for the device in it, which no record can.
        """

    def record(self, work: Callable[[], T]) -> T:
        """The work's result, whose tensors each replay fills anew.

        Raises:
            Exception: the work cannot be recorded; the device goes on as before.
        """

    def replay(self) -> None:
        """What was recorded, with the values that are in its places now."""


class CudaRecorder:
    """`torch.cuda.CUDAGraph`."""

    _broken: ClassVar[list[Any]] = []
    """Graphs whose record failed: PyTorch's allocators may ask them for ever whose memory is theirs."""

    def __init__(self) -> None:
        self._graph: Any = None

    def warm_up(self, work: Callable[[], T]) -> T:
        """On a stream of its own, as torch's documentation asks."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                return work()
        finally:
            current.wait_stream(side)

    def rehearse(self, work: Callable[[], T]) -> T:
        """With an error where most operations would wait: a wait that breaks a record leaves more to mend."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which says that not all waits are found
            torch.cuda.set_sync_debug_mode("error")
        try:
            return self.warm_up(work)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def record(self, work: Callable[[], T]) -> T:
        """The result, in memory of the graph's own.

        Other threads pin batches meanwhile, which in CUDA's default mode would break the record.
        """
        stream, pool = torch.cuda.current_stream(), torch.cuda.graph_pool_handle()
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                result = work()
        except BaseException:
            torch.cuda.set_stream(stream)
            self._mend(pool)
            raise
        free, total = torch.cuda.mem_get_info()
        if free < FREE_SHARE * total:
            raise MemoryError(f"{free / 1e9:.1f} GB of the GPU's {total / 1e9:.1f} GB would be left")
        return result

    def _mend(self, pool: Any) -> None:
        """What PyTorch leaves behind where it cannot end a record.

        Up to 2.8 its generator believes in the record, and draws nothing more outside of one, until another one ends.
        """
        device = torch.cuda.current_device()
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(device, pool)  # raises where the record's end came so far
            self._broken.append(self._graph)
            torch._C._cuda_releasePool(device, pool)
        with suppress(RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty graph
            with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
                pass

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
            for number in range(WARM_UP_STEPS):
                before.restore()
                last = number == WARM_UP_STEPS - 1
                losses = self.recorder.rehearse(work) if last else self.recorder.warm_up(work)
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
            self.log(f"No CUDA graph of a step ({_told(error)}); the same steps are launched kernel by kernel.")
        else:
            self.log(f"A step's forward and backward pass is one CUDA graph; {SWITCH}=0 for none.")
        before.restore()

    def _fill(self, batch: Batch, progress: float) -> None:
        assert self._batch is not None
        assert self._progress is not None
        for place, value in zip(_tensors(self._batch), _tensors(batch), strict=True):
            place.copy_(value, non_blocking=True)
        self._progress.fill_(progress)


def why_not(config: Any, is_static: bool, device: torch.device, distributed: bool, loss_waits: bool) -> str | None:
    """Why no step of a training is recorded, for the log; None where they are.

    Args:
        is_static: the method's steps are all alike.
        loss_waits: the host reads a number in nnU-Net's loss.
    """
    reasons = {
        "there is no GPU": device.type != "cuda",
        "faster_step is false": not getattr(config, "faster_step", False),
        f"{SWITCH}={os.environ.get(SWITCH)}": os.environ.get(SWITCH, "1") in ("0", "false", "f", "False"),
        "there are several processes": distributed,
        "the method decides anew in each step what to do": not is_static,
        "nnU-Net's loss waits for a number where there is an ignore label (supervised_loss: ce does not)": loss_waits,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


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
    """Terms, their sum and the norm of all gradients, on the host.

    Metrics are left out: a share of pixels beyond a threshold differs by more than what it is computed from.
    """
    norms = [torch.zeros(()) if p.grad is None else p.grad.detach().float().norm().cpu() for p in parameters]
    total = torch.stack(norms).square().sum().sqrt()
    return torch.cat((losses.values[: len(losses.weights) + 1].cpu(), total[None]))


def _told(error: BaseException) -> str:
    """An error in a line, with those that it came from, and where the first of them was."""
    chain = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(earlier)
    lines = [f"{type(each).__name__}: {each}".splitlines()[0] for each in chain]
    frames = traceback.extract_tb(chain[-1].__traceback__)
    frame = next((each for each in reversed(frames) if "torch" not in Path(each.filename).parts), frames[-1])
    return f"{', after '.join(lines)}; {Path(frame.filename).name}, line {frame.lineno}"


def _tensors(batch: Batch) -> Iterator[Tensor]:
    for part in batch:
        yield from part if isinstance(part, list) else [] if part is None else [part]


def _cloned(batch: Batch) -> Batch:
    def clone(part: Any) -> Any:
        return [level.clone() for level in part] if isinstance(part, list) else None if part is None else part.clone()

    return Batch(*map(clone, batch))
