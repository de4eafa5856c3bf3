"""The sentence a report opens with, on numbers whose answer is known."""

from __future__ import annotations

import math

import pytest

from nnunetv2_vqseg.report.statistics import MEAN
from nnunetv2_vqseg.report.verdict import verdict


def summary(trainings, tests=()):
    """`trainings`: Dice of each training by method; `tests`: method, difference, n and p against the first method."""
    methods = {
        name: {
            "folds": {str(index): {MEAN: {"Dice": value}} for index, value in enumerate(values)},
            "summary": {MEAN: {"Dice": {"mean": sum(values) / len(values), "n_patients": 20}}},
        }
        for name, values in trainings.items()
    }
    baseline = next(iter(trainings))
    paired = [
        {
            "method": method, "baseline": baseline, "class": MEAN, "metric": "Dice",
            "difference": difference, "n": n, "p_wilcoxon": p,
        }
        for method, difference, n, p in tests
    ]  # fmt: skip
    return {"methods": methods, "paired": paired}


THREE = {"nnU-Net": [0.80, 0.81, 0.82], "Ours": [0.85, 0.86, 0.87]}


@pytest.mark.parametrize(
    ("trainings", "tests", "sentence"),
    [
        (
            THREE,
            [("Ours", 0.05, 20, 0.003)],
            "Ours is ahead of nnU-Net by 0.0500 Dice on 20 patients; the patients bear this out (Wilcoxon p = 0.003), "
            "and the trainings (3 each) bear it out: all of Ours are ahead of all of nnU-Net.",
        ),
        (
            {"nnU-Net": [0.9], "Ours": [0.8]},
            [("Ours", -0.1, 20, 0.0002)],
            "nnU-Net is ahead of Ours by 0.1000 Dice on 20 patients; the patients bear this out (Wilcoxon p < 0.001), "
            "and one training of a method does not tell what another seed would give.",
        ),
        (
            {"nnU-Net": [0.80, 0.86], "Ours": [0.85, 0.87, 0.88]},
            [("Ours", 0.03, 20, 0.2)],
            "Ours is ahead of nnU-Net by 0.0300 Dice on 20 patients; the patients do not bear this out (Wilcoxon p = "
            "0.200), and the trainings (3 and 2) overlap.",
        ),
        (
            {"nnU-Net": [0.80, 0.81], "Ours": [0.85, 0.87]},
            [("Ours", 0.05, 5, 0.06)],
            "Ours is ahead of nnU-Net by 0.0500 Dice on 5 patients; these are too few patients to say that it is more "
            "than chance, and all trainings of Ours are ahead of all of nnU-Net, but 2 each are few.",
        ),
        (
            THREE | {"Other": [0.81]},
            [("Ours", 0.05, 20, 0.03), ("Other", 0.01, 20, 0.5)],
            "Ours, the best of 2 others, is ahead of nnU-Net by 0.0500 Dice on 20 patients; the patients do not bear "
            "this out (Wilcoxon p = 0.030, of which 2 comparisons ask 0.025), and the trainings (3 each) bear it out: "
            "all of Ours are ahead of all of nnU-Net.",
        ),
        (
            {"nnU-Net": [0.9], "Ours": [0.9]},
            [("Ours", 0.00001, 20, 1.0)],
            "Ours and nnU-Net have the same Dice on 20 patients.",
        ),
        ({"nnU-Net": [0.9]}, [], "nnU-Net reaches a mean Dice of 0.9000 on 20 patients."),
        ({"nnU-Net": [math.nan], "Ours": [0.9]}, [("Ours", math.nan, 0, math.nan)], ""),
    ],
)
def test_it_says_who_is_ahead_and_whether_patients_and_trainings_bear_it_out(trainings, tests, sentence):
    assert verdict(summary(trainings, tests)) == sentence
