"""`nnUNetv2_vqseg_add_labels`: newly annotated cases join the labelled ones of a running project."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_vqseg.core.errors import UserError, explained_disk_errors, some
from nnunetv2_vqseg.core.folders import find_dataset, nnunet_folder


def build_parser() -> argparse.ArgumentParser:
    """Arguments, the dataset's named as in nnU-Net's commands."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_vqseg_add_labels",
        description="Give cases of imagesUl the labels in FOLDER: their images move to imagesTr, the labels are copied "
        "to labelsTr, the cases are preprocessed for every plan that is, and every fold of splits_final.json trains on "
        "them (or validates, where it does so on other scans of a patient). Fingerprint, plans and models stay.",
    )
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="dataset ID or name")
    parser.add_argument(
        "-i", dest="labels", type=Path, required=True, metavar="FOLDER", help="labels, named CASE and file ending"
    )
    parser.add_argument(
        "--patient-regex",
        metavar="REGEX",
        help="finds the patient in a case's name, as in nnUNetv2_vqseg_split (default: what the split was made with)",
    )
    parser.add_argument("-np", dest="processes", type=int, default=4, metavar="N", help="processes (default: 4)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = build_parser().parse_args(argv)
    try:
        with explained_disk_errors():
            run(args)
    except UserError as error:
        sys.exit(f"Error: {error}")


def run(args: argparse.Namespace) -> None:
    """What the command does, after parsing; raises `DatasetError`."""
    name = find_dataset(args.dataset, nnunet_folder("nnUNet_raw"))
    nnunet_folder("nnUNet_preprocessed")
    from nnunetv2_vqseg.planning.add_labels import add_labels  # nnU-Net takes seconds to import

    added = add_labels(name, args.labels, args.processes, patient_regex=args.patient_regex)
    print(f"{name}: {some(added.cases)} moved from imagesUl to imagesTr ({len(added.cases)} cases).")
    for folder in added.prepared:
        print(f"preprocessed into {folder}")
    if added.folds:
        print(f"{added.folds} fold(s) of splits_final.json have them; train again, or go on with more epochs.")
    else:
        print("There is no splits_final.json; nnU-Net makes one at the next training.")
    if added.validating:
        print(f"Validated on, beside other scans of the same patient: {some(added.validating)}.")


if __name__ == "__main__":
    main()
