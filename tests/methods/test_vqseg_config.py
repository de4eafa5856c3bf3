import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from tiny_networks import context, plan_of, unet

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.vqseg import FREE_IN_PAPER, PAPER, VQSeg, VQSegConfig
from nnunetv2_vqseg.planning.planner import IMAGES_A_LABEL
from nnunetv2_vqseg.trainers import nnUNetTrainerVQSegPaper

KEYS = Path(__file__).parents[2] / "docs" / "reference" / "keys.md"


def test_literal_is_the_papers_section_4_2():
    config = nnUNetTrainerVQSegPaper.default_config()
    assert (config.labeled_batch_size, config.unlabeled_batch_size) == (8, 4)
    assert config.num_epochs * config.iterations_per_epoch == 100_000
    assert (config.num_codes, config.epsilon, config.ema_decay) == (16_384, 0.7, 0.996)
    assert (config.lambda_u, config.lambda_a) == (1.0, 5.0)
    assert (config.optimizer, config.initial_lr, config.head_lr_scale) == ("adamw", 5e-6, 40.0)
    assert config.confidence_threshold == 0.0
    assert config.code_dim is None
    assert config.qpm == "literal"
    assert (config.perturbed_view, config.strong_view) == ("weak", True)
    assert config.reconstruct


@pytest.mark.parametrize("key", sorted(PAPER))
def test_paper_defines_its_trainer_but_for_the_batch_and_what_table_3_varies(key):
    config = nnUNetTrainerVQSegPaper.configured({key: PAPER[key]})
    assert config == nnUNetTrainerVQSegPaper.default_config()
    others = {bool: not PAPER[key], str: "x", type(None): 4, tuple: (1,)}
    other = (
        "off"
        if key == "foundation_policy"
        else others[type(PAPER[key])]
        if type(PAPER[key]) in others
        else PAPER[key] + 1
    )
    if key in FREE_IN_PAPER:
        assert getattr(nnUNetTrainerVQSegPaper.configured({key: other}), key) == other
    else:
        with pytest.raises(ConfigError, match="what defines this trainer"):
            nnUNetTrainerVQSegPaper.configured({key: other})


@pytest.mark.parametrize(
    ("settings", "streams"),
    [
        ({}, 1),
        ({"strong_view": True}, 2),
        ({"strong_view": True, "perturbation": "none", "reconstruct": True}, 2),  # one of them to be reconstructed
        ({"strong_view": True, "perturbation": "none"}, 1),
        ({"use_unlabeled": False}, 0),
    ],
)
def test_views_of_an_unlabeled_image_that_pass_the_student(settings, streams):
    config = VQSegConfig(foundation_policy="off").override(settings)
    assert VQSeg(config, context(plan_of(unet()))).unlabeled_views == streams


def test_a_training_without_any_view_to_learn_the_teachers_labels_on_is_refused():
    with pytest.raises(ConfigError, match="leaves no view that learns"):
        VQSegConfig().override({"perturbation": "none"})
    assert not VQSegConfig(strong_view=False, perturbation="none", use_unlabeled=False).strong_view


def test_every_field_says_what_it_means_and_what_is_valid():
    keys = VQSegConfig.declared()
    for item in fields(VQSegConfig):
        assert keys[item.name].meaning, item.name
        assert keys[item.name].valid, item.name
    page = KEYS.read_text(encoding="utf-8")
    assert all(f"| `{item.name}` |" in page for item in fields(VQSegConfig))


