"""A tiny ViT of timm on the tiny phantoms: its plan, and weights that a test writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quick_nnunet import few_samples
from tiny_trainings import DATASET, TINY, variables

ENCODER = "test_vit.r160_in1k"
PLANS = "nnUNetViTPlans"


def write_weights(file: Path, encoder: str = ENCODER, half: bool = False) -> dict:
    """A file with weights in which no tensor has the value it is initialised with; the tensors."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = timm.create_model(encoder, pretrained=False).state_dict()
    state = {key: value + 0.05 * torch.randn_like(value) for key, value in state.items()}
    state = {key: value.half() if half else value for key, value in state.items()}
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    return state


def plan_vit(home: Path, **block: object) -> Path:
    """Plan the phantoms for the tiny ViT by our command, with tiny trainings, and preprocess; the plans file."""
    from nnunetv2_vqseg.commands.plan import main

    with pytest.MonkeyPatch.context() as patch:
        few_samples(patch)
        for name, folder in variables(home).items():
            patch.setenv(name, folder)
        planner = ["-pl", "nnUNetPlannerViT", "-encoder", ENCODER]
        main(["-d", str(int(DATASET[7:10])), *planner, "-np", "1", "-npfp", "1", "--no_pbar"])
    file = home / "preprocessed" / DATASET / f"{PLANS}.json"
    set_block(file, **{**TINY, **block})
    return file


def set_block(file: Path, **block: object) -> None:
    """Put keys into the `vqseg` block of the 2d configuration."""
    plans = json.loads(file.read_text(encoding="utf-8"))
    plans["configurations"]["2d"].setdefault("vqseg", {}).update(block)
    file.write_text(json.dumps(plans), encoding="utf-8")
