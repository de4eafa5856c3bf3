"""Sums over processes that change nothing where there is only one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_alone = False


def is_distributed() -> bool:
    """Whether there are other processes to be asked: a process group exists, and not within `alone`."""
    return not _alone and dist.is_available() and dist.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """What one process computes by itself, such as a preview: the others would be waited for in vain."""
    global _alone  # a ContextVar cannot be read in compiled code
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@torch.no_grad()
def mean_over_processes(values: Tensor) -> Tensor:
    """Mean of floating point `values` over all processes, without a gradient; every process must call this.

    A loss whose normaliser (a count, a mean assignment, a variance) goes through here has, once
    DistributedDataParallel has averaged the gradients, the gradient of one process with the whole batch.
    """
    if not is_distributed():
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


@torch.no_grad()
def gather_over_processes(values: Tensor) -> Tensor:
    """`values` of all processes, of one shape, as (processes, ...) by rank; every process must call this."""
    if not is_distributed():
        return values.detach()[None]
    values = values.detach().contiguous()
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum of `values` over all processes, with a gradient; every process must call this, forward and backward."""
    return _SumOverProcesses.apply(values) if is_distributed() else values


@torch.no_grad()
def copy_from_process_0(values: list[Tensor]) -> None:
    """Gives `values`, in place, those of the first process; every process must call this."""
    if is_distributed():
        for value in values:
            dist.broadcast(value, src=0)


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce with a gradient. torch.distributed.nn.functional's is deprecated and cannot be compiled."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, gradient)
