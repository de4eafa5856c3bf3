"""The comparison as one HTML page that opens without a network, on a screen, a phone and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from nnunetv2_vqseg.report import markup
from nnunetv2_vqseg.report.formatting import Table, p_value, score
from nnunetv2_vqseg.report.pictures import Picture
from nnunetv2_vqseg.report.statistics import MEAN

SECTIONS = {
    "result": "Result",
    "classes": "Classes",
    "paired": "Paired comparison",
    "cases": "Cases",
    "training": "Training",
    "origin": "Where the numbers come from",
}


FULL = ("Dice", "HD95")
"""The metrics whose figures are not folded away."""


@dataclass(frozen=True)
class ReportPictures:
    """The figures of a report: boxes and differences by metric, overlays and VQ curves by method."""

    boxes: dict[str, list[Picture]]
    differences: dict[str, list[Picture]]
    overlays: dict[str, list[Picture]]
    curves: list[Picture]
    vqseg_curves: dict[str, list[Picture]]

    def all(self) -> list[Picture]:
        """Every picture, in the order of the page."""
        groups = (self.boxes, self.differences, self.overlays, {"": self.curves}, self.vqseg_curves)
        return [item for group in groups for pictures in group.values() for item in pictures]


def render(summary: Mapping[str, Any], tables: Mapping[str, Table], pictures: ReportPictures) -> str:
    """The page.

    Args:
        summary: what `Comparison.run` writes to summary.json.
        tables: `summary`, `classes`, `repetitions`, `paired` and `training`.
        pictures: figures; empty groups are left out.
    """
    sections = {key: title for key, title in SECTIONS.items() if key != "paired" or summary["paired"]}
    body = [
        "<header>",
        f"<h1>{escape(summary['title'])}</h1>",
        markup.paragraph(facts(summary), "facts"),
        markup.navigation(sections),
        "</header>",
        "<main>",
        markup.notice_list([*summary["notes"], *summary["notices"]]),
        markup.heading("result", SECTIONS["result"]),
        *(markup.paragraph(sentence, "result") for sentence in headlines(summary)),
        markup.table(tables["summary"]),
        *([markup.table(tables["repetitions"])] if _most_repetitions(summary) > 1 else []),
        markup.heading("classes", SECTIONS["classes"]),
        markup.table(tables["classes"]),
        *_boxes(pictures.boxes, len(summary["classes"])),
    ]
    if summary["paired"]:
        body += [
            markup.heading("paired", SECTIONS["paired"]),
            markup.table(tables["paired"]),
            *_differences(pictures.differences),
        ]
    body.append(markup.heading("cases", SECTIONS["cases"]))
    body.append(
        markup.paragraph(
            "The best, median and worst prediction of each method by Dice (mean over classes), in the slice with the "
            "largest reference area" + (", among all its trainings." if _most_repetitions(summary) > 1 else ".")
        )
    )
    for method, items in pictures.overlays.items():
        body += [f"<h3>{escape(method)}</h3>", markup.gallery(items)]
    body += [markup.heading("training", SECTIONS["training"]), markup.table(tables["training"])]
    body.append(markup.definitions(foundation_models(summary) | postprocessing_steps(summary)))
    body.append(markup.gallery(pictures.curves))
    for method, items in pictures.vqseg_curves.items():
        body += [f"<h3>{escape(method)}</h3>", markup.gallery(items[:3])]
        if len(items) > 3:
            body.append(markup.details(f"More curves of {method}", markup.gallery(items[3:])))
    body += [markup.heading("origin", SECTIONS["origin"]), *_origin(summary), "</main>"]
    return markup.page(summary["title"], body)


def facts(summary: Mapping[str, Any]) -> str:
    """One line: what was compared on what."""
    cases = f"{summary['n_cases']} volumes of {summary['n_patients']} patients"
    if summary["n_cases"] == summary["n_patients"]:
        cases = f"{summary['n_cases']} cases"
    split = {"test": "test set", "val": "validation cases"}[summary["split"]]
    folds = f"fold{'s' if len(summary['folds']) > 1 else ''} {', '.join(summary['folds'])}"
    used = {tuple(method["training"]["configurations"]) for method in summary["methods"].values()}
    what = f"configuration {', '.join(used.pop())}, {folds}" if len(used) == 1 else folds
    if _most_repetitions(summary) > 1:
        counts = sorted({len(method["cases"]) for method in summary["methods"].values()})
        what += f", {' to '.join(map(str, counts[:: len(counts) - 1 or 1]))} trainings of each method"
    return f"{cases}, {split}; {what}; {summary['created']}."


def headlines(summary: Mapping[str, Any]) -> list[str]:
    """Per method after the first, its Dice beside the first's with the paired test."""
    sentences = []
    for test in summary["paired"]:
        if test["class"] != MEAN or test["metric"] != "Dice" or not test["n"]:
            continue
        ours, theirs = (
            score(summary["methods"][test[side]]["summary"][MEAN]["Dice"]["mean"], "Dice")
            for side in ("method", "baseline")
        )
        mean, low, high = (score(test[part], "Dice", sign=True) for part in ("difference", "ci_low", "ci_high"))
        sentence = (
            f"{test['method']} reaches a mean Dice of {ours}, {test['baseline']} {theirs}: "
            f"difference per patient {mean}"
        )
        if test["n"] > 1:
            p = p_value(test["p_wilcoxon"])
            sentence += (
                f" (95 % confidence interval {low} to {high}; Wilcoxon p {p if p.startswith('<') else f'= {p}'}, "
                f"{test['n']} patients)"
            )
        sentences.append(sentence + ".")
    return sentences


