"""Displacement: exactly the patches that the rules name move, and what belongs to them moves with them."""

import math

import pytest
import torch

from nnunetv2_vqseg.modules.views.displacement import (
    displace_labeled,
    displace_unlabeled,
    from_patches,
    patch_statistics,
    to_patches,
)


def logits_of(margins: list[float], pixels: int = 2, ndim: int = 2) -> torch.Tensor:
    """Two classes; the margin of the second in each of 16 patches (ndim 2), in reading order."""
    grid = torch.tensor(margins).view(*[round(len(margins) ** (1 / ndim))] * ndim)
    for axis in range(ndim):
        grid = grid.repeat_interleave(pixels, axis)
    return torch.stack((torch.zeros_like(grid), grid))[None]


def opinions(sure: dict[int, float], rest: float = 2.0) -> list[float]:
    return [sure.get(patch, rest) for patch in range(16)]


def numbered(sign: int, channels: int = 2, ndim: int = 2) -> torch.Tensor:
    """Images whose pixels have their patch's number, from 1 on, of this sign."""
    return sign * logits_of([float(n + 1) for n in range(4**ndim)], ndim=ndim)[:, 1:].repeat(1, channels, *[1] * ndim)


# Least sure: 3 in the weak view, 7 in the strong one, both leaning to class 1. The four surest of the weak view are
# 0 and 10 (class 0), 12 and 5 (class 1), of which 5 is the least sure and so nearest to the strong view's 7; of the
# strong view 1, 2 and 15 (class 0) and 14 (class 1), which is nearest to the weak view's 3.
WEAK = logits_of(opinions({3: 0.2, 0: -9.0, 10: -8.0, 12: 7.0, 5: 6.0}))
STRONG = logits_of(opinions({7: 0.1, 1: -9.5, 2: -9.0, 15: -8.0, 14: 7.0}))
YES, NO = torch.tensor([True]), torch.tensor([False])


def patches_of(values: torch.Tensor) -> list[int]:
    """The patches' numbers, from 1 on; negative where they came from the strong view."""
    tiles = to_patches(values, 4).flatten(2)
    assert (tiles == tiles[:, :, :1]).all(), "patches move as a whole, with all channels"
    return tiles[0, :, 0].long().tolist()


def with_changes(sign: int, changes: dict[int, int]) -> list[int]:
    return [changes.get(patch, sign * (patch + 1)) for patch in range(16)]


@pytest.mark.parametrize(("by_divergence", "weak_from", "strong_from"), [(YES, 14, 5), (NO, 1, 0)])
def test_the_least_sure_patch_is_replaced_by_a_sure_one_of_the_other_view(by_divergence, weak_from, strong_from):
    moves = displace_unlabeled(WEAK, STRONG, by_divergence)
    weak, strong = moves.apply(numbered(1), numbered(-1))
    assert patches_of(weak) == with_changes(1, {3: -(weak_from + 1)})
    assert patches_of(strong) == with_changes(-1, {7: strong_from + 1})


def test_the_surest_patch_is_replaced_by_the_least_sure_one_of_the_other_view_with_its_labels():
    moves = displace_labeled(WEAK, STRONG, YES)
    expected = with_changes(1, {0: -8}), with_changes(-1, {1: 4})
    for views in ((numbered(1), numbered(-1)), (numbered(1, channels=1).short(), numbered(-1, channels=1).short())):
        moved = moves.apply(*views)
        assert moved[0].dtype == views[0].dtype
        assert tuple(map(patches_of, moved)) == expected
        assert patches_of(views[0]) == with_changes(1, {}), "the views themselves stay"


def test_only_the_chosen_images_change_and_each_by_its_own_patches():
    first, second = torch.cat((WEAK, STRONG, WEAK)), torch.cat((STRONG, WEAK, STRONG))
    moves = displace_labeled(first, second, torch.tensor([False, True, True]))
    weak, strong = moves.apply(numbered(1).repeat(3, 1, 1, 1), numbered(-1).repeat(3, 1, 1, 1))
    assert patches_of(weak[:1]) == with_changes(1, {})
    assert patches_of(weak[1:2]) == with_changes(1, {1: -4})
    assert patches_of(strong[1:2]) == with_changes(-1, {0: 8})
    assert patches_of(weak[2:]) == with_changes(1, {0: -8})


def test_divergence_is_of_the_replaced_patch_from_the_candidate():
    # p = (1/3, 1/3, 1/3) and the candidates q = (0.5, 0.499, 0.001) and r = (0.8, 0.1, 0.1): KL(p || q) = 1.67,
    # KL(p || r) = 0.51; the other way round, KL(q || p) = 0.40 and KL(r || p) = 0.46.
    probabilities = torch.tensor([[0.4, 0.3, 0.3]]).repeat(16, 1)
    weak = probabilities.clone()
    weak[0] = torch.tensor([1 / 3, 1 / 3, 1 / 3])
    strong = probabilities.clone()
    strong[4], strong[5] = torch.tensor([0.5, 0.499, 0.001]), torch.tensor([0.8, 0.1, 0.1])
    first, second = (p.log().T.reshape(1, 3, 4, 4) for p in (weak, strong))
    moves = displace_unlabeled(first, second, YES, surest=2)
    assert (moves.weak_to.item(), moves.weak_from.item()) == (0, 5)


def test_regions_are_sure_far_from_one_half():
    logits = torch.stack((numbered(1)[0, 0] - 8.4, torch.zeros(8, 8)))[None]
    confidence, mean = patch_statistics(logits, 4, regions=True)
    assert confidence.argmin() == 7
    assert confidence[0, 0].item() == pytest.approx((1 / (1 + math.exp(-7.4)) + 0.5) / 2)
    assert mean[0, 2].tolist() == pytest.approx([-5.4, 0.0])
    moves = displace_unlabeled(logits, -logits, YES, regions=True)
    assert (moves.weak_to.item(), moves.strong_to.item()) == (7, 7)
    # The strong view's surest are 15, 0, 14 and 1 with -7.6, 7.4, -6.6 and 6.4; the weak view's patch 7 has -0.4.
    assert moves.weak_from.item() == 14


def test_volumes_have_64_patches():
    values = numbered(1, ndim=3)
    tiles = to_patches(values, 4)
    assert tiles.shape == (1, 64, 2, 2, 2, 2)
    assert tiles[0, :, 0, 0, 0, 0].tolist() == list(range(1, 65))
    assert torch.equal(from_patches(tiles, values, 4), values)
    margins = [2.0] * 64
    margins[20], margins[63] = 0.0, 9.0
    logits = logits_of(margins, ndim=3)
    weak, _ = displace_unlabeled(logits, logits, NO).apply(values, -values)
    assert (weak < 0).sum() == 2 * 8
    assert (to_patches(weak, 4)[0, 20] == -64).all()


def test_what_the_grid_does_not_divide_stays():
    values = torch.randn(2, 1, 11, 9)
    tiles = to_patches(values, 4)
    assert tiles.shape == (2, 16, 1, 2, 2)
    changed = from_patches(torch.zeros_like(tiles), values, 4)
    assert (changed[:, :, :8, :8] == 0).all()
    assert torch.equal(changed[:, :, 8:], values[:, :, 8:])
    assert torch.equal(changed[:, :, :, 8:], values[:, :, :, 8:])
    with pytest.raises(ValueError, match="cannot be divided"):
        to_patches(torch.zeros(1, 1, 8, 3), 4)
