"""What a reader opens beside the files of a case is part of what the case is made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_vqseg.data.manifest import describe_sources
from nnunetv2_vqseg.data.records import case_states, find_out
from nnunetv2_vqseg.data.side_files import with_side_files


def names(file: Path) -> list[str]:
    return [str(found.relative_to(file.parent)) for found in with_side_files([file])]


@pytest.mark.parametrize("ending", [".tif", ".tiff", ".TIF"])
def test_spacing_files_of_tiffs(tmp_path: Path, ending: str):
    assert "CASE.json" in names(tmp_path / f"CASE_0001{ending}")
    assert "CASE.json" in names(tmp_path / f"CASE{ending}")


def test_a_spacing_file_of_two_channels_counts_once(tmp_path: Path):
    files = with_side_files([tmp_path / "CASE_0000.tif", tmp_path / "CASE_0001.tif"])
    assert files.count(tmp_path / "CASE.json") == 1


@pytest.mark.parametrize("ending", ["mhd", "nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
def test_headers_name_the_files_with_their_voxels(tmp_path: Path, ending: str, compressed: bool):
    file = tmp_path / f"CASE_0000.{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 8, 8), np.float32)), str(file), compressed)
    assert {tmp_path / name for name in names(file)} == set(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["mha", "nrrd", "nii.gz", "png"])
def test_files_that_hold_everything_have_no_side_files(tmp_path: Path, ending: str):
    file = tmp_path / f"CASE_0000.{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 8), np.uint8)), str(file))
    assert names(file) == [file.name]


@pytest.mark.parametrize(
    ("header", "files"),
    [
        ("ElementDataFile = LIST\nslice 1.raw\nslice 2.raw\n", ["slice 1.raw", "slice 2.raw"]),
        ("ElementDataFile = slice%03d.raw 1 2 1\n", ["slice001.raw", "slice002.raw"]),
        ("ElementDataFile = raw/CASE.raw", ["raw/CASE.raw"]),
    ],
)
def test_several_files_and_other_folders(tmp_path: Path, header: str, files: list[str]):
    file = tmp_path / "CASE_0000.mhd"
    file.write_text(header, encoding="utf-8")
    for number in (1, 2):
        (tmp_path / f"slice{number:03d}.raw").touch()
    assert names(file) == [file.name, *files]


def test_one_half_of_a_pair_counts_for_the_other(tmp_path: Path):
    assert names(tmp_path / "CASE_0000.img") == ["CASE_0000.img", "CASE_0000.hdr"]


def test_what_was_found_out_is_found_out_again_for_another_side_file(tmp_path: Path):
    file, side = tmp_path / "CASE_0000.tif", tmp_path / "CASE.json"
    file.touch()

    def spacing() -> object:
        found = find_out(tmp_path / "record", _content, {"CASE": [str(file)]}, (), frozenset(["it"]), 0, "", False)
        return found["CASE"]["it"]

    assert spacing() == ""
    states, sources = case_states([file]), describe_sources([str(file)])
    side.write_text(json.dumps({"spacing": [1, 1, 1]}), encoding="utf-8")
    assert spacing() == '{"spacing": [1, 1, 1]}'
    assert case_states([file]) != states
    assert describe_sources([str(file)]) != sources
    side.unlink()
    assert spacing() == ""


def _content(case: str, files: list[str]) -> dict[str, str]:
    side = Path(files[0]).with_name(f"{case}.json")
    return {"it": side.read_text(encoding="utf-8") if side.exists() else ""}
