"""A recorded step does what the step itself does, in trainings whose numbers change; where it cannot, all goes on.

What a CUDA graph does is played on the CPU by `graph_tape.Tape`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from graph_tape import Tape

from nnunetv2_vqseg.methods.base import ramp
from nnunetv2_vqseg.trainer import graph
from nnunetv2_vqseg.trainer.trainer import MethodTrainer

pytestmark = pytest.mark.slow

LONG = {
    "num_epochs": 2,
    "iterations_per_epoch": 10,
    "val_iterations_per_epoch": 1,
    "qpm_rebuild_every": 4,
    "restart_after": 3,
    "restart_every": 5,
    "ramp_up": 0.7,
    "save_every": 1,
}
STATIC: dict[str, dict[str, Any]] = {
    "nnUNetTrainerVQSeg": {},
    "nnUNetTrainerVQSegQPMDB": {"strong_view": True},
    "nnUNetTrainerMeanTeacher": {},
    "nnUNetTrainerMeanTeacherDropout": {},
    "nnUNetTrainerCPS": {},
    "nnUNetTrainerUAMT": {},
    "nnUNetTrainerUniMatch": {},
    "nnUNetTrainerUniMatchV2": {},
    "nnUNetTrainerMCNet": {},
    "nnUNetTrainerUNet": {},
    "nnUNetTrainerSupervised": {"faster_step": True},
}
EVERY_DAY = ("nnUNetTrainerVQSeg", "nnUNetTrainerUniMatchV2")


class Recorded:
    """Trainings whose steps are recorded on tapes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tape: type[Tape] = Tape) -> None:
        self.tapes: list[Tape] = []
        self.patch = monkeypatch
        self.tape = tape

    def __enter__(self) -> list[Tape]:
        def recorder(trainer: MethodTrainer) -> Tape:
            self.tapes.append(self.tape())
            return self.tapes[-1]

        self.context = self.patch.context()
        self.context.__enter__().setattr(MethodTrainer, "_recorder", recorder)
        return self.tapes

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(*error)


def after(trainer: Any) -> dict[str, Any]:
    found = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)
    own = found["vqseg"]
    states = {
        "student": own["student"],
        "teacher": own.get("teacher", {}),
        "torch": {"": own["random_states"]["torch"]},
    }
    return states | {"curves": own["curves"]}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for kind in ("student", "teacher", "torch"):
        assert one[kind].keys() == other[kind].keys()
        different = [key for key, value in one[kind].items() if not torch.equal(value, other[kind][key])]
        assert different == [], kind
    assert one["curves"].keys() == other["curves"].keys()
    for name, values in one["curves"].items():
        assert values == pytest.approx(other["curves"][name], rel=1e-6, nan_ok=True), name


@pytest.mark.parametrize(
    "name", [*EVERY_DAY, *(pytest.param(n, marks=pytest.mark.nightly) for n in STATIC if n not in EVERY_DAY)]
)
def test_a_recorded_training_has_the_bits_of_one_that_is_not(make_trainer, monkeypatch, name):
    """20 steps, 2 epochs, with a ramp, new tables and restarted codes."""
    block = LONG | STATIC[name]
    plain = make_trainer(name, **block)
    plain.run_training()
    expected = after(plain)
    with Recorded(monkeypatch) as tapes:
        trainer = make_trainer(name, **block)
        trainer.run_training()
    assert [tape.replays for tape in tapes] == [21], "every step, and one more to compare"
    assert_same(after(trainer), expected)


def test_a_recorded_training_that_is_continued_has_the_bits_of_one_that_was_not_stopped(make_trainer, monkeypatch):
    plain = make_trainer(**LONG)
    plain.run_training()
    expected = after(plain)
    with Recorded(monkeypatch):
        first = make_trainer(**LONG)
        monkeypatch.setattr(first, "on_train_end", lambda: None)
        monkeypatch.setattr(first, "num_epochs", 1)
        monkeypatch.setattr(type(first), "progress", property(lambda self: self.stepper.step / 20))
        first.current_epoch = 0
        first.run_training()
        latest = Path(first.output_folder) / "checkpoint_best.pth"
        resumed = make_trainer(continue_training=True, **LONG)
        resumed.load_checkpoint(str(latest))
        assert resumed.stepper.step == 10
        resumed.run_training()
    assert_same({**after(resumed), "curves": {}}, {**expected, "curves": {}})


def one_step(make_trainer: Any, name: str = "nnUNetTrainerMeanTeacher", **block: Any) -> Any:
    trainer = make_trainer(name, **block)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    return trainer


class Refuses(Tape):
    def record(self, work: Any) -> Any:
        work()
        try:
            raise RuntimeError("CUDA error: operation not permitted\nmore")
        finally:
            raise ValueError("the record is broken\nmore")


class Forgets(Tape):
    """A graph that does not run."""

    def replay(self) -> None:
        for parameter in (place for _, _, _, outputs in self.steps for place in outputs):
            parameter.detach().zero_()


