"""`nnUNetv2_vqseg_path`: where nnU-Net finds our trainers, and whether it looks there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "nnUNet_extTrainer"


def trainer_directory() -> Path:
    """The directory that nnU-Net's environment variable `nnUNet_extTrainer` must name."""
    return Path(__file__).parents[1] / "shim"


def main() -> None:
    """Entry point; exit code 1 where nnU-Net does not look for our trainers.

    The variable is set at the start of every Python by the `.pth` file of the installation.
    """
    directory = trainer_directory()
    print(directory)
    searched = [Path(folder) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder.strip()]
    (shim,) = directory.glob("*.py")
    if not any((folder / shim.name).is_file() for folder in searched):
        print(
            f"nnU-Net does not look for trainers there: install the package with pip in this environment, or set "
            f"{VARIABLE}={os.pathsep.join(map(str, [*searched, directory]))}",
            file=sys.stderr,
        )
        raise SystemExit(1)


if __name__ == "__main__":
    main()
