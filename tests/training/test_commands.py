"""A model of ours in nnU-Net's own commands, from training to a zip file that another machine imports."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytestmark = pytest.mark.slow

MODEL = ["-tr", "nnUNetTrainerVQSeg", "-p", "nnUNetVQSegPlans"]
FOLDER = "Dataset901_Phantom/nnUNetTrainerVQSeg__nnUNetVQSegPlans__2d"


def command(name: str, *words: str | Path) -> str:
    """Run a console script of this environment; its output."""
    environment = {**os.environ, "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    script = Path(sys.executable).parent / name
    done = subprocess.run(
        [sys.executable, script, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def predict(home: Path, output: Path, *options: str) -> dict[str, np.ndarray]:
    images = home / "raw" / "Dataset901_Phantom" / "imagesTs"
    where = ["-d", "901", "-c", "2d", "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1"]
    command("nnUNetv2_predict", "-i", images, "-o", output, *where, *MODEL, *options)
    return {file.name: sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in output.glob("*.nii.gz")}


def test_nnunets_commands_work_on_a_trained_model(home: Path, results: Path, tmp_path: Path):
    train = ["901", "2d", "0", *MODEL, "-device", "cpu"]
    command("nnUNetv2_train", *train, "--npz")
    fold = results / FOLDER / "fold_0"
    scored = json.loads((fold / "validation/summary.json").read_text(encoding="utf-8"))["foreground_mean"]["Dice"]
    assert list((fold / "validation").glob("*.npz"))

    shutil.rmtree(fold / "validation")
    command("nnUNetv2_train", *train, "--val", "--npz")
    again = json.loads((fold / "validation/summary.json").read_text(encoding="utf-8"))["foreground_mean"]["Dice"]
    assert again == pytest.approx(scored, abs=1e-3)
    probabilities = next((fold / "validation").glob("*.npz"))
    assert np.load(probabilities)["probabilities"].shape[0] == 4

    command("nnUNetv2_find_best_configuration", "901", "-c", "2d", "-f", "0", "-np", "1", *MODEL)
    best = json.loads((results / "Dataset901_Phantom/inference_information.json").read_text(encoding="utf-8"))
    assert best["best_model_or_ensemble"]["selected_model_or_models"][0]["trainer"] == "nnUNetTrainerVQSeg"

    first = predict(home, tmp_path / "first", "--save_probabilities")
    assert len(first) == 2
    assert len(list((tmp_path / "first").glob("*.npz"))) == 2

    archive = tmp_path / "model.zip"
    command("nnUNetv2_export_model_to_zip", "-d", "901", "-o", archive, "-c", "2d", "-f", "0", *MODEL)
    shutil.rmtree(results / "Dataset901_Phantom")
    command("nnUNetv2_install_pretrained_model_from_zip", archive)
    second = predict(home, tmp_path / "second")
    assert second.keys() == first.keys()
    assert all(np.array_equal(second[name], first[name]) for name in first)
