"""Trained models in nnUNet_results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    def is_complete(self) -> bool:
        """Whether it can predict."""
        needed = (self.checkpoint, self.folder / "plans.json", self.folder / "dataset.json")
        return all(file.is_file() for file in needed)

    @property
    def place(self) -> Path:
        """Where its predictions lie among those of others."""
        return Path(self.folder.name, f"fold_{self.fold}_{self.checkpoint.stem}")


def find_models(
    dataset: str,
    methods: Sequence[Method],
    folds: Sequence[str],
    checkpoint_name: str = "checkpoint_final.pth",
    command: Callable[[Sequence[Method]], str] | None = None,
) -> dict[Method, dict[str, TrainedModel]]:
    """The trained models of `methods`: per method those of its repetitions.

    Args:
        command: what to run for other methods.

    Raises:
        EvaluationError: naming the `nnUNetv2_train` command for every training that is missing, or where all are there
            with other plans the `command` for those.
    """
    results = nnunet_folder("nnUNet_results") / dataset
    found = {method: _models(results, method, folds, checkpoint_name) for method in methods}
    models = [model for of_method in found.values() for model in of_method.values()]
    missing = [model for model in models if not model.is_complete]
    if not missing:
        return found
    others = {file.name for model in models for file in model.checkpoint.parent.glob("checkpoint_*.pth")}
    problem = f"{len(missing)} of {len(models)} models have no {checkpoint_name} in {results}"
    if "checkpoint_final.pth" in others - {checkpoint_name}:
        raise EvaluationError(f"{problem}, but {some(sorted(others - {checkpoint_name}))}; correct -chk.")
    told = problem + "".join(f"; {hint}" for hint in _other_plans(results, methods))
    there = [_where_trained(results, method, folds, checkpoint_name) for method in methods]
    if command is not None and None not in there:
        raise EvaluationError(f"{told}; run:\n  {command([method for method in there if method is not None])}")
    raise EvaluationError(f"{told}; train them first:\n  " + "\n  ".join(dict.fromkeys(map(_training, missing))))


def _models(results: Path, method: Method, folds: Sequence[str], checkpoint_name: str) -> dict[str, TrainedModel]:
    """By repetition, whether they are there or not."""
    return {
        method.repetition(configuration, fold, folds): TrainedModel(
            method, results / f"{method.trainer}__{method.plans}__{configuration}", fold, checkpoint_name
        )
        for configuration in method.configurations
        for fold in folds
    }


def _training(model: TrainedModel) -> str:
    """The command that trains it, or trains it on."""
    begun = any(model.checkpoint.parent.glob("checkpoint_*.pth"))
    return (
        f"nnUNetv2_train {model.folder.parent.name} {model.configuration} {model.fold} -tr {model.method.trainer} "
        f"-p {model.method.plans}" + (" --c" if begun else "")
    )


def _where_trained(results: Path, method: Method, folds: Sequence[str], checkpoint_name: str) -> Method | None:
    """The method with the plans with which all its models are there: its own, or the only others."""

    def complete(one: Method) -> bool:
        return all(model.is_complete for model in _models(results, one, folds, checkpoint_name).values())

    plans = {folder.name.split("__")[1] for folder in results.glob(f"{method.trainer}__*__*")}
    others = [other for name in sorted(plans) if complete(other := replace(method, plans=name))]
    if method in others:
        return method
    return others[0] if len(others) == 1 else None


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
