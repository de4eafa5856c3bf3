"""One training of a comparison on its way from the checkpoint to scores."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.report.case_files import Case, Split
from nnunetv2_vqseg.report.postprocessing import Postprocessing, apply_steps, choose
from nnunetv2_vqseg.report.prediction import predict_missing
from nnunetv2_vqseg.report.scoring import ScoreSettings, score_cases
from nnunetv2_vqseg.report.statistics import FoldScores
from nnunetv2_vqseg.report.trained_models import TrainedModel


@dataclass(frozen=True)
class ScoredTraining:
    """One training's scores and what was scored.

    Attributes:
        scores: after postprocessing, where there is any.
        as_predicted: the scores without it.
        predictions: the files that were scored.
        record: what `predict_missing` recorded.
        postprocessing: what was chosen; None where nobody asked for it.
    """

    scores: FoldScores
    as_predicted: FoldScores
    predictions: dict[str, Path]
    record: dict[str, Any]
    postprocessing: Postprocessing | None


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How every training of a comparison is predicted, postprocessed and scored.

    Attributes:
        output: predictions go to `predictions/DATASET/SPLIT/MODEL/FOLD` in it, postprocessing to
            `postprocessing/DATASET/MODEL/FOLD`.
        cases: of each fold, to be scored.
        validation_cases: of each fold, to choose the postprocessing; None: no postprocessing.
    """

    dataset: str
    split: Split
    output: Path
    cases: Mapping[str, dict[str, Case]]
    validation_cases: Mapping[str, dict[str, Case]] | None
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
        if self.validation_cases is None:
            return ScoredTraining(scores, scores, predicted, record, None)
        judges = self.validation_cases[model.fold]
        judged, _ = self._predict(model, "val", judges)
        folder = self.output / "postprocessing" / self.dataset / model.place
        pairs = {case: (files.reference, judged[case]) for case, files in judges.items()}
        chosen = choose(model, pairs, folder, self.settings, self.num_processes, f"Choosing for {about}")
        target = folder / self.split
        if not chosen.steps:
            shutil.rmtree(target, ignore_errors=True)  # of an earlier choice
            return ScoredTraining(scores, scores, predicted, record, chosen)
        made = {case: target / file.name for case, file in predicted.items()}
        files = {case: (file, made[case]) for case, file in predicted.items()}
        apply_steps(model, files, chosen.steps, self.num_processes, f"Postprocessing {about}")
        return ScoredTraining(self._score(cases, made, f"{about}, postprocessed"), scores, made, record, chosen)

    def _predict(
        self, model: TrainedModel, split: Split, cases: dict[str, Case]
    ) -> tuple[dict[str, Path], dict[str, Any]]:
        folder = self.output / "predictions" / self.dataset / split / model.place
        record = predict_missing(model, cases, folder, self.ending, self.device, self.num_processes)
        return {case: folder / f"{case}{self.ending}" for case in cases}, record

    def _score(self, cases: Mapping[str, Case], predictions: Mapping[str, Path], about: str) -> FoldScores:
        pairs = {case: (files.reference, predictions[case]) for case, files in cases.items()}
        return score_cases(pairs, self.settings, self.num_processes, f"Scoring {about}")
