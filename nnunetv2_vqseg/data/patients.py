"""Which cases are of one patient, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import product

from nnunetv2_vqseg.core.errors import DatasetError

# `patient001_frame01`, `sub-03_ses-2` and `P7_ED` belong to patients `patient001`, `sub-03` and `P7`; any other name is
# a patient of its own.
PATIENT_PATTERN = r"(.+?)(?:[_-](?:frame|phase|time|visit|scan|session|ses)[_-]?\d+|[_-](?:ED|ES))*$"


def group_by_patient(cases: Iterable[str], pattern: str = PATIENT_PATTERN, strict: bool = True) -> dict[str, list[str]]:
    """Cases of each patient, both sorted; the patient is as `patient_of` finds it.

    Args:
        strict: refuse names that the pattern does not match; else they are patients of their own.

    Raises:
        DatasetError: the pattern is not a regular expression or does not match the beginning of a case's name.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"The patient pattern '{pattern}' is not a regular expression ({error}).") from None
    patients: dict[str, list[str]] = {}
    for case in sorted(cases):
        match = regex.match(case)
        patient = (match and patient_of(match)) or ("" if strict else case)
        if not patient:
            raise DatasetError(f"The patient pattern '{pattern}' finds no patient in the case name '{case}'.")
        patients.setdefault(patient, []).append(case)
    return patients


def patient_of(match: re.Match[str]) -> str:
    """The first group that matched, so that a pattern may have alternatives, or the whole match; empty if neither."""
    groups = match.groups() or (match.group(0),)
    return next((group for group in groups if group), "")


def shared_patients(
    cases: Iterable[str], others: Iterable[str], pattern: str = PATIENT_PATTERN
) -> list[tuple[str, str]]:
    """Of each patient with different cases in both lists, by the names of the cases, one case of either.

    Names that are all taken for one patient tell patients apart in some other way: then there are none.
    """
    ours, theirs = (group_by_patient(names, pattern, strict=False) for names in (cases, others))
    if len({*ours, *theirs}) < 2:
        return []
    pairs = (product(ours[patient], theirs[patient]) for patient in ours if patient in theirs)
    first = (next((pair for pair in of_patient if pair[0] != pair[1]), None) for of_patient in pairs)
    return [pair for pair in first if pair]


def same_patient_message(shared: Sequence[tuple[str, str]], where: str) -> str:
    """The sentence for images of one patient that are trained on and that the result is judged by.

    Args:
        shared: as `shared_patients` finds them: a case that is trained on, with its label or without, and one `where`
            scores are computed.
    """
    case, other = shared[0]
    more = f", one of {len(shared)} such patients" if len(shared) > 1 else ""
    return (
        f"The case {case} is trained on and {other} in {where} looks like another scan of the same patient{more}; then "
        f"scores of {where} promise too much, keep all scans of a patient on one side. If these are different "
        f"patients, ignore this."
    )
