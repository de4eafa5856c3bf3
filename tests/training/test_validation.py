"""Online validation counts what nnU-Net's does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_vqseg.trainer.validation import COUNTS, hard_counts, on_host


@pytest.mark.parametrize("kind", [torch.int16, torch.bool])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_counts_are_nnunet_s_and_the_target_stays(regions, ignored, kind):
    torch.manual_seed(0)
    manager = SimpleNamespace(has_regions=regions, has_ignore_label=ignored, ignore_label=3)
    logits = torch.randn(2, 3, 12, 10)
    if regions:
        target = (torch.rand(2, 3 + ignored, 12, 10) < 0.4).to(kind)
    else:
        target = torch.randint(0, 4 if ignored else 3, (2, 1, 12, 10), dtype=torch.int16)
    stock = SimpleNamespace(
        device=torch.device("cpu"),
        network=lambda data: [logits],
        loss=lambda output, target: torch.tensor(0.5),
        enable_deep_supervision=True,
        label_manager=manager,
    )
    expected = nnUNetTrainer.validation_step(stock, {"data": logits, "target": [target.clone()]})
    before = target.clone()
    found = hard_counts(logits, target, manager)
    assert torch.equal(target, before)
    assert list(found) == list(COUNTS)
    for name in COUNTS:
        np.testing.assert_array_equal(found[name].numpy(), expected[name])
        assert found[name].numpy().dtype == expected[name].dtype


def test_steps_come_to_the_host_as_nnunet_gives_them():
    steps = [{"loss": torch.tensor(float(step)), "tp_hard": torch.tensor([step, 2])} for step in range(3)]
    found = on_host(steps)
    assert [output["loss"] for output in found] == [0.0, 1.0, 2.0]
    np.testing.assert_array_equal(found[2]["tp_hard"], [2, 2])
