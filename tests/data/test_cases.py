"""Every unlabelled image is found, and every name that does not fit is refused before training, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_raw_dataset import add_case, make_dataset, write_dataset_json

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.data.cases import find_unlabeled_cases, labeled_as_unlabeled
from nnunetv2_vqseg.data.patients import shared_patients
from nnunetv2_vqseg.data.splits_file import check_same_folds, load_fold_entry


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"never opened here")
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two channels; labelled A, B, C; nothing unlabelled."""
    dataset = tmp_path / "Dataset901_Tiny"
    for case in "ABC":
        for channel in range(2):
            touch(dataset / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        touch(dataset / "labelsTr" / f"{case}.nii.gz")
    write_dataset_json(dataset, channels=2)
    return dataset


def find(raw: Path, fold_entry: dict | None = None):
    return find_unlabeled_cases(raw, json.loads((raw / "dataset.json").read_text(encoding="utf-8")), fold_entry)


def add(raw: Path, folder: str, *cases: str, channels: int = 2, ending: str = ".nii.gz") -> None:
    for case in cases:
        for channel in range(channels):
            touch(raw / folder / f"{case}_{channel:04d}{ending}")


def refused(raw: Path, fold_entry: dict | None = None) -> str:
    with pytest.raises(DatasetError) as error:
        find(raw, fold_entry)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_folder_and_split_are_joined(raw: Path):
    add(raw, "imagesUl", "U", "V")
    cases = find(raw, {"train": ["A"], "val": ["B"], "unlabeled": ["C"]})
    assert cases.origin == {"C": "split", "U": "imagesUl", "V": "imagesUl"}
    assert list(cases.files) == ["C", "U", "V"]
    assert cases.files["C"] == [str(raw / "imagesTr" / f"C_000{channel}.nii.gz") for channel in (0, 1)]
    assert cases.files["V"] == [str(raw / "imagesUl" / f"V_000{channel}.nii.gz") for channel in (0, 1)]
    assert cases.warnings == ()


def test_either_source_alone_is_enough(raw: Path):
    assert list(find(raw, {"train": ["A"], "val": ["B"], "unlabeled": ["C"]}).files) == ["C"]
    add(raw, "imagesUl", "U")
    assert list(find(raw, {"train": ["A"], "val": ["B"]}).files) == ["U"]
    assert list(find(raw).files) == ["U"]


@pytest.mark.parametrize("case", ["with space", "Ümläut", "dots.in.name", "P_0000", "x" * 100])
def test_unusual_names_are_kept(raw: Path, case: str):
    add(raw, "imagesUl", case)
    assert list(find(raw).files) == [case]


@pytest.mark.parametrize("make_folder", [False, True])
def test_no_unlabeled_data_names_every_way_out(raw: Path, make_folder: bool):
    if make_folder:
        (raw / "imagesUl").mkdir()
    message = refused(raw, {"train": ["A"], "val": ["B"], "unlabeled": []})
    for words in (str(raw / "imagesUl"), '"unlabeled"', "splits_final.json", "labeled_as_unlabeled"):
        assert words in message


@pytest.mark.parametrize(
    "name",
    ["scan.nii.gz", "U_000.nii.gz", "U_0000.nii", "U_0000.nrrd", "_0000.nii.gz", "U-0000.nii.gz", "U_0000.NII.GZ"],
)
def test_a_file_that_does_not_match_the_naming_is_named(raw: Path, name: str):
    add(raw, "imagesUl", "V")
    touch(raw / "imagesUl" / name)
    message = refused(raw)
    assert str(raw / "imagesUl" / name) in message
    assert "CASE_0000.nii.gz" in message


def test_a_folder_of_scans_is_named(raw: Path):
    add(raw, "imagesUl/patient1", "U")
    assert str(raw / "imagesUl" / "patient1") in refused(raw)


@pytest.mark.parametrize("name", [".DS_Store", "._U_0000.nii.gz", "README.txt", "U.json"])
def test_files_that_are_no_images_are_passed_over(raw: Path, name: str):
    add(raw, "imagesUl", "U")
    touch(raw / "imagesUl" / name)
    assert list(find(raw).files) == ["U"]


@pytest.mark.parametrize(
    ("channels", "words"),
    [((0,), "1 channel file"), ((0, 1, 2), "3 channel file"), ((1,), "0001"), ((0, 2), "0000, 0002")],
)
def test_channels_must_be_those_of_the_labelled_cases(raw: Path, channels: tuple[int, ...], words: str):
    for channel in channels:
        touch(raw / "imagesUl" / f"U_{channel:04d}.nii.gz")
    message = refused(raw)
    assert "case U" in message
    assert words in message


def test_one_rgb_file_a_case_is_one_file_a_case(tmp_path: Path):
    raw = tmp_path / "Dataset902_RGB"
    add(raw, "imagesTr", "A", channels=1, ending=".png")
    add(raw, "imagesUl", "U", channels=1, ending=".png")
    write_dataset_json(raw, channels=3, ending=".png")
    assert list(find(raw).files) == ["U"]


def test_names_that_nnunet_takes_for_segmentations_are_refused(raw: Path):
    add(raw, "imagesUl", "U_seg")
    assert "U_seg" in refused(raw)


def test_a_case_in_both_folders_is_refused(raw: Path):
    add(raw, "imagesUl", "B", "U")
    message = refused(raw)
    assert "case B" in message
    assert "imagesTr" in message
    assert "imagesUl" in message


def test_an_unlabelled_test_case_is_a_warning(raw: Path):
    add(raw, "imagesUl", "U", "V")
    add(raw, "imagesTs", "V", "W")
    cases = find(raw)
    assert list(cases.files) == ["U", "V"]
    (warning,) = cases.warnings
    assert "case V" in warning
    assert "transductive" in warning


def test_an_unlabelled_scan_of_a_test_patient_is_a_warning(raw: Path):
    add(raw, "imagesUl", "P1_frame02", "P3_frame01", "P4_ED", "P4_ES", "U")
    add(raw, "imagesTs", "P1_frame01", "P2_frame01", "P4_phase3")
    (warning,) = find(raw).warnings
    assert "P1_frame02 is trained on and P1_frame01 in imagesTs" in warning
    assert "one of 2 such patients" in warning  # P4, once


def test_listed_cases_of_a_test_patient_are_a_warning_too(raw: Path):
    add(raw, "imagesTr", "P1_frame02")
    add(raw, "imagesTs", "P1_frame01", "W")
    cases = find(raw, {"train": ["A"], "val": ["B"], "unlabeled": ["P1_frame02"]})
    assert ["P1_frame01 in imagesTs" in warning for warning in cases.warnings] == [True]


@pytest.mark.parametrize(
    ("ours", "theirs", "pairs"),
    [
        (["P1_ED", "P2_ED"], ["P1_ES", "P3_ES"], [("P1_ED", "P1_ES")]),
        (["P1_ED"], ["P1_ED", "P2_ED"], []),  # the same case is another matter
        (["heart_scan_01", "heart_scan_02"], ["heart_scan_03"], []),  # the pattern does not fit these names
        ([], ["P1_ED"], []),
    ],
)
def test_patients_on_both_sides_are_found_by_the_names_of_their_cases(ours, theirs, pairs):
    assert shared_patients(ours, theirs) == pairs


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"train": ["A"], "val": ["B"], "unlabeled": ["A", "C"]}, ("case A", '"train"')),
        ({"train": ["A"], "val": ["B"], "unlabeled": ["C", "B"]}, ("case B", '"val"')),
        ({"train": ["A"], "val": ["B"], "unlabeled": ["gone"]}, ("case gone", "imagesTr")),
        ({"train": ["A"], "val": ["B"], "unlabeled": ["C", "C"]}, ("case C", "twice")),
        ({"train": ["A"], "val": ["B"], "unlabeled": "C"}, ("not a list",)),
        ({"train": ["A"], "val": ["B"], "unlabeled": [3]}, ("not a list",)),
    ],
)
def test_a_split_that_contradicts_itself_is_refused(raw: Path, entry: dict, words: tuple[str, ...]):
    message = refused(raw, entry)
    assert "splits_final.json" in message
    for word in words:
        assert word in message


