"""A few vectors for each class, of the last batch that had it (SS-Net)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import gather_over_processes


class ClassMemory(NamedTuple):
    """Up to M vectors a class, the same on all processes.

    vectors: (K, M, D); zeros where there is none.
    sizes: (K,) int64, how many of them there are, the first ones.
    """

    vectors: Tensor
    sizes: Tensor

    @classmethod
    def empty(cls, classes: int, size: int, dim: int, device: torch.device | str | None = None) -> ClassMemory:
        """Nothing in it."""
        sizes = torch.zeros(classes, dtype=torch.int64, device=device)
        return cls(torch.zeros(classes, size, dim, device=device), sizes)

    @property
    def held(self) -> Tensor:
        """(K, M) bool, where there is a vector."""
        return torch.arange(self.vectors.shape[1], device=self.sizes.device) < self.sizes[:, None]

    @torch.no_grad()
    def replaced(
        self, vectors: Tensor, scores: Tensor, valid: Tensor, keeps: Literal["lowest", "highest"] = "lowest"
    ) -> ClassMemory:
        """A memory in which each class that any process has is replaced by its vectors with the lowest scores.

        Args:
            vectors: (K, N, D) candidates of this process.
            scores: (K, N).
            valid: (K, N) bool, which candidates there are; a class without one keeps what it has.
            keeps: `highest` for those with the highest scores instead.
        """
        size = self.vectors.shape[1]
        order = torch.where(valid, scores if keeps == "lowest" else -scores, torch.inf)
        own, own_order = _first(vectors.to(self.vectors), order.float(), size)
        # (processes, K, M, ...) -> (K, processes * M, ...)
        everyone = gather_over_processes(own).transpose(0, 1).flatten(1, 2)
        everyones_order = gather_over_processes(own_order).transpose(0, 1).flatten(1, 2)
        new, new_order = _first(everyone, everyones_order, size)
        sizes = torch.isfinite(new_order).sum(dim=1)
        present = sizes > 0
        return ClassMemory(
            torch.where(present[:, None, None], new, self.vectors), torch.where(present, sizes, self.sizes)
        )


def _first(vectors: Tensor, order: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` vectors of each class that come first, and their order; zeros at infinity where there are fewer."""
    missing = size - vectors.shape[1]
    if missing > 0:
        vectors = torch.nn.functional.pad(vectors, (0, 0, 0, missing))
        order = torch.nn.functional.pad(order, (0, missing), value=torch.inf)
    order, chosen = order.topk(size, dim=1, largest=False)
    vectors = vectors.gather(1, chosen[..., None].expand(-1, -1, vectors.shape[2]))
    return torch.where(torch.isfinite(order)[..., None], vectors, 0.0), order
