"""Drawing `preview.png` from plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def draw_slices(
    filename: str | Path, cases: Sequence[str], columns: Mapping[str, np.ndarray], overlays: Mapping[str, np.ndarray]
) -> None:
    """One row a case: pictures, then the first of them under labels.

    Args:
        columns: (N, H, W) intensities by title.
        overlays: (N, H, W) integers by title, 0 is background.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = next(iter(columns.values()))
    top = max(1, *(int(labels.max()) for labels in overlays.values()))
    width = len(columns) + len(overlays)
    figure = Figure(figsize=(2.2 * width, 2.35 * len(cases)))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cases), width, squeeze=False)
    for row, case in enumerate(cases):
        low, high = np.percentile(image[row], (0.5, 99.5))
        for axis, (title, values) in zip(axes[row], columns.items(), strict=False):
            axis.imshow(values[row], cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            axis.set_title(title, fontsize=8)
        for axis, (title, labels) in zip(axes[row, len(columns) :], overlays.items(), strict=True):
            axis.imshow(image[row], cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            axis.imshow(
                np.ma.masked_equal(labels[row], 0),
                cmap="tab10",
                vmin=1,
                vmax=max(top, 10),
                alpha=0.55,
                interpolation="nearest",
            )
            axis.set_title(title, fontsize=8)
        axes[row, 0].set_ylabel(case, fontsize=7)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout(pad=0.4)
    figure.savefig(filename, dpi=90)
