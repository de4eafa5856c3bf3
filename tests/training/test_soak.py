"""A training that runs for long holds no more at its end than at its beginning, and nothing afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_trainings import variables

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3 * 3600),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


class Soak(NamedTuple):
    """What `soak_training.py` wrote down, and what was left when it had ended."""

    epochs: list[dict[str, Any]]
    endings: list[dict[str, Any]]
    pid: int
    exit_code: int
    left_processes: dict[int, str]
    said: str


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({"num_epochs": 12, "iterations_per_epoch": 20}, id="12 epochs", marks=pytest.mark.nightly),
        pytest.param(
            {"num_epochs": 200, "iterations_per_epoch": 50, "val_iterations_per_epoch": 10, "save_every": 10},
            id="200 epochs",
            marks=pytest.mark.nightly,
        ),
    ],
)
def soak(request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soak]:
    """One process that trains five times, with two workers for the labelled images, one each for the others."""
    from real_training import write_plan
    from resources import session

    write_plan(home, "SoakPlans", **request.param)
    write_plan(home, "BriefPlans", num_epochs=1)
    folder = tmp_path_factory.mktemp("soak")
    record, log = folder / "record.jsonl", folder / "log"
    command = [sys.executable, Path(__file__).with_name("soak_training.py"), record, "SoakPlans", "BriefPlans"]
    quick = request.param["num_epochs"] < 100
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*map(str, command), *(["--quick"] if quick else [])],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables(home), "nnUNet_n_proc_DA": "2"},
            start_new_session=True,
        )
        try:
            exit_code = process.wait()
            patience = 60
            while session(process.pid) and patience:  # Python's resource tracker ends a moment after its process
                time.sleep(1)
                patience -= 1
        finally:
            left = session(process.pid)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    yield Soak(
        [line for line in lines if "epoch" in line],
        [line for line in lines if "ending" in line],
        process.pid,
        exit_code,
        left,
        log.read_text(encoding="utf-8"),
    )
    shutil.rmtree(home / "results")
    (home / "results").mkdir()


def test_memory_is_flat_after_a_short_while(soak: Soak) -> None:
    quarter = len(soak.epochs) // 4

    def growth(resident: list[int]) -> int:
        """From the second quarter's lowest to the last one's: garbage not yet collected does not count."""
        return min(resident[-quarter:]) - min(resident[quarter : 2 * quarter])

    main = [epoch["main_kib"] for epoch in soak.epochs]
    assert growth(main) < 16 * 1024, main  # what malloc gives back differs by 5 MB
    workers = [epoch["worker_kib"] for epoch in soak.epochs]
    assert {len(resident) for resident in workers} == {2 + 1 + 1}, "labelled, validation, unlabelled"
    for resident in zip(*workers, strict=True):
        assert growth(list(resident)) < 4 * 1024, resident


def test_threads_files_and_shared_memory_are_as_many_in_every_epoch(soak: Soak) -> None:
    def lasting(epoch: dict[str, Any]) -> dict[str, Any]:
        """Without the thread that writes a checkpoint, its file, and sockets over which a tensor is passed just now."""
        writing = epoch["python_threads"].count("checkpoint")
        assert writing <= 1
        files = [file for file in epoch["files"] if file != "socket" and ".checkpoint_" not in file]
        assert len(epoch["files"]) - len(files) <= 6
        names = sorted(name for name in epoch["python_threads"] if name != "checkpoint")
        return {"threads": epoch["threads"] - writing, "names": names, "files": files, "workers": epoch["workers"]}

    first, *others = soak.epochs[1:]
    for epoch in others:
        assert lasting(epoch) == lasting(first), "no worker was replaced either"
        # Three loaders' queues can hold 120 and need 42 semaphores; one segment a step would soon be more.
        assert len(epoch["shared_memory"]) < 200


def test_nothing_is_held_after_the_end_an_exception_or_ctrl_c(soak: Soak) -> None:
    endings = [ending["ending"] for ending in soak.endings]
    assert endings == ["end of the long one", "end", "ZeroDivisionError", "KeyboardInterrupt"]
    first = soak.endings[0]
    for ending in soak.endings:
        assert ending["workers"] == []
        assert ending["python_threads"] == ["MainThread"]
        assert ending["shared_memory"] == []
        assert ending["threads"] == first["threads"], ending["ending"]
        assert ending["files"] == first["files"], ending["ending"]
    assert not [file for file in first["files"] if file in ("pipe", "socket")]


def test_ctrl_c_ends_the_process_and_all_that_it_started(soak: Soak) -> None:
    assert soak.exit_code == -signal.SIGINT
    assert "KeyboardInterrupt" in soak.said
    assert soak.left_processes == {}
    # PyTorch's segments are named after the process that makes them.
    measured = [*soak.epochs, *soak.endings]
    held = {name for line in measured for name in line["shared_memory"]}
    makers = {soak.pid, *(worker for line in measured for worker in line["workers"])}
    held |= {f"torch_{pid}_" for pid in makers}
    assert not [file for file in Path("/dev/shm").iterdir() if file.name.startswith(tuple(held))]
