"""`nnUNetv2_train` without `-p`, where only our plan is there, is answered with the command that works."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
from pathlib import Path

import pytest
from nnunetv2.run.run_training import run_training_entry

import nnunetv2_vqseg
from nnunetv2_vqseg.commands import convert_weights
from nnunetv2_vqseg.commands import train as train_command
from nnunetv2_vqseg.core.errors import PlansError
from nnunetv2_vqseg.planning.missing_plan import corrected_command, plan_without_option

TRAIN = "/bin/nnUNetv2_train 123 2d 0 -tr nnUNetTrainerVQSeg"


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preprocessed dataset with our plan alone."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / "Dataset123_Hearts"
    folder.mkdir()
    (folder / "dataset.json").write_text("{}", encoding="utf-8")
    add_plan(folder, "nnUNetVQSegPlans")
    return folder


def add_plan(folder: Path, name: str) -> None:
    (folder / f"{name}.json").write_text(json.dumps({"configurations": {"2d": {}}}), encoding="utf-8")


def said(command: str) -> str | None:
    return corrected_command(shlex.split(command))


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize(
    ("options", "corrected"),
    [
        ("", " -p nnUNetVQSegPlans"),
        (" --c -device cpu", " --c -device cpu -p nnUNetVQSegPlans"),
        (" -p nnUNetPlans --npz", " -p nnUNetVQSegPlans --npz"),
    ],
)
def test_the_whole_command_is_told(options, corrected):
    asked = "nnUNetPlans"
    expected = f"nnUNetv2_train 123 2d 0 -tr nnUNetTrainerVQSeg{corrected}"
    assert said(TRAIN + options) == f"Dataset123_Hearts has no plan {asked}, but nnUNetVQSegPlans; run: {expected}"


FILE = "-pretrained_weights weights.pth"


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize(
    ("arguments", "corrected"),
    [
        ("123 2d 0 -p=Mine --npz", "123 2d 0 -p nnUNetVQSegPlans --npz"),
        ("123 2d 0 -pMine --npz", "123 2d 0 -p nnUNetVQSegPlans --npz"),
        ("-p Mine 123 2d 0", "-p nnUNetVQSegPlans 123 2d 0"),
        ("-tr nnUNetTrainerVQSeg -p=Mine --c 123 2d 0", "-tr nnUNetTrainerVQSeg -p nnUNetVQSegPlans --c 123 2d 0"),
        ("-device=cpu 123 2d all --disable -p Mine", "-device=cpu 123 2d all --disable -p nnUNetVQSegPlans"),
        ("-dev cpu 123 -num 2 2d all -pMine", "-dev cpu 123 -num 2 2d all -p nnUNetVQSegPlans"),
        (f"123 2d 0 {FILE} -p Mine", f"123 2d 0 {FILE} -p nnUNetVQSegPlans"),
        ("123 2d 0 -pretrained_weights=w.pth -p Mine", "123 2d 0 -pretrained_weights=w.pth -p nnUNetVQSegPlans"),
        ("123 2d 0 -p nnUNetVQSegPlans -p=Mine", "123 2d 0 -p nnUNetVQSegPlans"),
    ],
)
def test_every_form_that_argparse_takes(arguments, corrected):
    line = f"/bin/nnUNetv2_train {arguments}"
    assert said(line) == f"Dataset123_Hearts has no plan Mine, but nnUNetVQSegPlans; run: nnUNetv2_train {corrected}"
    assert nnunet_reads(arguments) == nnunet_reads(corrected) | {"p": "Mine"}, "nothing else changes"
    assert said(f"/bin/nnUNetv2_train {corrected}") is None


def nnunet_reads(arguments: str) -> dict[str, object]:
    """As nnU-Net's own command does."""
    read: list[argparse.Namespace] = []
    parse = argparse.ArgumentParser.parse_args

    def remember(parser, args=None, namespace=None):
        read.append(parse(parser, shlex.split(arguments), namespace))
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", remember)
        with pytest.raises(SystemExit):
            run_training_entry()
    return vars(read[0])


