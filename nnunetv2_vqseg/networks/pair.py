"""Two networks that learn beside each other."""

from __future__ import annotations

from torch import Tensor, nn

from nnunetv2_vqseg.networks.backbone import Logits


class Pair(nn.Module):
    """Two networks of one architecture; in training both see a batch, in evaluation the first one alone.

    Args:
        first: the one that is validated, saved and predicts.
        second: with weights of its own.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x: Tensor, other: Tensor | None = None) -> Logits | tuple[Logits, Logits]:
        """Both networks' logits of images (B, C, ...) in training, else the first one's. The second sees `other`."""
        return (self.first(x), self.second(x if other is None else other)) if self.training else self.first(x)
