from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import DatasetXXX_MSD_Lung
import numpy as np
import pytest
import SimpleITK as sitk
from conversion_inputs import SIZE, remove, write_volume
from DatasetXXX_LC import main

CT_SPACING = (0.8, 0.8, 2.5)


def ct(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, SIZE).astype(np.int16)


def mask(value: int = 1) -> np.ndarray:
    array = np.zeros(SIZE, np.uint8)
    array[1, 4:8, 3:6] = value
    return array


def write_dicom_series(folder: Path, array: np.ndarray, uid: int = 1, skip: tuple[int, ...] = ()) -> None:
    """One CT series with the tags that place its slices."""
    folder.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(CT_SPACING)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    root = f"1.2.826.0.1.3680043.2.1125.{uid}"
    for index in range(len(array)):
        if index in skip:
            continue
        piece = image[:, :, index]
        tags = {
            "0008|0060": "CT",
            "0020|000d": f"{root}.1",
            "0020|000e": f"{root}.2",
            "0008|0018": f"{root}.3.{index}",
            "0020|0013": str(index),
            "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, index)))),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "0",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}_{index:03d}.dcm"))
        writer.Execute(piece)


@pytest.fixture
def hospital(tmp_path: Path) -> tuple[Path, Path]:
    """CTs and masks of 10 patients in mixed formats; P10 was scanned twice."""
    images, masks = tmp_path / "ct", tmp_path / "masks"
    endings = (".nrrd", ".mha", ".nii.gz", ".nii")
    names = [*(f"P{number:02d}" for number in range(1, 10)), "P10_scan1", "P10_scan2"]
    for number, name in enumerate(names):
        ending = endings[number % 4]
        write_volume(images / f"{name}{ending}", ct(number), CT_SPACING)
        write_volume(masks / f"{name}_mask.nrrd", mask(255 if number % 2 else 1), CT_SPACING)
    return images, masks


def convert(images: Path, masks: Path | None, *words: object) -> None:
    main(["-d", "40", "-i", str(images), *(["-m", str(masks)] if masks else []), "-np", "1", *map(str, words)])


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def sides_of(dataset: Path) -> dict[str, set[str]]:
    """Case names by role."""
    (fold,) = json.loads((dataset / "splits_final.json").read_text(encoding="utf-8"))
    names = {
        folder: {path.name.removesuffix("_0000.nii.gz") for path in (dataset / folder).glob("*")}
        for folder in ("imagesTr", "imagesUl", "imagesTs")
    }
    assert {case for cases in fold.values() for case in cases} == names["imagesTr"]
    return {"train": set(fold["train"]), "val": set(fold["val"]), "test": names["imagesTs"], "Ul": names["imagesUl"]}


def test_split_is_70_10_20_by_patient(raw: Path, hospital: tuple[Path, Path]) -> None:
    convert(*hospital, "--labeled-percent", 30)
    sides = sides_of(raw / "Dataset040_LC")
    patients = {side: {case.split("_")[0] for case in cases} for side, cases in sides.items()}
    assert {side: len(names) for side, names in patients.items()} == {"train": 2, "val": 1, "test": 2, "Ul": 5}
    assert len(set.union(*patients.values())) == 10, "P10's two scans are on the same side"
    assert sum(map(len, sides.values())) == 11
    about = json.loads((raw / "Dataset040_LC" / "dataset.json").read_text(encoding="utf-8"))
    assert about["channel_names"] == {"0": "CT"}, "this name makes nnU-Net normalise as CT"
    assert about["labels"] == {"background": 0, "cancer": 1}


def test_voxels_survive_every_format_and_masks_become_0_and_1(raw: Path, hospital: tuple[Path, Path]) -> None:
    convert(*hospital)
    dataset = raw / "Dataset040_LC"
    sides = sides_of(dataset)
    assert not sides["Ul"]
    checked = 0
    for place, cases in (("Tr", sides["train"] | sides["val"]), ("Ts", sides["test"])):
        for case in cases:
            number = 9 + int(case[-1]) - 1 if "scan" in case else int(case[1:]) - 1
            image = sitk.ReadImage(str(dataset / f"images{place}" / f"{case}_0000.nii.gz"))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), ct(number))
            assert image.GetSpacing() == pytest.approx(CT_SPACING)
            np.testing.assert_array_equal(read(dataset / f"labels{place}" / f"{case}.nii.gz"), mask())
            checked += 1
    assert checked == 11


