"""From scores and training records to the numbers of a comparison: one JSON-able dict, the source of every table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nnunetv2_vqseg.report.methods import Method
from nnunetv2_vqseg.report.metrics import METRICS
from nnunetv2_vqseg.report.models import TrainedModel, TrainingRecord
from nnunetv2_vqseg.report.postprocessing import NO_STEPS
from nnunetv2_vqseg.report.statistics import (
    MEAN,
    Scores,
    count_empty,
    paired_test,
    patient_values,
    protocol_mean,
    summarize,
)
from nnunetv2_vqseg.report.table import DECIMALS, number


def analyse_method(scores: Scores, classes: Sequence[str], patient: Callable[[str], str]) -> dict[str, Any]:
    """Everything that is said about one method's scores.

    Returns:
        `summary[class or "mean"][metric]` (see `summarize`), `folds[repetition][class or "mean"][metric]`,
        `empty[class or "mean"]`, `patients[class or "mean"][metric][patient]` and
        `cases[repetition][case][class][metric]`.
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


def describe_training(
    method: Method, trainings: Mapping[str, tuple[TrainedModel, str]], records: Mapping[str, TrainingRecord]
) -> dict[str, Any]:
    """How a method was trained: per repetition, what its `TrainingRecord` tells but for the curves.

    Args:
        trainings: model and fold of each repetition.
        records: of the same repetitions.
    """
    return {
        "trainer": method.trainer,
        "plans": method.plans,
        "configurations": list(method.configurations),
        "note": _without_alignment([record.without_alignment for record in records.values()]),
        "folds": {
            repetition: {
                "title": _title(repetition, trainings[repetition][1], record),
                "configuration": trainings[repetition][0].configuration,
                "fold": trainings[repetition][1],
                "epochs": record.epochs,
                "iterations_per_epoch": record.iterations_per_epoch,
                "steps": record.steps,
                "batch_size": record.batch_size,
                "images_a_step": record.images_a_step,
                "seconds_per_epoch": _median(record.epoch_seconds),
                "seconds": sum(record.epoch_seconds) if record.epoch_seconds else None,
                "device": record.device,
                "torch": record.torch_version,
                "foundation_model": record.foundation_model,
                "runtime": record.runtime,
                "unreadable": record.unreadable,
            }
            for repetition, record in records.items()
        },
    }


def _without_alignment(reasons: Sequence[str | None]) -> str:
    """What a table adds to a method's name where PFA belongs to it and did not take part; else nothing."""
    told = sorted({reason for reason in reasons if reason is not None})
    if not told:
        return ""
    count = sum(reason is not None for reason in reasons)
    share = "" if count == len(reasons) else f" in {count} of {len(reasons)} trainings"
    return f"trained without PFA{share}: {'; '.join(told)}"


def _title(repetition: str, fold: str, record: TrainingRecord) -> str:
    """'fold 0', or the configuration with the seed that tells it from the others, as far as that is recorded."""
    if repetition == fold:
        return f"fold {fold}"
    seed = record.runtime.get("seed")
    return repetition if seed is None else f"{repetition}, seed {seed}"


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
    repeated = {name: len(method["cases"]) for name, method in methods.items()}
    if len(set(repeated.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in repeated.items())
        found.append(f"The methods were not repeated equally often: {told}.")
    for name, method in methods.items():
        if note := method["training"]["note"]:
            found.append(f"{name} was {note}. These are not the numbers of the method with its alignment.")
    plans = {method["training"]["plans"] for method in methods.values()}
    if len(plans) > 1:
        found.append(f"The methods did not have the same plan: {', '.join(sorted(plans))}.")
    if summary["postprocessing"]:
        found += _about_postprocessing(summary)
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
            f"Only {summary['n_patients']} patients, by the names of the cases (--patient-regex): Wilcoxon's test "
            "cannot reach p < 0.05 with fewer than 6, whatever the difference."
        )
    return found


def _about_postprocessing(summary: Mapping[str, Any]) -> list[str]:
    shares, before = [], []
    for name, method in summary["methods"].items():
        steps = method["postprocessing"]["steps"].values()
        shares.append(f"{name} {sum(told != NO_STEPS for told in steps)} of {len(steps)}")
        before.append(
            f"{name} {number(method['postprocessing']['as_predicted'][MEAN]['Dice']['mean'], DECIMALS['Dice'])}"
        )
    sentences = [
        "Scores are those after nnU-Net's postprocessing, which each training got where it made the Dice of its fold's "
        f"validation cases better (trainings: {', '.join(shares)}). Mean Dice as predicted: {', '.join(before)}."
    ]
    lacking = sorted(
        {
            name
            for method in summary["methods"].values()
            for one in method["postprocessing"]["lacking"].values()
            for name in one
        }
    )
    if lacking:
        sentences.append(
            f"The validation cases of a training have no {' and no '.join(lacking)}: nnU-Net's rule then never keeps "
            "the largest component of the whole foreground alone, whether it would help or not."
        )
    if summary["split"] == "val":
        sentences.append("The postprocessing was chosen on the very cases that are scored, which flatters it.")
    return sentences


def _median(values: Sequence[float]) -> float | None:
    ordered = sorted(values)
    if not ordered:
        return None
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
