"""What `torch.load(..., weights_only=True)` may make beside tensors and plain values."""

from __future__ import annotations

from typing import Any

import numpy as np


def numbers_of_numpy() -> list[Any]:
    """For `torch.serialization.safe_globals`: nnU-Net's checkpoints hold numbers of NumPy 1 or 2."""
    scalar = np.float64(0).__reduce__()[0]  # the function that unpickles a number, wherever this NumPy keeps it
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]  # of NumPy 1, of NumPy 2
    kinds = [type(np.dtype(kind)) for kind in "?bhilBHILefd"]
    return [np.dtype, *kinds, *((scalar, name) for name in names)]
