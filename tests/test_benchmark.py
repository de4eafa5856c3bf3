"""The benchmark's yardsticks: the plain version computes the same, and memory and exponents are counted right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from benchmarks import measure, plain
from benchmarks.step import Stopwatch

from nnunetv2_vqseg.modules.entropy import assignment_entropy
from nnunetv2_vqseg.modules.lookup import nearest_codes
from nnunetv2_vqseg.modules.perturbation import transition_matrix

CPU = torch.device("cpu")


def test_plain_version_computes_what_ours_does() -> None:
    tokens, codes = torch.randn(60, 4, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)
    assert torch.equal(plain.lookup(tokens, codes), nearest_codes(tokens, codes))
    torch.testing.assert_close(plain.entropy(tokens, codes, 0.7), assignment_entropy(tokens, codes, 0.7))


def test_plain_perturbation_draws_from_equation_4() -> None:
    torch.manual_seed(3)
    codes = torch.randn(6, 2, dtype=torch.float64)
    moved = plain.perturb(torch.full((50_000,), 2), codes, 0.7)
    expected = 50_000 * transition_matrix(codes, 0.7, "literal")[2]
    assert chisquare(torch.bincount(moved, minlength=6), expected).pvalue > 0.01


def test_plain_step_has_a_gradient_for_tokens_and_mapping() -> None:
    tokens, mapping = torch.randn(20, 3, requires_grad=True), torch.eye(3, requires_grad=True)
    plain.forward_backward(tokens, torch.randn(9, 3), mapping, 0.7, 0.25, 0.5, subset=10)
    assert tokens.grad is not None
    assert mapping.grad is not None
    assert mapping.grad.abs().sum() > 0


def test_peak_memory_counts_what_is_held_at_once() -> None:
    def run() -> None:
        first = torch.empty(1_000_000)
        second = torch.empty(500_000)
        del first
        torch.empty(250_000)
        del second

    assert measure.peak_memory(run, CPU) == pytest.approx(6_000_000, rel=1e-3)


def test_exponent_of_a_power_law() -> None:
    assert measure.exponent([1, 2, 8], [3.0, 12.0, 192.0]) == pytest.approx(2.0)


def test_every_variant_is_measured_as_often_and_in_turns() -> None:
    order: list[str] = []
    measured = measure.compare({name: lambda name=name: order.append(name) for name in "ab"}, CPU, repeats=3)
    assert order == list("ab" * 4)
    assert measured.keys() == {"a", "b"}


def test_time_of_an_inner_part_is_not_counted_twice(monkeypatch) -> None:
    ticks = iter([0.0, 1.0, 3.0, 10.0])
    monkeypatch.setattr("benchmarks.step.clock", lambda device: next(ticks))
    watch = Stopwatch(CPU)
    watch.timed("outer", watch.timed("inner", lambda: None))()
    assert watch.seconds == {"inner": 2.0, "outer": 8.0}
