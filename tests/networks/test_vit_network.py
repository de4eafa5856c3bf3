"""A ViT with DPT: what its maps are, which images it takes, and that it starts from a file's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_networks import CLASSES, plan_of, tiny_vit
from torch import nn
from vit_trainings import ENCODER, write_weights

from nnunetv2_vqseg.core.errors import ConfigError, FoundationModelUnavailable
from nnunetv2_vqseg.modules.foundation import create_vit, load_vit_weights
from nnunetv2_vqseg.networks.backbone import backbone_of
from nnunetv2_vqseg.networks.dpt import DPTDecoder, Fusion
from nnunetv2_vqseg.networks.planned import StageConfig, stage_of
from nnunetv2_vqseg.networks.vit import ViTSegmenter
from nnunetv2_vqseg.networks.vq import VQArchitecture, VQSegNet, build_image_decoder, build_vqseg_net


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(16, 16), (32, 80), (160, 160)])
@torch.no_grad()
def test_images_of_any_multiple_of_the_patch_and_any_channels(channels, size):
    network = tiny_vit(channels)
    assert network(torch.randn(2, channels, *size)).shape == (2, CLASSES, *size)


@pytest.mark.parametrize("shape", [(1, 1, 32, 40), (1, 1, 30, 32), (1, 1, 32, 32, 32)])
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"16 x 16 pixels, which do not fit|2D images"):
        tiny_vit()(torch.randn(shape))


@torch.no_grad()
def test_maps_are_normalised_tokens_of_four_blocks():
    network = tiny_vit()
    vit, seen = network.encoder.vit, []
    for block in vit.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    maps = network.encoder(torch.randn(2, 1, 32, 48))
    assert len(maps) == 4
    for number, features in zip((0, 2, 3, 5), maps, strict=True):
        tokens = vit.norm(seen[number])[:, vit.num_prefix_tokens :]
        assert torch.equal(features.flatten(2).transpose(1, 2), tokens)
        assert features.shape == (2, 64, 2, 3)


@torch.no_grad()
def test_position_embeddings_are_those_of_timm_at_its_size_and_interpolated_elsewhere():
    own, plain = create_vit(ENCODER, 3), timm.create_model(ENCODER, num_classes=0)
    plain.load_state_dict(own.state_dict())
    image = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(own.eval().forward_features(image), plain.eval().forward_features(image))
    resized = timm.create_model(ENCODER, num_classes=0, img_size=(64, 96))
    state = timm.models.vision_transformer.checkpoint_filter_fn(own.state_dict(), resized)
    resized.load_state_dict(state)
    image = torch.randn(1, 3, 64, 96)
    expected = resized.eval().forward_features(image)
    torch.testing.assert_close(own.forward_features(image), expected, rtol=1e-4, atol=1e-4)


def test_training_drops_nothing_and_reaches_every_weight():
    network = tiny_vit().train()
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(network(x), network(x))
    network(x).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_the_decoder_makes_a_pyramid_and_adds_it_up_from_coarse_to_fine():
    decoder = DPTDecoder(8, [4, 5, 6, 7], features=3, classes=2, patch=(14, 14))
    maps = [torch.randn(1, 8, 3, 5) for _ in range(4)]
    grids = [tuple(level.shape[1:]) for level in decoder.reassemble(maps)]
    assert grids == [(3, 12, 20), (3, 6, 10), (3, 3, 5), (3, 2, 3)]
    before = decoder(maps)
    assert before.shape == (1, 2, 42, 70)
    for number in range(4):
        changed = [features + (number == index) for index, features in enumerate(maps)]
        assert not torch.equal(decoder(changed), before), f"map {number} must count"
    decoder.deep_supervision = True
    assert torch.equal(decoder(maps)[0], before)


def plain_dpt(state: dict[str, torch.Tensor], maps: list[torch.Tensor], patch: int) -> torch.Tensor:
    """DPTHead of UniMatch V2 (model/semseg/dpt.py) written down line by line, for the weights of a `DPTDecoder`."""

    def conv(name: str, x: torch.Tensor, **options: int) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    def up(name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        return F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=stride)

    def unit(name: str, x: torch.Tensor) -> torch.Tensor:
        return conv(f"{name}.second", conv(f"{name}.first", x.relu(), padding=1).relu(), padding=1) + x

    def resized(x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)

    height, width = maps[0].shape[2:]
    layers = [conv(f"projections.{number}", features) for number, features in enumerate(maps)]
    layers[0], layers[1] = up("resizings.0", layers[0], 4), up("resizings.1", layers[1], 2)
    layers[3] = conv("resizings.3", layers[3], stride=2, padding=1)
    one, two, three, four = (conv(f"levels.{number}", x, padding=1) for number, x in enumerate(layers))
    path = conv("fusions.3.projection", resized(unit("fusions.3.fused", four), three.shape[2:]))
    for number, level, size in (
        (2, three, two.shape[2:]),
        (1, two, one.shape[2:]),
        (0, one, (2 * one.shape[2], 2 * one.shape[3])),
    ):
        path = unit(f"fusions.{number}.fused", path + unit(f"fusions.{number}.own", level))
        path = conv(f"fusions.{number}.projection", resized(path, size))
    logits = conv("seg_layers.0", conv("head.0", path, padding=1).relu())
    return resized(logits, (height * patch, width * patch))


@torch.no_grad()
def test_the_decoder_is_that_of_unimatch_v2():
    decoder = DPTDecoder(384, [48, 96, 192, 384], features=64, classes=4, patch=(14, 14))
    per_map = 384 + 1 + 9 * 64  # projection, its bias, level
    resizings = 48 * 48 * 16 + 48 + 96 * 96 * 4 + 96 + 384 * 384 * 9 + 384
    unit = 2 * (64 * 64 * 9 + 64)
    fusions = 7 * unit + 4 * (64 * 64 + 64)  # the original has an eighth unit, which sees nothing
    assert sum(parameter.numel() for parameter in decoder.parameters()) == (
        per_map * (48 + 96 + 192 + 384) + resizings + fusions + 64 * 64 * 9 + 64 + 64 * 4 + 4
    )
    maps = [torch.randn(2, 384, 5, 4) for _ in range(4)]
    expected = plain_dpt(dict(decoder.state_dict()), maps, 14)
    torch.testing.assert_close(decoder(maps), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_fusion_adds_the_level_to_the_coarser_ones():
    fusion = Fusion(2, with_skip=True)
    for unit in (fusion.own, fusion.fused):
        for layer in (unit.first, unit.second):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    fusion.projection.weight.copy_(torch.eye(2)[..., None, None]), nn.init.zeros_(fusion.projection.bias)
    level, coarser = torch.randn(2, 1, 2, 4, 4)
    assert torch.allclose(fusion(level, coarser, (4, 4)), coarser + level)
    assert fusion(level, coarser, (7, 9)).shape == (1, 2, 7, 9)


@torch.no_grad()
def test_taken_apart_and_put_together_it_is_the_same_and_the_last_map_alone_can_be_replaced():
    network = tiny_vit()
    backbone, x = backbone_of(network), torch.randn(2, 1, 32, 32)
    assert backbone.widths == [64] * 4
    assert backbone.strides == [[16, 16], [1, 1], [1, 1], [1, 1]]
    maps = backbone.encode(network, x, 3)
    expected = network(x)
    assert torch.equal(backbone.decode(network, backbone.resume(network, maps, 3)), expected)
    changed = backbone.resume(network, [*maps[:3], maps[3] + 1], 3)
    assert not torch.equal(backbone.decode(network, changed), expected)
    for use in (lambda: backbone.encode(network, x, 1), lambda: backbone.resume(network, maps, 0)):
        with pytest.raises(ValueError, match="only stage 3"):
            use()
    for use in (backbone.decoded, backbone.segment):
        with pytest.raises(NotImplementedError, match="no stages"):
            use(network, maps)


def test_the_quantised_stage_is_the_last_however_few_its_tokens():
    network = tiny_vit()
    plan = plan_of(network)._replace(strides=network.encoder.strides)
    assert stage_of(network, plan, StageConfig()) == stage_of(network, plan, StageConfig(vq_stage=3)) == 3
    with pytest.raises(ConfigError, match=r"vqseg.vq_stage = 1 is not valid; this plan has stage 3 only"):
        stage_of(network, plan, StageConfig(vq_stage=1))


@torch.no_grad()
def test_quantising_replaces_what_the_decoder_reads_of_the_last_map():
    plan = plan_of(tiny_vit())._replace(strides=[[16, 16], [1, 1], [1, 1], [1, 1]])
    network = build_vqseg_net(plan, VQArchitecture(num_codes=16, decoder_input="quantized"))
    seen = []
    network.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 1, 32, 32)
    network.eval()(x)
    maps = network.encoder(x)
    assert all(torch.equal(one, other) for one, other in zip(seen[0][:3], maps[:3], strict=True))
    assert torch.equal(seen[0][3], network.quantizer(maps[3]).quantized)
    assert not torch.equal(seen[0][3], maps[3])


@pytest.mark.parametrize(("patch", "steps"), [((14, 14), [(7, 7), (2, 2)]), ((16, 8), [(2, 2)] * 3 + [(2, 1)])])
def test_the_image_decoder_takes_a_large_stride_in_steps(patch, steps):
    network = VQSegNet(tiny_vit(), stage=3)
    decoder = build_image_decoder(network, 2, [list(patch), [1, 1], [1, 1], [1, 1]], base_features=4)
    found = [layer.stride for layer in decoder.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert found == steps
    image = decoder(torch.randn(1, 64, 2, 3))
    assert image.shape == (1, 2, 2 * patch[0], 3 * patch[1])


def test_blocks_and_strides_must_be_the_vits():
    arguments = {"input_channels": 1, "num_classes": 2, "encoder": ENCODER, "features": 4, "widths": [2] * 4}
    for blocks in ([0, 1, 2, 6], [0, 2, 1, 3], [0, 0, 1, 2], [0, 1, 2]):
        with pytest.raises(ValueError, match=r"has the blocks 0 to 5|reads four maps"):
            ViTSegmenter(**arguments, blocks=blocks)
    with pytest.raises(ValueError, match=r"has the strides \[\[16, 16\]"):
        ViTSegmenter(**arguments, blocks=[0, 1, 2, 3], strides=[[14, 14], [1, 1], [1, 1], [1, 1]])


def test_memory_grows_with_the_number_of_tokens():
    network = tiny_vit()
    small, large = (network.compute_conv_feature_map_size(size) for size in ((32, 32), (64, 64)))
    assert 3 < large / small < 4  # but for the class token
    network.encoder.vit.patch_embed.proj.weight.sum().item()  # itself it stays where it is


@pytest.mark.parametrize("name", ["vit.safetensors", "vit.pth"])
@pytest.mark.parametrize("half", [False, True])
def test_weights_are_those_of_the_file(tmp_path: Path, name: str, half: bool):
    state = write_weights(tmp_path / name, half=half)
    vit = create_vit(ENCODER, 3)
    load_vit_weights(vit, ENCODER, tmp_path / name, 3)
    assert all(torch.equal(value, state[key].float()) for key, value in vit.state_dict().items())
    assert {value.dtype for value in vit.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("channels", [1, 2, 5])
@torch.no_grad()
def test_equal_channels_give_what_a_grey_image_gives(tmp_path: Path, channels: int):
    write_weights(tmp_path / "vit.pth")
    grey = torch.randn(1, 1, 32, 32)
    outputs = []
    for number in (3, channels):
        vit = create_vit(ENCODER, number).eval()
        load_vit_weights(vit, ENCODER, tmp_path / "vit.pth", number)
        outputs.append(vit.forward_features(grey.expand(-1, number, -1, -1)))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_weights_that_are_missing_or_of_another_model_are_told_by_the_key(tmp_path: Path):
    vit, file = create_vit(ENCODER, 1), tmp_path / "vit.pth"
    with pytest.raises(FoundationModelUnavailable, match=r"does not exist: .* give its path as encoder_checkpoint"):
        load_vit_weights(vit, ENCODER, file, 1, key="encoder_checkpoint")
    write_weights(file, "test_vit2.r160_in1k")
    with pytest.raises(FoundationModelUnavailable, match=f"does not hold weights of {ENCODER}"):
        load_vit_weights(vit, ENCODER, file, 1)


def test_a_path_may_name_an_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_weights(tmp_path / "vit.pth")
    monkeypatch.setenv("SOME_WEIGHTS", str(tmp_path))
    load_vit_weights(create_vit(ENCODER, 1), ENCODER, "$SOME_WEIGHTS/vit.pth", 1)
