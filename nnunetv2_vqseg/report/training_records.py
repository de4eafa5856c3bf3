"""What checkpoints tell about their trainings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.json import read_object
from nnunetv2_vqseg.core.unpickling import numbers_of_numpy

RUNTIME_FILE = "runtime.json"
"""Beside checkpoints that are nnU-Net's own: what those do not hold."""

NNUNET_CURVES = ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice")


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
    panels: dict[str, list[str]] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    foundation_model: str | None = None
    encoder: str | None = None
    without_alignment: str | None = None
    torch_version: str | None = None
    device: str | None = None
    unreadable: str | None = None

    @property
    def images_a_step(self) -> list[int] | None:
        """Labelled images, then each view of unlabelled ones that passed the student; None where it is not known.

        By the runtime's `images_a_step`, or where a checkpoint has none, by its configuration.
        """
        if self.unreadable is not None:
            return None
        if "images_a_step" in self.runtime:
            return list(self.runtime["images_a_step"])
        if "labeled_batch_size" not in self.runtime:
            return None if self.batch_size is None else [self.batch_size]
        if not self.config:
            return None
        asked = {"use_unlabeled": True, "strong_view": False, "perturbation": "qpm", "reconstruct": False} | self.config
        views = bool(asked["strong_view"]) + (asked["perturbation"] != "none" or bool(asked["reconstruct"]))
        unlabeled = [self.runtime.get("unlabeled_batch_size", 0)] * views if asked["use_unlabeled"] else []
        return [self.runtime["labeled_batch_size"], *unlabeled]

    @property
    def steps(self) -> int | None:
        """Optimiser steps: as counted, else epochs times iterations."""
        if isinstance(self.runtime.get("steps"), int):
            return self.runtime["steps"]
        if self.epochs is None or self.iterations_per_epoch is None:
            return None
        return self.epochs * self.iterations_per_epoch


def read_training_record(checkpoint: Path) -> TrainingRecord:
    """What the checkpoint and nnU-Net's debug.json beside it tell; never runs code from the checkpoint."""
    import torch

    debug = read_object(checkpoint.with_name("debug.json"))
    known: dict[str, Any] = {
        "iterations_per_epoch": _as_int(debug.get("num_iterations_per_epoch")),
        "batch_size": _batch_size(debug, checkpoint.parent.parent),
        "torch_version": debug.get("torch_version"),
        "device": debug.get("gpu_name") or debug.get("device"),
    }
    try:  # mapped from disk, with numbers of numpy beside what torch trusts
        with torch.serialization.safe_globals(numbers_of_numpy()):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises its own kinds for what it will not unpickle
        return TrainingRecord(unreadable=f"{type(error).__name__} while reading {checkpoint.name}", **known)
    logging = content.get("logging") or {}
    started, ended = logging.get("epoch_start_timestamps", []), logging.get("epoch_end_timestamps", [])
    extra = content.get("vqseg") or {}
    foundation, encoder = extra.get("foundation_model"), extra.get("encoder")
    runtime = dict(extra.get("runtime") or read_object(checkpoint.with_name(RUNTIME_FILE)))
    runtime.setdefault("seed", _as_int(debug.get("_seed")))  # of nnUNetTrainerSupervised
    known["batch_size"] = runtime.pop("batch_size", known["batch_size"])
    return TrainingRecord(
        epochs=len(logging["train_losses"]) if "train_losses" in logging else None,
        epoch_seconds=tuple(float(end - start) for start, end in zip(started, ended, strict=False)),
        curves={name: _numbers(logging[name]) for name in NNUNET_CURVES if name in logging},
        vqseg_curves={str(name): _numbers(values) for name, values in (extra.get("curves") or {}).items()},
        panels={str(title): list(map(str, names)) for title, names in (extra.get("panels") or {}).items()},
        runtime=runtime,
        config=dict(extra.get("config") or {}),
        foundation_model=None if foundation is None else str(foundation),
        encoder=None if encoder is None else str(encoder),
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
