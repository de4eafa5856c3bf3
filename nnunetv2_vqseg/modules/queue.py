"""A queue of vectors for each class, the oldest leave first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import gather_over_processes
from nnunetv2_vqseg.modules.stratified import Sampling, stratified_indices


class ClassQueue(NamedTuple):
    """Up to Q vectors a class, the same on all processes.

    vectors: (K, Q, D); zeros where there is none.
    sizes: (K,) int64, how many of them there are, the first ones.
    ends: (K,) int64, where the next one goes.
    """

    vectors: Tensor
    sizes: Tensor
    ends: Tensor

    @classmethod
    def empty(cls, classes: int, size: int, dim: int, device: torch.device | str | None = None) -> ClassQueue:
        """Nothing in it."""
        numbers = torch.zeros(2, classes, dtype=torch.int64, device=device)
        return cls(torch.zeros(classes, size, dim, device=device), numbers[0], numbers[1])

    @torch.no_grad()
    def pushed(self, vectors: Tensor, valid: Tensor) -> ClassQueue:
        """A queue with the vectors of all processes behind its own, by rank; of more than Q the first Q.

        Args:
            vectors: (K, N, D) of this process.
            valid: (K, N) bool, which of them there are.
        """
        size = self.vectors.shape[1]
        vectors = gather_over_processes(vectors.to(self.vectors)).transpose(0, 1).flatten(1, 2)
        valid = gather_over_processes(valid.long()).transpose(0, 1).flatten(1, 2).bool()
        order = (~valid).long().argsort(dim=1, stable=True)[:, :size]  # those there are come first
        vectors = vectors.gather(1, order[..., None].expand(-1, -1, vectors.shape[2]))
        valid = valid.gather(1, order)
        places = (self.ends[:, None] + torch.arange(valid.shape[1], device=valid.device)) % size
        places = places[..., None].expand_as(vectors)
        written = torch.where(valid[..., None], vectors, self.vectors.gather(1, places))
        number = valid.sum(dim=1)
        return ClassQueue(
            self.vectors.scatter(1, places, written),
            (self.sizes + number).clamp(max=size),
            (self.ends + number) % size,
        )

    @torch.no_grad()
    def draw_others(self, own: int, rows: int, number: int, sampling: Sampling = "stratified") -> Tensor:
        """Draws from the vectors of all classes but one: (rows, number) places in the flattened (K * Q, D).

        Each row is one draw of `stratified_indices` from those vectors, class after class.
        """
        others = torch.where(torch.arange(len(self.sizes), device=self.sizes.device) == own, 0, self.sizes)
        ends = others.cumsum(0)
        index = stratified_indices(ends[-1:].expand(rows), number, sampling)
        owner = torch.searchsorted(ends, index, right=True).clamp(max=len(ends) - 1)
        return owner * self.vectors.shape[1] + index - (ends - others)[owner]
