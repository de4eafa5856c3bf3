"""The frozen foundation model: what it sees, that it never learns, and where its weights may come from.

Uses timm's test ViT (64 channels, patch 16) with weights drawn here; nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from operators import Operators
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from nnunetv2_vqseg.core.errors import FoundationModelUnavailable
from nnunetv2_vqseg.core.foundation_models import OTHERS
from nnunetv2_vqseg.modules.foundation import (
    FoundationModel,
    _description,
    create_vit,
    fingerprint,
    load_foundation_model,
    load_vit_weights,
)
from nnunetv2_vqseg.modules.weight_keys import to_timm

TINY = "test_vit.r160_in1k"
WITH_REGISTERS = "test_vit2.r160_in1k"


def random_model(image_size: int = 64, **kwargs) -> FoundationModel:
    return FoundationModel(TINY, image_size=image_size, random_weights=True, **kwargs)


def distinct_weights() -> dict[str, torch.Tensor]:
    """A full state dict at the model's own 160 pixels in which no tensor has the value it is initialised with."""
    state = timm.create_model(TINY, pretrained=False).state_dict()
    return {key: value + 0.05 * torch.randn_like(value) for key, value in state.items()}


def seen_pixels(model: FoundationModel, images: torch.Tensor, monkeypatch) -> torch.Tensor:
    """What reaches the ViT, with the normalisation undone."""
    seen = []
    original = model.model.forward_intermediates
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "forward_intermediates", lambda x, **kwargs: seen.append(x) or original(x, **kwargs))
        model(images)
    return seen[0] * model.std + model.mean


def unit_range(channel: torch.Tensor) -> torch.Tensor:
    """METHOD's scaling of one channel, in numpy."""
    low, high = np.percentile(channel.numpy(), [0.5, 99.5])
    return torch.from_numpy((np.clip(channel.numpy(), low, high) - low) / (high - low)).float()


