"""Plots are drawn by another process, now and then, and no end of a training is spoilt by it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_vqseg.trainer.plots import Plots


def touch(file: str, text: str = "") -> None:
    Path(file).write_text(f"{text}{os.getpid()}", encoding="utf-8")


def fail(kind: type[Exception], *message: object) -> None:
    raise kind(*message)


def print_and_end() -> None:
    print("no answer", flush=True)


def end_process() -> None:
    os._exit(1)


def end_once(file: str) -> None:
    if not Path(file).exists():
        touch(file)
        os._exit(1)


def wait(seconds: float) -> None:
    time.sleep(seconds)


@pytest.fixture
def warned() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def plots(warned):
    plots = Plots(lambda *what: warned.append(what), every=0.0)
    yield plots
    plots.end()


def test_another_process_draws_all_before_close_returns(plots, warned, tmp_path):
    started = time.monotonic()
    for name in "ab":
        plots.draw(name, touch, str(tmp_path / name))
    plots.draw("c", print_and_end)
    assert time.monotonic() - started < 0.5, "nobody waits"
    plots.close()
    processes = {(tmp_path / name).read_text(encoding="utf-8") for name in "ab"}
    assert len(processes) == 1
    assert str(os.getpid()) not in processes
    assert warned == []
    plots.draw("d", touch, str(tmp_path / "d"))
    plots.close()
    assert (tmp_path / "d").exists(), "a training may be continued with the same object"


def test_what_cannot_be_drawn_is_a_warning_and_the_rest_is_drawn(plots, warned, tmp_path):
    plots.draw("progress.png", fail, OSError, 28, "No space left on device")
    plots.draw("other.png", fail, KeyError)
    plots.draw("a", touch, str(tmp_path / "a"))
    plots.close()
    assert warned == [("progress.png", "[Errno 28] No space left on device"), ("other.png", "KeyError")]
    assert (tmp_path / "a").exists()


def test_a_process_that_is_ended_is_started_again(plots, warned, tmp_path):
    plots.draw("once", end_once, str(tmp_path / "once"))
    plots.draw("a", touch, str(tmp_path / "a"))
    plots.close()
    assert warned == []
    assert (tmp_path / "a").exists()
    plots.draw("never", end_process)
    plots.close()
    ((name, problem),) = warned
    assert name == "never"
    assert problem.startswith("the process that draws ended")


def test_a_minute_between_two_drawings_but_the_first_and_the_last(warned, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plots = Plots(lambda *what: warned.append(what), every=60.0)
    assert plots.is_due()
    now[0] = 59.0
    assert not plots.is_due()
    assert plots.is_due(always=True)
    now[0] = 118.0
    assert not plots.is_due()
    now[0] = 119.0
    plots._waiting = 1
    assert not plots.is_due(), "the one before is not drawn yet"
    plots._drawn = 1
    assert plots.is_due()


def test_ending_waits_for_nothing(plots, warned):
    plots.draw("slow", wait, 60.0)
    while plots._process is None:
        time.sleep(0.01)
    process, started = plots._process, time.monotonic()
    plots.end()
    assert time.monotonic() - started < 5
    assert process.poll() is not None
    assert warned == []


TRAINING = """
import sys, time
from test_plots import touch
from nnunetv2_vqseg.trainer.plots import Plots
plots = Plots(print, 0.0)
plots.draw("a", touch, sys.argv[1])
while plots._drawn == 0:
    time.sleep(0.01)
print("drawn", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_the_process_ends_with_a_training_that_is_killed(tmp_path):
    file = tmp_path / "a"
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    training = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(file)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert training.stdout.readline() == b"drawn\n"
    painter = int(file.read_text(encoding="utf-8"))
    training.send_signal(signal.SIGKILL)
    training.wait()
    training.stdout.close()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{painter}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{painter}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    assert time.monotonic() < deadline, "it reads from the training's pipe, which is closed"
