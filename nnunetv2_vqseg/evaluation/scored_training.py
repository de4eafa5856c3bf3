"""One training of a comparison on its way from the checkpoint to scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.evaluation.datasets import Case, Split
from nnunetv2_vqseg.evaluation.evaluate import ScoreSettings, score_cases
from nnunetv2_vqseg.evaluation.models import TrainedModel
from nnunetv2_vqseg.evaluation.postprocessing import Steps, apply_steps, chosen_steps
from nnunetv2_vqseg.evaluation.prediction import predict_missing
from nnunetv2_vqseg.evaluation.statistics import FoldScores


@dataclass(frozen=True)
class ScoredTraining:
    """One training's scores, what was scored, and what it is compared with in the report.

    Attributes:
        scores: after postprocessing, where there is any.
        as_predicted: the scores without it.
        files: of each case its own and the prediction that was scored.
        prediction: what `predict_missing` recorded.
        steps: the postprocessing.
    """

    scores: FoldScores
    as_predicted: FoldScores
    files: dict[str, tuple[Case, Path]]
    prediction: dict[str, Any]
    steps: Steps


@dataclass(frozen=True)
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
    cases: Mapping[str, Mapping[str, Case]]
    validation_cases: Mapping[str, Mapping[str, Case]] | None
    settings: ScoreSettings
    ending: str
    device: str
    num_processes: int

    def score(self, model: TrainedModel, fold: str) -> ScoredTraining:
        """Predict what is missing, postprocess and score.

        Raises:
            EvaluationError: as `score_cases`.
        """
        about = f"{model.method.name}, {model.configuration}, fold {fold}"
        predicted, prediction = self._predict(model, fold, self.split, self.cases[fold])
        as_predicted = self._score(
            fold, predicted, about if self.validation_cases is None else f"{about}, as predicted"
        )
        place, scores, steps = predicted, as_predicted, []
        if self.validation_cases is not None:
            judges = self.validation_cases[fold]
            judged, _ = self._predict(model, fold, "val", judges)
            folder = self.output / "postprocessing" / self.dataset / _training_folder(model, fold)
            steps = chosen_steps(model, judges, judged, folder, self.ending, self.num_processes)
            if steps:
                place = folder / self.split
                apply_steps(model, self.cases[fold], predicted, place, self.ending, steps)
                scores = self._score(fold, place, f"{about}, postprocessed")
        files = {case: (known, place / f"{case}{self.ending}") for case, known in self.cases[fold].items()}
        return ScoredTraining(scores, as_predicted, files, prediction, steps)

    def _predict(
        self, model: TrainedModel, fold: str, split: Split, cases: Mapping[str, Case]
    ) -> tuple[Path, dict[str, Any]]:
        folder = self.output / "predictions" / self.dataset / split / _training_folder(model, fold)
        return folder, predict_missing(model, fold, dict(cases), folder, self.ending, self.device, self.num_processes)

    def _score(self, fold: str, folder: Path, about: str) -> FoldScores:
        pairs = {case: (known.reference, folder / f"{case}{self.ending}") for case, known in self.cases[fold].items()}
        return score_cases(pairs, self.settings, self.num_processes, f"Scoring {about}")


def _training_folder(model: TrainedModel, fold: str) -> Path:
    return Path(model.folder.name, f"fold_{fold}_{Path(model.checkpoint_name).stem}")
