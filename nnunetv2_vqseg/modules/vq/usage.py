"""How many codes an epoch uses (Fig. 7)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import is_distributed


class CodebookUsage:
    """Counts how often each code is chosen.

    Utilisation without the number of tokens says little: n tokens cannot use more than n codes. Print both.
    """

    def __init__(self, num_codes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_codes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, indices: Tensor) -> None:
        """Count codes: int64 of any shape."""
        flat = indices.detach().flatten().to(self.counts.device)
        self.counts.scatter_add_(0, flat, torch.ones_like(flat))

    def reduce(self) -> None:
        """Sum the counts over all processes, in place: once, before reading, and `reset` afterwards."""
        if is_distributed():
            dist.all_reduce(self.counts)

    def reset(self) -> None:
        """Start counting anew."""
        self.counts.zero_()

    @property
    def num_tokens(self) -> int:
        """Tokens counted."""
        return int(self.counts.sum())

    @property
    def utilization(self) -> float:
        """Share of the codes chosen at least once, in [0, 1]."""
        return float((self.counts > 0).float().mean())

    @property
    def perplexity(self) -> float:
        """exp(entropy) of the codes' frequencies, in [1, K]; 0 before the first token."""
        total = self.counts.sum()
        if total == 0:
            return 0.0
        frequency = self.counts / total
        return float(torch.special.entr(frequency).sum().exp())
