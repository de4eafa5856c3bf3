"""Reading an image and refusing, by name and before training, what cannot be trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from nnunetv2_vqseg.core.errors import REPLACE, DatasetError, reason_of
from nnunetv2_vqseg.data.checks.dataset_json import number_of_channels
from nnunetv2_vqseg.data.checks.nifti import check_finite, check_nifti, spacing_message


class Grid(NamedTuple):
    """Where voxels lie: extent and spacing in mm per axis X, Y, Z.

    `placement` is the rest, as far as the reader knows it: SimpleITK's origin and direction or nibabel's affine.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    placement: np.ndarray


class CaseImage(NamedTuple):
    """One case as nnU-Net's reader gives it: (C, X, Y, Z) float32; `constant` channels have one value only."""

    data: np.ndarray
    grid: Grid
    warnings: list[str]
    constant: list[bool]


def read_case(case: str, files: Sequence[str], dataset_json: dict, reader_writer_class: Any) -> CaseImage:
    """Read all channels of one case and check them.

    The files are read one by one, although nnU-Net's readers take them together, so that a message can name the one
    that is wrong.

    Raises:
        DatasetError: a file is unreadable, truncated, empty, constant, holds NaN or Inf, has another grid than the
            first, or the channels are not as many as dataset.json declares.
    """
    images, grids = [], []
    for file in files:
        check_file(file)
        try:
            image, properties = reader_writer_class().read_images([str(file)])
        except MemoryError:
            raise
        except Exception as error:  # each format's library raises its own kind
            raise DatasetError(
                f"{file} cannot be read as an image of this dataset ({reason_of(error)}); {REPLACE}."
            ) from error
        images.append(image)
        grids.append(grid_of(image, properties))
        _check_values(file, image, grids[-1].spacing)
    channels, expected = sum(map(len, images)), number_of_channels(dataset_json)
    if channels != expected:
        raise DatasetError(
            f"{files[0]} brings the case {case} to {channels} channels (a fourth dimension counts as channels), but "
            f"dataset.json declares {expected}; split or convert the file, or remove the case."
        )
    warnings = []
    remedy, odd = "resample one channel to the other's grid", "check that the channels overlap"
    for file, grid in zip(files[1:], grids[1:], strict=True):
        warnings += compare_grids(file, grid, files[0], grids[0], remedy, odd)
    constant = [bool(channel.min() == channel.max()) for image in images for channel in image]
    if all(constant):
        raise DatasetError(f"{files[0]} is empty: every voxel has the value {images[0].flat[0]:g}; {REPLACE}.")
    if any(constant):
        warnings.append(f"Channel {constant.index(True)} of the case {case} is empty ({files[0]}).")
    return CaseImage(np.vstack(images), grids[0], warnings, constant)


def check_file(file: str | Path, remedy: str = REPLACE, missing: str = "restore it or remove the case") -> None:
    """Refuse a file that is missing, of zero bytes or, where it is NIfTI, damaged in a way that its reader would hide.

    Args:
        remedy: what to do about a file that cannot be used, the end of the sentence.
        missing: the same for a file that is not there or may not be read.

    Raises:
        DatasetError: it is.
    """
    path = Path(file)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DatasetError(f"{path} cannot be opened ({error.strerror}); {missing}.") from error
    if size == 0:
        raise DatasetError(f"{path} has zero bytes; {remedy}.")
    if path.name.lower().endswith((".nii", ".nii.gz")):
        check_nifti(path, remedy)


def grid_of(image: np.ndarray, properties: dict[str, Any]) -> Grid:
    """The grid of (C, X, Y, Z), from what nnU-Net's reader returns beside the voxels."""
    itk = properties.get("sitk_stuff")
    if itk:
        placement = np.concatenate([np.ravel(itk["origin"]), np.ravel(itk["direction"])])
    else:
        placement = np.ravel(properties.get("nibabel_stuff", {}).get("original_affine", ()))
    spacing = cast("tuple[float, float, float]", tuple(float(step) for step in properties["spacing"]))
    return Grid(image.shape[1:], spacing, placement)


def compare_grids(file: str, grid: Grid, other_file: str, other: Grid, remedy: str, odd: str) -> list[str]:
    """Shape and spacing must agree; origin and direction should, as in nnU-Net.

    Args:
        remedy: what to do where they do not, the end of the sentence.
        odd: what to do about origin and direction.

    Returns:
        A sentence where origin or direction differ.

    Raises:
        DatasetError: shape or spacing differ.
    """
    if grid.shape != other.shape:
        raise DatasetError(f"{file} has the shape {grid.shape}, but {other_file} has {other.shape}; {remedy}.")
    if not np.allclose(grid.spacing, other.spacing):
        ours, theirs = (tuple(round(step, 6) for step in spacing) for spacing in (grid.spacing, other.spacing))
        raise DatasetError(f"{file} has the spacing {ours} mm, but {other_file} has {theirs}; {remedy}.")
    if not np.allclose(grid.placement, other.placement, atol=1e-4):
        return [f"{file} and {other_file} differ in origin or direction; {odd}."]
    return []


def _check_values(file: str, image: np.ndarray, spacing: Sequence[float]) -> None:
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise DatasetError(spacing_message(file, spacing))
    if image.size == 0:
        raise DatasetError(f"{file} holds no voxel (shape {image.shape[1:]}); {REPLACE}.")
    check_finite(file, image)
