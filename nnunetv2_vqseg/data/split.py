"""Patient-level splits with few labelled and many unlabelled cases, written as nnU-Net's `splits_final.json`.

A fold is `{"train": [...], "val": [...], "unlabeled": [...]}`. nnU-Net ignores the third list, so a stock trainer sees
the labelled cases only and both methods train from the same file. No image is moved or changed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_vqseg.core.errors import DatasetError, explained_disk_errors
from nnunetv2_vqseg.core.json import read_json
from nnunetv2_vqseg.data.cases import case_pattern
from nnunetv2_vqseg.data.patients import (
    PATIENT_PATTERN,
    Fold,
    group_by_patient,
    make_fold,
    patients_of_list,
    some,
)
from nnunetv2_vqseg.data.splits_file import SPLITS_FILE, load_splits


def write_splits(
    folders: Sequence[Path], folds: list[Fold], overwrite: bool = False, append: bool = False
) -> list[Path]:
    """Write `splits_final.json` into every folder, the same everywhere; an old file is kept as `.bak-N`.

    Args:
        overwrite: replace the folds that are there.
        append: add the new folds behind those that are there.

    Returns:
        The backups made. Files that already hold exactly these folds are left alone.

    Raises:
        DatasetError: other folds are there without `overwrite` or `append`, or the files to append to differ.
    """
    files = [folder / SPLITS_FILE for folder in folders]
    present = {file: _read_folds(file, overwrite) for file in files if file.exists()}
    if append and present:
        first, *others = present.values()
        if any(other != first for other in others):
            raise DatasetError(f"{' and '.join(map(str, present))} differ, so nothing can be added; use --overwrite.")
        folds = [*first, *(fold for fold in folds if fold not in first)]
    outdated = [file for file in present if present[file] != folds]
    if outdated and not (overwrite or append):
        raise DatasetError(f"{outdated[0]} has other folds; add --append to keep them or --overwrite to replace them.")
    backups = [_back_up(file) for file in outdated]
    for file in files:
        if present.get(file) != folds:
            partial = file.with_name(f"{file.name}.tmp-{os.getpid()}")
            partial.write_text(json.dumps(folds, indent=4) + "\n", encoding="utf-8")
            partial.replace(file)
    return backups


def _read_folds(file: Path, overwrite: bool) -> list[Fold]:
    try:
        return load_splits(file.parent)
    except DatasetError:
        if overwrite:  # whatever it is, it is backed up
            return []
        raise


def _back_up(file: Path) -> Path:
    number = 1
    while (backup := file.with_name(f"{file.name}.bak-{number}")).exists():
        number += 1
    shutil.copyfile(file, backup)
    return backup


def environment_folder(variable: str) -> Path | None:
    """The folder in one of nnU-Net's environment variables, or None if it is not set."""
    value = os.environ.get(variable, "").strip().strip('"')
    return Path(value).expanduser() if value else None


def find_dataset(raw: Path, dataset: str) -> Path:
    """The folder of a dataset given by its ID or by its full name."""
    if dataset.isdigit():
        found = sorted(path for path in raw.glob(f"Dataset{int(dataset):03d}_*") if path.is_dir())
    else:
        found = [raw / dataset] if (raw / dataset).is_dir() else []
    if len(found) != 1:
        names = f"has {some([path.name for path in found])}" if found else "has none"
        raise DatasetError(f"Dataset {dataset} must be exactly one folder in nnUNet_raw ({raw}), which {names}.")
    return found[0]


