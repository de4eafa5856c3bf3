"""The processes of one training: GPUs or CPUs, one machine or many."""

from __future__ import annotations

import inspect
import itertools
import os
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.modules.collectives import is_distributed, mean_over_processes
from nnunetv2_vqseg.trainer.checkpoint_files import seed_everything

T = TypeVar("T")

# Every rank counts them in the same order.
_turns = itertools.count()

_RANK_0_IS_GONE = "Rank 0 failed or ended while {task}; its own output says why."

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_MESSAGES = 60.0


class Ranks:
    """This process among those of its training, which may be the only one.

    The process group and, for GPUs, the current CUDA device must be set before.

    Attributes:
        rank: 0 is the one that writes.
        world_size: number of processes.
        on_this_machine: how many of them share this machine.
    """

    def __init__(self) -> None:
        self.distributed = is_distributed()
        self.rank = dist.get_rank() if self.distributed else 0
        self.world_size = dist.get_world_size() if self.distributed else 1
        # torchrun's; nnU-Net's own start knows one machine only.
        self.on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size)) if self.distributed else 1

    def device(self, asked: torch.device) -> torch.device:
        """This rank's device; nnU-Net takes cuda:<global rank>, which exists on the first machine only."""
        return torch.device("cuda", torch.cuda.current_device()) if asked.type == "cuda" else asked

    def even_batch(self, total: int, may_grow: bool, what: str, key: str) -> int:
        """The number of images a step, all ranks together, of which every rank gets the same number.

        Unequal shares would give images unequal weights, and nnU-Net's Dice gathers tensors of one size from all ranks.

        Args:
            total: as planned or configured.
            may_grow: round up to the next multiple of the number of processes.
            what: kind of image, for the message.
            key: the key of the plan's `vqseg` block that sets the number.

        Raises:
            ConfigError: fewer images than processes, or not a multiple of their number.
        """
        world = self.world_size
        if total >= world and (may_grow or total % world == 0):
            return -(-total // world) * world
        raise ConfigError(
            f"A batch of {total} {what} images cannot be split evenly over {world} processes; set vqseg.{key} in the "
            f"plan to a multiple of {world}, or use fewer processes."
        )

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on any rank; every rank must ask."""
        if not self.distributed:
            return flag
        return bool(mean_over_processes(torch.tensor([float(flag)], device=device)).item())

    def separate_random_numbers(self) -> None:
        """Give every rank its own random numbers where they were all set to the same state."""
        base = int(torch.randint(2**31 - 2**16, ()))
        if self.rank != 0:
            seed_everything(base + self.rank)

    def require_same(self, value: object, message: str) -> None:
        """Every rank asks, and all of them stop if one has another value than rank 0.

        Args:
            value: this rank's.
            message: with the fields `rank`, `host`, `value`, `first_host` and `first`, the last two of rank 0.

        Raises:
            RuntimeError: the message.
        """
        if not self.distributed:
            return
        answers: list = [None] * dist.get_world_size()
        dist.all_gather_object(answers, (value, socket.gethostname()))
        first, first_host = answers[0]
        for rank, (other, host) in enumerate(answers):
            if other != first:
                raise RuntimeError(
                    message.format(rank=rank, host=host, value=other, first_host=first_host, first=first)
                )

    def from_rank_0(self, value: T) -> T:
        """Rank 0's value, a plain one, on every rank."""
        if not self.distributed:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def rank_0_first(self, task: str, work: Callable[[], T], afterwards: Callable[[], T]) -> T:
        """`work()` on rank 0, `afterwards()` on the others once it is done, however long it takes.

        A barrier would time out after some minutes. The others ask the process group's store instead, which tells them
        the end of the work, its failure, or, by no longer answering, that rank 0 is gone.

        Args:
            task: what rank 0 does, as in 'preprocessing the unlabelled cases'.

        Raises:
            RuntimeError: on the other ranks, if rank 0 failed or died.
        """
        if not self.distributed:
            return work()
        store, key = dist.distributed_c10d._get_default_store(), f"nnunetv2_vqseg/{next(_turns)}"
        if self.rank == 0:
            outcome = "failed"
            try:
                result = work()
                outcome = "done"
            finally:
                store.set(key, outcome)
            return result
        self._wait_for(store, key, task)
        return afterwards()

    def _wait_for(self, store: dist.Store, key: str, task: str) -> None:
        started = last_told = time.monotonic()
        try:
            while not store.check([key]):
                time.sleep(SECONDS_BETWEEN_LOOKS)
                if time.monotonic() - last_told > SECONDS_BETWEEN_MESSAGES:
                    last_told = time.monotonic()
                    print(f"Rank {self.rank} waits for rank 0: {task}, {(last_told - started) / 60:.0f} min.")
            outcome = store.get(key)
        except RuntimeError as error:  # torch's DistNetworkError and DistStoreError are subclasses
            raise RuntimeError(_RANK_0_IS_GONE.format(task=task)) from error
        if outcome != b"done":
            raise RuntimeError(_RANK_0_IS_GONE.format(task=task))


def distribute(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The network in DistributedDataParallel, for one process a device.

    Buffers are not broadcast: the codebook keeps itself equal on all ranks, and in nnU-Net's final validation ranks
    have different numbers of forward passes, in each of which a broadcast would wait for the others.
    """
    # Before torch 2.15 the argument had another name.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        options["device_ids"] = [device.index]
    return DistributedDataParallel(network, **options)
