"""Functional dropout of skip connections."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_vqseg.modules.skip_dropout import skip_dropout


@pytest.mark.parametrize("size", [(40, 50), (10, 10, 20)])
def test_elements_go_at_each_stage_s_rate_and_the_others_are_scaled(size) -> None:
    skips = [torch.ones(2, 8, *size) for _ in range(3)]
    untouched, some, half = skip_dropout(skips, [0.0, 0.2, 0.5])
    assert untouched is skips[0]
    for dropped, rate in ((some, 0.2), (half, 0.5)):
        assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=0.02)
        kept = dropped[dropped > 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)))
        assert (dropped[0, 0] == 0).any()
        assert (dropped[0, 0] > 0).any()


def test_a_stage_without_a_rate_draws_nothing() -> None:
    skips = [torch.ones(1, 2, 5, 5), torch.ones(1, 2, 5, 5)]
    draws = []
    for rates in ([0.0, 0.5], [0.5, 0.0]):
        torch.manual_seed(1)
        draws.append(next(skip for skip, rate in zip(skip_dropout(skips, rates), rates, strict=True) if rate))
    assert torch.equal(*draws)


@pytest.mark.parametrize("rates", [[0.1], [0.1, 1.1], [0.1, -0.1]])
def test_impossible_rates_are_refused(rates) -> None:
    with pytest.raises(ValueError, match="one rate in"):
        skip_dropout([torch.ones(1, 1, 2, 2)] * 2, rates)
