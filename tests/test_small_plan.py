"""`scripts/small_plan.py` does what it is asked, or says that it does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import small_plan


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    file = tmp_path / "Dataset901_Tiny" / "nnUNetVQSegPlans.json"
    file.parent.mkdir()
    architecture = {"arch_kwargs": {"n_conv_per_stage": [2] * 7}}
    plan = {"2d": {"patch_size": [256, 224], "spacing": [1.5, 1.5], "architecture": architecture}}
    file.write_text(json.dumps({"configurations": plan}), encoding="utf-8")
    return file


def edited(file: Path, *words: str) -> dict[str, Any]:
    small_plan.main(["-d", "901", *words])
    return json.loads(file.read_text(encoding="utf-8"))["configurations"]


def test_spacing_needs_no_patch(file: Path) -> None:
    configuration = edited(file, "--spacing", "3", "--set", "epsilon=0.5")["2d"]
    assert (configuration["spacing"], configuration["patch_size"]) == ([3.0, 3.0], [256, 224])
    assert configuration["vqseg"] == {"epsilon": 0.5}


def test_patch_makes_a_network_for_it(file: Path) -> None:
    configuration = edited(file, "--patch", "80", "--max-features", "40")["2d"]
    assert (configuration["spacing"], configuration["patch_size"]) == ([1.5, 1.5], [80, 80])
    architecture = configuration["architecture"]["arch_kwargs"]
    assert architecture["features_per_stage"] == [16, 32, 40, 40, 40]
    assert 80 // 2 ** (architecture["n_stages"] - 1) >= small_plan.MINIMUM_EDGE


def test_a_vit_gets_the_patch_alone_and_one_that_fits(file: Path) -> None:
    plan = json.loads(file.read_text(encoding="utf-8"))
    vit = {"encoder": "some_vit", "strides": [[14, 14], [1, 1], [1, 1], [1, 1]]}
    plan["configurations"]["2d"]["architecture"]["arch_kwargs"] = vit
    file.write_text(json.dumps(plan), encoding="utf-8")
    configuration = edited(file, "--patch", "112", "--features", "4", "--spacing", "3")["2d"]
    assert (configuration["spacing"], configuration["patch_size"]) == ([3.0, 3.0], [112, 112])
    assert configuration["architecture"]["arch_kwargs"] == vit
    with pytest.raises(SystemExit, match="A patch of 80 pixels does not fit the ViT's tokens of 14; take 70"):
        edited(file, "--patch", "80")


@pytest.mark.parametrize("option", ["--features", "--max-features"])
def test_features_without_a_patch_are_refused(file: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_bytes()
    with pytest.raises(SystemExit):
        edited(file, option, "32")
    assert "add --patch" in capsys.readouterr().err
    assert file.read_bytes() == before
