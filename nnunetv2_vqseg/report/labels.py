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
    """

    labels: dict[str, Label]
    names: dict[str, str]
    ignore_label: int | None

    @property
    def keys(self) -> list[str]:
        return list(self.labels)

    @property
    def values(self) -> frozenset[int]:
        """Every value that a label map may hold."""
        found = {0} if self.ignore_label is None else {0, self.ignore_label}
        for label in self.labels.values():
            found.update(label if isinstance(label, tuple) else (label,))
        return frozenset(found)


def classes_from_dataset_json(dataset_json: dict[str, Any]) -> EvaluationClasses:
    """Every label or region but the background and the ignore label.

    Raises:
        EvaluationError: if dataset.json has no `labels`, nothing but background in them, or a value that is no number.
    """
    declared = dataset_json.get("labels")
    if not isinstance(declared, dict):
        raise EvaluationError('dataset.json has no "labels"; write them as {"background": 0, "name": 1, ...}.')
    labels: dict[str, Label] = {}
    names: dict[str, str] = {}
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
        if set(values) == {0}:
            continue
        label: Label = values if len(values) > 1 else values[0]
        labels[str(label)] = label
        names[str(label)] = name
    if not labels:
        raise EvaluationError('dataset.json declares no label besides the background; add the classes to "labels".')
    ignore = declared.get("ignore")
    if ignore is not None and not isinstance(ignore, int):
        raise EvaluationError(f'dataset.json gives the label "ignore" the value {ignore!r}; write a whole number.')
    return EvaluationClasses(labels, names, ignore)
