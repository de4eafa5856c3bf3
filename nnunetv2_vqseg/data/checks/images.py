"""Reading an image and refusing, by name and before training, what cannot be trained on."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from PIL import Image

from nnunetv2_vqseg.core.errors import REPLACE, DatasetError, reason_of
from nnunetv2_vqseg.core.json import read_json
from nnunetv2_vqseg.data.checks.dataset_json import number_of_channels
from nnunetv2_vqseg.data.checks.gipl import check_gipl
from nnunetv2_vqseg.data.checks.nifti import check_finite, check_nifti, spacing_message
from nnunetv2_vqseg.data.side_files import data_files, spacing_file

COLOURS = {
    "P": ("a palette is read as its colours", "save it as a grey image of its values"),
    "RGBA": ("colours and transparency count", "save it without transparency"),
    "RGB": ("colours count", "save it as a grey image"),
    "L": ("it has grey values only", "save it in colour"),
}
"""Of Pillow's modes, how an image comes to have channels, and what to do where it has others than it should."""


class Grid(NamedTuple):
    """Where voxels lie: extent and spacing in mm per axis X, Y, Z.

    `placement` is the rest, as far as the reader knows it: SimpleITK's origin and direction or nibabel's affine.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    placement: np.ndarray


class CaseImage(NamedTuple):
    """One case as nnU-Net's reader gives it: (C, X, Y, Z) float32, its first file's properties, `constant` channels."""

    data: np.ndarray
    properties: dict[str, Any]
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
    images, grids, found = [], [], []
    for file in files:
        check_file(file)
        if issubclass(reader_writer_class, Tiff3DIO):
            check_spacing_file(spacing_file(Path(file), of_label=False))
        try:
            image, properties = reader_writer_class().read_images([str(file)])
        except MemoryError:
            raise
        except Exception as error:  # each format's library raises its own kind
            raise DatasetError(
                f"{file} cannot be read as an image of this dataset ({reason_of_reader(error)}); {REPLACE}."
            ) from error
        images.append(image)
        found.append(properties)
        grids.append(grid_of(image, properties))
        _check_values(file, image, grids[-1].spacing)
    channels, expected = sum(map(len, images)), number_of_channels(dataset_json)
    if channels != expected:
        kind, remedy = kind_of_channels(files[0], "split or convert the file")
        raise DatasetError(
            f"{files[0]} brings the case {case} to {channels} channels ({kind}), but dataset.json declares {expected}; "
            f"{remedy}, or remove the case."
        )
    _check_colours(files, images, dataset_json)
    warnings = []
    remedy, odd = "resample one channel to the other's grid", "check that the channels overlap"
    for file, grid in zip(files[1:], grids[1:], strict=True):
        warnings += compare_grids(file, grid, files[0], grids[0], remedy, odd)
    constant = [bool(channel.min() == channel.max()) for image in images for channel in image]
    if all(constant):
        raise DatasetError(f"{files[0]} is empty: every voxel has the value {images[0].flat[0]:g}; {REPLACE}.")
    if any(constant):
        warnings.append(f"Channel {constant.index(True)} of the case {case} is empty ({files[0]}).")
    return CaseImage(np.vstack(images), found[0], grids[0], warnings, constant)


def check_file(file: str | Path, remedy: str = REPLACE, missing: str = "restore it or remove the case") -> None:
    """Refuse a file that is missing, of zero bytes or, in NIfTI and GIPL, damaged in a way that its reader hides.

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
    for other in data_files(path):
        if not other.is_file():
            raise DatasetError(f"{other}, which {path} needs, is not there; {missing}.")
    if size == 0:
        raise DatasetError(f"{path} has zero bytes; {remedy}.")
    if path.name.lower().endswith((".nii", ".nii.gz")):
        check_nifti(path, remedy)
    elif path.name.lower().endswith(".gipl"):
        check_gipl(path, remedy)


def reason_of_reader(error: BaseException) -> str:
    """As `reason_of`, for a file that is there: MetaImage says of one that ends early that there is no such file."""
    reason = reason_of(error)
    return "its data end early or are damaged" if reason.endswith("No such file or directory") else reason


def check_spacing_file(file: Path) -> None:
    """Refuse a file with the spacing of a 3D TIFF from which nnU-Net would not read three numbers.

    Raises:
        DatasetError: it is damaged, or has something else. There need not be such a file.
    """
    example = 'write for example {"spacing": [5, 0.5, 0.5]}, slices first'
    if not file.is_file():
        return
    spacing = read_json(file, example, dict).get("spacing")
    steps = spacing if isinstance(spacing, list) else []
    if len(steps) != 3 or not all(type(step) in (int, float) and math.isfinite(step) and step > 0 for step in steps):
        shown = "nothing" if spacing is None else reprlib.repr(spacing)
        raise DatasetError(f'{file} has {shown} for "spacing" instead of three numbers above 0, in mm; {example}.')


def kind_of_channels(file: str, otherwise: str) -> tuple[str, str]:
    """How a file comes to have channels, and what to do where it has others than it should; `otherwise`: if unknown."""
    try:
        with Image.open(file) as picture:
            return COLOURS[picture.mode]
    except (OSError, KeyError):
        return "a fourth dimension counts as channels", otherwise


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
    if 0 < grid.placement.size != other.placement.size > 0:
        first, second = (file, other_file) if grid.placement.size > other.placement.size else (other_file, file)
        raise DatasetError(f"{first} is a 3D image, but {second} is 2D; write both as 2D or both as 3D.")
    if grid.shape != other.shape:
        raise DatasetError(f"{file} has the shape {grid.shape}, but {other_file} has {other.shape}; {remedy}.")
    if not np.allclose(grid.spacing, other.spacing):
        ours, theirs = (tuple(round(step, 6) for step in spacing) for spacing in (grid.spacing, other.spacing))
        raise DatasetError(f"{file} has the spacing {ours} mm, but {other_file} has {theirs}; {remedy}.")
    if not np.allclose(grid.placement, other.placement, atol=1e-4):
        return [f"{file} and {other_file} differ in origin or direction; {odd}."]
    return []


def _check_colours(files: Sequence[str], images: Sequence[np.ndarray], dataset_json: dict[str, Any]) -> None:
    """nnU-Net divides the channels named rgb_to_0_1 by 255, and fails where they hold more."""
    names = (dataset_json.get("channel_names") or dataset_json["modality"]).values()
    channels = [(file, channel) for file, image in zip(files, images, strict=True) for channel in image]
    for name, (file, channel) in zip(names, channels, strict=True):
        lowest, highest = float(channel.min()), float(channel.max())
        if name.casefold() == "rgb_to_0_1" and not 0 <= lowest <= highest <= 255:
            raise DatasetError(
                f"{file} has values from {lowest:g} to {highest:g}, but rgb_to_0_1 in dataset.json is for 0 to 255; "
                f"save it with 8 bits, or name the channel otherwise, for example rescale_to_0_1."
            )


def _check_values(file: str, image: np.ndarray, spacing: Sequence[float]) -> None:
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise DatasetError(spacing_message(file, spacing))
    if image.size == 0:
        raise DatasetError(f"{file} holds no voxel (shape {image.shape[1:]}); {REPLACE}.")
    check_finite(file, image)
