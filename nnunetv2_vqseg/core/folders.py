"""nnU-Net's three folders, from the environment, and the datasets in them, without importing nnU-Net."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from nnunetv2_vqseg.core.errors import DatasetError

Variable = Literal["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"]
VARIABLES: tuple[Variable, ...] = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def folder_or_none(variable: Variable) -> Path | None:
    """The folder in one of nnU-Net's environment variables, None where it is not set."""
    value = os.environ.get(variable)
    return Path(value) if value else None


def nnunet_folder(variable: Variable) -> Path:
    """As `folder_or_none`.

    Raises:
        DatasetError: it is not set.
    """
    folder = folder_or_none(variable)
    if folder is None:
        raise DatasetError(f"The environment variable {variable} is not set; see nnU-Net's setting_up_paths.md.")
    return folder


def raw_folder(dataset_name: str) -> Path:
    """`nnUNet_raw/DatasetXXX_Name`."""
    return nnunet_folder("nnUNet_raw") / dataset_name


def preprocessed_folder(dataset_name: str) -> Path:
    """`nnUNet_preprocessed/DatasetXXX_Name`."""
    return nnunet_folder("nnUNet_preprocessed") / dataset_name


def matching_datasets(dataset: str | int, *folders: Path) -> list[str]:
    """Names, such as `Dataset027_ACDC`, that datasets with this number or name have in any of the folders."""
    text = str(dataset)
    pattern = re.compile(rf"Dataset{int(text):03d}_.*" if text.isdecimal() else re.escape(text))
    names = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir()}
    return sorted(filter(pattern.fullmatch, names))


def find_dataset(dataset: str | int, *folders: Path) -> str:
    """The full name of the dataset with this number or name.

    Raises:
        DatasetError: the folders, taken together, have none, or several names for one number.
    """
    found = matching_datasets(dataset, *folders)
    if len(found) != 1:
        number = str(dataset).isdecimal()
        what = f"with the ID {dataset}" if number else dataset
        example = f"Dataset{int(dataset):03d}_NAME" if number else "Dataset027_ACDC"
        raise DatasetError(
            f"There is not exactly one dataset {what} in {', '.join(map(str, folders))}, which has "
            f"{', '.join(found) or 'none'}; nnU-Net wants one folder such as {example}, of the same name in its three "
            f"folders."
        )
    return found[0]
