"""The entropy term equals its definition, value and gradient, without keeping (tokens, codes)."""

from __future__ import annotations

import math

import pytest
import torch

from nnunetv2_vqseg.modules.vq import entropy
from nnunetv2_vqseg.modules.vq.entropy import assignment_entropy


def plain(tokens: torch.Tensor, codes: torch.Tensor, temperature: float) -> torch.Tensor:
    p = (-torch.cdist(tokens, codes).square() / temperature).softmax(dim=1)
    mean = p.mean(dim=0)
    return -(p * p.log()).sum(dim=1).mean() + (mean * mean.log()).sum()


@pytest.mark.parametrize("kept", [0, 2**24])
def test_value_and_gradients_equal_autograd_of_the_definition(kept: int, monkeypatch) -> None:
    monkeypatch.setattr(entropy, "_CPU_ELEMENTS", 100)
    monkeypatch.setattr(entropy, "_KEPT_ELEMENTS", kept)
    torch.manual_seed(0)
    inputs = [torch.randn(13, 5, dtype=torch.float64), torch.randn(30, 5, dtype=torch.float64)]
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    theirs = [tensor.clone().requires_grad_() for tensor in inputs]
    value, expected = assignment_entropy(*ours, 2.0), plain(*theirs, 2.0)
    torch.testing.assert_close(value, expected)
    (3.0 * value).backward()
    (3.0 * expected).backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)


def test_sure_tokens_on_all_codes_reach_the_lower_bound() -> None:
    codes = 10 * torch.eye(8)
    torch.testing.assert_close(assignment_entropy(codes, codes, 0.1).item(), -math.log(8))


def test_identical_tokens_carry_no_information() -> None:
    tokens = torch.ones(6, 4)
    assert abs(assignment_entropy(tokens, torch.randn(10, 4), 1.0).item()) < 1e-6


def test_stays_finite_where_no_token_comes_near_a_code() -> None:
    tokens, codes = torch.zeros(4, 2, requires_grad=True), torch.tensor([[0.0, 0.0], [1e3, 0.0], [0.0, 1e4]])
    value = assignment_entropy(tokens, codes, 0.01)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(tokens.grad).all()


def test_no_tensor_is_larger_than_a_chunk(trace, monkeypatch) -> None:
    monkeypatch.setattr(entropy, "_CPU_ELEMENTS", 10_000)
    tokens, codes = torch.randn(500, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=True)
    with trace() as recorded:
        assignment_entropy(tokens, codes, 1.0).backward()
    assert recorded.largest <= 10_000
