"""From scores and training records to the numbers of a comparison: one JSON-able dict, the source of every table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nnunetv2_vqseg.evaluation.metrics import METRICS
from nnunetv2_vqseg.evaluation.models import TrainedModel, TrainingRecord
from nnunetv2_vqseg.evaluation.statistics import (
    MEAN,
    Scores,
    count_empty,
    paired_test,
    patient_values,
    protocol_mean,
    summarize,
)


def analyse_method(scores: Scores, classes: Sequence[str], patient: Callable[[str], str]) -> dict[str, Any]:
    """Everything that is said about one method's scores.

    Returns:
        `summary[class or "mean"][metric]` (see `summarize`), `folds[fold][class or "mean"][metric]`,
        `empty[class or "mean"]`, `patients[class or "mean"][metric][patient]` and `cases[fold][case][class][metric]`.
    """
    return {
        "summary": summarize(scores, classes, patient),
        "folds": {fold: protocol_mean(cases, classes) for fold, cases in scores.items()},
        "empty": count_empty(scores, classes),
        "patients": patient_values(scores, classes, patient),
        "cases": scores,
    }


def analyse_pairs(methods: Mapping[str, dict[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Paired tests of every method against the first, for each class and metric; one dict per test."""
    (baseline_name, baseline), *others = methods.items()
    return [
        {"method": name, "baseline": baseline_name, "class": key, "metric": metric}
        | paired_test(baseline["patients"][key][metric], method["patients"][key][metric])
        for name, method in others
        for key in [MEAN, *classes]
        for metric in METRICS
    ]


def describe_training(model: TrainedModel, records: Mapping[str, TrainingRecord]) -> dict[str, Any]:
    """How a method was trained: per fold, what its `TrainingRecord` tells but for the curves."""
    return {
        "trainer": model.method.trainer,
        "plans": model.method.plans,
        "checkpoint": model.checkpoint_name,
        "folds": {
            fold: {
                "epochs": record.epochs,
                "iterations_per_epoch": record.iterations_per_epoch,
                "steps": record.steps,
                "batch_size": record.batch_size,
                "seconds_per_epoch": _median(record.epoch_seconds),
                "seconds": sum(record.epoch_seconds) if record.epoch_seconds else None,
                "device": record.device,
                "torch": record.torch_version,
                "foundation_model": record.foundation_model,
                "runtime": record.runtime,
                "unreadable": record.unreadable,
            }
            for fold, record in records.items()
        },
    }


def notices(summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the numbers, one sentence each."""
    found = []
    methods = summary["methods"]
    budgets = {
        name: sorted({fold["steps"] for fold in method["training"]["folds"].values() if fold["steps"] is not None})
        for name, method in methods.items()
    }
    if len({tuple(steps) for steps in budgets.values()}) > 1:
        told = "; ".join(
            f"{name} {' / '.join(f'{n:,}' for n in steps) or 'unknown'}" for name, steps in budgets.items()
        )
        found.append(f"The methods did not have the same number of steps: {told}.")
    plans = {method["training"]["plans"] for method in methods.values()}
    if len(plans) > 1:
        found.append(f"The methods did not have the same plan: {', '.join(sorted(plans))}.")
    if summary["split"] == "val":
        found.append("These are validation cases: use them to choose settings, and report on the test set.")
    if summary["checkpoint"] != "checkpoint_final.pth":
        found.append(
            f"The weights are those of {summary['checkpoint']}, not of the end of training; checkpoint_best is chosen "
            "on the fold's validation cases."
        )
    empty = {name: method["empty"][MEAN]["empty_prediction"] for name, method in methods.items()}
    if summary["empty_convention"] == "literature":
        found.append("Convention 'literature': an empty prediction scores HD95 = ASD = 0, which rewards failure.")
    elif any(empty.values()):
        told = ", ".join(f"{name} {count}" for name, count in empty.items())
        found.append(
            f"Empty predictions have no surface distance and are missing from HD95 and ASD ({told} case-class pairs): "
            "compare these only together with the counts."
        )
    if summary["n_patients"] < 6:
        found.append(
            f"Only {summary['n_patients']} patients: Wilcoxon's test cannot reach p < 0.05 with fewer than 6, "
            "whatever the difference."
        )
    return found


def _median(values: Sequence[float]) -> float | None:
    ordered = sorted(values)
    if not ordered:
        return None
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
