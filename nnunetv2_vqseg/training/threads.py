"""The number of threads that a program is told to use on a CPU."""

from __future__ import annotations

import os

import torch


def obey_omp_num_threads() -> None:
    """Give torch as many threads as `OMP_NUM_THREADS` says, where it holds a number.

    Torch reads the variable only when it is imported, and nnU-Net's commands set another number. More threads than free
    cores wait for each other: two trainings on two cores took four times as long.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit():
        torch.set_num_threads(int(threads))
