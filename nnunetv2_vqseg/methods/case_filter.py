"""Which unlabelled cases a method goes on with."""

from __future__ import annotations

import math
from collections.abc import Mapping


def without_extreme(values: Mapping[str, float], share: float, smallest: bool) -> list[str]:
    """Names without this share of them that has the smallest or the largest values; at least one stays.

    As the original's percentile with linear interpolation: ceil(share * (n - 1)) go, of equal ones the first by name.
    """
    number = math.ceil(share * (len(values) - 1) - 1e-9)
    ordered = sorted(values, key=lambda name: (values[name] if smallest else -values[name], name))
    return sorted(ordered[number:])


def most_stable(changes: Mapping[str, float], share: float) -> list[str]:
    """Names without this share of them whose labels changed most, but at least one; of equal ones the last go."""
    ordered = sorted(changes, key=lambda name: (changes[name], name))
    return sorted(ordered[: max(1, len(ordered) - round(share * len(ordered)))])
