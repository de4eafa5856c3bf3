"""Statistics on examples small enough to do by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from nnunetv2_vqseg.core.errors import EvaluationError
from nnunetv2_vqseg.data.patients import group_by_patient
from nnunetv2_vqseg.report.statistics import (
    MEAN,
    count_empty,
    paired_test,
    patient_key,
    patient_values,
    protocol_mean,
    signed_rank_p,
    summarize,
)

NAN = math.nan


def score(dice: float, hd95: float = 1.0, n_pred: int = 5, n_ref: int = 5) -> dict[str, float]:
    return {"Dice": dice, "Jaccard": dice / 2, "HD95": hd95, "ASD": hd95 / 2, "n_pred": n_pred, "n_ref": n_ref}


EMPTY = score(0.0, NAN, n_pred=0)
ABSENT = score(NAN, NAN, n_pred=0, n_ref=0)


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("patient001_frame01", "patient001"),
        ("patient001_frame12", "patient001"),
        ("patient001_ED", "patient001"),
        ("a_b_ES", "a_b"),
        ("P7-ED", "P7"),
        ("P10_scan2", "P10"),
        ("sub-03_ses-1_frame02", "sub-03"),
        ("lung_017", "lung_017"),
        ("patient_EDUARD", "patient_EDUARD"),
        ("case_framework", "case_framework"),
        ("_frame01", "_frame01"),
    ],
)
def test_default_patient_is_the_name_before_the_frame(case, patient):
    assert patient_key()(case) == patient


def test_a_report_groups_cases_as_the_splitter_does():
    cases = [f"patient{number:03d}_frame{frame:02d}" for number in (1, 2) for frame in (1, 12)]
    cases += [
        "P10_scan1",
        "P10_scan2",
        "sub-03_ses-1",
        "sub-03_ses-2",
        "P7-ED",
        "P7-ES",
        "a_ED",
        "a_b_ES_2",
        "lung_017",
    ]
    grouped = {case: patient for patient, members in group_by_patient(cases).items() for case in members}
    assert {case: patient_key()(case) for case in cases} == grouped
    assert len(set(grouped.values())) == 8


def test_patient_regex_takes_its_first_group_or_the_match():
    assert patient_key(r"^(p\d+)-")("p12-scan3") == "p12"
    assert patient_key(r"^p\d+")("p12-scan3") == "p12"
    assert patient_key(r"^(p\d+)-")("other") == "other"
    assert [patient_key(r"^(P\d+)_|^(Q\d+)_")(case) for case in ("P1_a", "Q2_a", "R3_a")] == ["P1", "Q2", "R3_a"]
    with pytest.raises(EvaluationError, match=r"matches the case name 'Q2_a' but no patient in it; put .* a group\.$"):
        patient_key(r"^(P\d+)_|^Q")("Q2_a")
    with pytest.raises(EvaluationError, match="--patient-regex"):
        patient_key("(")


def test_protocol_mean_is_over_volumes_then_over_classes():
    cases = {
        "a": {"1": score(0.5, 2.0), "2": score(0.9, 1.0)},
        "b": {"1": EMPTY, "2": score(0.7, 3.0)},
        "c": {"1": score(1.0, 4.0), "2": ABSENT},
    }
    means = protocol_mean(cases, ["1", "2"])
    assert means["1"]["Dice"] == pytest.approx(0.5)  # the empty prediction counts as 0
    assert means["1"]["HD95"] == pytest.approx(3.0)  # and has no distance
    assert means["2"]["Dice"] == pytest.approx(0.8)  # where both are empty there is no value
    assert means[MEAN]["Dice"] == pytest.approx(0.65)
    assert means[MEAN]["HD95"] == pytest.approx(2.5)


def test_a_class_that_is_never_predicted_is_not_hidden_in_the_mean_distance():
    means = protocol_mean({"a": {"1": EMPTY, "2": score(0.9, 1.0)}}, ["1", "2"])
    assert means[MEAN]["Dice"] == pytest.approx(0.45)
    assert math.isnan(means[MEAN]["HD95"])


def test_a_class_that_is_nowhere_is_left_out_of_the_mean():
    means = protocol_mean({"a": {"1": ABSENT, "2": score(0.9, 1.0)}}, ["1", "2"])
    assert means[MEAN]["Dice"] == pytest.approx(0.9)
    assert means[MEAN]["HD95"] == pytest.approx(1.0)


def test_frames_and_folds_are_averaged_before_the_spread():
    folds = {
        "0": {"p1_frame01": {"1": score(0.2)}, "p1_frame02": {"1": score(0.4)}, "p2_frame01": {"1": score(0.9)}},
        "1": {"p1_frame01": {"1": score(0.6)}, "p1_frame02": {"1": score(0.8)}, "p2_frame01": {"1": score(0.7)}},
    }
    patients = patient_values(folds, ["1"], patient_key())
    assert patients["1"]["Dice"] == pytest.approx({"p1": 0.5, "p2": 0.8})
    row = summarize(folds, ["1"], patient_key())["1"]["Dice"]
    assert row["n_patients"] == 2  # not 6 volumes, not 3 cases
    assert row["sd_patients"] == pytest.approx(0.3 / math.sqrt(2))
    assert row["mean"] == pytest.approx((0.5 + 0.7) / 2)  # over the volumes of each fold, then over folds
    assert row["sd_folds"] == pytest.approx(0.2 / math.sqrt(2))


def test_a_class_that_one_fold_lacks_has_the_mean_of_the_others():
    folds = {"0": {"p1": {"1": score(0.6), "2": score(0.4)}}, "1": {"p2": {"1": score(0.8), "2": ABSENT}}}
    summary = summarize(folds, ["1", "2"], patient_key())
    assert summary["2"]["Dice"]["mean"] == pytest.approx(0.4)
    assert summary[MEAN]["Dice"]["mean"] == pytest.approx((0.5 + 0.8) / 2)
    hidden = {"0": folds["0"], "1": {"p2": {"1": score(0.8), "2": EMPTY}}}
    assert math.isnan(summarize(hidden, ["1", "2"], patient_key())["2"]["HD95"]["mean"])
    nowhere = {"0": {"p1": {"1": score(0.6), "2": ABSENT}}}
    assert math.isnan(summarize(nowhere, ["1", "2"], patient_key())["2"]["Dice"]["mean"])


def test_empty_predictions_references_and_both_are_counted():
    folds = {"0": {"a": {"1": EMPTY, "2": ABSENT}, "b": {"1": score(0.0, NAN, n_ref=0), "2": score(0.5)}}}
    counts = count_empty(folds, ["1", "2"])
    assert counts["1"] == {"empty_prediction": 1, "empty_reference": 1, "both_empty": 0, "n_cases": 2}
    assert counts["2"] == {"empty_prediction": 0, "empty_reference": 0, "both_empty": 1, "n_cases": 2}
    assert counts[MEAN] == {"empty_prediction": 1, "empty_reference": 1, "both_empty": 1, "n_cases": 4}


def test_paired_test_by_hand():
    # differences 1, 2, 3, 4, 5: mean 3, standard error sqrt(2.5 / 5), all ranks positive
    baseline = {str(i): 10.0 for i in range(5)}
    other = {str(i): 11.0 + i for i in range(5)}
    result = paired_test(baseline, other)
    error = math.sqrt(0.5)
    assert result["n"] == 5
    assert result["difference"] == pytest.approx(3)
    assert result["ci_high"] - 3 == pytest.approx(2.776445 * error, rel=1e-6)  # t quantile, 4 degrees, from a table
    assert result["p_wilcoxon"] == pytest.approx(2 / 2**5)  # exact: one of 32 sign patterns on each side
    assert result["p_t"] == pytest.approx(2 * stats.t.sf(3 / error, 4))


def test_paired_test_is_over_patients_that_both_have():
    result = paired_test({"a": 1.0, "b": NAN, "c": 2.0, "d": 5.0}, {"a": 2.0, "b": 9.0, "c": 4.0, "e": 1.0})
    assert result["n"] == 2
    assert result["difference"] == pytest.approx(1.5)


def test_paired_test_without_enough_patients_says_so_with_nan():
    assert paired_test({"a": NAN}, {"a": 1.0})["n"] == 0
    single = paired_test({"a": 1.0}, {"a": 2.0})
    assert (single["n"], single["difference"]) == (1, 1.0)
    assert math.isnan(single["p_t"])
    assert math.isnan(single["p_wilcoxon"])


def test_equal_methods_do_not_differ():
    values = {"a": 0.3, "b": 0.7, "c": 0.1}
    result = paired_test(values, dict(values))
    assert (result["difference"], result["p_t"], result["p_wilcoxon"]) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("n", [1, 5, 9, 20, 40])
def test_signed_rank_equals_scipys_exact_test_without_ties(n):
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    assert signed_rank_p(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)


@pytest.mark.parametrize("differences", [[1, 1, -1, 2, 3, 0], [0.1, 0.1 + 1e-16, -0.1, 0.1, 0.3, 0.3, 0.3], [1, -1]])
def test_signed_rank_with_ties_counts_all_sign_patterns(differences):
    known = [round(d, 9) for d in differences if d]
    ranks = stats.rankdata(np.abs(known))
    observed = sum(r for r, d in zip(ranks, known, strict=True) if d > 0)
    sums = [sum(itertools.compress(ranks, signs)) for signs in itertools.product((0, 1), repeat=len(known))]
    tail = min(sum(s <= observed for s in sums), sum(s >= observed for s in sums)) / len(sums)
    assert signed_rank_p(np.array(differences)) == pytest.approx(min(1, 2 * tail))


def test_signed_rank_of_many_patients_is_close_to_the_exact_one():
    differences = np.random.default_rng(0).normal(0.1, 1, 101)
    assert signed_rank_p(differences) == pytest.approx(signed_rank_p(differences[:100]), rel=0.5)
    assert signed_rank_p(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue, rel=0.05)


def test_signed_rank_of_equal_values_is_one():
    assert signed_rank_p(np.zeros(5)) == 1.0
