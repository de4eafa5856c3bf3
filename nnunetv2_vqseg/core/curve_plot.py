"""Curves over epochs, as trainings and reports draw them; the axes are matplotlib's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Okabe and Ito's palette, told apart with any colour vision
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

DICE = "dice_"
"""What the names of curves begin with that are a network's Dice on validation patches."""
WEIGHTED = "weighted_"
"""And those of loss terms times their weight, which add up to the curve `TOTAL`."""
TOTAL = "loss"
PANELS: Mapping[str, tuple[str, ...]] = {
    "guard: steps that wait, foreground of pseudo-labels in that of labels": ("unlabeled_waits", "foreground_ratio"),
    "gradient norm": ("gradient_norm",),
}
"""What every method has, by the title of its panel."""

LEAST_DICE = 0.2
"""Of the axis of a panel of Dice: less would show noise as large as a curve."""
_NAMES = {"confidence": "mean confidence", "kept_share": "share of pixels kept"}
_SHARES = frozenset(
    {"ramp", "confidence", "agreement", "utilization", "kept_by_component", "kept_by_codes", "unknown_codes"}
)

Lines = Sequence[Sequence[float]]
"""A curve of each training, one value an epoch."""


@contextmanager
def figure_style() -> Iterator[None]:
    """matplotlib's defaults with our changes, whatever the process has set (nnU-Net sets seaborn's)."""
    import matplotlib.style

    with matplotlib.style.context(["default", Path(__file__).with_name("figures.mplstyle")], after_reset=True):
        yield


def grouped(names: Iterable[str], panels: Mapping[str, Iterable[str]], saved: str | None = None) -> dict[str, list]:
    """Title of each panel to its curves: Dice, the loss with its weighted terms, a method's own panels, `PANELS`.

    Args:
        names: of the curves there are; those that no panel names are not drawn.
        panels: of the method.
        saved: the network that is saved, where there are several.
    """
    known = dict.fromkeys(names)
    dice = sorted((name for name in known if name.startswith(DICE)), key=lambda name: name != f"{DICE}{saved}")
    terms = [name for name in known if name.startswith(WEIGHTED)]
    several = len(terms) > 1
    wanted: dict[str, Iterable[str]] = {
        f"Dice on validation patches{f' (saved: {saved})' if saved and len(dice) > 1 else ''}": dice,
        f"loss{' and its terms, each times its weight' if several else ''}": [TOTAL, *terms] if several else [TOTAL],
        **panels,
        **PANELS,
    }
    found = {title: [name for name in curves if name in known] for title, curves in wanted.items()}
    return {title: curves for title, curves in found.items() if curves}


def filled_panels(panels: Mapping[str, Iterable[str]], curves: Mapping[str, Lines]) -> dict[str, dict[str, Lines]]:
    """Title of each panel to those of its curves that have a finite value, without the panels that have none."""
    found = {
        title: {name: curves[name] for name in names if any(_finite(curves.get(name, ())))}
        for title, names in panels.items()
    }
    return {title: known for title, known in found.items() if known}


def draw_lines(
    axes: Any, curves: Mapping[str, Lines], colours: Sequence[str] = COLOURS, label: Callable[[str], str] = str
) -> None:
    """A line for each training in the colour of its curve, whose first line has the name, for a legend.

    The axis shows 0 and what the values span, so that noise stays small beside them; see `limits`.
    """
    from matplotlib.ticker import MaxNLocator

    position = 0
    for name, lines in curves.items():
        total = name == TOTAL and len(curves) > 1
        for index, line in enumerate(lines):
            few = sum(map(math.isfinite, line)) < 30
            axes.plot(
                range(len(line)),
                line,
                label=label(name) if index == 0 else None,
                color="#222222" if total else colours[position % len(colours)],
                linestyle="-" if position < len(colours) else "--",  # where the colours begin again
                linewidth=1.4,
                alpha=0.85,
                # of a value between epochs without one there would be no line
                marker="o" if few else None,
                markersize=3.5,
            )
        position += not total
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    last = max((len(line) for lines in curves.values() for line in lines), default=1) - 1
    axes.set_xlim(-max(0.2, 0.04 * last), last + max(0.2, 0.04 * last))  # of all panels the same, also of late curves
    values = [value for lines in curves.values() for value in _finite(lines)]
    if values:
        axes.set_ylim(limits(list(curves), values))


def limits(names: Sequence[str], values: Sequence[float]) -> tuple[float, float]:
    """Lower and upper end of the axis of these curves.

    Shares go from 0 to 1. Dice has an axis of `LEAST_DICE` at least. Every other axis shows 0, so that a change is seen
    at its size beside the values.
    """
    low, high = min(values), max(values)
    if all(name.startswith(DICE) for name in names):
        high = min(max(high + 0.02, low + LEAST_DICE), 1.02)
        return max(min(low - 0.02, high - LEAST_DICE), -0.02), high
    if any(name.endswith("share") or name in _SHARES for name in names):
        return -0.02, max(high, 1.0) + 0.02
    low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.05 * (high - low) or 0.05
    return low - margin * (low < 0), high + margin * (high > 0 or low == high)


def readable(name: str) -> str:
    """The name of a curve as people read it."""
    text = _NAMES.get(name, name).removeprefix(DICE).removeprefix(WEIGHTED).replace("_", " ")
    text = text.replace("unlabeled", "unlabelled").replace("utilization", "utilisation")
    text = re.sub(r"\b(vq|qpm)\b", lambda found: found[0].upper(), text)
    return text[:1].upper() + text[1:]


def _finite(lines: Lines) -> Iterator[float]:
    return (value for line in lines for value in line if math.isfinite(value))
