"""Choosing labelled, unlabelled and validation cases, patient by patient."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from nnunetv2_vqseg.core.errors import DatasetError

Fold = dict[str, list[str]]

# `patient001_frame01`, `sub-03_ses-2` and `P7_ED` belong to patients `patient001`, `sub-03` and `P7`; any other name is
# a patient of its own.
PATIENT_PATTERN = r"(.+?)(?:[_-](?:frame|phase|time|visit|scan|session|ses)[_-]?\d+|[_-](?:ED|ES))*$"


def group_by_patient(cases: Iterable[str], pattern: str = PATIENT_PATTERN) -> dict[str, list[str]]:
    """Cases of each patient, both sorted; the patient is as `patient_of` finds it.

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
        patient = match and patient_of(match)
        if not patient:
            raise DatasetError(f"The patient pattern '{pattern}' finds no patient in the case name '{case}'.")
        patients.setdefault(patient, []).append(case)
    return patients


def patient_of(match: re.Match[str]) -> str:
    """The first group that matched, so that a pattern may have alternatives, or the whole match; empty if neither."""
    groups = match.groups() or (match.group(0),)
    return next((group for group in groups if group), "")


def shared_patients(cases: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Of each patient with different cases in both lists, by the names of the cases, one case of either.

    Names that are all taken for one patient tell patients apart in some other way: then there are none.
    """
    ours, theirs = group_by_patient(cases), group_by_patient(others)
    if len({*ours, *theirs}) < 2:
        return []
    pairs = (product(ours[patient], theirs[patient]) for patient in ours if patient in theirs)
    first = (next((pair for pair in of_patient if pair[0] != pair[1]), None) for of_patient in pairs)
    return [pair for pair in first if pair]


def seeded_order(patients: Iterable[str], seed: int) -> list[str]:
    """A shuffled order that depends on the seed and the names alone.

    Sorting by a hash gives the same order on every platform and version, and a patient added later leaves the order of
    the others as it was.
    """
    return sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}/{patient}".encode()).hexdigest())


def parse_amount(text: str, total: int, what: str) -> int:
    """Number of patients meant by `7` or `10%` of `total` (rounded half up, at least 1).

    Raises:
        DatasetError: neither a whole number nor a percentage, or not between 1 and `total`.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if match is None or not (match.group(2) or match.group(1).isdigit()):
        raise DatasetError(f"{what}: '{text}' is neither a number of patients such as 7 nor a percentage such as 10%.")
    value, whole = float(match.group(1)), 100 if match.group(2) else total
    if not 0 < value <= whole:
        raise DatasetError(f"{what}: '{text}' must be more than 0 and at most all {total} patients (100%).")
    return max(1, math.floor(total * value / whole + 0.5))


def read_list(path: Path) -> list[str]:
    """Names in a text file, one a line; empty lines and lines that start with # are skipped.

    Raises:
        DatasetError: the file cannot be read, is empty or names something twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"The list {path} cannot be read ({error}).") from None
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise DatasetError(f"The list {path} is empty; it needs one name a line.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DatasetError(f"The list {path} names {some(repeated)} more than once; remove the repetition.")
    return names


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first few names, for a sentence."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def patients_of_list(path: Path, patients: dict[str, list[str]]) -> list[str]:
    """Patients named in a list of patients or of cases.

    Raises:
        DatasetError: an unknown name, or a patient of whom only some cases are listed.
    """
    names = set(read_list(path))
    owner = {case: patient for patient, cases in patients.items() for case in cases}
    unknown = sorted(name for name in names if name not in patients and name not in owner)
    if unknown:
        raise DatasetError(f"The list {path} names {some(unknown)}, which the dataset does not have.")
    chosen = {name if name in patients else owner[name] for name in names}
    for patient in sorted(chosen - names):
        missing = [case for case in patients[patient] if case not in names]
        if missing:
            raise DatasetError(
                f"The list {path} names some cases of patient {patient} but not {some(missing)}; "
                "all cases of a patient must be on the same side of a split."
            )
    return sorted(chosen)


def counted(patients: dict[str, list[str]]) -> str:
    """A sentence that shows how the pattern groups cases, with a space before it; empty where it does not."""
    name, cases = max(patients.items(), key=lambda item: len(item[1]))
    if len(cases) == 1:
        return ""
    return f" The cases {some(cases, 3)} were taken for the patient {name}; if that is wrong, correct --patient-regex."


def make_fold(patients: dict[str, list[str]], labeled: str, val: str | Sequence[str], seed: int) -> Fold:
    """One fold over all cases.

    Args:
        patients: cases of each patient.
        labeled: how many of the patients that are not in `val` keep their labels, `7` or `10%`.
        val: validation patients, or how many of all patients, `14` or `20%`.
        seed: of the choice. With the same seed and validation patients, fewer labelled patients are a subset of more.
    """
    order = seeded_order(patients, seed)
    chosen_val = order[: parse_amount(val, len(order), "--val")] if isinstance(val, str) else list(val)
    train = [patient for patient in order if patient not in set(chosen_val)]
    if not train:
        raise DatasetError(f"All {len(order)} patients are for validation; leave some for training.{counted(patients)}")
    number = parse_amount(labeled, len(train), "--labeled")

    def cases(names: Iterable[str]) -> list[str]:
        return sorted(case for name in names for case in patients[name])

    return {"train": cases(train[:number]), "val": cases(chosen_val), "unlabeled": cases(train[number:])}
