"""Sharpening and mutual consistency by hand."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_vqseg.modules.losses.mutual_consistency import mutual_consistency, sharpen


def by_hand(p: float, exponent: float = 10.0) -> float:
    return p**exponent / (p**exponent + (1 - p) ** exponent)


def test_sharpening_is_class_by_class_without_a_common_norm():
    p = torch.tensor([0.6, 0.3, 0.1])
    expected = [by_hand(value) for value in (0.6, 0.3, 0.1)]
    torch.testing.assert_close(sharpen(p), torch.tensor(expected))
    assert sum(expected) == pytest.approx(0.9832, abs=1e-3), "no longer a distribution"
    assert sharpen(torch.tensor(0.5)) == 0.5
    torch.testing.assert_close(sharpen(p, temperature=0.5), torch.tensor([by_hand(v, 2.0) for v in p.tolist()]))
    torch.testing.assert_close(sharpen(p, temperature=1.0), p)


def test_sharpening_is_finite_at_both_ends_and_in_half_precision():
    p = torch.tensor([0.0, 1e-8, 1 - 1e-7, 1.0], requires_grad=True)
    sharpen(p).sum().backward()
    assert torch.isfinite(p.grad).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = sharpen(torch.tensor([0.25, 0.75]).half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, torch.tensor([by_hand(0.25), by_hand(0.75)]))


def test_consistency_is_a_sum_over_ordered_pairs():
    values = (0.5, 0.6, 0.9)
    p = [torch.tensor([value, 1 - value]).reshape(1, 2, 1, 1) for value in values]
    expected = sum(
        ((one - by_hand(other)) ** 2 + ((1 - one) - by_hand(1 - other)) ** 2) / 2
        for i, one in enumerate(values)
        for j, other in enumerate(values)
        if i != j
    )
    assert mutual_consistency(p).item() == pytest.approx(expected, rel=1e-5)
    assert mutual_consistency(p[:2]).item() == pytest.approx((0.5 - by_hand(0.6)) ** 2 + (0.6 - 0.5) ** 2, rel=1e-5)


def test_gradients_reach_both_sides_or_one():
    for detach in (False, True):
        first, second = (torch.tensor([[value]], requires_grad=True) for value in (0.4, 0.7))
        mutual_consistency([first, second], detach=detach).backward()
        plain = 2 * (0.4 - by_hand(0.7))
        slope = 10 * (0.4 * 0.6) ** 9 / (0.4**10 + 0.6**10) ** 2  # of the sharpened first
        through = -2 * (0.7 - by_hand(0.4)) * slope
        assert first.grad.item() == pytest.approx(plain + (0.0 if detach else through), rel=1e-4)
