"""The tables of a comparison, built from its summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_vqseg.evaluation.metrics import HIGHER_IS_BETTER, METRICS
from nnunetv2_vqseg.evaluation.statistics import MEAN
from nnunetv2_vqseg.evaluation.table import DECIMALS, NOTHING, Cell, Table, number, p_value


def metric_header(units: str) -> list[str]:
    """`METRICS` with the unit of the distances."""
    unit = {"voxel": "voxels", "mm": "mm"}[units]
    return ["Dice", "Jaccard", f"HD95 ({unit})", f"ASD ({unit})"]


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Mean over classes of every method."""
    rows, records = _metric_rows(summary, MEAN)
    return Table(
        "summary",
        "Mean over classes ± standard deviation over patients; the best mean of each column in bold. Empty predictions "
        "are counted per volume and class.",
        ["Method", *metric_header(summary["units"]), "Empty predictions"],
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
        "Mean ± standard deviation over patients for each class; the best mean of each class in bold.",
        ["Class", "Method", *metric_header(summary["units"]), "Empty predictions"],
        rows,
        records,
        grouped=True,
    )


def fold_table(summary: Mapping[str, Any]) -> Table:
    """Mean over classes of each fold, and the standard deviation over folds."""
    rows, records = [], []
    for name, method in summary["methods"].items():
        for fold, means in method["folds"].items():
            rows.append([Cell(name), Cell(fold), *(Cell(number(means[MEAN][m], DECIMALS[m])) for m in METRICS)])
            records.append({"method": name, "fold": fold, **means[MEAN]})
        if len(method["folds"]) > 1:
            deviation = {metric: method["summary"][MEAN][metric]["sd_folds"] for metric in METRICS}
            rows.append([Cell(name), Cell("SD"), *(Cell(number(deviation[m], DECIMALS[m])) for m in METRICS)])
            records.append({"method": name, "fold": "SD", **deviation})
    return Table(
        "folds",
        "Mean over classes of each fold, and the standard deviation (SD) over folds.",
        ["Method", "Fold", *metric_header(summary["units"])],
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
        {"method": name, "fold": fold, "case": case, "class": summary["classes"][key], "label": key, **scores}
        for name, method in summary["methods"].items()
        for fold, cases in method["cases"].items()
        for case, classes in cases.items()
        for key, scores in classes.items()
    ]
    return Table("cases", "Scores of every case.", list(records[0]) if records else [], [], records)


def _metric_rows(summary: Mapping[str, Any], key: str) -> tuple[list[list[Cell]], list[dict[str, Any]]]:
    """One row per method for a class or the mean."""
    methods = summary["methods"]
    best = {m: _best([method["summary"][key][m]["mean"] for method in methods.values()], m) for m in METRICS}
    rows, records = [], []
    for name, method in methods.items():
        cells, record = [Cell(name)], {"method": name}
        for metric in METRICS:
            values = method["summary"][key][metric]
            deviation = number(values["sd_patients"], DECIMALS[metric])
            text = number(values["mean"], DECIMALS[metric])
            cells.append(
                Cell(text if NOTHING in (deviation, text) else f"{text} ± {deviation}", text == best[metric] != NOTHING)
            )
            record |= {f"{metric}_{part}": values[part] for part in ("mean", "sd_patients", "sd_folds", "n_patients")}
        empty = method["empty"][key]
        cells.append(Cell(f"{empty['empty_prediction']} of {empty['n_cases']}"))
        rows.append(cells)
        records.append(record | empty)
    return rows, records


def _best(values: Sequence[float], metric: str) -> str:
    """The best value as printed, so that what prints equal is bold together."""
    known = [value for value in values if not math.isnan(value)]
    if len(values) < 2 or not known:
        return NOTHING
    return number(max(known) if HIGHER_IS_BETTER[metric] else min(known), DECIMALS[metric])
