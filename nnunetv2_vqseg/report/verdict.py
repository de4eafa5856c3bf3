"""The sentence a report opens with: who is ahead, by how much, and whether patients and trainings bear it out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nnunetv2_vqseg.report.formatting import p_value, score
from nnunetv2_vqseg.report.statistics import MEAN

LEVEL = 0.05
"""Of the test over patients, divided by the number of methods that are compared with the first (Bonferroni)."""
ENOUGH_PATIENTS = 6
"""With fewer Wilcoxon's test cannot reach 0.05."""
ENOUGH_TRAININGS = 3
"""Of each method: with fewer, all of one above all of the other happens by chance too often to count."""


def verdict(summary: Mapping[str, Any]) -> str:
    """One sentence about the Dice of the best method and of the one to compare it with; '' where nothing has a Dice.

    The first method is compared with the best of the others, by the mean difference over patients.

    Args:
        summary: what `Comparison.run` writes to summary.json.
    """
    methods = summary["methods"]
    baseline = next(iter(methods))
    tests = [
        test
        for test in summary["paired"]
        if test["class"] == MEAN and test["metric"] == "Dice" and not math.isnan(test["difference"])
    ]
    if not tests:
        dice = methods[baseline]["summary"][MEAN]["Dice"]
        if len(methods) > 1 or math.isnan(dice["mean"]):
            return ""
        return f"{baseline} reaches a mean Dice of {score(dice['mean'], 'Dice')} on {_patients(dice['n_patients'])}."
    best = max(tests, key=lambda test: test["difference"])
    among = f", the best of {len(methods) - 1} others" if len(methods) > 2 else ""
    if score(best["difference"], "Dice") == score(0.0, "Dice"):
        return f"{best['method']}{among} and {baseline} have the same Dice on {_patients(best['n'])}."
    if best["difference"] > 0:
        ahead, behind = best["method"], baseline
        told = f"{ahead}{among}{',' if among else ''} is ahead of {behind}"
    else:
        ahead, behind = baseline, best["method"]
        told = f"{ahead} is ahead of {behind}{among}{',' if among else ''}"
    told += f" by {score(abs(best['difference']), 'Dice')} Dice on {_patients(best['n'])}"
    return f"{told}; {_of_patients(best, len(tests))}, and {_of_trainings(methods, ahead, behind)}."


def _patients(count: int) -> str:
    return f"{count} patient{'s' if count != 1 else ''}"


def _of_patients(test: Mapping[str, Any], tests: int) -> str:
    if test["n"] < ENOUGH_PATIENTS:
        return "these are too few patients to say that it is more than chance"
    p = p_value(test["p_wilcoxon"])
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    level = LEVEL / tests
    asked = p if tests == 1 else f"{p}, of which {tests} comparisons ask {level:.2g}"
    if test["p_wilcoxon"] < level:
        return f"the patients bear this out (Wilcoxon {asked})"
    return f"the patients do not bear this out (Wilcoxon {asked})"


def _of_trainings(methods: Mapping[str, Any], ahead: str, behind: str) -> str:
    better, worse = (
        [mean for fold in methods[name]["folds"].values() if not math.isnan(mean := fold[MEAN]["Dice"])]
        for name in (ahead, behind)
    )
    if min(len(better), len(worse)) < 2:
        return "one training of a method does not tell what another seed would give"
    counts = f"{len(better)} and {len(worse)}" if len(better) != len(worse) else f"{len(better)} each"
    if min(better) <= max(worse):
        return f"the trainings ({counts}) overlap"
    if min(len(better), len(worse)) < ENOUGH_TRAININGS:
        return f"all trainings of {ahead} are ahead of all of {behind}, but {counts} are few"
    return f"the trainings ({counts}) bear it out: all of {ahead} are ahead of all of {behind}"
