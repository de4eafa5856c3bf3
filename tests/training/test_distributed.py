"""Several processes compute what one computes with the whole batch, and stay equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from ddp_math import CASES, backward, build, build_objective, gradients, run_rank, whole_batch

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What `run_rank` computed in each of 2 or 4 processes."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_one_process_with_the_whole_batch(ranks: Ranks, case: str) -> None:
    network = build(case)
    _, loss = backward(network, build_objective(case, ddp=False), *whole_batch(len(ranks), seed=5))
    expected = gradients(network)
    losses = [rank[case][1] for rank in ranks]
    torch.testing.assert_close(torch.stack(losses).mean(), loss.detach(), rtol=1e-5, atol=0)
    assert max(losses) - min(losses) > 0.01, "the processes must have had different images"
    for rank in ranks:
        found = rank[case][0]
        assert found.keys() == expected.keys() == dict(network.named_parameters()).keys()
        for name, gradient in expected.items():
            # Float sums in another order differ by 2e-6; the smallest mistake that was tried by 1e-4.
            error = (found[name] - gradient).abs().max() / gradient.abs().max()
            assert error < 2e-5, f"{name}: {error}"


def test_student_teacher_and_codebook_stay_identical_over_twenty_steps(ranks: Ranks) -> None:
    first = ranks[0]["trained"]
    assert first["restarted"] > 0
    assert first["codebook_moved"]
    for rank in ranks[1:]:
        trained = rank["trained"]
        assert not torch.equal(trained["generator"], first["generator"]), "the processes must have drawn differently"
        assert torch.equal(trained["bookkeeping"], first["bookkeeping"])
        for kind in ("student", "teacher"):
            for name, value in first[kind].items():
                assert torch.equal(trained[kind][name], value), f"{kind}: {name}"