def test_labelled_cases_can_serve_as_unlabelled_ones(raw: Path):
    dataset_json = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    cases = labeled_as_unlabeled(raw, dataset_json, ["B", "A"])
    assert cases.origin == {"A": "labeled", "B": "labeled"}
    assert cases.files["A"] == [str(raw / "imagesTr" / f"A_000{channel}.nii.gz") for channel in (0, 1)]
    with pytest.raises(DatasetError, match="gone"):
        labeled_as_unlabeled(raw, dataset_json, ["A", "gone"])


def test_an_explicit_list_in_dataset_json_is_followed(raw: Path):
    dataset_json = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    dataset_json["dataset"] = {
        "X": {"images": ["imagesTr/A_0000.nii.gz", "imagesTr/A_0001.nii.gz"], "label": "labelsTr/A.nii.gz"},
        "Y": {"images": ["imagesTr/B_0000.nii.gz", "imagesTr/B_0001.nii.gz"], "label": "labelsTr/B.nii.gz"},
    }
    before = json.dumps(dataset_json)
    cases = find_unlabeled_cases(raw, dataset_json, {"train": ["Y"], "val": [], "unlabeled": ["X"]})
    assert cases.files == {"X": [str(raw / "imagesTr" / f"A_000{channel}.nii.gz") for channel in (0, 1)]}
    assert json.dumps(dataset_json) == before


