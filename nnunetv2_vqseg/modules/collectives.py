"""Sums over processes that change nothing where there is only one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether a process group exists, so that collectives can be called."""
    return dist.is_available() and dist.is_initialized()


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
