"""`nnUNetv2_vqseg_add_labels` moves annotated cases over, keeps plan and fingerprint, and can be repeated."""

from __future__ import annotations

import json
import shutil
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tiny_raw_dataset import add_case, make_dataset, write_dataset_json
from tiny_trainings import TINY, shrink

from nnunetv2_vqseg.commands.add_labels import main
from nnunetv2_vqseg.commands.plan import main as plan

pytestmark = pytest.mark.slow

NAME = "Dataset901_Tiny"
FOLDS = [{"train": ["A", "B"], "val": ["C"]}, {"train": ["A", "C"], "val": ["B"]}]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled and three unlabelled cases, planned and preprocessed, with two folds."""
    home = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
            (home / folder).mkdir()
            patch.setenv(folder, str(home / folder))
        raw = make_dataset(home, labeled="ABC", unlabeled=["U", "V", "C_scan2"])
        (raw / "splits_final.json").write_text(json.dumps(FOLDS), encoding="utf-8")
        patch.setattr("nnunetv2.utilities.utils.Pool", ThreadPool)
        plan(["-d", "901", "-np", "1", "-npfp", "1", "--no_pbar"])
    return home


@pytest.fixture
def home(planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, with labels of U in the folder `new`."""
    home = Path(shutil.copytree(planned, tmp_path / "home"))
    for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(folder, str(home / folder))
    label(home, "U")
    return home


def label(home: Path, case: str) -> Path:
    """Annotate a case: a label in the folder `new`."""
    file = home / "new" / f"{case}.nii.gz"
    file.parent.mkdir(exist_ok=True)
    shutil.copy(home / "nnUNet_raw" / NAME / "labelsTr" / "A.nii.gz", file)
    return file


def add(home: Path, *options: str) -> None:
    main(["-d", "901", "-i", str(home / "new"), "-np", "1", *options])


def fails(home: Path, *options: str) -> str:
    before = contents(home)
    with pytest.raises(SystemExit) as stop:
        add(home, *options)
    assert contents(home) == before, "nothing may have changed"
    return str(stop.value)


def contents(home: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in home.rglob("*") if file.is_file() and ".json.lock" not in file.name}


def folds(home: Path, kind: str) -> list[dict[str, list[str]]]:
    return json.loads((home / f"nnUNet_{kind}" / NAME / "splits_final.json").read_text(encoding="utf-8"))


def test_a_case_joins_the_labelled_ones(home: Path):
    raw, base = home / "nnUNet_raw" / NAME, home / "nnUNet_preprocessed" / NAME
    kept = {file: file.read_bytes() for file in base.glob("*Plans.json")}
    kept |= {base / "dataset_fingerprint.json": (base / "dataset_fingerprint.json").read_bytes()}
    image = (raw / "imagesUl" / "U_0000.nii.gz").read_bytes()
    add(home)
    assert (raw / "imagesTr" / "U_0000.nii.gz").read_bytes() == image
    assert not (raw / "imagesUl" / "U_0000.nii.gz").exists()
    assert (raw / "labelsTr" / "U.nii.gz").read_bytes() == (home / "new" / "U.nii.gz").read_bytes()
    assert (base / "gt_segmentations" / "U.nii.gz").is_file()
    assert {file.stem for file in (base / "nnUNetVQSegPlans_2d").glob("*.pkl")} == {*"ABCU"}
    assert (base / "nnUNetVQSegPlans_2d" / "U_seg.b2nd").is_file()
    assert all(file.read_bytes() == content for file, content in kept.items())
    for kind in ("raw", "preprocessed"):
        description = json.loads((home / f"nnUNet_{kind}" / NAME / "dataset.json").read_text(encoding="utf-8"))
        assert description["numTraining"] == 4
        assert [fold["train"] for fold in folds(home, kind)] == [["A", "B", "U"], ["A", "C", "U"]]
        assert [fold["val"] for fold in folds(home, kind)] == [["C"], ["B"]]


