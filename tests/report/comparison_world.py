"""A small world in nnU-Net's folders: raw data, two trained models with two folds, a predictor that errs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_vqseg.report import prediction

DATASET = "Dataset901_Phantom"
TRAINERS = ("nnUNetTrainer", "nnUNetTrainerVQSeg")
DATASET_JSON = {
    "channel_names": {"0": "MR <b>T1</b>"},
    "labels": {"background": 0, "RV & <wall>": 1, "LV": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def write_volume(array: np.ndarray, file: Path, spacing=(1.5, 1.5, 10.0), origin=(0.0, 0.0, 0.0)) -> None:
    """Write `(Z, Y, X)`; spacing and origin in x, y, z."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(file))


def phantom(seed: int, shape=(4, 64, 56)) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels: a bright disc in a ring, moved a little by the seed."""
    generator = np.random.default_rng(seed)
    rows, columns = np.ogrid[: shape[1], : shape[2]]
    distance = np.hypot(rows - 30 - seed % 3, columns - 28 + seed % 4)
    labels = np.zeros(shape, dtype=np.uint8)
    for index in range(shape[0]):
        labels[index][distance < 14 - 2 * index] = 1
        labels[index][distance < 8 - index] = 2
    image = 80.0 * (labels == 1) + 140.0 * (labels == 2) + generator.normal(40, 12, shape)
    return image.astype(np.float32), labels


def fake_prediction(labels: np.ndarray, shift: int) -> np.ndarray:
    """The reference moved along x: the larger the shift, the worse."""
    return np.roll(labels, shift, axis=2)


def build_world(folder: Path) -> None:
    """Raw data, splits and trained models below `folder`."""
    raw = folder / "raw" / DATASET
    names = [f"patient{number:03d}_frame{frame:02d}" for number in range(1, 8) for frame in (1, 9)]
    for index, name in enumerate(names):
        image, labels = phantom(index)
        write_volume(image, raw / "imagesTs" / f"{name}_0000.nii.gz")
        write_volume(labels, raw / "labelsTs" / f"{name}.nii.gz")
    for index in range(4):
        image, labels = phantom(100 + index)
        write_volume(image, raw / "imagesTr" / f"case{index}_0000.nii.gz")
        write_volume(labels, raw / "labelsTr" / f"case{index}.nii.gz")
    (raw / "dataset.json").write_text(json.dumps(DATASET_JSON), encoding="utf-8")
    splits = [
        {"train": ["case0", "case1"], "val": ["case2", "case3"]},
        {"train": ["case2", "case3"], "val": ["case0", "case1"]},
    ]
    (folder / "preprocessed" / DATASET).mkdir(parents=True)
    (folder / "preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")
    for trainer in TRAINERS:
        add_trainings(folder, trainer, "2d")


def add_trainings(folder: Path, trainer: str, configuration: str, folds=(0, 1), **vqseg) -> None:
    """Trained models of a configuration; `vqseg` goes into what our trainers save."""
    model = folder / "results" / DATASET / f"{trainer}__nnUNetPlans__{configuration}"
    for fold in folds:
        save_model(model / f"fold_{fold}", trainer, fold, **vqseg)
    for name in ("plans.json", "dataset.json"):
        (model / name).write_text("{}", encoding="utf-8")


def save_model(folder: Path, trainer: str, fold: int, epochs: int = 6, **vqseg) -> None:
    """A checkpoint as nnU-Net and, for VQSeg, our trainers write it, and nnU-Net's debug.json."""
    import torch

    folder.mkdir(parents=True)
    logging = {
        "train_losses": [np.float32(1 / (epoch + 1 + fold)) for epoch in range(epochs)],
        "val_losses": [1.2 / (epoch + 1) for epoch in range(epochs)],
        "mean_fg_dice": [np.float64(epoch / 10) for epoch in range(epochs)],
        "ema_fg_dice": [np.float64(epoch / 11) for epoch in range(epochs)],
        "epoch_start_timestamps": [1000.0 + 30 * epoch for epoch in range(epochs)],
        "epoch_end_timestamps": [1025.0 + 30 * epoch for epoch in range(epochs)],
    }
    content = {"network_weights": {"w": torch.zeros(3)}, "logging": logging, "trainer_name": trainer}
    debug = {"num_iterations_per_epoch": "25", "batch_size": "8", "device": "cpu"}
    if trainer.endswith("VQSeg"):
        debug["num_iterations_per_epoch"] = "20"
        content["vqseg"] = {
            "curves": {
                "supervised": [1.0, 0.8, 0.7, 0.6, 0.5, 0.45],
                "vq": [0.5, 0.3, 0.2, 0.2, 0.15, 0.1],
                "kept_share": [0.1, 0.4, 0.6, 0.7, 0.8, 0.8],
                "utilization": [0.2, 0.5, 0.8, 0.9, 0.92, 0.93],
                "utilization_tokens": [97000.0] * epochs,
                "something_new": [1.0] * epochs,
                "alignment": [float("nan")] * epochs,
            },
            "runtime": {
                "steps": 120,
                "labeled_batch_size": 8,
                "unlabeled_batch_size": 4,
                "peak_gpu_memory_bytes": 3 * 2**30,
                "host": "<script>alert(1)</script>",
            },
            "foundation_model": "Trained without a foundation model: <no weights> were found.",
            "alignment": False,
            "config": {"use_unlabeled": True, "strong_view": True, "perturbation": "qpm", "foundation_policy": "off"},
        } | vqseg
    torch.save(content, folder / "checkpoint_final.pth")
    (folder / "debug.json").write_text(json.dumps(debug), encoding="utf-8")


def set_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point nnU-Net's three variables at `folder`."""
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(folder / variable))


def enter_world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, list[str]]]:
    """`set_folders`, and replace nnU-Net's predictor; returns the list of the predictor's calls.

    VQSeg errs by a pixel or two, stock by four or five; stock's first case lacks class 2 in fold 0.
    """
    set_folders(folder, monkeypatch)
    calls = []

    def predict(model, cases, output, device, num_processes):
        calls.append((model.method.trainer, model.fold, sorted(cases)))
        for index, (case, files) in enumerate(cases.items()):
            reference = sitk.ReadImage(str(files.reference))
            labels = sitk.GetArrayFromImage(reference)
            better = model.method.trainer == TRAINERS[1]
            guess = fake_prediction(labels, (1 if better else 4) + index % 2 + int(model.fold))
            if not better and model.fold == "0" and index == 0:
                guess[guess == 2] = 0
            image = sitk.GetImageFromArray(guess)
            image.CopyInformation(reference)
            sitk.WriteImage(image, str(output / f"{case}.nii.gz"))

    monkeypatch.setattr(prediction, "run_predictor", predict)
    return calls
