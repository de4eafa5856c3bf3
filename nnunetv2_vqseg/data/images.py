"""Reading an image and refusing, by name and before training, what cannot be trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from nnunetv2_vqseg.core.errors import REPLACE, DatasetError, reason_of
from nnunetv2_vqseg.core.pools import for_each_case
from nnunetv2_vqseg.data.nifti import check_nifti, spacing_message

if TYPE_CHECKING:
    from nnunetv2_vqseg.data.cases import UnlabeledCases


class CaseImage(NamedTuple):
    """One case as nnU-Net's reader gives it: (C, X, Y, Z) float32, spacing in mm per axis X, Y, Z.

    `placement` says where the grid lies, as far as the reader knows: SimpleITK's origin and direction or nibabel's
    affine.
    """

    data: np.ndarray
    spacing: tuple[float, float, float]
    placement: np.ndarray
    warnings: list[str]


def check_images(
    cases: UnlabeledCases,
    dataset_json: dict,
    reader_writer_class: type,
    num_processes: int,
    show_progress: bool = True,
    description: str = "Checking unlabelled images",
) -> list[str]:
    """Read every image once and refuse the broken ones, all of them in one message.

    Args:
        num_processes: 0 or 1 stays in this process.

    Returns:
        Sentences about what is odd but allowed.

    Raises:
        DatasetError: one line per file that is unreadable, truncated, empty, constant, holds NaN or Inf, has the wrong
            number of channels or dimensions, or whose geometry differs between channels.
    """
    warnings: list[str] = []
    for_each_case(
        _check_case,
        {case: (files, dataset_json, reader_writer_class) for case, files in cases.files.items()},
        num_processes,
        description,
        show_progress,
        lambda _, found: warnings.extend(found),
    )
    return warnings


def _check_case(case: str, files: Sequence[str], dataset_json: dict, reader_writer_class: type) -> list[str]:
    return read_case(case, files, dataset_json, reader_writer_class).warnings


def read_case(case: str, files: Sequence[str], dataset_json: dict, reader_writer_class: Any) -> CaseImage:
    """Read all channels of one case and check them.

    The files are read one by one, although nnU-Net's readers take them together, so that a message can name the one
    that is wrong.

    Raises:
        DatasetError: as `check_images`, about this case.
    """
    images, properties = [], []
    for file in files:
        check_file(file)
        try:
            image, image_properties = reader_writer_class().read_images([str(file)])
        except MemoryError:
            raise
        except Exception as error:
            raise DatasetError(
                f"{file} cannot be read as an image of this dataset ({reason_of(error)}); {REPLACE}."
            ) from error
        _check_values(file, image, image_properties["spacing"])
        images.append(image)
        properties.append(image_properties)
    expected = dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"]
    channels = sum(len(image) for image in images)
    if channels != len(expected):
        raise DatasetError(
            f"{files[0]} brings the case {case} to {channels} channels (a fourth dimension counts as channels), but "
            f"dataset.json declares {len(expected)}; split or convert the file, or remove the case."
        )
    warnings = _compare_channels(files, images, properties)
    constant = [bool(channel.min() == channel.max()) for image in images for channel in image]
    if all(constant):
        raise DatasetError(f"{files[0]} is empty: every voxel has the value {images[0].flat[0]:g}; {REPLACE}.")
    if any(constant):
        warnings.append(f"Channel {constant.index(True)} of the case {case} is empty ({files[0]}).")
    spacing = cast("tuple[float, float, float]", tuple(float(size) for size in properties[0]["spacing"]))
    return CaseImage(np.vstack(images), spacing, placement(properties[0]), warnings)


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


def _check_values(file: str, image: np.ndarray, spacing: Sequence[float]) -> None:
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise DatasetError(spacing_message(file, spacing))
    if image.size == 0:
        raise DatasetError(f"{file} holds no voxel (shape {image.shape[1:]}); {REPLACE}.")
    if not np.isfinite(image).all():
        kind = "NaN" if np.isnan(image).any() else "Inf"
        raise DatasetError(f"{file} holds {kind} values; replace them by numbers or remove the case.")


def _compare_channels(files: Sequence[str], images: Sequence[np.ndarray], properties: Sequence[dict]) -> list[str]:
    """Shape and spacing must agree between channels; origin and direction should, as in nnU-Net."""
    warnings = []
    for file, image, other in zip(files[1:], images[1:], properties[1:], strict=True):
        if image.shape[1:] != images[0].shape[1:]:
            raise DatasetError(
                f"{file} has the shape {image.shape[1:]}, but {files[0]} has {images[0].shape[1:]}; resample one "
                f"channel to the other's grid."
            )
        if not np.allclose(other["spacing"], properties[0]["spacing"]):
            raise DatasetError(
                f"{file} has the spacing {plain(other['spacing'])} mm, but {files[0]} has "
                f"{plain(properties[0]['spacing'])}; resample one channel to the other's grid."
            )
        if not np.allclose(placement(other), placement(properties[0]), atol=1e-4):
            warnings.append(f"{file} and {files[0]} differ in origin or direction; check that the channels overlap.")
    return warnings


def placement(properties: dict) -> np.ndarray:
    """`CaseImage.placement`, from what a reader returns beside the voxels."""
    itk = properties.get("sitk_stuff")
    if itk:
        return np.concatenate([np.ravel(itk["origin"]), np.ravel(itk["direction"])])
    return np.ravel(properties.get("nibabel_stuff", {}).get("original_affine", ()))


def plain(spacing: Sequence[float]) -> tuple[float, ...]:
    """A spacing as it is written in a message."""
    return tuple(round(float(step), 6) for step in spacing)