@pytest.mark.nightly
def test_it_is_preprocessed_as_nnunet_would(home: Path, monkeypatch: pytest.MonkeyPatch):
    import blosc2

    add(home)
    folder = home / "nnUNet_preprocessed" / NAME / "nnUNetVQSegPlans_2d"
    mine = [blosc2.open(str(folder / f"U{ending}.b2nd"))[:] for ending in ("", "_seg")]
    monkeypatch.setattr("nnunetv2.utilities.utils.Pool", ThreadPool)
    plan(["-d", "901", "-np", "1", "-npfp", "1", "--no_pbar"])
    theirs = [blosc2.open(str(folder / f"U{ending}.b2nd"))[:] for ending in ("", "_seg")]
    assert mine[0].shape == theirs[0].shape
    assert (mine[1] == theirs[1]).all()


def test_repeating_it_changes_nothing_and_completes_what_was_interrupted(home: Path):
    raw = home / "nnUNet_raw" / NAME
    add(home)
    after = contents(home)
    add(home)
    assert {file.name for file in contents(home)} == {file.name for file in after}
    assert folds(home, "raw")[0]["train"] == ["A", "B", "U"]
    # As if it had been killed between moving the image and writing the splits.
    (raw / "splits_final.json").write_text(json.dumps(FOLDS), encoding="utf-8")
    add(home)
    assert folds(home, "raw")[0]["train"] == ["A", "B", "U"]


def test_another_scan_of_a_validation_patient_is_validated_on(home: Path, capsys: pytest.CaptureFixture[str]):
    label(home, "C_scan2")
    add(home)
    first, second = folds(home, "preprocessed")
    assert first["val"] == ["C", "C_scan2"]
    assert "C_scan2" not in first["train"]
    assert second["train"] == ["A", "C", "C_scan2", "U"]
    assert "Validated on, beside other scans of the same patient: C_scan2" in capsys.readouterr().out


def test_what_does_not_fit_is_refused_before_anything_moves(home: Path):
    other = label(home, "X")
    assert "X in" in fails(home)
    other.unlink()
    shutil.copy(home / "new" / "U.nii.gz", home / "new" / "A.nii.gz")
    (home / "new" / "A.nii.gz").write_bytes(b"another")
    assert "A.nii.gz is another label of this case" in fails(home)
    (home / "new" / "A.nii.gz").unlink()
    (home / "new" / "U.nii.gz").write_bytes(b"no image")
    assert "U" in fails(home)
    (home / "new" / "U.nii.gz").unlink()
    assert "has no file CASE.nii.gz" in fails(home)


NAMED_BY_LETTER = r"([A-Z])"


@pytest.mark.parametrize("told", ["by the split", "by the option"])
def test_scans_of_a_patient_are_told_apart_as_the_split_does(home: Path, told: str):
    """`Cnew` is a patient of its own by the usual names, and C's by the pattern that the folds were made with."""
    raw, options = home / "nnUNet_raw" / NAME, []
    add_case(raw, "imagesUl", "Cnew")
    label(home, "Cnew")
    made = [fold | {"patient_regex": NAMED_BY_LETTER} for fold in FOLDS]
    if told == "by the option":
        made, options = FOLDS, ["--patient-regex", NAMED_BY_LETTER]
    for kind in ("raw", "preprocessed"):
        (home / f"nnUNet_{kind}" / NAME / "splits_final.json").write_text(json.dumps(made), encoding="utf-8")
    add(home, *options)
    first, second = folds(home, "preprocessed")
    assert (first["train"], first["val"]) == (["A", "B", "U"], ["C", "Cnew"])
    assert (second["train"], second["val"]) == (["A", "C", "Cnew", "U"], ["B"])
    assert first.get("patient_regex") == made[0].get("patient_regex")


