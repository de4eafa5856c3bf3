"""The training log in a locale that knows ASCII only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
WRITE_A_LINE = """
import sys
from nnunetv2_vqseg.trainers import {trainer} as Trainer
trainer = Trainer.__new__(Trainer)
trainer.local_rank, trainer.log_file = 0, sys.argv[1]
trainer.print_to_log_file("F\\u00e4lle", 7)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainer", ["nnUNetTrainerVQSeg", pytest.param("nnUNetTrainerSupervised", marks=pytest.mark.nightly)]
)
def test_an_umlaut_stops_no_training(tmp_path: Path, trainer: str) -> None:
    log = tmp_path / "log.txt"
    command = [sys.executable, "-c", WRITE_A_LINE.format(trainer=trainer), str(log)]
    done = subprocess.run(command, env={**os.environ, **ASCII}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert log.read_text(encoding="utf-8").rstrip().endswith("F\\xe4lle 7")
    assert done.stdout.rstrip().endswith("F\\xe4lle 7")
