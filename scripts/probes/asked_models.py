"""What probes of trained models are asked on the command line, and the dataset that they are of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.folders import raw_folder
from nnunetv2_vqseg.core.json import read_json
from nnunetv2_vqseg.report.case_files import dataset_name, file_ending
from nnunetv2_vqseg.report.classes import EvaluationClasses, classes_from_dataset_json


def models_parser(description: str) -> argparse.ArgumentParser:
    """With dataset, methods and the file to write."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-d", required=True, help="dataset name or id")
    parser.add_argument(
        "-tr",
        nargs="+",
        required=True,
        metavar="[NAME=]TRAINER:PLANS[:CONFIGURATION,...]",
        help="the first is the baseline",
    )
    parser.add_argument("-o", type=Path, required=True, help="the .json file to write")
    return parser


def read_dataset(asked: str) -> tuple[str, Path, dict[str, Any], EvaluationClasses, str]:
    """Name, raw folder, dataset.json, classes and file ending."""
    name = dataset_name(asked)
    raw = raw_folder(name)
    dataset_json = read_json(raw / "dataset.json", "convert the dataset again", dict)
    return name, raw, dataset_json, classes_from_dataset_json(dataset_json), file_ending(dataset_json)
