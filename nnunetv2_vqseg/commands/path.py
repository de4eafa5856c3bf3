"""`nnUNetv2_vqseg_path`: where nnU-Net finds our trainers, `export nnUNet_extTrainer=$(nnUNetv2_vqseg_path)`."""

from __future__ import annotations

from pathlib import Path


def trainer_directory() -> Path:
    """The directory to put into nnU-Net's environment variable `nnUNet_extTrainer`."""
    return Path(__file__).parents[1] / "shim"


def main() -> None:
    """Entry point."""
    print(trainer_directory())
