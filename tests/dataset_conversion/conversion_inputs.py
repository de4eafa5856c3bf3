"""Small volumes and patients for the converters to read."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE = (3, 12, 10)  # slices, height, width
SPACING = (1.5, 1.5, 10.0)


def write_volume(path: Path, array: np.ndarray, spacing: tuple[float, ...] = SPACING) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=False)
    image.SetSpacing(spacing[: array.ndim] + (1.0,) * (array.ndim - 3))
    sitk.WriteImage(image, str(path))


def remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def random_image(seed: int, size: tuple[int, ...] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, size).astype(np.int16)


def heart_label() -> np.ndarray:
    label = np.zeros(SIZE, np.uint8)
    label[:, 2:5, 2:8], label[:, 5:7, 2:8], label[:, 7:9, 2:8] = 1, 2, 3
    return label


def write_patient(folder: Path, frames: tuple[int, int]) -> None:
    name = folder.name
    for frame in frames:
        stem = f"{name}_frame{frame:02d}"
        write_volume(folder / f"{stem}.nii.gz", random_image(int(name[7:]) * 100 + frame))
        write_volume(folder / f"{stem}_gt.nii.gz", heart_label())
