"""A step as a GPU runs it asks the device for no number, and launches few operators around forward and backward pass.

Run on the CPU: with a `GradScaler`, a fused optimiser and numbers that are read late the code is that of a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from operators import Operators
from torch import Tensor

from nnunetv2_vqseg.modules.activation import LeakyReLU
from nnunetv2_vqseg.trainer.optimizers import build_optimizer
from nnunetv2_vqseg.trainer.step import Reading, begin_momentum

pytestmark = pytest.mark.slow

READS = ("tolist", "cpu", "numpy", "item", "__bool__", "__int__", "__float__")
SEVERAL = ["nnUNetTrainerSupervised", "nnUNetTrainerMeanTeacher", "nnUNetTrainerVQSeg", "nnUNetTrainerCPS"]
FURTHER = ["nnUNetTrainerUAMT", "nnUNetTrainerUniMatch", "nnUNetTrainerUniMatchV2", "nnUNetTrainerMCNet"]


def as_on_a_gpu(trainer: Any) -> Any:
    """Before its first step, with what only a GPU has."""
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.on_train_start()
    groups = trainer.method.parameter_groups(trainer.network)
    trainer.optimizer, trainer.lr_scheduler = build_optimizer(groups, trainer.config, 0.01, 3e-5, device="cuda")
    trainer.stepper.optimizer, trainer.stepper.late = trainer.optimizer, True
    trainer.on_train_epoch_start()
    return trainer


@contextmanager
def nobody_reads(monkeypatch: pytest.MonkeyPatch, trainer: Any) -> Iterator[list[int]]:
    """Numbers are read through `Reading.values` alone, of steps that are over; gives their steps."""
    values, open_for, read = Reading.values, [], []

    def read_late(self: Reading) -> dict[str, float]:
        assert self.step < trainer.stepper.step - 1, "the numbers of the step itself"
        open_for.append(self)
        try:
            read.append(self.step)
            return values(self)
        finally:
            open_for.pop()

    with monkeypatch.context() as patch:
        patch.setattr(Reading, "values", read_late)
        for name in READS:
            original = getattr(Tensor, name)

            def guarded(self: Tensor, *args: Any, original: Any = original, name: str = name) -> Any:
                assert open_for, f"Tensor.{name} in a step"
                return original(self, *args)

            patch.setattr(Tensor, name, guarded)
        yield read


def one_step(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Operators, list[int]]:
    """The operators of one step whose batches are there already, and the steps whose numbers were read in it."""
    batch = next(trainer.dataloader_train)
    if trainer.dataloader_unlabeled is not None:
        trainer.dataloader_unlabeled = iter([next(trainer.dataloader_unlabeled)])
    operators = Operators()
    with nobody_reads(monkeypatch, trainer) as read, operators:
        trainer.train_step(batch)
    return operators, read


@pytest.mark.parametrize("name", [*SEVERAL, *FURTHER])
def test_a_step_waits_for_nothing_and_reads_the_numbers_of_the_step_before(make_trainer, monkeypatch, name):
    trainer = as_on_a_gpu(make_trainer(name, restart_after=1))
    loader = trainer.dataloader_unlabeled
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    operators, read = one_step(trainer, monkeypatch)
    assert operators.waits == set()
    assert set(read) == {1}
    trainer.dataloader_unlabeled = loader
    losses = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)]
    trainer.on_train_epoch_end(losses)
    assert trainer.curves.history["skipped_steps"] == [0]
    means = trainer.curves.history
    assert means["loss"][0] == pytest.approx(
        sum(values[0] for name, values in means.items() if name.startswith("weighted_")), rel=1e-5
    ), "all steps are in the curves once the epoch is over"


def test_few_operators_surround_forward_and_backward_pass(make_trainer, monkeypatch):
    """A mean teacher had 218 `detach` for its EMA alone."""
    trainer = as_on_a_gpu(make_trainer("nnUNetTrainerMeanTeacher"))
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    trainer.dataloader_unlabeled = iter([next(trainer.dataloader_unlabeled)])
    losses = trainer.stepper.gradients(*trainer.method.terms(trainer._join(next(trainer.dataloader_train), 0.5), 0.5))
    with Operators() as around:
        trainer._read(trainer.stepper(losses))
    assert around.counts.total() < 40, around.counts
    assert around.counts["aten::_foreach_lerp_"] == 1
    assert around.counts["aten::_fused_sgd_"] == 1


@pytest.mark.parametrize(("name", "skipped"), [("nnUNetTrainerVQSeg", 0), ("nnUNetTrainerCPS", 1)])
def test_late_numbers_change_no_weight_and_no_curve(make_trainer, name, skipped):
    """Trainings that read at once and late end alike, where nothing follows a step a skipped one included."""
    ended = []
    for late in (False, True):
        trainer = as_on_a_gpu(make_trainer(name, num_epochs=1))
        trainer.stepper.late = late
        outputs = []
        for number in range(4):
            batch = next(trainer.dataloader_train)
            if skipped and number == 1:
                batch["data"][0] = float("inf")
            outputs.append(trainer.train_step(batch))
        trainer.on_train_epoch_end(outputs)
        ended.append((trainer.network.state_dict(), trainer.curves.history, trainer.stepper.bad_steps))
    (weights, curves, bad), (weights_late, curves_late, bad_late) = ended
    assert all(torch.equal(weights[key], weights_late[key]) for key in weights)
    assert curves == curves_late
    assert curves["skipped_steps"] == [skipped]
    assert bad == bad_late == 0


@pytest.fixture
def memory_of_others(monkeypatch):
    """What nobody has filled holds something, as on a GPU that is in use."""
    monkeypatch.setattr(torch, "empty_like", lambda like, **options: torch.full_like(like, 1e3, **options))


def test_a_first_step_that_is_skipped_leaves_no_momentum(make_trainer, memory_of_others):
    """AMP's first scale makes it so in most trainings; fused SGD fills the memory it takes in a step that is one."""
    trainer = as_on_a_gpu(make_trainer("nnUNetTrainerMeanTeacher", num_epochs=1))
    batch, before = next(trainer.dataloader_train), trainer.network.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    good = batch["data"].clone()
    batch["data"][0] = float("inf")
    trainer.train_step(batch)
    momentum = [state["momentum_buffer"] for state in trainer.optimizer.state.values()]
    assert len(momentum) > 10
    assert not any(value.any() for value in momentum)
    assert all(torch.equal(before[key], value) for key, value in trainer.network.state_dict().items())
    trainer.train_step({**batch, "data": good})
    assert max(float(value.abs().max()) for value in momentum) < 100, "the clipped gradient alone"


