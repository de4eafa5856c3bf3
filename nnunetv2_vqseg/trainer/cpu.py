"""What makes a training on a CPU fast: memory that stays, no more threads than asked for, bfloat16 where it is fast."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""glibc's M_TRIM_THRESHOLD and M_MMAP_MAX (malloc.h)."""
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc keep the feature maps of a step for the next one; returns whether it does.

    It hands blocks of such a size back to the system after each use, and the next use pays for every page again: a
    fifth of a step of the full-size plan (docs/performance.md). Memory then stays with the process until it ends. Does
    nothing where there is no glibc, and with MALLOC_MMAP_MAX_ or MALLOC_TRIM_THRESHOLD_ set, glibc's own variables.
    """
    if platform.libc_ver()[0] != "glibc" or {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, NEVER))


def obey_omp_num_threads() -> None:
    """Give torch as many threads as `OMP_NUM_THREADS` says, where it holds a number and a user has set it.

    Torch reads the variable only when it is imported, and nnU-Net's commands set another number, all cores. More
    threads than free cores wait for each other: two trainings on two cores took four times as long. torchrun sets the
    variable to 1 by itself, which is not taken for a wish.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > 0 and "TORCHELASTIC_RUN_ID" not in os.environ:
        torch.set_num_threads(int(threads))


def has_amx() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in hardware (Intel's AMX), and torch uses it."""
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(asked is not None and asked())


def half_precision(log: Callable[[str], None]) -> Callable[[], Any] | None:
    """Autocast to bfloat16 where the processor has AMX; None where it has not, with a line in the log.

    A step took 0.5 of the time with AMX, and without it 1.1 (AVX512_BF16) to 9 times as long (AVX2).
    """
    if not has_amx():
        log(
            "bfloat16_on_cpu changes nothing: this processor has no AMX, without which bfloat16 is slower than float32."
        )
        return None
    log("Convolutions and matrix products are computed in bfloat16 (AMX).")
    return partial(torch.autocast, "cpu", dtype=torch.bfloat16)
