"""What must be the same to continue a training is refused where it is not; a validation does without it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_dimensions import METHODS, started

from nnunetv2_vqseg.core.errors import CheckpointError
from nnunetv2_vqseg.methods.base import BudgetConfig
from nnunetv2_vqseg.modules.fitting import load_fitting
from nnunetv2_vqseg.trainer.checkpoints import Checkpoints

HEADS = [
    ("SS-Net", "prototype_dim", 16),
    ("SS-Net", "memory_size", 8),
    ("ARCO", "representation_dim", 4),
    ("ARCO", "representation_level", 1),
    ("ARCO", "queue_size", 32),
]


def compare(before: BudgetConfig, now: BudgetConfig, only_validates: bool = False) -> None:
    told: list[str] = []
    trainer: Any = SimpleNamespace(config=now, only_validates=only_validates, print_to_log_file=told.append)
    Checkpoints(trainer)._compare_settings("checkpoint_latest.pth", before.as_dict())


@pytest.mark.parametrize(("name", "key", "value"), [*HEADS, ("self-training", "num_epochs", 500)])
def test_another_value_is_refused_in_a_sentence_and_validated(name, key, value):
    config = METHODS[name].method.Config
    before, now = config(), config(**{key: value})
    with pytest.raises(CheckpointError, match=rf"trained with {key} \d+, now {value}; set the old value in the plan's"):
        compare(before, now)
    compare(before, now, only_validates=True)


@pytest.mark.parametrize(("name", "key", "value"), HEADS)
def test_a_validation_restores_what_fits(name, key, value):
    method, _ = started(METHODS[name], 2)
    other, _ = started(METHODS[name]._replace(keys={**METHODS[name].keys, key: value}), 2)
    load_fitting(other.student, method.student.state_dict(), strict=False)
    other.load_state(method.state(), strict=False)
    for name, network in other.validated().items():
        own = method.validated()[name].state_dict()
        for part, tensor in network.state_dict().items():
            assert torch.equal(tensor, own[part]), part


def test_with_all_heads_nothing_may_be_missing():
    method, _ = started(METHODS["SS-Net"], 2)
    other, _ = started(METHODS["SS-Net"]._replace(keys={"prototype_dim": 16}), 2)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_fitting(other.student, method.student.state_dict(), strict=True)
