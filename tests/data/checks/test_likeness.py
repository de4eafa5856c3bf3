"""Unlabelled cases in another unit, orientation or pixel size are named; ordinary differences are not."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_vqseg.data.checks.likeness import Look, look_of, unlike_labeled

LABELED = [Look((0.5, 0.5), "RAS", (0.0, -0.2), (1.0, 0.8)), Look((0.8, 0.8), "RAS", (0.1, 0.3), (1.1, 0.9))]
GOOD = Look((0.6, 0.6), "RAS", (0.05, 0.1), (1.0, 0.9))


def said(**other: object) -> list[str]:
    return unlike_labeled({"U": GOOD._replace(**other), "V": GOOD}, LABELED)


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"pixel": (2.4, 0.17)},
        {"orientation": ""},
        {"means": (3.0, 2.9)},
        {"stds": (0.11, 8.0)},
        {"stds": (float("nan"), 0.9)},
    ],
)
def test_ordinary_differences_pass(other: dict):
    assert said(**other) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"orientation": "LPS"}, "is oriented LPS, labelled cases RAS"),
        ({"pixel": (2.5, 0.6)}, "pixels of 2.5 x 0.6 mm, labelled cases of 0.5 x 0.5 to 0.8 x 0.8 mm"),
        ({"pixel": (0.6, 0.16)}, "pixels of 0.6 x 0.16 mm"),
        ({"means": (0.0, -3.0)}, "channel 1 has the mean -3.00"),
        ({"means": (3.5, 0.0)}, "channel 0 has the mean 3.50"),
        (
            {"stds": (0.0, 0.9)},
            "standard deviation 0.00 after normalisation, labelled cases 0.00 to 0.10 and 1.00 to 1.10",
        ),
        ({"stds": (1.0, 9.5)}, "channel 1"),
    ],
)
def test_another_unit_orientation_or_size_is_named(other: dict, words: str):
    (sentence,) = said(**other)
    assert sentence.startswith("The unlabelled case U ")
    assert words in sentence
    assert "more" not in sentence


def test_many_cases_are_one_sentence():
    (sentence,) = unlike_labeled({case: GOOD._replace(orientation="LPS") for case in "UVW"}, LABELED)
    assert "(and 2 more)" in sentence


def test_without_labelled_cases_nothing_can_be_said():
    assert unlike_labeled({"U": GOOD}, []) == []


@pytest.mark.parametrize("code", ["RAS", "LPS", "PIR"])
def test_readers_agree_on_the_orientation(code: str):
    towards = dict(zip("RASLPI", [*np.eye(3), *-np.eye(3)], strict=True))
    affine, lps = np.eye(4), np.diag([-1.0, -1.0, 1.0])
    affine[:3, :3] = np.stack([towards[letter] for letter in code], axis=1)
    data = np.zeros((1, 4, 4, 4))
    itk = {"sitk_stuff": {"direction": tuple((lps @ affine[:3, :3]).ravel())}}
    for stuff in (itk, {"nibabel_stuff": {"original_affine": affine}}):
        assert look_of(data, {"spacing": [3, 2, 1], **stuff}).orientation == code
    assert look_of(data, {"spacing": [3, 2, 1]}) == Look((1.0, 2.0), "", (0.0,), (0.0,))
