"""Settings for every test: few threads, deterministic seeds, an empty nnU-Net home unless a test makes its own."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("nnUNet_n_proc_DA", "0")
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers in every test, whatever ran before."""
    import numpy as np
    import torch

    np.random.seed(0)  # noqa: NPY002 nnU-Net draws from this one
    torch.manual_seed(0)