def test_timm_and_the_hub_s_client_are_imported_only_where_a_model_is_built():
    code = """
import sys
import nnunetv2_vqseg.modules.foundation
print([name for name in ("timm", "huggingface_hub", "safetensors") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_default_model_has_dinov2s_grid_and_imagenet_normalisation():
    model = FoundationModel(image_size=28, random_weights=True)
    assert (model.embed_dim, model.grid) == (384, (2, 2))
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert model.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_channel_mapping_and_scaling(channels, monkeypatch):
    model = random_model(channel_pick=(4, 0, 2))
    images = torch.randn(2, channels, 64, 64) * torch.rand(2, channels, 1, 1) * 4 + torch.randn(2, channels, 1, 1)
    pixels = seen_pixels(model, images, monkeypatch)
    sources = {1: (0, 0, 0), 2: (0, 1, None), 3: (0, 1, 2), 5: (4, 0, 2)}[channels]
    for image in range(2):
        for place, source in enumerate(sources):
            expected = torch.zeros(64, 64) if source is None else unit_range(images[image, source])
            torch.testing.assert_close(pixels[image, place], expected, rtol=0, atol=1e-5)


def test_a_pick_that_images_do_not_have_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 0, 2\).*0 to 3"):
        random_model(channel_pick=(4, 0, 2))(torch.randn(1, 4, 64, 64))
    with pytest.raises(ValueError, match="three channels"):
        random_model(channel_pick=(0, 1))


def test_images_of_any_size_are_resized_with_antialiasing(monkeypatch):
    """One column in four is bright: shrunk fourfold that is a grey 0.25, where sampling would miss it."""
    model = random_model()
    stripes = (torch.arange(256) % 4 == 0).float().expand(1, 1, 192, 256)
    pixels = seen_pixels(model, stripes, monkeypatch)
    assert pixels.shape == (1, 3, 64, 64)
    inner = pixels[..., 4:-4]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.25), rtol=0, atol=0.1)


def test_features_are_the_last_normalised_tokens_of_timms_model():
    model = random_model()
    images = torch.randn(2, 3, 64, 64)
    features = model(images)
    assert features.shape == (2, model.embed_dim, *model.grid) == (2, 64, 4, 4)
    pixels = torch.stack([torch.stack([unit_range(channel) for channel in image]) for image in images])
    tokens = model.model.forward_features((pixels - model.mean) / model.std)[:, model.model.num_prefix_tokens :]
    torch.testing.assert_close(features, tokens.transpose(1, 2).reshape(2, 64, 4, 4), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("block", [0, 3, None])
def test_features_are_the_normalised_tokens_of_the_block_that_is_asked_for(block):
    model, seen = random_model(block=block), []
    for each in model.model.blocks:
        each.register_forward_hook(lambda module, inputs, output: seen.append(output))
    features = model(torch.randn(2, 3, 64, 64))
    last = 5 if block is None else block
    assert len(seen) == last + 1, "deeper blocks are left out"
    tokens = model.model.norm(seen[last])[:, model.model.num_prefix_tokens :]
    assert torch.equal(features, tokens.transpose(1, 2).reshape(2, 64, 4, 4))


def test_a_block_that_it_does_not_have_is_refused():
    with pytest.raises(ValueError, match=f"{TINY} has the blocks 0 to 5, and no block 6"):
        random_model(block=6)


def test_it_is_never_trained():
    model = random_model()
    nn.ModuleList([model]).train()
    model.train(True)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    images = torch.randn(1, 1, 64, 64, requires_grad=True)
    assert not model(images).requires_grad


def test_autocast_changes_the_features_little():
    model, images = random_model(), torch.randn(2, 1, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model(images.bfloat16())
    assert features.dtype == torch.float32
    assert torch.cosine_similarity(features, model(images)).min() > 0.98


def test_foreground_leaves_out_padding_and_air():
    model = random_model()
    images = torch.randn(1, 1, 64, 64)
    images[..., :16] = 0.0  # nnU-Net pads z-scored images with their mean
    images[..., 48:] = -3.0 + 0.02 * torch.randn(1, 1, 64, 16)  # air
    mask = model.foreground(images)
    assert mask.shape == (1, 4, 4)
    assert mask.dtype == torch.bool
    assert mask[0].all(dim=0).tolist() == [False, True, True, False]
    assert mask[0].any(dim=0).tolist() == [False, True, True, False]
    assert not model.foreground(torch.full((1, 2, 64, 64), 1.7)).any()


def test_one_channel_with_content_makes_a_patch_foreground():
    model = random_model()
    images = torch.randn(1, 2, 64, 64)
    images[:, 0, :32] = 0.0
    images[:, 1, 16:] = 0.0
    assert model.foreground(images)[0].all(dim=1).tolist() == [True, False, True, True]


@pytest.mark.parametrize(("name", "size", "message"), [
    (TINY, 100, "next fitting size is 112"),
    ("vit_small_patch14_dinov2.lvd142m", 225, "next fitting size is 238"),
    ("resnet18", 230, "next fitting size is 256"),
    ("no_such_vit", 224, "choose a ViT"),
])  # fmt: skip
def test_models_and_sizes_that_cannot_work_are_refused_before_loading(name, size, message, offline):
    for random_weights in (True, False):
        with pytest.raises(ValueError, match=message):
            FoundationModel(name, image_size=size, random_weights=random_weights)


def test_random_weights_and_a_checkpoint_contradict_each_other(tmp_path):
    with pytest.raises(ValueError, match="contradicts"):
        FoundationModel(TINY, checkpoint=tmp_path / "x.pth", image_size=64, random_weights=True)


# Where the weights come from


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"model": state, "epoch": 3},
    lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    lambda state: {"teacher": {f"backbone.{key}": value for key, value in state.items()}
                              | {"dino_head.mlp.weight": torch.ones(2)}},
    lambda state: state | {"mask_token": torch.zeros(1, 64)},  # as in the original DINOv2 files
    lambda state: {key: value for key, value in state.items() if not key.startswith("head.")},
])  # fmt: skip
def test_checkpoints_round_trip_to_equal_features(wrap, tmp_path):
    state = distinct_weights()
    path = tmp_path / "weights.pth"
    torch.save(wrap(state), path)
    model, sentence = load_foundation_model("required", TINY, path, image_size=160)
    assert str(path) in sentence
    reference = random_model(image_size=160)
    reference.model.load_state_dict(state)
    images = torch.randn(1, 1, 60, 80)
    assert torch.equal(model(images), reference(images))


def test_safetensors_and_another_image_size(tmp_path):
    """timm resamples the position embedding from 160 to 64 pixels; everything else is taken as it is."""
    state = distinct_weights()
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    model = FoundationModel(TINY, checkpoint=str(path), image_size=64)
    loaded = model.model.state_dict()
    assert model.grid == (4, 4)
    assert loaded["pos_embed"].shape == (1, 17, 64)
    assert all(torch.equal(loaded[key], state[key]) for key in loaded if key != "pos_embed")
    assert "state_dict" not in model.model.pretrained_cfg


class RunsWhenUnpickled:
    """Makes a directory when it is unpickled, as a malicious checkpoint might do worse."""

    def __init__(self, directory: Path):
        self.directory = directory

    def __reduce__(self):
        return os.mkdir, (str(self.directory),)


def bad_files(folder: Path) -> list[Path]:
    state = distinct_weights()
    torch.save({key: value for key, value in state.items() if key != "blocks.0.norm1.weight"}, folder / "missing.pth")
    torch.save(state | {"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, folder / "shape.pth")
    torch.save({"model": 3}, folder / "no_tensors.pth")
    torch.save(state | {"extra": RunsWhenUnpickled(folder / "was_run")}, folder / "object.pth")
    (folder / "garbage.bin").write_bytes(b"not a checkpoint")
    save_file(state, folder / "whole.safetensors")
    (folder / "truncated.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:5000])
    return [*folder.glob("*.pth"), folder / "garbage.bin", folder / "truncated.safetensors", folder / "absent.pth"]


def test_a_bad_named_file_is_one_clear_error_under_every_policy(tmp_path):
    files = bad_files(tmp_path)
    assert len(files) == 7
    for path in files:
        for policy in ("auto", "required"):
            with pytest.raises(FoundationModelUnavailable) as caught:
                load_foundation_model(policy, TINY, path, image_size=64)
            message = str(caught.value)
            assert str(path) in message
            assert "huggingface.co/timm/test_vit.r160_in1k" in message
            assert "\n" not in message
        assert load_foundation_model("off", TINY, path, image_size=64)[0] is None
    assert not (tmp_path / "was_run").exists()


def test_without_weights_auto_goes_on_with_a_loud_sentence_and_required_stops(offline):
    model, sentence = load_foundation_model("auto", TINY, image_size=64)
    assert model is None
    assert sentence.startswith("WARNING: TRAINING WITHOUT THE FOUNDATION MODEL")
    with pytest.raises(FoundationModelUnavailable) as caught:
        load_foundation_model("required", TINY, image_size=64)
    for part in ("no network", "model.safetensors", "huggingface.co/timm/test_vit.r160_in1k", "foundation_checkpoint"):
        assert part in sentence
        assert part in str(caught.value)
    with pytest.raises(FoundationModelUnavailable):
        FoundationModel(TINY, image_size=64)


def test_random_weights_only_by_name(offline):
    model, sentence = load_foundation_model("auto", TINY, image_size=64, random_weights=True)
    assert isinstance(model, FoundationModel)
    assert "RANDOM" in sentence
    assert load_foundation_model("off", TINY, image_size=64, random_weights=True)[0] is None


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="'auto', 'required' or 'off'"):
        load_foundation_model("maybe", TINY)  # type: ignore[arg-type]


def test_offline_the_cache_is_used_and_an_empty_one_fails_within_seconds(tmp_path):
    """In a process of its own, because the hub's client reads HF_HUB_OFFLINE and HF_HOME when it is imported."""
    repository = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    state = distinct_weights()
    save_file(state, snapshot / "model.safetensors")
    code = f"""
import json, time
from nnunetv2_vqseg.modules.foundation import load_foundation_model
cached, said = load_foundation_model("required", "{TINY}", image_size=64)
start = time.time()
absent, warned = load_foundation_model("auto", "test_vit2.r160_in1k", image_size=64)
print(json.dumps([cached.model.norm.weight.tolist(), said, absent, warned, time.time() - start]))
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    weight, said, absent, warned, seconds = json.loads(run.stdout.splitlines()[-1])
    assert torch.equal(torch.tensor(weight), state["norm.weight"])
    assert "timm's cache" in said
    assert absent is None
    assert warned.startswith("WARNING")
    assert seconds < 20  # the hub's own retries take 45


# Models of Table 4: their names, pixels and files

CNN = "test_resnet.r160_in1k"


def small_vit(**options) -> VisionTransformer:
    """The test ViT's width with the parts of DINOv2: layer scale, no class head."""
    return VisionTransformer(img_size=56, patch_size=14, embed_dim=64, depth=3, num_heads=2, num_classes=0, **options)


