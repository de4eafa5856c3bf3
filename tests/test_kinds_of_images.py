"""The examples of docs/how-to/kinds-of-images.md: they plan, with their unlabelled images, and one trains."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from skimage import io

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "how-to" / "kinds-of-images.md").read_text(encoding="utf-8")
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


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a dataset that is not there yet, in nnU-Net's folders."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    monkeypatch.setattr("nnunetv2.utilities.utils.Pool", ThreadPool)
    return tmp_path / "nnUNet_raw" / "Dataset901_Kind"


def make(raw: Path, kind: str, foreground: int = 1) -> None:
    """Two labelled cases and an unlabelled one, as the page has them."""
    ending, channels, size, write, _ = KINDS[kind]
    for folder in ("imagesTr", "labelsTr", "imagesUl"):
        (raw / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    label = np.zeros(size)
    label[..., 10:20, 10:20] = 1
    for folder, case in (("imagesTr", "P1"), ("imagesTr", "P2"), ("imagesUl", "P9")):
        image = rng.integers(0, 100, size) + 100 * label
        write(raw / folder / f"{case}_0000{ending}", np.stack([image] * 3, -1) if channels == "rgb" else image)
        if folder == "imagesTr":
            write(raw / "labelsTr" / f"{case}{ending}", foreground * label)
    description = {"channel_names": CHANNELS[channels], "labels": {"background": 0, "lesion": 1}, "numTraining": 2}
    (raw / "dataset.json").write_text(json.dumps(description | {"file_ending": ending}), encoding="utf-8")


def snippet(words: str) -> str:
    """The page's Python with these words."""
    (found,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if words in code)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_it_plans(kind, raw, tmp_path, few_samples):
    _, channels, _, _, reader = KINDS[kind]
    make(raw, kind)

    from nnunetv2_vqseg.commands.plan import main

    main(["-d", "901", "-np", "1", "-npfp", "1", "--no_pbar"])
    base = tmp_path / "nnUNet_preprocessed" / raw.name
    plans = json.loads((base / "nnUNetVQSegPlans.json").read_text(encoding="utf-8"))
    assert plans["image_reader_writer"] == reader
    assert len(plans["configurations"]["2d"]["normalization_schemes"]) == len(CHANNELS[channels])
    assert [file.stem for file in (base / "nnUNetVQSegPlans_2d_unlabeled").glob("*.pkl")] == ["P9"]
    if reader != "NaturalImage2DIO":
        assert plans["original_median_spacing_after_transp"][0] == pytest.approx(7.6)


def test_the_pages_python_makes_what_the_page_asks_for(raw, monkeypatch):
    make(raw, "RGB pictures", foreground=255)
    monkeypatch.chdir(raw)
    exec(snippet("as_gray"), {})
    assert np.unique(io.imread("labelsTr/P1.png")).tolist() == [0, 1]
    before = io.imread("imagesUl/P9_0000.png")
    exec(snippet("image.ndim"), {})
    assert (io.imread("imagesUl/P9_0000.png") == before[..., 0]).all()


def test_the_pages_spacing_is_read(raw, monkeypatch):
    from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

    make(raw, "TIFF stacks")
    for file in raw.glob("*/*.json"):
        file.unlink()
    monkeypatch.chdir(raw)
    exec(snippet('"spacing"'), {})
    assert {str(file) for file in Path().glob("*/*.json")} == {
        f"{folder}/{case}.json"
        for folder, cases in (("imagesTr", "12"), ("labelsTr", "12"), ("imagesUl", "9"))
        for case in (f"P{number}" for number in cases)
    }
    assert Tiff3DIO().read_images(("imagesUl/P9_0000.tif",))[1]["spacing"][0] == pytest.approx(7.6)
    assert Tiff3DIO().read_seg("labelsTr/P1.tif")[1]["spacing"][0] == pytest.approx(7.6)


@pytest.mark.nightly
def test_rgb_pictures_with_masks_of_0_and_255_are_trained_on(raw, tmp_path, monkeypatch, few_samples):
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args
    from tiny_trainings import TINY, shrink

    from nnunetv2_vqseg.commands.plan import main as plan
    from nnunetv2_vqseg.commands.split import main as split

    make(raw, "RGB pictures", foreground=255)
    monkeypatch.chdir(raw)
    exec(snippet("as_gray"), {})
    plan(["-d", "901", "-np", "1", "-npfp", "1", "--no_pbar"])
    split(["-d", "901"])
    file = tmp_path / "nnUNet_preprocessed" / raw.name / "nnUNetVQSegPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    shrink(plans, patch=32, features=8, max_features=16, convs=1)
    plans["configurations"]["2d"]["vqseg"] = TINY | {"num_epochs": 1, "iterations_per_epoch": 1}
    file.write_text(json.dumps(plans), encoding="utf-8")
    device = torch.device("cpu")
    trainer = get_trainer_from_args("901", "2d", 0, "nnUNetTrainerVQSeg", "nnUNetVQSegPlans", device=device)
    trainer.run_training()
    trainer.perform_actual_validation()
    saved = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=True)
    assert saved["vqseg"]["step"] == 1
    (predicted,) = (Path(trainer.output_folder) / "validation").glob("*.png")
    assert set(np.unique(io.imread(predicted))) <= {0, 1}
