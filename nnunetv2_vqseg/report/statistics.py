"""Means, spreads and paired tests over cases, patients and repetitions; numpy and scipy only.

Scores are nested dicts: `folds[fold][case][class_key][metric]`, as `score_labels` returns them per case. What is called
a fold here is any repetition of the training, with another seed or split. The mean follows the protocol: over the
volumes of a class, then over the classes, then over folds. Spread and tests are over patients: frames of a patient and
folds are averaged first, because they are not independent.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from nnunetv2_vqseg.core.errors import EvaluationError
from nnunetv2_vqseg.data.patients import PATIENT_PATTERN, patient_of
from nnunetv2_vqseg.report.metrics import METRICS

CaseScores = Mapping[str, Mapping[str, float]]
FoldScores = Mapping[str, CaseScores]
Scores = Mapping[str, FoldScores]

NAN = float("nan")
MEAN = "mean"
"""The key beside the class keys for the mean over classes."""

DEFAULT_PATIENT_REGEX = PATIENT_PATTERN
"""That of the splitter and the converters: who was on one side of a split is one patient of a test."""


def patient_key(regex: str = DEFAULT_PATIENT_REGEX) -> Callable[[str], str]:
    """A function from case to patient: as `patient_of` finds it where `regex` matches, else the case.

    Raises:
        EvaluationError: if `regex` is not a regular expression; the function does where it matches no patient in it.
    """
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise EvaluationError(
            f"--patient-regex {regex!r} is not a regular expression ({error}); correct it."
        ) from error

    def patient(case: str) -> str:
        match = pattern.search(case)
        if match is None:
            return case
        if not (found := patient_of(match)):
            raise EvaluationError(
                f"--patient-regex {regex!r} matches the case name {case!r} but no patient in it; put its part that "
                "names the patient into a group."
            )
        return found

    return patient


def protocol_mean(cases: FoldScores, classes: Iterable[str]) -> dict[str, dict[str, float]]:
    """Mean over the volumes of each class, and under `MEAN` the mean of these over the classes.

    A class without a voxel in any reference or prediction is left out of `MEAN`. A class that has voxels but no value
    (HD95 where every prediction is empty) makes `MEAN` NaN: leaving it out would reward the failure.
    """
    means = {
        key: {metric: mean_of(without_nan(scores[key][metric] for scores in cases.values())) for metric in METRICS}
        for key in classes
    }
    present = _present_classes(cases, means)
    means[MEAN] = {metric: mean_of([means[key][metric] for key in present]) for metric in METRICS}
    return means


def spread(values: Iterable[float]) -> float:
    """Standard deviation (n - 1) of the values that are not NaN; NaN for fewer than two."""
    known = without_nan(values)
    return float(np.std(known, ddof=1)) if len(known) > 1 else NAN


def patient_values(
    folds: Scores, classes: Sequence[str], patient: Callable[[str], str]
) -> dict[str, dict[str, dict[str, float]]]:
    """`[class_key or MEAN][metric][patient]`, frames and folds averaged over those that have a value.

    `MEAN` of a patient follows the rule of `protocol_mean`: NaN if a class the patient has gives no value.
    """
    by_patient: dict[str, dict[str, CaseScores]] = defaultdict(dict)
    for fold, cases in folds.items():
        for case, scores in cases.items():
            by_patient[patient(case)][f"{fold} {case}"] = scores
    means = {name: protocol_mean(group, classes) for name, group in sorted(by_patient.items())}
    return {
        key: {metric: {name: mean[key][metric] for name, mean in means.items()} for metric in METRICS}
        for key in [*classes, MEAN]
    }


def summarize(
    folds: Scores, classes: Sequence[str], patient: Callable[[str], str]
) -> dict[str, dict[str, dict[str, float]]]:
    """`[class_key or MEAN][metric]` to mean, standard deviations over patients and over folds, and n of patients.

    The mean of a class is over the folds whose cases have it.
    """
    per_fold = [(protocol_mean(cases, classes), [MEAN, *_present_classes(cases, classes)]) for cases in folds.values()]
    patients = patient_values(folds, classes, patient)

    def about(key: str, metric: str) -> dict[str, float]:
        values = [mean[key][metric] for mean, present in per_fold if key in present]
        known = without_nan(patients[key][metric].values())
        return {
            "mean": mean_of(values),
            "sd_patients": spread(known),
            "sd_folds": spread(values),
            "n_patients": len(known),
        }

    return {key: {metric: about(key, metric) for metric in METRICS} for key in [*classes, MEAN]}


def count_empty(folds: Scores, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """`[class_key or MEAN]` to the number of cases with empty prediction, reference, or both; `MEAN` sums."""

    def count(keys: Iterable[str]) -> dict[str, int]:
        of_cases = [scores for cases in folds.values() for scores in cases.values()]
        sizes = [(scores[key]["n_pred"], scores[key]["n_ref"]) for scores in of_cases for key in keys]
        return {
            "empty_prediction": sum(not predicted and referenced > 0 for predicted, referenced in sizes),
            "empty_reference": sum(predicted > 0 and not referenced for predicted, referenced in sizes),
            "both_empty": sum(not predicted and not referenced for predicted, referenced in sizes),
            "n_cases": len(sizes),
        }

    return {key: count([key]) for key in classes} | {MEAN: count(classes)}


def analyse_method(folds: Scores, classes: Sequence[str], patient: Callable[[str], str]) -> dict[str, Any]:
    """Everything that is said about one method's scores.

    Returns:
        `summary[class or "mean"][metric]` (see `summarize`), `folds[repetition][class or "mean"][metric]`,
        `empty[class or "mean"]`, `patients[class or "mean"][metric][patient]` and
        `cases[repetition][case][class][metric]`.
    """
    return {
        "summary": summarize(folds, classes, patient),
        "folds": {fold: protocol_mean(cases, classes) for fold, cases in folds.items()},
        "empty": count_empty(folds, classes),
        "patients": patient_values(folds, classes, patient),
        "cases": folds,
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


def paired_test(baseline: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Differences other - baseline over the patients for which both have a value.

    Returns:
        n, mean difference with its 95 % confidence interval (Student's t), two-sided p-values of the paired t-test and
        of Wilcoxon's signed-rank test. Not corrected for the number of comparisons.
    """
    differences = np.array(without_nan(other[patient] - baseline[patient] for patient in baseline if patient in other))
    n = len(differences)
    result = {"n": n, "difference": mean_of(differences), "ci_low": NAN, "ci_high": NAN, "p_t": NAN, "p_wilcoxon": NAN}
    if n < 2:
        return result
    if not differences.any():
        return result | {"ci_low": 0.0, "ci_high": 0.0, "p_t": 1.0, "p_wilcoxon": 1.0}
    margin = float(stats.t.ppf(0.975, n - 1) * stats.sem(differences))
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        # where all differences are equal t is infinite and p is 0, which scipy warns about
        warnings.simplefilter("ignore", RuntimeWarning)
        p_t = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return result | {
        "ci_low": result["difference"] - margin,
        "ci_high": result["difference"] + margin,
        "p_t": p_t,
        "p_wilcoxon": signed_rank_p(differences),
    }


