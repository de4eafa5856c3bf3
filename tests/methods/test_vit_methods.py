"""The methods on a ViT with DPT take a step, and start from the encoder's weights unless a checkpoint follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from operators import Operators
from tiny_networks import CLASSES, context, plan_of, tiny_vit
from vit_trainings import ENCODER, write_weights

from nnunetv2_vqseg.core.errors import FoundationModelUnavailable
from nnunetv2_vqseg.methods.base import Batch, Method, finest
from nnunetv2_vqseg.methods.vit import MeanTeacherViT, SupervisedViT, UniMatchV2ViT, VQSegViT
from nnunetv2_vqseg.modules.foundation import fingerprint
from nnunetv2_vqseg.networks.backbone import NetworkPlan
from nnunetv2_vqseg.networks.vq import BatchLayout

VQ = {
    "num_codes": 64,
    "qpm_perplexity": 4,
    "qpm_neighbors": 8,
    "decoder_input": "quantized",
    "perturbed_view": "weak",
    "strong_view": True,
    "reconstruct": True,
    "foundation_policy": "required",
    "foundation_model": ENCODER,
    "foundation_image_size": 64,
}
TWO_VIEWS = {"supervised", "pseudo_first", "pseudo_second"}
VQ_TERMS = {"supervised", "pseudo_strong", "pseudo_perturbed", "reconstruction", "reconstruction_unlabeled"}
METHODS: dict[str, tuple[type[Method[Any]], dict[str, Any], set[str]]] = {
    "supervised": (SupervisedViT, {}, {"supervised"}),
    "mean teacher": (MeanTeacherViT, {}, {"supervised", "pseudo_strong"}),
    "UniMatch V2": (UniMatchV2ViT, {}, TWO_VIEWS),
    "VQ-Seg": (VQSegViT, VQ, {*VQ_TERMS, "alignment", "vq", "entropy"}),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, torch.Tensor]]:
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    return str(file), write_weights(file)


def made(name: str, file: str, keys: dict[str, Any] | None = None, **changes: Any) -> Method[Any]:
    """The method with its training network; `keys` beside its own."""
    method_class, own, _ = METHODS[name]
    where = {"foundation_checkpoint": file} if name == "VQ-Seg" else {"encoder_checkpoint": file}
    config = method_class.Config(**{**own, **where, **(keys or {})})
    method = method_class(config, replace(context(vit_plan()), **changes))
    method.begin(
        method.training_network().train(),
        lambda outputs, target: torch.nn.functional.cross_entropy(finest(outputs), target[:, 0]),
    )
    return method


def vit_plan() -> NetworkPlan:
    strides = [[16, 16], *[[1, 1]] * 3]
    return plan_of(None)._replace(strides=strides, build=tiny_vit, deep_supervision=False, encoder=ENCODER)


def starts_from(method: Method[Any], state: dict[str, torch.Tensor]) -> bool:
    """Whether the encoder has these weights, but for its first layer, which has other channels."""
    found = method.predictor().encoder.vit.state_dict()
    return all(torch.equal(found[key], state[key]) for key in found if key != "patch_embed.proj.weight")


def batch(method: Method[Any]) -> Batch:
    target = torch.randint(CLASSES, (2, 1, 32, 32))
    unlabeled = torch.randn(2, 1, 32, 32) if method.uses_unlabeled else None
    return Batch(torch.randn(2, 1, 32, 32), target, unlabeled)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_reaches_every_weight_with_two_rates(name, weights):
    method = made(name, weights[0])
    images = batch(method)
    method.start(iter([images] * 100))
    method.student.train()
    method.on_epoch_start()
    method.before_step(0.5)
    terms, _ = method.terms(images, 0.5)
    assert terms.keys() == METHODS[name][2]
    torch.stack([weight * value for weight, value in terms.values()]).sum().backward()
    assert [key for key, parameter in method.student.named_parameters() if parameter.grad is None] == []
    method.config = replace(method.config, optimizer="adamw", head_lr_scale=40.0)
    encoder, heads = method.parameter_groups(method.student)
    assert (encoder["lr_scale"], heads["lr_scale"]) == (1.0, 40.0)
    assert {*map(id, encoder["params"])} == {*map(id, method.student.encoder.parameters())}
    assert len(encoder["params"]) + len(heads["params"]) == len(list(method.student.parameters()))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_can_be_recorded_as_a_cuda_graph(name, weights):
    """With the foundation model's look at the images, in VQ-Seg."""
    method = made(name, weights[0])
    images, progress = batch(method), torch.tensor(0.5, dtype=torch.float64)
    method.start(iter([images] * 100))
    method.student.train()
    method.on_epoch_start()
    method.before_step(0.5)
    with Operators() as operators:
        terms, _ = method.terms(images, progress)
        torch.stack([weight * value for weight, value in terms.values()]).sum().backward()
    assert method.is_static
    assert operators.waits == set()


@pytest.mark.parametrize("name", METHODS)
def test_the_encoder_starts_from_the_file_unless_a_checkpoint_follows(name, weights):
    file, state = weights
    assert starts_from(made(name, file), state)
    assert not starts_from(made(name, file, restores=True), state)


