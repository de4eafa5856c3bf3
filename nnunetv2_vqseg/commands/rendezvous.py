"""How torchrun's processes find each other, also when they are started again, and how they part."""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

_ADDRESS = "nnunetv2_vqseg/address"
_STARTS = "nnunetv2_vqseg/starts"
_CONNECT = timedelta(seconds=5)
# What gloo's threads still do when a collective has returned takes microseconds, once they get a core.
_SECONDS_TO_FINISH = 1.0


def join_process_group(backend: str, timeout: timedelta) -> bool:
    """Make the process group; every rank learns whether this training was started before by the same torchrun.

    torchrun keeps one store for all attempts, where a process may find the address that a dead one has left
    (pytorch/pytorch#135712; its restart count is no help, machines do not agree on it, #108158). So rank 0 serves a
    store of its own to each attempt, and torchrun's tells where. As it ends with rank 0, the others notice that too.

    Raises:
        TimeoutError: rank 0 cannot be reached.
    """
    shared, rank, world = next(rendezvous("env://", timeout=timeout))
    own = _serve(shared, world, timeout) if rank == 0 else _connect(shared, world, timeout)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=timeout)
    starts = shared.add(_STARTS, 1) if rank == 0 else 1
    restarts: list = [None] * world
    dist.all_gather_object(restarts, starts - 1 + int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
    return any(restarts)


def leave_process_group() -> None:
    """Destroy the process group so that the process can end.

    A thread of gloo lets go of a collective's tensors after the collective has returned, and needs the interpreter for
    that. If this is being finalised by then, the process aborts, and torchrun reports a finished training as failed
    (pytorch/pytorch#190489). DistributedDataParallel keeps those threads beyond the group, so they cannot be joined.
    """
    waits = dist.get_backend() == "gloo"
    dist.destroy_process_group()
    if waits:
        time.sleep(_SECONDS_TO_FINISH)


def _serve(shared: dist.Store, world: int, timeout: timedelta) -> dist.Store:
    host = os.environ["MASTER_ADDR"]  # the machine of rank 0
    own = dist.TCPStore(host, 0, world, is_master=True, timeout=timeout, wait_for_workers=False)
    password = uuid.uuid4().hex
    own.set("password", password)
    shared.set(_ADDRESS, f"{own.port} {password}")
    return own


def _connect(shared: dist.Store, world: int, timeout: timedelta) -> dist.Store:
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        port, password = shared.get(_ADDRESS).decode().split()
        try:
            own = dist.TCPStore(os.environ["MASTER_ADDR"], int(port), world, is_master=False, timeout=_CONNECT)
            if own.get("password").decode() == password:
                own.set_timeout(timeout)
                return own
        except RuntimeError:  # nobody listens: the address is from before a restart
            time.sleep(0.5)
    raise TimeoutError(f"Rank 0 on {os.environ['MASTER_ADDR']} does not answer; is a firewall in between?")
