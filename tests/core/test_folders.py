"""One dataset for a number or a name, looked up as nnU-Net does, without importing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.core.folders import find_dataset, folder_or_none, nnunet_folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Raw and preprocessed: 7 in both, 27 under another name in each; a file and a longer number beside them."""
    for name in ("raw/Dataset007_A", "raw/Dataset027_B", "raw/Dataset0271_D", "pre/Dataset007_A", "pre/Dataset027_C"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "raw" / "Dataset008_File").touch()
    return [tmp_path / "raw", tmp_path / "pre", tmp_path / "not there"]


@pytest.mark.parametrize("dataset", [7, "7", "007", "Dataset007_A"])
def test_a_number_or_a_name(folders: list[Path], dataset: str | int) -> None:
    assert find_dataset(dataset, *folders) == "Dataset007_A"


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (
            "27",
            "with the ID 27 in .*, which has Dataset027_B, Dataset027_C; nnU-Net wants one folder such as Dataset027",
        ),
        ("8", "with the ID 8 in .*, which has none; "),
        ("A", "one dataset A in .*, which has none; "),
        ("²", "one dataset ² in "),
    ],
)
def test_no_dataset_or_several(folders: list[Path], dataset: str, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        find_dataset(dataset, *folders)


def test_several_names_matter_only_where_one_looks(folders: list[Path]) -> None:
    assert find_dataset(27, folders[0]) == "Dataset027_B"


def test_a_folder_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", "")
    assert folder_or_none("nnUNet_raw") is None
    with pytest.raises(DatasetError, match="nnUNet_raw is not set"):
        nnunet_folder("nnUNet_raw")