def as_transformers_writes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of transformers' Dinov2Model for a timm state dict."""
    found = {"embeddings.mask_token": torch.zeros(1, 64)}
    for key, value in state.items():
        part = key.split(".")
        block = f"encoder.layer.{part[1]}" if part[0] == "blocks" else ""
        if ".attn.qkv." in key:
            for name, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{block}.attention.attention.{name}.{part[-1]}"] = third.clone()
        elif ".attn.proj." in key:
            found[f"{block}.attention.output.dense.{part[-1]}"] = value
        elif part[0] == "blocks" and part[2].startswith("ls"):
            found[f"{block}.layer_scale{part[2][2]}.lambda1"] = value
        elif part[0] == "blocks":
            found[f"{block}.{'.'.join(part[2:])}"] = value
        else:
            found[
                {
                    "cls_token": "embeddings.cls_token",
                    "pos_embed": "embeddings.position_embeddings",
                    "norm.weight": "layernorm.weight",
                    "norm.bias": "layernorm.bias",
                }.get(key, f"embeddings.patch_embeddings.projection.{part[-1]}")
            ] = value
    return found


def test_names_of_transformers_and_open_clip_become_timms():
    state = small_vit(init_values=1e-5).state_dict()
    state = {key: torch.randn_like(value) for key, value in state.items()}
    theirs = as_transformers_writes(state)
    assert not set(theirs) & set(state)
    found = to_timm(theirs)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert to_timm(as_open_clip_writes(state)).keys() == state.keys()
    assert to_timm(state) == state


