"""The converters are scripts, not a package: their folders go on the path."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conversion_inputs import REPOSITORY, SIZE, random_image, write_patient, write_volume

for folder in ("dataset_conversion", "scripts"):
    sys.path.insert(0, str(REPOSITORY / folder))


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnUNet_raw; the two other folders of nnU-Net are set as well, and none of them exists."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path / "nnUNet_raw"


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """As ACDC is released: Info.cfg, real frame numbers, cine files, training (10 patients) and testing (2)."""
    root = tmp_path / "official"
    for number in range(1, 13):
        folder = root / ("training" if number <= 10 else "testing") / f"patient{number:03d}"
        write_patient(folder, (1, 8 + number))
        write_volume(folder / f"{folder.name}_4d.nii.gz", random_image(number, (2, *SIZE)))
        (folder / "Info.cfg").write_text(
            f"ED: 1\nES: {8 + number}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n", encoding="utf-8"
        )
        (folder / "MANDATORY_CITATION.md").write_text("cite us", encoding="utf-8")
    return root


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """As the semi-supervised literature passes it on: training only, frames 01 and 02, lists of patients."""
    root = tmp_path / "shared"
    for number in range(1, 11):
        write_patient(root / "training" / f"patient{number:03d}", (1, 2))
    lists = {
        "train": range(1, 8),
        "val": [8],
        "test": [9, 10],
        "labelled-2": [5, 3],
        "unlabelled-for-2": [1, 2, 4, 6, 7],
    }
    (root / "protocol").mkdir()
    for name, numbers in lists.items():
        (root / "protocol" / f"{name}.txt").write_text("".join(f"patient{n:03d}\n" for n in numbers), encoding="utf-8")
    return root


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must end with an error; returns the sentence."""

    def run(main: Callable[[list[str]], None], *words: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        message = str(stop.value)
        assert message.startswith("Error: ")
        assert message.endswith("."), "a sentence ends with a full stop"
        capsys.readouterr()
        return message

    return run
