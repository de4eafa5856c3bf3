"""What one view loses, the other has."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_vqseg.modules.complementary_dropout import complementary_dropout, complementary_masks


def test_masks_sum_to_two_and_half_of_the_images_keep_everything():
    images, widths = 9, [40, 60]
    masks = complementary_masks(images, widths, 0.5, torch.zeros(1))
    kept = []
    for mask, width in zip(masks, widths, strict=True):
        first, second = mask.split(images)
        assert mask.shape == (2 * images, width)
        assert torch.equal(first + second, torch.full_like(first, 2.0))
        assert set(mask.unique().tolist()) == {0.0, 1.0, 2.0}
        kept.append((first == 1).all(1))
        assert torch.equal((first == 1).any(1), kept[-1]), "an image keeps everything, or half of it"
        assert (first[~kept[-1]] == 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert torch.equal(*kept), "the same images at every stage"
    assert kept[0].sum() == 4, "half of 9, rounded down"


def test_images_that_keep_everything_are_random():
    draws = {tuple(complementary_masks(4, [8], 0.5, torch.zeros(1))[0][:, 0].eq(1).tolist()) for _ in range(60)}
    assert len(draws) == 6  # 2 of 4


@pytest.mark.parametrize("size", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_features_are_multiplied_channel_by_channel(size, kept):
    maps = [torch.randn(3, width, *size).repeat(2, *[1] * (1 + len(size))) for width in (6, 10)]
    for features, dropped in zip(maps, complementary_dropout(maps, kept), strict=True):
        ratio = (dropped / features).flatten(2)
        assert torch.equal(ratio, ratio[..., :1].expand_as(ratio)), "a channel goes or stays as a whole"
        first, second = dropped.split(3)
        torch.testing.assert_close(first + second, 2 * features[:3])
        assert torch.equal(dropped, features) == (kept == 1.0)


def test_half_precision_stays_half():
    assert complementary_dropout([torch.ones(2, 4, 2, 2, dtype=torch.bfloat16)])[0].dtype == torch.bfloat16


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="two views"):
        complementary_dropout([torch.ones(3, 4, 2, 2)])
    with pytest.raises(ValueError, match="share of kept"):
        complementary_dropout([torch.ones(2, 4, 2, 2)], 1.5)
