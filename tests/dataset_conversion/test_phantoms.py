from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from make_phantoms import main
from phantom import LV, MYOCARDIUM, RV, Patient
from scipy.ndimage import binary_dilation, label

PATIENTS = range(1, 26)


@pytest.fixture(scope="module")
def scans() -> list[tuple]:
    """Patient, end diastole, end systole."""
    patients = [Patient((0, number)) for number in PATIENTS]
    return [(patient, patient.scan(False), patient.scan(True)) for patient in patients]


def in_plane_neighbours(mask: np.ndarray) -> np.ndarray:
    cross = np.zeros((3, 3, 3), bool)
    cross[1, 1, :] = cross[1, :, 1] = True
    return binary_dilation(mask, cross) & ~mask


def test_geometry_is_that_of_short_axis_stacks(scans: list[tuple]) -> None:
    shapes = {scan.image.shape for _, *frames in scans for scan in frames}
    assert all(6 <= slices <= 8 and 64 <= min(sides) <= max(sides) <= 80 for slices, *sides in shapes)
    assert len(shapes) > 10
    for patient, ed, es in scans:
        assert ed.image.shape == es.image.shape == ed.label.shape == es.label.shape
        assert 1.2 < patient.spacing[0] == patient.spacing[1] < 2
        assert patient.spacing[2] == 10
        assert ed.image.dtype == np.int16
        assert ed.image.min() >= 0, "an overflow would be negative"


def test_cavity_is_enclosed_by_myocardium(scans: list[tuple]) -> None:
    for _, *frames in scans:
        for scan in frames:
            assert set(np.unique(scan.label)) == {0, RV, MYOCARDIUM, LV}
            touched = scan.label[in_plane_neighbours(scan.label == LV)]
            assert (touched == MYOCARDIUM).all()


def test_right_ventricle_lies_against_the_septum_in_one_piece(scans: list[tuple]) -> None:
    for _, *frames in scans:
        for scan in frames:
            for slice_label in scan.label:
                right = slice_label == RV
                if right.sum() < 12:  # a tip of a few voxels may fall apart
                    continue
                pieces, count = label(right)
                sizes = np.bincount(pieces.ravel())[1:]
                assert count == 1 or sizes.max() > 0.9 * sizes.sum()
                assert (slice_label[binary_dilation(right) & ~right] == MYOCARDIUM).any()


def test_heart_contracts_and_narrows_towards_the_apex(scans: list[tuple]) -> None:
    for _, ed, es in scans:
        assert (es.label == LV).sum() < 0.95 * (ed.label == LV).sum()
        assert (es.label == RV).sum() < 0.95 * (ed.label == RV).sum()
        area = (ed.label == LV).sum((1, 2))
        assert area[-1] < 0.7 * area[0]
        assert (ed.label[-1] == RV).sum() < 0.5 * (ed.label[0] == RV).sum()


def test_blood_is_brighter_than_muscle_but_not_the_same_between_patients(scans: list[tuple]) -> None:
    ratios, brighter = [], []
    for _, ed, _ in scans:
        blood, muscle = (ed.image[ed.label == value].mean() for value in (LV, MYOCARDIUM))
        background = ed.image[ed.label == 0]
        assert (background > (blood + muscle) / 2).mean() > 0.005, "a threshold would find the heart"
        brighter.append((background > blood).mean())
        ratios.append(muscle / blood)
    assert max(ratios) < 0.95
    assert np.std(ratios) > 0.08
    assert np.median(brighter) > 0.01, "no distractor is as bright as blood"


def test_some_end_systolic_slices_above_the_base_have_no_label(scans: list[tuple]) -> None:
    empty = [not es.label[0].any() for _, _, es in scans]
    assert 0 < sum(empty) < len(empty)


def test_a_patient_depends_on_the_seed_alone() -> None:
    one, two, other = (Patient((seed, 4)) for seed in (0, 0, 1))
    for systole in (False, True):
        first, second = one.scan(systole), two.scan(systole)
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.label, second.label)
    assert one.lv_radius != other.lv_radius


def files(dataset: Path) -> dict[str, bytes]:
    return {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.rglob("*")) if path.is_file()}


def test_dataset_has_the_layout_of_the_acdc_conversion(raw: Path) -> None:
    main(["--unlabeled", "4", "--test", "2"])
    dataset = raw / "Dataset901_Phantom"
    counts = {folder.name: len(list(folder.iterdir())) for folder in dataset.iterdir() if folder.is_dir()}
    assert counts == {"imagesTr": 10, "labelsTr": 10, "imagesUl": 8, "imagesTs": 4, "labelsTs": 4}
    (fold,) = json.loads((dataset / "splits_final.json").read_text(encoding="utf-8"))
    images = {path.name.removesuffix("_0000.nii.gz") for path in (dataset / "imagesTr").iterdir()}
    assert {*fold["train"], *fold["val"]} == images
    assert len(fold["train"]) == 6
    assert not {case[:10] for case in fold["train"]} & {case[:10] for case in fold["val"]}
    about = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    assert about["numTraining"] == 10
    assert about["labels"] == {"background": 0, "RV": RV, "MLV": MYOCARDIUM, "LVC": LV}
    for name in fold["train"]:
        image = sitk.ReadImage(str(dataset / "imagesTr" / f"{name}_0000.nii.gz"))
        reference = sitk.ReadImage(str(dataset / "labelsTr" / f"{name}.nii.gz"))
        assert image.GetSize() == reference.GetSize()
        assert image.GetSpacing() == reference.GetSpacing()


def test_test_set_stays_when_the_labelled_patients_change(raw: Path) -> None:
    small = ["--unlabeled", "1", "--val", "1", "--test", "2"]
    main([*small, "-d", "901"])
    main([*small, "-d", "902", "--labeled", "1"])
    main([*small, "-d", "903", "--seed", "1"])
    one, two, other = (files(raw / f"Dataset{number}_Phantom") for number in (901, 902, 903))
    test = [name for name in one if name.startswith(("imagesTs", "labelsTs"))]
    assert len(test) == 8
    assert all(one[name] == two[name] for name in test)
    assert not any(one[name] == other[name] for name in test)


def test_repetition(raw: Path, fails: Callable[..., str]) -> None:
    small = ["--labeled", "1", "--unlabeled", "1", "--val", "1", "--test", "1"]
    main(small)
    before = files(raw)
    assert "exists already" in fails(main, *small)
    main([*small, "--overwrite"])
    assert files(raw) == before


@pytest.mark.parametrize("words", [["--labeled", "0"], ["--size", "80", "64"], ["--test", "-1"], ["--seed", "-3"]])
def test_impossible_arguments(words: list[str], raw: Path) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert not raw.exists()
