"""The frozen foundation model whose patch features guide q(z) (Section 3.5), from timm."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_vqseg.core.errors import FoundationModelUnavailable
from nnunetv2_vqseg.core.foundation_models import OTHERS, timm_name
from nnunetv2_vqseg.modules.nd import require_2d
from nnunetv2_vqseg.modules.weight_keys import to_timm

DEFAULT_MODEL = "vit_small_patch14_dinov2.lvd142m"
PERCENTILES = (0.5, 99.5)
CONNECT_SECONDS = 5.0
KEY = "foundation_checkpoint"
FIRST_LAYER = "patch_embed.proj.weight"
FIRST_BIAS = "patch_embed.proj.bias"
FIRST_LAYER_OF_CLIP = "visual.conv1.weight"
REGISTERS = ("reg_token", "register_tokens")
"""Of a ViT, as timm and DINOv2's authors name them."""


class FoundationModel(nn.Module):
    """Frozen patch features of a ViT, or a CNN's map: always in eval mode, never with a gradient (Section 3.5).

    Every channel of an image is clipped to its 0.5 and 99.5 percentiles, scaled to [0, 1], mapped to three channels
    (1: repeated; 2: the third is zero; 3: kept; more: `channel_pick`), resized to a square of `image_size` and
    normalised by the mean and standard deviation that the model was trained with.

    Args:
        name: a timm ViT or CNN, with the tag of its weights, or a name of `core.foundation_models.OTHERS`.
        checkpoint: local `.safetensors`, `.pth`, `.pt` or `.bin` file; None takes timm's cache or downloads.
        image_size: pixels on a side of what the model sees, a multiple of its patch.
        channel_pick: the three channels it sees of images with more than three.
        random_weights: untrained weights, for tests and ablations; never used unless asked for here.
        block: whose tokens are the features, counted from 0; None: the last one. Of a CNN, its stage.
        dark, quiet, flat: what `foreground` takes for air and padding, in units of the image's range of intensities.

    Attributes:
        embed_dim: C', channels of the features.
        grid: (H', W'), patches of the features.

    Raises:
        FoundationModelUnavailable: there are no weights, or `checkpoint` cannot be read or does not fit the model.
        ValueError: there is no such model or `block`, `image_size` does not fit its patch, or the arguments contradict
            each other.
    """

    embed_dim: int
    grid: tuple[int, int]
    mean: Tensor
    std: Tensor
    fractions: Tensor
    pick: Tensor

    def __init__(
        self,
        name: str = DEFAULT_MODEL,
        checkpoint: str | Path | None = None,
        image_size: int = 224,
        channel_pick: Sequence[int] = (0, 1, 2),
        random_weights: bool = False,
        block: int | None = None,
        dark: float = 0.07,
        quiet: float = 0.03,
        flat: float = 0.01,
    ):
        super().__init__()
        if len(channel_pick) != 3 or min(channel_pick) < 0:
            raise ValueError(f"channel_pick must name three channels, got {tuple(channel_pick)}")
        if random_weights and checkpoint is not None:
            raise ValueError(f"random_weights contradicts the checkpoint {checkpoint}: leave one of them out")
        cfg, sized = _check_architecture(name, image_size)
        self.image_size = image_size
        self.channel_pick = tuple(channel_pick)
        self.block = block
        self.dark, self.quiet, self.flat = dark, quiet, flat
        if random_weights:
            self.model: Any = _create(name, **sized)
        elif checkpoint is not None:
            self.model = _load_from_file(name, _expanded(checkpoint), cfg, **sized)
        else:
            self.model = _load_from_hub(name, cfg, **sized)
        if block is not None and not 0 <= block < len(self.model.feature_info):
            raise ValueError(f"{name} has the blocks 0 to {len(self.model.feature_info) - 1}, and no block {block}")
        self.model.requires_grad_(False)
        self.eval()
        self.register_buffer("mean", torch.tensor(cfg["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(cfg["std"]).view(1, 3, 1, 1), persistent=False)
        # Made here, as a GPU would be waited for where they are made.
        self.register_buffer("fractions", torch.tensor(PERCENTILES) / 100, persistent=False)
        self.register_buffer("pick", torch.tensor(channel_pick), persistent=False)
        features = self(torch.zeros(1, 1, image_size, image_size))
        self.embed_dim = features.shape[1]
        self.grid = (features.shape[2], features.shape[3])

    def train(self, mode: bool = True) -> FoundationModel:
        """Stays in eval mode whatever the parent module does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) z-scored images -> (B, embed_dim, H', W') float32: the block's features, normalised by timm.

        Raises:
            ValueError: volumes, or `channel_pick` names a channel that images with more than three do not have.
        """
        pixels = (self._three_channels(self._unit_range(images)) - self.mean) / self.std
        indices = 1 if self.block is None else [self.block]  # 1: the last one
        options = {"indices": indices, "norm": True, "stop_early": True, "intermediates_only": True}
        return self.model.forward_intermediates(pixels, **options)[0].float()

    @torch.no_grad()
    def foreground(self, images: Tensor) -> Tensor:
        """Patches worth aligning; those of padding or air carry no meaning and would reward positional coding.

        A patch is padding where its values span less than `flat` whatever their level, and air where its mean is below
        `dark` and its standard deviation below `quiet`, all in units of the image's range of intensities between the
        percentiles. It counts if it is neither in at least one channel. Measured on frame 1 of 39 ACDC patients, the
        defaults keep 77 % of all patches and lose 0.2 % of those that touch the heart.

        Args:
            images: (B, C, H, W), as for `forward`.

        Returns:
            (B, H', W') bool, True for foreground.
        """
        values = self._unit_range(images)
        patch = (self.image_size // self.grid[0], self.image_size // self.grid[1])
        span = F.max_pool2d(values, patch) + F.max_pool2d(-values, patch)
        mean = F.avg_pool2d(values, patch)
        std = (F.avg_pool2d(values**2, patch) - mean**2).clamp(min=0).sqrt()
        padding = span < self.flat
        air = (mean < self.dark) & (std < self.quiet)
        return (~(padding | air)).any(dim=1)

    def _unit_range(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, image_size, image_size) float32 in [0, 1]."""
        require_2d(images, "the foundation model")
        values = images.float()
        low, high = values.flatten(2).quantile(self.fractions, dim=2)[..., None, None]  # each (B, C, 1, 1)
        values = (values.clamp(low, high) - low) / (high - low).clamp(min=1e-6)
        # Antialiasing only acts where the image shrinks.
        size = (self.image_size, self.image_size)
        return F.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=True)

    def _three_channels(self, values: Tensor) -> Tensor:
        channels = values.shape[1]
        if channels < 3:
            return values.repeat(1, 3, 1, 1) if channels == 1 else F.pad(values, (0, 0, 0, 0, 0, 1))
        if channels == 3:
            return values
        if max(self.channel_pick) >= channels:
            raise ValueError(
                f"the foundation model is to see the channels {self.channel_pick}, but images have only the channels "
                f"0 to {channels - 1}: choose three of those"
            )
        return values.index_select(1, self.pick)


def load_foundation_model(
    policy: Literal["auto", "required", "off"],
    name: str = DEFAULT_MODEL,
    checkpoint: str | Path | None = None,
    random_weights: bool = False,
    **options: Any,
) -> tuple[FoundationModel | None, str]:
    """The foundation model as far as the weights at hand allow, or None, and one sentence saying what happened.

    Args:
        policy: `auto` goes without if there are no weights, `required` stops, `off` never loads one.
        name, checkpoint, random_weights, options: as for `FoundationModel`.

    Raises:
        FoundationModelUnavailable: no weights under `required`; under `auto` too if a named `checkpoint` is bad.
        ValueError: an unknown policy, or as for `FoundationModel`.
    """
    if policy not in ("auto", "required", "off"):
        raise ValueError(f"the foundation model policy must be 'auto', 'required' or 'off', got {policy!r}")
    if policy == "off":
        return None, "Foundation model alignment (PFA) is switched off."
    try:
        model = FoundationModel(name, checkpoint, random_weights=random_weights, **options)
    except FoundationModelUnavailable as error:
        if policy == "required" or checkpoint is not None:
            raise
        return None, f"WARNING: TRAINING WITHOUT THE FOUNDATION MODEL, so without alignment (PFA, Eq. 11). {error}"
    if random_weights:
        return model, f"WARNING: alignment (PFA) uses {name} with RANDOM, untrained weights, as was asked for."
    source = f"the file {checkpoint}" if checkpoint is not None else "timm's cache or download"
    return model, f"Alignment (PFA) uses {name} at {model.image_size} x {model.image_size} with weights from {source}."


def create_vit(name: str, channels: int) -> Any:
    """A ViT with fresh weights as a segmentation network's encoder: any image size, no classes, no drop path.

    Args:
        channels: of the images.
    """
    return _create(name, in_chans=channels, num_classes=0, drop_path_rate=0.0, dynamic_img_size=True)


def load_vit_weights(
    vit: nn.Module,
    name: str,
    checkpoint: str | Path | None,
    channels: int,
    key: str = KEY,
    unit_range: bool = False,
) -> None:
    """Give a `create_vit(name, channels)` its pretrained weights.

    The first layer's are kept for three channels; for others each channel gets the sum of the three over the number of
    channels, so that images with equal channels give what grey ones gave. Images are taken for z-scored, of which
    pretraining saw much the same values.

    Args:
        checkpoint: as for `FoundationModel`.
        key: how messages call it.
        unit_range: images have values from 0 to 1; the first layer takes over what pretraining did to such pixels.

    Raises:
        FoundationModelUnavailable: there are no weights, or `checkpoint` cannot be read or does not fit the model.
        ValueError: `unit_range`, and the model's first layer has no bias that could take it over.
    """
    cfg = _description(name)
    options = {"num_classes": 0}
    if checkpoint is not None:
        source = _load_from_file(name, _expanded(checkpoint), cfg, key, **options)
    else:
        source = _load_from_hub(name, cfg, key, **options)
    state = source.state_dict()
    if unit_range:
        if FIRST_BIAS not in state:
            raise ValueError(f"{name} cannot start from images with values from 0 to 1: its first layer has no bias")
        mean, std = (torch.tensor(cfg[part]).view(1, 3, 1, 1) for part in ("mean", "std"))
        state[FIRST_LAYER] = state[FIRST_LAYER] / std
        state[FIRST_BIAS] = state[FIRST_BIAS] - (state[FIRST_LAYER] * mean).sum((1, 2, 3))
    if channels != 3:
        state[FIRST_LAYER] = state[FIRST_LAYER].sum(1, keepdim=True).repeat(1, channels, 1, 1) / channels
    vit.load_state_dict(state)


def fingerprint(vit: nn.Module) -> str:
    """Eight hexadecimal digits by which a ViT's weights are told from others, whatever file they came from.

    Without the first layer, which differs with the number of channels.
    """
    digest = hashlib.sha256()
    for name, values in vit.state_dict().items():
        if name != FIRST_LAYER:
            digest.update(name.encode())
            digest.update(values.detach().cpu().float().flatten().numpy())
    return digest.hexdigest()[:8]


def _create(name: str, **options: Any) -> Any:
    import timm  # takes seconds, and few trainings need it

    return timm.create_model(_as_trained(name), **options)


def _as_trained(name: str) -> str:
    """timm's name with the activation of the pretraining: timm builds OpenAI's CLIP and others with another GELU."""
    import timm

    name = timm_name(name)
    quick = name.replace("_clip_", "_clip_quickgelu_")
    if quick == name or not timm.is_model(quick.partition(".")[0]):
        return name
    known = timm.get_pretrained_cfg(name)
    notes = (known.to_dict().get("notes") if known is not None else None) or ()
    return quick if any("QuickGELU" in note for note in notes) else name


def _description(name: str) -> dict[str, Any]:
    """What timm says of the pretrained weights, or we of models whose weights timm does not have."""
    import timm

    known = timm.get_pretrained_cfg(_as_trained(name))
    assert known is not None, "every model of timm has one"
    cfg = known.to_dict()
    if name not in OTHERS:
        return cfg
    own = OTHERS[name]
    return cfg | {"mean": own.mean, "std": own.std, "hf_hub_id": own.repository, "hf_hub_filename": own.file}


def _check_architecture(name: str, image_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Refuses what cannot work before any weights are read.

    Returns:
        What is known of the pretrained weights, and what timm must be told of the image size: nothing for a CNN.
    """
    sized: dict[str, Any] = {"img_size": image_size}
    try:
        with torch.device("meta"):  # no memory, no initialisation
            try:
                model = _create(name, **sized)
            except TypeError:
                sized = {}
                model = _create(name)
        patch = model.patch_embed.patch_size if sized else [info["reduction"] for info in model.feature_info[-1:]] * 2
        _ = model.forward_intermediates
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"{name} cannot be used as the foundation model ({_first_line(error)}): choose a ViT or CNN of timm such "
            f"as {DEFAULT_MODEL}, or one of {', '.join(OTHERS)}"
        ) from error
    if any(image_size % side for side in patch):
        step = max(patch)
        fitting = (image_size // step + 1) * step
        raise ValueError(
            f"{name} sees patches of {patch[0]} x {patch[1]} pixels, which do not fit an image size of {image_size}: "
            f"the next fitting size is {fitting}"
        )
    return _description(name), sized


def _expanded(checkpoint: str | Path) -> Path:
    """With the home folder and environment variables put in, so that a plan can be used on several machines."""
    return Path(os.path.expandvars(checkpoint)).expanduser()


def _load_from_file(name: str, path: Path, cfg: dict[str, Any], key: str = KEY, **options: Any) -> nn.Module:
    if not path.is_file():
        raise FoundationModelUnavailable(
            f"The checkpoint {path} of {name} does not exist: correct the path, or {_how_to_get(name, cfg, key)}."
        )
    from safetensors.torch import load_file

    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        state_dict = to_timm(_unwrap_checkpoint(content))
        classifier = cfg.get("classifier") or ()
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        state_dict = {
            key: value for key, value in state_dict.items() if not key.startswith(tuple(f"{head}." for head in heads))
        }
        with torch.device("meta"):
            known = _create(name, num_classes=0).state_dict()
        registers = [any(token in weights for token in REGISTERS) for weights in (state_dict, known)]
        if registers[0] != registers[1]:  # of which timm says that a shape is invalid
            raise ValueError(f"{'it has' if registers[0] else 'it lacks'} register tokens, the model is another one")
        theirs = _patch_of(state_dict)
        # With no classes on both sides timm loads strictly: a missing tensor must not stay random.
        overlay = {"state_dict": state_dict, "num_classes": 0}
        model = _create(name, pretrained=True, pretrained_cfg_overlay=overlay, **{**options, "num_classes": 0})
        own = _patch_of(model.state_dict())
        if theirs is not None and theirs != own:  # timm resamples the layer without a word
            raise ValueError(f"its patches have {theirs} pixels instead of {own}")
    except Exception as error:  # pickle, zip, safetensors and shape errors have no common class
        raise FoundationModelUnavailable(
            f"The file {path} does not hold weights of {name} ({_difference(error)}): name the right file or model, or "
            f"{_how_to_get(name, cfg, key)}."
        ) from error
    model.pretrained_cfg.pop("state_dict", None)  # a second copy of all weights
    return model


def _patch_of(state: dict[str, Tensor]) -> str | None:
    """Height x width in pixels that a ViT's first layer sees; None where a state dict has no such layer."""
    layer = state.get(FIRST_LAYER, state.get(FIRST_LAYER_OF_CLIP))
    return None if layer is None or layer.ndim != 4 else f"{layer.shape[2]} x {layer.shape[3]}"


def _load_from_hub(name: str, cfg: dict[str, Any], key: str = KEY, **options: Any) -> nn.Module:
    try:
        if cfg.get("hf_hub_id"):
            _require_cached_or_reachable(cfg)
        if name in OTHERS:
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(cfg["hf_hub_id"], cfg["hf_hub_filename"]))
            return _load_from_file(name, path, cfg, key, **options)
        return _create(name, pretrained=True, **options)
    except FoundationModelUnavailable:
        raise
    except Exception as error:  # network, hub and file errors have no common class
        raise FoundationModelUnavailable(
            f"The weights of {name} are neither in the cache of timm nor can they be downloaded "
            f"({_first_line(error)}): {_how_to_get(name, cfg, key)}."
        ) from error


def _require_cached_or_reachable(cfg: dict[str, Any]) -> None:
    """Raises at once where the hub's own download would retry for the better part of a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import EntryNotFoundError

    repository, _, revision = cfg["hf_hub_id"].partition("@")
    names = (cfg.get("hf_hub_filename") or "model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, name, revision=revision or None), str) for name in names):
        return
    # Not found is as good: the hub is reachable, and timm knows other names of the weights.
    with suppress(EntryNotFoundError):
        get_hf_file_metadata(hf_hub_url(repository, names[0], revision=revision or None), timeout=CONNECT_SECONDS)


def _unwrap_checkpoint(content: Any) -> dict[str, Tensor]:
    """The plain state dict inside the wrappers and key prefixes that training scripts leave."""
    for key in ("model", "state_dict", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError("it holds no dictionary of tensors")
    for prefix in ("module.", "backbone."):
        inner = {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}
        content = inner or content
    return content


def _how_to_get(name: str, cfg: dict[str, Any], key: str) -> str:
    hub_id = cfg.get("hf_hub_id")
    source = (
        f"{cfg.get('hf_hub_filename') or 'model.safetensors'} from https://huggingface.co/{hub_id}"
        if hub_id
        else f"the weights of timm's {name}"
    )
    return f"download {source} on a machine with internet access and give its path as {key}"


def _difference(error: BaseException) -> str:
    """What a file lacks, has too much, and has in another shape; where that is not the matter, the error's words."""
    text = str(error)
    parts = []
    for said, pattern in (
        ("it lacks {}", r"Missing key\(s\)[^:]*: (.*)"),
        ("it also has {}", r"Unexpected key\(s\)[^:]*: (.*)"),
    ):
        if found := re.search(pattern, text):
            names = re.findall(r'"([^"]+)"', found[1])
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            parts.append(said.format(f"{names[0]}{more}"))
    shapes = re.findall(r"size mismatch for ([^:]+): .*?Size\(\[([\d, ]*)\]\).*?Size\(\[([\d, ]*)\]\)", text)
    if shapes:
        name, theirs, own = (part.replace(", ", " x ") for part in shapes[0])
        more = f", and {len(shapes) - 1} more of another shape" if len(shapes) > 1 else ""
        parts.append(f"its {name} is {theirs or 'a number'} instead of {own or 'a number'}{more}")
    return "; ".join(parts) or _first_line(error)


def _first_line(error: BaseException) -> str:
    """A foreign error message, short enough to stand inside a sentence of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
