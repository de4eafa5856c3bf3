"""`nnUNetPlannerViT`: a plan that nnU-Net builds the ViT from, with a patch that fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from test_planner import home, write_fingerprint
from tiny_raw_dataset import make_dataset
from vit_trainings import ENCODER

from nnunetv2_vqseg.core.errors import PlansError
from nnunetv2_vqseg.networks.vit import ViTSegmenter
from nnunetv2_vqseg.planning.api import find_class
from nnunetv2_vqseg.planning.planner import vqseg_planner
from nnunetv2_vqseg.planning.vit_planner import nnUNetPlannerViT, vit_architecture

__all__ = ["home"]


def plan(**options: object) -> dict:
    planner = vqseg_planner(nnUNetPlannerViT)
    return planner(901, plans_name="nnUNetViTPlans", num_processes=1, show_progress=False, **options).plan_experiment()


@pytest.mark.parametrize(("shape", "patch", "rounded"), [((60, 72), [48, 64], True), ((64, 64), [48, 48], False)])
def test_the_patch_is_nnunets_rounded_up_and_told_once(home: Path, capsys, shape, patch, rounded):
    """With unlabelled images of 32 x 32 most are 46 x 52 or 48 x 48, and nnU-Net's patches 48 x 56 and 48 x 48."""
    make_dataset(home)
    write_fingerprint(home, [[3, *shape]] * 2, [[10.0, 1.5, 1.5]] * 2)
    plans = plan(encoder=ENCODER)
    assert [int(side) for side in plans["configurations"]["2d"]["patch_size"]] == patch
    told = capsys.readouterr().out.count("because the ViT's tokens have 16 x 16.")
    assert told == int(rounded)
    assert len(plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"][0]) == 3
    assert plans["configurations"]["2d"]["batch_size"] == 8


def test_nnunet_builds_the_network_from_the_plan_alone(home: Path):
    make_dataset(home)
    write_fingerprint(home, [[3, 64, 64]] * 2, [[10.0, 1.5, 1.5]] * 2)
    manager = PlansManager(plan(encoder=ENCODER))
    configuration = manager.get_configuration("2d")
    assert configuration.pool_op_kernel_sizes == [[16, 16], [1, 1], [1, 1], [1, 1]]
    network = nnUNetTrainer.build_network_architecture(manager, configuration, 2, 3, False)
    assert isinstance(network, ViTSegmenter)
    assert network.encoder.blocks == [0, 2, 3, 5]


def test_the_paper_s_encoder_has_the_blocks_and_widths_of_its_code():
    architecture, patch = vit_architecture("vit_small_patch14_dinov2.lvd142m")
    assert patch == (14, 14)
    assert architecture["arch_kwargs"] == {
        "encoder": "vit_small_patch14_dinov2.lvd142m",
        "blocks": [2, 5, 8, 11],
        "features": 64,
        "widths": [48, 96, 192, 384],
        "strides": [[14, 14], [1, 1], [1, 1], [1, 1]],
    }


def test_the_giant_s_are_those_of_its_code_too():
    architecture, patch = vit_architecture("vit_giant_patch14_dinov2.lvd142m")
    arguments = architecture["arch_kwargs"]
    assert patch == (14, 14)
    assert arguments["blocks"] == [9, 19, 29, 39]
    assert (arguments["features"], arguments["widths"]) == (384, [1536] * 4)


@pytest.mark.parametrize(
    "encoder", ["resnet18", "no_such_model", "vit_small_r26_s32_224", "vit_medium_patch16_reg1_gap_256"]
)
def test_what_is_no_vit_is_refused(encoder):
    with pytest.raises(PlansError, match=f"{encoder} cannot be the encoder .*; choose a ViT of timm such as"):
        vit_architecture(encoder)


def test_it_is_found_by_its_name_and_has_a_plan_of_its_own_name():
    assert find_class("nnUNetPlannerViT") is nnUNetPlannerViT
    assert nnUNetPlannerViT.default_plans_name == "nnUNetViTPlans"
