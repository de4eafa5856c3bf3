"""`nnUNetv2_vqseg_add_labels` moves annotated cases over, keeps plan and fingerprint, and can be repeated."""

from __future__ import annotations

import json
import shutil
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
from tiny_raw_dataset import add_case, make_dataset

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


def add(home: Path) -> None:
    main(["-d", "901", "-i", str(home / "new"), "-np", "1"])


def fails(home: Path) -> str:
    before = contents(home)
    with pytest.raises(SystemExit) as stop:
        add(home)
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


def test_a_training_takes_it(home: Path):
    from nnunetv2_vqseg.data.checks.preprocessed import check_preprocessed_cases, preprocessed_cases

    add(home)
    base = home / "nnUNet_preprocessed" / NAME
    cases = preprocessed_cases(base / "nnUNetVQSegPlans_2d")
    assert cases == [*"ABCU"]
    check_preprocessed_cases(
        str(base / "nnUNetVQSegPlans_2d"), set(cases), json.loads((base / "dataset.json").read_text(encoding="utf-8"))
    )


def test_a_case_that_was_annotated_needs_an_image(home: Path):
    add_case(home / "nnUNet_raw" / NAME, "imagesUl", "W")
    label(home, "W")
    add(home)
    assert "W" in folds(home, "raw")[0]["train"]
