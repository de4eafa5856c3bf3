from __future__ import annotations

import filecmp
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conversion_inputs import REPOSITORY, SIZE, heart_label, random_image, remove, write_volume
from Dataset027_ACDC import Patient, build_parser, choose_split, main

FOLDERS = ("imagesTr", "labelsTr", "imagesUl", "imagesTs", "labelsTs")


def convert(*words: object) -> None:
    main([*map(str, words), "-np", "1"])


def contents(raw: Path, name: str = "Dataset027_ACDC") -> dict[str, set[str]]:
    """Case names in each folder."""
    dataset = raw / name
    return {
        folder: {path.name.removesuffix(".nii.gz").removesuffix("_0000") for path in (dataset / folder).glob("*")}
        for folder in FOLDERS
    }


def frames(numbers: list[int], second: int | None = 2) -> set[str]:
    return {f"patient{n:03d}_frame{f:02d}" for n in numbers for f in (1, second or 8 + n)}


def fold_of(raw: Path, name: str = "Dataset027_ACDC") -> dict[str, list[str]]:
    (fold,) = json.loads((raw / name / "splits_final.json").read_text(encoding="utf-8"))
    return fold


def test_shared_copy_follows_the_protocol_lists(raw: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert("-i", shared, "--labeled", 2)
    found = contents(raw)
    assert found["imagesTr"] == found["labelsTr"] == frames([3, 5, 8])
    assert found["imagesUl"] == frames([1, 2, 4, 6, 7])
    assert found["imagesTs"] == found["labelsTs"] == frames([9, 10])
    fold = fold_of(raw)
    assert set(fold["train"]) == frames([3, 5])
    assert set(fold["val"]) == frames([8])
    assert set(fold) == {"train", "val"}
    about = json.loads((raw / "Dataset027_ACDC" / "dataset.json").read_text(encoding="utf-8"))
    assert about["numTraining"] == 6
    assert about["labels"] == {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
    assert about["file_ending"] == ".nii.gz"
    summary = capsys.readouterr().out
    for line in ("labelled 4 cases 12 slices", "unlabelled 10 cases 30 slices", "test 4 cases 12 slices"):
        assert line in " ".join(summary.split())


def test_files_are_copied_byte_by_byte(raw: Path, shared: Path) -> None:
    convert("-i", shared, "--labeled", 2)
    source, target = shared / "training" / "patient003", raw / "Dataset027_ACDC"
    pairs = [("frame01", "imagesTr/patient003_frame01_0000"), ("frame02_gt", "labelsTr/patient003_frame02")]
    for old, new in pairs:
        assert filecmp.cmp(source / f"patient003_{old}.nii.gz", target / f"{new}.nii.gz", shallow=False)


def test_official_release_keeps_real_frames_and_its_test_patients(raw: Path, official: Path) -> None:
    convert("-i", official, "--labeled", 3)
    found = contents(raw)
    assert found["imagesTs"] == found["labelsTs"] == frames([11, 12], None)
    everything = found["imagesTr"] | found["imagesUl"]
    assert everything == frames(list(range(1, 11)), None)  # both frames by Info.cfg, no 4D file
    assert not found["imagesTr"] & found["imagesUl"]
    fold = fold_of(raw)
    assert len(fold["train"]) == 6
    assert len(fold["val"]) == 2


def test_frames_that_info_cfg_does_not_name_are_left_out(raw: Path, official: Path) -> None:
    write_volume(official / "training" / "patient001" / "patient001_frame05.nii.gz", random_image(0))
    convert("-i", official, "--labeled", 3)
    assert "patient001_frame05" not in set.union(*contents(raw).values())


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_on_two_sides_of_a_seeded_split(raw: Path, shared: Path, seed: int) -> None:
    shutil.rmtree(shared / "protocol")
    convert("-i", shared, "--labeled", "30%", "--seed", seed, "--overwrite")
    found, fold = contents(raw), fold_of(raw)
    sides = [
        {case[:10] for case in side} for side in (fold["train"], fold["val"], found["imagesUl"], found["imagesTs"])
    ]
    assert [len(side) for side in sides] == [2, 1, 5, 2]
    assert len(set.union(*sides)) == 10


def test_seed_decides_the_split(raw: Path, shared: Path) -> None:
    shutil.rmtree(shared / "protocol")
    splits = []
    for number, seed in enumerate((0, 0, 1, 2), start=1):
        convert("-i", shared, "-d", number, "--labeled", 3, "--seed", seed)
        splits.append(
            (fold_of(raw, f"Dataset{number:03d}_ACDC"), contents(raw, f"Dataset{number:03d}_ACDC")["imagesTs"])
        )
    assert splits[0] == splits[1]
    assert splits[2] != splits[0] or splits[3] != splits[0]


def test_more_labelled_patients_include_the_published_fewer(raw: Path, shared: Path) -> None:
    convert("-i", shared, "--labeled", 4)
    train = {case[:10] for case in fold_of(raw)["train"]}
    assert len(train) == 4
    assert train > {"patient003", "patient005"}


def test_benchmark_variant_names_the_unlabelled_in_the_split(raw: Path, shared: Path) -> None:
    convert("-i", shared, "--labeled", 2, "--unlabeled-in-splits")
    found, fold = contents(raw), fold_of(raw)
    assert found["imagesUl"] == set()
    assert not (raw / "Dataset027_ACDC" / "imagesUl").exists()
    assert found["imagesTr"] == found["labelsTr"] == frames([1, 2, 3, 4, 5, 6, 7, 8])
    assert set(fold["unlabeled"]) == frames([1, 2, 4, 6, 7])
    assert json.loads((raw / "Dataset027_ACDC" / "dataset.json").read_text(encoding="utf-8"))["numTraining"] == 16


def test_own_lists_win_over_the_protocol(raw: Path, shared: Path, tmp_path: Path) -> None:
    for name, number in (("labelled", 9), ("val", 1), ("test", 2)):
        (tmp_path / f"{name}.txt").write_text(f"# mine\n\npatient{number:03d}\n", encoding="utf-8")
    lists = [f"{tmp_path}/{name}.txt" for name in ("labelled", "val", "test")]
    convert("-i", shared, "--labeled-list", lists[0], "--val-list", lists[1], "--test-list", lists[2])
    found, fold = contents(raw), fold_of(raw)
    assert (set(fold["train"]), set(fold["val"]), found["imagesTs"]) == (frames([9]), frames([1]), frames([2]))
    assert found["imagesUl"] == frames([3, 4, 5, 6, 7, 8, 10])


def test_official_release_with_the_lists_of_the_literature(tmp_path: Path) -> None:
    lists = REPOSITORY / "dataset_conversion" / "acdc_protocol"
    patients = {f"patient{n:03d}": Patient("training" if n <= 100 else "testing", {}, {}) for n in range(1, 151)}
    found = {}
    for labeled in (3, 7, 14):
        args = build_parser().parse_args(["-i", "ACDC", "--protocol", str(lists), "--labeled", str(labeled)])
        split = found[labeled] = choose_split(tmp_path, patients, args)
        assert [len(role) for role in (split.labeled, split.unlabeled, split.val, split.test)] == [
            labeled, 70 - labeled, 10, 20
        ]  # fmt: skip
        assert max(split.labeled + split.unlabeled + split.val + split.test) == "patient100"
    assert found[3].labeled == ["patient038", "patient050", "patient099"]
    assert set(found[3].labeled) < set(found[7].labeled) < set(found[14].labeled)
    assert found[3].test == found[14].test


def test_a_protocol_without_lists_is_refused(
    raw: Path, shared: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    said = fails(main, "-i", shared, "--protocol", tmp_path / "none")
    assert "none has no list of patients such as test.txt; correct --protocol." in said


def test_validation_without_a_list_is_of_patients_in_no_other_list(raw: Path, shared: Path) -> None:
    (shared / "protocol" / "val.txt").unlink()
    convert("-i", shared, "--labeled", 2)
    assert set(fold_of(raw)["val"]) == frames([8])
    assert contents(raw)["imagesTs"] == frames([9, 10])


def test_labels_of_unlabelled_patients_are_never_read(raw: Path, shared: Path) -> None:
    for number in (1, 2, 4, 6, 7):
        for path in (shared / "training" / f"patient{number:03d}").glob("*_gt.nii.gz"):
            path.write_bytes(b"not an image")
    (shared / "training" / "patient001" / "patient001_frame01_gt.nii.gz").unlink()
    convert("-i", shared, "--labeled", 2)
    assert contents(raw)["imagesUl"] == frames([1, 2, 4, 6, 7])


def test_without_a_number_all_training_patients_are_labelled(raw: Path, shared: Path) -> None:
    convert("-i", shared)
    assert set(fold_of(raw)["train"]) == frames([1, 2, 3, 4, 5, 6, 7])
    assert not (raw / "Dataset027_ACDC" / "imagesUl").exists()


def test_unpacked_nifti_is_packed(raw: Path, shared: Path) -> None:
    packed = shared / "training" / "patient003" / "patient003_frame01.nii.gz"
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(packed)))
    packed.unlink()
    write_volume(packed.with_name("patient003_frame01.nii"), array)
    convert("-i", shared, "--labeled", 2)
    written = sitk.ReadImage(str(raw / "Dataset027_ACDC" / "imagesTr" / "patient003_frame01_0000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), array)


def test_several_processes_write_the_same(raw: Path, shared: Path) -> None:
    convert("-i", shared, "--labeled", 2)
    main(["-i", str(shared), "--labeled", "2", "-d", "28", "-np", "2"])
    one, two = raw / "Dataset027_ACDC", raw / "Dataset028_ACDC"
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert len(files) == 6 + 6 + 10 + 4 + 4 + 2
    assert filecmp.cmpfiles(one, two, files, shallow=False)[0] == files


def test_nnunet_z_scores_the_channel(raw: Path, shared: Path) -> None:
    schemes = pytest.importorskip("nnunetv2.preprocessing.normalization.map_channel_name_to_normalization")
    convert("-i", shared, "--labeled", 2)
    (channel,) = json.loads((raw / "Dataset027_ACDC" / "dataset.json").read_text(encoding="utf-8"))[
        "channel_names"
    ].values()
    assert schemes.get_normalization_scheme(channel).__name__ == "ZScoreNormalization"


def image_of(root: Path) -> Path:
    return root / "training" / "patient003" / "patient003_frame01.nii.gz"


def gt_of(root: Path) -> Path:
    return image_of(root).with_name("patient003_frame01_gt.nii.gz")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def add_to(root: Path, name: str, line: str) -> None:
    path = root / "protocol" / f"{name}.txt"
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")


def float_image(value: float) -> np.ndarray:
    array = random_image(0).astype(np.float32)
    array[1, 2, 3] = value
    return array


GARBAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated image": (lambda root: truncate(image_of(root)), r"frame01\.nii\.gz .*(truncated|cannot be read)"),
    "text instead of an image": (
        lambda root: image_of(root).write_text("hello", encoding="utf-8"),
        r"frame01\.nii\.gz .*gzip",
    ),
    "truncated label": (lambda root: truncate(gt_of(root)), r"frame01_gt\.nii\.gz .*(truncated|cannot be read)"),
    "NaN": (lambda root: write_volume(image_of(root), float_image(np.nan)), r"frame01\.nii\.gz .*NaN"),
    "Inf": (lambda root: write_volume(image_of(root), float_image(np.inf)), r"frame01\.nii\.gz .*Inf"),
    "empty image": (lambda root: write_volume(image_of(root), np.zeros(SIZE, np.int16)), r"frame01\.nii\.gz is empty"),
    "4D image": (
        lambda root: write_volume(image_of(root), random_image(0, (2, *SIZE))),
        r"frame01\.nii\.gz .*4 dimensions",
    ),
    "unknown label": (lambda root: write_volume(gt_of(root), heart_label() * 2), r"frame01_gt.* unknown labels 4, 6"),
    "soft label": (lambda root: write_volume(gt_of(root), heart_label() / 2), r"frame01_gt.* between whole numbers"),
    "other size": (lambda root: write_volume(gt_of(root), heart_label()[:2]), r"frame01_gt.* 10 x 12 x 2 voxels"),
    "other spacing": (
        lambda root: write_volume(gt_of(root), heart_label(), (1.4, 1.5, 10.0)),
        r"frame01_gt.* spacing 1\.4 x 1\.5 x 10 mm",
    ),
    "missing label": (lambda root: gt_of(root).unlink(), r"frame01\.nii\.gz has no .*_gt\.nii\.gz"),
    "patient without images": (
        lambda root: remove(image_of(root).parent.glob("*")),
        r"patient003 has no image",
    ),
    "wrong folder": (lambda root: shutil.rmtree(root / "training"), r"has no folder 'training'"),
    "no patients": (
        lambda root: remove((root / "training").iterdir()),
        r"no folder named patientNNN",
    ),
    "Info.cfg names another frame": (
        lambda root: (image_of(root).parent / "Info.cfg").write_text("ED: 1\nES: 7\n", encoding="utf-8"),
        r"Info\.cfg names frame 07",
    ),
    "Info.cfg is garbage": (
        lambda root: (image_of(root).parent / "Info.cfg").write_bytes(b"\xff\x00"),
        r"Info\.cfg does not give the frames",
    ),
    "validation is labelled": (
        lambda root: add_to(root, "labelled-2", "patient008"),
        r"patient008 .*both labelled and",
    ),
    "test is trained on": (lambda root: add_to(root, "train", "patient009"), r"patient009 .*both training and test"),
    "validation is test": (lambda root: add_to(root, "val", "patient010"), r"patient010 .*both validation and test"),
    "unknown patient": (lambda root: add_to(root, "val", "patient077"), r"val\.txt names patient077, which"),
    "named twice": (lambda root: add_to(root, "val", "patient008"), r"val\.txt names patient008 more than once"),
    "empty list": (
        lambda root: (root / "protocol" / "val.txt").write_text("\n", encoding="utf-8"),
        r"val\.txt is empty",
    ),
    "no list and no patient for validation": (
        lambda root: ((root / "protocol" / "val.txt").unlink(), add_to(root, "train", "patient008")),
        r"val\.txt is missing, and the other lists leave no patient for validation; write it or give --val-list\.",
    ),
    "labelled but not trained on": (
        lambda root: (root / "protocol" / "train.txt").write_text(
            "patient001\npatient002\npatient003\n", encoding="utf-8"
        ),
        r"patient005 would be labelled but is not a training patient",
    ),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_bad_input_ends_with_a_sentence_and_without_a_dataset(
    kind: str, raw: Path, shared: Path, fails: Callable[..., str]
) -> None:
    spoil, sentence = GARBAGE[kind]
    spoil(shared)
    assert re.search(sentence, fails(main, "-i", shared, "--labeled", 2, "-np", 1))
    assert not raw.exists() or not list(raw.iterdir())


def test_all_bad_files_are_reported_at_once(raw: Path, shared: Path, fails: Callable[..., str]) -> None:
    truncate(image_of(shared))
    write_volume(shared / "training" / "patient009" / "patient009_frame02_gt.nii.gz", heart_label() * 3)
    message = fails(main, "-i", shared, "--labeled", 2, "-np", 1)
    assert "patient003_frame01.nii.gz" in message
    assert "patient009_frame02_gt.nii.gz" in message


@pytest.mark.parametrize("amount", ["0", "8", "-1", "0%", "101%", "few", "2.5"])
def test_impossible_amounts(amount: str, raw: Path, shared: Path, fails: Callable[..., str]) -> None:
    assert f"'{amount}'" in fails(main, "-i", shared, f"--labeled={amount}", "-np", 1)
