"""Scores of predictions against references, case by case or for a whole folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from nnunetv2_vqseg.core.errors import EvaluationError, UserError
from nnunetv2_vqseg.core.pools import Workers, workers
from nnunetv2_vqseg.data.checks.dataset_json import check_label_values
from nnunetv2_vqseg.data.readers import find_reader
from nnunetv2_vqseg.report.case_files import file_ending, label_files
from nnunetv2_vqseg.report.classes import EvaluationClasses, classes_from_dataset_json
from nnunetv2_vqseg.report.metrics import DEFINITIONS, EMPTY_DEFINITIONS, METRICS, EmptyConvention, score_labels
from nnunetv2_vqseg.report.statistics import MEAN, FoldScores, count_empty, protocol_mean, spread
from nnunetv2_vqseg.report.volumes import Reader, Volume, check_same_grid, read_volume

Units = Literal["voxel", "mm"]
FEWER_PROCESSES = "with -np"
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
        UserError: if a file cannot be read or has labels that dataset.json does not declare, or if the two do not lie
            on the same grid.
    """
    truth, guess = read_volume(reference, settings.reader), read_volume(prediction, settings.reader)
    check_same_grid(guess, truth)
    for labels in (truth, guess):
        check_label_values(labels.file, labels.voxels, settings.classes.values)
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
        UserError: as `score_case`, or if a process was killed.
    """
    with workers(min(num_processes, len(pairs)), FEWER_PROCESSES) as work:
        return results(work, score_case, {case: (*files, settings) for case, files in pairs.items()}, description)


def results(
    work: Workers, function: Callable[..., Any], arguments: Mapping[str, tuple], description: str
) -> dict[str, Any]:
    """The result of `function` for each case, with a progress bar; the first UserError is raised here."""
    found = {}
    for case, outcome in tqdm(work(function, arguments), desc=description, total=len(arguments), unit="case"):
        if isinstance(outcome, UserError):
            raise outcome
        found[case] = outcome
    return {case: found[case] for case in arguments}


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
        UserError: if there is nothing to score, a prediction is missing, a file cannot be read or a prediction does
            not lie on its reference's grid.
    """
    ending = file_ending(dataset_json)
    references = label_files(reference_dir, ending)
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
    reader = find_reader(dataset_json, [next(iter(references.values()))])
    scores = score_cases(pairs, ScoreSettings(classes, reader, units, empty_convention), num_processes)
    means, counts = protocol_mean(scores, classes.keys), count_empty({"": scores}, classes.keys)
    return {
        "metric_per_case": [
            {"case": case, "reference_file": pairs[case][0], "prediction_file": pairs[case][1], "metrics": of_case}
            for case, of_case in scores.items()
        ],
        "mean": {key: means[key] for key in classes.keys},
        "foreground_mean": means[MEAN],
        "std": {
            key: {metric: spread(of_case[key][metric] for of_case in scores.values()) for metric in METRICS}
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
