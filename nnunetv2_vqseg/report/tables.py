"""The tables of a comparison, built from its summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_vqseg.report.metrics import HIGHER_IS_BETTER, METRICS
from nnunetv2_vqseg.report.statistics import MEAN
from nnunetv2_vqseg.report.table import DECIMALS, NOTHING, Cell, Table, number, p_value

EMPTY_COLUMNS = {
    "empty_prediction": "Empty predictions",
    "empty_reference": "Empty references",
    "both_empty": "Both empty",
}
_EMPTY = "Counts of empty masks are over volumes, classes and trainings."


def metric_header(units: str) -> list[str]:
    """`METRICS` with the unit of the distances."""
    unit = {"voxel": "voxels", "mm": "mm"}[units]
    return ["Dice", "Jaccard", f"HD95 ({unit})", f"ASD ({unit})"]


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Mean over classes of every method."""
    rows, records = _metric_rows(summary, MEAN)
    return Table(
        "summary",
        f"Mean over classes ± standard deviation over patients; the best mean of each column in bold. {_EMPTY}",
        ["Method", *metric_header(summary["units"]), *EMPTY_COLUMNS.values()],
        rows,
        records,
    )


def class_table(summary: Mapping[str, Any]) -> Table:
    """The same for each class."""
    rows, records = [], []
    for key, name in summary["classes"].items():
        class_rows, class_records = _metric_rows(summary, key)
        rows += [[Cell(name), *row] for row in class_rows]
        records += [{"class": name, "label": key, **record} for record in class_records]
    return Table(
        "classes",
        f"Mean ± standard deviation over patients for each class; the best mean of each class in bold. {_EMPTY}",
        ["Class", "Method", *metric_header(summary["units"]), *EMPTY_COLUMNS.values()],
        rows,
        records,
        grouped=True,
    )


def repetition_table(summary: Mapping[str, Any]) -> Table:
    """Mean over classes of each repetition, and mean and standard deviation over them."""
    rows, records = [], []
    for name, method in summary["methods"].items():
        values = {key: means[MEAN] for key, means in method["folds"].items()}
        titles = {key: method["training"]["folds"][key]["title"] for key in values}
        if len(values) > 1:
            for title, part in (("mean", "mean"), ("SD", "sd_folds")):
                values[title] = {metric: method["summary"][MEAN][metric][part] for metric in METRICS}
                titles[title] = title
        for key, means in values.items():
            rows.append([Cell(name), Cell(titles[key]), *(Cell(number(means[m], DECIMALS[m])) for m in METRICS)])
            records.append({"method": name, "repetition": key, **means})
    return Table(
        "repetitions",
        "Mean over classes of each training, and mean and standard deviation (SD) over the trainings of a method.",
        ["Method", "Training", *metric_header(summary["units"])],
        rows,
        records,
        grouped=True,
    )


def paired_table(summary: Mapping[str, Any]) -> Table:
    """Paired tests against the first method: the page shows the mean over classes, the files every class."""
    rows = []
    for test in summary["paired"]:
        if test["class"] != MEAN:
            continue
        places = DECIMALS[test["metric"]]
        interval = f"[{number(test['ci_low'], places, sign=True)}, {number(test['ci_high'], places, sign=True)}]"
        difference = number(test["difference"], places, sign=True)
        rows.append(
            [
                Cell(f"{test['method']} against {test['baseline']}"),
                Cell(test["metric"]),
                Cell(str(test["n"])),
                Cell(f"{difference} {interval}" if test["n"] > 1 else difference),
                Cell(p_value(test["p_wilcoxon"])),
                Cell(p_value(test["p_t"])),
            ]
        )
    return Table(
        "paired",
        "Mean difference over patients [95 % confidence interval], mean over classes, and two-sided p-values, "
        "not corrected for the number of comparisons.",
        ["Comparison", "Metric", "Patients", "Difference", "Wilcoxon p", "Paired t-test p"],
        rows,
        [{**test, "class": summary["classes"].get(test["class"], test["class"])} for test in summary["paired"]],
        grouped=True,
    )


def case_table(summary: Mapping[str, Any]) -> Table:
    """Every score of every case; for files only, so without cells."""
    records = [
        {"method": name, "repetition": key, "case": case, "class": summary["classes"][label], "label": label, **scores}
        for name, method in summary["methods"].items()
        for key, cases in method["cases"].items()
        for case, classes in cases.items()
        for label, scores in classes.items()
    ]
    return Table("cases", "Scores of every case.", list(records[0]) if records else [], [], records)


def _metric_rows(summary: Mapping[str, Any], key: str) -> tuple[list[list[Cell]], list[dict[str, Any]]]:
    """One row per method for a class or the mean."""
    methods = summary["methods"]
    best = {m: _best([method["summary"][key][m]["mean"] for method in methods.values()], m) for m in METRICS}
    rows, records = [], []
    for name, method in methods.items():
        note = method["training"]["note"] if key == MEAN else ""
        cells, record = [Cell(name, note=note)], {"method": name, "note": note}
        for metric in METRICS:
            values = method["summary"][key][metric]
            deviation = number(values["sd_patients"], DECIMALS[metric])
            text = number(values["mean"], DECIMALS[metric])
            cells.append(
                Cell(text if NOTHING in (deviation, text) else f"{text} ± {deviation}", text == best[metric] != NOTHING)
            )
            record |= {f"{metric}_{part}": values[part] for part in ("mean", "sd_patients", "sd_folds", "n_patients")}
        empty = method["empty"][key]
        cells += [Cell(f"{empty[count]} of {empty['n_cases']}") for count in EMPTY_COLUMNS]
        rows.append(cells)
        records.append(record | empty)
    return rows, records


def _best(values: Sequence[float], metric: str) -> str:
    """The best value as printed, so that what prints equal is bold together."""
    known = [value for value in values if not math.isnan(value)]
    if len(values) < 2 or not known:
        return NOTHING
    return number(max(known) if HIGHER_IS_BETTER[metric] else min(known), DECIMALS[metric])
