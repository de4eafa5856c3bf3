"""Trained models in nnUNet_results and what their checkpoints tell about the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.config import VQSegConfig
from nnunetv2_vqseg.core.errors import EvaluationError
from nnunetv2_vqseg.core.json import read_object
from nnunetv2_vqseg.data.patients import some
from nnunetv2_vqseg.report.datasets import nnunet_folder
from nnunetv2_vqseg.report.methods import Method
from nnunetv2_vqseg.unpickling import trusted_numpy

RUNTIME_FILE = "runtime.json"
"""Beside the checkpoints of `nnUNetTrainerSupervised`: what nnU-Net's own checkpoints do not hold."""

NNUNET_CURVES = ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice")


@dataclass(frozen=True)
class TrainedModel:
    """A folder `TRAINER__PLANS__CONFIGURATION` of a method and the folds of it that are compared."""

    method: Method
    folder: Path
    folds: tuple[str, ...]
    checkpoint_name: str

    @property
    def configuration(self) -> str:
        """The last part of the folder's name."""
        return self.folder.name.rpartition("__")[2]

    @property
    def named_reader(self) -> dict[str, str]:
        """The plan's reader, as a dataset.json names one; empty where the plan names none."""
        name = read_object(self.folder / "plans.json").get("image_reader_writer")
        return {"overwrite_image_reader_writer": name} if isinstance(name, str) else {}

    def checkpoint(self, fold: str) -> Path:
        """The file with the weights of a fold."""
        return self.folder / f"fold_{fold}" / self.checkpoint_name


@dataclass(frozen=True)
class TrainingRecord:
    """How one fold was trained. What a checkpoint does not tell is None or empty.

    `without_alignment` says why PFA took no part in a training whose method includes it.
    """

    epochs: int | None = None
    iterations_per_epoch: int | None = None
    batch_size: int | None = None
    epoch_seconds: tuple[float, ...] = ()
    curves: dict[str, list[float]] = field(default_factory=dict)
    vqseg_curves: dict[str, list[float]] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    foundation_model: str | None = None
    without_alignment: str | None = None
    torch_version: str | None = None
    device: str | None = None
    unreadable: str | None = None

    @property
    def unlabeled_streams(self) -> int | None:
        """Views of each unlabelled image that passed the student in a step, by the stored configuration."""
        if not self.config:
            return None
        known = {item.name for item in fields(VQSegConfig)}  # a checkpoint of another version may have other keys
        return VQSegConfig().override({k: v for k, v in self.config.items() if k in known}).unlabeled_streams

    @property
    def images_a_step(self) -> list[int] | None:
        """Labelled images, then each view of unlabelled ones that passed the student; None where it is not known."""
        if self.unreadable is not None:
            return None
        if "labeled_batch_size" not in self.runtime:
            return None if self.batch_size is None else [self.batch_size]
        if self.unlabeled_streams is None:
            return None
        return [
            self.runtime["labeled_batch_size"],
            *[self.runtime.get("unlabeled_batch_size", 0)] * self.unlabeled_streams,
        ]

    @property
    def steps(self) -> int | None:
        """Optimiser steps: as counted, else epochs times iterations."""
        if isinstance(self.runtime.get("steps"), int):
            return self.runtime["steps"]
        if self.epochs is None or self.iterations_per_epoch is None:
            return None
        return self.epochs * self.iterations_per_epoch


