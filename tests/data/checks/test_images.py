"""Broken images are refused with one sentence that names the file; odd but usable ones pass."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage import io
from tiny_raw_dataset import phantom, write_volume

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.data.checks.images import read_case

ONE_CHANNEL = {"channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}
TWO_CHANNELS = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz"}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "U_0000.nii.gz"
    write_volume(file, phantom(1)[0])
    return file


def refused(*files: Path, dataset_json: dict = ONE_CHANNEL, reader: type = SimpleITKIO) -> str:
    with pytest.raises(DatasetError) as error:
        read_case("U", [str(file) for file in files], dataset_json, reader)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert any(str(file) in message for file in files)
    return message


def patch_header(file: Path, offset: int, value: bytes) -> None:
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[offset : offset + len(value)] = value
    file.write_bytes(gzip.compress(bytes(content)))


def truncate(share: float) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)]) and None


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def cut_the_voxels(file: Path) -> None:
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-100]))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate(0.02), "truncated"),
        (truncate(0.5), "truncated"),
        (truncate(0.99), "truncated"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "truncated"),
        (cut_the_voxels, "truncated"),
        (flip_a_byte, ""),
        (lambda file: file.write_bytes(b""), "zero bytes"),
        (lambda file: file.write_text("no image at all", encoding="utf-8"), "not a valid gzip"),
        (lambda file: file.write_bytes(gzip.compress(b"no image at all" * 99)), "not a NIfTI"),
        (lambda file: file.unlink(), "cannot be opened"),
        (lambda file: patch_header(file, 80, struct.pack("<f", 0.0)), "spacing"),
        (lambda file: patch_header(file, 84, struct.pack("<f", np.nan)), "spacing"),
        (lambda file: patch_header(file, 70, struct.pack("<h", 1792)), "complex"),
    ],
)
@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_a_spoiled_file_is_refused(good: Path, spoil: Callable[[Path], object], words: str, reader: type):
    spoil(good)
    assert words in refused(good, reader=reader)


def test_simpleitk_alone_would_not_notice_truncation(good: Path):
    """The reason for our own check; drop it once this fails."""
    truncate(0.5)(good)
    data, _ = SimpleITKIO().read_images([str(good)])
    assert (data == 0).mean() > 0.2


@pytest.mark.parametrize("ending", ["nii", "nrrd", "mha", "gipl"])
def test_truncated_files_of_other_kinds_are_refused(tmp_path: Path, ending: str):
    file = tmp_path / f"U_0000.{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(phantom(1)[0]), str(file))
    assert read_case("U", [str(file)], ONE_CHANNEL, SimpleITKIO).data.shape == (1, 32, 32, 3)
    file.write_bytes(file.read_bytes()[:-1])
    message = refused(file)
    assert "truncated" in message or "early" in message or "expected" in message


@pytest.mark.parametrize(("ending", "voxels"), [("mhd", "U_0000.raw"), ("nhdr", "U_0000.raw")])
def test_a_header_without_its_voxels_is_refused(tmp_path: Path, ending: str, voxels: str):
    file = tmp_path / f"U_0000.{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(phantom(1)[0]), str(file))
    assert read_case("U", [str(file)], ONE_CHANNEL, SimpleITKIO).data.shape == (1, 32, 32, 3)
    (tmp_path / voxels).unlink()
    assert f"{tmp_path / voxels}, which {file} needs, is not there" in refused(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image * np.nan, "NaN"),
        (lambda image: np.where(image > image.mean(), np.inf, image), "Inf"),
        (lambda image: np.zeros_like(image), "empty"),
        (lambda image: np.full_like(image, 7), "empty"),
        (lambda image: image.astype(np.float64) * 1e300, "Inf"),
        (lambda image: np.stack([image] * 5, axis=-1), "5 channels"),
    ],
)
def test_values_that_cannot_be_trained_on_are_refused(tmp_path: Path, change: Callable, words: str):
    file = tmp_path / "U_0000.nii.gz"
    write_volume(file, change(phantom(1)[0]), (1.5, 1.5, 10, 1))
    assert words in refused(file)


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        (lambda image: image[:, :, :1], (1, 1, 32, 32)),
        (lambda image: image[:3, :3], (1, 3, 3, 3)),
        (lambda image: image.astype(np.uint16) * 300, (1, 3, 32, 32)),
        (lambda image: image.astype(np.int16) - 2000, (1, 3, 32, 32)),
        (lambda image: image.astype(np.float64) * 1e30, (1, 3, 32, 32)),
    ],
)
def test_odd_but_usable_images_pass(tmp_path: Path, change: Callable, shape: tuple[int, ...]):
    file = tmp_path / "U_0000.nii.gz"
    write_volume(file, change(phantom(1)[0]))
    read = read_case("U", [str(file)], ONE_CHANNEL, SimpleITKIO)
    assert read.data.shape == shape
    assert read.grid.spacing == (10.0, 1.5, 1.5)


def test_negative_direction_cosines_pass(tmp_path: Path):
    file = tmp_path / "U_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(phantom(1)[0], np.diag([-1.5, -1.5, 10, 1])), file)
    assert read_case("U", [str(file)], ONE_CHANNEL, SimpleITKIO).grid.spacing == (10.0, 1.5, 1.5)


def test_a_symbolic_link_passes(good: Path, tmp_path: Path):
    link = tmp_path / "L_0000.nii.gz"
    link.symlink_to(good)
    assert read_case("L", [str(link)], ONE_CHANNEL, SimpleITKIO).data.shape == (1, 3, 32, 32)


def test_a_multi_channel_file_counts_as_its_channels(tmp_path: Path):
    file = tmp_path / "U_0000.nii.gz"
    write_volume(file, np.stack([phantom(1)[0], phantom(2)[0]], axis=-1), (1.5, 1.5, 10, 1))
    assert read_case("U", [str(file)], TWO_CHANNELS, SimpleITKIO).data.shape == (2, 3, 32, 32)
    assert "2 channels" in refused(file)


def second_channel(good: Path, image: np.ndarray, spacing: tuple[float, float, float] = (1.5, 1.5, 10.0)) -> Path:
    file = good.with_name("U_0001.nii.gz")
    write_volume(file, image, spacing)
    return file


def test_channels_on_different_grids_are_refused(good: Path):
    other = second_channel(good, phantom(2, (32, 30, 3))[0])
    message = refused(good, other, dataset_json=TWO_CHANNELS)
    assert "shape" in message
    assert str(other) in message
    other = second_channel(good, phantom(2)[0], (1.5, 1.2, 10.0))
    assert "spacing" in refused(good, other, dataset_json=TWO_CHANNELS)


def test_channels_at_different_places_are_a_warning(good: Path):
    other = good.with_name("U_0001.nii.gz")
    affine = np.diag([1.5, 1.5, 10.0, 1.0])
    affine[0, 3] = 4.0
    nibabel.save(nibabel.Nifti1Image(phantom(2)[0], affine), other)
    for reader in (SimpleITKIO, NibabelIO):
        (warning,) = read_case("U", [str(good), str(other)], TWO_CHANNELS, reader).warnings
        assert str(other) in warning


def test_one_empty_channel_of_two_is_a_warning(good: Path):
    other = second_channel(good, np.zeros((32, 32, 3), np.float32))
    (warning,) = read_case("U", [str(good), str(other)], TWO_CHANNELS, SimpleITKIO).warnings
    assert str(good) in warning
    assert "Channel 1" in warning
    both = second_channel(good, np.zeros((32, 32, 3), np.float32)), good
    write_volume(good, np.zeros((32, 32, 3), np.float32))
    assert "empty" in refused(*both, dataset_json=TWO_CHANNELS)


def test_natural_images(tmp_path: Path):
    rgb = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
    file = tmp_path / "U_0000.png"
    io.imsave(file, np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8), check_contrast=False)
    read = read_case("U", [str(file)], rgb, NaturalImage2DIO)
    assert read.data.shape == (3, 1, 20, 24)
    assert read.grid.spacing == (999.0, 1.0, 1.0)
    assert "3 channels" in refused(file, dataset_json=ONE_CHANNEL, reader=NaturalImage2DIO)
    truncate(0.6)(file)
    refused(file, dataset_json=rgb, reader=NaturalImage2DIO)
