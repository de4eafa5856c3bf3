"""Raw datasets of a few tiny images, as nnU-Net wants them, for tests of data and planning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

SPACING = (1.5, 1.5, 10.0)


def write_volume(path: Path, array: np.ndarray, spacing: Sequence[float] = SPACING) -> None:
    """A NIfTI file of an (X, Y, Z) array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.diag([*spacing[: array.ndim], 1.0][:4]) if array.ndim >= 3 else None)
    image.header.set_zooms([*spacing, 1.0][: array.ndim])
    nibabel.save(image, path)


def phantom(seed: int, shape: Sequence[int] = (32, 32, 3)) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image (X, Y, Z) with a bright block, and its label."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    label[8:20, 10:22] = 1
    return (rng.normal(100, 10, shape) + 60 * label).astype(np.float32), label


def add_case(
    dataset: Path,
    folder: str,
    case: str,
    channels: int = 1,
    shape: Sequence[int] = (32, 32, 3),
    spacing: Sequence[float] = SPACING,
    seed: int | None = None,
) -> None:
    """Write the channel files of a case and, for `imagesTr`, its label."""
    seed = sum(case.encode()) if seed is None else seed
    for channel in range(channels):
        image, label = phantom(seed + 1000 * channel, shape)
        write_volume(dataset / folder / f"{case}_{channel:04d}.nii.gz", image, spacing)
    if folder == "imagesTr":
        write_volume(dataset / "labelsTr" / f"{case}.nii.gz", label, spacing)


def write_dataset_json(dataset: Path, channels: int = 1, ending: str = ".nii.gz", modality: str = "MRI") -> dict:
    """`dataset.json` for what is in `imagesTr`."""
    numbers = [path for path in (dataset / "imagesTr").iterdir() if path.name.endswith(f"_0000{ending}")]
    content = {
        "channel_names": {str(channel): modality for channel in range(channels)},
        "labels": {"background": 0, "block": 1},
        "numTraining": len(numbers),
        "file_ending": ending,
    }
    (dataset / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return content


def make_dataset(
    root: Path,
    labeled: Sequence[str] = ("A", "B"),
    unlabeled: Sequence[str] = ("U", "V"),
    channels: int = 1,
    name: str = "Dataset901_Tiny",
    modality: str = "MRI",
) -> Path:
    """`root/nnUNet_raw/DatasetXXX_Name`."""
    dataset = root / "nnUNet_raw" / name
    for case in labeled:
        add_case(dataset, "imagesTr", case, channels)
    for case in unlabeled:
        add_case(dataset, "imagesUl", case, channels)
    write_dataset_json(dataset, channels, modality=modality)
    return dataset


def tiny_plans(channels: int = 1, spacing: Sequence[float] = (1.5, 1.5), patch: int = 16, mask: bool = False) -> dict:
    """A plan as nnU-Net writes it, as far as preprocessing and loading read it."""
    resampling = {"order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "Dataset901_Tiny",
        "plans_name": "nnUNetVQSegPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): {"mean": 1.0} for channel in range(channels)},
        "configurations": {
            "2d": {
                "data_identifier": "nnUNetVQSegPlans_2d",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 8,
                "patch_size": [patch, patch],
                "spacing": list(spacing),
                "normalization_schemes": ["ZScoreNormalization"] * channels,
                "use_mask_for_norm": [mask] * channels,
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {"is_seg": False, **resampling},
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_seg_kwargs": {"is_seg": True, **resampling, "order": 1},
                "architecture": {},
            }
        },
    }
