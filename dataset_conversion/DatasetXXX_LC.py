"""Lung cancer CT (or any CT with one target) as an nnU-Net dataset with few labelled and many unlabelled patients.

    python dataset_conversion/DatasetXXX_LC.py -d 40 -i CT -m MASKS --labeled-percent 10
    python dataset_conversion/DatasetXXX_LC.py -d 40 -i PATIENTS --labeled-percent 10

First form: one folder with the CTs and one with the masks, matched by name (`P01.nrrd`, `P01_mask.nrrd`). Second form:
a folder for each case with its CT and its mask. NIfTI, NRRD and MHA files or folders with one DICOM series. Scans
without a mask join the unlabelled ones. Split 70/10/20 (training, validation, test) by patient.
"""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import Case, LabelRule, announce, convert_cases, fail, finish_dataset, new_dataset

from nnunetv2_vqseg.core.errors import DatasetError, explained_disk_errors, some
from nnunetv2_vqseg.data.patients import PATIENT_PATTERN, group_by_patient
from nnunetv2_vqseg.data.split import counted, parse_amount, seeded_order
from nnunetv2_vqseg.data.splits_file import Fold

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
MASK_WORDS = r"mask|seg|segmentation|label|lesion|tumou?r|gt"
# What a name may carry behind the case's own name: P01_ct.nrrd and P01-mask.nrrd are both case P01.
KIND = re.compile(rf"(?:[ _.-]+(?:ct|image|img|scan|volume|{MASK_WORDS})s?)+$", re.IGNORECASE)
MASK = re.compile(rf"(?:^|[ _.-])(?:{MASK_WORDS})s?(?:$|[ _.-])", re.IGNORECASE)


@dataclass(frozen=True)
class Scan:
    """A CT (file or DICOM folder) and its mask, if it has one."""

    image: Path
    mask: Path | None


def stem(path: Path) -> str:
    """A file's name without image extension, a folder's name as it is."""
    ending = next((ending for ending in EXTENSIONS if path.name.lower().endswith(ending)), "")
    return path.name[: len(path.name) - len(ending)]


