"""Heads that make vectors for class prototypes out of pixels' features, and say which of them count (SS-Net)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Embedded(NamedTuple):
    """Vectors (K, N, D) of N pixels a class, and their scores (K, N) in [0, 1], in float32."""

    vectors: Tensor
    scores: Tensor


def _head(width: int, hidden: int, out: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), activation, nn.Linear(hidden, out))


class PrototypeHeads(nn.Module):
    """Projection, prediction on top of it, and a selector for each class. Two linear layers each, in float32.

    Args:
        width: of the features.
        dim: of the vectors.
        classes: number of selectors.
    """

    def __init__(self, width: int, dim: int, classes: int) -> None:
        super().__init__()
        self.projection = _head(width, dim, dim, nn.ReLU())
        self.prediction = _head(dim, dim, dim, nn.ReLU())
        self.selectors = nn.ModuleList(_head(dim, dim, 1, nn.LeakyReLU(0.2)) for _ in range(classes))

    def forward(self, features: Tensor) -> Embedded:
        """Predicted vectors of features (K, N, width), and their scores, whose gradient ends at the selectors."""
        with torch.autocast(features.device.type, enabled=False):
            vectors = self.prediction(self.projection(features.float()))
            return Embedded(vectors, self._scores(vectors.detach()))

    @torch.no_grad()
    def candidates(self, features: Tensor) -> Embedded:
        """Projected vectors of features (K, N, width) for the memory, and their scores, without gradient."""
        with torch.autocast(features.device.type, enabled=False):
            vectors = self.projection(features.float())
            return Embedded(vectors, self._scores(vectors))

    def _scores(self, vectors: Tensor) -> Tensor:
        scores = [selector(own)[:, 0] for selector, own in zip(self.selectors, vectors, strict=True)]
        return torch.stack(scores).sigmoid()
