"""Dropout of a U-Net's skip connections without a layer of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def skip_dropout(skips: Sequence[Tensor], rates: Sequence[float]) -> list[Tensor]:
    """Element dropout of each stage's features, as UA-MT's U-Net has it (rates 0.05, 0.1, 0.2, 0.3 and 0.5).

    A dropout layer in nnU-Net's blocks would change the keys of its `state_dict`. This has none, and drops whenever it
    is called: a teacher in evaluation mode is sampled with it.

    Args:
        skips: (B, C, ...) of any number of dimensions, shallowest first.
        rates: one in [0, 1] a stage; a stage with 0 is returned as it is and draws nothing.

    Raises:
        ValueError: not one rate a stage, or a rate outside [0, 1].
    """
    if len(rates) != len(skips) or not all(0.0 <= rate <= 1.0 for rate in rates):
        raise ValueError(f"expected one rate in [0, 1] for each of {len(skips)} stages, got {list(rates)}")
    return [F.dropout(skip, rate) for skip, rate in zip(skips, rates, strict=True)]
