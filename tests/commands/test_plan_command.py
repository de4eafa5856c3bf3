"""`nnUNetv2_vqseg_plan_and_preprocess` from raw images to two folders of preprocessed cases."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
from tiny_raw_dataset import add_case, make_dataset, write_dataset_json

from nnunetv2_vqseg.commands.plan import build_parser, main

NAME = "Dataset901_Tiny"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_samples: None) -> Path:
    for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(folder, str(tmp_path / folder))
    return tmp_path


def run(*arguments: str) -> None:
    # nnU-Net forks twelve processes to list a folder.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunetv2.utilities.utils.Pool", ThreadPool)
        main(["-d", "901", "-np", "1", "-npfp", "1", "--no_pbar", *arguments])


def cases(folder: Path) -> set[str]:
    return {file.stem for file in folder.glob("*.pkl")}


def test_arguments_are_nnunets(monkeypatch: pytest.MonkeyPatch):
    """Same options but for the ViT's, same defaults but for the configurations."""
    from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints as stock

    captured = {}

    def capture(parser: argparse.ArgumentParser) -> None:
        captured.update({option: action for action in parser._actions for option in action.option_strings})
        raise SystemExit

    monkeypatch.setattr("argparse.ArgumentParser.parse_args", capture)
    with pytest.raises(SystemExit):
        stock.plan_and_preprocess_entry()
    ours = {option: action for action in build_parser()._actions for option in action.option_strings}
    assert set(ours) - set(captured) == {"-encoder"}
    different = {option for option in captured if ours[option].default != captured[option].default}
    assert different == {"-c"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-d", "1", "-c", "3d_fullres"], "2d only, not for 3d_fullres"),
        (["-d", "1", "-c", "2d", "3d_lowres"], "2d only, not for 3d_lowres"),
        (["-d", "1", "-np", "1", "2"], "-np takes one number"),
        (["-c", "2d"], "-d"),
        (["-d", "1", "-overwrite_target_spacing", "1", "1"], "takes three numbers above 0, in mm, for 2d too"),
        (["-d", "1", "-overwrite_target_spacing", "10", "1", "0"], "takes three numbers above 0"),
    ],
)
def test_arguments_that_cannot_be_used_end_with_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_path_variable_ends_with_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(SystemExit) as end:
        main(["-d", "1"])
    assert end.value.code == 2
    assert "nnUNet_raw" in capsys.readouterr().err


def test_help_and_wrong_arguments_do_not_wait_for_nnunet():
    """Importing nnU-Net takes seconds."""
    code = (
        "import sys; from nnunetv2_vqseg.commands.plan import build_parser; build_parser(); "
        "sys.exit('torch' in sys.modules or 'nnunetv2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("option", ["-pl", "-fpe"])
def test_an_unknown_class_is_named(home: Path, option: str):
    make_dataset(home)
    with pytest.raises(SystemExit) as end:
        run(option, "NoSuchClass")
    assert "NoSuchClass" in str(end.value.code)


@pytest.mark.parametrize(
    ("planner", "images"),
    [
        ("ExperimentPlanner", 2.0),  # one view of as many unlabelled images
        ("nnUNetPlannerViT", 2.225),  # two views of them, and the image decoder's 0.15 of the labelled and one of these
    ],
)
def test_memory_is_planned_for_the_trainer_that_the_planner_is_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, planner: str, images: float
):
    seen = {}
    monkeypatch.setattr(
        "nnunetv2_vqseg.planning.api.plan_and_preprocess_dataset", lambda number, **options: seen.update(options)
    )
    run("-pl", planner)
    assert seen["images_a_label"]({}) == pytest.approx(images)


def test_data_that_cannot_be_used_end_with_a_sentence(home: Path):
    raw = make_dataset(home)
    add_case(raw, "imagesUl", "A")
    with pytest.raises(SystemExit) as end:
        run()
    assert "case A is both in" in str(end.value.code)
    assert list((home / "nnUNet_preprocessed").iterdir()) == []