@pytest.mark.parametrize(
    ("tape", "reason"),
    [
        (
            Refuses,
            "(ValueError: the record is broken, after RuntimeError: CUDA error: operation not permitted; test_gr",
        ),
        (Forgets, "a replay gave"),
    ],
)
def test_where_recording_fails_the_training_goes_on_as_without(make_trainer, monkeypatch, tape, reason):
    expected = one_step(make_trainer).network.state_dict()
    with Recorded(monkeypatch, tape):
        trainer = one_step(make_trainer)
    assert all(torch.equal(expected[key], value) for key, value in trainer.network.state_dict().items())
    log = Path(trainer.log_file).read_text(encoding="utf-8")
    assert log.count("No CUDA graph of a step (") == 1
    assert reason in log


def test_a_method_that_waits_in_its_step_is_found_out(make_trainer, monkeypatch):
    from nnunetv2_vqseg.methods.mean_teacher import MeanTeacher

    terms = MeanTeacher.terms

    def waits(self: Any, batch: Any, progress: Any) -> Any:
        found = terms(self, batch, progress)
        float(found[0]["supervised"][1])
        return found

    monkeypatch.setattr(MeanTeacher, "terms", waits)
    with Recorded(monkeypatch):
        trainer = one_step(make_trainer)
    assert trainer.step_graph.recorder is None


def test_another_kind_of_batch_is_recorded_anew(make_trainer, monkeypatch):
    with Recorded(monkeypatch):
        trainer = one_step(make_trainer, "nnUNetTrainerSelfTraining", num_epochs=3)
        tape = trainer.step_graph.recorder
        before = tape.replays
        smaller = next(trainer.dataloader_train)
        smaller = {"data": smaller["data"][:1], "target": [level[:1] for level in smaller["target"]]}
        for _ in range(2):
            trainer.train_step(smaller)
    assert tape.replays == before + 3
    assert trainer.step_graph.recorder is tape


def test_the_ramp_of_a_tensor_is_that_of_a_number():
    for length in (0.0, 0.3, 1.0):
        for progress in (0.0, 0.1, 0.3, 0.9, 1.0):
            value = ramp(torch.tensor(progress, dtype=torch.float64), length)
            assert float(value) == pytest.approx(ramp(progress, length), rel=1e-12)


EAGER = "the method decides anew in each step what to do"


@pytest.mark.parametrize(
    ("faster", "static", "device", "distributed", "waits", "switch", "reason"),
    [
        (True, True, "cuda", False, False, None, None),
        (True, True, "cuda", False, False, "1", None),
        (True, True, "cuda", False, False, "0", "nnUNet_vqseg_graph=0"),
        (False, True, "cuda", False, False, None, "faster_step is false"),
        (True, False, "cuda", False, False, None, EAGER),
        (True, True, "cpu", False, False, None, "there is no GPU"),
        (True, True, "cuda", True, False, None, "there are several processes"),
        (True, True, "cuda", False, True, None, "nnU-Net's loss waits for a number where there is an ignore label"),
    ],
)
def test_when_a_step_is_recorded(monkeypatch, faster, static, device, distributed, waits, switch, reason):
    config = type("Config", (), {"faster_step": faster})
    monkeypatch.delenv(graph.SWITCH, raising=False)
    if switch is not None:
        monkeypatch.setenv(graph.SWITCH, switch)
    found = graph.why_not(config, static, torch.device(device), distributed, waits)
    assert (found or "").startswith(reason or "")
    assert (found is None) == (reason is None)


@pytest.mark.parametrize(
    ("name", "block", "ignores", "reason"),
    [
        ("nnUNetTrainerVQSeg", {"qpm": "literal"}, False, EAGER),
        ("nnUNetTrainerMeanTeacher", {}, True, "nnU-Net's loss waits for a number where there is an ignore label"),
        ("nnUNetTrainerMeanTeacher", {"supervised_loss": "ce"}, True, None),
        ("nnUNetTrainerMeanTeacher", {}, False, None),
    ],
)
def test_the_log_says_why_no_step_is_recorded_on_a_gpu(make_trainer, monkeypatch, name, block, ignores, reason):
    trainer = make_trainer(name, **block)
    trainer.initialize()
    monkeypatch.setattr(trainer, "device", torch.device("cuda"))
    monkeypatch.setattr(trainer.label_manager, "_ignore_label", 4 if ignores else None)
    recorder = trainer._recorder()
    log = Path(trainer.log_file).read_text(encoding="utf-8")
    if reason is None:
        assert isinstance(recorder, graph.CudaRecorder)
        assert "No CUDA graph of a step" not in log
    else:
        assert recorder is None
        assert f"No CUDA graph of a step: {reason}" in log


def test_literal_qpm_is_not_static(make_trainer):
    trainer = make_trainer(qpm="literal")
    trainer.initialize()
    assert not trainer.method.is_static
    assert trainer.step_graph.recorder is None


@pytest.mark.parametrize(
    ("block", "static"),
    [
        ({}, True),
        ({"guard": True}, False),
        ({"copy_paste": "box"}, False),
        ({"turn_probability": 1.0}, False),
        ({"class_thresholds": "freematch"}, False),
        ({"largest_component": True}, False),
    ],
)
def test_what_python_decides_in_a_step_is_not_recorded(make_trainer, monkeypatch, block, static):
    asked = []
    monkeypatch.setattr("nnunetv2_vqseg.trainer.trainer.why_not", lambda config, static, *more: asked.append(static))
    make_trainer("nnUNetTrainerMeanTeacher", **block).initialize()
    assert asked == [static]
