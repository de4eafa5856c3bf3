"""What made a comparison: versions, commit, budget, runtime and memory of every training."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.report.methods import Method
from nnunetv2_vqseg.report.table import NOTHING, Cell, Table, number


def command(summary: Mapping[str, Any], output: Path) -> str:
    """The command that repeats a comparison, also where Python asked for it."""
    trainings = {name: method["training"] for name, method in summary["methods"].items()}
    methods = [str(Method(name, t["trainer"], t["plans"], tuple(t["configurations"]))) for name, t in trainings.items()]
    words = ["nnUNetv2_vqseg_compare", "-d", summary["dataset"], "-tr", *methods]
    words += ["-f", *summary["folds"], "--split", summary["split"], "-chk", summary["checkpoint"]]
    words += ["--units", summary["units"], "--empty-convention", summary["empty_convention"]]
    words += ["--patient-regex", summary["patient_regex"]]
    words += ["--postprocessing"] if summary["postprocessing"] else []
    return shlex.join([*words, "-o", str(output)])


def training_table(summary: Mapping[str, Any]) -> Table:
    """Budget, time and memory of every training, and time of prediction."""
    records = []
    for name, method in summary["methods"].items():
        for repetition, training in method["training"]["folds"].items():
            prediction = method["prediction"][repetition]
            seconds, cases = prediction.get("seconds"), prediction.get("n_cases")
            records.append(
                {
                    **training["runtime"],
                    "method": name,
                    "trainer": method["training"]["trainer"],
                    "plans": method["training"]["plans"],
                    "repetition": repetition,
                    **{key: value for key, value in training.items() if key not in ("runtime", "unreadable")},
                    "images_seen": _images_seen(training),
                    "prediction_seconds_per_case": seconds / cases if seconds and cases else None,
                    "prediction_peak_cuda_memory_bytes": prediction.get("peak_cuda_memory_bytes"),
                }
            )
    shown = {"device", "steps", "labeled_batch_size", "unlabeled_batch_size"}
    runtimes = [
        training["runtime"] for m in summary["methods"].values() for training in m["training"]["folds"].values()
    ]
    recorded = [key for key in dict.fromkeys(key for runtime in runtimes for key in runtime) if key not in shown]
    recorded = [
        key
        for key in ["prediction_peak_cuda_memory_bytes", *recorded]
        if any(isinstance(record.get(key), (int, float, str)) for record in records)
        and (key != "processes" or any(record.get(key, 1) != 1 for record in records))
    ]
    grouped = any(len(method["cases"]) > 1 for method in summary["methods"].values())
    rows = [
        [
            Cell(record["method"]),
            *([Cell(record["title"])] if grouped else []),
            Cell(_steps(record)),
            Cell(_batch(record)),
            Cell(quantity("", record["images_seen"])),
            Cell(duration(record["seconds_per_epoch"])),
            Cell(duration(record["seconds"])),
            Cell(duration(record["prediction_seconds_per_case"])),
            Cell(record["device"] or NOTHING),
            *(Cell(quantity(key, record.get(key))) for key in recorded),
        ]
        for record in records
    ]
    header = ["Method", *(["Training"] if grouped else [])]
    header += ["Steps", "Batch", "Images seen", "Per epoch", "All epochs", "Prediction per case", "Device"]
    caption = (
        "Optimiser steps are epochs × iterations; a batch is labelled images + each view of the unlabelled ones that "
        "passes the student, and images seen are steps times batch. Times are wall times of nnU-Net's epochs, without "
        "set-up and final validation."
    )
    caption += (
        " GPU memory is what torch allocated at its peak; resident memory is the peak of the process that trained, "
        "without the workers that load its data. Trainers of nnU-Net itself record no memory (–)."
        if any("memory" in key for key in recorded)
        else " These trainings recorded no memory."
    )
    return Table("training", caption, [*header, *(_title(key) for key in recorded)], rows, records, grouped)


def duration(seconds: float | None) -> str:
    """Seconds as people read them: 0.8 s, 41 s, 12 min, 3.4 h."""
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def quantity(name: str, value: Any) -> str:
    """A recorded value with the unit that its name ends in: `_bytes`, `_seconds`, or none; a seed counts nothing."""
    if value is None or isinstance(value, str):
        return value or NOTHING
    if name == "seed":
        return str(value)
    if name.endswith("bytes"):
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
    if name.endswith("seconds"):
        return duration(value)
    return f"{value:,}" if isinstance(value, int) else number(value, 3)


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


def _images_seen(training: Mapping[str, Any]) -> int | None:
    images, steps = training["images_a_step"], training["steps"]
    return None if images is None or steps is None else steps * sum(images)


def _title(key: str) -> str:
    text = key.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")
    for ours, shown in (("cuda", "GPU"), ("gpu", "GPU"), ("labeled", "labelled")):
        text = text.replace(ours, shown)
    return text[:1].upper() + text[1:]
