"""What the script that measures on a GPU makes of its measurements, also of those that fail."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import gpu_table

CPU = torch.device("cpu")


def step(variant: str, ms: float, recorded: bool, kind: str = "VQ-Seg") -> dict[str, Any]:
    return {"what": "step", "kind": kind, "variant": variant, "ms": ms, "recorded": recorded}


ROWS = [
    step("read late", 50.0, False),
    step("graph", 20.0, True),
    step("fused norm", 10.0, False),
    step("graph", 30.0, True, gpu_table.VIT),
    {"what": "foundation model", "ms": 5.0},
    {"what": "end of an epoch", "s": 1.0},
    {"what": "failed", "job": "stock, graph", "error": "RuntimeError: no memory"},
]


def test_a_step_that_was_not_recorded_is_not_shown_as_one_that_was(capsys):
    gpu_table.print_table(ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert "| graph | 20.0 (15 predicted) | not measured | 30.0 | not measured |" in lines
    assert "| fused norm | not recorded | not measured |  | not measured |" in lines
    assert "| read late | 50.0 (53 predicted) | not measured | not measured | not measured |" in lines
    assert "FAILED: stock, graph: RuntimeError: no memory" in lines


def test_what_follows_is_of_the_fastest_step_that_is_one():
    share, minutes = gpu_table.summary(ROWS).values()
    assert share == pytest.approx(5 / 25)
    assert minutes == pytest.approx(400 * (250 * 0.02 + 1) / 60)
    assert gpu_table.summary(ROWS[2:]) == {}


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """child(code) is what several trainings run."""

    def write(code: str) -> None:
        file = tmp_path / "child.py"
        file.write_text(code, encoding="utf-8")
        monkeypatch.setattr(gpu_table, "__file__", str(file))

    return write


def test_several_trainings_begin_when_all_are_ready(child, tmp_path: Path):
    child(
        "import os, sys\nfrom pathlib import Path\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "(folder / f'{os.getpid()}.ready').touch()\n"
        "print('ready', flush=True)\n"
        "assert sys.stdin.readline() == 'go\\n'\n"
        "assert len(list(folder.glob('*.ready'))) == 4\n"
        "print(10.0, 'recorded', flush=True)\n"
    )
    row = gpu_table.several("graph", CPU, 1)
    assert row["steps_a_second"] == pytest.approx(400)
    assert row["recorded"]


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import sys; sys.exit('no memory')", "ended before its first step with status 1: no memory"),
        ("import sys; print('ready', flush=True); input(); sys.exit('lost')", "ended in its steps with status 1: lost"),
    ],
)
def test_a_training_that_crashes_is_told_in_a_sentence(child, code, sentence):
    child(code)
    with pytest.raises(RuntimeError, match=f"one of the trainings {sentence}"):
        gpu_table.several("graph", CPU, 1)


def test_everything_is_asked_for_and_the_most_important_first(tmp_path: Path):
    args = type("Arguments", (), {"steps": 1})
    names = [job.name for job in gpu_table.jobs(args, CPU, tmp_path)]
    assert names[0] == "VQ-Seg, read at once"
    assert {"ViT-S + DPT, graph", "foundation model", "end of an epoch", "several trainings, graph"} < set(names)
    assert "ViT-S + DPT, fused norm" not in names
    assert len(names) == len(set(names))
