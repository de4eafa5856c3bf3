"""Images and label maps through nnU-Net's own readers, with the grid they lie on.

Only `nnunetv2.imageio` is imported, which takes half a second and not the ten of the whole framework: worker
processes start with this module.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_vqseg.core.errors import EvaluationError, reason_of
from nnunetv2_vqseg.data.checks.images import check_file

Reader = type[BaseReaderWriter]
REMEDY = "write it again, or delete it if it is a prediction"


@dataclass(frozen=True)
class Volume:
    """Voxels `(Z, Y, X)`, their spacing in mm in that order, and the world positions `(2^d, d)` of the grid's corners.

    `corners` is None for formats that store no position.
    """

    file: Path
    voxels: np.ndarray
    spacing: tuple[float, ...]
    corners: np.ndarray | None


def read_volume(file: Path, reader: Reader, labels: bool = True) -> Volume:
    """A label map, or one channel of an image.

    Raises:
        UserError: if the file cannot be read, or if it is a label map and has several channels.
    """
    if not file.is_file():
        raise EvaluationError(f"{file} does not exist; put it there or leave its case out.")
    check_file(file, REMEDY)
    try:
        # the readers print what they think of several channels' geometry
        with contextlib.redirect_stdout(io.StringIO()):
            voxels, properties = reader().read_seg(str(file)) if labels else reader().read_images((str(file),))
    except Exception as error:  # each format's library raises its own kind
        raise EvaluationError(f"{file} cannot be read ({reason_of(error)}); it may be incomplete: {REMEDY}.") from error
    if labels and voxels.shape[0] != 1:
        raise EvaluationError(f"{file} has {voxels.shape[0]} channels, but a label map has one; write it with one.")
    return Volume(
        file, voxels[0], tuple(float(s) for s in properties["spacing"]), _corners(voxels[0].shape, properties)
    )


def check_same_grid(prediction: Volume, reference: Volume) -> None:
    """Raise EvaluationError unless both lie on the same voxels.

    Positions may differ by half a voxel: headers written by different programs round differently, a flipped or
    shifted grid is off by much more.
    """
    difference = None
    if prediction.voxels.shape != reference.voxels.shape:
        difference = f"their shapes are {prediction.voxels.shape} and {reference.voxels.shape}"
    elif not np.allclose(prediction.spacing, reference.spacing, rtol=1e-3):
        difference = f"their spacings are {_numbers(prediction.spacing)} and {_numbers(reference.spacing)}"
    elif prediction.corners is not None and reference.corners is not None:
        apart = float(np.abs(prediction.corners - reference.corners).max())
        if apart > 0.5 * min(reference.spacing):
            difference = f"origin or direction differ, their corners are up to {apart:.1f} mm apart"
    if difference:
        raise EvaluationError(
            f"{prediction.file} and {reference.file} do not lie on the same grid: {difference}; predict from the image "
            "that belongs to this reference, or resample one of them."
        )


def _corners(shape: tuple[int, ...], properties: dict[str, Any]) -> np.ndarray | None:
    """World positions of the grid's corners, or None where the format has none."""
    if "sitk_stuff" in properties:
        geometry = properties["sitk_stuff"]
        dimension = len(geometry["spacing"])
        steps = np.reshape(geometry["direction"], (dimension, dimension)) * np.asarray(geometry["spacing"])
        origin = np.asarray(geometry["origin"])
    elif "nibabel_stuff" in properties:
        geometry = properties["nibabel_stuff"]
        affine = np.asarray(geometry.get("reoriented_affine", geometry["original_affine"]))
        steps, origin = affine[:3, :3], affine[:3, 3]
    else:
        return None
    sizes = shape[::-1][: len(origin)]  # arrays are (z, y, x), positions (x, y, z)
    indices = np.array(list(itertools.product(*((0, size - 1) for size in sizes))), dtype=float)
    return indices @ steps.T + origin


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
