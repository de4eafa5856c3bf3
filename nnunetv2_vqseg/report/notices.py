"""What a reader of a comparison must know before its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2_vqseg.report.formatting import score
from nnunetv2_vqseg.report.postprocessing import NO_STEPS
from nnunetv2_vqseg.report.statistics import MEAN


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
    batches = {
        name: sorted({tuple(fold["images_a_step"] or ()) for fold in method["training"]["folds"].values()})
        for name, method in methods.items()
    }
    labeled = {images[0] for each in batches.values() for images in each if images}
    if len(labeled) > 1:
        told = "; ".join(
            f"{name} {' / '.join(str(n[0]) for n in each if n) or 'unknown'}" for name, each in batches.items()
        )
        found.append(f"The methods did not have as many labelled images a step: {told}.")
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
        before.append(f"{name} {score(method['postprocessing']['as_predicted'][MEAN]['Dice']['mean'], 'Dice')}")
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