def test_a_name_without_a_patient_is_refused_before_anything_moves(home: Path):
    assert "finds no patient in the case name 'U'" in fails(home, "--patient-regex", "([A-C])")


def test_a_tiffs_spacing_goes_with_its_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(folder, str(tmp_path / folder))
    raw, new = tmp_path / "nnUNet_raw" / NAME, tmp_path / "new"
    image = np.zeros((5, 16, 16), np.uint8)
    image[:, 4:8, 4:8] = 1
    for folder, case in (("imagesTr", "A"), ("imagesUl", "U")):
        labels = raw / "labelsTr" if folder == "imagesTr" else new
        for file in (raw / folder / f"{case}_0000.tif", labels / f"{case}.tif"):
            file.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(file, image)
            (file.parent / f"{case}.json").write_text('{"spacing": [7.6, 3.9, 3.9]}', encoding="utf-8")
    (raw / "imagesUl" / "V_0000.tif").write_bytes((raw / "imagesUl" / "U_0000.tif").read_bytes())
    write_dataset_json(raw, ending=".tif")
    add(tmp_path)
    for folder in ("imagesTr", "labelsTr"):
        assert json.loads((raw / folder / "U.json").read_text(encoding="utf-8")) == {"spacing": [7.6, 3.9, 3.9]}
    assert [file.name for file in (raw / "imagesUl").iterdir()] == ["V_0000.tif"]


def test_a_training_finds_it(home: Path):
    from nnunetv2_vqseg.data.checks.preprocessed import check_preprocessed_cases, preprocessed_cases

    add(home)
    base = home / "nnUNet_preprocessed" / NAME
    cases = preprocessed_cases(base / "nnUNetVQSegPlans_2d")
    assert cases == [*"ABCU"]
    check_preprocessed_cases(
        str(base / "nnUNetVQSegPlans_2d"), set(cases), json.loads((base / "dataset.json").read_text(encoding="utf-8"))
    )


@pytest.mark.nightly
def test_trainings_anew_and_with_c_learn_from_it(home: Path, monkeypatch: pytest.MonkeyPatch):
    """docs/how-to/add-labels.md: then train anew, or raise `num_epochs` and add `--c`."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    monkeypatch.setenv("nnUNet_results", str(home / "nnUNet_results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    file = home / "nnUNet_preprocessed" / NAME / "nnUNetVQSegPlans.json"

    def train(trainer_name: str, epochs: int, continues: bool = False) -> list[list[str]]:
        plans = json.loads(file.read_text(encoding="utf-8"))
        shrink(plans, patch=32, features=8, max_features=16, convs=1)
        plans["configurations"]["2d"]["vqseg"] = TINY | {"num_epochs": epochs, "iterations_per_epoch": 1}
        file.write_text(json.dumps(plans), encoding="utf-8")
        trainer = get_trainer_from_args(
            "901", "2d", 0, trainer_name, "nnUNetVQSegPlans", continues, device=torch.device("cpu")
        )
        maybe_load_checkpoint(trainer, continues, False)
        trainer.run_training()
        saved = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)
        assert saved["vqseg"]["step"] == epochs
        return [*map(sorted, trainer.do_split()), sorted(trainer.unlabeled_identifiers)]

    assert train("nnUNetTrainerMeanTeacher", 1) == [["A", "B"], ["C"], ["C_scan2", "U", "V"]]
    add(home)
    after = [["A", "B", "U"], ["C"], ["C_scan2", "V"]]
    assert train("nnUNetTrainerMeanTeacher", 2, continues=True) == after
    assert train("nnUNetTrainerSupervised", 1)[:2] == after[:2]
    assert train("nnUNetTrainerVQSeg", 1) == after


def test_a_case_that_came_after_planning_may_join(home: Path):
    add_case(home / "nnUNet_raw" / NAME, "imagesUl", "W")
    label(home, "W")
    add(home)
    assert "W" in folds(home, "raw")[0]["train"]
