"""The `vqseg` block of a plan's configuration: merged along `inherits_from`, kept on re-planning."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.errors import DatasetError, PlansError
from nnunetv2_vqseg.core.json import read_json

BLOCK = "vqseg"


def plans_name(plans: Any) -> str:
    """How messages call a plan: its file's name.

    Raises:
        PlansError: this is no plan at all.
    """
    if not isinstance(plans, dict):
        raise PlansError("The plans file is not a JSON object; plan again with nnUNetv2_vqseg_plan_and_preprocess.")
    name = plans.get("plans_name")
    return f"{name}.json" if isinstance(name, str) else "The plans file"


def load_plans(file: Path) -> dict[str, Any]:
    """The content of a plans file.

    Raises:
        PlansError: it is missing, no JSON, or no plan of nnU-Net 2.
    """
    if not file.is_file():
        raise PlansError(
            f"{file} does not exist; run nnUNetv2_vqseg_plan_and_preprocess, or name another plan with -p."
        )
    try:
        plans = read_json(file, "correct it, or delete it and plan again")
    except DatasetError as error:
        raise PlansError(str(error)) from error
    if not isinstance(plans, dict) or not isinstance(plans.get("configurations"), dict):
        raise PlansError(f"{file} is no plan of nnU-Net 2; delete it and plan again.")
    return plans


def _configurations(plans: dict[str, Any]) -> dict[str, dict[str, Any]]:
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or not all(isinstance(item, dict) for item in configurations.values()):
        raise PlansError(
            f"{plans_name(plans)} has no configurations by name; delete it and plan again with "
            f"nnUNetv2_vqseg_plan_and_preprocess."
        )
    return configurations


def resolve_vqseg_block(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """The configuration's sparse `vqseg` block on top of those it inherits, key by key.

    nnU-Net resolves `inherits_from` by a shallow update: a child's block would replace its parent's as a whole.

    Args:
        plans: content of a plans file.
        configuration: name in `plans["configurations"]`.

    Raises:
        PlansError: no configurations, one that does not exist or inherits from itself, or a block that is not a
            dictionary.
    """
    name, configurations = plans_name(plans), _configurations(plans)
    chain: list[str] = []
    current: str | None = configuration
    while current is not None:
        if current in chain:
            raise PlansError(
                f"In {name}, {' -> '.join([*chain, current])} inherit from each other; correct 'inherits_from'."
            )
        if not isinstance(current, str) or current not in configurations:
            raise PlansError(
                f"{name} has no configuration {current!r}; it has {', '.join(sorted(configurations)) or 'none'}."
            )
        chain.append(current)
        current = configurations[current].get("inherits_from")
    merged: dict[str, Any] = {}
    for ancestor in reversed(chain):
        block = configurations[ancestor].get(BLOCK, {})
        if not isinstance(block, dict):
            raise PlansError(
                f"In {name}, '{BLOCK}' of the configuration '{ancestor}' is {block!r}; write it as a dictionary such "
                f'as {{"epsilon": 0.5}}.'
            )
        merged.update(copy.deepcopy(block))
    return merged


def keep_vqseg_blocks(new_plans: dict[str, Any], old_plans: dict[str, Any]) -> list[str]:
    """Carry `vqseg` blocks of the old plan over to configurations of the same name in the new one, in place.

    Returns:
        The configurations that got one.

    Raises:
        PlansError: the old plan has no configurations.
    """
    kept = []
    for name, configuration in _configurations(old_plans).items():
        new = new_plans["configurations"].get(name)
        if new is not None and BLOCK in configuration and BLOCK not in new:
            new[BLOCK] = copy.deepcopy(configuration[BLOCK])
            kept.append(name)
    return kept
