"""What is kept of a finished training, beside the pages, so that they can be written again without the training.

A training's weights stay in the folder of the experiments; one small JSON file goes beside the pages: scores of each
case, last values of the curves, configuration, commits and machines. Pages are made of these files alone, whichever
machine and experiment made the training.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from experiment_files import ExperimentError, Training

from nnunetv2_vqseg.core.json import read_json, write_json
from nnunetv2_vqseg.data.readers import find_reader
from nnunetv2_vqseg.report.case_files import test_cases, validation_cases
from nnunetv2_vqseg.report.classes import classes_from_dataset_json
from nnunetv2_vqseg.report.methods import Method
from nnunetv2_vqseg.report.postprocessing import apply_steps, choose, describe
from nnunetv2_vqseg.report.prediction import predict_missing
from nnunetv2_vqseg.report.scoring import ScoreSettings, score_cases
from nnunetv2_vqseg.report.trained_models import TrainedModel
from nnunetv2_vqseg.report.training_records import read_training_record
from nnunetv2_vqseg.trainer.stopping import EXIT_INTERRUPTED

CaseScores = Mapping[str, Any]  # case -> scores
SEALED = "sealed"
"""In place of a split's name: scores of the test cases that are to be shown to nobody yet."""


@dataclass(frozen=True)
class Result:
    """A finished training. What is not known of it is None or empty.

    Attributes:
        classes: key of a class in the scores -> its name.
        scores: of the cases of each split that was scored; `SEALED` stands for a test that was not read.
        config: whole configuration that it was trained with; empty for nnU-Net's own trainer.
        last_values: of its curves.
        steps: optimiser steps, those repeated after an interruption counted too.
        images_a_step: see `TrainingRecord.images_a_step`.
        seconds: of wall time.
        epochs: `seconds` of each and nnU-Net's online `dice` at its end.
        postprocessed: `steps` in words, as nnU-Net chooses them on the validation cases, and `scores` after them.
    """

    classes: Mapping[str, str]
    scores: Mapping[str, CaseScores]
    config: Mapping[str, Any] = field(default_factory=dict)
    last_values: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    images_a_step: list[int] | None = None
    seconds: float | None = None
    epochs: Mapping[str, list[float]] = field(default_factory=dict)
    postprocessed: Mapping[str, Any] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    machines: list[dict[str, Any]] = field(default_factory=list)


def nobody(training: Training) -> bool:
    return False


def gather(
    trainings: Iterable[Training],
    folder: Path,
    may_test: Callable[[Training], bool],
    device: str,
    num_processes: int,
    may_seal: Callable[[Training], bool] = nobody,
) -> dict[Training, Result]:
    """Results of all trainings that are finished or were kept; the former are kept too, instead of an older one.

    What is missing here of a training that was kept, such as the scores of its test cases, stays kept.

    Args:
        folder: of the kept results.
        may_test: whether scores of the test cases that are not there yet are to be computed, and sealed ones opened.
        may_seal: whether they are to be computed and sealed.

    Raises:
        ExperimentError: a training had other values than the same run would have today.
    """
    found = {}
    for training in trainings:
        file = kept_file(folder, training)
        if training.done:
            if may_test(training):
                open_scores(training)
            tested = may_test(training) or _has_scores(training, "test")
            sealed = not tested and (may_seal(training) or _has_scores(training, SEALED))
            splits = [*(["test"] if tested else []), "val", *([SEALED] if sealed else [])]
            result = read_finished(training, splits, device, num_processes)
            if file.is_file():
                result = completed(result, read_kept(file))
            check_defaults(training, result.config)
            write_json(asdict(result), file)
        elif file.is_file():
            result = read_kept(file)
            check_defaults(training, result.config)
            if may_test(training) and SEALED in result.scores:
                result = result_opened(result)
                write_json(asdict(result), file)
        else:
            continue
        found[training] = result
    return found


def result_opened(result: Result) -> Result:
    """The result with the test in place of what was sealed."""
    return replace(
        result,
        scores=opened(result.scores),
        postprocessed={
            name: opened(value) if name == "scores" else value for name, value in result.postprocessed.items()
        },
    )


def opened(scores: Mapping[str, CaseScores]) -> dict[str, CaseScores]:
    """Scores with the test in place of what was sealed."""
    return {"test" if split == SEALED else split: cases for split, cases in scores.items()}


