"""A training on a CPU keeps its memory, and has as many threads as were asked for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

FAULTS = """
import resource
import torch
from nnunetv2_vqseg.trainer.cpu import keep_freed_memory
kept = keep_freed_memory()
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(2**22) for _ in range(4)]  # 16 MB each, as feature maps are
    del maps
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**environment: str) -> tuple[bool, int]:
    """Of ten rounds in a process of its own, after `keep_freed_memory`, and what that said."""
    run = [sys.executable, "-c", FAULTS]
    output = subprocess.run(run, check=True, capture_output=True, text=True, env=os.environ | environment).stdout
    kept, faults = output.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_is_not_paid_for_twice():
    kept, faults = page_faults()
    left_alone, faults_without = page_faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept
    assert not left_alone, "a user's own variable comes first"
    assert faults < 1000
    assert faults_without > 10_000


@pytest.fixture
def threads(monkeypatch):
    """The number that torch was given last."""
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    return given


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMP_NUM_THREADS": "3"}, [3]),
        ({"OMP_NUM_THREADS": "many"}, []),
        ({"OMP_NUM_THREADS": "0"}, []),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "a"}, []),  # which torchrun set by itself
    ],
)
def test_a_trainer_takes_the_threads_that_were_asked_for(make_trainer, monkeypatch, threads, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    make_trainer()
    assert threads == expected
