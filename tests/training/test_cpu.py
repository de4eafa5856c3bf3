"""A training on a CPU keeps its memory, and has as many threads as were asked for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nnunetv2_vqseg.trainer import cpu

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
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    output = subprocess.run(run, check=True, capture_output=True, text=True, env=plain | environment).stdout
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


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("name", ["nnUNetTrainerVQSeg", "nnUNetTrainerCPS"])
def test_bfloat16_is_used_where_it_is_asked_for_and_fast(make_trainer, monkeypatch, name, amx):
    monkeypatch.setattr(cpu, "has_amx", lambda: amx)
    found = {}
    for asked in (False, True):
        trainer = make_trainer(name, bfloat16_on_cpu=asked)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        seen: set[torch.dtype] = set()
        layer = next(module for module in trainer.network.modules() if isinstance(module, torch.nn.Conv2d))
        layer.register_forward_hook(lambda _, __, output, seen=seen: seen.add(output.dtype))
        losses = [float(trainer.train_step(next(trainer.dataloader_train))["loss"]) for _ in range(3)]
        found[asked] = losses
        assert seen == {torch.bfloat16 if asked and amx else torch.float32}
        log = Path(trainer.log_file).read_text(encoding="utf-8")
        assert ("has no AMX" in log) == (asked and not amx)
        assert {value.dtype for value in trainer.network.parameters()} == {torch.float32}
    assert found[True] == pytest.approx(found[False], rel=0.05 if amx else 0)
    assert (found[True] == found[False]) != amx


def test_the_processor_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert cpu.has_amx()
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not cpu.has_amx()


@pytest.mark.parametrize(("dimensions", "layout"), [(2, "channels_last"), (3, "channels_last_3d")])
def test_fused_norms_have_the_layout_of_the_plan_s_dimensions(make_trainer, monkeypatch, dimensions, layout):
    trainer = make_trainer(fused_norm=True)
    monkeypatch.setattr("nnunetv2_vqseg.modules.fused_norm.is_available", lambda: True)
    monkeypatch.setattr(trainer, "device", torch.device("cuda"))
    monkeypatch.setattr(trainer, "_do_i_compile", lambda: False)
    monkeypatch.setitem(trainer.configuration_manager.configuration, "patch_size", [8] * dimensions)
    convolution, norm = ((nn.Conv2d, nn.InstanceNorm2d), (nn.Conv3d, nn.InstanceNorm3d))[dimensions - 2]
    network = nn.Sequential(convolution(2, 4, 3), norm(4, affine=True), nn.LeakyReLU())
    trainer._fuse_norms(network)
    assert network[0].weight.is_contiguous(memory_format=getattr(torch, layout))
    log = Path(trainer.log_file).read_text(encoding="utf-8")
    assert f"1 InstanceNorms with LeakyReLU are one operation each, in {layout}." in log


def test_fused_norms_say_why_they_change_nothing_on_a_cpu(make_trainer):
    trainer = make_trainer(fused_norm=True)
    trainer.initialize()
    assert "fused_norm changes nothing: there is no GPU." in Path(trainer.log_file).read_text(encoding="utf-8")
