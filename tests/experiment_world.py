"""A home of the experiment runner without nnU-Net: trainings are made by a small script."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import experiment_answer as answer  # noqa: E402, F401
import experiment_figures as figures  # noqa: E402, F401
import experiment_files as files  # noqa: E402
import experiment_page as page  # noqa: E402, F401
import experiment_results as results  # noqa: E402, F401
import run_experiment as runner  # noqa: E402

VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")

# Stands in for nnunetv2_vqseg.train. Without --c it waits until it is told to stop or to `go`, as a training that takes
# long; with --c it ends at once.
TRAINER = """
import json, pathlib, signal, sys, time
fold, mode = pathlib.Path(sys.argv[1]), sys.argv[2]
with (fold / "starts.txt").open("a") as file:
    file.write(" ".join(sys.argv[3:]) + "\\n")

def stop(number, frame):
    (fold / "checkpoint_latest.pth").write_text("saved")
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
(fold / "ready").touch()
while mode == "slow" and "--c" not in sys.argv and not (fold / "go").exists():
    time.sleep(0.02)
if mode == "broken":
    sys.exit(3)
(fold / "checkpoint_final.pth").write_text("no weights")
(fold / "validation").mkdir()
(fold / "validation" / "summary.json").write_text("{}")
"""


def use_fake_trainer(home: Path, monkeypatch: pytest.MonkeyPatch, mode: str = "quick") -> None:
    """Train with `TRAINER` in `home`, where the data count as prepared.

    Args:
        mode: "quick", "slow" or "broken".
    """
    script = home / "trainer.py"
    script.write_text(TRAINER, encoding="utf-8")
    for name in VARIABLES:
        monkeypatch.setenv(name, str(home / name))
    original = getattr(runner, "_original_command", runner.training_command)
    monkeypatch.setattr(runner, "_original_command", original, raising=False)
    monkeypatch.setattr(
        runner,
        "training_command",
        lambda training, device: [str(script), str(training.fold), mode, *original(training, device)],
    )
    monkeypatch.setattr(runner, "prepare_all", lambda *arguments: None)


def wait_for(file: Path) -> None:
    """Until `file` exists; fails after two minutes."""
    for _ in range(6000):
        if file.exists():
            return
        time.sleep(0.02)
    pytest.fail(f"{file} was not written")


def record_of(training: files.Training) -> dict:
    return json.loads((training.fold / "experiment.json").read_text(encoding="utf-8"))


def starts_of(training: files.Training) -> list[str]:
    return (training.fold / "starts.txt").read_text(encoding="utf-8").splitlines()


def finish(home: Path, training: files.Training, dice: float, splits: tuple[str, ...] = ("val",)) -> None:
    """A finished training whose patients all have this Dice, give or take a little, and one empty prediction."""
    raw = home / "nnUNet_raw" / training.dataset
    raw.mkdir(parents=True, exist_ok=True)
    labels = {"background": 0, "RV": 1, "LV": 2}
    (raw / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}), encoding="utf-8")
    (training.fold / "validation").mkdir(parents=True)
    (training.fold / "checkpoint_final.pth").write_text("no weights", encoding="utf-8")
    (training.fold / "validation" / "summary.json").write_text("{}", encoding="utf-8")
    add_scores(training, dice, splits)


def add_scores(training: files.Training, dice: float, splits: tuple[str, ...]) -> None:
    cases = {}
    for patient in range(4):
        row = {"Dice": dice + patient / 100, "Jaccard": 0.5, "HD95": 12.5, "ASD": 3.25, "n_pred": 5, "n_ref": 5}
        lost = row | {"HD95": None, "ASD": None, "n_pred": 0} if patient == 0 else row
        cases[f"patient00{patient}_frame01"] = {"1": row, "2": lost}
    for split in splits:
        (training.fold / f"experiment_scores_{split}.json").write_text(json.dumps(cases), encoding="utf-8")
