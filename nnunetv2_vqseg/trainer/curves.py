"""What a VQ-Seg training logs beside nnU-Net's own curves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

TERMS = "loss terms (unweighted)"
NO_CURVES = frozenset({"loss", "utilization_tokens", "skipped_steps"})
PANELS: Mapping[str, tuple[str, ...]] = {"gradient norm": ("gradient_norm",)}


class EpochCurves:
    """Means over the steps of each epoch, one list a name; NaN for an epoch in which nothing was logged.

    Args:
        panels: names of curves by the title of their panel; loss terms have one of their own.
    """

    def __init__(self, panels: Mapping[str, tuple[str, ...]]) -> None:
        self.panels = {**panels, **PANELS}
        self.history: dict[str, list[float]] = {}
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, values: Mapping[str, float]) -> None:
        """Values of one step; those that are not finite are left out of the mean."""
        for name, value in values.items():
            if math.isfinite(value):
                self._sums[name][0] += value
                self._sums[name][1] += 1

    def close_epoch(self, epoch: int, extra: Mapping[str, float]) -> dict[str, float]:
        """Append this epoch's means and `extra` values to the history and return them."""
        means = {name: total / count for name, (total, count) in self._sums.items()} | dict(extra)
        self._sums.clear()
        for name in self.history.keys() | means.keys():
            values = self.history.setdefault(name, [])
            values.extend([math.nan] * (epoch - len(values)))
            values.append(means.get(name, math.nan))
        return means

    def restore(self, history: Mapping[str, list[float]], epochs: int) -> None:
        """Continue from a checkpoint's history, cut to its first `epochs` epochs."""
        self.history = {name: list(values[:epochs]) for name, values in history.items()}
        self._sums.clear()

    @staticmethod
    def summary_line(epoch: Mapping[str, float]) -> str:
        """One line for the log; utilisation with the number of tokens it was counted over."""
        parts = [
            f"{name} {value:.4g}" for name, value in epoch.items() if name not in ("utilization", "utilization_tokens")
        ]
        if "utilization" in epoch:
            parts.append(f"utilization {epoch['utilization']:.1%} over {epoch['utilization_tokens']:.0f} tokens")
        return "vqseg: " + ", ".join(parts)

    def plot(self, filename: str | Path) -> None:
        """Write `progress_vqseg.png`: one panel a group of curves."""
        import matplotlib.pyplot as plt

        known = {name for names in self.panels.values() for name in names} | NO_CURVES
        terms = tuple(name for name in self.history if name not in known)
        panels = {
            title: [name for name in names if _has_values(self.history.get(name))]
            for title, names in {TERMS: terms, **self.panels}.items()
        }
        panels = {title: names for title, names in panels.items() if names}
        if not panels:
            return
        columns = 2
        rows = -(-len(panels) // columns)
        # nnU-Net's own plot leaves seaborn's settings and a large font behind.
        style = {"font.size": 11, "axes.grid": True, "grid.alpha": 0.3, "axes.formatter.useoffset": False}
        with plt.style.context(["default", style], after_reset=True):
            figure, axes = plt.subplots(rows, columns, figsize=(14, 3.4 * rows), squeeze=False, layout="constrained")
            for axis, (title, names) in zip(axes.flat, panels.items(), strict=False):
                for name in names:
                    axis.plot(self.history[name], label=name, marker="." if len(self.history[name]) < 30 else None)
                axis.set_title(self._title(title))
                axis.set_xlabel("epoch")
                if len(names) > 3:  # below, where it hides no curve
                    axis.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=4)
                elif len(names) > 1:
                    axis.legend(fontsize=9)
            for axis in list(axes.flat)[len(panels) :]:
                axis.set_visible(False)
            figure.savefig(filename, dpi=80)
            plt.close(figure)

    def _title(self, title: str) -> str:
        tokens = self.history.get("utilization_tokens")
        if title == "codebook" and tokens:
            return f"codebook utilisation over {tokens[-1]:,.0f} tokens an epoch"
        return title


def _has_values(values: list[float] | None) -> bool:
    return values is not None and any(math.isfinite(value) for value in values)