def test_folds(tmp_path: Path):
    assert load_fold_entry(tmp_path, 0) is None
    folds = [{"train": ["A"], "val": ["B"]}, {"train": ["B"], "val": ["A"], "unlabeled": ["C"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    assert load_fold_entry(tmp_path, 1) == folds[1]
    with pytest.raises(DatasetError, match=r"Fold 2 cannot .* one of the folds 0 to 1"):
        load_fold_entry(tmp_path, 2)
    with pytest.raises(DatasetError, match="Fold all"):
        load_fold_entry(tmp_path, "all")
    (tmp_path / "splits_final.json").write_text(json.dumps(folds[:1]), encoding="utf-8")
    assert load_fold_entry(tmp_path, "all") is None


@pytest.mark.parametrize("content", ["[{", '{"train": []}', "[1]"])
def test_a_split_file_that_is_none_is_named(tmp_path: Path, content: str):
    (tmp_path / "splits_final.json").write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"splits_final\.json"):
        load_fold_entry(tmp_path, 0)


def test_a_real_tiny_dataset(tmp_path: Path):
    raw = make_dataset(tmp_path, channels=2)
    add_case(raw, "imagesUl", "W", channels=2)
    assert list(find(raw).files) == ["U", "V", "W"]


@pytest.mark.parametrize(
    ("original", "copy", "key"),
    [
        ([{"train": ["A"], "val": ["B"]}], [{"train": ["A"], "val": ["C"]}], "val"),
        ([{"train": ["A"], "val": ["B"]}] * 2, [{"train": ["A"], "val": ["B"]}], "train"),
        ([{"train": ["A"], "val": ["B"], "unlabeled": ["C"]}], [{"train": ["A"], "val": ["B"]}], "unlabeled"),
    ],
)
def test_splits_that_training_would_not_read_are_refused(tmp_path: Path, original, copy, key):
    """nnU-Net copies the file once and then compares train and val, with a bare assertion."""
    folders = [tmp_path / name for name in ("raw", "preprocessed")]
    for folder, folds in zip(folders, (original, copy), strict=True):
        folder.mkdir()
        (folder / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    with pytest.raises(DatasetError, match=rf'differ in "{key}" of fold {len(original) - 1}; delete the latter'):
        check_same_folds(*folders)


def test_splits_may_be_added_to_in_the_copy_that_training_reads(tmp_path: Path):
    folders = [tmp_path / name for name in ("raw", "preprocessed")]
    folds = [{"train": ["A", "B"], "val": ["C"]}]
    for folder in folders:
        check_same_folds(*folders)
        folder.mkdir()
        (folder / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
        folds = [{"train": ["B", "A"], "val": ["C"], "unlabeled": ["D"]}, *folds]
    check_same_folds(*folders)
