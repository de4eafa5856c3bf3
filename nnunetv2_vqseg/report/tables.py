"""The tables of a comparison, built from its summary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nnunetv2_vqseg.report.formatting import NOTHING, Cell, Table, duration, p_value, quantity, score, with_unit
from nnunetv2_vqseg.report.metrics import HIGHER_IS_BETTER, METRICS
from nnunetv2_vqseg.report.statistics import MEAN

EMPTY_COLUMNS = {
    "empty_prediction": "Empty predictions",
    "empty_reference": "Empty references",
    "both_empty": "Both empty",
}
_EMPTY = "Counts of empty masks are over volumes, classes and trainings."


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Mean over classes of every method."""
    caption = f"Mean over classes ± standard deviation over patients; the best mean of each column in bold. {_EMPTY}"
    return _scores(summary, "summary", caption, {MEAN: ""})


def class_table(summary: Mapping[str, Any]) -> Table:
    """The same for each class."""
    caption = f"Mean ± standard deviation over patients for each class; the best mean of each class in bold. {_EMPTY}"
    return _scores(summary, "classes", caption, summary["classes"])


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
            rows.append([Cell(name), Cell(titles[key]), *(Cell(score(means[m], m)) for m in METRICS)])
            records.append({"method": name, "repetition": key, **means})
    return Table(
        "repetitions",
        "Mean over classes of each training, and mean and standard deviation (SD) over the trainings of a method.",
        ["Method", "Training", *_metric_header(summary)],
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
        difference, low, high = (score(test[k], test["metric"], sign=True) for k in ("difference", "ci_low", "ci_high"))
        rows.append(
            [
                Cell(f"{test['method']} against {test['baseline']}"),
                Cell(test["metric"]),
                Cell(str(test["n"])),
                Cell(f"{difference} [{low}, {high}]" if test["n"] > 1 else difference),
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


def training_table(summary: Mapping[str, Any]) -> Table:
    """Budget, time and memory of every training, and time of prediction."""
    records = [
        _training_record(name, method, repetition)
        for name, method in summary["methods"].items()
        for repetition in method["training"]["folds"]
    ]
    runtimes = [
        training["runtime"] for m in summary["methods"].values() for training in m["training"]["folds"].values()
    ]
    shown = {"device", "steps", "labeled_batch_size", "unlabeled_batch_size"}
    recorded = [
        key
        for key in ["prediction_peak_cuda_memory_bytes", *dict.fromkeys(key for one in runtimes for key in one)]
        if key not in shown
        and any(isinstance(record.get(key), (int, float, str)) for record in records)
        and (key != "processes" or any(record.get(key, 1) != 1 for record in records))
    ]
    grouped = any(len(method["cases"]) > 1 for method in summary["methods"].values())
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("Method", lambda record: record["method"]),
        *([("Training", lambda record: record["title"])] if grouped else []),
        ("Steps", _steps),
        ("Batch", _batch),
        ("Images seen", lambda record: quantity("", record["images_seen"])),
        ("Per epoch", lambda record: duration(record["seconds_per_epoch"])),
        ("All epochs", lambda record: duration(record["seconds"])),
        ("Prediction per case", lambda record: duration(record["prediction_seconds_per_case"])),
        ("Device", lambda record: record["device"] or NOTHING),
        *((_title(key), lambda record, key=key: quantity(key, record.get(key))) for key in recorded),
    ]
    caption = (
        "Optimiser steps are epochs × iterations; a batch is labelled images + each view of the unlabelled ones that "
        "passes the student, and images seen are steps times batch. Times are wall times of nnU-Net's epochs, without "
        "set-up and final validation."
    ) + (
        " GPU memory is what torch allocated at its peak; resident memory is the peak of the process that trained, "
        "without the workers that load its data. Trainers of nnU-Net itself record no memory (–)."
        if any("memory" in key for key in recorded)
        else " These trainings recorded no memory."
    )
    rows = [[Cell(tell(record)) for _, tell in columns] for record in records]
    return Table("training", caption, [title for title, _ in columns], rows, records, grouped)


def _training_record(name: str, method: Mapping[str, Any], repetition: str) -> dict[str, Any]:
    training, prediction = method["training"]["folds"][repetition], method["prediction"][repetition]
    seconds, cases = prediction.get("seconds"), prediction.get("n_cases")
    images, steps = training["images_a_step"], training["steps"]
    return {
        **training["runtime"],
        "method": name,
        "trainer": method["training"]["trainer"],
        "plans": method["training"]["plans"],
        "repetition": repetition,
        **{key: value for key, value in training.items() if key not in ("runtime", "unreadable")},
        "images_seen": None if images is None or steps is None else steps * sum(images),
        "prediction_seconds_per_case": seconds / cases if seconds and cases else None,
        "prediction_peak_cuda_memory_bytes": prediction.get("peak_cuda_memory_bytes"),
    }


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


ON_PAGE = (summary_table, class_table, repetition_table, paired_table, training_table)
"""The tables that people read."""


def _scores(summary: Mapping[str, Any], name: str, caption: str, classes: Mapping[str, str]) -> Table:
    """A row per class and method, where `classes` has keys and titles; the mean is no class."""
    methods, grouped = summary["methods"], MEAN not in classes
    rows, records = [], []
    for key, title in classes.items():
        best = {m: _best([method["summary"][key][m]["mean"] for method in methods.values()], m) for m in METRICS}
        for method_name, method in methods.items():
            note = "" if grouped else method["training"]["note"]
            cells = [*([Cell(title)] if grouped else []), Cell(method_name, note=note)]
            record = {**({"class": title, "label": key} if grouped else {}), "method": method_name, "note": note}
            for metric in METRICS:
                values = method["summary"][key][metric]
                text, deviation = score(values["mean"], metric), score(values["sd_patients"], metric)
                shown = text if NOTHING in (deviation, text) else f"{text} ± {deviation}"
                cells.append(Cell(shown, bold=text == best[metric] != NOTHING))
                record |= {f"{metric}_{part}": value for part, value in values.items()}
            empty = method["empty"][key]
            rows.append([*cells, *(Cell(f"{empty[count]} of {empty['n_cases']}") for count in EMPTY_COLUMNS)])
            records.append(record | empty)
    header = [*(["Class"] if grouped else []), "Method", *_metric_header(summary), *EMPTY_COLUMNS.values()]
    return Table(name, caption, header, rows, records, grouped)


def _best(values: Sequence[float], metric: str) -> str:
    """The best value as printed, so that what prints equal is bold together."""
    known = [value for value in values if not math.isnan(value)]
    if len(values) < 2 or not known:
        return NOTHING
    return score(max(known) if HIGHER_IS_BETTER[metric] else min(known), metric)


def _metric_header(summary: Mapping[str, Any]) -> list[str]:
    return [with_unit(metric, summary["units"]) for metric in METRICS]


def _steps(record: Mapping[str, Any]) -> str:
    if record["steps"] is None:
        return NOTHING if record["epochs"] is None else f"{record['epochs']:,} epochs"
    if record["epochs"] is None or record["iterations_per_epoch"] is None:
        return f"{record['steps']:,}"
    return f"{record['steps']:,} ({record['epochs']:,} × {record['iterations_per_epoch']:,})"


def _batch(record: Mapping[str, Any]) -> str:
    images = record["images_a_step"]
    if images is None and "labeled_batch_size" in record:
        images = [record["labeled_batch_size"], "?"]
    return NOTHING if images is None else " + ".join(map(str, images))


def _title(key: str) -> str:
    text = key.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")
    for ours, shown in (("cuda", "GPU"), ("gpu", "GPU"), ("labeled", "labelled")):
        text = text.replace(ours, shown)
    return text[:1].upper() + text[1:]
