"""Configurations: frozen dataclasses whose fields carry range and meaning, checked on construction.

    @dataclass(frozen=True)
    class MyConfig(Config):
        epsilon: Annotated[float, Range(0, 1), "share of the tokens that are replaced"] = 0.7

The type says what is valid (numbers with a `Range`, `Literal` for a choice, `| None`, tuples of one kind), the last
text what it means. From both come the errors and the tables of docs/reference/keys.md.
"""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from nnunetv2_vqseg.core.errors import ConfigError

Self = TypeVar("Self", bound="Config")
Check = Callable[[Any], bool]


class Range(NamedTuple):
    """Smallest and largest valid number."""

    low: float
    high: float


class Key(NamedTuple):
    """A field as users meet it."""

    name: str
    default: Any
    valid: str
    meaning: str
    check: Check


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; immutable.

    Raises:
        ConfigError: a value outside its valid range.
    """

    architecture: ClassVar[frozenset[str]] = frozenset()
    """Keys that decide what prediction computes."""
    retired: ClassVar[Mapping[str, str]] = {}
    """Keys of earlier versions, with what to do instead."""

    def __post_init__(self) -> None:
        for key in self.declared().values():
            value = getattr(self, key.name)
            if not key.check(value):
                raise ConfigError(f"vqseg.{key.name} = {reprlib.repr(value)} is not valid; it must be {key.valid}.")
            if isinstance(value, list):
                object.__setattr__(self, key.name, tuple(value))

    @classmethod
    def declared(cls) -> dict[str, Key]:
        """Every field, in order."""
        return _declared(cls)  # type: ignore[arg-type]  # a class is hashable

    def override(
        self: Self,
        block: Mapping[str, Any],
        locked: Collection[str] = (),
        elsewhere: Mapping[str, Collection[Key]] = MappingProxyType({}),
    ) -> Self:
        """This configuration with the keys of a sparse `vqseg` block of the plans put over it.

        Args:
            block: key -> value, as read from JSON.
            locked: keys that define a variant and may only repeat the variant's own value.
            elsewhere: all methods' keys by their names. Those of other methods alone are passed over: a plan is shared
                by the methods that are compared.

        Raises:
            ConfigError: an unknown key (the message lists the valid ones), a locked one, or a value out of range, also
                where it is another method's.
        """
        own = {}
        for key, value in block.items():
            if key in self.declared():
                own[key] = value
                if key in locked and value != getattr(self, key):
                    raise ConfigError(locked_message(key, getattr(self, key), value))
                mine = self.declared()[key]
                if not mine.check(value) and any(other.check(value) for other in elsewhere.get(key, ())):
                    raise ConfigError(_elsewhere_message(mine, value))
            elif key in self.retired:
                raise ConfigError(f"vqseg.{key} = {value!r} is no longer a key: {self.retired[key]}.")
            elif key not in elsewhere:
                close = difflib.get_close_matches(key, [*self.declared(), *elsewhere], n=1)
                hint = f" (did you mean '{close[0]}'?)" if close else ""
                raise ConfigError(
                    f"Unknown key {key!r} in the plan's vqseg block{hint}; valid keys are {', '.join(self.declared())}."
                )
        return replace(self, **own)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able dictionary, for the log and the checkpoint."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def in_use(self, key: str) -> bool:
        """Whether this key changes anything beside the others' values."""
        return True

    def changed_since(self, stored: Mapping[str, Any]) -> dict[str, str]:
        """Keys in use that have another value than in a stored `as_dict`, with both values as text.

        Left out are keys that only one of both has, because another version wrote it.
        """
        now = self.as_dict()
        return {
            key: f"{key} {value!r}, now {now[key]!r}"
            for key, value in stored.items()
            if key in now and value != now[key] and self.in_use(key)
        }

    def describe(self) -> str:
        """One line a field, for the log."""
        return "\n".join(f"  {key}: {value}" for key, value in self.as_dict().items())


def locked_message(key: str, own: Any, value: Any) -> str:
    """Why a key that defines a trainer cannot be set."""
    return (
        f"vqseg.{key} is what defines this trainer ({key} = {own!r}) and cannot be set to {value!r} in the plan; "
        f"remove it there or use another trainer."
    )


def _elsewhere_message(key: Key, value: Any) -> str:
    """Why a value that is valid for another method cannot be set for this one."""
    return (
        f"vqseg.{key.name} = {value!r} is for another method, here it must be {key.valid}; give that method a "
        f'configuration of its own in the plan, as "2d_own": {{"inherits_from": "2d", "vqseg": '
        f"{json.dumps({key.name: value})}}}, train it as 2d_own, and remove the key from the shared block."
    )


@cache
def _declared(config: Any) -> dict[str, Key]:
    hints = get_type_hints(config, include_extras=True)
    found = {}
    for item in fields(config):
        kind, *about = get_args(hints[item.name])
        limits = next((each for each in about if isinstance(each, Range)), None)
        valid, check = _valid(kind, limits)
        found[item.name] = Key(item.name, item.default, valid, about[-1], check)
    return found


def _valid(kind: Any, limits: Range | None) -> tuple[str, Check]:
    """What a type allows, in words and as a test."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        parts = [_valid(each, limits) for each in sorted(args, key=lambda each: each in (int, float, str))]
        return " or ".join(text for text, _ in parts), lambda value: any(check(value) for _, check in parts)
    if kind is NoneType:
        return "null", lambda value: value is None
    if origin is Literal:
        return " or ".join(args), lambda value: isinstance(value, str) and value in args
    if kind is bool:
        return "true or false", lambda value: isinstance(value, bool)
    if kind is str:
        return "a text", lambda value: isinstance(value, str) and bool(value)
    if origin is tuple:
        text, one = _valid(args[0], limits)
        if args[-1] is ...:
            return f"a list, each {text}", lambda value: isinstance(value, (list, tuple)) and all(map(one, value))
        pair = len(args) == 2
        words = f"[low, high], each {text}" if pair else f"{len(args)} times {text}"

        def fits(value: Any) -> bool:
            is_list = isinstance(value, (list, tuple)) and len(value) == len(args) and all(map(one, value))
            return is_list and (not pair or value[0] <= value[1])

        return words, fits
    assert limits is not None, f"{kind} needs a Range"
    numbers = (int,) if kind is int else (int, float)
    low, high = (str(end) if isinstance(end, int) else f"{end:g}" for end in limits)
    words = f"{'integer' if kind is int else 'number'} in [{low}, {high}]"
    return (
        words,
        lambda value: isinstance(value, numbers) and not isinstance(value, bool) and limits.low <= value <= limits.high,
    )
