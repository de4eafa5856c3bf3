"""What `torch.load(..., weights_only=True)` may make beside tensors and plain values."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np


def trusted_numpy() -> AbstractContextManager[Any]:
    """Within it numbers of NumPy are read too: nnU-Net's checkpoints hold some, written with NumPy 1 or 2."""
    import torch

    scalar = np.float64(0).__reduce__()[0]  # the function that unpickles a number, wherever this NumPy keeps it
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]  # of NumPy 1, of NumPy 2
    kinds = [type(np.dtype(kind)) for kind in "?bhilBHILefd"]
    return torch.serialization.safe_globals([np.dtype, *kinds, *((scalar, name) for name in names)])
