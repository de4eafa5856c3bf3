"""Neighbours equal brute force, and calibrated distributions have the perplexity asked for."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_vqseg.modules.vq.qpm_table import calibrated_probabilities, nearest_neighbors


@pytest.mark.parametrize(("num_codes", "count"), [(2, 1), (9, 8), (100, 7), (1000, 20), (1001, 124), (1001, 126)])
def test_neighbors_equal_brute_force(num_codes: int, count: int) -> None:
    codes = torch.randn(num_codes, 3)
    squared, neighbors = nearest_neighbors(codes, count)
    distances = torch.cdist(codes.double(), codes.double()).fill_diagonal_(torch.inf)
    expected = distances.topk(count, dim=1, largest=False).values
    torch.testing.assert_close(squared.sqrt().double(), expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(distances.gather(1, neighbors.long()), expected, atol=1e-5, rtol=0)
    assert (neighbors.sort(dim=1).values.diff(dim=1) > 0).all()


def test_a_twin_is_a_neighbor_and_the_code_itself_is_not() -> None:
    codes = torch.randn(64, 4).repeat(2, 1)
    squared, neighbors = nearest_neighbors(codes, 1)
    assert torch.equal(neighbors.flatten().long(), (torch.arange(128) + 64) % 128)
    assert squared.max() < 1e-5


@pytest.mark.parametrize("perplexity", [1.01, 2.0, 32.0, 100.0, 255.0])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_perplexity_is_the_target_at_every_scale(perplexity: float, scale: float) -> None:
    squared = torch.randn(100, 16).repeat_interleave(3, dim=0) * scale
    squared = (squared[:, None] - torch.randn(256, 16) * scale).square().sum(dim=2)
    p = calibrated_probabilities(squared, perplexity)
    torch.testing.assert_close(p.sum(dim=1), torch.ones(len(p)))
    found = torch.special.entr(p.double()).sum(dim=1).exp()
    torch.testing.assert_close(found, torch.full_like(found, perplexity), rtol=1e-3, atol=0)


def test_probabilities_are_a_softmax_of_squared_distance() -> None:
    squared = torch.rand(20, 30, dtype=torch.float64)
    p = calibrated_probabilities(squared, 8.0)
    slope = -(p.log()[:, 1:] - p.log()[:, :1]) / (squared[:, 1:] - squared[:, :1])
    assert (slope > 0).all()
    torch.testing.assert_close(slope, slope[:, :1].expand_as(slope), rtol=1e-6, atol=1e-6)


def test_heavy_tails_are_calibrated_too() -> None:
    # Three near neighbours of different distance, all others ten thousand times as far.
    squared = torch.cat((torch.tensor([[1.0, 1.5, 2.0]]), torch.full((1, 97), 1e4)), dim=1)
    p = calibrated_probabilities(squared, 2.5)
    assert torch.special.entr(p).sum().exp().item() == pytest.approx(2.5, rel=1e-3)


def test_more_equal_neighbors_than_the_perplexity_stay_uniform() -> None:
    squared = torch.cat((torch.zeros(1, 10), torch.ones(1, 5)), dim=1)
    p = calibrated_probabilities(squared, 4.0)
    torch.testing.assert_close(p[0, :10], torch.full((10,), 0.1), atol=1e-3, rtol=0)
    equal = calibrated_probabilities(torch.zeros(1, 8), 2.0)
    torch.testing.assert_close(equal, torch.full((1, 8), 0.125))


def test_memory_grows_with_neighbors_and_not_with_all_pairs(trace) -> None:
    codes = torch.randn(4096, 4)
    with trace() as recorded:
        squared, _ = nearest_neighbors(codes, 32)
        calibrated_probabilities(squared, 8.0)
    assert recorded.largest <= 2**20