def find_models(
    dataset: str, methods: Sequence[Method], folds: Sequence[str], checkpoint_name: str
) -> dict[Method, dict[str, tuple[TrainedModel, str]]]:
    """The trained models of `methods`: per method its repetitions, each a model and the fold of it.

    Raises:
        EvaluationError: naming the `nnUNetv2_train` command for every training that is missing.
    """
    results = nnunet_folder("nnUNet_results")
    found: dict[Method, dict[str, tuple[TrainedModel, str]]] = {method: {} for method in methods}
    commands = []
    for method in methods:
        for configuration in method.configurations:
            folder = results / dataset / f"{method.trainer}__{method.plans}__{configuration}"
            model = TrainedModel(method, folder, tuple(folds), checkpoint_name)
            for fold in folds:
                found[method][method.repetition(configuration, fold, folds)] = (model, fold)
                needed = (model.checkpoint(fold), folder / "plans.json", folder / "dataset.json")
                if all(file.is_file() for file in needed):
                    continue
                begun = any((folder / f"fold_{fold}").glob("checkpoint_*.pth"))
                commands.append(
                    f"nnUNetv2_train {dataset} {configuration} {fold} -tr {method.trainer} -p {method.plans}"
                    + (" --c" if begun else "")
                )
    if commands:
        places = [model.checkpoint(fold).parent for repeated in found.values() for model, fold in repeated.values()]
        others = {file.name for place in places for file in place.glob("checkpoint_*.pth")} - {checkpoint_name}
        problem = f"{len(commands)} of {len(places)} models have no {checkpoint_name} in {results / dataset}"
        if "checkpoint_final.pth" in others:
            raise EvaluationError(f"{problem}, but {some(sorted(others))}; correct -chk.")
        told = "".join(f"; {hint}" for hint in _other_plans(results / dataset, methods))
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


def read_training_record(checkpoint: Path) -> TrainingRecord:
    """What the checkpoint and nnU-Net's debug.json beside it tell; never runs code from the checkpoint."""
    debug = read_object(checkpoint.with_name("debug.json"))
    known: dict[str, Any] = {
        "iterations_per_epoch": _as_int(debug.get("num_iterations_per_epoch")),
        "batch_size": _batch_size(debug, checkpoint.parent.parent),
        "torch_version": debug.get("torch_version"),
        "device": debug.get("gpu_name") or debug.get("device"),
    }
    try:
        content = _load_safely(checkpoint)
    except Exception as error:  # torch raises its own kinds for what it will not unpickle
        return TrainingRecord(unreadable=f"{type(error).__name__} while reading {checkpoint.name}", **known)
    logging = content.get("logging") or {}
    started, ended = logging.get("epoch_start_timestamps", []), logging.get("epoch_end_timestamps", [])
    extra = content.get("vqseg") or {}
    foundation = extra.get("foundation_model")
    runtime = dict(extra.get("runtime") or read_object(checkpoint.with_name(RUNTIME_FILE)))
    runtime.setdefault("seed", _as_int(debug.get("_seed")))  # of nnUNetTrainerSupervised
    known["batch_size"] = runtime.pop("batch_size", known["batch_size"])
    return TrainingRecord(
        epochs=len(logging["train_losses"]) if "train_losses" in logging else None,
        epoch_seconds=tuple(float(end - start) for start, end in zip(started, ended, strict=False)),
        curves={name: _numbers(logging[name]) for name in NNUNET_CURVES if name in logging},
        vqseg_curves={str(name): _numbers(values) for name, values in (extra.get("curves") or {}).items()},
        runtime=runtime,
        config=dict(extra.get("config") or {}),
        foundation_model=None if foundation is None else str(foundation),
        without_alignment=_without_alignment(extra),
        **known,
    )


def _batch_size(debug: Mapping[str, Any], model: Path) -> int | None:
    """Images a step of nnU-Net's trainers; on several GPUs debug.json has one's share, the plan has all."""
    configurations = read_object(model / "plans.json").get("configurations", {})
    name, known = model.name.rpartition("__")[2], debug.get("batch_size")
    for _ in configurations if debug.get("is_ddp") == "True" else ():
        entry = configurations.get(name, {})
        if "batch_size" in entry:
            return int(entry["batch_size"])
        name = entry.get("inherits_from")
    return _as_int(known)


def _load_safely(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint with weights mapped from disk, allowing numbers of numpy beside what torch trusts."""
    import torch

    with trusted_numpy():
        return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)


def _without_alignment(extra: Mapping[str, Any]) -> str | None:
    config = extra.get("config") or {}
    policy = config.get("foundation_policy", "off")
    if extra.get("alignment", True) or not extra.get("method_has_alignment", policy != "off"):
        return None
    if policy == "off":
        return "foundation_policy is off"
    name = config.get("foundation_model", "")
    return f"no {'DINOv2' if 'dinov2' in name else name} weights"


def _as_int(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values]
