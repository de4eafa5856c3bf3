"""The benchmark's yardsticks: the plain version computes the same, and memory and exponents are counted right."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chisquare

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import benchmark
from benchmarks import against, measure, plain, step, workbench
from benchmarks.step import Stopwatch

from nnunetv2_vqseg.modules.vq.entropy import assignment_entropy
from nnunetv2_vqseg.modules.vq.lookup import nearest_codes
from nnunetv2_vqseg.modules.vq.qpm import transition_matrix

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


def test_parts_of_a_step_are_those_of_one_that_is_not_recorded(monkeypatch) -> None:
    """A recorded one repeats what it recorded, past the stopwatch."""
    trainer, recorders = SimpleNamespace(step_graph=SimpleNamespace(recorder="recorder")), []
    monkeypatch.setattr(step, "_instrumented", lambda trainer, watch: nullcontext())
    monkeypatch.setattr(step, "_step", lambda trainer: recorders.append(trainer.step_graph.recorder))
    step._parts("VQ-Seg", trainer, CPU, repeats=1)
    assert recorders == [None]


@pytest.mark.parametrize(
    ("device", "compiled", "median"), [("cpu", True, 0.1), ("cuda", False, 0.1), ("cpu", False, (60 + 0.1) / 2)]
)
def test_compiling_and_loading_kernels_is_not_measured(monkeypatch, device, compiled, median) -> None:
    """A slow CPU run without them has no time for a warm-up."""
    took = [60.0, 0.1, 0.1, 0.1]
    times = iter([sum(took[:number]) for number in range(len(took) + 1) for _ in range(2)][1:])
    monkeypatch.setattr(measure, "clock", lambda device: next(times))
    found = measure.compare({"a": lambda: None}, torch.device(device), repeats=3, seconds=20, compiled=compiled)
    assert found["a"] == pytest.approx(median)


NAMES = [f"nnUNet_{name}" for name in ("raw", "preprocessed", "results", "compile", "n_proc_DA", "def_n_proc")]
QUICK = ("--repeats", "1", "--seconds", "1")
SIZE = ("--batch-size", "2", "--codes", "256")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[str]]:
    """Arguments for a dataset that is planned and preprocessed; puts back what a workbench sets."""
    before = {name: os.environ.get(name) for name in NAMES}
    workbench.make_phantoms(tmp_path_factory.mktemp("phantoms"), 901, "nnUNetVQSegPlans", (32, 32), 4, 8)
    yield ("-d", "901", *SIZE)
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options", "rows"),
    [
        ("modules", "--tokens 64 --codes 256 --widths 8 --epsilons 0.7", {"modules": None}),
        pytest.param("predict", None, {"predict": None}, marks=pytest.mark.nightly),
        ("loading", None, {"loading": None}),
        pytest.param(
            "step",
            "--train-first 2",
            {"totals": list(step.VARIANTS), "parts": list(step.VARIANTS), "tables": ["VQ-Seg", "VQ-Seg + DINOv2"]},
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "scaling",
            "--codes 256 512 --tokens 64 128 --batches 4 8 --patches 32 64 --features 4",
            {"points": None, "exponents": None},
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_every_command_measures_all_of_its_rows(tmp_path, prepared, command, options, rows) -> None:
    """The benchmarks reach into trainers and modules by names that are private to those."""
    file = tmp_path / "measured.json"
    on_dataset = () if command in ("modules", "scaling") else prepared
    benchmark.main([command, *QUICK, *on_dataset, *(options or "").split(), "--out", str(file)])
    tables = json.loads(file.read_text(encoding="utf-8"))["tables"]
    assert tables.keys() == rows.keys()
    for name, variants in rows.items():
        assert tables[name]
        assert variants is None or [row["variant"] for row in tables[name]] == variants
    if command == "step":
        *_, ours = tables["parts"]
        assert all(ours[part] > 0 for part in step.PARTS)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_step_is_compared_with_that_of_the_kept_measurement(tmp_path, prepared, capsys) -> None:
    """Printed for whoever reads the night's output; time itself is never asserted."""
    kept, file = Path(benchmark.__file__).parents[1] / "results/performance/step-small.json", tmp_path / "measured.json"
    variants = ("nnU-Net", "mean teacher", "VQ-Seg")
    benchmark.main(["step", *QUICK, *prepared, "--variants", *variants, "--against", str(kept), "--out", str(file)])
    rows = json.loads(file.read_text(encoding="utf-8"))["tables"]["against"]
    assert [row["variant"] for row in rows] == list(variants)
    assert all(row["then_ms"] > 0 and row["now_ms"] > 0 and row["now / then"] > 0 for row in rows)
    with capsys.disabled():
        for row in rows:
            print(f"\n{row['variant']}: {row['now / then']:.2f} of {row['then']}")


