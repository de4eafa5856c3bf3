"""nnU-Net's planned U-Net with a change of its features between encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Config, Range
from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.networks.backbone import Logits, NetworkPlan, Strides, backbone_of


@dataclass(frozen=True)
class StageConfig(Config):
    """Which stage of the encoder a method acts on."""

    vq_stage: Annotated[
        int | Literal["auto"],
        Range(0, 64),
        "encoder stage that is quantised, 0 is the shallowest; auto: the deepest with at least `min_tokens` tokens on "
        "the patch's shorter side",
    ] = "auto"
    min_tokens: Annotated[int, Range(1, 512), "tokens on the patch's shorter side for vq_stage auto"] = 14


def choose_stage(patch_size: Sequence[int], strides: Strides, min_tokens: int = 14) -> int:
    """The deepest encoder stage with at least `min_tokens` tokens on the patch's shorter side.

    Args:
        patch_size: pixels per axis.
        strides: one entry a stage with a factor per axis, as in the plan.

    Returns:
        Index of the stage, 0 is the shallowest; stage 0 where even that has fewer tokens.
    """
    sizes = _token_grids(patch_size, strides)
    deep_enough = [stage for stage, grid in enumerate(sizes) if min(grid) >= min_tokens]
    return max(deep_enough, default=0)


def _token_grids(patch_size: Sequence[int], strides: Strides) -> list[list[int]]:
    grid, grids = list(patch_size), []
    for stride in strides:
        grid = [size // step for size, step in zip(grid, stride, strict=True)]
        grids.append(grid)
    return grids


def stage_of(unet: nn.Module, plan: NetworkPlan, config: StageConfig) -> int:
    """The configured stage of a planned network; of a ViT the last one, whatever the number of tokens.

    Raises:
        ConfigError: the plan does not have it, or it cannot be replaced there.
    """
    possible = backbone_of(unet).replaceable
    if config.vq_stage == "auto":
        return max(choose_stage(plan.patch_size, plan.strides, config.min_tokens), min(possible))
    if config.vq_stage not in possible:
        stages = f"stages {min(possible)} to {max(possible)}" if len(possible) > 1 else f"stage {min(possible)} only"
        raise ConfigError(f"vqseg.vq_stage = {config.vq_stage} is not valid; this plan has {stages}.")
    return config.vq_stage


class ChangedUNet(nn.Module):
    """A planned U-Net whose features can be changed before the decoder reads them.

    The keys of `state_dict()` are those of the U-Net. Without `first` it computes exactly what the U-Net does.

    Args:
        unet: PlainConvUNet or ResidualEncoderUNet.
        change: (features of all stages, index of the first image to change) -> features, without parameters.
        stage: deeper stages are computed from this stage's changed features; None: only the decoder reads changed ones.
    """

    def __init__(self, unet: nn.Module, change: nn.Module, stage: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone_of(unet)
        self.encoder: Any = unet.encoder
        self.decoder: Any = unet.decoder
        self.change = change
        self.stage = stage

    def forward(self, x: Tensor, first: int | None = None) -> Logits:
        """Logits of images (B, C, ...); the features of images `first`, `first` + 1, ... are changed, None: of none."""
        maps = self.backbone.encode(self, x, self.stage)
        if first is not None and first < len(x):
            maps = self.change(maps, first)
        if self.stage is not None:
            maps = self.backbone.resume(self, maps, self.stage)
        return self.backbone.decode(self, maps)
