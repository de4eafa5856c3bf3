"""Tiny valid datasets that the cases of bad input break, and the folders around them."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
for folder in ("scripts", "tests", "tests/dataset_conversion", "dataset_conversion"):
    if str(ROOT / folder) not in sys.path:
        sys.path.insert(0, str(ROOT / folder))
from conversion_inputs import write_patient  # noqa: E402
from small_plan import shrink  # noqa: E402
from tiny_raw_dataset import SPACING, make_dataset, phantom, write_volume  # noqa: E402

NAME = "Dataset901_Tiny"
PLANS = "nnUNetVQSegPlans"
FOLDERS = {"nnUNet_raw": "RAW", "nnUNet_preprocessed": "PREPROCESSED", "nnUNet_results": "RESULTS"}
FOLDS = [{"train": ["A", "B"], "val": ["C"]}]
TINY = {
    "num_codes": 16,
    "qpm_perplexity": 2,
    "qpm_neighbors": 4,
    "min_tokens": 4,
    "labeled_batch_size": 2,
    "unlabeled_batch_size": 2,
    "foundation_policy": "off",
    "seed": 0,
}
Damage = Callable[["World"], object]


@dataclass(frozen=True)
class World:
    """nnU-Net's three folders under one root, with a dataset of labelled A, B, C and unlabelled U, V."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / NAME

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed" / NAME

    @property
    def image(self) -> Path:
        """A labelled image."""
        return self.raw / "imagesTr" / "A_0000.nii.gz"

    @property
    def label(self) -> Path:
        """Its label."""
        return self.raw / "labelsTr" / "A.nii.gz"

    @property
    def unlabeled(self) -> Path:
        """An unlabelled image."""
        return self.raw / "imagesUl" / "U_0000.nii.gz"

    @property
    def cases(self) -> Path:
        """The preprocessed labelled cases."""
        return self.preprocessed / f"{PLANS}_2d"

    @contextmanager
    def environment(self) -> Iterator[None]:
        """nnU-Net's path variables, while the block runs."""
        before = {name: os.environ.get(name) for name in FOLDERS}
        os.environ.update({name: str(self.root / name) for name in FOLDERS})
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def snapshot(self) -> dict[str, bytes]:
        """Everything that is there: links by their target, files by their content, folders by their name."""
        return {
            str(path.relative_to(self.root)): str(path.readlink()).encode()
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else b"folder"
            for path in sorted(self.root.rglob("*"))
        }


def make_raw(root: Path, channels: int = 1) -> World:
    """Raw data and nothing else."""
    world = World(root)
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    make_dataset(root, labeled="ABC", unlabeled="UV", channels=channels)
    return world


def tame_plan(world: World, name: str = PLANS) -> None:
    """A small network and a small codebook in a plan, and a split beside it."""
    edit(world.preprocessed / f"{name}.json", lambda plans: shrink(plans, 32, 4, 8, convs=1))
    edit(world.preprocessed / f"{name}.json", lambda plans: configuration(plans).update(vqseg=dict(TINY)))
    write_json(world.preprocessed / "splits_final.json", FOLDS)


def make_predictions(root: Path) -> World:
    """Raw data, and a folder of predictions for its labels."""
    world = make_raw(root)
    shutil.copytree(world.raw / "labelsTr", root / "predictions")
    return world


def make_acdc(root: Path) -> World:
    """A folder such as ACDC's, and nnU-Net's folders without a dataset."""
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    for number in range(1, 6):
        write_patient(root / "acdc" / "training" / f"patient{number:03d}", (1, 2))
    return World(root)


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def edit(file: Path, change: Callable[[Any], object]) -> None:
    """Change the content of a JSON file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    write_json(file, content)


def configuration(plans: dict[str, Any]) -> dict[str, Any]:
    """The 2d configuration of a plan."""
    return plans["configurations"]["2d"]


# ---- damage to one file: functions of a path ----


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def cut_voxels(file: Path) -> None:
    """Whole gzip data, of which the last voxels are missing."""
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-100], mtime=0))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def make_text(file: Path) -> None:
    file.write_text("This was a scan once.\n", encoding="utf-8")


def zip_text(file: Path) -> None:
    file.write_bytes(gzip.compress(b"This was a scan once.\n" * 99, mtime=0))


def unpack(file: Path) -> None:
    """A NIfTI file that is not compressed, in spite of its name."""
    file.write_bytes(gzip.decompress(file.read_bytes()))


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def dangle(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.with_name("gone.nii.gz"))


def link(path: Path) -> None:
    """Move a file or folder elsewhere and leave a link."""
    target = path.parents[3] / f"elsewhere_{path.name}"
    path.rename(target)
    path.symlink_to(target)


def header(offset: int, layout: str, *values: float) -> Callable[[Path], None]:
    """Overwrite a number in a NIfTI-1 header."""

    def damage(file: Path) -> None:
        content = bytearray(gzip.decompress(file.read_bytes()))
        struct.pack_into(layout, content, offset, *values)
        file.write_bytes(gzip.compress(bytes(content), mtime=0))

    return damage


def voxels(change: Callable[[np.ndarray], np.ndarray], spacing: Sequence[float] = SPACING) -> Callable[[Path], None]:
    """Write a file again with other voxels, (X, Y, Z) or (X, Y, Z, T)."""

    def damage(file: Path) -> None:
        write_volume(file, change(np.asarray(nibabel.load(file).dataobj)), (*spacing, 1.0))

    return damage


def one_voxel(value: float, dtype: type = np.float32) -> Callable[[Path], None]:
    """Set a voxel."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(dtype)
        array[10, 12, 1] = value
        return array

    return voxels(change)


