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
