"""A process that trains again and again and writes down what it holds meanwhile and afterwards.

    python soak_training.py RECORD LONG_PLAN SHORT_PLAN [--quick]    # as test_soak.py starts it

First a training to its end, measured at the start of every epoch; then short ones that end in every way a training can
end. The last is ended by Ctrl-C and takes the process with it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nnunetv2.run.run_training import get_trainer_from_args
from resources import children, open_files, resident_kib, shared_memory, threads

from nnunetv2_vqseg.trainer.trainer import MethodTrainer

SECONDS = 45 * 60


def make_trainer(plan: str) -> MethodTrainer:
    return get_trainer_from_args("901", "2d", 0, "nnUNetTrainerVQSeg", plan, device=torch.device("cpu"))


def holdings() -> dict[str, Any]:
    """What this process and its children hold now."""
    own = os.getpid()
    workers = children(own)
    return {
        "main_kib": resident_kib(own),
        "workers": workers,
        "worker_kib": [resident_kib(worker) for worker in workers],
        "threads": threads(own),
        "python_threads": [thread.name for thread in threading.enumerate()],
        "files": [file for file in open_files(own) if not file.startswith("/dev/shm/")],
        "shared_memory": sorted({name for pid in (own, *workers) for name in shared_memory(pid)}),
    }


def write_down(record: Path, **line: Any) -> None:
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def train_measured(record: Path, plan: str) -> None:
    """A whole training with its plots.

    After 45 minutes it is asked to stop, as by a cluster.
    """
    trainer = make_trainer(plan)
    begin, time_is_up = trainer.on_epoch_start, time.monotonic() + SECONDS

    def measure_and_begin() -> None:
        if time.monotonic() > time_is_up:
            os.kill(os.getpid(), signal.SIGTERM)
        write_down(record, epoch=trainer.current_epoch, step=trainer.stepper.step, **holdings())
        begin()

    trainer.on_epoch_start = measure_and_begin
    with contextlib.suppress(SystemExit):
        trainer.run_training()
    gc.collect()
    write_down(record, ending="end of the long one", **holdings())


def press_ctrl_c() -> None:
    """As a terminal does: to the training and to its workers."""
    os.killpg(os.getpgrp(), signal.SIGINT)


def fail() -> None:
    raise ZeroDivisionError


def train_until(happens: Callable[[], None] | None, plan: str, record: Path) -> None:
    """A training in whose second step something happens, and what is held while the trainer is still there."""
    trainer = make_trainer(plan)
    step = trainer.train_step

    def train_step(batch: dict) -> dict:
        if happens is not None and trainer.stepper.step == 1:
            happens()
        return step(batch)

    trainer.train_step = train_step
    ending = "end"
    try:
        trainer.run_training()
    except (ZeroDivisionError, KeyboardInterrupt) as error:
        ending = type(error).__name__
    gc.collect()
    write_down(record, ending=ending, **holdings())


def main(record: Path, long_plan: str, short_plan: str, *options: str) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have their background jobs ignore Ctrl-C
    quick = "--quick" in options
    train_measured(record, long_plan)
    for happens in (None, fail, press_ctrl_c):
        train_until(happens, short_plan, record)
    trainer = make_trainer(short_plan)
    trainer.initialize()
    if not quick:
        # Starts a process of Python's own, multiprocessing.resource_tracker, that stays to the end of this one.
        trainer.perform_actual_validation()
    trainer.on_validation_epoch_start = press_ctrl_c
    trainer.run_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
