"""Compares trained models on the same cases and writes a report: `nnUNetv2_vqseg_compare`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_vqseg.commands.evaluate import add_scoring_arguments
from nnunetv2_vqseg.core.errors import UserError, explained_disk_errors
from nnunetv2_vqseg.data.patients import PATIENT_PATTERN


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `nnUNetv2_vqseg_compare`."""
    args = build_parser().parse_args(arguments)
    from nnunetv2_vqseg.report.compare import Comparison

    try:
        with explained_disk_errors():
            Comparison(**vars(args)).run()
    except UserError as error:
        raise SystemExit(f"Error: {error}") from error
    print(f"Report: {args.output / 'report' / 'index.html'}")


def build_parser() -> argparse.ArgumentParser:
    """Its destinations are the fields of `Comparison`."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_vqseg_compare",
        description="Predicts with trained models what is not predicted yet, scores them on the same cases and writes "
        "a report with tables, figures and paired tests. The first trainer is the baseline.",
    )
    parser.add_argument("-d", dest="dataset", required=True, help="dataset name or id")
    parser.add_argument(
        "-c", dest="configuration", default="2d", help="configuration where -tr gives none. Default: 2d"
    )
    parser.add_argument(
        "-p",
        dest="plans",
        nargs="+",
        default=["nnUNetPlans"],
        help="plans where -tr gives none, and/or TRAINER:PLANS for some. Default: nnUNetPlans",
    )
    parser.add_argument(
        "-f", dest="folds", nargs="+", default=["0"], help="folds, repetitions of the training. Default: 0"
    )
    parser.add_argument(
        "-tr",
        dest="trainers",
        nargs="+",
        required=True,
        metavar="[NAME=]TRAINER[:PLANS[:CONFIGURATION,...]]",
        help="trainers, baseline first. Several configurations are repetitions of one method (seeds), averaged for "
        "each patient; NAME is what tables and figures show",
    )
    parser.add_argument("-o", dest="output", type=Path, required=True, help="folder for predictions/ and report/")
    parser.add_argument(
        "--split", choices=("test", "val"), default="test", help="test: imagesTs; val: each fold's validation"
    )
    parser.add_argument("--labels", nargs="+", help="names of the methods, one per trainer, instead of NAME=")
    parser.add_argument(
        "--postprocessing",
        dest="postprocess",
        action="store_true",
        help="score after nnU-Net's postprocessing (largest components), which it chooses for each training on the "
        "validation cases of its fold; these are predicted for that",
    )
    parser.add_argument(
        "-chk", dest="checkpoint", default="checkpoint_final.pth", help="checkpoint. Default: checkpoint_final.pth"
    )
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), help="default: cuda if there is one, else cpu")
    parser.add_argument(
        "--patient-regex",
        default=PATIENT_PATTERN,
        help="finds the patient in a case's name: its first group that matches, or all it matches; cases it does "
        "not match are patients of their own. Default, as nnUNetv2_vqseg_split has it: the name without endings like "
        "_frame01, _ses-2 or _ED",
    )
    add_scoring_arguments(parser)
    return parser
