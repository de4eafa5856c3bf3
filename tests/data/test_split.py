"""Which patients are chosen depends on the seed and their names alone."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.data.patients import group_by_patient
from nnunetv2_vqseg.data.split import make_fold, parse_amount, seeded_order


@given(
    st.sets(st.text("abcXYZ019-", min_size=1), min_size=3, max_size=30),
    st.integers(0, 99),
    st.integers(1, 100),
    st.integers(1, 100),
)
def test_fold_is_a_partition_and_grows_with_the_share(names: set[str], seed: int, one: int, two: int) -> None:
    patients = {name: [f"{name}_frame01", f"{name}_frame02"] for name in names}
    small, large = (make_fold(patients, f"{share}%", "20%", seed) for share in sorted((one, two)))
    for fold in (small, large):
        everything = [case for cases in fold.values() for case in cases]
        assert sorted(everything) == sorted(case for cases in patients.values() for case in cases)
        assert fold["train"]
        assert fold["val"]
    assert small["val"] == large["val"]
    assert set(small["train"]) <= set(large["train"])


@given(st.sets(st.text(min_size=1), min_size=1), st.text(min_size=1), st.integers())
def test_a_new_patient_does_not_reorder_the_others(names: set[str], new: str, seed: int) -> None:
    assert [name for name in seeded_order(names | {new}, seed) if name != new] == seeded_order(names - {new}, seed)


@pytest.mark.parametrize(
    ("text", "number"), [("7", 7), ("70", 70), ("10%", 7), ("5%", 4), ("0.1%", 1), ("100%", 70), (" 12.5 % ", 9)]
)
def test_amounts(text: str, number: int) -> None:
    assert parse_amount(text, 70, "--labeled") == number


@pytest.mark.parametrize("text", ["", "0", "71", "0%", "101%", "-3", "7.5", "a few", "10 percent"])
def test_impossible_amounts(text: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(f"--labeled: '{text}'")):
        parse_amount(text, 70, "--labeled")


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("patient001_frame12", "patient001"),
        ("sub-03_ses-2", "sub-03"),
        ("P7_ED", "P7"),
        ("P7_visit2_scan-1", "P7"),
        ("lung_001", "lung_001"),
        ("BRATS_485", "BRATS_485"),
        ("FRED", "FRED"),
    ],
)
def test_default_patient_pattern(case: str, patient: str) -> None:
    assert group_by_patient([case]) == {patient: [case]}


def test_a_pattern_may_have_alternatives() -> None:
    assert group_by_patient(["P1_a", "P1_b", "Q2_a"], r"(P\d+)_|(Q\d+)_") == {"P1": ["P1_a", "P1_b"], "Q2": ["Q2_a"]}


def test_names_that_are_one_patient_by_mistake_are_told() -> None:
    patients = group_by_patient([f"CT_scan_{number:03d}" for number in range(20)])
    with pytest.raises(DatasetError, match=r"CT_scan_000, CT_scan_001, .* were taken for the patient CT; if that is"):
        make_fold(patients, "1", "1", 0)
