"""The comparison as one HTML page that opens without a network, on a screen, a phone and on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from nnunetv2_vqseg.report.formatting import Table, p_value, score
from nnunetv2_vqseg.report.pictures import Picture
from nnunetv2_vqseg.report.statistics import MEAN
from nnunetv2_vqseg.report.verdict import verdict

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
SECTIONS = {
    "result": "Result",
    "classes": "Classes",
    "paired": "Paired comparison",
    "cases": "Cases",
    "training": "Training",
    "origin": "Where the numbers come from",
}


@dataclass(frozen=True)
class ReportPictures:
    """The figures of a report: one to open with, boxes and differences by metric, overlays and our curves by method."""

    overview: Picture
    boxes: dict[str, list[Picture]]
    differences: dict[str, list[Picture]]
    overlays: dict[str, list[Picture]]
    curves: list[Picture]
    vqseg_curves: dict[str, list[Picture]]

    def all(self) -> list[Picture]:
        """Every picture, in the order of the page."""
        groups = (self.boxes, self.differences, self.overlays, {"": self.curves}, self.vqseg_curves)
        return [self.overview, *(item for group in groups for pictures in group.values() for item in pictures)]


def render(summary: Mapping[str, Any], tables: Mapping[str, Table], pictures: ReportPictures) -> str:
    """The page.

    Args:
        summary: what `Comparison.run` writes to summary.json.
        tables: `summary`, `classes`, `repetitions`, `paired` and `training`.
        pictures: figures; empty groups are left out.
    """
    pairs = zip(pictures.differences["Dice"], pictures.differences["HD95"], strict=True)
    return TEMPLATES.get_template("page.html").render(
        summary=summary,
        tables=tables,
        pictures=pictures,
        sections={key: title for key, title in SECTIONS.items() if key != "paired" or summary["paired"]},
        facts=facts(summary),
        verdict=verdict(summary),
        headlines=headlines(summary),
        repeated=_most_repetitions(summary) > 1,
        dice_beside_hd95=[item for pair in pairs for item in pair],
        about_trainings=foundation_models(summary) | postprocessing_steps(summary),
        unreadable={
            f"{name}, {training['title']}": training["unreadable"]
            for name, method in summary["methods"].items()
            for training in method["training"]["folds"].values()
            if training["unreadable"]
        },
    )


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
    """Per method, whether a foundation model took part, and a ViT's first weights, as its checkpoints say."""
    found = {}
    for name, method in summary["methods"].items():
        folds = method["training"]["folds"].values()
        told, encoders = ({fold[key] for fold in folds} - {None} for key in ("foundation_model", "encoder"))
        found[f"Foundation model, {name}"] = "; ".join(sorted(told)) or "none recorded in the checkpoint"
        if encoders:
            found[f"Encoder, {name}"] = "; ".join(sorted(encoders))
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


def _most_repetitions(summary: Mapping[str, Any]) -> int:
    return max(len(method["cases"]) for method in summary["methods"].values())