def test_nothing_is_said_where_the_plan_is_there(dataset):
    for form in ("-p=nnUNetVQSegPlans", "-pnnUNetVQSegPlans"):
        assert said(f"{TRAIN} {form}") is None
    assert said(f"{TRAIN} -p nnUNetVQSegPlans") is None
    add_plan(dataset, "nnUNetPlans")
    assert said(TRAIN) is None


def test_nothing_is_said_where_nothing_better_is_known(dataset, monkeypatch):
    assert said(TRAIN.replace("123", "124")) is None
    assert said(TRAIN.replace("nnUNetv2_train", "nnUNetv2_predict")) is None
    assert said("/bin/nnUNetv2_train -tr") is None
    assert corrected_command([]) is None
    (dataset / "nnUNetVQSegPlans.json").unlink()
    assert said(TRAIN) is None
    monkeypatch.delenv("nnUNet_preprocessed")
    assert said(TRAIN) is None


@pytest.mark.usefixtures("dataset")
def test_it_is_said_when_nnunet_asks_for_the_trainer(monkeypatch):
    file = Path(nnunetv2_vqseg.__file__).parent / "shim" / "vqseg_trainers.py"
    spec = importlib.util.spec_from_file_location("shim_of_this_test", file)
    shim = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shim)
    monkeypatch.setattr("sys.argv", shlex.split(TRAIN))
    with pytest.raises(SystemExit, match=r"^ERROR: Dataset123_Hearts has no plan nnUNetPlans"):
        shim.nnUNetTrainerVQSeg  # noqa: B018
    monkeypatch.setattr("sys.argv", ["nnUNetv2_predict"])
    assert shim.nnUNetTrainerVQSeg.__name__ == "nnUNetTrainerVQSeg"
    assert not hasattr(shim, "nnUNetTrainerOfNobody")


def test_a_trainer_of_a_vit_gets_the_plan_of_a_vit(dataset):
    add_plan(dataset, "nnUNetViTPlans")
    command = TRAIN.replace("nnUNetTrainerVQSeg", "nnUNetTrainerMeanTeacherViT_5epochs")
    assert said(command).endswith("-tr nnUNetTrainerMeanTeacherViT_5epochs -p nnUNetViTPlans")
    assert said(TRAIN).endswith("-p nnUNetVQSegPlans")


def test_our_commands_take_nnunets_plan_first(dataset):
    assert plan_without_option(dataset) == "nnUNetVQSegPlans"
    add_plan(dataset, "Mine")
    assert plan_without_option(dataset) == "nnUNetVQSegPlans"
    add_plan(dataset, "nnUNetPlans")
    assert plan_without_option(dataset) == "nnUNetPlans"
    for name in ("nnUNetPlans", "nnUNetVQSegPlans"):
        (dataset / f"{name}.json").unlink()
    assert plan_without_option(dataset) == "Mine", "the only one"
    add_plan(dataset, "Other")
    with pytest.raises(PlansError, match="Dataset123_Hearts has the plans Mine, Other; say with -p which one"):
        plan_without_option(dataset)


def test_both_commands_ask_for_it(dataset, monkeypatch, tmp_path):
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "heart": 1}, "file_ending": ".nii.gz"}
    (dataset / "dataset.json").write_text(json.dumps(description | {"numTraining": 2}), encoding="utf-8")
    add_plan(dataset, "nnUNetPlans")
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    found = {}
    monkeypatch.setattr(train_command, "train_alone", lambda args: found.update(train=args.p))
    monkeypatch.setattr(convert_weights, "convert", lambda *arguments: found.update(convert=arguments[4]))
    for plan, options in (("nnUNetPlans", []), ("nnUNetVQSegPlans", ["-p", "nnUNetVQSegPlans"])):
        train_command.main(["123", "2d", "0", "-device", "cpu", *options])
        convert_weights.main(["-i", "weights.pth", "-d", "123", "-o", str(tmp_path / "new.pth"), *options])
        assert found == {"train": plan, "convert": plan}
