"""Scores a folder of predictions against a folder of references: `nnUNetv2_vqseg_evaluate`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunetv2_vqseg.core.errors import DatasetError, EvaluationError, explained_disk_errors
from nnunetv2_vqseg.core.json import read_json, write_json
from nnunetv2_vqseg.data.dataset_json import check_label_values
from nnunetv2_vqseg.report import datasets
from nnunetv2_vqseg.report.labels import EvaluationClasses, classes_from_dataset_json
from nnunetv2_vqseg.report.metrics import (
    DEFINITIONS,
    EMPTY_CONVENTIONS,
    EMPTY_DEFINITIONS,
    METRICS,
    EmptyConvention,
    score_labels,
)
from nnunetv2_vqseg.report.reading import Reader, Volume, check_same_grid, read_labels, reader_for
from nnunetv2_vqseg.report.statistics import MEAN, FoldScores, count_empty, protocol_mean, spread
from nnunetv2_vqseg.report.workers import workers

Units = Literal["voxel", "mm"]
UNITS: tuple[Units, ...] = ("voxel", "mm")
SPREAD_DEFINITION = "Standard deviation (n - 1) over the cases that have a value; null for fewer than two."


@dataclass(frozen=True)
class ScoreSettings:
    """How a case is scored; everything a worker process needs besides the two files."""

    classes: EvaluationClasses
    reader: Reader
    units: Units = "voxel"
    empty_convention: EmptyConvention = "protocol"


def read_pair(reference: Path, prediction: Path, settings: ScoreSettings) -> tuple[Volume, Volume]:
    """Reference and prediction of a case.

    Raises:
        EvaluationError: if a file cannot be read or has labels that dataset.json does not declare, or if the two do not
            lie on the same grid.
    """
    truth, guess = read_labels(reference, settings.reader), read_labels(prediction, settings.reader)
    check_same_grid(guess, truth)
    try:
        for labels in (truth, guess):
            check_label_values(labels.file, labels.voxels, settings.classes.values)
    except DatasetError as error:
        raise EvaluationError(str(error)) from error
    return truth, guess


def score_case(reference: Path, prediction: Path, settings: ScoreSettings) -> dict[str, dict[str, float]]:
    """`score_labels` for one pair of files; raises as `read_pair`."""
    truth, guess = read_pair(reference, prediction, settings)
    return score_labels(
        guess.voxels,
        truth.voxels,
        settings.classes.labels,
        settings.classes.ignore_label,
        truth.spacing if settings.units == "mm" else None,
        settings.empty_convention,
    )


def score_cases(
    pairs: Mapping[str, tuple[Path, Path]],
    settings: ScoreSettings,
    num_processes: int,
    description: str = "Scoring",
) -> FoldScores:
    """`score_case` for each case's (reference, prediction) with a progress bar; 0 or 1 processes: in this one.

    Raises:
        EvaluationError: as `score_case`, or if a process was killed.
    """
    with workers(min(num_processes, len(pairs))) as for_each:
        return for_each(score_case, {case: (*files, settings) for case, files in pairs.items()}, description)


def evaluate_folder(
    reference_dir: Path,
    prediction_dir: Path,
    dataset_json: dict[str, Any],
    units: Units = "voxel",
    empty_convention: EmptyConvention = "protocol",
    num_processes: int = 1,
    chill: bool = False,
) -> dict[str, Any]:
    """Scores of every case in `reference_dir`, laid out as nnU-Net's summary.json with a few keys more.

    Args:
        dataset_json: the content of the dataset's dataset.json.
        chill: leave out cases without a prediction (their names are in the result) where it is an error otherwise.

    Raises:
        EvaluationError: if there is nothing to score, a prediction is missing, a file cannot be read or a prediction
            does not lie on its reference's grid.
    """
    ending = datasets.file_ending(dataset_json)
    references = datasets.label_files(reference_dir, ending)
    predictions = {case: prediction_dir / f"{case}{ending}" for case in references}
    missing = [case for case, file in predictions.items() if not file.is_file()]
    if missing and (not chill or len(missing) == len(references)):
        raise EvaluationError(
            f"{prediction_dir} lacks the prediction of {len(missing)} of {len(references)} cases "
            f"({', '.join(f'{case}{ending}' for case in missing)}); predict them"
            + ("." if chill else ", or give --chill to score the others.")
        )
    pairs = {case: (file, predictions[case]) for case, file in references.items() if case not in missing}
    classes = classes_from_dataset_json(dataset_json)
    settings = ScoreSettings(
        classes, reader_for(dataset_json, next(iter(references.values()))), units, empty_convention
    )
    scores = score_cases(pairs, settings, num_processes)
    means = protocol_mean(scores, classes.keys)
    counts = count_empty({"": scores}, classes.keys)
    return {
        "metric_per_case": [
            {
                "case": case,
                "reference_file": pairs[case][0],
                "prediction_file": pairs[case][1],
                "metrics": case_scores,
            }
            for case, case_scores in scores.items()
        ],
        "mean": {key: means[key] for key in classes.keys},
        "foreground_mean": means[MEAN],
        "std": {
            key: {metric: spread(case_scores[key][metric] for case_scores in scores.values()) for metric in METRICS}
            for key in classes.keys
        },
        "empty": {key: counts[key] for key in classes.keys},
        "classes": classes.names,
        "n_cases": len(scores),
        "missing_predictions": missing,
        "units": units,
        "empty_convention": empty_convention,
        "definitions": {**DEFINITIONS, "empty": EMPTY_DEFINITIONS[empty_convention], "std": SPREAD_DEFINITION},
    }


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `nnUNetv2_vqseg_evaluate` and `nnUNetv2_vqseg_compare` share."""
    parser.add_argument("--units", choices=UNITS, default="voxel", help="unit of HD95 and ASD. Default: voxel")
    parser.add_argument(
        "--empty-convention",
        choices=EMPTY_CONVENTIONS,
        default="protocol",
        help="protocol: an empty prediction has no surface distance and is counted; literature: its HD95 and ASD "
        "are 0, one of several variants in published code, which rewards failure. Default: protocol",
    )
    parser.add_argument(
        "-np",
        type=int,
        default=min(int(os.environ.get("nnUNet_def_n_proc", 8)), os.cpu_count() or 1),
        help="number of processes; 0 or 1 works in this one. Default: nnUNet_def_n_proc or 8, at most one per core",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `nnUNetv2_vqseg_evaluate`."""
    parser = argparse.ArgumentParser(description="Dice, Jaccard, HD95 and ASD of predictions against references.")
    parser.add_argument("-ref", type=Path, required=True, help="folder with the reference segmentations")
    parser.add_argument("-pred", type=Path, required=True, help="folder with the predicted segmentations")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-d", help="dataset name or id, for its dataset.json in nnUNet_raw")
    source.add_argument("--dataset-json", type=Path, help="a dataset.json, where the dataset is not in nnUNet_raw")
    parser.add_argument("-o", type=Path, required=True, help="the .json file to write")
    parser.add_argument("--chill", action="store_true", help="score the cases that have a prediction, skip the others")
    add_scoring_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        if args.o.suffix != ".json" or args.o.is_dir():
            raise EvaluationError(f"-o {args.o} is not the name of a .json file; give one.")
        file = args.dataset_json or datasets.raw_folder(args.d) / "dataset.json"
        dataset_json = read_json(file, "point -d or --dataset-json to a nnU-Net dataset", dict)
        with explained_disk_errors():
            result = evaluate_folder(
                args.ref, args.pred, dataset_json, args.units, args.empty_convention, args.np, args.chill
            )
            write_json(result, args.o)
    except (DatasetError, EvaluationError) as error:
        raise SystemExit(f"Error: {error}") from error
    _print_summary(result)


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
