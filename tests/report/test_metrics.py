"""Metrics against brute force: all pairs of surface voxels, surfaces found by looking at each voxel's neighbours."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_vqseg.report.metrics import METRICS, score_labels, score_masks, surface_distances

SPACINGS = [None, (1.0, 1.0, 1.0), (10.0, 1.5, 1.5), (0.7, 3.0, 2.2)]


def brute_surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Voxels of the mask with a neighbour along an axis that is background or beyond the array."""
    surface = []
    for voxel in zip(*np.nonzero(mask), strict=True):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            neighbour = list(voxel)
            neighbour[axis] += step
            if not 0 <= neighbour[axis] < mask.shape[axis] or not mask[tuple(neighbour)]:
                surface.append(tuple(int(v) for v in voxel))
                break
    return surface


def brute_scores(prediction: np.ndarray, reference: np.ndarray, spacing) -> dict[str, float]:
    """Dice, Jaccard, HD95 and ASD by loops over voxels; percentile by hand."""
    spacing = spacing or (1.0,) * prediction.ndim
    p, r = set(zip(*np.nonzero(prediction), strict=True)), set(zip(*np.nonzero(reference), strict=True))
    surfaces = brute_surface(prediction), brute_surface(reference)

    def nearest(voxel, others):
        return min(math.dist(*([v * s for v, s in zip(x, spacing, strict=True)] for x in (voxel, o))) for o in others)

    there = [nearest(voxel, surfaces[1]) for voxel in surfaces[0]]
    back = [nearest(voxel, surfaces[0]) for voxel in surfaces[1]]
    pooled = sorted(there + back)
    rank = 0.95 * (len(pooled) - 1)
    low = pooled[math.floor(rank)]
    high = pooled[math.ceil(rank)]
    return {
        "Dice": 2 * len(p & r) / (len(p) + len(r)),
        "Jaccard": len(p & r) / len(p | r),
        "HD95": low + (high - low) * (rank - math.floor(rank)),
        "ASD": sum(there) / len(there),
    }


def blobs(generator: np.random.Generator, shape: tuple[int, ...], count: int = 3) -> np.ndarray:
    """A union of random boxes, often touching the border of the array, with some voxels flipped."""
    mask = np.zeros(shape, dtype=bool)
    for _ in range(count):
        box = []
        for size in shape:
            start = int(generator.integers(0, size))
            box.append(slice(start, start + int(generator.integers(1, size + 1))))
        mask[tuple(box)] = True
    mask ^= generator.random(shape) < 0.03
    mask.flat[int(generator.integers(mask.size))] = True
    return mask


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(8))
def test_scores_equal_brute_force_on_random_shapes(seed, spacing):
    generator = np.random.default_rng(seed)
    shape = tuple(int(n) for n in generator.integers(3, 9, 3))
    prediction, reference = blobs(generator, shape), blobs(generator, shape)
    expected = brute_scores(prediction, reference, spacing)
    scores = score_masks(prediction, reference, spacing)
    assert {metric: scores[metric] for metric in METRICS} == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_scores_equal_brute_force_on_any_small_masks(data):
    shape = data.draw(st.tuples(*[st.integers(2, 4)] * 3))
    masks = [
        np.array(data.draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape)))).reshape(
            shape
        )
        for _ in range(2)
    ]
    if not (masks[0].any() and masks[1].any()):
        return
    spacing = data.draw(st.sampled_from(SPACINGS))
    scores = score_masks(*masks, spacing)
    assert {metric: scores[metric] for metric in METRICS} == pytest.approx(brute_scores(*masks, spacing))


def test_masks_that_fill_the_array_have_their_surface_at_its_border():
    full = np.ones((4, 5, 6), dtype=bool)
    inner = np.zeros_like(full)
    inner[1:-1, 1:-1, 1:-1] = True
    scores = score_masks(inner, full)
    assert {m: scores[m] for m in METRICS} == pytest.approx(brute_scores(inner, full, None))
    assert scores["ASD"] == 1.0


@pytest.mark.parametrize("spacing", [None, (10.0, 1.5, 1.5)])
def test_single_voxels_are_as_far_apart_as_their_centres(spacing):
    prediction, reference = np.zeros((2, 5, 9, 9), dtype=bool)
    prediction[1, 2, 3] = True
    reference[3, 2, 7] = True
    expected = math.hypot(2 * (spacing or [1])[0], 4 * (spacing or [0, 0, 1])[2])
    scores = score_masks(prediction, reference, spacing)
    assert scores["HD95"] == pytest.approx(expected)
    assert scores["ASD"] == pytest.approx(expected)
    assert scores["Dice"] == scores["Jaccard"] == 0


