"""A model of ours in nnU-Net's own commands, from training to a zip file that another machine imports."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytestmark = pytest.mark.slow

MODEL = ["-tr", "nnUNetTrainerVQSeg", "-p", "nnUNetVQSegPlans"]
FOLDER = "Dataset901_Phantom/nnUNetTrainerVQSeg__nnUNetVQSegPlans__2d"


Command = Callable[..., None]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """command(name, *words): run a console script of this environment in a process of its own."""
    from real_training import console_script, finish, kill_all, start

    def run(name: str, *words: str | Path) -> None:
        log = tmp_path / name
        process = start(partial(console_script, name), *map(str, words), log=log, shortened=False)
        assert finish([process]) == [0], log.read_text(encoding="utf-8", errors="replace")

    yield run
    kill_all()


def predict(command: Command, home: Path, output: Path, *options: str) -> dict[str, np.ndarray]:
    images = home / "raw" / "Dataset901_Phantom" / "imagesTs"
    where = ["-d", "901", "-c", "2d", "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1"]
    command("nnUNetv2_predict", "-i", images, "-o", output, *where, *MODEL, *options)
    return {file.name: sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in output.glob("*.nii.gz")}


def test_nnunets_commands_work_on_a_trained_model(command: Command, home: Path, results: Path, tmp_path: Path):
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

    first = predict(command, home, tmp_path / "first", "--save_probabilities")
    assert len(first) == 2
    assert len(list((tmp_path / "first").glob("*.npz"))) == 2

    archive = tmp_path / "model.zip"
    command("nnUNetv2_export_model_to_zip", "-d", "901", "-o", archive, "-c", "2d", "-f", "0", *MODEL)
    shutil.rmtree(results / "Dataset901_Phantom")
    command("nnUNetv2_install_pretrained_model_from_zip", archive)
    second = predict(command, home, tmp_path / "second")
    assert second.keys() == first.keys()
    assert all(np.array_equal(second[name], first[name]) for name in first)