@pytest.mark.slow
def test_each_commit_is_measured_with_its_own_package(tmp_path, prepared) -> None:
    with against.checked_out("HEAD") as tree:
        assert (tree / "nnunetv2_vqseg" / "__init__.py").exists()
        arguments = step.forwarded(benchmark.parse(["step", *prepared]))
        with against.server(tree, sys.executable, [*arguments, "mean teacher"]) as process:
            assert against.asked(process, 1) > 0
    assert not tree.exists()
    file = tmp_path / "old.json"
    file.write_text(json.dumps({"machine": {"commit": "0" * 40}}), encoding="utf-8")
    with pytest.raises(SystemExit, match="cannot be checked out"):
        against.compared(str(file), [], [], 1, 1)
    file.write_text(json.dumps({"machine": {"commit": None}}), encoding="utf-8")
    with pytest.raises(SystemExit, match="does not say"):
        against.compared(str(file), [], [], 1, 1)


def test_a_comparison_is_made_on_the_same_workbench() -> None:
    given = ["-d", "7", "--patch", "32", "40", "--features", "4", "--batch-size", "3", "--codes", "64", "--compile"]
    args = benchmark.parse(["step", *given, "--progress", "0.5"])
    again = benchmark.parse(["step", *step.forwarded(args)])
    assert vars(again) == vars(args)


@pytest.mark.slow
@pytest.mark.nightly
def test_planning_many_files_is_measured(tmp_path) -> None:
    """In a process of its own, which waits for all that its commands start."""
    script, file = Path(benchmark.__file__), tmp_path / "measured.json"
    options = ["--files", "6", "12", "--folder", str(tmp_path), "--out", str(file)]
    subprocess.run([sys.executable, str(script), "files", *options], check=True)
    tables = json.loads(file.read_text(encoding="utf-8"))["tables"]
    assert [row["files"] for row in tables["files"]] == [6, 12]
    assert all(row["processor s"] > 0 and row["look processor s"] > 0 for row in tables["files"])
    assert [path.name for path in tmp_path.iterdir()] == ["measured.json"]


@pytest.mark.slow
def test_plain_steps_are_those_of_a_training(tmp_path, monkeypatch, prepared) -> None:
    """TORCH_LOGS is to see the graph breaks of a training, not those of a stopwatch."""
    trained = []
    train = step._train

    def remember(trainer, numbers) -> None:
        train(trainer, numbers)
        trained.append(trainer)

    monkeypatch.setattr(step, "_train", remember)
    for name in ("Stopwatch", "compare", "patch"):
        monkeypatch.setattr(step, name, None)
    monkeypatch.chdir(tmp_path)
    benchmark.main(["step", *QUICK, *prepared, "--variants", "VQ-Seg", "--plain-steps", "3"])
    assert [trainer.stepper.step for trainer in trained] == [3]
    assert list(tmp_path.iterdir()) == [], "results of an earlier measurement stay"


def test_time_of_an_inner_part_is_not_counted_twice(monkeypatch) -> None:
    ticks = iter([0.0, 1.0, 3.0, 10.0])
    monkeypatch.setattr("benchmarks.step.clock", lambda device: next(ticks))
    watch = Stopwatch(CPU)
    watch.timed("outer", watch.timed("inner", lambda: None))()
    assert watch.seconds == {"inner": 2.0, "outer": 8.0}


def test_fresh_memory_is_told_by_its_page_faults() -> None:
    size = 1 << 26

    def touch_every_page() -> None:
        with mmap.mmap(-1, size) as fresh:
            for place in range(0, size, mmap.PAGESIZE):
                fresh[place] = 1

    seconds, faults = measure.in_the_kernel(touch_every_page)
    assert faults >= size // (1 << 21)  # pages of 2 MB at most
    assert seconds >= 0.0
    assert measure.in_the_kernel(lambda: None)[1] < faults


def test_a_step_of_any_trainer_at_any_time_of_its_training(monkeypatch: pytest.MonkeyPatch) -> None:
    args = benchmark.parse(["step", "--variants", "VQ-Seg", "nnUNetTrainerBCP", "--progress", "0.6"])
    assert args.variants == ["VQ-Seg", "nnUNetTrainerBCP"]
    with pytest.raises(SystemExit):
        benchmark.parse(["step", "--variants", "nnUNetTrainerOfNobody"])

    class Bench:
        def started_trainer(self, name: str, **block: object) -> SimpleNamespace:
            return SimpleNamespace(name=name, block=block, num_epochs=10, num_iterations_per_epoch=5, stepper=Stepper())

    class Stepper:
        step = 0

    trainer = step._start(Bench(), "nnUNetTrainerBCP", 0.6)
    assert trainer.stepper.step == 30
    assert trainer.block == {"unlabeled_batch_size": None}, "the method's own"
