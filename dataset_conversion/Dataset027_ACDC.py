"""ACDC cardiac MRI as an nnU-Net dataset with few labelled and many unlabelled patients.

    python dataset_conversion/Dataset027_ACDC.py -i ACDC --labeled 3

Reads the official release (`training/`, `testing/`, `Info.cfg`, real frame numbers, 4D cine files skipped) and copies
that have `training/` only. With a folder of lists (`train.txt`, `val.txt`, `test.txt`, `labelled-N.txt`, one patient a
line) these decide: that of `--protocol`, or `protocol/` beside `training/`. Otherwise the split is by a seed. Frames of
a patient are always on one side. `dataset_conversion/acdc_protocol` has the lists of the semi-supervised literature
(those of SSL4MIS, all of them patients of the release's `training/`).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from common import Case, LabelRule, announce, convert_cases, fail, finish_dataset, new_dataset

from nnunetv2_vqseg.core.errors import DatasetError, explained_disk_errors, some
from nnunetv2_vqseg.data.split import parse_amount, read_list, seeded_order
from nnunetv2_vqseg.data.splits_file import Fold

LABELS = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
FRAME = re.compile(r"(patient\d+_frame(\d+))(_gt)?\.nii(?:\.gz)?")


@dataclass
class Patient:
    """One patient's folder.

    Attributes:
        subset: "training" or "testing", as in the release.
        images: end-diastolic and end-systolic frame by case name, such as patient001_frame12.
        labels: the same, where there is one.
    """

    subset: str
    images: dict[str, Path]
    labels: dict[str, Path]


@dataclass
class Split:
    """Patients of each role, and where the split came from in words."""

    labeled: list[str]
    unlabeled: list[str]
    val: list[str]
    test: list[str]
    origin: str


def find_patients(root: Path) -> dict[str, Patient]:
    """All patients of an ACDC folder.

    Raises:
        DatasetError: not an ACDC folder, or a patient without its frames.
    """
    if not (root / "training").is_dir():
        raise DatasetError(f"{root} has no folder 'training'; -i must name the folder into which ACDC was unpacked.")
    folders = [
        (subset, path)
        for subset in ("training", "testing")
        if (root / subset).is_dir()
        for path in sorted((root / subset).iterdir())
        if path.is_dir() and re.fullmatch(r"patient\d+", path.name)
    ]
    patients: dict[str, Patient] = {}
    for subset, folder in folders:
        if folder.name in patients:
            raise DatasetError(f"{folder.name} is both in training and in testing of {root}; remove one of them.")
        patients[folder.name] = _read_patient(subset, folder)
    if not patients:
        raise DatasetError(f"{root / 'training'} has no folder named patientNNN; -i must name the ACDC folder.")
    return patients


def _read_patient(subset: str, folder: Path) -> Patient:
    # .nii sorts before .nii.gz, so the packed file wins where both are there.
    matches = [(FRAME.fullmatch(path.name), path) for path in sorted(folder.iterdir())]
    frames = [(match, path) for match, path in matches if match and match[1].startswith(f"{folder.name}_")]
    images = {match[1]: path for match, path in frames if not match[3]}
    labels = {match[1]: path for match, path in frames if match[3]}
    numbers = {match[1]: int(match[2]) for match, _ in frames}
    info = folder / "Info.cfg"
    if info.is_file():
        wanted = _phases(info)
        missing = sorted(wanted - {numbers[case] for case in images})
        if missing:
            raise DatasetError(
                f"{info} names frame {missing[0]:02d}, but {folder.name}_frame{missing[0]:02d}.nii.gz is not there; "
                "unpack ACDC again."
            )
        images = {case: path for case, path in images.items() if numbers[case] in wanted}
    if not images:
        raise DatasetError(f"{folder} has no image named {folder.name}_frameNN.nii.gz; unpack ACDC again.")
    return Patient(subset, images, labels)


def _phases(info: Path) -> set[int]:
    """Numbers of the end-diastolic and the end-systolic frame in an Info.cfg."""
    found = dict(
        re.findall(
            r"^\s*(ED|ES)\s*:\s*(\d+)\s*$", info.read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE
        )
    )
    if set(found) != {"ED", "ES"}:
        raise DatasetError(f"{info} does not give the frames ED and ES; replace it or remove it to take every frame.")
    return {int(number) for number in found.values()}


def _listed(path: Path, patients: dict[str, Patient]) -> list[str]:
    names = read_list(path)
    unknown = [name for name in names if name not in patients]
    if unknown:
        raise DatasetError(f"The list {path} names {some(unknown)}, which the input folder does not have.")
    return names


def choose_split(root: Path, patients: dict[str, Patient], args: argparse.Namespace) -> Split:
    """Decide each patient's role: by the lists given, else by the protocol's, else by `testing/` and the seed.

    Raises:
        DatasetError: lists that overlap, name unknown patients or leave nobody to train on; a protocol without lists.
    """
    protocol = args.protocol or root / "protocol"
    if args.protocol and not any(protocol.glob("*.txt")):
        raise DatasetError(f"{protocol} has no list of patients such as test.txt; correct --protocol.")
    lists = {
        role: given or (protocol / f"{role}.txt" if (protocol / f"{role}.txt").is_file() else None)
        for role, given in (("train", None), ("val", args.val_list), ("test", args.test_list))
    }
    if args.val_list or args.test_list:
        lists["train"] = None  # belongs to the protocol's own val.txt and test.txt
    by_list = {role: _listed(path, patients) for role, path in lists.items() if path}

    training = [name for name, patient in patients.items() if patient.subset == "training"]
    order = seeded_order(training, args.seed)
    listed = {name for names in by_list.values() for name in names}
    free = [name for name in order if name not in listed]
    test = by_list.get("test") or [name for name in patients if name not in training] or free[: round(0.2 * len(order))]
    val = by_list.get("val") or [name for name in free if name not in test][: max(1, round(0.1 * len(order)))]
    if not val:
        raise DatasetError(
            f"{protocol / 'val.txt'} is missing, and the other lists leave no patient for validation; write it or give "
            "--val-list."
        )
    train = by_list.get("train") or [name for name in order if name not in (*test, *val)]
    if not train:
        raise DatasetError("No patient is left for training; shorten the lists of validation and test patients.")
    labeled, origin = _choose_labeled(protocol, train, patients, args)

    roles = {"training": train, "validation": val, "test": test}
    for one, other in combinations(roles, 2):
        both = sorted(set(roles[one]) & set(roles[other]))
        if both:
            raise DatasetError(f"{some(both)} would be in both {one} and {other}; correct the lists of patients.")
    for other in ("validation", "test"):
        both = sorted(set(labeled) & set(roles[other]))
        if both:
            raise DatasetError(f"{some(both)} would be both labelled and in {other}; correct the lists of patients.")
    outside = sorted(set(labeled) - set(train))
    if outside:
        raise DatasetError(f"{some(outside)} would be labelled but is not a training patient; correct the lists.")
    origin = (
        f"{'lists' if by_list else f'seed {args.seed}'} for validation and test, {origin} for the labelled patients"
    )
    return Split(sorted(labeled), sorted(set(train) - set(labeled)), sorted(val), sorted(test), origin)


def _choose_labeled(
    protocol: Path, train: list[str], patients: dict[str, Patient], args: argparse.Namespace
) -> tuple[list[str], str]:
    """Labelled patients and where the choice comes from; more patients always include those of a smaller number."""
    if args.labeled_list:
        return _listed(args.labeled_list, patients), args.labeled_list.name
    if args.labeled is None:
        return train, "all training patients"
    number = parse_amount(args.labeled, len(train), "--labeled")
    published = {
        int(path.stem.split("-")[1]): path for path in protocol.glob("labelled-*.txt") if path.stem[9:].isdigit()
    }
    if number in published:
        return _listed(published[number], patients), published[number].name
    smaller = max((size for size in published if size < number), default=0)
    first = _listed(published[smaller], patients) if smaller else []
    more = [name for name in seeded_order(train, args.seed) if name not in first]
    return [*first, *more[: number - len(first)]], f"seed {args.seed}"


def make_cases(patients: dict[str, Patient], split: Split, unlabeled_in_splits: bool) -> tuple[list[Case], Fold]:
    """Where each frame goes, and the fold.

    Raises:
        DatasetError: a frame that needs a label has none.
    """
    cases: list[Case] = []
    fold: Fold = {"train": [], "val": []}

    def add(names: list[str], place: str, role: str | None) -> None:
        for name in names:
            patient = patients[name]
            for case, image in sorted(patient.images.items()):
                label = patient.labels.get(case)
                if label is None and place == "Tr":
                    raise DatasetError(
                        f"{image} has no {case}_gt.nii.gz beside it, which its role needs; unpack again."
                    )
                cases.append(Case(case, place, image, label))
                if role:
                    fold.setdefault(role, []).append(case)

    add(split.labeled, "Tr", "train")
    add(split.val, "Tr", "val")
    add(split.test, "Ts", None)
    if unlabeled_in_splits:
        add(split.unlabeled, "Tr", "unlabeled")
    else:
        add(split.unlabeled, "Ul", None)
    return cases, fold


@explained_disk_errors()
def convert(args: argparse.Namespace) -> None:
    """Write `nnUNet_raw/DatasetXXX_ACDC`; raises `DatasetError`."""
    root = args.input / "database" if (args.input / "database" / "training").is_dir() else args.input
    patients = find_patients(root)
    split = choose_split(root, patients, args)
    cases, fold = make_cases(patients, split, args.unlabeled_in_splits)
    print(
        f"{len(split.labeled)} labelled, {len(split.unlabeled)} unlabelled, {len(split.val)} validation and "
        f"{len(split.test)} test patients: {split.origin}"
    )
    used = {*split.labeled, *split.unlabeled, *split.val, *split.test}
    if len(used) < len(patients):
        print(f"Note: {len(patients) - len(used)} patients are in no list and are left out.")
    with new_dataset(args.dataset_id, "ACDC", args.overwrite) as dataset:
        report = convert_cases(cases, dataset, LabelRule(tuple(LABELS.values())), args.processes)
        finish_dataset(
            dataset,
            cases,
            [fold],
            channel="cineMRI",  # not a name with a normalisation of its own, so nnU-Net z-scores each image
            labels=LABELS,
            dataset_name="ACDC",
            description=split.origin,
            reference="https://www.creatis.insa-lyon.fr/Challenge/acdc/",
            license="non-commercial research, see the reference",
        )
    announce(f"Dataset{args.dataset_id:03d}_ACDC", cases, fold, report)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "-i", dest="input", type=Path, required=True, metavar="ACDC", help="folder with training/ in it"
    )
    parser.add_argument("-d", dest="dataset_id", type=int, default=27, metavar="ID", help="dataset ID (default: 27)")
    parser.add_argument(
        "--protocol", type=Path, metavar="DIR", help="folder with lists of patients (default: protocol/ in ACDC)"
    )
    labeled = parser.add_mutually_exclusive_group()
    labeled.add_argument(
        "--labeled",
        metavar="N|P%",
        help="labelled patients: the protocol's labelled-N.txt if there is one, else chosen by the seed (default: all)",
    )
    labeled.add_argument("--labeled-list", type=Path, metavar="FILE", help="labelled patients, one a line")
    parser.add_argument("--val-list", type=Path, metavar="FILE", help="validation patients, one a line")
    parser.add_argument("--test-list", type=Path, metavar="FILE", help="test patients, one a line")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="for what no list decides (default: 0)")
    parser.add_argument(
        "--unlabeled-in-splits",
        action="store_true",
        help="put all training patients into imagesTr and name the unlabelled ones in splits_final.json, "
        "for benchmarks (default: images without labels in imagesUl)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset if it exists")
    parser.add_argument("-np", dest="processes", type=int, default=4, metavar="N", help="processes (default: 4)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    try:
        convert(build_parser().parse_args(argv))
    except DatasetError as error:
        raise fail(error) from None


if __name__ == "__main__":
    main()
