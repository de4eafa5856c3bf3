"""Dice of a method's networks on the same validation patches, to be drawn beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunetv2_vqseg.core.curve_plot import DICE
from nnunetv2_vqseg.modules.collectives import is_distributed, mean_over_processes
from nnunetv2_vqseg.trainer.validation import COUNTS


class OnlineDice:
    """Sums nnU-Net's counts of pixels over validation steps, for each network."""

    def __init__(self) -> None:
        self._counts: dict[str, Tensor] = {}

    def add(self, network: str, outputs: Mapping[str, Any]) -> None:
        """One step's `tp_hard`, `fp_hard` and `fn_hard`, each (classes,), as `hard_counts` gives them."""
        counts = torch.stack([torch.as_tensor(outputs[name]) for name in COUNTS])
        counts = counts.float() if counts.device.type == "mps" else counts.double()
        known = self._counts.get(network)
        self._counts[network] = counts if known is None else known + counts

    def close(self, device: torch.device) -> dict[str, float]:
        """Mean over classes of each network's Dice, by the name of its curve; every process must call this.

        As nnU-Net's pseudo Dice: over all pixels of the steps, without the classes that no pixel has.
        """
        curves = {}
        for network, sums in self._counts.items():
            if is_distributed():
                sums = mean_over_processes(sums.float().to(device))
            counts = sums.cpu().numpy()
            tp, fp, fn = counts[:, counts.sum(axis=0) > 0]
            curves[f"{DICE}{network}"] = float(np.mean(2 * tp / (2 * tp + fp + fn))) if len(tp) else np.nan
        self._counts = {}
        return curves


@contextmanager
def deep_supervision(network: nn.Module, enabled: bool) -> Iterator[None]:
    """A network's decoders give out all resolutions, or one, for a while."""
    parts: list[Any] = [module for module in network.modules() if hasattr(module, "deep_supervision")]
    before = [module.deep_supervision for module in parts]
    try:
        for module in parts:
            module.deep_supervision = enabled
        yield
    finally:
        for module, flag in zip(parts, before, strict=True):
            module.deep_supervision = flag
