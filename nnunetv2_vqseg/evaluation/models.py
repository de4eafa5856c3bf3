"""Trained models in nnUNet_results and what their checkpoints tell about the training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_vqseg.evaluation.datasets import nnunet_folder
from nnunetv2_vqseg.evaluation.errors import EvaluationError
from nnunetv2_vqseg.evaluation.methods import Method

NNUNET_CURVES = ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice")


@dataclass(frozen=True)
class TrainedModel:
    """A method's folder `TRAINER__PLANS__CONFIGURATION` and the folds of it that are compared."""

    method: Method
    folder: Path
    folds: tuple[str, ...]
    checkpoint_name: str

    def checkpoint(self, fold: str) -> Path:
        """The file with the weights of a fold."""
        return self.folder / f"fold_{fold}" / self.checkpoint_name


@dataclass(frozen=True)
class TrainingRecord:
    """How one fold was trained. What a checkpoint does not tell is None or empty."""

    epochs: int | None = None
    iterations_per_epoch: int | None = None
    batch_size: int | None = None
    epoch_seconds: tuple[float, ...] = ()
    curves: dict[str, list[float]] = field(default_factory=dict)
    vqseg_curves: dict[str, list[float]] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    foundation_model: str | None = None
    torch_version: str | None = None
    device: str | None = None
    unreadable: str | None = None

    @property
    def steps(self) -> int | None:
        """Optimiser steps: as counted, else epochs times iterations."""
        if isinstance(self.runtime.get("steps"), int):
            return self.runtime["steps"]
        if self.epochs is None or self.iterations_per_epoch is None:
            return None
        return self.epochs * self.iterations_per_epoch


def find_models(
    dataset: str, configuration: str, methods: Sequence[Method], folds: Sequence[str], checkpoint_name: str
) -> list[TrainedModel]:
    """The trained models of `methods`, all folds of each.

    Raises:
        EvaluationError: naming the `nnUNetv2_train` command for every fold that is missing.
    """
    results = nnunet_folder("nnUNet_results")
    models, commands = [], []
    for method in methods:
        folder = results / dataset / f"{method.trainer}__{method.plans}__{configuration}"
        model = TrainedModel(method, folder, tuple(folds), checkpoint_name)
        models.append(model)
        for fold in folds:
            needed = (model.checkpoint(fold), folder / "plans.json", folder / "dataset.json")
            if all(file.is_file() for file in needed):
                continue
            begun = any((folder / f"fold_{fold}").glob("checkpoint_*.pth"))
            commands.append(
                f"nnUNetv2_train {dataset} {configuration} {fold} -tr {method.trainer} -p {method.plans}"
                + (" --c" if begun else "")
            )
    if commands:
        raise EvaluationError(
            f"{len(commands)} of {len(methods) * len(folds)} models have no {checkpoint_name} in {results / dataset}; "
            "train them first:\n  " + "\n  ".join(commands)
        )
    return models


def read_training_record(checkpoint: Path) -> TrainingRecord:
    """What the checkpoint and nnU-Net's debug.json beside it tell; never runs code from the checkpoint."""
    debug = _read_debug(checkpoint.with_name("debug.json"))
    known: dict[str, Any] = {
        "iterations_per_epoch": _as_int(debug.get("num_iterations_per_epoch")),
        "batch_size": _as_int(debug.get("batch_size")),
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
    return TrainingRecord(
        epochs=len(logging["train_losses"]) if "train_losses" in logging else None,
        epoch_seconds=tuple(float(end - start) for start, end in zip(started, ended, strict=False)),
        curves={name: _numbers(logging[name]) for name in NNUNET_CURVES if name in logging},
        vqseg_curves={str(name): _numbers(values) for name, values in (extra.get("curves") or {}).items()},
        runtime=dict(extra.get("runtime") or {}),
        config=dict(extra.get("config") or {}),
        foundation_model=None if foundation is None else str(foundation),
        **known,
    )


def _load_safely(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint with weights mapped from disk, allowing numbers of numpy beside what torch trusts."""
    import torch

    allowed: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in "?bhilBHILefd")]
    allowed.append(np.float64(0).__reduce__()[0])  # numpy 1 and 2 keep this function in different modules
    with torch.serialization.safe_globals(allowed):
        return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)


def _read_debug(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # written by nnU-Net for debugging only: a report does without
    return content if isinstance(content, dict) else {}


def _as_int(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values]
