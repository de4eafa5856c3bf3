"""Curves over epochs, as trainings and reports draw them; the axes are matplotlib's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Okabe and Ito's palette, told apart with any colour vision
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

Lines = Sequence[Sequence[float]]
"""A curve of each training, one value an epoch."""


def filled_panels(panels: Mapping[str, Iterable[str]], curves: Mapping[str, Lines]) -> dict[str, dict[str, Lines]]:
    """Title of each panel to those of its curves that are known, without the panels that have no finite value."""
    found = {title: {name: curves[name] for name in names if curves.get(name)} for title, names in panels.items()}
    return {
        title: known
        for title, known in found.items()
        if any(math.isfinite(value) for lines in known.values() for line in lines for value in line)
    }


def draw_lines(axes: Any, curves: Mapping[str, Lines], colours: Sequence[str] = COLOURS) -> None:
    """A line for each training in the colour of its curve, whose first line has the name, for a legend."""
    for position, (name, lines) in enumerate(curves.items()):
        for index, line in enumerate(lines):
            axes.plot(
                range(len(line)),
                line,
                label=name if index == 0 else None,
                color=colours[position % len(colours)],
                linestyle="-" if position < len(colours) else "--",  # where the colours begin again
                linewidth=1.4,
                alpha=0.85,
                marker="o" if len(line) == 1 else None,  # a single epoch would be an invisible line
            )
    axes.set_xlabel("Epoch")
