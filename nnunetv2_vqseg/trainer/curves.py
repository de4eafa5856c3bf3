"""What a training logs beside nnU-Net's own curves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.curve_plot import (
    DICE,
    TOTAL,
    WEIGHTED,
    draw_lines,
    figure_style,
    filled_panels,
    grouped,
    readable,
)


class EpochCurves:
    """Means over the steps of each epoch, one list a name; NaN for an epoch in which nothing was logged.

    Args:
        panels: names of the method's curves by the title of their panel; Dice and loss terms have panels of their own.
        saved: the network that is saved.

    Attributes:
        draw: as `draw_panels`.
    """

    def __init__(self, panels: Mapping[str, tuple[str, ...]], saved: str | None = None) -> None:
        self.method_panels = panels
        self.saved = saved
        self.history: dict[str, list[float]] = {}
        self.draw: Callable[..., None] = draw_panels
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    @property
    def panels(self) -> dict[str, list[str]]:
        """Curves by the title of the panel in which they are drawn."""
        return grouped(self.history, self.method_panels, self.saved)

    def add(self, values: Mapping[str, float]) -> None:
        """Values of one step; those that are not finite are left out of the mean."""
        for name, value in values.items():
            if math.isfinite(value):
                self._sums[name][0] += value
                self._sums[name][1] += 1

    def close_epoch(self, epoch: int, extra: Mapping[str, float]) -> dict[str, float]:
        """Append this epoch's means and `extra` values to the history and return them.

        A weighted term counts 0 in steps without it, so that the terms' means add up to the loss's.
        """
        steps = self._sums[TOTAL][1] if TOTAL in self._sums else 0.0
        means = {
            name: total / (steps if steps and name.startswith(WEIGHTED) else count)
            for name, (total, count) in self._sums.items()
        } | dict(extra)
        self._sums.clear()
        self.complete(epoch, {name: means.get(name, math.nan) for name in self.history.keys() | means.keys()})
        return means

    def complete(self, epoch: int, values: Mapping[str, float]) -> None:
        """Further values of an epoch, also of one that is closed already."""
        for name, value in values.items():
            line = self.history.setdefault(name, [])
            line.extend([math.nan] * (epoch + 1 - len(line)))
            line[epoch] = value

    def restore(self, history: Mapping[str, list[float]], epochs: int) -> None:
        """Continue from a checkpoint's history, cut to its first `epochs` epochs."""
        self.history = {name: list(values[:epochs]) for name, values in history.items()}
        self._sums.clear()

    @staticmethod
    def summary_line(epoch: Mapping[str, float]) -> str:
        """One line for the log; utilisation with the number of tokens it was counted over."""
        parts = [
            f"{name} {value:.4g}"
            for name, value in epoch.items()
            if name not in ("utilization", "utilization_tokens") and not name.startswith(WEIGHTED)
        ]
        if "utilization" in epoch:
            parts.append(f"utilization {epoch['utilization']:.1%} over {epoch['utilization_tokens']:.0f} tokens")
        return "vqseg: " + ", ".join(parts)

    def plot(self, filename: str | Path) -> None:
        """Write `progress_vqseg.png`: one panel a group of curves."""
        panels = filled_panels(self.panels, {name: [values] for name, values in self.history.items()})
        if panels:
            self.draw(filename, {title: (self._title(title), curves) for title, curves in panels.items()})

    def _title(self, title: str) -> str:
        tokens = self.history.get("utilization_tokens")
        text = (
            f"codebook utilisation over {tokens[-1]:,.0f} tokens an epoch" if title == "codebook" and tokens else title
        )
        return text[:1].upper() + text[1:]


def weighted(weights: Mapping[str, float], values: Mapping[str, float]) -> dict[str, float]:
    """The loss terms of a step times their weights, which add up to the loss.

    Args:
        weights: of the terms.
        values: numbers by name, those of the terms among them.
    """
    return {f"{WEIGHTED}{name}": weight * values[name] for name, weight in weights.items()}


def draw_panels(filename: str | Path, panels: Mapping[str, tuple[str, Any]]) -> None:
    """Write a picture of panels.

    Args:
        panels: heading and curves by the panel's own title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with figure_style():
        layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.08)
        figure = Figure(figsize=(5.2 * columns, 2.9 * rows), layout=layout)
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (title, (heading, curves)) in zip(grid.flat, panels.items(), strict=False):
            draw_lines(axes, curves, label=readable)
            axes.set_title(heading)
            if len(curves) > 1:  # below, where it hides no curve
                axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.2), ncols=3, fontsize=8, borderpad=0)
            elif not (name := next(iter(curves))).startswith(DICE) and readable(name).lower() not in title.lower():
                axes.set_ylabel(readable(name))
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        figure.savefig(filename, dpi=100)
