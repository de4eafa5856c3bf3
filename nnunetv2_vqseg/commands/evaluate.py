"""Scores a folder of predictions against a folder of references: `nnUNetv2_vqseg_evaluate`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.errors import EvaluationError, UserError, explained_disk_errors
from nnunetv2_vqseg.core.folders import raw_folder
from nnunetv2_vqseg.core.json import read_json, write_json


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `nnUNetv2_vqseg_evaluate`."""
    args = build_parser().parse_args(arguments)
    from nnunetv2_vqseg.report.case_files import dataset_name
    from nnunetv2_vqseg.report.scoring import evaluate_folder

    try:
        if args.o.suffix != ".json" or args.o.is_dir():
            raise EvaluationError(f"-o {args.o} is not the name of a .json file; give one.")
        file = args.dataset_json or raw_folder(dataset_name(args.d)) / "dataset.json"
        dataset_json = read_json(file, "point -d or --dataset-json to a nnU-Net dataset", dict)
        with explained_disk_errors():
            result = evaluate_folder(
                args.ref, args.pred, dataset_json, args.units, args.empty_convention, args.num_processes, args.chill
            )
            write_json(result, args.o)
    except UserError as error:
        raise SystemExit(f"Error: {error}") from error
    _print_summary(result)


def build_parser() -> argparse.ArgumentParser:
    """Folders, dataset and file."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_vqseg_evaluate", description="Dice, Jaccard, HD95 and ASD of predictions against references."
    )
    parser.add_argument("-ref", type=Path, required=True, help="folder with the reference segmentations")
    parser.add_argument("-pred", type=Path, required=True, help="folder with the predicted segmentations")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-d", help="dataset name or id, for its dataset.json in nnUNet_raw")
    source.add_argument("--dataset-json", type=Path, help="a dataset.json, where the dataset is not in nnUNet_raw")
    parser.add_argument("-o", type=Path, required=True, help="the .json file to write")
    parser.add_argument("--chill", action="store_true", help="score the cases that have a prediction, skip the others")
    add_scoring_arguments(parser)
    return parser


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `nnUNetv2_vqseg_evaluate` and `nnUNetv2_vqseg_compare` share."""
    parser.add_argument(
        "--units", choices=("voxel", "mm"), default="voxel", help="unit of HD95 and ASD. Default: voxel"
    )
    parser.add_argument(
        "--empty-convention",
        choices=("protocol", "literature"),
        default="protocol",
        help="protocol: an empty prediction has no surface distance and is counted; literature: its HD95 and ASD "
        "are 0, one of several variants in published code, which rewards failure. Default: protocol",
    )
    parser.add_argument(
        "-np",
        dest="num_processes",
        type=int,
        default=min(int(os.environ.get("nnUNet_def_n_proc", 8)), os.cpu_count() or 1),
        help="number of processes; 0 or 1 works in this one. Default: nnUNet_def_n_proc or 8, at most one per core",
    )


def _print_summary(result: dict[str, Any]) -> None:
    unit = result["units"]
    print(f"{'':<24}{'':>9}{'':>9}{'':>15}{'':>15}{'empty':>13}{'empty':>12}{'both':>7}")
    print(
        f"{'class':<24}{'Dice':>9}{'Jaccard':>9}{f'HD95 [{unit}]':>15}{f'ASD [{unit}]':>15}"
        f"{'prediction':>13}{'reference':>12}{'empty':>7}"
    )
    rows = [(result["classes"][key], result["mean"][key], result["empty"][key]) for key in result["mean"]]
    for name, mean, empty in [*rows, ("mean", result["foreground_mean"], {})]:
        counts = [empty.get(kind, "") for kind in ("empty_prediction", "empty_reference", "both_empty")]
        print(
            f"{name:<24}{mean['Dice']:>9.4f}{mean['Jaccard']:>9.4f}{mean['HD95']:>15.2f}{mean['ASD']:>15.2f}"
            f"{counts[0]:>13}{counts[1]:>12}{counts[2]:>7}"
        )
    for name in ("HD95", "ASD", "empty"):
        print(f"{name}: {result['definitions'][name]}")
    if result["missing_predictions"]:
        print(f"Not scored, no prediction: {', '.join(result['missing_predictions'])}")
