"""Which classes of a dataset are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnunetv2_vqseg.core.errors import EvaluationError
from nnunetv2_vqseg.report.metrics import Label


@dataclass(frozen=True)
class EvaluationClasses:
    """The foreground classes or regions of a dataset.json.

    Keys are what nnU-Net writes into its own summary.json: `"1"` for a label, `"(1, 2)"` for a region.

    Attributes:
        values: every value that a label map may hold.
    """

    labels: dict[str, Label]
    names: dict[str, str]
    ignore_label: int | None
    values: frozenset[int]

    @property
    def keys(self) -> list[str]:
        return list(self.labels)


def classes_from_dataset_json(dataset_json: dict[str, Any]) -> EvaluationClasses:
    """Every label or region but the background and the ignore label.

    Raises:
        EvaluationError: if dataset.json has no `labels`, nothing but background in them, or a value that is no number.
    """
    declared = dataset_json.get("labels")
    if not isinstance(declared, dict):
        raise EvaluationError('dataset.json has no "labels"; write them as {"background": 0, "name": 1, ...}.')
    ignore = declared.get("ignore")
    if ignore is not None and not isinstance(ignore, int):
        raise EvaluationError(f'dataset.json gives the label "ignore" the value {ignore!r}; write a whole number.')
    labels: dict[str, Label] = {}
    names: dict[str, str] = {}
    known = {0} if ignore is None else {0, ignore}
    for name, value in declared.items():
        if name == "ignore":
            continue
        try:
            values = tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)
        except (TypeError, ValueError):
            raise EvaluationError(
                f'dataset.json gives the label {name!r} the value {value!r} in "labels"; write a whole number, or a '
                f"list of them for a region."
            ) from None
        known.update(values)
        if set(values) != {0}:
            label: Label = values if len(values) > 1 else values[0]
            labels[str(label)] = label
            names[str(label)] = name
    if not labels:
        raise EvaluationError('dataset.json declares no label besides the background; add the classes to "labels".')
    return EvaluationClasses(labels, names, ignore, frozenset(known))