@pytest.mark.parametrize(
    ("unit_range", "z_scored", "first_bias_changes", "warns"),
    [(False, True, False, False), (True, False, True, False), (False, False, False, True)],
)
def test_what_the_plan_does_to_pixels_reaches_the_first_layer_or_is_told(
    weights, unit_range, z_scored, first_bias_changes, warns
):
    file, state = weights
    log: list[str] = []
    plan = vit_plan()._replace(unit_range=unit_range)
    method = made("supervised", file, plan=plan, z_scored=z_scored, log=log.append)
    bias = method.predictor().encoder.vit.state_dict()["patch_embed.proj.bias"]
    assert (not torch.equal(bias, state["patch_embed.proj.bias"])) == first_bias_changes
    assert any("plan with z-scored images" in line for line in log) == warns


@pytest.mark.parametrize("name", ["supervised", "mean teacher", "UniMatch V2"])
def test_a_plan_that_names_the_file_for_the_alignment_alone_does_for_all(name, weights, offline):
    file, state = weights
    keys = {"encoder_checkpoint": None, "foundation_model": ENCODER, "foundation_checkpoint": file}
    assert starts_from(made(name, file, keys), state)
    with pytest.raises(FoundationModelUnavailable, match="give its path as encoder_checkpoint"):
        made(name, file, {**keys, "foundation_model": "rad-dino"})  # the file is of another model


def test_a_plan_that_names_the_file_for_the_encoder_alone_does_for_the_alignment(weights, offline):
    file, state = weights
    method = made("VQ-Seg", file, {"encoder_checkpoint": file, "foundation_checkpoint": None})
    assert starts_from(method, state)
    assert torch.equal(method.foundation.model.norm.weight, state["norm.weight"])
    other = {"encoder_checkpoint": file, "foundation_checkpoint": None, "foundation_model": "test_vit2.r160_in1k"}
    with pytest.raises(FoundationModelUnavailable, match=r"weights of test_vit2\.r160_in1k are neither in the cache"):
        made("VQ-Seg", file, other)


def test_with_the_alignment_a_training_cannot_go_on_without_the_weights(weights, tmp_path: Path, offline):
    state = made("VQ-Seg", weights[0]).state()
    nowhere = str(tmp_path / "nowhere.pth")
    with pytest.raises(FoundationModelUnavailable, match=rf"^The checkpoint {nowhere} of {ENCODER} does not exist: "):
        made("VQ-Seg", nowhere, restores=True)
    auto = {"foundation_checkpoint": None, "foundation_policy": "auto"}
    said = made("VQ-Seg", nowhere, auto, restores=True).why_not_continue(state)
    assert said.startswith(
        "This training began with the foundation model and cannot go on without it: WARNING: TRAINING"
    )
    assert said.endswith("; provide the weights, or start anew without --c.")
    validating = made("VQ-Seg", nowhere, restores=True, only_validates=True)
    validating.load_state(state, strict=False)


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_keeps_where_the_encoder_s_weights_came_from(name, weights):
    said: list[str] = []
    method = made(name, weights[0], log=said.append)
    told = method.state()["encoder"]
    assert told == f"The encoder {ENCODER} starts from weights of the file {weights[0]} (fingerprint {told[-10:-2]})."
    assert told[-10:-2] == fingerprint(method.main.encoder.vit)
    assert told in said
    continued = made(name, weights[0], restores=True)
    continued.load_state(method.state())
    assert continued.state()["encoder"] == told
    continued.load_state({key: value for key, value in method.state().items() if key != "encoder"})  # of before
    assert continued.state()["encoder"] is None


def test_a_continued_training_and_random_weights_need_no_file(tmp_path: Path):
    nowhere = str(tmp_path / "nowhere.pth")
    made("mean teacher", nowhere, restores=True)
    said: list[str] = []
    config = MeanTeacherViT.Config(encoder_weights="random", encoder_checkpoint=nowhere)
    method = MeanTeacherViT(config, replace(context(vit_plan()), log=said.append))
    method.training_network()
    assert said == [method.encoder_status]
    assert said == [f"WARNING: the encoder {ENCODER} starts from RANDOM weights, as was asked for."]


@torch.no_grad()
def test_unimatch_v2_drops_the_same_channels_of_all_four_maps(weights):
    method = made("UniMatch V2", weights[0])
    maps = [torch.ones(1 + 8, 64, 2, 2) for _ in range(4)]
    changed = method.student.change(maps, 1)
    factors = torch.stack([features[1:, :, 0, 0] for features in changed])
    assert all(torch.equal(one, factors[0]) for one in factors)
    assert torch.equal(factors[0][:4] + factors[0][4:], torch.full((4, 64), 2.0))
    whole = (factors[0][:4] == 1.0).all(dim=1)
    assert whole.sum() == 2, "half of the four images keep all channels, in both views"
    assert set(factors[0][:4][~whole].unique().tolist()) == {0.0, 2.0}


@torch.no_grad()
def test_qpm_moves_codes_of_the_perturbed_images_alone(weights):
    method = made("VQ-Seg", weights[0])
    method.start(iter([batch(method)] * 100))
    method.on_epoch_start()
    method.before_step(0.5)
    seen = []
    method.student.train().decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(6, 1, 32, 32)
    output = method.student(images, BatchLayout(2, 2, 2))
    maps = method.student.encoder(images)
    quantized = method.student.quantizer(maps[3]).quantized
    assert torch.equal(seen[0][3][:4], quantized[:4])
    assert not torch.equal(seen[0][3][4:], quantized[4:])
    assert all(torch.equal(one, other) for one, other in zip(seen[0][:3], maps[:3], strict=True))
    assert output.step.item() == pytest.approx(method.config.qpm_strength, rel=1e-3)
