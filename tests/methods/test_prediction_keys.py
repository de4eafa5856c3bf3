"""Prediction reads what decides the architecture, and no other key of the plan's block, of whichever version it is."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_vqseg import trainers
from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.trainer.checkpoint_files import read_checkpoint

ARCHIVE = Path(__file__).resolve().parents[1] / "training" / "models_0_1_0.zip"


def build(trainer: str, block: dict[str, Any], plans_of: str = "nnUNetTrainerVQSeg") -> Any:
    """The network for prediction from a plan of version 0.1.0, with some more keys in its block."""
    with zipfile.ZipFile(ARCHIVE) as models:
        plans = json.loads(models.read(f"{plans_of}/plans.json"))
    plans["configurations"]["2d"]["vqseg"] |= block
    manager = PlansManager(plans)
    found = getattr(trainers, trainer)
    return found.build_network_architecture(manager, manager.get_configuration("2d"), 1, 4, False)


@pytest.mark.parametrize(
    "block", [{}, {"perturbation": "none"}, {"some_future_key": 1}, {"epsilon": 7}, {"optimizer": None, "ramp_up": "x"}]
)
@pytest.mark.parametrize("trainer", ["nnUNetTrainerVQSeg", "nnUNetTrainerMeanTeacher", "nnUNetTrainerSupervised"])
def test_a_model_of_version_0_1_0_loads_whatever_its_keys_for_training_were(trainer, block, tmp_path):
    network = build(trainer, block, plans_of=trainer)
    with zipfile.ZipFile(ARCHIVE) as models:
        checkpoint = models.extract(f"{trainer}/fold_0/checkpoint_latest.pth", tmp_path)
    network.load_state_dict(read_checkpoint(checkpoint, "cpu")["network_weights"], strict=True)
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 4, 32, 32)


def test_keys_of_the_architecture_are_read_from_the_plan():
    network = build("nnUNetTrainerVQSeg", {"num_codes": 32, "code_dim": 6, "vq_stage": 0, "epsilon": 7})
    assert network.quantizer.codebook.shape == (32, 6)
    assert network.stage == 0
    assert network.continuous
    assert network.quantizer.normalize
    network = build("nnUNetTrainerVQSeg", {"code_dim": None, "normalize_codes": False, "decoder_input": "quantized"})
    assert network.quantizer.code_dim == network.width
    assert not network.continuous
    assert not network.quantizer.normalize
    assert build("nnUNetTrainerVQSeg", {"min_tokens": 32}).stage == 0
    assert build("nnUNetTrainerVQSeg", {"quantize": False}).quantizer is None


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"num_codes": 1}, r"vqseg\.num_codes = 1 is not valid; it must be integer in \[2, 1048576\]"),
        ({"decoder_input": "q"}, r"vqseg\.decoder_input = 'q' is not valid; it must be quantized or continuous"),
        ({"vq_stage": 9}, r"vqseg\.vq_stage = 9 is not valid; this plan has stages 0 to \d"),
    ],
)
def test_a_key_of_the_architecture_out_of_range_is_refused(block, message):
    with pytest.raises(ConfigError, match=message):
        build("nnUNetTrainerVQSeg", block)


def test_what_a_trainer_fixes_of_the_architecture_holds_where_an_old_plan_does_not_say_it():
    with zipfile.ZipFile(ARCHIVE) as models:
        plans = json.loads(models.read("nnUNetTrainerVQSeg/plans.json"))
    plans["configurations"]["2d"]["vqseg"] = {"num_codes": 16}
    manager = PlansManager(plans)
    for trainer, continuous in (("nnUNetTrainerVQSeg", True), ("nnUNetTrainerVQSegBase", False)):
        found = getattr(trainers, trainer)
        network = found.build_network_architecture(manager, manager.get_configuration("2d"), 1, 4, False)
        assert network.continuous == continuous
        assert network.quantizer.num_codes == 16
