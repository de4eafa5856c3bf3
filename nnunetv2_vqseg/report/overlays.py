"""The best, median and worst case of a method as contours beside the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunetv2_vqseg.core.curve_plot import figure_style
from nnunetv2_vqseg.report.classes import EvaluationClasses
from nnunetv2_vqseg.report.formatting import number, slug
from nnunetv2_vqseg.report.pictures import CLASS_COLOURS, Picture, colour, picture
from nnunetv2_vqseg.report.scored_training import ScoredTraining
from nnunetv2_vqseg.report.scoring import ScoreSettings
from nnunetv2_vqseg.report.statistics import MEAN, Scores, protocol_mean
from nnunetv2_vqseg.report.volumes import Volume, read_volume

MINIMUM_SIDE = 48
"""Smallest side in pixels of the part of a slice that is shown."""


def pick_cases(scores: Scores, classes: list[str]) -> dict[str, tuple[str, str, float]]:
    """'best', 'median' and 'worst' to repetition, case and Dice (mean over classes); fewer where there are fewer.

    The predictions of all repetitions are ranked together. Among equals the first in order of name, so that a report
    can be repeated.
    """
    dice = [
        (repetition, case, protocol_mean({case: found}, classes)[MEAN]["Dice"])
        for repetition, cases in scores.items()
        for case, found in cases.items()
    ]
    ranked = sorted((item for item in dice if not math.isnan(item[2])), key=lambda item: (-item[2], item[1], item[0]))
    if not ranked:
        return {}
    levels = {0: "best", len(ranked) - 1: "worst"} | ({len(ranked) // 2: "median"} if len(ranked) > 2 else {})
    return {levels[position]: ranked[position] for position in sorted(levels)}


def slice_of_largest_area(reference: np.ndarray, prediction: np.ndarray) -> int:
    """Index along the first axis of the slice with most reference; of most prediction where there is no reference."""
    area = reference.sum(axis=(1, 2))
    if not area.any():
        area = prediction.sum(axis=(1, 2))
    return int(area.argmax()) if area.any() else len(area) // 2


def overlay(
    title: str,
    name: str,
    image: Volume,
    reference: Volume,
    prediction: Volume,
    classes: EvaluationClasses,
) -> Picture:
    """Reference and prediction as contours over the slice with the largest reference area, cropped to both.

    Args:
        title: what is shown, for caption and alt text.
        name: file name without ending.
        image, reference, prediction: volumes `(Z, Y, X)` on the same grid.
    """
    masks = {
        key: (np.isin(reference.voxels, label), np.isin(prediction.voxels, label))
        for key, label in classes.labels.items()
    }
    foreground = [np.logical_or.reduce([pair[side] for pair in masks.values()]) for side in (0, 1)]
    index = slice_of_largest_area(*foreground)
    rows, columns = _window(foreground[0][index] | foreground[1][index])
    shown = image.voxels[index, rows, columns]
    low, high = np.percentile(shown, (0.5, 99.5))
    aspect = image.spacing[1] / image.spacing[2]
    height = shown.shape[0] * aspect / shown.shape[1]
    with figure_style():
        figure = Figure(figsize=(5.2, 2.5 * min(max(height, 0.5), 1.6) + 0.65))
        panels = figure.subplots(1, 2)
        for side, (panel, heading) in enumerate(zip(panels, ("Reference", "Prediction"), strict=True)):
            panel.imshow(shown, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
            panel.set_title(heading)
            panel.set_axis_off()
            for position, pair in enumerate(masks.values()):
                _draw_contour(panel, pair[side][index, rows, columns], colour(CLASS_COLOURS, position))
        legend = [
            Line2D([], [], color=colour(CLASS_COLOURS, position), linewidth=2, label=classes.names[key])
            for position, key in enumerate(masks)
        ]
        figure.legend(handles=legend, loc="outside lower center", ncols=min(len(legend), 5), fontsize=8)
        text = f"{title}, slice {index + 1} of {len(image.voxels)}."
        return picture(figure, name, f"Reference and prediction as contours: {text}", text, dpi=140)


def overlays_of_method(
    summary: Mapping[str, Any], method: str, done: Mapping[str, ScoredTraining], settings: ScoreSettings
) -> list[Picture]:
    """`overlay` for the picked cases of one method, best first.

    Args:
        done: its trainings by repetition.
    """
    pictures, classes = [], settings.classes
    scores = {repetition: one.scores for repetition, one in done.items()}
    for level, (repetition, case, dice) in pick_cases(scores, classes.keys).items():
        scored, told = done[repetition], summary["methods"][method]["training"]["folds"][repetition]
        which = f" ({told['title']})" if len(done) > 1 else ""
        title = f"{level.capitalize()} case of {method}: {case}{which}, Dice {number(dice, 3)}"
        image = read_volume(scored.cases[case].images[0], settings.reader, labels=False)
        reference, prediction = (
            read_volume(file, settings.reader) for file in (scored.cases[case].reference, scored.predictions[case])
        )
        pictures.append(overlay(title, f"overlay_{slug(method)}_{level}", image, reference, prediction, classes))
    return pictures


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """A window around a mask `(Y, X)` with a margin of a quarter of its size, at least `MINIMUM_SIDE` where it fits."""
    window = []
    for axis, size in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=1 - axis))
        low, high = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, size)
        side = min(size, max(MINIMUM_SIDE, round((high - low) * 1.5)))
        start = min(max(0, (low + high - side) // 2), size - side)
        window.append(slice(start, start + side))
    return window[0], window[1]


def _draw_contour(axes: Axes, mask: np.ndarray, hue: str) -> None:
    if not mask.any():
        return
    padded = np.pad(mask, 1).astype(float)  # a mask that touches the window's edge still gets a closed contour
    rows, columns = (np.arange(-1, size + 1) for size in mask.shape)
    axes.contour(columns, rows, padded, levels=[0.5], colors=[hue], linewidths=1.6)