@pytest.fixture
def small_others(monkeypatch):
    """BiomedCLIP and RAD-DINO with the test ViT's architecture, so that a file takes milliseconds."""
    small = {name: described._replace(timm=TINY.split(".")[0]) for name, described in OTHERS.items()}
    monkeypatch.setattr("nnunetv2_vqseg.core.foundation_models.OTHERS", small)
    monkeypatch.setattr("nnunetv2_vqseg.modules.foundation.OTHERS", small)
    return small


def written(file: Path, state: dict[str, torch.Tensor], half: bool = False) -> Path:
    """A file with these tensors, of the kind that its name says."""
    state = {key: (value.half() if half else value).contiguous() for key, value in state.items()}
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    return file


def as_open_clip_writes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of open_clip's BiomedCLIP, whose image tower is timm's, with some of its text tower."""
    others = {
        "visual.head.proj.weight": torch.ones(2, 64),
        "text.proj.0.weight": torch.ones(2),
        "logit_scale": torch.ones(1),
    }
    return {f"visual.trunk.{key}": value for key, value in state.items()} | others


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("biomedclip", "open_clip_pytorch_model.bin"),
        ("biomedclip", "open_clip_model.safetensors"),
        ("rad-dino", "model.safetensors"),
        ("rad-dino", "pytorch_model.bin"),
    ],
)
def test_models_that_timm_does_not_name_are_read_from_their_own_files_with_their_own_pixels(
    tmp_path, small_others, name, file, half
):
    state = {key: value for key, value in distinct_weights().items() if not key.startswith("head.")}
    theirs = as_open_clip_writes(state) if name == "biomedclip" else as_transformers_writes(state)
    file = written(tmp_path / file, theirs, half)
    model = FoundationModel(name, file, image_size=160)
    for key, value in model.model.state_dict().items():
        assert torch.equal(value, state[key].half().float() if half else state[key]), key
    assert tuple(model.mean.flatten().tolist()) == pytest.approx(OTHERS[name].mean)
    assert tuple(model.std.flatten().tolist()) == pytest.approx(OTHERS[name].std)
    vit = create_vit(name, 1)
    load_vit_weights(vit, name, file, 1)
    assert torch.equal(vit.norm.weight, model.model.norm.weight)


@pytest.mark.parametrize("name", OTHERS)
def test_without_a_file_they_are_taken_from_the_hub_under_its_names(tmp_path, small_others, monkeypatch, name):
    state = {key: value for key, value in distinct_weights().items() if not key.startswith("head.")}
    theirs = as_open_clip_writes(state) if name == "biomedclip" else as_transformers_writes(state)
    file, asked = written(tmp_path / OTHERS[name].file, theirs), []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: str(file))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names: asked.append(names) or str(file))
    model, said = load_foundation_model("required", name, image_size=160)
    assert torch.equal(model.model.norm.weight, state["norm.weight"])
    assert said.endswith("with weights from timm's cache or download.")
    vit = create_vit(name, 3)
    load_vit_weights(vit, name, None, 3)
    assert torch.equal(vit.norm.weight, state["norm.weight"])
    assert asked == [(OTHERS[name].repository, OTHERS[name].file)] * 2


@pytest.fixture
def small_models(monkeypatch):
    """timm's ViT-B with two narrow blocks, and all else as in its models, so that a file takes milliseconds."""
    small = {"embed_dim": 64, "depth": 2, "num_heads": 2}
    monkeypatch.setattr(
        "nnunetv2_vqseg.modules.foundation._create",
        lambda name, **options: timm.create_model(name, **{**small, **options}),
    )
    return lambda name, **options: timm.create_model(name, **{**small, **options})


