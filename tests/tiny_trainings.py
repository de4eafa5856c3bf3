"""Fixtures: a tiny phantom dataset, planned and preprocessed once, and trainers on it.

A folder of tests imports those that it uses into its conftest.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from quick_nnunet import few_samples

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from small_plan import shrink  # noqa: E402

DATASET = "Dataset901_Phantom"
TINY = {
    "num_epochs": 2,
    "iterations_per_epoch": 3,
    "val_iterations_per_epoch": 2,
    "save_every": 1,
    "labeled_batch_size": 2,
    "unlabeled_batch_size": 2,
    "num_codes": 64,
    "qpm_perplexity": 4,
    "qpm_neighbors": 8,
    "min_tokens": 8,
    "foundation_policy": "off",
    "confidence_threshold": 0.3,
    "seed": 0,
}


FOLDERS = ("raw", "preprocessed", "results")
Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, once: Once) -> Path:
    """nnU-Net's three folders with a planned and preprocessed phantom dataset, this process's own."""
    home = tmp_path_factory.mktemp("nnunet") / "home"
    return Path(shutil.copytree(once("planned_phantoms", make_home), home))


def variables(home: Path) -> dict[str, str]:
    """nnU-Net's variables that name the folders of this home."""
    return {f"nnUNet_{name}": str(home / name) for name in FOLDERS}


def make_home(home: Path) -> None:
    """A phantom dataset, planned and preprocessed."""
    for name in FOLDERS:
        (home / name).mkdir()
    sizes = ["--labeled", "2", "--unlabeled", "2", "--val", "1", "--test", "1", "--size", "48", "56"]
    command = [sys.executable, ROOT / "scripts/make_phantoms.py", *sizes]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | variables(home))
    plan_tiny(home, DATASET)


def plan_tiny(home: Path, dataset: str) -> Path:
    """Plan with 32 x 32 patches and a few features, as a user may edit it, and preprocess; the preprocessed folder."""
    from nnunetv2_vqseg.commands.plan import main

    with pytest.MonkeyPatch.context() as patch:
        few_samples(patch)
        for name, folder in variables(home).items():
            patch.setenv(name, folder)
        main(["-d", str(int(dataset[7:10])), "-np", "1", "-npfp", "1", "--no_pbar"])
    file = home / "preprocessed" / dataset / "nnUNetVQSegPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    shrink(plans, patch=32, features=8, max_features=16, convs=1)
    plans["configurations"]["2d"]["vqseg"] = dict(TINY)
    file.write_text(json.dumps(plans), encoding="utf-8")
    return file.parent


@pytest.fixture(scope="session")
def plan_dataset(home: Path) -> Callable[[str], Path]:
    """plan_dataset(name) -> the preprocessed folder of another raw dataset, planned as tiny as the first."""
    return lambda dataset: plan_tiny(home, dataset)


@pytest.fixture
def results(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty results folder; nnU-Net's variables name it and the home's other two."""
    for name, path in variables(home).items():
        monkeypatch.setenv(name, path)
    folder = home / "results"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


@pytest.fixture
def make_trainer(home: Path, results: Path) -> Callable[..., Any]:
    """make_trainer(name, continue_training, device, plans_name, **keys of the vqseg block) -> an nnU-Net trainer."""

    def make(
        name: str = "nnUNetTrainerVQSeg",
        continue_training: bool = False,
        device: str = "cpu",
        plans_name: str = "nnUNetVQSegPlans",
        **block: Any,
    ) -> Any:
        import torch
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        preprocessed = home / "preprocessed" / DATASET
        plans = json.loads((preprocessed / f"{plans_name}.json").read_text(encoding="utf-8"))
        plans["configurations"]["2d"]["vqseg"].update(block)
        plans["continue_training"] = continue_training
        dataset_json = json.loads((preprocessed / "dataset.json").read_text(encoding="utf-8"))
        trainer_class = recursive_find_trainer_class_by_name(name)
        return trainer_class(plans, "2d", 0, dataset_json, device=torch.device(device))

    return make


@pytest.fixture
def trained(home: Path, once: Once, make_trainer: Callable[..., Any]) -> Path:
    """The fold's folder of a finished `make_trainer()`: trained once a run, copied into the results of each test."""

    def train(folder: Path) -> None:
        trainer = make_trainer()
        trainer.run_training()
        shutil.copytree(home / "results", folder, dirs_exist_ok=True)

    shutil.copytree(once("trained_phantoms", train), home / "results", dirs_exist_ok=True)
    (fold,) = (home / "results" / DATASET).glob("*/fold_0")
    return fold


@pytest.fixture(autouse=True)
def without_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take half of a tiny training; tests that look at them have the marker `plots`."""
    if request.node.get_closest_marker("plots") is not None:
        return
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    from nnunetv2_vqseg.trainer.curves import EpochCurves
    from nnunetv2_vqseg.trainer.trainer import MethodTrainer

    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda self, output_folder: None)
    monkeypatch.setattr(EpochCurves, "plot", lambda self, filename: None)
    monkeypatch.setattr(MethodTrainer, "_draw_preview", lambda self: None)
