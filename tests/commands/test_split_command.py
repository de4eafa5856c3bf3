"""`nnUNetv2_vqseg_split` writes folds patient by patient, moves nothing and keeps what was there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunetv2_vqseg.commands.split import main

PATIENTS = {
    f"patient{number:03d}": [f"patient{number:03d}_frame{frame}" for frame in ("01", "12")] for number in range(20)
}


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """20 patients with two frames each; the files are empty because nothing may be read."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = tmp_path / "nnUNet_raw" / "Dataset027_ACDC"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in (case for cases in PATIENTS.values() for case in cases):
        (folder / "imagesTr" / f"{case}_0000.nii.gz").touch()
        (folder / "imagesTr" / f"{case}_0001.nii.gz").touch()
        (folder / "labelsTr" / f"{case}.nii.gz").touch()
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}), encoding="utf-8")
    return folder


@pytest.fixture
def preprocessed(dataset: Path) -> Path:
    folder = dataset.parents[1] / "nnUNet_preprocessed" / dataset.name
    folder.mkdir(parents=True)
    return folder


def split(*words: object) -> None:
    main(["-d", "27", *map(str, words)])


def fails(*words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        split(*words)
    message = str(stop.value)
    assert message.startswith("Error: ")
    assert message.endswith(".")
    return message


def folds_in(folder: Path) -> list[dict[str, list[str]]]:
    return json.loads((folder / "splits_final.json").read_text(encoding="utf-8"))


def patients_in(cases: list[str]) -> set[str]:
    return {case[:10] for case in cases}


def test_fold_has_labelled_unlabelled_and_validation_patients(dataset: Path) -> None:
    before = set(dataset.rglob("*"))
    split("--labeled", "25%", "--seed", 3)
    (fold,) = folds_in(dataset)
    assert list(fold) == ["train", "val", "unlabeled"]
    sides = [patients_in(cases) for cases in fold.values()]
    assert [len(side) for side in sides] == [4, 4, 12]  # 20 % of 20 validate, 25 % of the other 16 are labelled
    assert len(set.union(*sides)) == 20, "no patient is on two sides"
    assert sum(map(len, fold.values())) == 40
    assert set(dataset.rglob("*")) - before == {dataset / "splits_final.json"}, "nothing is moved"


def test_the_pattern_is_kept_with_the_folds(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For `nnUNetv2_vqseg_add_labels` and the warnings of a training."""
    pattern = r"patient\d(\d)"
    split("--patient-regex", pattern)
    (first, second) = folds_in(dataset)
    assert (first["patient_regex"], second["patient_regex"]) == (pattern, pattern)
    assert {case[:9] for case in first["train"]} == {case[:9] for case in second["val"]}
    assert "1 patients train (20 cases), 1 patients val (20 cases)" in capsys.readouterr().out
    split("--overwrite")
    assert all(list(fold) == ["train", "val"] for fold in folds_in(dataset)), "nothing where names say it"


def test_count_of_patients(dataset: Path) -> None:
    split("--labeled", 7, "--val", 3)
    (fold,) = folds_in(dataset)
    assert [len(patients_in(cases)) for cases in fold.values()] == [7, 3, 10]


def test_each_seed_is_a_fold(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split("--labeled", 3, "--seed", 5, 6, 7)
    folds = folds_in(dataset)
    assert len(folds) == 3
    assert folds[0] != folds[1] != folds[2]
    split("--labeled", 3, "--seed", 6, "--overwrite")
    assert folds_in(dataset) == [folds[1]], "a fold depends on its own seed only"
    assert (
        "fold 0 (seed 6): 3 patients train (6 cases), 4 patients val (8 cases), 13 patients unlabeled (26 cases)"
        in (capsys.readouterr().out)
    )


def test_known_split(dataset: Path) -> None:
    """Published splits must stay: the order, by `printf 0/patient019 | sha256sum` and so on, begins with 19, 3, 17."""
    split("--labeled", 2, "--val", 1, "--seed", 0)
    (fold,) = folds_in(dataset)
    assert patients_in(fold["val"]) == {"patient019"}
    assert patients_in(fold["train"]) == {"patient003", "patient017"}


def test_own_patient_pattern(dataset: Path) -> None:
    split("--labeled", 1, "--val", 1, "--patient-regex", r"patient0(\d)")  # ten patients in each of two groups
    (fold,) = folds_in(dataset)
    assert len(fold["val"]) == 20
    assert not fold["unlabeled"]
    assert "finds no patient in the case name 'patient000_frame01'" in fails("--labeled", 1, "--patient-regex", "x")
    assert "is not a regular expression" in fails("--labeled", 1, "--patient-regex", "[")


def test_validation_list_of_patients_or_of_all_their_cases(dataset: Path, tmp_path: Path) -> None:
    names = tmp_path / "val.txt"
    # Windows puts a byte order mark before the first line.
    text = "# fixed for all seeds\npatient003\n\npatient007_frame12\npatient007_frame01\n"
    names.write_text(text, encoding="utf-8-sig")
    split("--labeled", 3, "--val-list", names, "--seed", 1, 2)
    for fold in folds_in(dataset):
        assert patients_in(fold["val"]) == {"patient003", "patient007"}
        assert len(fold["val"]) == 4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("patient003_frame01", "some cases of patient patient003 but not patient003_frame12"),
        ("patient003\npatient999", "names patient999, which the dataset does not have"),
        ("patient003\npatient003", "patient003 more than once"),
        ("# nobody", "is empty"),
        ("\n".join(PATIENTS), "leave some for training"),
    ],
)
def test_bad_validation_lists(text: str, sentence: str, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text(text, encoding="utf-8")
    assert sentence in fails("--labeled", 3, "--val-list", tmp_path / "val.txt")
    assert not (dataset / "splits_final.json").exists()


def test_missing_validation_list(dataset: Path, tmp_path: Path) -> None:
    assert "none.txt cannot be read" in fails("--labeled", 3, "--val-list", tmp_path / "none.txt")


def test_repetition_changes_nothing(dataset: Path, preprocessed: Path) -> None:
    split("--labeled", 3)
    written = (dataset / "splits_final.json").stat().st_mtime_ns
    split("--labeled", 3)
    split("--labeled", 3, "--overwrite")
    assert (dataset / "splits_final.json").stat().st_mtime_ns == written
    assert len(list(dataset.glob("splits_final*"))) == 1


def test_other_folds_are_kept_unless_told_otherwise(dataset: Path, preprocessed: Path) -> None:
    split("--labeled", 3)
    first = folds_in(dataset)
    message = fails("--labeled", 7)
    assert "--append" in message
    assert "--overwrite" in message
    assert folds_in(dataset) == folds_in(preprocessed) == first

    split("--labeled", 7, "--append")
    assert folds_in(dataset)[:1] == first
    assert len(folds_in(dataset)) == 2
    split("--labeled", 7, "--append")
    assert len(folds_in(dataset)) == 2, "a fold is not added twice"

    split("--labeled", 7, "--overwrite")
    assert len(folds_in(dataset)) == 1
    assert folds_in(dataset) == folds_in(preprocessed)
    for folder in (dataset, preprocessed):
        backups = [
            json.loads((folder / f"splits_final.json.bak-{number}").read_text(encoding="utf-8")) for number in (1, 2)
        ]
        assert [len(backup) for backup in backups] == [1, 2]


def test_raw_and_preprocessed_end_up_the_same(dataset: Path, preprocessed: Path) -> None:
    (preprocessed / "splits_final.json").write_text(
        '[{"train": ["a"], "val": ["b"]}]', encoding="utf-8"
    )  # nnU-Net's own
    assert str(preprocessed) in fails("--labeled", 3)
    assert not (dataset / "splits_final.json").exists(), "nothing is written if one of the two is refused"
    split("--labeled", 3, "--append")
    assert folds_in(dataset) == folds_in(preprocessed)
    assert folds_in(dataset)[0]["val"] == ["b"]

    (dataset / "splits_final.json").write_text("[]", encoding="utf-8")
    assert "differ" in fails("--labeled", 4, "--append")
    split("--labeled", 4, "--overwrite")
    assert folds_in(dataset) == folds_in(preprocessed)


def test_without_preprocessed_data_only_raw_is_written(dataset: Path) -> None:
    split("--labeled", 3)
    assert not (dataset.parents[1] / "nnUNet_preprocessed").exists()


def test_damaged_split_file(dataset: Path) -> None:
    (dataset / "splits_final.json").write_text('[{"train": [', encoding="utf-8")
    assert "splits_final.json is not valid JSON" in fails("--labeled", 3)
    split("--labeled", 3, "--overwrite")
    assert len(folds_in(dataset)) == 1
    assert (dataset / "splits_final.json.bak-1").read_text(encoding="utf-8") == '[{"train": ['


def test_written_folds_are_what_training_reads(dataset: Path, preprocessed: Path) -> None:
    splits_file = pytest.importorskip("nnunetv2_vqseg.data.splits_file")
    split("--labeled", 3, "--seed", 0, 1)
    fold = splits_file.load_fold_entry(preprocessed, 1)
    known = [case for cases in PATIENTS.values() for case in cases]
    assert splits_file.check_fold_entry(fold, known) == fold["unlabeled"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "dataset.json").unlink(), "dataset.json cannot be read"),
        (lambda folder: (folder / "dataset.json").write_text("{}", encoding="utf-8"), "lacks 'file_ending'"),
        (lambda folder: (folder / "labelsTr" / "patient002_frame12.nii.gz").unlink(), "patient002_frame12"),
        (
            lambda folder: [path.unlink() for path in (folder / "imagesTr").iterdir()],
            "has no file named CASE_0000.nii.gz",
        ),
        (lambda folder: (folder.parent / "Dataset027_Twin").mkdir(), "which has Dataset027_ACDC, Dataset027_Twin"),
        (lambda folder: folder.rename(folder.parent / "Dataset028_ACDC"), "which has none"),
    ],
)
def test_unusable_datasets(spoil: Callable[[Path], object], sentence: str, dataset: Path) -> None:
    spoil(dataset)
    assert sentence in fails("--labeled", 3)


def test_dataset_by_name_and_with_a_list_of_files(dataset: Path) -> None:
    files = {
        case: {"images": [f"elsewhere/{case}.nii.gz"], "label": f"elsewhere/{case}_gt.nii.gz"}
        for case in ("a", "b", "c")
    }
    (dataset / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "dataset": files}), encoding="utf-8")
    main(["-d", "Dataset027_ACDC", "--labeled", "1"])
    (fold,) = folds_in(dataset)
    assert sorted(case for cases in fold.values() for case in cases) == ["a", "b", "c"]


def test_unset_environment(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw")
    assert "nnUNet_raw is not set" in fails("--labeled", 3)


def test_files_of_macos_are_no_patients(dataset: Path) -> None:
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (dataset / folder / f"._patient001_frame01{ending}").write_bytes(b"")
    split("--labeled", 3)
    assert not any(case.startswith(".") for cases in folds_in(dataset)[0].values() for case in cases)


def test_plans_of_other_labels_are_told(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preprocessed = tmp_path / "nnUNet_preprocessed" / dataset.name
    preprocessed.mkdir(parents=True)
    split("--labeled", 3)
    assert "other labels" not in capsys.readouterr().out, "there are no plans"
    (preprocessed / "dataset_fingerprint.json").write_text("{}", encoding="utf-8")
    split("--labeled", 3)
    assert "other labels" not in capsys.readouterr().out, "nothing has changed"
    split("--labeled", 4, "--overwrite")
    assert f"the plans in {preprocessed} were made with other labels; run" in capsys.readouterr().out


def keep_patients(dataset: Path, number: int) -> None:
    for cases in list(PATIENTS.values())[number:]:
        for case in cases:
            for file in (*dataset.glob(f"imagesTr/{case}_*"), dataset / "labelsTr" / f"{case}.nii.gz"):
                file.unlink()


@pytest.mark.parametrize(("patients", "folds"), [(2, 2), (3, 3), (5, 5), (20, 5)])
def test_without_a_number_every_patient_is_validated_on_once(dataset: Path, patients: int, folds: int) -> None:
    keep_patients(dataset, patients)
    split()
    written = folds_in(dataset)
    assert len(written) == folds
    known = list(PATIENTS)[:patients]
    assert sorted(patient for fold in written for patient in patients_in(fold["val"])) == known
    for fold in written:
        assert patients_in(fold["train"]) | patients_in(fold["val"]) == set(known)
        assert not patients_in(fold["train"]) & patients_in(fold["val"])
        assert len(fold["train"]) + len(fold["val"]) == 2 * patients
        assert not fold.get("unlabeled")


def test_one_patient_cannot_be_split(dataset: Path) -> None:
    keep_patients(dataset, 1)
    assert "one labelled patient, patient000, and a split needs two" in fails()


def test_with_validation_patients_alone_all_others_keep_their_labels(dataset: Path) -> None:
    split("--val", 5)
    (fold,) = folds_in(dataset)
    assert len(patients_in(fold["val"])) == 5
    assert len(patients_in(fold["train"])) == 15


def test_a_cross_validation_needs_no_other_plan(
    dataset: Path, preprocessed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (preprocessed / "dataset_fingerprint.json").write_text("{}", encoding="utf-8")
    split()
    assert "other labels" not in capsys.readouterr().out
    assert folds_in(preprocessed) == folds_in(dataset)
