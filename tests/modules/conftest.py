"""Fixtures for the framework-free modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Trace(TorchDispatchMode):
    """Records every operation that runs, with the shapes it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, tuple[tuple[int, ...], ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        shapes = tuple(tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        self.operations.append((str(func), shapes))
        return result

    @property
    def largest(self) -> int:
        """Elements of the largest tensor any operation returned; an expanded view counts in full."""
        return max(torch.Size(shape).numel() for _, shapes in self.operations for shape in shapes)


@pytest.fixture
def trace() -> Callable[[], Trace]:
    """Makes a context that records operations and the sizes of what they return."""
    return Trace
