"""Letting one network speak with another's weights for a while."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn


class WeightSwap:
    """Copies `source`'s parameters and buffers into `target` and keeps `target`'s own until `undo`.

    Values are copied, modules stay where they are, so that DDP and torch.compile wrappers around `target` keep working.

    Args:
        target: the network that others hold.
        source: one of the same architecture.
    """

    @torch.no_grad()
    def __init__(self, target: nn.Module, source: nn.Module) -> None:
        self._target = _tensors(target)
        self._kept = [tensor.clone() for tensor in self._target]
        for tensor, other in zip(self._target, _tensors(source), strict=True):
            tensor.copy_(other)

    @torch.no_grad()
    def undo(self) -> None:
        """Put the target's own weights back, bit for bit."""
        for tensor, kept in zip(self._target, self._kept, strict=True):
            tensor.copy_(kept)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor.data for tensor in chain(module.parameters(), module.buffers())]