def as_openai_writes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of OpenAI's CLIP for a timm state dict without a head, with some of its text tower."""
    found = {"visual.proj": torch.ones(64, 2), "positional_embedding": torch.ones(77, 2), "logit_scale": torch.ones(())}
    found |= {"transformer.resblocks.0.ln_1.weight": torch.ones(2), "token_embedding.weight": torch.ones(3, 2)}
    plain = {"patch_embed.proj.weight": "conv1.weight"}
    parts = {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "attn.proj": "attn.out_proj",
    }
    for key, value in state.items():
        if key == "cls_token":
            found["visual.class_embedding"] = value[0, 0].clone()
        elif key == "pos_embed":
            found["visual.positional_embedding"] = value[0].clone()
        elif key.startswith("blocks."):
            _, number, rest = key.split(".", 2)
            part, kind = rest.rsplit(".", 1)
            name = f"attn.in_proj_{kind}" if part == "attn.qkv" else f"{parts[part]}.{kind}"
            found[f"visual.transformer.resblocks.{number}.{name}"] = value
        else:
            name = plain.get(key, key.replace("norm_pre", "ln_pre").replace("norm.", "ln_post."))
            found[f"visual.{name}"] = value
    return found


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("name", "file", "write"),
    [
        ("vit_base_patch16_clip_224.openai", "open_clip_pytorch_model.bin", as_openai_writes),
        (
            "vit_base_patch16_clip_224.openai",
            "model.safetensors",
            lambda state: state | {"head.weight": torch.ones(2, 64)},
        ),
        ("vit_base_patch16_224.mae", "model.safetensors", lambda state: state),
        ("vit_base_patch16_224.mae", "mae_pretrain_vit_base.pth", lambda state: state),
    ],
)
def test_files_of_clip_and_mae_are_read_with_their_own_names(tmp_path, small_models, name, file, write, half):
    state = small_models(name, num_classes=0).state_dict()
    assert ("norm_pre.weight" in state) == ("clip" in name)
    state = {key: torch.randn_like(value) for key, value in state.items()}
    file = written(tmp_path / file, write(state), half)
    if file.suffix == ".pth":  # as its authors wrote it
        torch.save({"model": torch.load(file)}, file)
    model = FoundationModel(name, file)
    assert model.grid == (14, 14)
    loaded = model.model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key].half().float() if half else state[key]) for key in state)
    vit = create_vit(name, 1)
    load_vit_weights(vit, name, file, 1)
    assert fingerprint(vit) == fingerprint(model.model)


