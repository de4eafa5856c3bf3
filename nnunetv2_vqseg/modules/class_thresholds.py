"""Thresholds of each class that follow how sure the teacher is of it (FlexMatch, FreeMatch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from nnunetv2_vqseg.modules.collectives import sum_over_processes

Rule = Literal["flexmatch", "freematch"]


class ClassThresholds:
    """Lower thresholds for classes of which the teacher is less sure, by running means over the steps.

    freematch (Wang et al., ICLR 2023, https://arxiv.org/abs/2205.07246): t s_c / max s with t the mean
    confidence of all pixels and s_c that of the pixels called c; both begin at 1 / K.
    flexmatch (Zhang et al., NeurIPS 2021, https://arxiv.org/abs/2110.08263): t b / (2 - b) with t the given
    threshold and b = s_c / max s, s_c the share of the pixels called c that reach t; s begins at 0.

    What differs: both count how many images a class has (FreeMatch its mean probability), which of pixels tells how
    large it is, not how well it is learned; here s_c is a mean over the pixels called c. FlexMatch counts over each
    image's last prediction; here it is a running mean.

    Args:
        classes: K; for R regions 2 R, the outside and the inside of each having its own.
        threshold: t of flexmatch.
        momentum: share of the old mean that a step keeps.
        regions: labels are (B, R, ...) of 0 and 1.
        ddp: means over the pixels of all processes.
    """

    def __init__(
        self,
        rule: Rule,
        classes: int,
        threshold: float,
        momentum: float,
        regions: bool = False,
        ddp: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.rule = rule
        self.threshold = threshold
        self.momentum = momentum
        self.regions = regions
        self.ddp = ddp
        first = 1.0 / classes if rule == "freematch" else 0.0
        self.sureness = torch.full((classes,), first, device=device)
        """s_c, (K,)."""
        self.overall = torch.tensor(first, device=device)
        """FreeMatch's t."""

    @torch.no_grad()
    def update(self, labels: Tensor, confidence: Tensor) -> None:
        """Take one step's labels and confidence in, as `pseudo_labels` gives them; classes without a pixel stay.

        So do those with a confidence that is not finite, as of a broken image, which the optimiser skips, too.
        """
        classes, values = self._index(labels).flatten(), confidence.float().flatten()
        of_class = (values >= self.threshold).float() if self.rule == "flexmatch" else values
        sums = torch.zeros(2, len(self.sureness), device=values.device)
        sums[0].index_add_(0, classes, torch.ones_like(values))
        sums[1].index_add_(0, classes, of_class)
        count, total = sum_over_processes(sums) if self.ddp else sums
        moved = torch.lerp(total / count.clamp(min=1.0), self.sureness, self.momentum)
        self.sureness = torch.where((count > 0) & moved.isfinite(), moved, self.sureness)
        overall = torch.lerp(total.sum() / count.sum(), self.overall, self.momentum)
        self.overall = torch.where(overall.isfinite(), overall, self.overall)

    @property
    def thresholds(self) -> Tensor:
        """Of each class, (K,)."""
        relative = self.sureness / self.sureness.max().clamp(min=1e-6)
        if self.rule == "freematch":
            return self.overall * relative
        return self.threshold * relative / (2.0 - relative)

    def judge(self, labels: Tensor, confidence: Tensor) -> Tensor:
        """1 where a pixel reaches the threshold of its class, -1 elsewhere, shaped as `confidence`."""
        return torch.where(confidence >= self.thresholds[self._index(labels)], 1.0, -1.0)

    def _index(self, labels: Tensor) -> Tensor:
        if not self.regions:
            return labels
        region = torch.arange(labels.shape[1], device=labels.device).view(-1, *[1] * (labels.ndim - 2))
        return 2 * region + labels

    def state(self) -> dict[str, Tensor]:
        """The running means."""
        return {"sureness": self.sureness, "overall": self.overall}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore them."""
        self.sureness = state["sureness"].to(self.sureness)
        self.overall = state["overall"].to(self.overall)
