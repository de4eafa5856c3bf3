"""Box plots, paired differences and training curves of a comparison."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunetv2_vqseg.core.curve_plot import COLOURS, Lines, draw_lines, figure_style, filled_panels, readable
from nnunetv2_vqseg.report.formatting import OVERLAPS, number, score, slug, with_unit
from nnunetv2_vqseg.report.metrics import HIGHER_IS_BETTER
from nnunetv2_vqseg.report.pictures import METHOD_COLOURS, Picture, colour, picture
from nnunetv2_vqseg.report.statistics import MEAN
from nnunetv2_vqseg.report.training_records import TrainingRecord

OLD_PANELS: dict[str, tuple[str, ...]] = {
    "loss terms (unweighted)": (
        "supervised",
        "pseudo_strong",
        "pseudo_perturbed",
        "reconstruction",
        "reconstruction_unlabeled",
        "alignment",
        "vq",
        "feature",
        "entropy",
    ),
    "pseudo-labels": ("ramp", "confidence", "kept_share"),
    "QPM's step (standard deviations of z)": ("qpm_step",),
    "QPM mean displacement": ("qpm_displacement",),
    "codebook": ("utilization",),
    "codes in use (perplexity)": ("perplexity",),
    "gradient norm": ("gradient_norm",),
}
"""Those of trainings that do not say which panels they have; curves in none of them have one each."""

NO_CURVES = frozenset({"loss", "skipped_steps", "qpm_effective_neighbors"})

_CURVE_TITLES = {
    "train_losses": "Training loss",
    "val_losses": "Validation loss",
    "ema_fg_dice": "Pseudo Dice on validation patches (moving average)",
}


def overview_plot(summary: Mapping[str, Any]) -> Picture:
    """`draw_overview` as the picture that a report opens with."""
    with figure_style():
        figure = Figure(figsize=(6.2, 0.8 + 0.45 * len(summary["methods"])))
        draw_overview(figure.subplots(), summary)
        means = ", ".join(
            f"{name} {score(method['summary'][MEAN]['Dice']['mean'], 'Dice')}"
            for name, method in summary["methods"].items()
        )
        caption = f"{OVERVIEW} Mean: {means}."
        return picture(figure, "overview_dice", f"Box plot of the Dice of each method. {caption}", caption)


OVERVIEW = "A dot is a patient's Dice (mean over classes); the box holds the middle half; diamonds are whole trainings."


def draw_overview(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Mean Dice over classes: of each method a box, a dot per patient, and below it a diamond per training."""
    generator = np.random.default_rng(0)
    for position, method in enumerate(summary["methods"].values()):
        hue = colour(METHOD_COLOURS, position)
        values = np.array([value for value in method["patients"][MEAN]["Dice"].values() if not math.isnan(value)])
        if len(values):
            _draw_box(axes, values, position, hue)
            heights = position + generator.uniform(-0.16, 0.16, len(values))
            axes.scatter(values, heights, s=9, color=hue, alpha=0.65, linewidths=0, zorder=3)
        trainings = [means[MEAN]["Dice"] for means in method["folds"].values()]
        axes.plot(trainings, [position + 0.36] * len(trainings), "D", color="#222222", markersize=3.5, linestyle="none")
    axes.set_yticks(range(len(summary["methods"])), [textwrap.fill(name, 24) for name in summary["methods"]])
    axes.set_ylim(len(summary["methods"]) - 0.4, -0.5)
    axes.use_sticky_edges = False  # a bar would otherwise end the axis at its own edge
    axes.margins(x=0.06)
    axes.set_xlim(max(axes.get_xlim()[0], 0.0), 1.0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("Dice, mean over classes")


def box_plot(summary: Mapping[str, Any], key: str, metric: str) -> Picture:
    """Scores of one class, a box per method and a dot per case (repetitions averaged)."""
    name = summary["classes"][key]
    samples = {method: case_values(content["cases"], key, metric) for method, content in summary["methods"].items()}
    with figure_style():
        figure = Figure(figsize=(4.6, 0.9 + 0.55 * len(samples)))
        axes = figure.subplots()
        generator = np.random.default_rng(0)
        for position, values in enumerate(samples.values()):
            hue = colour(METHOD_COLOURS, position)
            if len(values):
                _draw_box(axes, values, position, hue)
                heights = position + generator.uniform(-0.16, 0.16, len(values))
                axes.scatter(values, heights, s=9, color=hue, alpha=0.65, linewidths=0, zorder=3)
        axes.set_yticks(range(len(samples)), [textwrap.fill(method, 18) for method in samples])
        axes.set_ylim(len(samples) - 0.5, -0.5)
        axes.use_sticky_edges = False  # a bar would otherwise end the axis at its own edge
        axes.margins(x=0.06)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(with_unit(metric, summary["units"]))
        axes.set_title(name)
        if metric in OVERLAPS:
            axes.set_xlim(right=1.0)
        medians = ", ".join(
            f"{method} {score(np.median(values) if len(values) else np.nan, metric)}"
            for method, values in samples.items()
        )
        lost = {
            method: sum(
                math.isnan(scores[key][metric]) for cases in content["cases"].values() for scores in cases.values()
            )
            for method, content in summary["methods"].items()
        }
        without = ", ".join(f"{count} of {method}" for method, count in lost.items() if count)
        caption = f"{name}, median {metric}: {medians}." + (f" Without a value: {without}." if without else "")
        fewest, most = min(map(len, samples.values())), max(map(len, samples.values()))
        count = f"{fewest} to {most}" if fewest < most else str(most)
        alt = f"Box plot of the {metric} of {count} cases for {name} with each method."
        return picture(figure, f"box_{metric.lower()}_{slug(key)}_{slug(name)}", alt, caption)


def difference_plot(summary: Mapping[str, Any], method: str, metric: str) -> Picture:
    """Per patient, sorted: a method's mean over classes minus the first method's, with the mean and its interval."""
    baseline = next(iter(summary["methods"]))
    values = [summary["methods"][name]["patients"][MEAN][metric] for name in (baseline, method)]
    differences = {patient: values[1][patient] - values[0][patient] for patient in values[0]}
    ordered = sorted((item for item in differences.items() if not math.isnan(item[1])), key=lambda item: item[1])
    test = next(t for t in summary["paired"] if t["method"] == method and t["metric"] == metric and t["class"] == MEAN)
    better = sum(_is_gain(value, metric) for _, value in ordered)
    with figure_style():
        figure = Figure(figsize=(6.2, 3.0))
        axes = figure.subplots()
        hue = colour(METHOD_COLOURS, list(summary["methods"]).index(method))
        for position, (_, value) in enumerate(ordered):
            axes.plot([position, position], [0, value], color=hue, linewidth=1.2, alpha=0.8)
            fill = hue if _is_gain(value, metric) else "white"
            axes.plot(position, value, "o", color=hue, markersize=5, markerfacecolor=fill)
        axes.axhline(0, color="#333333", linewidth=1)
        if test["n"] > 1:
            axes.axhspan(test["ci_low"], test["ci_high"], color=hue, alpha=0.12, linewidth=0)
        if test["n"]:
            axes.axhline(test["difference"], color=hue, linewidth=1.2, linestyle="--")
        if len(ordered) <= 30:
            axes.set_xticks(range(len(ordered)), [patient for patient, _ in ordered], rotation=90, fontsize=7)
        else:
            axes.set_xticks([])
            axes.set_xlabel(f"{len(ordered)} patients, sorted")
        axes.grid(visible=False, axis="x")
        axes.set_ylabel(f"Difference in {with_unit(metric, summary['units'])}")
        axes.set_title(textwrap.fill(f"{method} − {baseline}: {metric}", 64))
        mean, low, high = (score(test[part], metric, sign=True) for part in ("difference", "ci_low", "ci_high"))
        text = (
            f"{method} is better than {baseline} in {metric} for {better} of {len(ordered)} patients; mean difference "
            f"{mean}" + (f" ({low} to {high})." if test["n"] > 1 else ".")
        )
        return picture(figure, f"difference_{metric.lower()}_{slug(method)}", text, text)


def curve_plots(records: Mapping[str, Mapping[str, TrainingRecord]]) -> list[Picture]:
    """nnU-Net's curves of all methods in one figure each, a line per training."""
    pictures = []
    for key, title in _CURVE_TITLES.items():
        lines = {
            method: [record.curves[key] for record in folds.values() if record.curves.get(key)]
            for method, folds in records.items()
        }
        if any(lines.values()):
            last = "; ".join(f"{method} ends at {_last(curves)}" for method, curves in lines.items() if curves)
            caption = f"{title}{', a line per training' if any(len(c) > 1 for c in lines.values()) else ''}."
            alt = f"{title} over epochs: {last}."
            pictures.append(_curves(f"curve_{key}", title, lines, METHOD_COLOURS, alt, caption))
    return pictures


def vqseg_plots(method: str, folds: Mapping[str, TrainingRecord]) -> list[Picture]:
    """The curves that only our trainers record, in the panels of progress_vqseg.png."""
    names = list(dict.fromkeys(name for record in folds.values() for name in record.vqseg_curves))
    panels = {title: curves for record in folds.values() for title, curves in record.panels.items()}
    known = {name: [r.vqseg_curves[name] for r in folds.values() if r.vqseg_curves.get(name)] for name in names}
    pictures = []
    for title, curves in filled_panels(panels or _old_panels(names), known).items():
        caption = f"{method}: {title.replace('_', ' ')}." + _token_note(curves, known)
        last = ", ".join(f"{readable(name)} {_last(lines)}" for name, lines in curves.items())
        name = f"vqseg_{slug(method)}_{slug(title)}"
        pictures.append(_curves(name, readable(title), curves, COLOURS, f"{caption} At the end: {last}.", caption))
    return pictures


def _old_panels(names: Sequence[str]) -> dict[str, Sequence[str]]:
    grouped = {*NO_CURVES, *(name for group in OLD_PANELS.values() for name in group)}
    # a token count is a scale for the utilisation, not a curve of its own
    return OLD_PANELS | {name: [name] for name in names if name not in grouped and not name.endswith("_tokens")}


def _curves(
    name: str, title: str, lines: Mapping[str, Lines], colours: Sequence[str], alt: str, caption: str
) -> Picture:
    with figure_style():
        figure = Figure(figsize=(4.6, 3.0))
        axes = figure.subplots()
        draw_lines(axes, lines, colours, str if colours is METHOD_COLOURS else readable)
        axes.set_title(title)
        if len(lines) > 1 or colours is METHOD_COLOURS:
            _legend_below(figure, axes)
        else:
            axes.set_ylabel(readable(next(iter(lines))))
        return picture(figure, name, alt, caption)


def case_values(folds: Mapping[str, Mapping[str, Any]], key: str, metric: str) -> np.ndarray:
    """A class's known scores `(cases,)`, averaged over the repetitions that scored a case."""
    by_case: dict[str, list[float]] = {}
    for cases in folds.values():
        for case, scores in cases.items():
            if not math.isnan(scores[key][metric]):
                by_case.setdefault(case, []).append(scores[key][metric])
    return np.array([float(np.mean(values)) for values in by_case.values()])


def _is_gain(difference: float, metric: str) -> bool:
    return difference != 0 and (difference > 0) == HIGHER_IS_BETTER[metric]


def _draw_box(axes: Axes, values: np.ndarray, position: int, hue: str) -> None:
    """Quartiles and median; whiskers to the last values within 1.5 times the box's length (Tukey)."""
    low, median, high = np.percentile(values, (25, 50, 75))
    inside = values[(values >= low - 1.5 * (high - low)) & (values <= high + 1.5 * (high - low))]
    axes.barh(position, high - low, left=low, height=0.5, facecolor=hue + "22", edgecolor=hue, linewidth=1.2)
    for start, end in ((inside.min(), low), (high, inside.max())):
        axes.plot([start, end], [position, position], color=hue, linewidth=1.2)
    axes.plot([median, median], [position - 0.25, position + 0.25], color=hue, linewidth=2.2, solid_capstyle="butt")


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Names of the lines under the axes, where they cover nothing; the figure grows by them."""
    handles, names = axes.get_legend_handles_labels()
    longest = max(map(len, names), default=0)
    columns = 3 if longest <= 16 else 2 if longest <= 28 else 1
    labels = [textwrap.fill(name, 60) for name in names]
    rows = [labels[start : start + columns] for start in range(0, len(labels), columns)]
    lines = sum(max(label.count("\n") + 1 for label in row) for row in rows)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.16 * lines)
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=8)


def _last(curves: Lines) -> str:
    """Where the curves end, on average."""
    return number(float(np.mean([curve[-1] for curve in curves])), 3)


def _token_note(curves: Mapping[str, Lines], known: Mapping[str, Lines]) -> str:
    """'Counted over n tokens per epoch' for curves that have their own token count beside them."""
    counts = next((lines[0] for name in curves if (lines := known.get(f"{name}_tokens"))), None)
    if not counts:
        return ""
    return f" Share of codes chosen at least once among the {counts[-1]:,.0f} tokens of an epoch."
