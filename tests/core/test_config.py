"""Configurations: what a type allows, how a plan's block is read, and what users are told."""

import json
import math
from dataclasses import FrozenInstanceError, dataclass
from typing import Annotated, Literal

import pytest

from nnunetv2_vqseg.core.config import Config, Range
from nnunetv2_vqseg.core.errors import ConfigError


@dataclass(frozen=True)
class Base(Config):
    epsilon: Annotated[float, Range(0, 1), "a share"] = 0.5
    codes: Annotated[int, Range(2, 64), "how many"] = 16


@dataclass(frozen=True)
class Toy(Base):
    seed: Annotated[int | None, Range(0, 9), "null: none"] = None
    stage: Annotated[int | Literal["auto"], Range(0, 4), "which"] = "auto"
    mode: Annotated[Literal["fast", "exact"], "how"] = "fast"
    switch: Annotated[bool, "whether"] = True
    file: Annotated[str | None, "where"] = None
    area: Annotated[tuple[float, float], Range(0, 1), "from, to"] = (0.1, 0.4)
    channels: Annotated[tuple[int, int, int], Range(0, 9), "three"] = (0, 1, 2)

    def in_use(self, key: str) -> bool:
        return key != "codes" or self.switch


@pytest.mark.parametrize(
    ("key", "values", "refused", "valid"),
    [
        ("epsilon", (0, 1, 0.3), (-0.01, 1.01, math.nan, math.inf, True, "0.5", None, [0.5]), "number in [0, 1]"),
        ("codes", (2, 64), (1, 65, 16.0, True, "16", None), "integer in [2, 64]"),
        ("seed", (None, 0, 9), (-1, 10, 0.0, False, "null"), "null or integer in [0, 9]"),
        ("stage", ("auto", 0, 4), (5, -1, "Auto", None, True), "auto or integer in [0, 4]"),
        ("mode", ("fast", "exact"), ("Fast", "", None, 0, ["fast"]), "fast or exact"),
        ("switch", (True, False), (1, 0, "true", None), "true or false"),
        ("file", (None, "a.pth"), ("", 3, ["a"]), "null or a text"),
        ("area", ((0.1, 0.4), [0, 1], [1, 1]), ([0.4, 0.1], [0.1], [0.1, 1.1], 0.1, "ab"), "[low, high], each number"),
        ("channels", ([2, 1, 0], (9, 9, 9)), ([0, 1], [0, 1, 10], [0, 1, 2.0], 3), "3 times integer in [0, 9]"),
    ],
)
def test_a_type_says_which_values_are_valid(key, values, refused, valid):
    assert valid in Toy.declared()[key].valid
    for value in values:
        kept = getattr(Toy().override({key: value}), key)
        assert kept == (tuple(value) if isinstance(value, list) else value)
    for value in refused:
        with pytest.raises(ConfigError) as error:
            Toy().override({key: value})
        assert str(error.value).startswith(f"vqseg.{key} = ")
        assert f"is not valid; it must be {Toy.declared()[key].valid}." in str(error.value)


def test_an_unknown_key_is_refused_with_a_guess_and_the_valid_ones():
    with pytest.raises(ConfigError) as error:
        Base().override({"epsilom": 0.1})
    assert str(error.value) == (
        "Unknown key 'epsilom' in the plan's vqseg block (did you mean 'epsilon'?); valid keys are epsilon, codes."
    )
    with pytest.raises(ConfigError, match=r"Unknown key 'zzz' in the plan's vqseg block; valid keys"):
        Base().override({"zzz": 0.1})


def test_a_locked_key_may_only_repeat_its_own_value():
    assert Toy().override({"codes": 16, "epsilon": 0.1}, locked={"codes"}).epsilon == 0.1
    with pytest.raises(ConfigError, match=r"vqseg\.codes is what defines this trainer \(codes = 16\) .* set to 8 in"):
        Toy().override({"codes": 8}, locked={"codes"})


def test_keys_of_other_methods_are_passed_over_unread_and_guessed():
    assert Base().override({"area": "anything", "epsilon": 0.1}, elsewhere={"area": []}) == Base(epsilon=0.1)
    with pytest.raises(ConfigError, match="did you mean 'area'"):
        Base().override({"aera": 1}, elsewhere={"area": []})


def test_a_value_that_another_method_alone_takes_is_refused_with_the_way_out():
    @dataclass(frozen=True)
    class Other(Config):
        mode: Annotated[Literal["slow"], "how"] = "slow"

    elsewhere = {"mode": [Toy.declared()["mode"], Other.declared()["mode"]]}
    with pytest.raises(ConfigError) as error:
        Toy().override({"mode": "slow"}, elsewhere=elsewhere)
    assert str(error.value) == (
        "vqseg.mode = 'slow' is for another method, here it must be fast or exact; give that method a configuration of "
        'its own in the plan, as "2d_own": {"inherits_from": "2d", "vqseg": {"mode": "slow"}}, train it as 2d_own, and '
        "remove the key from the shared block."
    )
    with pytest.raises(ConfigError, match="is not valid; it must be fast or exact"):
        Toy().override({"mode": "never"}, elsewhere=elsewhere)


def test_it_is_immutable_and_survives_json():
    config = Toy(area=(0.2, 0.3), seed=3)
    with pytest.raises(FrozenInstanceError):
        config.epsilon = 0.1
    stored = json.loads(json.dumps(config.as_dict()))
    assert stored["area"] == [0.2, 0.3]
    assert Toy().override(stored) == config
    assert hash(Toy(area=[0.2, 0.3], seed=3)) == hash(config)


def test_changes_since_a_stored_configuration_are_named_with_both_values():
    stored = {**Toy().as_dict(), "epsilon": 0.1, "codes": 8, "gone": 1}
    assert Toy().changed_since(stored) == {"epsilon": "epsilon 0.1, now 0.5", "codes": "codes 8, now 16"}
    assert Toy(switch=False).changed_since({**stored, "switch": False}) == {"epsilon": "epsilon 0.1, now 0.5"}, (
        "codes are not in use"
    )
    assert Toy().changed_since(Toy().as_dict()) == {}, "a tuple is stored as a list"


def test_every_key_is_described_in_the_log():
    assert Base().describe() == "  epsilon: 0.5\n  codes: 16"


def test_no_configuration_has_an_annotation_that_python_3_10_cannot_read():
    """It refuses a ClassVar without a type, where later versions do not."""
    import nnunetv2_vqseg.trainers  # noqa: F401  # with all methods

    def subclasses(cls):
        for sub in cls.__subclasses__():
            yield sub
            yield from subclasses(sub)

    found = {
        f"{cls.__name__}.{name}"
        for cls in subclasses(Config)
        for name, kind in cls.__annotations__.items()
        if kind == "ClassVar"
    }
    assert not found
