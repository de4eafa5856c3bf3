"""A default is decided in a method's configuration; modules that are used on their own have the same one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunetv2_vqseg.core.config import Config
from nnunetv2_vqseg.methods.abd import ABDConfig
from nnunetv2_vqseg.methods.arco import ARCOConfig
from nnunetv2_vqseg.methods.mc_net import MCNetConfig
from nnunetv2_vqseg.methods.strong_view import JitterConfig, StrongViewConfig
from nnunetv2_vqseg.methods.vqseg import VQSegConfig
from nnunetv2_vqseg.modules.foundation import FoundationModel
from nnunetv2_vqseg.modules.image_decoder import ImageDecoder
from nnunetv2_vqseg.modules.losses.class_contrast import class_contrast
from nnunetv2_vqseg.modules.losses.infonce import patch_contrastive_loss
from nnunetv2_vqseg.modules.losses.mutual_consistency import sharpen
from nnunetv2_vqseg.modules.views.cutmix import sample_cutmix_plan
from nnunetv2_vqseg.modules.views.displacement import displace_unlabeled
from nnunetv2_vqseg.modules.views.jitter import IntensityJitter
from nnunetv2_vqseg.modules.views.strong import strong_view
from nnunetv2_vqseg.modules.vq.qpm import QuantizedPerturbation, transition_matrix
from nnunetv2_vqseg.modules.vq.quantizer import VectorQuantizer
from nnunetv2_vqseg.networks.planned import choose_stage
from nnunetv2_vqseg.planning.planner import vqseg_planner

CUTMIX = {"probability": "cutmix_probability", "area": "cutmix_area", "aspect": "cutmix_aspect"}
QPM = {"epsilon": "epsilon", "mode": "qpm", "perplexity": "qpm_perplexity", "num_neighbors": "qpm_neighbors"}
QUANTIZER = {
    "num_codes": "num_codes",
    "code_dim": "code_dim",
    "normalize": "normalize_codes",
    "beta": "commitment",
    "entropy_tokens": "entropy_tokens",
    "entropy_temperature": "entropy_temperature",
    "codebook_trains_features": "codebook_trains_features",
    "restart_after": "restart_after",
}
FOUNDATION = {"name": "model", "image_size": "image_size", "block": "block"}
FOUNDATION = {name: f"foundation_{key}" for name, key in FOUNDATION.items()} | {
    name: f"foundation_{name}" for name in ("dark", "quiet", "flat")
}
JITTER = {
    name: f"jitter_{name}"
    for name in inspect.signature(IntensityJitter).parameters
    if name not in ("relative", "generator")
}
SAME: list[tuple[Callable[..., Any], type[Config], dict[str, str]]] = [
    (QuantizedPerturbation, VQSegConfig, {**QPM, "rebuild_every": "qpm_rebuild_every"}),
    (transition_matrix, VQSegConfig, QPM),
    (VectorQuantizer, VQSegConfig, QUANTIZER),
    (FoundationModel, VQSegConfig, FOUNDATION),
    (ImageDecoder, VQSegConfig, {"base_features": "decoder_features"}),
    (patch_contrastive_loss, VQSegConfig, {"temperature": "temperature"}),
    (choose_stage, VQSegConfig, {"min_tokens": "min_tokens"}),
    (IntensityJitter, JitterConfig, JITTER),
    (sample_cutmix_plan, StrongViewConfig, CUTMIX),
    (strong_view, StrongViewConfig, CUTMIX),
    (sharpen, MCNetConfig, {"temperature": "sharpening_temperature"}),
    (class_contrast, ARCOConfig, {"temperature": "contrast_temperature"}),
    (displace_unlabeled, ABDConfig, {"grid": "patches_per_axis", "surest": "sure_patches"}),
]


@pytest.mark.parametrize(("function", "config", "keys"), SAME, ids=[function.__name__ for function, *_ in SAME])
def test_a_module_s_defaults_are_the_configuration_s(function, config, keys):
    found = {key: inspect.signature(function).parameters[name].default for name, key in keys.items()}
    assert found == {key: getattr(config(), key) for key in keys.values()}


@pytest.mark.parametrize(("function", "config", "keys"), SAME, ids=[function.__name__ for function, *_ in SAME])
def test_no_default_of_a_module_is_left_out_here(function, config, keys):
    numbers = {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if isinstance(parameter.default, (int, float, tuple)) and not isinstance(parameter.default, bool)
    }
    assert numbers - keys.keys() <= {"ndim", "channel_pick", "masked"}


def test_the_planner_s_batch_is_the_configuration_s():
    planner = vqseg_planner(ExperimentPlanner)
    range_of_planner = inspect.signature(planner).parameters["labeled_batch_range"].default
    assert range_of_planner == VQSegConfig().batch_size_range


def test_methods_with_unlabelled_images_on_a_unet_have_the_recipe_s_weight_decay_and_no_others():
    from nnunetv2_vqseg import trainers
    from nnunetv2_vqseg.methods.base import UnlabeledImagesConfig

    decays = {}
    for name in trainers.__all__:
        config = getattr(trainers, name).default_config()
        recipe = isinstance(config, UnlabeledImagesConfig) or name == "nnUNetTrainerSupervisedEMA"
        recipe = recipe and not name.endswith(("ViT", "Paper"))
        decays[name] = (getattr(config, "weight_decay", None), 0.003 if recipe else None)
    assert len(decays) > 20
    assert {name: found for name, (found, expected) in decays.items() if found != expected} == {}


def test_mean_teacher_and_vqseg_on_a_unet_have_the_views_and_the_loss_of_arco():
    from nnunetv2_vqseg import trainers

    keys = ("lambda_u", "ramp_up", "unlabeled_per_labeled", "pseudo_loss", "confidence_threshold", "ema_decay")
    keys += ("cutmix_probability", "cutmix_area", "cutmix_aspect")

    def found(name: str) -> dict[str, Any]:
        config = getattr(trainers, name).default_config()
        return {key: getattr(config, key) for key in keys}

    same = [name for name in trainers.__all__ if hasattr(getattr(trainers, name).default_config(), "turn_probability")]
    assert {"nnUNetTrainerVQSeg", "nnUNetTrainerMeanTeacher", "nnUNetTrainerMeanTeacherViT"} <= set(same)
    for name in same:
        assert (found(name) == found("nnUNetTrainerARCO")) == (not name.endswith(("ViT", "Paper"))), name
