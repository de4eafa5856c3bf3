"""The `vqseg` block follows nnU-Net's inheritance key by key and survives re-planning."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from nnunetv2_vqseg.core.errors import PlansError
from nnunetv2_vqseg.planning.plans import keep_vqseg_blocks, resolve_vqseg_block


def plans(**configurations: dict[str, Any]) -> dict[str, Any]:
    return {"plans_name": "nnUNetVQSegPlans", "configurations": configurations}


def test_child_overrides_single_keys_of_its_ancestors():
    chain = plans(
        **{
            "2d": {"vqseg": {"epsilon": 0.7, "num_codes": 64, "seed": 1}},
            "2d_a": {"inherits_from": "2d", "vqseg": {"epsilon": 0.3}},
            "2d_b": {"inherits_from": "2d_a", "vqseg": {"seed": 2}},
        }
    )
    assert resolve_vqseg_block(chain, "2d_b") == {"epsilon": 0.3, "num_codes": 64, "seed": 2}
    assert resolve_vqseg_block(chain, "2d_a") == {"epsilon": 0.3, "num_codes": 64, "seed": 1}
    assert resolve_vqseg_block(chain, "2d") == {"epsilon": 0.7, "num_codes": 64, "seed": 1}


def test_ancestors_without_a_block_are_passed_through():
    chain = plans(**{"2d": {"vqseg": {"seed": 1}}, "2d_a": {"inherits_from": "2d"}, "3d": {}})
    assert resolve_vqseg_block(chain, "2d_a") == {"seed": 1}
    assert resolve_vqseg_block(chain, "3d") == {}


def test_the_result_is_a_copy():
    chain = plans(**{"2d": {"vqseg": {"batch_size_range": [8, 12]}}})
    before = copy.deepcopy(chain)
    resolve_vqseg_block(chain, "2d")["batch_size_range"].append(0)
    assert chain == before


@pytest.mark.parametrize(
    ("configurations", "name", "words"),
    [
        ({"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}, "a", "a -> b -> a"),
        ({"2d": {}}, "3d_fullres", "no configuration '3d_fullres'"),
        ({"2d": {"inherits_from": "gone"}}, "2d", "no configuration 'gone'"),
        ({"2d": {"vqseg": [1]}}, "2d", "'vqseg' of the configuration '2d'"),
    ],
)
def test_broken_plans_are_refused_by_name(configurations: dict[str, Any], name: str, words: str):
    with pytest.raises(PlansError, match="nnUNetVQSegPlans") as error:
        resolve_vqseg_block(plans(**configurations), name)
    assert words in str(error.value)


def test_replanning_keeps_hand_edited_blocks():
    old = plans(**{"2d": {"batch_size": 8, "vqseg": {"epsilon": 0.3}}, "2d_mine": {"vqseg": {"seed": 5}}, "3d": {}})
    new = plans(**{"2d": {"batch_size": 12}, "3d": {}})
    assert keep_vqseg_blocks(new, old) == ["2d"]
    assert new["configurations"] == {"2d": {"batch_size": 12, "vqseg": {"epsilon": 0.3}}, "3d": {}}
