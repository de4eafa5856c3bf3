"""The `vqseg` block of a plan's configuration: merged along `inherits_from`, kept on re-planning."""

from __future__ import annotations

import copy
from typing import Any

BLOCK = "vqseg"


class PlansError(ValueError):
    """One sentence: which plan, what is wrong with it, what to do next."""


def resolve_vqseg_block(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """The configuration's sparse `vqseg` block on top of those it inherits, key by key.

    nnU-Net resolves `inherits_from` by a shallow update: a child's block would replace its parent's as a whole.

    Args:
        plans: content of a plans file.
        configuration: name in `plans["configurations"]`.

    Raises:
        PlansError: a configuration that does not exist or inherits from itself, or a block that is not a dictionary.
    """
    name = plans.get("plans_name", "the plans file")
    configurations = plans.get("configurations", {})
    chain: list[str] = []
    current: str | None = configuration
    while current is not None:
        if current in chain:
            raise PlansError(
                f"In {name}, {' -> '.join([*chain, current])} inherit from each other; correct 'inherits_from'."
            )
        if current not in configurations:
            raise PlansError(
                f"{name} has no configuration '{current}'; it has {', '.join(sorted(configurations)) or 'none'}."
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
    """
    kept = []
    for name, configuration in old_plans.get("configurations", {}).items():
        new = new_plans["configurations"].get(name)
        if new is not None and BLOCK in configuration and BLOCK not in new:
            new[BLOCK] = copy.deepcopy(configuration[BLOCK])
            kept.append(name)
    return kept
