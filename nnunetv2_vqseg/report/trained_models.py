"""Trained models in nnUNet_results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_vqseg.core.errors import EvaluationError, some
from nnunetv2_vqseg.core.folders import nnunet_folder
from nnunetv2_vqseg.core.json import read_object
from nnunetv2_vqseg.report.methods import Method


@dataclass(frozen=True)
class TrainedModel:
    """A fold of a method in its folder `TRAINER__PLANS__CONFIGURATION`."""

    method: Method
    folder: Path
    fold: str
    checkpoint_name: str = "checkpoint_final.pth"

    @property
    def configuration(self) -> str:
        """The last part of the folder's name."""
        return self.folder.name.rpartition("__")[2]

    @property
    def named_reader(self) -> dict[str, str]:
        """The plan's reader, as a dataset.json names one; empty where the plan names none."""
        name = read_object(self.folder / "plans.json").get("image_reader_writer")
        return {"overwrite_image_reader_writer": name} if isinstance(name, str) else {}

    @property
    def checkpoint(self) -> Path:
        """The file with the weights."""
        return self.folder / f"fold_{self.fold}" / self.checkpoint_name

    @property
    def place(self) -> Path:
        """Where its predictions lie among those of others."""
        return Path(self.folder.name, f"fold_{self.fold}_{self.checkpoint.stem}")


def find_models(
    dataset: str, methods: Sequence[Method], folds: Sequence[str], checkpoint_name: str = "checkpoint_final.pth"
) -> dict[Method, dict[str, TrainedModel]]:
    """The trained models of `methods`: per method those of its repetitions.

    Raises:
        EvaluationError: naming the `nnUNetv2_train` command for every training that is missing.
    """
    results = nnunet_folder("nnUNet_results") / dataset
    found: dict[Method, dict[str, TrainedModel]] = {method: {} for method in methods}
    commands = []
    for method in methods:
        for configuration in method.configurations:
            folder = results / f"{method.trainer}__{method.plans}__{configuration}"
            for fold in folds:
                model = TrainedModel(method, folder, fold, checkpoint_name)
                found[method][method.repetition(configuration, fold, folds)] = model
                needed = (model.checkpoint, folder / "plans.json", folder / "dataset.json")
                if not all(file.is_file() for file in needed):
                    begun = any(model.checkpoint.parent.glob("checkpoint_*.pth"))
                    commands.append(
                        f"nnUNetv2_train {dataset} {configuration} {fold} -tr {method.trainer} -p {method.plans}"
                        + (" --c" if begun else "")
                    )
    if commands:
        places = [model.checkpoint.parent for models in found.values() for model in models.values()]
        others = {file.name for place in places for file in place.glob("checkpoint_*.pth")} - {checkpoint_name}
        problem = f"{len(commands)} of {len(places)} models have no {checkpoint_name} in {results}"
        if "checkpoint_final.pth" in others:
            raise EvaluationError(f"{problem}, but {some(sorted(others))}; correct -chk.")
        told = "".join(f"; {hint}" for hint in _other_plans(results, methods))
        raise EvaluationError(f"{problem}{told}; train them first:\n  " + "\n  ".join(dict.fromkeys(commands)))
    return found


def _other_plans(results: Path, methods: Sequence[Method]) -> list[str]:
    """A hint for each method that was trained in all its configurations, but with other plans."""
    hints = []
    for method in methods:
        trained = [
            {folder.name.split("__")[1] for folder in results.glob(f"{method.trainer}__*__{configuration}")}
            for configuration in method.configurations
        ]
        others = set.intersection(*trained) - {method.plans}
        if others and not any(method.plans in plans for plans in trained):
            hints.append(f"{method.trainer} was trained with -p {', '.join(sorted(others))}")
    return hints