@pytest.mark.slow
def test_from_raw_images_to_two_folders(home: Path, capsys: pytest.CaptureFixture[str]):
    raw = make_dataset(home, labeled="AB", unlabeled="UV", channels=2)
    run("--verify_dataset_integrity")
    base = home / "nnUNet_preprocessed" / NAME
    assert cases(base / "nnUNetVQSegPlans_2d") == {"A", "B"}
    assert cases(base / "nnUNetVQSegPlans_2d_unlabeled") == {"U", "V"}
    assert {file.name for file in (base / "gt_segmentations").iterdir()} == {"A.nii.gz", "B.nii.gz"}
    fingerprint = base / "dataset_fingerprint.json"
    assert len(json.loads(fingerprint.read_text(encoding="utf-8"))["spacings"]) == 2

    before = fingerprint.read_bytes()
    written = {file.name: file.stat().st_mtime_ns for file in (base / "nnUNetVQSegPlans_2d_unlabeled").iterdir()}
    add_case(raw, "imagesUl", "W", channels=2)
    add_case(raw, "imagesTs", "W", channels=2)
    capsys.readouterr()
    run()
    assert fingerprint.read_bytes() == before
    after = {file.name: file.stat().st_mtime_ns for file in (base / "nnUNetVQSegPlans_2d_unlabeled").iterdir()}
    assert {name: time for name, time in after.items() if not name.startswith("W")} == written
    said = capsys.readouterr().out
    assert "Preprocessing 1 of 3 unlabelled cases" in said
    assert said.count("transductive") == 1, "planning and preprocessing are one command"

    run("--clean")
    assert "Preprocessing 3 of 3 unlabelled cases" in capsys.readouterr().out

    run("--no_pp", "-overwrite_plans_name", "mine", "-gpu_memory_target", "4", "-pl", "ResEncUNetPlanner")
    plans = json.loads((base / "mine.json").read_text(encoding="utf-8"))
    assert plans["configurations"]["2d"]["data_identifier"] == "mine_2d"
    assert not (base / "mine_2d").exists()


