"""Nearest codes equal brute force, in memory that does not grow with tokens x codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_vqseg.modules.vq.lookup import nearest_codes


def brute_force(tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    difference = tokens.double()[:, None] - codes.double()[None]
    return difference.square().sum(dim=2).argmin(dim=1)


@pytest.mark.parametrize("num_codes", [2, 127, 128, 129, 1000])
@pytest.mark.parametrize("chunk", [None, (7, 128), (64, 384)])
def test_equals_brute_force(num_codes: int, chunk: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    tokens, codes = torch.randn(150, 8), torch.randn(num_codes, 8)
    assert torch.equal(nearest_codes(tokens, codes, chunk), brute_force(tokens, codes))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 300), st.integers(1, 6), st.integers(0, 10**6))
def test_finds_the_smallest_distance(num_tokens: int, num_codes: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # A coarse grid: many exact ties, whose lowest index is due. All arithmetic on it is exact but for the centring.
    tokens = torch.randint(-3, 4, (num_tokens, width), generator=generator).float()
    codes = torch.randint(-3, 4, (num_codes, width), generator=generator).float()
    codes -= codes.mean(dim=0).round()
    found = nearest_codes(tokens, codes, (16, 128))
    distance = (tokens.double() - codes[found].double()).square().sum(dim=1)
    best = (tokens.double() - codes[brute_force(tokens, codes)].double()).square().sum(dim=1)
    assert torch.equal(distance, best)


def test_duplicate_codes_give_the_lowest_index() -> None:
    torch.manual_seed(0)
    codes = torch.randn(100, 16)
    repeated = codes.repeat(6, 1)
    assert torch.equal(nearest_codes(codes, repeated, (32, 256)), torch.arange(100))


def test_is_exact_far_from_the_origin() -> None:
    # |c|^2 is about 1e6 here and neighbours differ by about 1e-2: 2 x.c - |c|^2 in float32 would lose that entirely.
    torch.manual_seed(0)
    tokens, codes = torch.randn(200, 4) * 0.1 + 500, torch.randn(64, 4) * 0.1 + 500
    assert torch.equal(nearest_codes(tokens, codes), brute_force(tokens, codes))


def test_indices_stay_valid_for_tokens_that_are_not_finite() -> None:
    tokens = torch.tensor([[torch.inf, 1.0], [torch.nan, 0.0], [-torch.inf, torch.inf]])
    found = nearest_codes(tokens, torch.randn(5, 2))
    assert ((found >= 0) & (found < 5)).all()


def test_no_tokens_give_no_indices() -> None:
    assert nearest_codes(torch.empty(0, 3), torch.randn(5, 3)).shape == (0,)


def test_memory_does_not_grow_with_tokens_times_codes(trace) -> None:
    tokens, codes = torch.randn(3000, 4), torch.randn(5000, 4)
    with trace() as recorded:
        nearest_codes(tokens, codes)
    assert recorded.largest <= 256 * 2048
