"""The examples of docs/how-to/kinds-of-images.md plan, with their unlabelled images."""

from __future__ import annotations

import json
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from skimage import io

pytestmark = pytest.mark.slow

CHANNELS = {"rgb": {"0": "R", "1": "G", "2": "B"}, "grey": {"0": "ultrasound"}}
Write = Callable[[Path, np.ndarray], None]


def write_picture(file: Path, array: np.ndarray) -> None:
    io.imsave(file, array.astype(np.uint8), check_contrast=False)


def write_stack(file: Path, array: np.ndarray) -> None:
    tifffile.imwrite(file, array.astype(np.uint8))
    case = file.stem.removesuffix("_0000")
    file.with_name(f"{case}.json").write_text(json.dumps({"spacing": [7.6, 3.94, 3.94]}), encoding="utf-8")


def write_series(file: Path, array: np.ndarray) -> None:
    """A DICOM series, converted as the page says."""
    folder = file.parent / "series"
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()  # without it the positions are lost
    for number, plane in enumerate(array.astype(np.int16)):
        image = sitk.GetImageFromArray(plane)
        for key, value in {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0020|000e": "1.2.3.4",
            "0020|0013": str(number),
            "0020|0032": f"0\\0\\{7.6 * number}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            image.SetMetaData(key, value)
        image.SetSpacing((1.5, 1.5))
        writer.SetFileName(str(folder / f"{number:03d}.dcm"))
        writer.Execute(image)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(reader.Execute(), str(file))
    for plane in folder.iterdir():
        plane.unlink()
    folder.rmdir()


KINDS: dict[str, tuple[str, str, tuple[int, ...], Write, str]] = {
    "RGB pictures": (".png", "rgb", (40, 48), write_picture, "NaturalImage2DIO"),
    "grey pictures": (".png", "grey", (40, 48), write_picture, "NaturalImage2DIO"),
    "TIFF pictures": (".tif", "grey", (40, 48), write_picture, "NaturalImage2DIO"),
    "TIFF stacks": (".tif", "grey", (5, 40, 48), write_stack, "Tiff3DIO"),
    "DICOM series": (".nii.gz", "grey", (5, 40, 48), write_series, "SimpleITKIO"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_plans(kind, tmp_path, monkeypatch, few_samples):
    ending, channels, size, write, reader = KINDS[kind]
    raw = tmp_path / "nnUNet_raw" / "Dataset901_Kind"
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    (tmp_path / "nnUNet_preprocessed").mkdir()
    for folder in ("imagesTr", "labelsTr", "imagesUl"):
        (raw / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    label = np.zeros(size)
    label[..., 10:20, 10:20] = 1
    for folder, case in (("imagesTr", "P1"), ("imagesTr", "P2"), ("imagesUl", "P9")):
        image = rng.integers(0, 100, size) + 100 * label
        write(raw / folder / f"{case}_0000{ending}", np.stack([image] * 3, -1) if channels == "rgb" else image)
        if folder == "imagesTr":
            write(raw / "labelsTr" / f"{case}{ending}", label)
    description = {"channel_names": CHANNELS[channels], "labels": {"background": 0, "lesion": 1}, "numTraining": 2}
    (raw / "dataset.json").write_text(json.dumps(description | {"file_ending": ending}), encoding="utf-8")

    from nnunetv2_vqseg.commands.plan import main

    monkeypatch.setattr("nnunetv2.utilities.utils.Pool", ThreadPool)
    main(["-d", "901", "-np", "1", "-npfp", "1", "--no_pbar"])
    base = tmp_path / "nnUNet_preprocessed" / raw.name
    plans = json.loads((base / "nnUNetVQSegPlans.json").read_text(encoding="utf-8"))
    assert plans["image_reader_writer"] == reader
    assert len(plans["configurations"]["2d"]["normalization_schemes"]) == len(CHANNELS[channels])
    assert [file.stem for file in (base / "nnUNetVQSegPlans_2d_unlabeled").glob("*.pkl")] == ["P9"]
    if reader != "NaturalImage2DIO":
        assert plans["original_median_spacing_after_transp"][0] == pytest.approx(7.6)