@pytest.mark.parametrize("write", [as_openai_writes, lambda state: state])
def test_a_file_with_patches_of_another_size_is_refused_with_both(tmp_path, small_models, write):
    """timm would resample CLIP's ViT-B/32 into a ViT-B/16 without a word."""
    state = small_models("vit_base_patch32_clip_224.openai", num_classes=0).state_dict()
    file, name = written(tmp_path / "clip.bin", write(state)), "vit_base_patch16_clip_224.openai"
    told = rf"clip.bin does not hold weights of {name} \(its patches have 32 x 32 pixels instead of 16 x 16\): name the"
    with pytest.raises(FoundationModelUnavailable, match=told):
        FoundationModel(name, file)
    with pytest.raises(FoundationModelUnavailable, match=told):
        load_vit_weights(create_vit(name, 1), name, file, 1)
    FoundationModel("vit_base_patch32_clip_224.openai", file)


def test_a_fingerprint_is_of_the_weights_and_not_of_file_and_channels(tmp_path):
    state, found = distinct_weights(), {}
    for name, channels in (("a.pth", 1), ("b.safetensors", 3)):
        vit = create_vit(TINY, channels)
        load_vit_weights(vit, TINY, written(tmp_path / name, state), channels)
        found[name] = fingerprint(vit)
    assert len({*found.values()}) == 1
    assert len(found["a.pth"]) == 8
    with torch.no_grad():
        vit.blocks[5].mlp.fc2.bias[0] += 1e-3
    assert fingerprint(vit) != found["a.pth"]


def test_the_others_architectures_are_those_of_their_files():
    """Widths, depths, tokens and layer scale as their published configurations have them."""
    for name, patch, scaled in (("biomedclip", 16, False), ("rad-dino", 14, True)):
        with torch.device("meta"):
            vit = timm.create_model(OTHERS[name].timm, num_classes=0)
        assert (vit.embed_dim, len(vit.blocks), vit.patch_embed.patch_size) == (768, 12, (patch, patch))
        assert any(".ls1." in key for key in vit.state_dict()) == scaled


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("vit_base_patch16_clip_224.openai", (0.48145466, 0.4578275, 0.40821073)),
        ("vit_base_patch16_224.mae", (0.485, 0.456, 0.406)),
        ("vit_small_patch14_dinov2.lvd142m", (0.485, 0.456, 0.406)),
    ],
)
def test_timms_models_of_table_4_have_their_own_pixels(name, mean):
    assert _description(name)["mean"] == pytest.approx(mean)
    assert _description(name)["hf_hub_id"].startswith("timm/")


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("vit_base_patch16_clip_224.openai", "QuickGELU"),
        ("vit_base_patch16_clip_quickgelu_224.openai", "QuickGELU"),
        ("vit_base_patch16_clip_224.laion2b", "GELU"),
        ("vit_base_patch16_224.mae", "GELU"),
        ("biomedclip", "GELU"),
    ],
)
def test_clip_has_the_activation_that_it_was_trained_with(name, activation):
    with torch.device("meta"):
        found = {type(block.mlp.act).__name__ for block in create_vit(name, 1).blocks}
    assert found == {activation}


