"""Counts of codes over an epoch."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_vqseg.modules.vq.usage import CodebookUsage


def test_counts_accumulate_until_reset() -> None:
    usage = CodebookUsage(8)
    usage.add(torch.tensor([[0, 0], [1, 1]]))
    usage.add(torch.tensor([2, 2]))
    assert usage.num_tokens == 6
    assert usage.utilization == pytest.approx(3 / 8)
    assert usage.perplexity == pytest.approx(3.0)
    usage.reset()
    assert (usage.num_tokens, usage.utilization, usage.perplexity) == (0, 0.0, 0.0)


def test_state_survives_a_round_trip() -> None:
    usage, other = CodebookUsage(5), CodebookUsage(5)
    usage.add(torch.tensor([4, 4, 1]))
    other.load_state_dict(usage.state_dict())
    usage.reset()
    assert other.counts.tolist() == [0, 1, 0, 0, 2]
    with pytest.raises(ValueError, match="5 codes"):
        CodebookUsage(6).load_state_dict(other.state_dict())
