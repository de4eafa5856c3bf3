"""Reading medical volumes with every check that saves a failure an hour into training."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_vqseg.core.errors import REPLACE, DatasetError
from nnunetv2_vqseg.data.checks.images import check_file


def read_volume(path: Path) -> sitk.Image:
    """Read a 3D scalar image from a file (NIfTI, NRRD, MHA, ...) or from a folder with one DICOM series.

    Raises:
        DatasetError: unreadable, truncated, not 3D, not scalar, NaN or infinite.
    """
    if path.is_dir():
        image = _read_dicom_series(path)
    else:
        check_file(path)
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise DatasetError(f"{path} cannot be read: {_reason(error)}; {REPLACE}.") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise DatasetError(
            f"{path} has {image.GetDimension()} dimensions and {image.GetNumberOfComponentsPerPixel()} values per "
            "voxel; give one 3D image with one value per voxel."
        )
    if not np.isfinite(sitk.GetArrayViewFromImage(image)).all():
        raise DatasetError(f"{path} contains NaN or infinite values; replace them before converting.")
    return image


def read_image(path: Path) -> sitk.Image:
    """Read an image to segment: as `read_volume`, and not the same value everywhere.

    Raises:
        DatasetError: also for an empty image.
    """
    image = read_volume(path)
    array = sitk.GetArrayViewFromImage(image)
    if array.min() == array.max():
        raise DatasetError(f"{path} is empty: every voxel is {array.flat[0]}; leave the case out or replace the file.")
    return image


def label_values(path: Path, label: sitk.Image) -> list[int]:
    """Sorted values of a label map.

    Raises:
        DatasetError: a value is not a whole number.
    """
    values = np.unique(sitk.GetArrayViewFromImage(label))
    if not np.array_equal(values, np.round(values)):
        raise DatasetError(f"{path} has values between whole numbers, so it is not a label map; replace it.")
    return [int(value) for value in values]


def grid_difference(image: sitk.Image, label: sitk.Image) -> str:
    """How two grids differ, in words; empty if the voxels coincide to within a hundredth of a voxel at every corner."""
    if image.GetSize() != label.GetSize():
        return f"has {_by(label.GetSize())} voxels where the image has {_by(image.GetSize())}"
    if not np.allclose(image.GetSpacing(), label.GetSpacing(), rtol=1e-3):
        return f"has spacing {_by(label.GetSpacing())} mm where the image has {_by(image.GetSpacing())} mm"
    corners = [
        [axis * (size - 1) for axis, size in zip(bits, image.GetSize(), strict=True)] for bits in np.ndindex(2, 2, 2)
    ]
    moved = max(
        math.dist(image.TransformIndexToPhysicalPoint(corner), label.TransformIndexToPhysicalPoint(corner))
        for corner in corners
    )
    if moved > 0.01 * min(image.GetSpacing()):
        return f"lies up to {moved:.2f} mm away from the image (origin or direction differ)"
    return ""


def _by(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def _read_dicom_series(folder: Path) -> sitk.Image:
    """Read the only DICOM series found in a folder or below it, in units of the rescaled values (HU for CT)."""
    reader = sitk.ImageSeriesReader()
    reader.SetGlobalWarningDisplay(False)  # what it would print becomes an error below
    subfolders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    series = [(place, uid) for place in subfolders for uid in reader.GetGDCMSeriesIDs(str(place))]
    if len(series) != 1:
        found = f"{len(series)} DICOM series" if series else "no DICOM series"
        raise DatasetError(f"{folder} holds {found}; put exactly one series into the folder of a case.")
    place, uid = series[0]
    files = reader.GetGDCMSeriesFileNames(str(place), uid)
    there = [path for path in place.iterdir() if path.suffix.lower() == ".dcm" and not path.name.startswith(".")]
    strays = {str(path) for path in there} - set(files)
    if strays:
        raise DatasetError(f"{min(strays)} is damaged or of another kind than the files beside it; export it again.")
    reader.SetFileNames(files)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise DatasetError(f"The DICOM series in {place} cannot be read: {_reason(error)}.") from None
    if image.HasMetaDataKey("ITK_non_uniform_sampling_deviation"):
        raise DatasetError(f"The DICOM series in {place} has missing or unevenly spaced slices; export it again.")
    return image


def _reason(error: Exception) -> str:
    """The telling line of an exception, whose ITK form runs over several lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = next((line for line in lines if "ERROR" in line), lines[0] if lines else type(error).__name__)
    return re.sub(r".*ERROR: *|\(0x\w+\)", "", telling).rstrip(".: ")
