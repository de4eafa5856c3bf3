"""`dataset.json`, checked before anything relies on it: nnU-Net checks it only on request, and then in part."""

from __future__ import annotations

import re
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.core.json import read_json

IGNORE = "ignore"


def load_dataset_json(file: Path) -> dict[str, Any]:
    """The content of a dataset.json.

    Raises:
        DatasetError: it cannot be read, or as `check_dataset_json`.
    """
    content = read_json(file, "restore it or correct it, nnU-Net needs one for each dataset")
    check_dataset_json(content, file)
    return content


def check_dataset_json(content: Any, file: str | Path) -> None:
    """Refuse what nnU-Net would stumble over later.

    Args:
        file: where it comes from, for the message.

    Raises:
        DatasetError: a key is missing or holds something else than it should, or labels are not 0, 1, 2, ...
    """
    if not isinstance(content, dict):
        raise DatasetError(f"{file} is not a JSON object; write it as nnU-Net's documentation shows.")
    channels = content.get("channel_names", content.get("modality"))
    listed = content.get("dataset", {})
    for key, value, valid, example in (
        ("file_ending", content.get("file_ending"), _is_ending, '".nii.gz"'),
        ("channel_names", channels, _is_names, '{"0": "MRI"}'),
        ("numTraining", content.get("numTraining"), _is_count, "12, the number of labelled cases"),
        ("dataset", listed, _is_list_of_cases, '{"CASE": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}'),
        ("overwrite_image_reader_writer", content.get("overwrite_image_reader_writer", ""), _is_text, '"SimpleITKIO"'),
    ):
        if not valid(value):
            raise DatasetError(f'{file} has {_shown(value)} for "{key}"; write for example {example}.')
    _check_labels(content, file)


def declared_labels(dataset_json: dict[str, Any]) -> frozenset[int]:
    """Every value that a label file may hold, background and ignore label included."""
    values: set[int] = set()
    for value in dataset_json["labels"].values():
        values.update(int(item) for item in (value if isinstance(value, (list, tuple)) else (value,)))
    return frozenset(values)


def check_label_values(file: str | Path, label: np.ndarray, known: frozenset[int]) -> None:
    """Refuse a label map with other values than those that dataset.json declares.

    Raises:
        DatasetError: naming the first few.
    """
    values = np.unique(label)
    unknown = [f"{value:g}" for value in values.tolist() if value not in known]
    if unknown:
        raise DatasetError(
            f"{file} has the label(s) {', '.join(unknown[:5])}{' and others' if len(unknown) > 5 else ''}, but "
            f'dataset.json declares {", ".join(map(str, sorted(known)))} only; correct the label or "labels" in '
            f"dataset.json."
        )


def _check_labels(content: dict[str, Any], file: str | Path) -> None:
    labels = content.get("labels")
    example = '{"background": 0, "name": 1}'
    if not isinstance(labels, dict):
        raise DatasetError(f'{file} has {_shown(labels)} for "labels"; write for example {example}.')
    for name, value in labels.items():
        items = value if isinstance(value, list) and name not in ("background", IGNORE) else [value]
        if not items or not all(_is_label(item) for item in items):
            raise DatasetError(
                f"{file} gives the label {name!r} the value {_shown(value)}; write a whole number from 0 on, or a list "
                f"of them for a region."
            )
    if int(labels.get("background", -1)) != 0:
        raise DatasetError(f'{file} has no label "background" with the value 0; write for example {example}.')
    ignore = labels.get(IGNORE)
    values = sorted(declared_labels({"labels": {name: value for name, value in labels.items() if name != IGNORE}}))
    if values != list(range(len(values))) or (ignore is not None and ignore != len(values)):
        raise DatasetError(
            f"{file} declares the labels {', '.join(map(str, sorted(declared_labels(content))))}; number them 0, 1, 2, "
            f'... without a gap, with "{IGNORE}" as the last, and change the label files accordingly.'
        )
    if len(values) == 1:
        raise DatasetError(f'{file} declares no label besides the background; write for example "labels": {example}.')
    _check_regions(content, file)


def _check_regions(content: dict[str, Any], file: str | Path) -> None:
    labels = [value for name, value in content["labels"].items() if name != IGNORE]
    if not any(isinstance(value, list) and len(value) > 1 for value in labels):
        return
    regions = [
        value for value in labels if {int(item) for item in (value if isinstance(value, list) else [value])} - {0}
    ]
    order = content.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(regions) or not all(_is_label(item) for item in order):
        raise DatasetError(
            f'{file} has {_shown(order)} for "regions_class_order"; write a list of {len(regions)} labels, one for '
            f"each region besides the background."
        )


def _is_ending(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\.[\w.]+", value) is not None


def _is_names(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(name, str) for name in value.values())


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_list_of_cases(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(case, dict)
        and isinstance(case.get("label"), str)
        and isinstance(case.get("images"), list)
        and bool(case["images"])
        and all(isinstance(image, str) for image in case["images"])
        for case in value.values()
    )


def _is_label(value: object) -> bool:
    """A number, or one in quotes, which nnU-Net takes too."""
    if isinstance(value, str):
        return value.isascii() and value.isdigit()
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _shown(value: object) -> str:
    return "nothing" if value is None else reprlib.repr(value)
