"""Dice, Jaccard, HD95 and ASD of binary masks and label maps; numpy and scipy only.

The surface distances follow MedPy, because the semi-supervised literature reports them that way and other libraries'
numbers differ (`DEFINITIONS` says how, and every report prints it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

Label = int | tuple[int, ...]
EmptyConvention = Literal["protocol", "literature"]

METRICS = ("Dice", "Jaccard", "HD95", "ASD")
HIGHER_IS_BETTER = {"Dice": True, "Jaccard": True, "HD95": False, "ASD": False}

DEFINITIONS = {
    "Dice": "2 |P and R| / (|P| + |R|) over the voxels of the whole volume.",
    "Jaccard": "|P and R| / |P or R| over the voxels of the whole volume.",
    "surface": "The mask XOR its binary erosion with connectivity 1; voxels at the border of the volume are surface "
    "(MedPy). An axis of length 1 is not an axis: a 2D image is measured as a 2D image.",
    "HD95": "95th percentile (linear interpolation) of both directed sets of surface distances pooled (MedPy).",
    "ASD": "Mean distance from the prediction's surface to the reference's, this direction only (MedPy).",
    "ignore": "Voxels with the reference's ignore label count as background in both masks.",
}
EMPTY_DEFINITIONS: dict[EmptyConvention, str] = {
    "protocol": "An empty prediction where there is a reference, and a prediction where there is none, score Dice 0, "
    "Jaccard 0 and no surface distance; where both are empty the case has no value and is left out of the mean. "
    "All three are counted.",
    "literature": "One of several variants in published code: HD95 and ASD are 0 wherever a mask is empty, which "
    "rewards failure; Dice and Jaccard are 0 if one mask is empty, and without a value if both are, where other code "
    "has 0 or 1.",
}


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distances from each surface voxel of one mask to the nearest surface voxel of the other.

    Args:
        prediction, reference: boolean masks of the same shape (any number of dimensions), neither empty.
        spacing: size of a voxel along each axis in mm; None measures in voxels.

    Returns:
        (prediction to reference, reference to prediction), one value per surface voxel.

    Raises:
        ValueError: if a mask is empty.
    """
    if not prediction.any() or not reference.any():
        raise ValueError("Surface distances need two masks that are not empty.")
    axes = tuple(axis for axis, size in enumerate(prediction.shape) if size > 1) or (0,)
    drop = tuple(axis for axis in range(prediction.ndim) if axis not in axes)
    # Outside the joint bounding box both masks are background, and erosion treats what lies beyond the array as
    # background too: surfaces and distances on the crop are those of the whole volume.
    (box,) = find_objects((prediction | reference).view(np.uint8))
    prediction_surface = _surface(prediction[box].squeeze(drop))
    reference_surface = _surface(reference[box].squeeze(drop))
    sampling = None if spacing is None else [float(spacing[axis]) for axis in axes]
    return (
        distance_transform_edt(~reference_surface, sampling=sampling)[prediction_surface],
        distance_transform_edt(~prediction_surface, sampling=sampling)[reference_surface],
    )


def score_masks(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float] | None = None,
    empty_convention: EmptyConvention = "protocol",
) -> dict[str, float]:
    """All of `METRICS` for two boolean masks of the same shape, and their sizes `n_pred` and `n_ref` in voxels.

    Args:
        spacing: size of a voxel along each axis in mm; None gives HD95 and ASD in voxels.
        empty_convention: see `EMPTY_DEFINITIONS`.

    Raises:
        ValueError: if the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"The prediction has shape {prediction.shape}, the reference {reference.shape}.")
    n_pred, n_ref = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    both, nan = int(np.count_nonzero(prediction & reference)), float("nan")
    dice = 2 * both / (n_pred + n_ref) if n_pred or n_ref else nan
    jaccard = both / (n_pred + n_ref - both) if n_pred or n_ref else nan
    if n_pred and n_ref:
        to_reference, to_prediction = surface_distances(prediction, reference, spacing)
        hd95 = float(np.percentile(np.hstack((to_reference, to_prediction)), 95))
        asd = float(to_reference.mean())
    else:
        hd95 = asd = 0.0 if empty_convention == "literature" else nan
    return {"Dice": dice, "Jaccard": jaccard, "HD95": hd95, "ASD": asd, "n_pred": n_pred, "n_ref": n_ref}


def score_labels(
    prediction: np.ndarray,
    reference: np.ndarray,
    classes: Mapping[str, Label],
    ignore_label: int | None = None,
    spacing: Sequence[float] | None = None,
    empty_convention: EmptyConvention = "protocol",
) -> dict[str, dict[str, float]]:
    """`score_masks` for each class of two label maps of the same shape.

    Args:
        classes: key of the result to a label, or to a tuple of labels that form a region.
        ignore_label: voxels with this value in the reference are left out.

    Raises:
        ValueError: if the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"The prediction has shape {prediction.shape}, the reference {reference.shape}.")
    counted = np.True_ if ignore_label is None else reference != ignore_label
    return {
        key: score_masks(
            np.isin(prediction, label) & counted, np.isin(reference, label) & counted, spacing, empty_convention
        )
        for key, label in classes.items()
    }


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask ^ binary_erosion(mask)  # scipy's default structure is connectivity 1
