"""Counts the operators of some work, and knows those for which the host of a GPU waits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {
    f"aten::{name}"
    for name in (
        *("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"),
        *("unique_consecutive", "linalg_pinv", "_linalg_svd", "bincount"),
        "lift_fresh",  # a tensor of Python's numbers, which is copied to the device
    )
}


class Operators(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        masks = args[1] if name in ("aten::index", "aten::index_put", "aten::index_put_") else ()
        by_mask = any(mask is not None and mask.dtype in (torch.bool, torch.uint8) for mask in masks)
        self.counts[f"{name} by a mask" if by_mask else name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def waits(self) -> set[str]:
        return {name for name in self.counts if name in WAITS or name.endswith(" by a mask")}
