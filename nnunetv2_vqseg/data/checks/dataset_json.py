"""`dataset.json`, checked before anything relies on it: nnU-Net checks it only on request, and then in part."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.core.json import read_json

IGNORE = "ignore"
ALMOST = 1e-3  # of a whole number, as resampling and conversions leave labels


def load_dataset_json(file: Path) -> dict[str, Any]:
    """The content of a dataset.json; raises `DatasetError` if it cannot be read, or as `check_dataset_json`."""
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
    channels, training = content.get("channel_names", content.get("modality")), content.get("numTraining")
    ending, labels = content.get("file_ending"), content.get("labels")
    reader, listed = content.get("overwrite_image_reader_writer", ""), content.get("dataset", {})
    for key, value, valid, example in (
        ("file_ending", ending, isinstance(ending, str) and re.fullmatch(r"\.[\w.]+", ending), '".nii.gz"'),
        ("channel_names", channels, channels and _is_dict_of(channels, _is_text), '{"0": "MRI"}'),
        ("numTraining", training, type(training) is int and training > 0, "12, the number of labelled cases"),
        ("dataset", listed, _is_dict_of(listed, _is_case), '{"CASE": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}'),
        ("overwrite_image_reader_writer", reader, _is_text(reader), '"SimpleITKIO"'),
        ("labels", labels, isinstance(labels, dict), '{"background": 0, "name": 1}'),
    ):
        if not valid:
            raise DatasetError(f'{file} has {_shown(value)} for "{key}"; write for example {example}.')
    _check_labels(content, file)
    _check_regions(content, file)


def number_of_channels(dataset_json: dict) -> int:
    """Input channels as `dataset.json` declares them."""
    return len(dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"])


def declared_labels(dataset_json: dict[str, Any]) -> frozenset[int]:
    """Every value that a label file may hold, background and ignore label included."""
    return frozenset(int(item) for value in dataset_json["labels"].values() for item in _items(value))


def check_label_values(file: str | Path, label: np.ndarray, known: frozenset[int]) -> None:
    """Refuse a label map with other values than those that dataset.json declares.

    Raises:
        DatasetError: naming the first few.
    """
    unknown = [value for value in np.unique(label) if value.item() not in known]
    if unknown:
        shown = [_shown_number(value) for value in unknown[:5]]
        remedy = 'correct the label or "labels" in dataset.json'
        if all(0 < abs(value - np.round(value)) < ALMOST for value in unknown):
            remedy = "round it to whole numbers"
        raise DatasetError(
            f"{file} has the label(s) {', '.join(shown)}{' and others' if len(unknown) > 5 else ''}, but dataset.json "
            f"declares {', '.join(map(str, sorted(known)))} only; {remedy}."
        )


def _check_labels(content: dict[str, Any], file: str | Path) -> None:
    labels, example = content["labels"], '{"background": 0, "name": 1}'
    for name, value in labels.items():
        items = [value] if name in ("background", IGNORE) else _items(value)
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


def _check_regions(content: dict[str, Any], file: str | Path) -> None:
    labels = [_items(value) for name, value in content["labels"].items() if name != IGNORE]
    if all(len(items) == 1 for items in labels):
        return
    regions = [items for items in labels if set(map(int, items)) - {0}]
    order = content.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(regions) or not all(_is_label(item) for item in order):
        raise DatasetError(
            f'{file} has {_shown(order)} for "regions_class_order"; write a list of {len(regions)} labels, one for '
            f"each region besides the background."
        )


def _items(value: Any) -> list[Any]:
    """The labels of a region, or the one label."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_dict_of(value: object, valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(valid, value.values()))


def _is_case(value: object) -> bool:
    if not isinstance(value, dict) or not _is_text(value.get("label")):
        return False
    images = value.get("images")
    return isinstance(images, list) and bool(images) and all(map(_is_text, images))


def _is_label(value: object) -> bool:
    """A number, or one in quotes, which nnU-Net takes too."""
    if isinstance(value, str):
        return value.isascii() and value.isdigit()
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _shown_number(value: np.floating[Any] | np.integer[Any]) -> str:
    """With as many digits as it needs to differ from others."""
    short = f"{value.item():g}"
    return short if float(short) == value else np.format_float_positional(value, trim="-")


def _shown(value: object) -> str:
    return "nothing" if value is None else reprlib.repr(value)
