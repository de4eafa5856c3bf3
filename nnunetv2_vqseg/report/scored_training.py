"""One training of a comparison on its way from the checkpoint to scores."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from nnunetv2_vqseg.report.case_files import Case, Split
from nnunetv2_vqseg.report.classes import EvaluationClasses
from nnunetv2_vqseg.report.methods import Method
from nnunetv2_vqseg.report.postprocessing import Postprocessing, apply_steps, choose, describe
from nnunetv2_vqseg.report.prediction import predict_missing
from nnunetv2_vqseg.report.scoring import ScoreSettings, score_cases
from nnunetv2_vqseg.report.statistics import FoldScores, analyse_method, summarize
from nnunetv2_vqseg.report.trained_models import TrainedModel
from nnunetv2_vqseg.report.training_records import TrainingRecord, read_training_record


@dataclass(frozen=True)
class ScoredTraining:
    """One training's scores and what was scored.

    Attributes:
        predictions: the file of each case that was scored.
        scores: after postprocessing, where there is any.
        as_predicted: the scores without it.
        record: what `predict_missing` recorded.
        training: what the checkpoint tells.
        postprocessing: what was chosen; None where nobody asked for it.
    """

    model: TrainedModel
    cases: dict[str, Case]
    predictions: dict[str, Path]
    scores: FoldScores
    as_predicted: FoldScores
    record: dict[str, Any]
    training: TrainingRecord
    postprocessing: Postprocessing | None = None


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How every training of a comparison is predicted, postprocessed and scored.

    Attributes:
        output: predictions go to `predictions/DATASET/SPLIT/MODEL/FOLD` in it, postprocessing to
            `postprocessing/DATASET/MODEL/FOLD`.
        cases: of each fold, to be scored.
        validation_cases: of each fold, to choose the postprocessing; empty: no postprocessing.
    """

    dataset: str
    split: Split
    output: Path
    cases: Mapping[str, dict[str, Case]]
    validation_cases: Mapping[str, dict[str, Case]]
    settings: ScoreSettings
    ending: str
    device: str
    num_processes: int

    def score(self, model: TrainedModel) -> ScoredTraining:
        """Predict what is missing, postprocess and score.

        Raises:
            UserError: as `score_cases`.
        """
        about = f"{model.method.name}, {model.configuration}, fold {model.fold}"
        cases = self.cases[model.fold]
        predicted, record = self._predict(model, self.split, cases)
        scores = self._score(cases, predicted, about)
        scored = ScoredTraining(model, cases, predicted, scores, scores, record, read_training_record(model.checkpoint))
        if not self.validation_cases:
            return scored
        judges = self.validation_cases[model.fold]
        judged, _ = self._predict(model, "val", judges)
        folder = self.output / "postprocessing" / self.dataset / model.place
        pairs = {case: (files.reference, judged[case]) for case, files in judges.items()}
        chosen = choose(model, pairs, folder, self.settings, self.num_processes, f"Choosing for {about}")
        target = folder / self.split
        if not chosen.steps:
            shutil.rmtree(target, ignore_errors=True)  # of an earlier choice
            return replace(scored, postprocessing=chosen)
        made = {case: target / file.name for case, file in predicted.items()}
        files = {case: (file, made[case]) for case, file in predicted.items()}
        apply_steps(model, files, chosen.steps, self.num_processes, f"Postprocessing {about}")
        scores = self._score(cases, made, f"{about}, postprocessed")
        return replace(scored, predictions=made, scores=scores, postprocessing=chosen)

    def _predict(
        self, model: TrainedModel, split: Split, cases: dict[str, Case]
    ) -> tuple[dict[str, Path], dict[str, Any]]:
        folder = self.output / "predictions" / self.dataset / split / model.place
        record = predict_missing(model, cases, folder, self.ending, self.device, self.num_processes)
        return {case: folder / f"{case}{self.ending}" for case in cases}, record

    def _score(self, cases: Mapping[str, Case], predictions: Mapping[str, Path], about: str) -> FoldScores:
        pairs = {case: (files.reference, predictions[case]) for case, files in cases.items()}
        return score_cases(pairs, self.settings, self.num_processes, f"Scoring {about}")


def describe_method(
    method: Method, done: Mapping[str, ScoredTraining], classes: EvaluationClasses, patient: Callable[[str], str]
) -> dict[str, Any]:
    """What a summary says about a method: `analyse_method`, how it was trained, predicted and postprocessed.

    Args:
        done: its trainings by repetition.
    """
    found = analyse_method({key: one.scores for key, one in done.items()}, classes.keys, patient) | {
        "training": _describe_training(method, done),
        "prediction": {key: one.record for key, one in done.items()},
    }
    chosen = {key: one.postprocessing for key, one in done.items() if one.postprocessing is not None}
    if chosen:
        as_predicted = {key: one.as_predicted for key, one in done.items()}
        found["postprocessing"] = {
            "steps": {key: describe(one.steps, classes) for key, one in chosen.items()},
            "lacking": {key: [classes.names[label] for label in one.lacking] for key, one in chosen.items()},
            "as_predicted": summarize(as_predicted, classes.keys, patient),
        }
    return found


def _describe_training(method: Method, done: Mapping[str, ScoredTraining]) -> dict[str, Any]:
    """Per repetition, what its `TrainingRecord` tells but for the curves."""
    reasons = [one.training.without_alignment for one in done.values()]
    return {
        "trainer": method.trainer,
        "plans": method.plans,
        "configurations": list(method.configurations),
        "note": _note([reason for reason in reasons if reason is not None], len(reasons)),
        "folds": {
            repetition: {
                "title": _title(repetition, one),
                "configuration": one.model.configuration,
                "fold": one.model.fold,
                "epochs": one.training.epochs,
                "iterations_per_epoch": one.training.iterations_per_epoch,
                "steps": one.training.steps,
                "batch_size": one.training.batch_size,
                "images_a_step": one.training.images_a_step,
                "seconds_per_epoch": median(seconds) if seconds else None,
                "seconds": sum(seconds) if seconds else None,
                "device": one.training.device,
                "torch": one.training.torch_version,
                "foundation_model": one.training.foundation_model,
                "encoder": one.training.encoder,
                "runtime": one.training.runtime,
                "unreadable": one.training.unreadable,
            }
            for repetition, one in done.items()
            for seconds in [one.training.epoch_seconds]
        },
    }


def _note(reasons: list[str], trainings: int) -> str:
    """What a table adds to a method's name where PFA belongs to it and did not take part; else nothing."""
    if not reasons:
        return ""
    share = "" if len(reasons) == trainings else f" in {len(reasons)} of {trainings} trainings"
    return f"trained without PFA{share}: {'; '.join(sorted(set(reasons)))}"


def _title(repetition: str, scored: ScoredTraining) -> str:
    """'fold 0', or the configuration with the seed that tells it from the others, as far as that is recorded."""
    if repetition == scored.model.fold:
        return f"fold {repetition}"
    seed = scored.training.runtime.get("seed")
    return repetition if seed is None else f"{repetition}, seed {seed}"
