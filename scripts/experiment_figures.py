"""Figures of an experiment: dots of seeds with mean and standard deviation a run, or lines over a hyper-parameter."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from experiment_files import Experiment
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunetv2_vqseg.core.curve_plot import figure_style
from nnunetv2_vqseg.report.pictures import METHOD_COLOURS, Picture, picture
from nnunetv2_vqseg.report.statistics import MEAN

MARKERS = "osD^v"


def draw(experiment: Experiment, rows: Sequence[Mapping[str, Any]], split: str, name: str) -> Picture | None:
    """The figure of the measured rows, None where there is none.

    The experiment's `figure` may hold `lines` (name of a line -> key of the vqseg block on the x-axis), `label` of the
    x-axis, its `range`, `log: true` for its scale and `curve`, the name of a column that gets a panel of its own.
    """
    measured = [row for row in rows if "summary" in row]
    if not measured:
        return None
    patients = f"{measured[0]['summary'][MEAN]['Dice']['n_patients']} {split} patients"
    with figure_style():
        figure = _lines(experiment, measured) if experiment.figure else _dots(experiment, measured)
        figure.suptitle(f"{experiment.title} ({experiment.profile_name} profile)", x=0.01, ha="left", fontsize=10)
        figure.supxlabel(
            f"Dice on {patients}: seeds (small dots), their mean ± standard deviation", fontsize=8, color="#333333"
        )
        alt = f"{experiment.title}: Dice of each row on {patients}, mean and seeds."
        return picture(figure, name, alt, alt, dpi=200)


def _dots(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each number of labels, a line for each run; the dashed line is the first run's mean."""
    counts = list(dict.fromkeys(row["labeled"] for row in rows))
    panels = [[row for row in rows if row["labeled"] == count] for count in counts]
    heights = [len(panel) + 0.6 for panel in panels]
    figure = Figure(figsize=(6.3, 0.8 + 0.36 * sum(heights) + 0.3 * len(panels)))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    unit = experiment.runs[0].data.unit or " patients"
    for axes, count, panel in zip(grid, counts, panels, strict=True):
        for position, row in enumerate(panel):
            hue = METHOD_COLOURS[0] if position == 0 else METHOD_COLOURS[1]
            mean, spread, seeds = _dice(row)
            axes.scatter(seeds, [position + 0.24] * len(seeds), s=12, color=hue, alpha=0.6, linewidths=0)
            axes.errorbar(mean, position, xerr=spread, fmt="D", markersize=5, capsize=3, color=hue, zorder=3)
            axes.annotate(f"{mean:.3f}", (1.01, position), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        axes.axvline(_dice(panel[0])[0], color=METHOD_COLOURS[0], linewidth=1, linestyle="--", zorder=1)
        axes.set_yticks(range(len(panel)), [textwrap.fill(row["name"], 34) for row in panel], fontsize=8)
        axes.set_ylim(len(panel) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="x", labelbottom=True)
        axes.margins(x=0.06)
        axes.set_title(f"{count}{unit} labelled", fontsize=9, fontweight="normal")
    return figure


def _lines(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Dice over a hyper-parameter, and under it a curve's last value; runs that are on no line cross the panel.

    Where all runs share seeds the others are left out: means over different seeds make no line.
    """
    rows = _of_shared_seeds(rows)
    settings = experiment.figure
    curve = settings.get("curve")
    figure = Figure(figsize=(6.3, 5.2 if curve else 3.8))
    dice, *others = figure.subplots(2 if curve else 1, 1, sharex=True, squeeze=False)[:, 0]
    across = [row for row in rows if row["line"] is None]
    for index, row in enumerate(across):
        style = ("--", ":", "-.")[index % 3]
        dice.axhline(_dice(row)[0], color=METHOD_COLOURS[0], linewidth=1.2, linestyle=style, label=row["name"])
    for index, line in enumerate(settings["lines"]):
        points = sorted((row for row in rows if row["line"] == line), key=lambda row: row["x"])
        look = {"color": METHOD_COLOURS[1 + index], "marker": MARKERS[index % len(MARKERS)], "markersize": 5}
        if points:
            _draw_line(dice, points, line, look)
        for axes in others:
            known = [row for row in points if row["last_values"].get(curve)]
            values = [float(np.mean(row["last_values"][curve])) for row in known]
            axes.plot([row["x"] for row in known], values, label=line, **look)
    for axes, title in zip((dice, *others), ("Dice", (curve or "").capitalize()), strict=False):
        axes.set_ylabel(title)
    last = (dice, *others)[-1]
    if settings.get("log"):
        ticks = sorted({row["x"] for row in rows if row["line"]})
        last.set_xscale("log", base=2)
        last.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    elif "range" in settings:
        last.set_xlim(*settings["range"])
    last.set_xlabel(settings["label"])
    if len(settings["lines"]) + len(across) > 1:
        dice.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _of_shared_seeds(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    shared = set.intersection(*(set(row["folds"]) for row in rows))
    if not shared:
        return rows
    restricted = []
    for row in rows:
        folds = {seed: fold for seed, fold in row["folds"].items() if seed in shared}
        last_values = row["last_values"] if len(folds) == len(row["folds"]) else {}  # which have no seeds
        restricted.append({**row, "folds": folds, "last_values": last_values})
    return restricted


def _draw_line(axes: Axes, points: Sequence[Mapping[str, Any]], name: str, look: Mapping[str, Any]) -> None:
    values = [_dice(row) for row in points]
    x = [row["x"] for row in points]
    spreads = [np.nan if spread is None else spread for _, spread, _ in values]
    axes.errorbar(x, [mean for mean, _, _ in values], yerr=spreads, capsize=3, linewidth=1.4, label=name, **look)
    for place, (_, _, seeds) in zip(x, values, strict=True):
        if len(seeds) > 1:
            axes.scatter([place] * len(seeds), seeds, s=10, color=look["color"], alpha=0.5, linewidths=0)


def _dice(row: Mapping[str, Any]) -> tuple[float, float | None, list[float]]:
    """Mean (NaN where no seed is left), standard deviation over the seeds (None for one), and each seed's."""
    seeds = [fold[MEAN]["Dice"] for fold in row["folds"].values()]
    mean = float(np.mean(seeds)) if seeds else math.nan
    return mean, float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None, seeds
