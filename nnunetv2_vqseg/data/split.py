"""Choosing labelled, unlabelled and validation cases, patient by patient."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnunetv2_vqseg.core.errors import DatasetError, some
from nnunetv2_vqseg.data.splits_file import FOLDS, Fold


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


def cross_validation(patients: dict[str, list[str]], seed: int, most: int = FOLDS) -> list[Fold]:
    """Folds as nnU-Net makes them, but by patient and from two patients up: each patient is validated on once.

    Args:
        patients: cases of each patient.
        most: folds, where there are as many patients.

    Raises:
        DatasetError: there is one patient.
    """
    order = seeded_order(patients, seed)
    if len(order) < 2:
        raise DatasetError(
            f"There is one labelled patient, {order[0]}, and a split needs two; label a case of another one, or train "
            f"fold all, which validates on what it trains on.{counted(patients)}"
        )
    number = min(most, len(order))
    sides = [set(order[first::number]) for first in range(number)]
    return [
        {
            "train": sorted(case for patient in order if patient not in side for case in patients[patient]),
            "val": sorted(case for patient in side for case in patients[patient]),
        }
        for side in sides
    ]


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
