"""Where nnU-Net finds our trainers."""

from __future__ import annotations

from pathlib import Path


def trainer_directory() -> Path:
    """The directory to put into nnU-Net's environment variable `nnUNet_extTrainer`."""
    return Path(__file__).parent / "shim"


def print_trainer_directory() -> None:
    """Entry point of `nnUNetv2_vqseg_path`: `export nnUNet_extTrainer=$(nnUNetv2_vqseg_path)`."""
    print(trainer_directory())