def test_asd_goes_from_prediction_to_reference_only():
    # the prediction lies on the reference's surface, the reference has a far part that the prediction misses
    prediction, reference = np.zeros((2, 1, 3, 20), dtype=bool)
    prediction[:, :, 0] = reference[:, :, 0] = reference[:, :, 15] = True
    assert score_masks(prediction, reference)["ASD"] == 0
    assert score_masks(reference, prediction)["ASD"] == pytest.approx(7.5)


def test_hd95_pools_both_directions_and_interpolates():
    # one voxel against two: directed distances {1} and {1, 11}; the 95th percentile of (1, 1, 11) is 1 + 0.9 * 10
    prediction, reference = np.zeros((2, 1, 1, 20), dtype=bool)
    prediction[0, 0, 3] = reference[0, 0, 4] = reference[0, 0, 14] = True
    assert score_masks(prediction, reference)["HD95"] == pytest.approx(10.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_measured_as_a_2d_image(axis):
    # in 3D every voxel of a slice is surface; in 2D only its rim, and that is what the volume must give
    generator = np.random.default_rng(5)
    prediction, reference = blobs(generator, (9, 12)), blobs(generator, (9, 12))
    spacing = [1.5, 2.0]
    flat = score_masks(prediction, reference, spacing)
    spacing.insert(axis, 999.0)
    volume = score_masks(np.expand_dims(prediction, axis), np.expand_dims(reference, axis), spacing)
    assert volume == pytest.approx(flat)
    assert {m: flat[m] for m in METRICS} == pytest.approx(brute_scores(prediction, reference, (1.5, 2.0)))


def test_a_mask_on_one_slice_of_a_volume_is_all_surface():
    prediction, reference = np.zeros((2, 3, 7, 7), dtype=bool)
    prediction[1, 1:6, 1:6] = reference[1, 1:6, 1:6] = True
    assert len(surface_distances(prediction, reference)[0]) == 25


def test_a_volume_of_one_voxel_has_distance_zero():
    mask = np.ones((1, 1, 1), dtype=bool)
    assert score_masks(mask, mask) == {"Dice": 1, "Jaccard": 1, "HD95": 0, "ASD": 0, "n_pred": 1, "n_ref": 1}


def test_scores_do_not_depend_on_background_around():
    generator = np.random.default_rng(1)
    prediction, reference = blobs(generator, (4, 6, 7)), blobs(generator, (4, 6, 7))
    padded = score_masks(np.pad(prediction, 5), np.pad(reference, 5), (3.0, 1.0, 1.0))
    assert padded == pytest.approx(score_masks(prediction, reference, (3.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("predicted", "referenced", "dice"), [(False, True, 0.0), (True, False, 0.0), (False, False, math.nan)]
)
def test_empty_masks_follow_the_protocol_or_the_literature(predicted, referenced, dice):
    prediction, reference = np.full((3, 4, 4), predicted), np.full((3, 4, 4), referenced)
    protocol = score_masks(prediction, reference)
    literature = score_masks(prediction, reference, empty_convention="literature")
    for scores in (protocol, literature):
        assert scores["Dice"] == pytest.approx(dice, nan_ok=True)
        assert scores["Jaccard"] == pytest.approx(dice, nan_ok=True)
        assert (scores["n_pred"], scores["n_ref"]) == (48 * predicted, 48 * referenced)
    assert math.isnan(protocol["HD95"])
    assert math.isnan(protocol["ASD"])
    assert literature["HD95"] == literature["ASD"] == 0


def test_surface_distances_of_an_empty_mask_are_refused():
    with pytest.raises(ValueError, match="not empty"):
        surface_distances(np.zeros((2, 2), dtype=bool), np.ones((2, 2), dtype=bool))


def test_regions_are_unions_and_ignored_voxels_do_not_count():
    reference = np.array([[[0, 1, 2, 2, 3, 9, 9]]])
    prediction = np.array([[[0, 1, 1, 2, 0, 1, 3]]])
    scores = score_labels(prediction, reference, {"1": 1, "(1, 2)": (1, 2)}, ignore_label=9)
    assert scores["1"]["n_pred"] == 2  # the third 1 lies where the reference says ignore
    assert scores["1"]["Dice"] == pytest.approx(2 / 3)
    assert scores["(1, 2)"]["Dice"] == 1
    assert score_labels(prediction, reference, {"1": 1})["1"]["Dice"] == pytest.approx(0.5)


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        score_labels(np.zeros((2, 2)), np.zeros((2, 3)), {"1": 1})