def signed_rank_p(differences: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test, exact with ties up to 100 differences; zeros are dropped.

    scipy's exact test refuses ties and its permutation test takes seconds; the null distribution of the sum of ranks
    is a product of two-term polynomials, which is milliseconds.
    """
    # what differs only by rounding is a tie
    known = np.round(differences, 12)
    known = known[known != 0]
    if len(known) == 0:
        return 1.0
    if len(known) > 100:
        return float(stats.wilcoxon(known, method="approx").pvalue)
    doubled = np.rint(2 * stats.rankdata(np.abs(known))).astype(int)  # ties have half ranks
    chances = np.zeros(doubled.sum() + 1)
    chances[0] = 1.0
    for rank in doubled:
        chances[rank:] = (chances[rank:] + chances[: len(chances) - rank]) / 2
        chances[:rank] /= 2
    positive = int(doubled[known > 0].sum())
    return min(1.0, 2 * float(min(chances[: positive + 1].sum(), chances[positive:].sum())))


def _present_classes(cases: FoldScores, classes: Iterable[str]) -> list[str]:
    """The classes with a voxel in some reference or prediction."""
    return [key for key in classes if any(scores[key]["n_pred"] or scores[key]["n_ref"] for scores in cases.values())]


def without_nan(values: Iterable[float]) -> list[float]:
    """Those that are not NaN."""
    return [value for value in values if not np.isnan(value)]


def mean_of(values: Sequence[float] | np.ndarray) -> float:
    """NaN where there are none."""
    return float(np.mean(values)) if len(values) else NAN
