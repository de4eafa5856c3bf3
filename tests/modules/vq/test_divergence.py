"""Perturbation radii of QPM (Eq. 5, 6, Appendix B) and of dropout (Eq. 1, 20)."""

from __future__ import annotations

import math

import pytest
import torch

from nnunetv2_vqseg.modules.vq.divergence import dropout_kl, qpm_kl
from nnunetv2_vqseg.modules.vq.qpm import transition_matrix


@pytest.fixture
def codes() -> torch.Tensor:
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()


def test_qpm_equals_equation_6_written_out() -> None:
    # Codes 0, 1 and 3 on a line, epsilon = 1: Eq. 28 by hand.
    pi = transition_matrix(torch.tensor([[0.0], [1.0], [3.0]]), 1.0, "literal")
    e = math.exp
    from_0 = (e(-1) / (e(-1) + e(-3)), e(-3) / (e(-1) + e(-3)))
    from_1 = (e(-1) / (e(-1) + e(-2)), e(-2) / (e(-1) + e(-2)))
    from_3 = (e(-3) / (e(-3) + e(-2)), e(-2) / (e(-3) + e(-2)))
    q = ((from_1[0] + from_3[0]) / 3, (from_0[0] + from_3[1]) / 3, (from_0[1] + from_1[1]) / 3)
    assert sum(q) == pytest.approx(1.0)
    assert qpm_kl(pi).item() == pytest.approx(-sum(math.log(3 * value) for value in q) / 3)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 0.7, 1.0])
def test_literal_qpm_stays_within_the_bounds_of_appendix_b(codes: torch.Tensor, epsilon: float) -> None:
    pi = transition_matrix(codes, epsilon, "literal")
    q = pi.mean(dim=0)
    distances = torch.pdist(codes)
    spread = (distances.max() - distances.min()).item()
    bound = epsilon * math.exp(-spread) + 1 - epsilon, epsilon * math.exp(spread) + 1 - epsilon
    assert bound[0] / 40 <= q.min()  # Eq. 31
    assert q.max() <= bound[1] / 40  # Eq. 33
    assert 0 <= qpm_kl(pi).item() + 1e-12 < math.inf


def test_qpm_without_perturbation_is_zero_and_grows_with_epsilon(codes: torch.Tensor) -> None:
    for mode in ("literal", "calibrated"):
        radii = [
            qpm_kl(transition_matrix(codes, epsilon, mode, 4.0, 12)).item() for epsilon in (0.0, 0.2, 0.5, 0.8, 1.0)
        ]
        assert radii[0] == pytest.approx(0.0, abs=1e-12)
        assert radii == sorted(radii)


def test_qpm_rejects_what_is_no_transition_matrix() -> None:
    with pytest.raises(ValueError, match="K, K"):
        qpm_kl(torch.ones(3, 4))


def test_dropout_equals_the_gaussian_divergence() -> None:
    # Appendix A.3: N(0, 1) against N(0, 1 - p).
    for p in (0.1, 0.5, 0.9):
        exact = torch.distributions.kl_divergence(
            torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.0, math.sqrt(1 - p))
        )
        assert dropout_kl(p).item() == pytest.approx(exact.item(), rel=1e-5)
    assert dropout_kl(0.5).item() == pytest.approx((1 - math.log(2)) / 2)


def test_dropout_diverges_where_qpm_does_not(codes: torch.Tensor) -> None:
    assert dropout_kl(0.0).item() == 0.0
    assert dropout_kl(1.0).item() == math.inf
    assert dropout_kl(1 - 1e-9).item() > 1e8
    assert qpm_kl(transition_matrix(codes, 1.0, "literal")).item() < 1.0
    assert dropout_kl(torch.tensor([0.0, 1.0])).tolist() == [0.0, math.inf]


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_dropout_rejects_what_is_no_probability(p: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        dropout_kl(p)