@pytest.mark.parametrize("seed", range(3))
def test_smaller_shares_are_subsets_and_the_test_set_stays(raw: Path, hospital: tuple[Path, Path], seed: int) -> None:
    sides = []
    for percent in (20, 50, 100):
        convert(*hospital, "--labeled-percent", percent, "--seed", seed, "--overwrite")
        sides.append(sides_of(raw / "Dataset040_LC"))
    assert sides[0]["train"] < sides[1]["train"] < sides[2]["train"]
    assert sides[0]["test"] == sides[1]["test"] == sides[2]["test"]
    assert sides[0]["val"] == sides[2]["val"]


@pytest.mark.parametrize("seed", range(3))
def test_scans_without_a_mask_are_unlabelled_but_never_of_a_test_patient(
    raw: Path, hospital: tuple[Path, Path], seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    images, masks = hospital
    for number in range(20, 25):
        write_volume(images / f"P{number}.nrrd", ct(number), CT_SPACING)
    for number in range(1, 10):  # a second scan of everybody, without a mask
        write_volume(images / f"P{number:02d}_scan2.nrrd", ct(100 + number), CT_SPACING)
    convert(images, masks, "--seed", seed)
    sides = sides_of(raw / "Dataset040_LC")
    assert {f"P{number}" for number in range(20, 25)} < sides["Ul"]
    held_out = {case.split("_")[0] for case in sides["test"] | sides["val"]}
    assert not held_out & {case.split("_")[0] for case in sides["Ul"]}
    assert len(list((raw / "Dataset040_LC" / "labelsTs").iterdir())) == len(sides["test"])
    assert "14 of them without a mask" in capsys.readouterr().out


def test_benchmark_variant(raw: Path, hospital: tuple[Path, Path]) -> None:
    convert(*hospital, "--labeled-percent", 30, "--unlabeled-in-splits")
    dataset = raw / "Dataset040_LC"
    (fold,) = json.loads((dataset / "splits_final.json").read_text(encoding="utf-8"))
    assert len(fold["unlabeled"]) >= 5
    assert not (dataset / "imagesUl").exists()
    sides_of(dataset)


def test_folders_of_patients_with_dicom_series(raw: Path, tmp_path: Path) -> None:
    root = tmp_path / "patients"
    for number in range(1, 5):
        folder = root / f"Patient {number}"
        # Loose files, a folder of their own, or below further folders, as the archive exports them.
        place = (folder, folder / "series", folder / "study" / "series", folder)[number - 1]
        write_dicom_series(place, ct(number), number)
        write_volume(folder / "tumor_mask.nrrd", mask(), CT_SPACING)
    (root / "Patient 1" / "._1_000.dcm").write_bytes(b"what macOS puts beside a file")
    (root / "Patient 1" / "report.txt").write_text("nothing to see", encoding="utf-8")
    convert(root, None)
    dataset = raw / "Dataset040_LC"
    assert set.union(*sides_of(dataset).values()) == {f"Patient_{number}" for number in range(1, 5)}
    for path in dataset.glob("images*/*"):
        np.testing.assert_array_equal(read(path), ct(int(path.name[len("Patient_")])))


def test_masks_on_another_grid_are_refused_or_resampled(
    raw: Path, hospital: tuple[Path, Path], fails: Callable[..., str]
) -> None:
    images, masks = hospital
    for path in masks.iterdir():  # twice as fine, and cropped by two voxels of the image at the left
        fine = sitk.GetImageFromArray(np.repeat(np.repeat(mask(), 2, 1), 2, 2)[:, :, 4:])
        fine.SetSpacing((0.4, 0.4, 2.5))
        fine.SetOrigin((2 * 0.8 - 0.2, -0.2, 0))
        sitk.WriteImage(fine, str(path))
    message = fails(main, "-d", 40, "-i", images, "-m", masks, "-np", 1)
    assert "16 x 24 x 3 voxels where the image has 10 x 12 x 3" in message
    assert "--resample-masks" in message
    write_volume(masks / "P03_mask.nrrd", mask(), CT_SPACING)
    shift(masks / "P03_mask.nrrd", (0.3, -0.3, 0.9))  # less than half a voxel, so every voxel finds its own again
    convert(images, masks, "--resample-masks")
    for path in (raw / "Dataset040_LC").glob("labels*/*"):
        np.testing.assert_array_equal(read(path), mask())


def shift(path: Path, origin: tuple[float, float, float]) -> None:
    image = sitk.ReadImage(str(path))
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


def test_shifted_mask_is_noticed(raw: Path, hospital: tuple[Path, Path], fails: Callable[..., str]) -> None:
    shift(hospital[1] / "P03_mask.nrrd", (0.8, 0, 0))
    message = fails(main, "-d", 40, "-i", hospital[0], "-m", hospital[1], "-np", 1)
    assert "P03_mask.nrrd lies up to 0.80 mm away from the image" in message
    shift(hospital[1] / "P03_mask.nrrd", (500, 0, 0))
    message = fails(main, "-d", 40, "-i", hospital[0], "-m", hospital[1], "-np", 1, "--resample-masks")
    assert "none of it falls into the image" in message


def test_empty_mask_is_noted(raw: Path, hospital: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    write_volume(hospital[1] / "P03_mask.nrrd", np.zeros(SIZE, np.uint8), CT_SPACING)
    convert(*hospital)
    assert "P03_mask.nrrd has no foreground" in capsys.readouterr().out


def three_values() -> np.ndarray:
    array = mask()
    array[0, 0, :2] = 2, 3
    return array


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


BAD: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "more than one target": (
        lambda ct_, m: write_volume(m / "P02_mask.nrrd", three_values(), CT_SPACING),
        r"P02_mask\.nrrd is not a binary mask: .*0, 1, 2, 3",
    ),
    "soft mask": (
        lambda ct_, m: write_volume(m / "P02_mask.nrrd", mask().astype(np.float32) * 0.4, CT_SPACING),
        r"P02_mask\.nrrd has values between whole numbers",
    ),
    "mask without scan": (lambda ct_, m: (ct_ / "P02.mha").unlink(), r"P02_mask\.nrrd has no scan of the same name"),
    "two scans of one name": (lambda ct_, m: write_volume(ct_ / "P02.nrrd", ct(0)), r"both be case P02"),
    "no masks": (lambda ct_, m: remove(m.iterdir()), r"No scan in .* has a mask"),
    "two annotated patients": (
        lambda ct_, m: remove(path for path in m.iterdir() if path.name[:3] not in ("P01", "P02")),
        r"Only 2 patients have a mask",
    ),
    "truncated NRRD": (lambda ct_, m: cut(ct_ / "P01.nrrd"), r"P01\.nrrd cannot be read"),
    "truncated MHA": (lambda ct_, m: cut(ct_ / "P02.mha"), r"P02\.mha cannot be read"),
    "empty scan": (lambda ct_, m: write_volume(ct_ / "P01.nrrd", np.zeros(SIZE)), r"P01\.nrrd is empty"),
    "folder without DICOM": (lambda ct_, m: (ct_ / "P77").mkdir(), r"P77 holds no DICOM series"),
    "no such folder": (lambda ct_, m: shutil.rmtree(m), r"masks is not a folder"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_ends_with_a_sentence(
    kind: str, raw: Path, hospital: tuple[Path, Path], fails: Callable[..., str]
) -> None:
    spoil, sentence = BAD[kind]
    spoil(*hospital)
    assert re.search(sentence, fails(main, "-d", 40, "-i", hospital[0], "-m", hospital[1], "-np", 1))
    assert not raw.exists() or not list(raw.iterdir())


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: write_dicom_series(folder, ct(1), 9), "holds 2 DICOM series"),
        (
            lambda folder: write_dicom_series(folder, np.repeat(ct(1), 2, 0), 4, skip=(4,)),
            "missing or unevenly spaced slices",
        ),
        (lambda folder: (folder / "4_002.dcm").write_bytes(b"cut"), "4_002.dcm is damaged"),
        (lambda folder: write_volume(folder / "second_mask.nrrd", mask()), "several masks"),
        (lambda folder: write_volume(folder.parent / "stray.nrrd", mask()), "give the folder with the masks with -m"),
    ],
)
def test_bad_folders_of_patients(
    spoil: Callable[[Path], object], sentence: str, raw: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    root = tmp_path / "patients"
    for number in range(1, 5):
        write_dicom_series(root / f"P{number}", ct(number), number)
        write_volume(root / f"P{number}" / "mask.nrrd", mask(), CT_SPACING)
    spoil(root / "P4")
    assert sentence in fails(main, "-d", 40, "-i", root, "-np", 1)


def test_own_patient_pattern_and_names(raw: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    for number in range(6):
        write_volume(tmp_path / "ct" / f"2024.0{number // 2} x{number}_0000.nii.gz", ct(number), CT_SPACING)
        write_volume(tmp_path / "m" / f"2024.0{number // 2} x{number}.nii.gz", mask(), CT_SPACING)
    convert(tmp_path / "ct", tmp_path / "m", "--patient-regex", r"(\d+_\d+)_", "--name", "Lungs", "--target", "nodule")
    sides = sides_of(raw / "Dataset040_Lungs")
    assert {frozenset(case[:7] for case in cases) for cases in sides.values() if cases} == {
        frozenset({"2024_00"}),
        frozenset({"2024_01"}),
        frozenset({"2024_02"}),
    }
    words = ("-d", 41, "-i", tmp_path / "ct", "-m", tmp_path / "m", "--patient-regex")
    assert "finds no patient in the case name '2024_00_x0'" in fails(main, *words, "P(.*)")
    assert "is not a regular expression" in fails(main, *words, "(")
    assert "letters, digits" in fails(main, "-d", 41, "-i", tmp_path / "ct", "-m", tmp_path / "m", "--name", "../x")


def test_decathlon_lung(raw: Path, tmp_path: Path) -> None:
    root = tmp_path / "Task06_Lung"
    for number in range(1, 11):
        write_volume(root / "imagesTr" / f"lung_{number:03d}.nii.gz", ct(number), CT_SPACING)
        write_volume(root / "labelsTr" / f"lung_{number:03d}.nii.gz", mask(), CT_SPACING)
    for number in range(11, 14):
        write_volume(root / "imagesTs" / f"lung_{number:03d}.nii.gz", ct(number), CT_SPACING)
    for folder in ("imagesTr", "labelsTr", "imagesTs"):  # the archive brings these along
        (root / folder / "._lung_001.nii.gz").write_bytes(b"Mac OS X")
    DatasetXXX_MSD_Lung.main(["-i", str(root), "--labeled-percent", "30", "-np", "1"])
    sides = sides_of(raw / "Dataset006_Lung")
    assert {side: len(cases) for side, cases in sides.items()} == {"train": 2, "val": 1, "test": 2, "Ul": 5 + 3}
    assert {"lung_011", "lung_012", "lung_013"} < sides["Ul"]


def test_names_of_any_script_stay_apart(raw: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    names = ["Müller", "Möller", "张三", "李四"]
    for number, name in enumerate(names):
        write_volume(tmp_path / "ct" / f"{name}.nrrd", ct(number), CT_SPACING)
        # As macOS writes them.
        write_volume(tmp_path / "m" / f"{unicodedata.normalize('NFD', name)}_mask.nrrd", mask(), CT_SPACING)
    convert(tmp_path / "ct", tmp_path / "m")
    dataset = raw / "Dataset040_LC"
    assert set.union(*sides_of(dataset).values()) == set(names)
    for path in dataset.glob("images*/*"):
        np.testing.assert_array_equal(read(path), ct(names.index(path.name.removesuffix("_0000.nii.gz"))))
    (tmp_path / "ct" / "Müller.nrrd").rename(tmp_path / "ct" / "+++.nrrd")
    words = ("-d", 41, "-i", tmp_path / "ct", "-m", tmp_path / "m")
    assert "+++.nrrd has no letter or digit in its name" in fails(main, *words)
    (tmp_path / "ct" / "+++.nrrd").unlink()
    assert "has no scan of the same name" in fails(main, *words), "Möller's scan does not belong to Müller's mask"