def test_unknown_key_is_refused_with_the_valid_ones_and_a_guess():
    with pytest.raises(ConfigError, match=r"'epsilom'.*did you mean 'epsilon'.*num_codes"):
        VQSegConfig().override({"epsilom": 0.5})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epsilon", 1.1),
        ("epsilon", "0.5"),
        ("epsilon", True),
        ("num_codes", 1),
        ("num_codes", 512.0),
        ("qpm", "soft"),
        ("use_unlabeled", 1),
        ("batch_size_range", [12, 8]),
        ("batch_size_range", 8),
        ("vq_stage", -1),
        ("foundation_model", ""),
        ("foundation_channels", [0, 1]),
        ("temperature", 0),
    ],
)
def test_value_out_of_range_names_key_value_and_range(key, value):
    with pytest.raises(ConfigError, match=rf"vqseg\.{key} = .* must be "):
        VQSegConfig().override({key: value})


def test_locked_key_may_only_repeat_its_own_value():
    config = VQSegConfig()
    locked = frozenset({"num_epochs"})
    assert config.override({"num_epochs": config.num_epochs}, locked) == config
    with pytest.raises(ConfigError, match=r"num_epochs.*defines this trainer"):
        config.override({"num_epochs": 3}, locked)


def test_parts_that_need_the_quantiser_are_refused_without_it():
    with pytest.raises(ConfigError, match="perturbation"):
        VQSegConfig(quantize=False)
    with pytest.raises(ConfigError, match="reconstruct"):
        VQSegConfig(quantize=False, perturbation="none", reconstruct=True)
    with pytest.raises(ConfigError, match="foundation_policy"):
        VQSegConfig(quantize=False, perturbation="none", foundation_policy="auto")


def test_config_is_immutable_and_survives_json():
    config = VQSegConfig()
    with pytest.raises(FrozenInstanceError):
        config.epsilon = 0.1  # type: ignore[misc]
    assert VQSegConfig().override(json.loads(json.dumps(config.as_dict()))) == config


def test_perplexity_needs_more_neighbours():
    with pytest.raises(ConfigError, match=r"qpm_perplexity = 128 must be less than vqseg.qpm_neighbors = 128"):
        VQSegConfig().override({"qpm_perplexity": 128})
    assert VQSegConfig().override({"qpm_perplexity": 128, "qpm": "literal"}).qpm_perplexity == 128


@pytest.mark.parametrize("width", [1, 2])
def test_codes_too_narrow_for_unit_length_are_refused(width):
    with pytest.raises(ConfigError, match=rf"code_dim = {width} leaves too few directions"):
        VQSegConfig().override({"code_dim": width})
    VQSegConfig().override({"code_dim": width, "normalize_codes": False})
    VQSegConfig().override({"code_dim": 3})


def test_the_weight_of_what_is_off_is_no_change():
    config = VQSegConfig()
    assert config.changed_since(config.as_dict() | {"weight_reconstruction": 1.0}) == {}
    config = config.override({"reconstruct": True})
    assert list(config.changed_since(config.as_dict() | {"weight_reconstruction": 1.0})) == ["weight_reconstruction"]


def test_the_default_trains_the_same_with_and_without_access_to_the_hub():
    assert VQSegConfig().foundation_policy == "off"


def test_a_key_whose_meaning_changed_says_what_to_set_instead():
    with pytest.raises(
        ConfigError, match=r"vqseg.weight_vq = 1.0 is no longer a key: .* set weight_codebook to the old"
    ):
        VQSegConfig().override({"weight_vq": 1.0})


@pytest.mark.parametrize(
    ("settings", "images"),
    [
        ({}, 2.0),  # one view of as many
        ({"strong_view": True}, 3.0),
        ({"strong_view": True, "reconstruct": True}, 3.0 + 0.15 * 2.0),
        ({"labeled_batch_size": 4, "unlabeled_batch_size": 8}, 3.0),
        ({"unlabeled_per_labeled": 0.5}, 1.5),
        ({"use_unlabeled": False}, 1.0),
    ],
)
def test_planning_counts_the_images_that_the_configuration_has(settings, images):
    assert VQSegConfig().override(settings).images_a_label == pytest.approx(images)


def test_planning_counts_for_the_default_what_the_default_has():
    assert VQSegConfig().images_a_label == IMAGES_A_LABEL
