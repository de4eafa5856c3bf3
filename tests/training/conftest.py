"""A tiny phantom dataset, planned and preprocessed once, and trainers on it."""

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

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net's three folders with a planned and preprocessed phantom dataset."""
    home = tmp_path_factory.mktemp("nnunet")
    paths = {f"nnUNet_{name}": str(home / name) for name in ("raw", "preprocessed", "results")}
    for path in paths.values():
        Path(path).mkdir()
    before = {name: os.environ.get(name) for name in paths}
    os.environ.update(paths)
    sizes = ["--labeled", "2", "--unlabeled", "2", "--val", "1", "--test", "1", "--size", "48", "56"]
    subprocess.run([sys.executable, ROOT / "scripts/make_phantoms.py", *sizes], check=True, capture_output=True)
    plan_tiny(home, DATASET)
    yield home
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


def plan_tiny(home: Path, dataset: str) -> Path:
    """Plan with 32 x 32 patches and a few features, as a user may edit it, and preprocess; the preprocessed folder."""
    from nnunetv2_vqseg.commands.plan import main

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
def results(home: Path) -> Iterator[Path]:
    """An empty results folder."""
    folder = home / "results"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


@pytest.fixture
def make_trainer(home: Path, results: Path) -> Callable[..., Any]:
    """make_trainer(name, continue_training=False, **keys of the vqseg block) -> an nnU-Net trainer on the CPU."""

    def make(name: str = "nnUNetTrainerVQSeg", continue_training: bool = False, **block: Any) -> Any:
        import torch
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        preprocessed = home / "preprocessed" / DATASET
        plans = json.loads((preprocessed / "nnUNetVQSegPlans.json").read_text(encoding="utf-8"))
        plans["configurations"]["2d"]["vqseg"].update(block)
        plans["continue_training"] = continue_training
        dataset_json = json.loads((preprocessed / "dataset.json").read_text(encoding="utf-8"))
        trainer_class = recursive_find_trainer_class_by_name(name)
        return trainer_class(plans, "2d", 0, dataset_json, device=torch.device("cpu"))

    return make