def training_cases(dataset: Path) -> list[str]:
    """Names of the cases in `imagesTr`, each of which must have a label.

    Raises:
        DatasetError: `dataset.json` or `imagesTr` is unusable, or a case has no label.
    """
    file, images = dataset / "dataset.json", dataset / "imagesTr"
    description = read_json(file, "restore it or correct it")
    ending = description.get("file_ending") if isinstance(description, dict) else None
    if not isinstance(ending, str):
        raise DatasetError(f'{file} lacks \'file_ending\'; write for example "file_ending": ".nii.gz" into it.')
    if isinstance(description.get("dataset"), dict):
        return sorted(description["dataset"])
    names = [path.name for path in images.iterdir()] if images.is_dir() else []
    names = [name for name in names if not name.startswith(".")]  # what macOS puts beside files
    cases = sorted({match.group(1) for match in map(case_pattern(ending).fullmatch, names) if match})
    if not cases:
        raise DatasetError(f"{images} has no file named CASE_0000{ending}; nnU-Net needs its images there.")
    bare = [case for case in cases if not (dataset / "labelsTr" / f"{case}{ending}").is_file()]
    if bare:
        raise DatasetError(f"{some(bare)} in {images} has no label in labelsTr; move unlabelled images to imagesUl.")
    return cases


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_vqseg_split",
        description="Declare most training cases of a dataset unlabelled, patient by patient, in splits_final.json. "
        "No image or label is moved or changed.",
    )
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="dataset ID or name")
    parser.add_argument(
        "--labeled",
        required=True,
        metavar="N|P%",
        help="labelled training patients: 7, or 10%% of the training patients",
    )
    parser.add_argument(
        "--seed",
        type=int,
        nargs="+",
        default=[0],
        metavar="S",
        help="seed of the choice; several seeds make several folds",
    )
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--val", default="20%", metavar="N|P%", help="validation patients out of all (default: 20%%)")
    side.add_argument("--val-list", type=Path, metavar="FILE", help="validation patients (or cases), one a line")
    parser.add_argument(
        "--patient-regex",
        default=PATIENT_PATTERN,
        metavar="REGEX",
        help="finds the patient in a case's name: its first group, or its match (default: the name without endings "
        "such as _frame01, _ses-2 or _ED)",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--append", action="store_true", help="add the folds behind those in splits_final.json")
    existing.add_argument("--overwrite", action="store_true", help="replace splits_final.json (kept as .bak-N)")
    return parser


def run(args: argparse.Namespace) -> None:
    """What the command does, after parsing; raises `DatasetError`."""
    raw = environment_folder("nnUNet_raw")
    if raw is None:
        raise DatasetError("The environment variable nnUNet_raw is not set; set it to the folder with your datasets.")
    dataset = find_dataset(raw, args.dataset)
    patients = group_by_patient(training_cases(dataset), args.patient_regex)
    val = patients_of_list(args.val_list, patients) if args.val_list else args.val
    folds = [make_fold(patients, args.labeled, val, seed) for seed in dict.fromkeys(args.seed)]

    folders = [dataset]
    preprocessed = environment_folder("nnUNet_preprocessed")
    if preprocessed is not None and (preprocessed / dataset.name).is_dir():
        folders.append(preprocessed / dataset.name)
    before = [_content(folder / SPLITS_FILE) for folder in folders]
    backups = write_splits(folders, folds, overwrite=args.overwrite, append=args.append)

    example, cases = next(iter(patients.items()))
    total = sum(map(len, patients.values()))
    print(f"{dataset.name}: {total} cases of {len(patients)} patients (for example {example}: {', '.join(cases)})")
    written = load_splits(dataset)
    owner = {case: patient for patient, cases in patients.items() for case in cases}
    for seed, fold in zip(dict.fromkeys(args.seed), folds, strict=True):
        parts = [f"{len({owner[case] for case in fold[key]})} patients {key} ({len(fold[key])} cases)" for key in fold]
        print(f"fold {written.index(fold)} (seed {seed}): {', '.join(parts)}")
    for backup in backups:
        print(f"kept the old file as {backup}")
    for folder in folders:
        print(f"splits are in {folder / SPLITS_FILE}")
    changed = before != [_content(folder / SPLITS_FILE) for folder in folders]
    if changed and any(any(folder.glob("*_fingerprint.json")) for folder in folders[1:]):
        print(
            f"Note: the plans in {folders[1]} were made with other labels; run nnUNetv2_vqseg_plan_and_preprocess "
            f"again before training."
        )


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `nnUNetv2_vqseg_split`."""
    try:
        with explained_disk_errors():
            run(_build_parser().parse_args(argv))
    except DatasetError as error:
        raise SystemExit(f"Error: {error}") from None


if __name__ == "__main__":
    main()