def foundation_models(summary: Mapping[str, Any]) -> dict[str, str]:
    """Per method, whether a foundation model took part, as its checkpoints say."""
    found = {}
    for name, method in summary["methods"].items():
        told = {fold["foundation_model"] for fold in method["training"]["folds"].values()} - {None}
        found[f"Foundation model, {name}"] = "; ".join(sorted(told)) or "none recorded in the checkpoint"
    return found


def postprocessing_steps(summary: Mapping[str, Any]) -> dict[str, str]:
    """Per method, what was done to the predictions of its trainings; empty without postprocessing."""
    found = {}
    for name, method in summary["methods"].items() if summary["postprocessing"] else ():
        steps = method["postprocessing"]["steps"]
        titles = {repetition: told["title"] for repetition, told in method["training"]["folds"].items()}
        groups = {told: [titles[key] for key in steps if steps[key] == told] for told in steps.values()}
        found[f"Postprocessing, {name}"] = "; ".join(
            told if len(groups) == 1 else f"{told} ({', '.join(which)})" for told, which in groups.items()
        )
    return found


def _boxes(by_metric: Mapping[str, Sequence[Picture]], classes: int) -> list[str]:
    """Dice and HD95 in full, the other metrics folded away; says where there are more `classes` than boxes."""
    text = "One dot per case, repetitions averaged; the box holds the middle half, the line is the median."
    drawn = len(by_metric[FULL[0]])
    if drawn < classes:
        text += f" Boxes are drawn for the first {drawn} of {classes} classes; the tables have all."
    parts = [markup.paragraph(text)]
    for metric in FULL:
        parts += [f"<h3>{metric}</h3>", markup.gallery(by_metric[metric])]
    return parts + [
        markup.details(metric, markup.gallery(by_metric[metric])) for metric in by_metric if metric not in FULL
    ]


def _differences(by_metric: Mapping[str, Sequence[Picture]]) -> list[str]:
    """Dice beside HD95 for each method, the other metrics folded away."""
    pairs = [item for row in zip(*(by_metric[metric] for metric in FULL), strict=True) for item in row]
    others = [(metric, items) for metric, items in by_metric.items() if metric not in FULL]
    explanation = "Filled dots: better than the baseline. Dashed line and band: mean and its 95 % confidence interval."
    return [
        markup.paragraph(f"One dot per patient. {explanation}"),
        markup.gallery(pairs, wide=True),
        *(markup.details(metric, markup.gallery(items, wide=True)) for metric, items in others),
    ]


def _origin(summary: Mapping[str, Any]) -> list[str]:
    unreadable = {
        f"{name}, {training['title']}": training["unreadable"]
        for name, method in summary["methods"].items()
        for training in method["training"]["folds"].values()
        if training["unreadable"]
    }
    parts = [
        markup.paragraph(
            "Means are over the volumes of each class, then over the classes, then over repetitions of the training "
            "(seeds, folds). Standard deviations, differences and tests are over patients: frames of a patient and "
            "repetitions are averaged first, because they are not independent."
        ),
        markup.definitions(summary["definitions"]),
        "<h3>Methods</h3>",
        markup.definitions(
            {
                name: f"{t['trainer']}, {t['plans']}, {', '.join(t['configurations'])}, {summary['checkpoint']}"
                for name, t in ((name, method["training"]) for name, method in summary["methods"].items())
            }
        ),
        "<h3>Versions</h3>",
        markup.definitions(summary["versions"]),
        "<h3>Command</h3>",
        markup.code(summary["command"]),
        markup.paragraph("All numbers are in summary.json beside this page; tables/ has them as CSV, JSON and LaTeX."),
    ]
    if unreadable:
        parts.append(markup.paragraph("Checkpoints whose training curves could not be read safely:"))
        parts.append(markup.definitions(unreadable))
    return parts


def _most_repetitions(summary: Mapping[str, Any]) -> int:
    return max(len(method["cases"]) for method in summary["methods"].values())
