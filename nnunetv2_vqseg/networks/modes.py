"""Networks in the mode in which they predict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def in_prediction(network: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode with one output, for a while."""
    parts: list[Any] = list(network.modules())
    modes = [(part, part.training) for part in parts]
    deep = [(part, part.deep_supervision) for part in parts if hasattr(part, "deep_supervision")]
    try:
        for part, _ in deep:
            part.deep_supervision = False
        yield network.eval()
    finally:
        for part, value in deep:
            part.deep_supervision = value
        for part, mode in modes:
            part.training = mode
