"""The commands that users run, in this process, and what they say where they refuse."""

from __future__ import annotations

import contextlib
import ctypes
import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from Dataset027_ACDC import main as convert_acdc
from nnunetv2.experiment_planning import plan_and_preprocess_api
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.run.run_training import run_training_entry
from worlds import PLANS, World, tame_plan

from nnunetv2_vqseg.commands.evaluate import main as evaluate_main
from nnunetv2_vqseg.commands.plan import main as plan_main
from nnunetv2_vqseg.commands.split import main as split_main
from nnunetv2_vqseg.commands.train import main as train_main
from nnunetv2_vqseg.core.errors import ConfigError, DatasetError, PlansError
from nnunetv2_vqseg.trainers import nnUNetTrainerVQSeg

REFUSALS = (ConfigError, DatasetError, PlansError, NotImplementedError)


class Started(Exception):
    """Training has begun: everything that comes before went well."""


class InlinePool:
    """`multiprocessing.Pool` without processes, each of which would import nnU-Net for 10 s."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._pool: list[Any] = []

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def starmap(self, function: Callable[..., Any], arguments: Iterable[tuple]) -> list[Any]:
        return [function(*values) for values in arguments]

    def starmap_async(self, function: Callable[..., Any], arguments: Iterable[tuple]) -> Done:
        return Done(self.starmap(function, arguments))


class Done:
    """A result that is there."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def ready(self) -> bool:
        return True

    def get(self) -> Any:
        return self.value


class InlineContext:
    """What `multiprocessing.get_context("spawn")` returns to nnU-Net."""

    Pool = InlinePool


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Take from nnU-Net what costs time and decides nothing here: processes, waiting, 10^8 samples, many threads."""
    get_context, analyze = multiprocessing.get_context, DatasetFingerprintExtractor.analyze_case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunetv2.utilities.utils.Pool", InlinePool)
        patch.setattr(
            multiprocessing,
            "get_context",
            lambda method=None: InlineContext if method == "spawn" else get_context(method),
        )
        for module in (
            "experiment_planning.dataset_fingerprint.fingerprint_extractor",
            "preprocessing.preprocessors.default_preprocessor",
        ):
            patch.setattr(f"nnunetv2.{module}.sleep", lambda seconds: None)
        patch.setattr(
            DatasetFingerprintExtractor,
            "analyze_case",
            staticmethod(lambda *arguments: analyze(*arguments[:3], num_samples=100)),
        )
        patch.setattr(torch, "set_num_threads", lambda number: None)
        patch.setattr(nnUNetTrainerVQSeg, "on_epoch_start", _one_step)
        patch.setattr(nnUNetTrainerVQSeg, "plot_network_architecture", lambda self: None)
        yield


def _one_step(trainer: nnUNetTrainerVQSeg) -> None:
    trainer.on_train_epoch_start()
    loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
    assert torch.isfinite(torch.tensor(loss))
    next(trainer.dataloader_val)
    raise Started


def plan(world: World, *options: str) -> None:
    """`nnUNetv2_vqseg_plan_and_preprocess`."""
    plan_main(["-d", "901", "-np", "1", "-npfp", "1", "--no_pbar", *options])


def train(world: World, *options: str) -> None:
    """`python -m nnunetv2_vqseg.train`, up to and with the first step."""
    arguments = ["901", "2d", "0", "-device", "cpu"] if not options or options[0].startswith("-") else []
    train_main([*arguments, *options])


def nnunet_train(world: World, *options: str) -> None:
    """`nnUNetv2_train`, up to and with the first step; what refuses is our trainer."""
    with pytest.MonkeyPatch.context() as patch:
        plans = [] if "-p" in options else ["-p", PLANS]
        patch.setattr(
            sys,
            "argv",
            ["nnUNetv2_train", "901", "2d", "0", "-tr", "nnUNetTrainerVQSeg", "-device", "cpu", *plans, *options],
        )
        run_training_entry()


def nnunet_train_without_gpu(world: World, *options: str) -> None:
    """`nnUNetv2_train`, as typed, on a machine without GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        nnunet_train(world, "-device", "cuda", *options)


def split(world: World, *options: str) -> None:
    """`nnUNetv2_vqseg_split`."""
    split_main(["-d", "901", "--labeled", "1", "--val", "1", *options])


def evaluate(world: World, *options: str) -> None:
    """`nnUNetv2_vqseg_evaluate`."""
    if "-o" not in options:
        options = (*options, "-o", str(world.root / "scores.json"))
    folders = ["-ref", str(world.raw / "labelsTr"), "-pred", str(world.root / "predictions")]
    evaluate_main([*folders, "-d", "901", "-np", "1", *options])


def convert(world: World, *options: str) -> None:
    """`python dataset_conversion/Dataset027_ACDC.py`."""
    convert_acdc(["-i", str(world.root / "acdc"), "-np", "1", *options])


def stock_plan(world: World) -> None:
    """nnU-Net's own planning and preprocessing: `nnUNetv2_plan_and_preprocess -d 901 -c 2d`."""
    plan_and_preprocess_api.extract_fingerprints(
        [901], num_processes=1, clean=False, verbose=False, show_progress_bar=False
    )
    plan_and_preprocess_api.plan_experiments([901])
    plan_and_preprocess_api.preprocess([901], configurations=["2d"], num_processes=[1], show_progress_bar=False)
    tame_plan(world, "nnUNetPlans")


class Said(NamedTuple):
    """The sentence with which a command refuses, without 'Error:', None where it works; and its warnings."""

    message: str | None
    warnings: list[str]


def said_by(command: Callable[..., None], world: World, *options: str) -> Said:
    """Run a command."""
    printed = io.StringIO()
    with world.environment(), in_this_process(), contextlib.redirect_stdout(printed):
        message = _refusal(command, world, options)
    lines = printed.getvalue().splitlines()
    return Said(message, [line.removeprefix("WARNING: ") for line in lines if line.startswith("WARNING: ")])


def _refusal(command: Callable[..., None], world: World, options: Sequence[str]) -> str | None:
    output = io.StringIO()
    # nnU-Net's own command shows what our trainer raises as the last line of a traceback.
    refusals = (SystemExit, *REFUSALS) if command in (nnunet_train, nnunet_train_without_gpu) else (SystemExit,)
    try:
        with contextlib.redirect_stderr(output):
            command(world, *options)
    except Started:
        return None
    except refusals as error:
        stop = error
    else:
        return None
    if isinstance(stop, SystemExit) and isinstance(stop.code, int):
        assert stop.code != 0
        return output.getvalue().rpartition("ERROR: ")[2].removesuffix("\n")  # after warnings and progress
    return str(stop).removeprefix("Error: ")


@contextlib.contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Folders and all in them without permission to write, for root too."""
    paths = [path for folder in folders for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(modes[path] & 0o555)
    try:
        with _obeying_permissions():
            yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextlib.contextmanager
def _obeying_permissions() -> Iterator[None]:
    """Root passes over permissions because it has CAP_DAC_OVERRIDE; do without it for a while."""
    if os.geteuid() != 0:
        yield
        return
    libc, header, capabilities = ctypes.CDLL(None), _Header(0x20080522, 0), (_Capabilities * 2)()
    assert libc.capget(ctypes.byref(header), capabilities) == 0
    before = capabilities[0].effective
    capabilities[0].effective = before & ~0b10
    assert libc.capset(ctypes.byref(header), capabilities) == 0
    try:
        yield
    finally:
        capabilities[0].effective = before
        assert libc.capset(ctypes.byref(header), capabilities) == 0