def entries(folder: Path) -> list[Path]:
    """Image files and sub-folders (DICOM series), without hidden ones.

    Raises:
        DatasetError: not a folder.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder.")
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return [path for path in visible if path.is_dir() or path.name.lower().endswith(EXTENSIONS)]


def find_scans(images: Path, masks: Path | None) -> dict[str, Scan]:
    """CTs and masks by case name, from two folders or from a folder for each case.

    Raises:
        DatasetError: nothing found, a mask without CT, or two files for one case.
    """
    scans = _scans_of_folders(images) if masks is None else _scans_by_name(images, masks)
    if not scans:
        raise DatasetError(f"{images} holds no scan: no {', '.join(EXTENSIONS)} file and no DICOM folder.")
    if all(scan.mask is None for scan in scans.values()):
        raise DatasetError(f"No scan in {images} has a mask; masks must be named as their scans or lie beside them.")
    return scans


def _scans_by_name(images: Path, masks: Path) -> dict[str, Scan]:
    image_of, mask_of = _by_case(entries(images)), _by_case(entries(masks))
    orphans = sorted(set(mask_of) - set(image_of))
    if orphans:
        raise DatasetError(f"{mask_of[orphans[0]]} has no scan of the same name in {images}; rename or remove it.")
    return {case: Scan(path, mask_of.get(case)) for case, path in image_of.items()}


def _by_case(paths: Sequence[Path]) -> dict[str, Path]:
    channel = bool(paths) and all(stem(path).endswith("_0000") for path in paths)
    found: dict[str, Path] = {}
    for path in paths:
        case = _case_name(KIND.sub("", stem(path).removesuffix("_0000") if channel else stem(path)), path)
        if case in found:
            raise DatasetError(f"{found[case]} and {path} would both be case {case}; rename one of them.")
        found[case] = path
    return found


def _scans_of_folders(root: Path) -> dict[str, Scan]:
    scans: dict[str, Scan] = {}
    for folder in entries(root):
        if not folder.is_dir():
            raise DatasetError(f"{folder} lies beside the folders of cases; give the folder with the masks with -m.")
        inside = entries(folder)
        masks = [path for path in inside if MASK.search(stem(path))]
        # A folder with loose DICOM files is itself the scan.
        images = [path for path in inside if path not in masks] or [folder]
        if len(images) > 1 or len(masks) > 1:
            kind, paths = ("scans", images) if len(images) > 1 else ("masks", masks)
            raise DatasetError(f"{folder} has several {kind} ({some([path.name for path in paths])}); leave one.")
        case = _case_name(folder.name, folder)
        if case in scans:
            raise DatasetError(f"{folder} and another folder would both be case {case}; rename one of them.")
        scans[case] = Scan(images[0], masks[0] if masks else None)
    return scans


def _case_name(name: str, path: Path) -> str:
    """The name with letters of any script, digits, - and _ only."""
    case = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", name)).strip("_")
    if not case:
        raise DatasetError(f"{path} has no letter or digit in its name that could name a case; rename it.")
    return case


def assign(
    scans: dict[str, Scan], pattern: str, seed: int, labeled_percent: float, unlabeled_in_splits: bool
) -> tuple[list[Case], Fold]:
    """Split by patient: 20 % of those with a mask are for test, 10 % for validation, the others for training.

    With the same seed, a smaller share of labelled patients is a subset of a larger one. Scans without a mask are
    unlabelled; those of validation and test patients are left out.

    Raises:
        DatasetError: fewer than three patients with masks, or an impossible pattern or percentage.
    """
    patients = group_by_patient(scans, pattern)
    annotated = [name for name, cases in patients.items() if any(scans[case].mask for case in cases)]
    if len(annotated) < 3:
        raise DatasetError(
            f"Only {len(annotated)} patients have a mask; training, validation and test need three.{counted(patients)}"
        )
    order = seeded_order(annotated, seed)
    n_test, n_val = (max(1, round(share * len(order))) for share in (0.2, 0.1))
    test, val, train = order[:n_test], order[n_test : n_test + n_val], order[n_test + n_val :]
    labeled = train[: parse_amount(f"{labeled_percent}%", len(train), "--labeled-percent")]

    cases: list[Case] = []
    fold: Fold = {"train": [], "val": []}
    if unlabeled_in_splits:
        fold["unlabeled"] = []
    roles = {**dict.fromkeys(test, "test"), **dict.fromkeys(val, "val"), **dict.fromkeys(labeled, "train")}
    for patient, names in patients.items():
        role = roles.get(patient, "unlabeled")
        for name in names:
            scan = scans[name]
            if scan.mask is None and role in ("test", "val"):
                continue
            place = "Ts" if role == "test" else "Tr" if scan.mask and role in fold else "Ul"
            cases.append(Case(name, place, scan.image, scan.mask))
            if place == "Tr":
                fold[role].append(name)
    return cases, fold


@explained_disk_errors()
def convert(scans: dict[str, Scan], name: str, args: argparse.Namespace, **about: str) -> None:
    """Write `nnUNet_raw/DatasetXXX_name`; raises `DatasetError`."""
    cases, fold = assign(scans, args.patient_regex, args.seed, args.labeled_percent, args.unlabeled_in_splits)
    bare = sum(scan.mask is None for scan in scans.values())
    print(f"{len(scans)} scans, {bare} of them without a mask; {len(scans) - len(cases)} left out")
    with new_dataset(args.dataset_id, name, args.overwrite) as dataset:
        report = convert_cases(cases, dataset, LabelRule(None, args.resample_masks), args.processes)
        labels = {"background": 0, args.target: 1}
        # The channel name CT makes nnU-Net clip and normalise with statistics of the whole dataset.
        finish_dataset(dataset, cases, [fold], channel="CT", labels=labels, dataset_name=name, **about)
    announce(f"Dataset{args.dataset_id:03d}_{name}", cases, fold, report)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every CT converter."""
    parser.add_argument(
        "--labeled-percent", type=float, default=100, metavar="P", help="labelled training patients (default: 100)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the split (default: 0)")
    parser.add_argument(
        "--patient-regex",
        default=PATIENT_PATTERN,
        metavar="REGEX",
        help="finds the patient in a case's name: its first group, or its match (default: the name without endings "
        "such as _scan2 or _ses-1)",
    )
    parser.add_argument("--target", default="cancer", metavar="NAME", help="what the mask shows (default: cancer)")
    parser.add_argument(
        "--resample-masks",
        action="store_true",
        help="put masks from another grid onto the scan's (default: refuse them)",
    )
    parser.add_argument(
        "--unlabeled-in-splits",
        action="store_true",
        help="keep all annotated training patients in imagesTr and name the unlabelled ones in splits_final.json, "
        "for benchmarks (default: images without labels in imagesUl)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset if it exists")
    parser.add_argument("-np", dest="processes", type=int, default=4, metavar="N", help="processes (default: 4)")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-d", dest="dataset_id", type=int, required=True, metavar="ID", help="dataset ID")
    parser.add_argument("-i", dest="images", type=Path, required=True, metavar="DIR", help="CTs, or a folder per case")
    parser.add_argument(
        "-m", dest="masks", type=Path, metavar="DIR", help="masks, if they are in a folder of their own"
    )
    parser.add_argument("--name", default="LC", help="of the dataset (default: LC)")
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        convert(find_scans(args.images, args.masks), args.name, args)
    except DatasetError as error:
        raise fail(error) from None


if __name__ == "__main__":
    main()