@pytest.mark.slow
def test_hidden_labels_may_be_garbage_all_the_way(home: Path, monkeypatch: pytest.MonkeyPatch):
    """A benchmark inside one dataset: C and D are unlabelled in every fold, and nothing opens their labels."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("nnUNet_raw", "nnUNet_raw")  # as relative paths go into the list that nnU-Net is given
    raw = make_dataset(home, labeled="ABCD", unlabeled="U")
    for case in "CD":
        (raw / "labelsTr" / f"{case}.nii.gz").write_text("garbage", encoding="utf-8")
    folds = [{"train": ["A"], "val": ["B"], "unlabeled": ["C", "D"]}]
    (raw / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    run("--verify_dataset_integrity")
    base = home / "nnUNet_preprocessed" / NAME
    assert cases(base / "nnUNetVQSegPlans_2d") == {"A", "B"}
    assert cases(base / "nnUNetVQSegPlans_2d_unlabeled") == {"C", "D", "U"}
    assert {file.name for file in (base / "gt_segmentations").iterdir()} == {"A.nii.gz", "B.nii.gz"}
    assert json.loads((base / "splits_final.json").read_text(encoding="utf-8")) == folds
    assert json.loads((base / "dataset.json").read_text(encoding="utf-8")) == json.loads(
        (raw / "dataset.json").read_text(encoding="utf-8")
    )


@pytest.mark.slow
def test_verification_reads_the_unlabelled_images(home: Path):
    raw = make_dataset(home, labeled="AB", unlabeled="U")
    labelled = raw / "imagesTr" / "B_0000.nii.gz"
    whole = labelled.read_bytes()
    labelled.write_bytes(whole[: len(whole) // 2])  # nnU-Net's own check reads this without complaint
    with pytest.raises(SystemExit) as end:
        run("--verify_dataset_integrity")
    assert f"{labelled} is truncated" in str(end.value.code)
    labelled.write_bytes(whole)
    broken = raw / "imagesUl" / "U_0000.nii.gz"
    broken.write_bytes(b"")
    with pytest.raises(SystemExit) as end:
        run("--verify_dataset_integrity")
    assert f"{broken} has zero bytes" in str(end.value.code)
    assert not (home / "nnUNet_preprocessed" / NAME / "nnUNetVQSegPlans.json").exists()


@pytest.mark.slow
def test_without_unlabelled_images_it_plans_and_says_so(home: Path, capsys: pytest.CaptureFixture[str]):
    raw = make_dataset(home, labeled="AB", unlabeled=())
    write_dataset_json(raw)
    run("--no_pp")
    assert "labeled_as_unlabeled" in capsys.readouterr().out
    assert (home / "nnUNet_preprocessed" / NAME / "nnUNetVQSegPlans.json").is_file()


@pytest.mark.slow
def test_fingerprint_is_of_the_labelled_cases_of_now(home: Path, capsys: pytest.CaptureFixture[str]):
    """Annotating a case, or exchanging one, changes what intensities and shapes are planned with."""
    raw = make_dataset(home, labeled="AB", unlabeled="UV")
    fingerprint = home / "nnUNet_preprocessed" / NAME / "dataset_fingerprint.json"

    def extracted_again() -> bool:
        before = fingerprint.stat().st_mtime_ns
        capsys.readouterr()
        run("--no_pp")
        told = f"{fingerprint} is not of the labelled cases of now" in capsys.readouterr().out
        assert told == (fingerprint.stat().st_mtime_ns != before)
        return told

    run("--no_pp")
    assert not extracted_again()
    (raw / "imagesUl" / "U_0000.nii.gz").unlink()
    add_case(raw, "imagesTr", "U")
    write_dataset_json(raw)
    assert extracted_again()
    assert len(json.loads(fingerprint.read_text(encoding="utf-8"))["spacings"]) == 3
    add_case(raw, "imagesTr", "A", shape=(48, 48, 3), seed=1)
    assert extracted_again(), "another image of the same name"
    (fingerprint.parent / "labeled_fingerprinted.json").unlink()
    assert not extracted_again(), "one of nnU-Net's own command, of as many cases"
    folds = [{"train": ["A"], "val": ["B"], "unlabeled": ["U"]}]
    (raw / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    assert not extracted_again(), "planning does not read it"


@pytest.mark.slow
def test_a_case_that_no_fold_names_is_warned_of(home: Path, capsys: pytest.CaptureFixture[str]):
    raw = make_dataset(home, labeled="ABC", unlabeled="U")
    folds = [{"train": ["A"], "val": ["B"]}]
    (raw / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    run("--no_pp")
    said = capsys.readouterr().out
    assert "WARNING: No fold of splits_final.json names the case C of imagesTr, so only a training of fold all" in said
    folds.append({"train": ["C"], "val": ["A", "B"]})
    (raw / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    (home / "nnUNet_preprocessed" / NAME / "splits_final.json").unlink()
    run("--no_pp")
    assert "No fold of" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_for_a_split_is_told_where_nnunet_s_does_not_do(home: Path, capsys: pytest.CaptureFixture[str]):
    raw = make_dataset(home, labeled="ABC", unlabeled="U")

    def said() -> str:
        run("--no_pp")
        return capsys.readouterr().out.strip().splitlines()[-1]

    command = f"next run `nnUNetv2_vqseg_split -d {int(NAME[7:10])}`."
    assert said() == f"3 labelled case(s) are too few for nnU-Net's own split; {command}"
    for case in "DE":
        add_case(raw, "imagesTr", case)
    write_dataset_json(raw)
    assert command not in said(), "nnU-Net splits five cases"
    add_case(raw, "imagesTr", "E_scan2")
    write_dataset_json(raw)
    assert said() == f"nnU-Net's own split would tear patients with several cases apart; {command}"
    (raw / "splits_final.json").write_text(json.dumps([{"train": list("ABCD"), "val": ["E"]}]), encoding="utf-8")
    assert command not in said()