@pytest.mark.parametrize("half", [False, True])
def test_a_cnn_gives_its_last_map_or_the_stage_that_is_asked_for(tmp_path, half):
    source = timm.create_model(CNN, pretrained=False)
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    file = tmp_path / "cnn.pth"
    torch.save({key: value.half() if half else value for key, value in source.state_dict().items()}, file)
    model = FoundationModel(CNN, file, image_size=96)
    expected = timm.create_model(CNN, features_only=True).eval()
    expected.load_state_dict({k: v for k, v in model.model.state_dict().items() if not k.startswith("fc.")})
    images = torch.randn(2, 3, 96, 96)
    pixels = torch.stack([torch.stack([unit_range(channel) for channel in image]) for image in images])
    maps = expected((pixels - model.mean) / model.std)
    torch.testing.assert_close(model(images), maps[-1], rtol=1e-3, atol=1e-3)
    assert model.grid == (3, 3)
    assert model.foreground(images).shape == (2, 3, 3)
    earlier = FoundationModel(CNN, file, image_size=96, block=3)
    torch.testing.assert_close(earlier(images), maps[3], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="image size of 100"):
        FoundationModel(CNN, file, image_size=100)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ("vit_tiny_patch16_224", r"it also has \S+ and \d+ more; its \S+ is .* instead of .*"),
        (CNN, r"it lacks cls_token and \d+ more; it also has \S+ and \d+ more"),
    ],
)
def test_a_file_of_another_model_is_told_by_what_differs(tmp_path, other, difference):
    file = tmp_path / "other.safetensors"
    save_file(timm.create_model(other).state_dict(), file)
    with pytest.raises(FoundationModelUnavailable, match=rf"does not hold weights of {TINY} \(({difference})\): name"):
        FoundationModel(TINY, file, image_size=64)


@pytest.mark.parametrize(("model", "other"), [(TINY, True), (WITH_REGISTERS, False)])
def test_a_file_with_registers_for_a_model_without_is_told_so_and_the_other_way_round(tmp_path, model, other):
    file = tmp_path / "other.safetensors"
    save_file(timm.create_model(WITH_REGISTERS if other else TINY, num_classes=0).state_dict(), file)
    said = f"it {'has' if other else 'lacks'} register tokens, the model is another one"
    with pytest.raises(FoundationModelUnavailable, match=rf"does not hold weights of {model} \({said}\): name"):
        FoundationModel(model, file, image_size=224)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_an_encoder_of_images_from_0_to_1_sees_the_pixels_of_its_pretraining(tmp_path, channels):
    file = tmp_path / "vit.safetensors"
    save_file(distinct_weights(), file)
    vit, plain = (create_vit(TINY, number).eval() for number in (channels, 3))
    load_vit_weights(vit, TINY, file, channels, unit_range=True)
    load_vit_weights(plain, TINY, file, 3)
    images = torch.rand(2, 3 if channels == 3 else 1, 32, 32)
    mean, std = (torch.tensor(plain.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = plain.forward_features((images - mean) / std)
    torch.testing.assert_close(vit.forward_features(images.expand(-1, channels, -1, -1)), expected)


def test_a_first_layer_without_a_bias_cannot_take_over_what_was_done_to_pixels(tmp_path, monkeypatch):
    source = timm.create_model(TINY, num_classes=0)
    source.patch_embed.proj.bias = None
    monkeypatch.setattr("nnunetv2_vqseg.modules.foundation._load_from_hub", lambda *_, **__: source)
    with pytest.raises(ValueError, match="values from 0 to 1: its first layer has no bias"):
        load_vit_weights(create_vit(TINY, 3), TINY, None, 3, unit_range=True)


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path):
    state = distinct_weights() | {"norm.weight": torch.ones(65), "blocks.0.norm1.bias": torch.ones(3)}
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(
        FoundationModelUnavailable, match=r"its \S+ is (65|3) instead of 64, and 1 more of another shape"
    ):
        FoundationModel(TINY, tmp_path / "other.safetensors", image_size=64)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_look_at_images_makes_the_host_of_a_gpu_wait_for_nothing(channels):
    model, images = random_model(channel_pick=(4, 0, 2)), torch.randn(2, channels, 40, 40)
    with Operators() as operators:
        model(images)
        model.foreground(images)
    assert operators.waits == set()