def test_a_parameter_whose_first_gradient_comes_later_begins_then(memory_of_others):
    early, late = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.SGD([early, late], 0.1, momentum=0.9, nesterov=True, fused=True)
    for parameters in ((early,), (early, late)):
        for parameter in parameters:
            parameter.grad = torch.ones(2)
        begin_momentum(optimizer)
        optimizer.step()
    assert torch.equal(optimizer.state[late]["momentum_buffer"], torch.ones(2))
    assert torch.equal(optimizer.state[early]["momentum_buffer"], torch.full((2,), 1.9))


def test_a_training_that_goes_bad_stops_one_step_late_with_the_name_of_the_term(make_trainer):
    trainer = as_on_a_gpu(make_trainer(max_bad_steps=2, num_epochs=1))
    batch = next(trainer.dataloader_train)
    batch["data"][:] = float("nan")
    before = {key: value.clone() for key, value in trainer.method.net.state_dict().items()}
    for _ in range(2):
        trainer.train_step(batch)
    with pytest.raises(RuntimeError, match="supervised was not finite for 2 steps in a row"):
        trainer.train_step(batch)
    assert all(torch.equal(before[key], value) for key, value in trainer.method.net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "block", "cheap"),
    [
        ("nnUNetTrainerMeanTeacher", {}, True),
        ("nnUNetTrainerMeanTeacher", {"faster_step": False}, False),
        ("nnUNetTrainerSupervised", {}, False),
        ("nnUNetTrainerSupervised", {"faster_step": True}, True),
    ],
)
def test_activations_of_our_own_trainers_copy_nothing_and_stock_s_where_asked(make_trainer, name, block, cheap):
    trainer = make_trainer(name, **block)
    trainer.initialize()
    kinds = {type(module) for module in trainer.network.modules() if "LeakyReLU" in type(module).__name__}
    assert kinds == {LeakyReLU if cheap else torch.nn.LeakyReLU}
