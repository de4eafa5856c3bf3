"""Means, spreads and paired tests over cases, patients and repetitions; numpy and scipy only.

Scores are nested dicts: `folds[fold][case][class_key][metric]`, as `score_labels` returns them per case. What is called
a fold here is any repetition of the training, with another seed or split. The mean follows the protocol: over the
volumes of a class, then over the classes, then over folds. Spread and tests are over patients: frames of a patient and
folds are averaged first, because they are not independent.
"""

from __future__ import annotations

import re
import warnings
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
        key: {metric: _mean(_known(scores[key][metric] for scores in cases.values())) for metric in METRICS}
        for key in classes
    }
    present = _present_classes(cases, means)
    means[MEAN] = {metric: _mean([means[key][metric] for key in present]) for metric in METRICS}
    return means


def spread(values: Iterable[float]) -> float:
    """Standard deviation (n - 1) of the values that are not NaN; NaN for fewer than two."""
    known = _known(values)
    return float(np.std(known, ddof=1)) if len(known) > 1 else NAN


def patient_values(
    folds: Scores, classes: Iterable[str], patient: Callable[[str], str]
) -> dict[str, dict[str, dict[str, float]]]:
    """`[class_key or MEAN][metric][patient]`, frames and folds averaged over those that have a value.

    `MEAN` of a patient follows the rule of `protocol_mean`: NaN if a class the patient has gives no value.
    """
    by_patient: dict[str, list[CaseScores]] = {}
    for cases in folds.values():
        for case, scores in cases.items():
            by_patient.setdefault(patient(case), []).append(scores)
    means = {
        name: protocol_mean({str(index): scores for index, scores in enumerate(group)}, classes)
        for name, group in sorted(by_patient.items())
    }
    return {
        key: {metric: {name: mean[key][metric] for name, mean in means.items()} for metric in METRICS}
        for key in [*classes, MEAN]
    }


def summarize(
    folds: Scores, classes: Iterable[str], patient: Callable[[str], str]
) -> dict[str, dict[str, dict[str, float]]]:
    """`[class_key or MEAN][metric]` to mean, standard deviations over patients and over folds, and n of patients.

    The mean of a class is over the folds whose cases have it.
    """
    classes = list(classes)
    per_fold = [(protocol_mean(cases, classes), [MEAN, *_present_classes(cases, classes)]) for cases in folds.values()]
    patients = patient_values(folds, classes, patient)

    def about(key: str, metric: str) -> dict[str, float]:
        values = [mean[key][metric] for mean, present in per_fold if key in present]
        known = _known(patients[key][metric].values())
        return {
            "mean": _mean(values),
            "sd_patients": spread(known),
            "sd_folds": spread(values),
            "n_patients": len(known),
        }

    return {key: {metric: about(key, metric) for metric in METRICS} for key in [*classes, MEAN]}


def count_empty(folds: Scores, classes: Iterable[str]) -> dict[str, dict[str, int]]:
    """`[class_key or MEAN]` to the number of cases with empty prediction, reference, or both; `MEAN` sums."""
    counts = {
        key: {"empty_prediction": 0, "empty_reference": 0, "both_empty": 0, "n_cases": 0} for key in [*classes, MEAN]
    }
    for cases in folds.values():
        for scores in cases.values():
            for key in classes:
                predicted, referenced = scores[key]["n_pred"] > 0, scores[key]["n_ref"] > 0
                for row in (counts[key], counts[MEAN]):
                    row["n_cases"] += 1
                    row["empty_prediction"] += referenced and not predicted
                    row["empty_reference"] += predicted and not referenced
                    row["both_empty"] += not predicted and not referenced
    return counts


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
    differences = np.array(_known(other[patient] - baseline[patient] for patient in baseline if patient in other))
    n = len(differences)
    result = {"n": n, "difference": _mean(differences), "ci_low": NAN, "ci_high": NAN, "p_t": NAN, "p_wilcoxon": NAN}
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


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not np.isnan(value)]


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else NAN
