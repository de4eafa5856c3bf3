"""What methods with two networks share: the second begins with weights of its own, the first one is saved."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.methods.base import Method
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.networks.backbone import Logits
from nnunetv2_vqseg.networks.pair import Pair

P = TypeVar("P", bound=Any)


class PairMethod(Method[P]):
    """A method that trains two planned U-Nets; the first one is validated, saved and predicts."""

    def training_network(self) -> nn.Module:
        """Two planned U-Nets, the second with fresh weights of its own."""
        plan = self.context.plan
        return Pair(self.network(plan, self.config), self.network(plan, self.config))

    @property
    def pair(self) -> Pair:
        """Both networks, without DDP's and torch.compile's wrappers."""
        pair = unwrap(self.student)
        assert isinstance(pair, Pair)
        return pair

    @property
    def main(self) -> nn.Module:
        """The first network. It alone starts from a file of weights: two equal ones would agree for ever."""
        return self.pair.first

    def validated(self) -> dict[str, nn.Module]:
        """Both."""
        return {"first": self.pair.first, "second": self.pair.second}

    @torch.no_grad()
    def preview(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Logits]]:
        """Both networks' segmentations."""
        return {}, {"first": self.pair.first(images), "second": self.pair.second(images)}