def respace(*spacing: float) -> Callable[[Path], None]:
    return voxels(lambda array: array, spacing)


def mirror(file: Path) -> None:
    """Negative direction cosines."""
    nibabel.save(
        nibabel.Nifti1Image(np.asarray(nibabel.load(file).dataobj), np.diag([-1.5, -1.5, SPACING[2], 1.0])), file
    )


def shift(file: Path) -> None:
    affine = np.diag([*SPACING, 1.0])
    affine[0, 3] = 4.0
    nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(file).dataobj), affine), file)


def rewrite(world: World, ending: str, write: Callable[[Path, np.ndarray], object]) -> None:
    """Write every image and label again, as (Z, Y, X) in files with another ending."""
    for file in sorted(world.raw.glob("*/*.nii.gz")):
        array = np.asarray(nibabel.load(file).dataobj).T
        file.unlink()
        write(file.with_name(file.name.removesuffix(".nii.gz") + ending), array)
    edit(world.raw / "dataset.json", lambda content: content.update(file_ending=ending))


def use_tiff(world: World) -> None:
    """3D TIFFs, whose spacing is in files of its own."""

    def write(file: Path, array: np.ndarray) -> None:
        tifffile.imwrite(file, array, photometric="minisblack")
        write_json(file.with_name(f"{file.stem.removesuffix('_0000')}.json"), {"spacing": SPACING[::-1]})

    rewrite(world, ".tif", write)
    edit(world.raw / "dataset.json", lambda content: content.update(overwrite_image_reader_writer="Tiff3DIO"))


def use_mha(world: World) -> None:
    """MetaImage files."""
    rewrite(world, ".mha", lambda file, array: sitk.WriteImage(sitk.GetImageFromArray(array), str(file)))


def use_png(world: World, colours: bool = False) -> None:
    """Single slices as grey or RGB images, with labels."""

    def write(file: Path, array: np.ndarray) -> None:
        grey = array[1].clip(0, 255).astype(np.uint8)
        is_image = file.parent.name != "labelsTr"
        Image.fromarray(np.stack([grey] * 3, -1) if colours and is_image else grey).save(file)

    rewrite(world, ".png", write)
    if colours:
        names = {str(channel): "rgb_to_0_1" for channel in range(3)}
        edit(world.raw / "dataset.json", lambda content: content.update(channel_names=names))


def convert(mode: str) -> Callable[[Path], None]:
    """Save a PNG in another of Pillow's modes."""
    return lambda file: Image.open(file).convert(mode).save(file)


def make_2d(file: Path) -> None:
    """The first slice of a volume as a 2D image."""
    sitk.WriteImage(sitk.ReadImage(str(file))[:, :, 0], str(file))


def preprocessed_shapes(world: World) -> dict[str, tuple[int, ...]]:
    """Case -> shape (C, Z, Y, X) after preprocessing, labelled and unlabelled."""
    folders = (world.cases, world.cases.with_name(f"{world.cases.name}_unlabeled"))
    return {
        file.stem: nnUNetDatasetBlosc2(str(folder)).load_case(file.stem)[0].shape
        for folder in folders
        for file in sorted(folder.glob("*.pkl"))
    }


def resize(world: World, shape: tuple[int, int, int], *cases: str) -> None:
    """Give cases images (and labels) of another size."""
    for case in cases:
        image, label = phantom(sum(case.encode()), shape)
        label[: shape[0] // 2, : shape[1] // 2] = 1
        folder = "imagesUl" if case in "UV" else "imagesTr"
        write_volume(world.raw / folder / f"{case}_0000.nii.gz", image + 60 * label)
        if folder == "imagesTr":
            write_volume(world.raw / "labelsTr" / f"{case}.nii.gz", label)


def turn(world: World, cases: str, slices: int = 3) -> None:
    """Cases whose slices lie along the first axis of the file."""
    for case in cases:
        for file in sorted(world.raw.glob(f"*/{case}*.nii.gz")):
            array = np.asarray(nibabel.load(file).dataobj)[..., :slices]
            write_volume(file, array.transpose(2, 0, 1), SPACING[::-1] if slices > 1 else (1.0, 1.0, 1.0))


def rename(world: World, case: str, new: str) -> None:
    """Give a case another name, image and label."""
    folder = "imagesUl" if case in "UV" else "imagesTr"
    (world.raw / folder / f"{case}_0000.nii.gz").rename(world.raw / folder / f"{new}_0000.nii.gz")
    if folder == "imagesTr":
        (world.raw / "labelsTr" / f"{case}.nii.gz").rename(world.raw / "labelsTr" / f"{new}.nii.gz")
