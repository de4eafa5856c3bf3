"""An interrupted, failed or repeated conversion never leaves half a dataset and never loses a whole one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conversion_inputs import REPOSITORY
from Dataset027_ACDC import main

from nnunetv2_vqseg.core.folders import find_dataset

KILLED_AT_FIFTH_FILE = """
import os, signal, sys
sys.path.insert(0, {scripts!r})
import common
store, calls = common._store, []
def dying_store(*args):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    store(*args)
common._store = dying_store
from Dataset027_ACDC import main
main(["-i", {root!r}, "--labeled", "2", "-np", "1", "--overwrite"])
"""


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def convert(root: Path, *words: str) -> None:
    main(["-i", str(root), "--labeled", "2", "-np", "1", *words])


def kill_midway(root: Path) -> None:
    code = KILLED_AT_FIFTH_FILE.format(scripts=str(REPOSITORY / "dataset_conversion"), root=str(root))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_killed_run_leaves_no_dataset_and_the_next_run_works(
    raw: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_midway(shared)
    (left,) = raw.iterdir()
    assert len(list(left.rglob("*.nii.gz"))) == 4
    assert not left.name.startswith("Dataset"), "nnU-Net looks datasets up by the first letters of the folder's name"
    convert(shared)
    assert str(left) in capsys.readouterr().out
    assert find_dataset("27", raw) == "Dataset027_ACDC"


def test_killed_overwrite_leaves_the_old_dataset(raw: Path, shared: Path) -> None:
    convert(shared)
    before = snapshot(raw / "Dataset027_ACDC")
    kill_midway(shared)
    assert snapshot(raw / "Dataset027_ACDC") == before


def test_ctrl_c_cleans_up(raw: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("Dataset027_ACDC.finish_dataset", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(shared)
    assert list(raw.iterdir()) == []


def test_failure_while_swapping_restores_the_old_dataset(
    raw: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(shared)
    before = snapshot(raw)
    rename = Path.rename

    def failing_rename(self: Path, target: Path) -> Path:
        if self.name.startswith("tmp-"):
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(OSError, match="disk full"):
        convert(shared, "--overwrite")
    assert snapshot(raw) == before


def test_rest_of_the_old_dataset_does_not_stop_the_new_one(
    raw: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(shared)
    rmtree = shutil.rmtree

    def held_open(path: Path, ignore_errors: bool = False) -> None:
        if "Dataset027" not in str(path):
            rmtree(path, ignore_errors)
        elif not ignore_errors:
            raise OSError("busy")

    monkeypatch.setattr(shutil, "rmtree", held_open)
    convert(shared, "--overwrite")
    said = capsys.readouterr().out
    assert "the dataset that was replaced, could not be removed as a whole; delete it." in said
    assert said.count("Dataset027_ACDC is complete") == 2
    assert len(list(raw.iterdir())) == 2


def test_existing_dataset_needs_overwrite(raw: Path, shared: Path, fails: Callable[..., str]) -> None:
    convert(shared)
    marker = raw / "Dataset027_ACDC" / "marker"
    marker.touch()
    message = fails(main, "-i", shared, "--labeled", 2)
    assert "Dataset027_ACDC exists already" in message
    assert "--overwrite" in message
    assert marker.exists()
    convert(shared, "--overwrite")
    assert not marker.exists()
    assert [path.name for path in raw.iterdir()] == ["Dataset027_ACDC"]


def test_a_dataset_that_appears_meanwhile_is_not_replaced(
    raw: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    marker = raw / "Dataset027_ACDC" / "marker"

    def finish_last(*words: object, **about: object) -> None:
        marker.parent.mkdir()
        marker.touch()

    monkeypatch.setattr("Dataset027_ACDC.finish_dataset", finish_last)
    assert "add --overwrite to replace it" in fails(main, "-i", shared, "--labeled", 2, "-np", 1)
    assert list(raw.rglob("*")) == [marker.parent, marker]


def test_bad_input_does_not_cost_the_old_dataset(raw: Path, shared: Path, fails: Callable[..., str]) -> None:
    convert(shared)
    before = snapshot(raw)
    (shared / "training" / "patient003" / "patient003_frame01.nii.gz").write_text("garbage", encoding="utf-8")
    fails(main, "-i", shared, "--labeled", 2, "--overwrite", "-np", 1)
    assert snapshot(raw) == before


def test_repetition_gives_the_same_dataset(raw: Path, shared: Path) -> None:
    convert(shared)
    before = snapshot(raw)
    convert(shared, "--overwrite")
    assert snapshot(raw) == before


def test_a_dataset_id_is_used_once(raw: Path, shared: Path, fails: Callable[..., str]) -> None:
    (raw / "Dataset027_Other").mkdir(parents=True)
    assert "taken by" in fails(main, "-i", shared, "--labeled", 2, "--overwrite")


def test_preprocessed_data_of_the_old_dataset_are_not_trusted(
    raw: Path, shared: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    preprocessed = raw.parent / "nnUNet_preprocessed" / "Dataset027_ACDC"
    preprocessed.mkdir(parents=True)
    (preprocessed / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]', encoding="utf-8")
    assert str(preprocessed) in fails(main, "-i", shared, "--labeled", 2)
    convert(shared, "--overwrite")
    assert "plan_and_preprocess again" in capsys.readouterr().out
    new = json.loads((raw / "Dataset027_ACDC" / "splits_final.json").read_text(encoding="utf-8"))
    assert json.loads((preprocessed / "splits_final.json").read_text(encoding="utf-8")) == new
    assert json.loads((preprocessed / "splits_final.json.bak-1").read_text(encoding="utf-8"))[0]["val"] == ["b"]


def test_models_of_the_old_dataset_are_named(raw: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = raw.parent / "nnUNet_results" / "Dataset027_ACDC"
    fold = results / "nnUNetTrainerVQSeg__nnUNetPlans__2d" / "fold_0"
    fold.mkdir(parents=True)
    convert(shared)
    assert str(results) not in capsys.readouterr().out
    (fold / "checkpoint_best.pth").touch()
    convert(shared, "--overwrite")
    (note,) = [line for line in capsys.readouterr().out.splitlines() if str(results) in line]
    assert "perhaps on patients who are now for validation or test; move it away, or train again" in note


def test_unset_environment(shared: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert "nnUNet_raw is not set" in fails(main, "-i", shared, "--labeled", 2)
