"""QPM: pi of Eq. 4, its samples and when its table is rebuilt."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from nnunetv2_vqseg.modules.vq.qpm import Mode, QuantizedPerturbation, transition_matrix

MODES: tuple[Mode, ...] = ("calibrated", "literal")


@pytest.fixture
def codes() -> Tensor:
    # More than one block of 128, so that literal sampling searches both blocks and elements.
    return torch.randn(200, 3)


def qpm(epsilon: float = 0.7, mode: Mode = "calibrated", **changes) -> QuantizedPerturbation:
    return QuantizedPerturbation(epsilon, mode, **{"perplexity": 4.0, "num_neighbors": 12, **changes})


# pi


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 0.7, 1.0])
def test_rows_of_pi_are_distributions_that_keep_one_minus_epsilon(codes: Tensor, mode, epsilon: float) -> None:
    pi = transition_matrix(codes, epsilon, mode, 4.0, 12)
    assert (pi >= 0).all()
    torch.testing.assert_close(pi.sum(dim=1), torch.ones(200, dtype=torch.float64))
    torch.testing.assert_close(pi.diagonal(), torch.full((200,), 1.0 - epsilon, dtype=torch.float64))


def test_figure_3() -> None:
    # K = 4, epsilon = 0.7, c_2 is drawn with 49 %: 0.7 of the mass that moves. The distances that give it are ours.
    distances = [2.0 - math.log(share) for share in (0.7, 0.2, 0.1)]
    codes = torch.zeros(4, 3, dtype=torch.float64)
    codes[1:] = torch.diag(torch.tensor(distances, dtype=torch.float64))
    pi = transition_matrix(codes, 0.7, "literal")
    torch.testing.assert_close(pi[0], torch.tensor([0.30, 0.49, 0.14, 0.07], dtype=torch.float64))


def test_literal_pi_is_equation_4_written_out() -> None:
    codes = torch.randn(7, 2, dtype=torch.float64)
    pi = transition_matrix(codes, 0.6, "literal")
    for i in range(7):
        weights = {j: math.exp(-math.dist(codes[i], codes[j])) for j in range(7) if j != i}
        for j, weight in weights.items():
            assert pi[i, j].item() == pytest.approx(0.6 * weight / sum(weights.values()))


def test_calibrated_pi_has_the_chosen_perplexity_and_reach(codes: Tensor) -> None:
    pi = transition_matrix(codes * 37.0, 1.0, "calibrated", 4.0, 12)
    assert ((pi > 0).sum(dim=1) <= 12).all()
    perplexity = torch.special.entr(pi).sum(dim=1).exp()
    torch.testing.assert_close(perplexity, torch.full_like(perplexity, 4.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(pi, transition_matrix(codes, 1.0, "calibrated", 4.0, 12), rtol=1e-3, atol=1e-4)


def test_small_books_take_all_codes_as_neighbors() -> None:
    pi = transition_matrix(torch.randn(9, 2), 1.0)
    torch.testing.assert_close(
        torch.special.entr(pi).sum(dim=1).exp(), torch.full((9,), 4.0).double(), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(
        transition_matrix(torch.randn(2, 2), 1.0), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    )


# Samples


@pytest.mark.parametrize("mode", MODES)
def test_frequencies_match_pi(codes: Tensor, mode) -> None:
    torch.manual_seed(11)
    indices = torch.tensor([3, 150]).repeat_interleave(100_000)
    sampled = qpm(0.7, mode)(indices, codes)
    pi = transition_matrix(codes, 0.7, mode, 4.0, 12)
    for number, code in enumerate((3, 150)):
        observed = torch.bincount(sampled[number * 100_000 : (number + 1) * 100_000], minlength=200)
        expected = pi[code] * 100_000
        assert (observed[expected == 0] == 0).all()
        often = expected > 5
        # What is too rare for the test on its own is one class together.
        observed_classes = torch.cat((observed[often], observed[~often].sum()[None])).double()
        expected_classes = torch.cat((expected[often], expected[~often].sum()[None]))
        keep = expected_classes > 0
        assert chisquare(observed_classes[keep], expected_classes[keep]).pvalue > 0.01


@pytest.mark.parametrize("size", [(20, 20), (5, 10, 8)])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_moves_at_zero_and_nothing_stays_at_one(codes: Tensor, mode, size) -> None:
    indices = torch.randint(200, (3, *size))
    assert torch.equal(qpm(0.0, mode)(indices, codes), indices)
    codes[100:] = codes[:100]  # a twin counts as another code
    moved = qpm(1.0, mode)(indices, codes)
    assert (moved != indices).all()
    assert (moved.dtype, moved.shape) == (torch.int64, indices.shape)
    assert ((moved >= 0) & (moved < 200)).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_codes", [2, 3, 129])
def test_extreme_draws_stay_within_the_other_codes(mode, num_codes: int, monkeypatch) -> None:
    codes = torch.randn(num_codes, 2)
    indices = torch.arange(num_codes)
    for epsilon in (0.3, 1.0):
        for draw in (0.0, 1 - 2**-24):
            draws = torch.tensor([[0.0], [draw]]).expand(2, num_codes)
            monkeypatch.setattr(torch, "rand", lambda shape, device=None, draws=draws: draws.clone())
            moved = qpm(epsilon, mode)(indices, codes)
            assert ((moved >= 0) & (moved < num_codes)).all()
            assert (moved != indices).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_small_share_of_moves_goes_as_many_ways_as_a_large_one(mode) -> None:
    """One draw of 24 bits for both questions would leave a handful of values below a small epsilon."""
    codes = torch.randn(200, 2)
    indices = torch.zeros(3_000_000, dtype=torch.int64)
    perturbation = QuantizedPerturbation(1e-5, mode, 64.0, 150)
    shares = []
    for epsilon in (1e-5, 1.0):
        perturbation.epsilon = epsilon
        moved = perturbation(indices if epsilon < 1 else indices[:30], codes)
        shares.append(len(moved[moved != 0].unique()))
    assert 0.6 < shares[0] / shares[1] < 1.7, "about thirty moves each, to as many different codes"


@pytest.mark.parametrize("mode", MODES)
def test_samples_are_reproducible_and_leave_their_input_alone(codes: Tensor, mode) -> None:
    perturbation, indices = qpm(0.7, mode), torch.randint(200, (4, 5))
    original = indices.clone()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(perturbation(indices, codes))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(indices, original)


def test_literal_chunks_change_nothing(codes: Tensor, monkeypatch) -> None:
    indices = torch.randint(200, (500,))
    torch.manual_seed(1)
    expected = qpm(0.7, "literal")(indices, codes)
    monkeypatch.setattr("nnunetv2_vqseg.modules.vq.qpm_table._CPU_ELEMENTS", 1400)
    torch.manual_seed(1)
    assert torch.equal(qpm(0.7, "literal")(indices, codes), expected)


# Cost


def test_calibrated_sampling_costs_the_same_for_every_epsilon(codes: Tensor, trace) -> None:
    traces = []
    for epsilon in (0.1, 1.0):
        perturbation = qpm(epsilon)
        perturbation.prepare(codes)
        with trace() as recorded:
            perturbation(torch.randint(200, (1000,)), codes)
        traces.append(recorded.operations)
    assert traces[0] == traces[1]


@pytest.mark.parametrize("mode", MODES)
def test_no_matrix_of_all_pairs(mode, trace) -> None:
    codes = torch.randn(4096, 2)
    with trace() as recorded:
        perturbation = qpm(0.7, mode, num_neighbors=32)
        perturbation.prepare(codes)
        perturbation(torch.randint(4096, (3000,)), codes)
    assert recorded.largest <= 2**20 + 2**14


def test_sampling_compiles_into_one_graph(codes: Tensor) -> None:
    perturbation, indices = qpm(), torch.randint(200, (2, 5, 5))
    perturbation.prepare(codes)
    compiled = torch.compile(perturbation, fullgraph=True, backend="eager")
    torch.manual_seed(1)
    expected = perturbation(indices, codes)
    torch.manual_seed(1)
    assert torch.equal(compiled(indices, codes), expected)
    # A rebuilt table is read without compiling again.
    perturbation.discard_table()
    assert perturbation.prepare(3.0 * codes)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(indices, codes)


# Table


def test_effective_neighbors_are_the_perplexity(codes: Tensor) -> None:
    perturbation = qpm()
    assert math.isnan(perturbation.effective_neighbors)
    perturbation.prepare(codes)
    assert perturbation.effective_neighbors == pytest.approx(4.0, rel=1e-3)


def test_literal_mode_is_as_exact_in_mixed_precision(codes: Tensor) -> None:
    indices = torch.randint(0, 200, (500,))
    codes = codes + 100.0
    drawn = []
    for enabled in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            drawn.append(qpm(1.0, "literal")(indices, codes))
    assert torch.equal(*drawn)


def test_literal_mode_has_nothing_to_do_where_no_token_moves(codes: Tensor) -> None:
    indices = torch.arange(200)
    perturbation = qpm(1e-12, "literal", perplexity=8.0, num_neighbors=8)  # which that mode does not read
    assert torch.equal(perturbation(indices, codes), indices)


def test_literal_effective_neighbors_show_that_geometry_plays_no_part() -> None:
    # METHOD's first row: codes N(0, 1/C) of 384 dimensions are all equally far.
    codes = torch.randn(1000, 384) / 384**0.5
    perturbation = qpm(1.0, "literal")
    assert not perturbation.prepare(codes)
    perturbation(torch.arange(100), codes)
    assert 990 < perturbation.effective_neighbors < 999


def test_a_table_serves_so_many_calls_whatever_the_codes_do(codes: Tensor) -> None:
    perturbation = qpm(rebuild_every=3)
    assert [perturbation.prepare(codes) for _ in range(7)] == [True, False, False, True, False, False, True]
    assert [perturbation.prepare(codes.flip(0)) for _ in range(3)] == [False, False, True]
    assert QuantizedPerturbation().rebuild_every == 50


def test_draws_are_those_of_the_table_and_not_of_codes_that_moved_since(codes: Tensor) -> None:
    perturbation, indices = qpm(1.0, rebuild_every=2), torch.arange(200).repeat(20)
    perturbation.prepare(codes)
    draws = []
    for book in (codes, codes.flip(0)):
        torch.manual_seed(1)
        draws.append(perturbation(indices, book))
    assert torch.equal(*draws)
    assert [perturbation.prepare(codes.flip(0)) for _ in range(2)] == [False, True]
    reachable = transition_matrix(codes.flip(0), 1.0, "calibrated", 4.0, 12) > 0
    assert reachable[indices, perturbation(indices, codes.flip(0))].all()
    assert not reachable[indices, draws[0]].all()


def test_discarding_a_table_starts_counting_anew(codes: Tensor) -> None:
    """So that an epoch draws the same whether or not steps came before it."""
    resumed, continued = qpm(rebuild_every=4), qpm(rebuild_every=4)
    for _ in range(3):
        continued.prepare(codes)
    continued.discard_table()
    built = [[perturbation.prepare(codes) for _ in range(9)] for perturbation in (resumed, continued)]
    assert built[0] == built[1]
    assert sum(built[0]) == 3


def test_another_book_needs_another_table(codes: Tensor) -> None:
    perturbation = qpm(1.0)
    perturbation.prepare(codes)
    assert perturbation(torch.arange(30), torch.randn(30, 3)).max() < 30
    assert not perturbation.prepare(torch.randn(30, 3))
    assert perturbation.prepare(torch.randn(31, 3))


def test_the_table_is_no_state_and_stays_behind_when_copied(codes: Tensor) -> None:
    perturbation = qpm()
    perturbation.prepare(codes)
    assert not perturbation.state_dict()
    assert not list(perturbation.buffers())
    assert len(pickle.dumps(perturbation)) < 4000
    other = copy.deepcopy(perturbation)
    assert math.isnan(other.effective_neighbors)
    assert other.prepare(codes)
    assert perturbation.effective_neighbors == other.effective_neighbors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -0.1}, "between 0 and 1"),
        ({"epsilon": 1.1}, "between 0 and 1"),
        ({"epsilon": math.nan}, "between 0 and 1"),
        ({"perplexity": 0.5}, "perplexity"),
        ({"perplexity": 256.0}, "perplexity"),
        ({"mode": "exact"}, "mode"),
        ({"rebuild_every": 0}, "rebuild_every"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizedPerturbation(**arguments)


def test_one_code_has_nowhere_to_go() -> None:
    for mode in MODES:
        with pytest.raises(ValueError, match="at least 2 codes"):
            qpm(mode=mode).prepare(torch.randn(1, 3))
        with pytest.raises(ValueError, match="at least 2 codes"):
            transition_matrix(torch.randn(1, 3), mode=mode)
