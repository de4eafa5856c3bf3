"""`nnUNetv2_vqseg_split`: folds by patient for any number of labelled cases; no image is moved."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_vqseg.core.errors import DatasetError, explained_disk_errors, some
from nnunetv2_vqseg.core.folders import find_dataset, folder_or_none, nnunet_folder
from nnunetv2_vqseg.core.json import read_json
from nnunetv2_vqseg.data.cases import channel_files
from nnunetv2_vqseg.data.patients import PATIENT_PATTERN, group_by_patient
from nnunetv2_vqseg.data.split import cross_validation, make_fold, patients_of_list
from nnunetv2_vqseg.data.splits_file import LISTS, PATTERN, SPLITS_FILE, Fold, load_splits, write_splits


def build_parser() -> argparse.ArgumentParser:
    """Arguments, the dataset's named as in nnU-Net's commands."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_vqseg_split",
        description="Write splits_final.json, patient by patient: folds for a cross-validation over the labelled cases "
        "(five, or one a patient where there are fewer), or, with --labeled or --val, one fold in which the labels of "
        "all other training patients are not used. No image or label is moved or changed.",
    )
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="dataset ID or name")
    parser.add_argument(
        "--labeled",
        metavar="N|P%",
        help="labelled training patients: 7, or 10%% of the training patients; the others count as unlabelled",
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
    side.add_argument(
        "--val", metavar="N|P%", help="validation patients out of all (default where --labeled is given: 20%%)"
    )
    side.add_argument("--val-list", type=Path, metavar="FILE", help="validation patients (or cases), one a line")
    parser.add_argument(
        "--patient-regex",
        default=PATIENT_PATTERN,
        metavar="REGEX",
        help="finds the patient in a case's name: its first group, or its match (default: the name without endings "
        "such as _frame01, _ses-2 or _ED); kept in splits_final.json for nnUNetv2_vqseg_add_labels",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--append", action="store_true", help="add the folds behind those in splits_final.json")
    existing.add_argument("--overwrite", action="store_true", help="replace splits_final.json (kept as .bak-N)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    try:
        with explained_disk_errors():
            run(build_parser().parse_args(argv))
    except DatasetError as error:
        raise SystemExit(f"Error: {error}") from None


def run(args: argparse.Namespace) -> None:
    """What the command does, after parsing; raises `DatasetError`."""
    raw = nnunet_folder("nnUNet_raw")
    dataset = raw / find_dataset(args.dataset, raw)
    patients = group_by_patient(_labeled_cases(dataset), args.patient_regex)
    if args.labeled or args.val or args.val_list:
        val = patients_of_list(args.val_list, patients) if args.val_list else args.val or "20%"
        made = {seed: [make_fold(patients, args.labeled or "100%", val, seed)] for seed in args.seed}
    else:
        made = {seed: cross_validation(patients, seed) for seed in args.seed}
    folds = [fold for of_seed in made.values() for fold in of_seed]
    if args.patient_regex != PATIENT_PATTERN:
        for fold in folds:
            fold[PATTERN] = args.patient_regex

    folders = [dataset]
    preprocessed = folder_or_none("nnUNet_preprocessed")
    if preprocessed is not None and (preprocessed / dataset.name).is_dir():
        folders.append(preprocessed / dataset.name)
    before = [_content(folder / SPLITS_FILE) for folder in folders]
    backups = write_splits(folders, folds, overwrite=args.overwrite, append=args.append)

    _tell_of_folds(dataset, patients, made)
    for backup in backups:
        print(f"kept the old file as {backup}")
    for folder in folders:
        print(f"splits are in {folder / SPLITS_FILE}")
    changed = before != [_content(folder / SPLITS_FILE) for folder in folders]
    unlabeled = any(fold.get("unlabeled") for fold in folds)
    if changed and unlabeled and any(any(folder.glob("*_fingerprint.json")) for folder in folders[1:]):
        print(
            f"Note: the plans in {folders[1]} were made with other labels; run nnUNetv2_vqseg_plan_and_preprocess "
            f"again before training."
        )


def _labeled_cases(dataset: Path) -> list[str]:
    """Names of the cases in `imagesTr`, each of which must have a label; `dataset.json` may be incomplete still."""
    file, images = dataset / "dataset.json", dataset / "imagesTr"
    description = read_json(file, "restore it or correct it")
    ending = description.get("file_ending") if isinstance(description, dict) else None
    if not isinstance(ending, str):
        raise DatasetError(f'{file} lacks \'file_ending\'; write for example "file_ending": ".nii.gz" into it.')
    if isinstance(description.get("dataset"), dict):
        return sorted(description["dataset"])
    cases = sorted(channel_files(images, ending))
    if not cases:
        raise DatasetError(f"{images} has no file named CASE_0000{ending}; nnU-Net needs its images there.")
    bare = [case for case in cases if not (dataset / "labelsTr" / f"{case}{ending}").is_file()]
    if bare:
        raise DatasetError(f"{some(bare)} in {images} has no label in labelsTr; move unlabelled images to imagesUl.")
    return cases


def _tell_of_folds(dataset: Path, patients: dict[str, list[str]], made: dict[int, list[Fold]]) -> None:
    example, cases = next(iter(patients.items()))
    total = sum(map(len, patients.values()))
    print(f"{dataset.name}: {total} cases of {len(patients)} patients (for example {example}: {', '.join(cases)})")
    written = load_splits(dataset)
    owner = {case: patient for patient, cases in patients.items() for case in cases}
    for seed, fold in ((seed, fold) for seed, folds in made.items() for fold in folds):
        parts = [
            f"{len({owner[case] for case in fold[key]})} patients {key} ({len(fold[key])} cases)"
            for key in LISTS
            if key in fold
        ]
        print(f"fold {written.index(fold)} (seed {seed}): {', '.join(parts)}")


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


if __name__ == "__main__":
    main()
