"""Stratified group sampling, cell by cell."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_vqseg.modules.stratified import draw_stratified, stratified_indices

METHODS = ("stratified", "antithetic", "naive")


def cells(index: torch.Tensor, side: int) -> torch.Tensor:
    """Which of the 4 x 4 cells of a square an index is in."""
    return (index // side) // (side // 4) * 4 + (index % side) // (side // 4)


@pytest.mark.parametrize("sampling", ["stratified", "antithetic"])
def test_each_cell_gets_the_same_number(sampling):
    torch.manual_seed(0)
    index = stratified_indices(torch.tensor([64, 144]), 96, sampling)
    assert index.shape == (2, 96)
    for drawn, side in zip(index, (8, 12), strict=True):
        assert torch.bincount(cells(drawn, side), minlength=16).tolist() == [6] * 16
    naive = stratified_indices(torch.tensor([64]), 96, "naive")[0]
    assert torch.bincount(cells(naive, 8), minlength=16).tolist() != [6] * 16


def test_antithetic_pairs_mirror_around_the_mean_of_their_cell():
    torch.manual_seed(0)
    side = 12
    index = stratified_indices(torch.tensor([144]), 64, "antithetic")[0].view(16, 4)
    place = torch.arange(144)
    for number, drawn in enumerate(index):
        mean = place[cells(place, side) == number].float().mean()
        assert (drawn[:2] + drawn[2:]).tolist() == [2 * mean] * 2
    assert len(index.unique()) > 40


@pytest.mark.parametrize("sampling", METHODS)
def test_every_candidate_has_the_same_chance_where_cells_are_equal(sampling):
    torch.manual_seed(0)
    counts = torch.bincount(stratified_indices(torch.tensor([16]), 16_000, sampling)[0], minlength=16)
    assert (counts / 1000 - 1).abs().max() < 0.15


@pytest.mark.parametrize("sampling", METHODS)
def test_lists_of_any_length_give_indices_that_are_in_them(sampling):
    torch.manual_seed(0)
    lengths = torch.tensor([0, 1, 2, 3, 5, 7, 15, 17, 50, 1000])
    index = stratified_indices(lengths, 512, sampling)
    for length, drawn in zip(lengths.tolist(), index, strict=True):
        assert drawn.min() >= 0
        assert drawn.max() < max(length, 1)
        assert length > 50 or len(drawn.unique()) == max(length, 1), "every one of a few is drawn"


def test_what_sixteen_leaves_over_is_drawn_anywhere():
    torch.manual_seed(0)
    index = stratified_indices(torch.full((300,), 64), 19)
    counts = torch.stack([torch.bincount(cells(drawn, 8), minlength=16) for drawn in index])
    assert (counts >= 1).all()
    assert (counts.sum(1) == 19).all()
    assert len(stratified_indices(torch.tensor([64]), 3)[0]) == 3


@pytest.mark.parametrize("size", [(2, 8, 8), (2, 4, 4, 4)])
def test_pixels_are_those_of_the_class_and_spread_over_them_in_raster_order(size):
    torch.manual_seed(0)
    labels = torch.zeros(size, dtype=torch.long)
    labels[0] = 1  # 64 pixels, a square of 8
    labels[1].view(-1)[:3] = 5
    drawn = draw_stratified(labels, 3, 32)
    assert drawn.valid.all(1).tolist() == [True, True, False]
    assert not drawn.valid[2].any()
    assert (labels.flatten()[drawn.places[0]] == 0).all()
    assert (labels.flatten()[drawn.places[1]] == 1).all()
    assert torch.bincount(cells(drawn.places[1], 8), minlength=16).tolist() == [2] * 16
    outside = draw_stratified(torch.full(size, -1), 2, 4)
    assert not outside.valid.any()
