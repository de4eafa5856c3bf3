"""Preprocessed unlabelled images that are not like the labelled ones: in another unit, orientation or pixel size.

They can be trained on, which is why nothing stops, and are of no use, which nothing else would show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import aff2axcodes
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_vqseg.core.errors import and_more

MAX_READ = 20
"""Labelled cases whose intensities are compared with; pixel sizes and orientations are of all."""

FAR = 3.0
"""A mean this many standard deviations from those of labelled cases, or pixels larger or smaller by this factor."""

SPREAD = 10.0
"""A standard deviation larger or smaller by this factor."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


class Look(NamedTuple):
    """What a preprocessed case looks like.

    pixel: mm, the two smaller steps of its spacing, before resampling; orientation: such as RAS, empty where the
    reader knows none; means, stds: of each channel after normalisation, NaN where it was empty before, nothing where
    they were not looked at.
    """

    pixel: tuple[float, ...]
    orientation: str
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()


def look_of(
    data: np.ndarray | None,
    properties: Mapping[str, Any],
    constant: Sequence[bool] = (),
) -> Look:
    """The look of one case.

    Args:
        data: (C, Z, Y, X), preprocessed; None: not to be looked at.
        properties: what nnU-Net's reader and preprocessor know of it.
        constant: channels that had one value only before preprocessing.
    """
    pixel = tuple(sorted(map(float, properties["spacing"]))[:2])
    if data is None:
        return Look(pixel, _orientation(properties))
    values = np.array([data.mean(axis=(1, 2, 3)), data.std(axis=(1, 2, 3))], np.float64)
    values[:, np.flatnonzero(constant)] = np.nan
    means, stds = values.tolist()
    return Look(pixel, _orientation(properties), tuple(means), tuple(stds))


def looks_of_labeled(folder: str | Path) -> list[Look]:
    """Looks of the cases in nnU-Net's folder of preprocessed labelled cases; none where it holds none."""
    try:
        dataset: Any = infer_dataset_class(str(folder))(str(folder))
        cases = sorted(dataset.identifiers)
        read = set(cases[:: -(-len(cases) // MAX_READ)]) if cases else ()
        looks = []
        for case in cases:
            data, _, _, properties = dataset.load_case(case)
            looks.append(look_of(data[:] if case in read else None, properties))
        return looks
    except Exception:  # whatever is there is refused elsewhere
        return []


def unlike_labeled(looks: Mapping[str, Look], labeled: Sequence[Look]) -> list[str]:
    """A sentence for each way in which cases differ from every labelled one, with the first of them."""
    if not labeled:
        return []
    orientations = sorted({look.orientation for look in labeled} - {""})
    turned = [case for case, look in looks.items() if look.orientation not in ["", *orientations]]
    sizes = np.array([look.pixel for look in labeled])
    scaled = [case for case, look in looks.items() if _is_scaled(look.pixel, sizes)]
    odd = {case: channel for case, look in looks.items() if (channel := _odd_channel(look, labeled)) is not None}
    sentences = []
    if turned and orientations:
        sentences.append(
            f"The unlabelled case {turned[0]} is oriented {looks[turned[0]].orientation}, labelled cases "
            f"{' or '.join(orientations)}{and_more(turned)}; orient images alike, or ignore this if both may occur."
        )
    if scaled:
        lowest, highest = _millimetres(sizes.min(axis=0)), _millimetres(sizes.max(axis=0))
        known = lowest if lowest == highest else f"{lowest} to {highest}"
        sentences.append(
            f"The unlabelled case {scaled[0]} has pixels of {_millimetres(looks[scaled[0]].pixel)} mm, labelled cases "
            f"of {known} mm{and_more(scaled)}; check the spacing in its header."
        )
    if odd:
        case, channel = next(iter(odd.items()))
        means, stds = _intensities(labeled, channel)
        sentences.append(
            f"The unlabelled case {case} has intensities unlike labelled cases: channel {channel} has the mean "
            f"{looks[case].means[channel]:.2f} and standard deviation {looks[case].stds[channel]:.2f} after "
            f"normalisation, labelled cases {min(means):.2f} to {max(means):.2f} and {min(stds):.2f} to "
            f"{max(stds):.2f}{and_more([*odd])}; check that they are in the same unit."
        )
    return sentences


def _orientation(properties: Mapping[str, Any]) -> str:
    """Where the axes of an image point to, as far as its reader tells."""
    nibabel = properties.get("nibabel_stuff", {})
    affine = nibabel.get("reoriented_affine", nibabel.get("original_affine"))
    direction = np.ravel(properties.get("sitk_stuff", {}).get("direction", ()))
    if direction.size == 9:
        affine = np.eye(4)
        affine[:3, :3] = LPS_TO_RAS @ direction.reshape(3, 3)
    if affine is None:
        return ""
    return "".join(letter or "?" for letter in aff2axcodes(np.asarray(affine)))


def _is_scaled(pixel: Sequence[float], sizes: np.ndarray) -> bool:
    return bool(np.any(pixel > FAR * sizes.max(axis=0)) or np.any(pixel < sizes.min(axis=0) / FAR))


def _odd_channel(look: Look, labeled: Sequence[Look]) -> int | None:
    """The first channel with another mean or spread than in any labelled case; read_case tells of empty ones."""
    for channel, (mean, std) in enumerate(zip(look.means, look.stds, strict=True)):
        means, stds = _intensities(labeled, channel)
        if not stds or math.isnan(std):
            continue
        far = FAR * max(stds)
        if not (min(means) - far <= mean <= max(means) + far and min(stds) / SPREAD <= std <= max(stds) * SPREAD):
            return channel
    return None


def _intensities(labeled: Sequence[Look], channel: int) -> tuple[list[float], list[float]]:
    """Means and standard deviations of a channel in labelled cases, of those where it is not empty."""
    seen = [(look.means[channel], look.stds[channel]) for look in labeled if len(look.stds) > channel]
    seen = [(mean, std) for mean, std in seen if std > 0]
    return [mean for mean, _ in seen], [std for _, std in seen]


def _millimetres(pixel: Sequence[float]) -> str:
    return " x ".join(f"{step:g}" for step in pixel)
