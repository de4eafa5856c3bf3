"""A second opinion on pseudo-labels: the classes that the tokens of each code had in labelled images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import sum_over_processes
from nnunetv2_vqseg.modules.nd import ADAPTIVE_MEAN
from nnunetv2_vqseg.modules.targets import at_size

FEWEST_TOKENS = 0.5
"""Remembered labelled tokens below which a code is unknown."""


class CodeClasses:
    """Shares of the classes of each code, by running counts over labelled tokens.

    A token counts for each class by the share of that class among the pixels under it. Not of the paper.

    Args:
        num_codes: K.
        classes: C; regions, which overlap, have no shares.
        momentum: share of the counts that a step keeps.
    """

    def __init__(self, num_codes: int, classes: int, momentum: float, device: torch.device | str | None = None) -> None:
        self.momentum = momentum
        self.counts = torch.zeros(num_codes, classes, device=device)
        """(K, C), tokens."""

    @torch.no_grad()
    def update(self, indices: Tensor, labels: Tensor, known: Tensor) -> None:
        """Take one step's labelled images in, those of all processes; each must call this.

        Args:
            indices: (B, h, w) codes of their tokens.
            labels: (B, 1, H, W) int64.
            known: (B, 1, H, W) bool, where there is a label; a token with none counts nothing.
        """
        classes, grid = self.counts.shape[1], indices.shape[1:]
        mean = ADAPTIVE_MEAN[len(grid)]
        pixels = F.one_hot(labels[:, 0], classes).movedim(-1, 1).float() * known
        covered = mean(known.float(), grid)
        shares = torch.where(covered > 0, mean(pixels, grid) / covered, 0.0)
        tokens = torch.zeros_like(self.counts)
        tokens.index_add_(0, indices.flatten(), shares.movedim(1, -1).flatten(0, -2))
        self.counts.mul_(self.momentum).add_(sum_over_processes(tokens))

    @torch.no_grad()
    def judge(self, labels: Tensor, indices: Tensor, least_share: float) -> tuple[Tensor, Tensor]:
        """Whether the codes under pseudo-labels bear them out.

        Args:
            labels: (B, H, W) int64.
            indices: (B, h, w) codes of the same images.
            least_share: share of the label's class among the labelled tokens of a code from which it agrees.

        Returns:
            agrees, unknown: (B, H, W) bool; where the code is unknown it has no opinion, and agrees.
        """
        total = self.counts.sum(1)
        shares = self.counts / total.clamp_min(FEWEST_TOKENS)[:, None]
        unknown = at_size((total < FEWEST_TOKENS)[indices][:, None], labels.shape[1:])[:, 0]
        share = at_size(shares[indices].movedim(-1, 1), labels.shape[1:]).gather(1, labels[:, None])[:, 0]
        return unknown | (share >= least_share), unknown

    def state(self) -> Tensor:
        """For the checkpoint."""
        return self.counts.cpu().clone()

    def load_state(self, state: Tensor) -> None:
        """Restore what `state` gave.

        Raises:
            ValueError: it is of another number of codes or classes.
        """
        if state.shape != self.counts.shape:
            raise ValueError(
                f"The checkpoint counts {tuple(state.shape)} codes and classes, this training has "
                f"{tuple(self.counts.shape)}; continue with the configuration of the checkpoint."
            )
        self.counts.copy_(state)