def open_scores(training: Training) -> None:
    """Let the sealed scores in a training's folder be those of the test."""
    if _has_scores(training, SEALED) and not _has_scores(training, "test"):
        _scores_file(training, SEALED).rename(_scores_file(training, "test"))


def kept_file(folder: Path, training: Training) -> Path:
    return folder / training.dataset / f"{training.folder.name}.json"


def read_kept(file: Path) -> Result:
    """The result in a kept file.

    Raises:
        ExperimentError: the file is of another version.
    """
    remedy = "delete it, or take it back from git"
    try:
        result = Result(**read_json(file, remedy, dict))
    except TypeError as error:
        raise ExperimentError(f"{file} is not a training's result as this version keeps them; {remedy}.") from error
    postprocessed = dict(result.postprocessed)
    if postprocessed:
        postprocessed["scores"] = splits_with_nan(postprocessed["scores"])
    return replace(
        result,
        scores=splits_with_nan(result.scores),
        last_values=null_as_nan(result.last_values),
        epochs={name: list(null_as_nan(dict(enumerate(values))).values()) for name, values in result.epochs.items()},
        postprocessed=postprocessed,
    )


def splits_with_nan(scores: Mapping[str, CaseScores]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    return {split: {case: with_nan(values) for case, values in cases.items()} for split, cases in scores.items()}


def completed(result: Result, kept: Result) -> Result:
    """`result`, with what only the kept result of the same training knows."""

    def identity(one: Result) -> tuple[object, ...]:
        return one.commits, one.seconds, json.dumps(one.scores["val"], sort_keys=True)

    if identity(result) != identity(kept):
        return result
    scores = {**kept.scores, **result.scores}
    if "test" in scores:
        scores.pop(SEALED, None)
    return replace(
        result,
        scores=scores,
        config=result.config or kept.config,
        last_values=result.last_values or kept.last_values,
        steps=kept.steps if result.steps is None else result.steps,
        images_a_step=result.images_a_step or kept.images_a_step,
        epochs=result.epochs or kept.epochs,
        postprocessed=result.postprocessed or kept.postprocessed,
    )


def read_finished(training: Training, splits: Iterable[str], device: str, num_processes: int) -> Result:
    """The result of a training in its folder; scores that are not stored there are computed."""
    scores = {split: score(training, split, device, num_processes) for split in splits}
    record, notes = read_training_record(training.fold / "checkpoint_final.pth"), read_record(training)
    return Result(
        classes=dict(classes_from_dataset_json(_raw(training)[1]).names),
        scores=scores,
        config=record.config,
        last_values={name: values[-1] for name, values in record.vqseg_curves.items() if values},
        steps=record.steps,
        images_a_step=record.images_a_step,
        seconds=notes["seconds"],
        epochs={"seconds": list(record.epoch_seconds), "dice": record.curves.get("mean_fg_dice", [])},
        postprocessed=postprocess(training, list(scores), num_processes),
        commits=notes["commits"],
        machines=notes["machines"],
    )


def read_record(training: Training) -> dict[str, Any]:
    """What the runner noted about a training: commits, machines, seconds so far, exit code of the last attempt."""
    file = training.fold / "experiment.json"
    record = read_json(file, "delete it", dict) if file.is_file() else {}
    return {"commits": [], "machines": [], "seconds": None, "exit_code": None} | record


def has_failed(training: Training) -> bool:
    """The last attempt ended otherwise than by finishing or by being stopped."""
    return not training.done and read_record(training)["exit_code"] not in (None, EXIT_INTERRUPTED)


def _scores_file(training: Training, split: str) -> Path:
    return training.fold / f"experiment_scores_{split}.json"


def stored_scores(training: Training, split: str) -> Path | None:
    """The file with a finished training's scores, None where they are older than its weights or not there.

    Weights that were deleted have no younger scores.
    """
    file, weights = _scores_file(training, split), training.fold / "checkpoint_final.pth"
    if not file.is_file():
        return None
    return None if weights.is_file() and file.stat().st_mtime_ns < weights.stat().st_mtime_ns else file


def _has_scores(training: Training, split: str) -> bool:
    return stored_scores(training, split) is not None


def score(training: Training, split: str, device: str, num_processes: int) -> dict[str, Any]:
    """Scores of a finished training's validation or test cases (also those of `SEALED`), computed once."""
    stored = stored_scores(training, split)
    if stored is not None:
        return {case: with_nan(scores) for case, scores in read_json(stored, "delete it", dict).items()}
    raw, dataset_json = _raw(training)
    if split != "val":
        cases, folder = test_cases(raw, dataset_json), training.fold / "test"
        predict_missing(_model(training), cases, folder, dataset_json["file_ending"], device, num_processes)
    pairs = _cases_and_predictions(training, split)
    classes = classes_from_dataset_json(dataset_json)
    settings = ScoreSettings(classes, find_reader(dataset_json, [next(iter(pairs.values()))[0]]))
    scores = score_cases(pairs, settings, num_processes, f"{training.run.name}, seed {training.seed}")
    write_json(scores, _scores_file(training, split))
    return dict(scores)


def postprocess(training: Training, splits: Sequence[str], num_processes: int) -> dict[str, Any]:
    """What nnU-Net's postprocessing makes of a training's predictions, computed once; empty where those are gone."""
    stored = training.fold / "experiment_postprocessed.json"
    if stored.is_file() and stored.stat().st_mtime_ns >= (training.fold / "validation").stat().st_mtime_ns:
        found = read_json(stored, "delete it", dict)
        if "test" in splits:
            found["scores"] = opened(found["scores"])
        if set(splits) <= set(found["scores"]):
            return found | {"scores": splits_with_nan(found["scores"])}
    _, dataset_json = _raw(training)
    if not any((training.fold / "validation").glob(f"*{dataset_json.get('file_ending')}")):
        return {}
    classes = classes_from_dataset_json(dataset_json)
    cases = {split: _cases_and_predictions(training, split) for split in splits}
    if not all(prediction.is_file() for pairs in cases.values() for _, prediction in pairs.values()):
        return {}
    settings = ScoreSettings(classes, find_reader(dataset_json, [next(iter(cases["val"].values()))[0]]))
    model, scores = _model(training), {}
    with tempfile.TemporaryDirectory() as scratch:
        steps = choose(model, cases["val"], Path(scratch, "chosen"), settings, num_processes).steps
        for split, pairs in cases.items():
            if steps:
                moved = {case: (file, Path(scratch, split, file.name)) for case, (_, file) in pairs.items()}
                apply_steps(model, moved, steps, num_processes)
                pairs = {case: (pairs[case][0], target) for case, (_, target) in moved.items()}
            scores[split] = dict(score_cases(pairs, settings, num_processes, f"{training.run.name}, postprocessed"))
    found = {"steps": describe(steps, classes), "scores": scores}
    write_json(found, stored)
    return found


def _cases_and_predictions(training: Training, split: str) -> dict[str, tuple[Path, Path]]:
    """Reference and prediction of each case of a split, the latter whether it is there or not."""
    raw, dataset_json = _raw(training)
    cases = validation_cases(raw, dataset_json, "0") if split == "val" else test_cases(raw, dataset_json)
    folder, ending = training.fold / ("validation" if split == "val" else "test"), dataset_json["file_ending"]
    return {case: (files.reference, folder / f"{case}{ending}") for case, files in cases.items()}


def _model(training: Training) -> TrainedModel:
    return TrainedModel(Method(training.run.name, training.run.trainer, training.run.plans), training.folder, "0")


def _raw(training: Training) -> tuple[Path, dict[str, Any]]:
    raw = Path(os.environ["nnUNet_raw"]) / training.dataset
    return raw, read_json(raw / "dataset.json", "convert the dataset again", dict)


def with_nan(scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """A case's scores as JSON has them, with NaN for null."""
    return {key: null_as_nan(values) for key, values in scores.items()}


def null_as_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    """Values as JSON has them, with NaN for null."""
    return {name: float("nan") if value is None else value for name, value in values.items()}


def check_defaults(training: Training, trained_with: Mapping[str, Any]) -> None:
    """A folder is named by the settings that differ from the trainer's; those may have changed since.

    Args:
        trained_with: the whole configuration that the checkpoint names; empty for nnU-Net's own trainer.

    Raises:
        ExperimentError: the same run would train with other values today.
    """
    if changed := training.config.changed_since(trained_with):
        raise ExperimentError(
            f"{training.fold} was trained with other defaults ({'; '.join(changed.values())}); name the old value in "
            "the experiment and the folder after it, or move the folder away and train again."
        )
