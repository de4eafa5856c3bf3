"""The DPT decoder (Ranftl et al., ICCV 2021, https://arxiv.org/abs/2103.13413) as UniMatch V2 has it.

Four maps of one grid become a pyramid (reassemble), which is summed up from coarse to fine (fusion). Widths and order
of the layers follow https://github.com/LiheYoung/UniMatch-V2, model/semseg/dpt.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_vqseg.networks.backbone import Logits


class DPTDecoder(nn.Module):
    """Logits from four maps of a ViT.

    `deep_supervision` is what nnU-Net's trainer switches: logits in a list of one, or as they are.

    Args:
        width: channels of the maps.
        widths: of the four levels after the first projection, the finest first.
        features: channels of the pyramid.
        classes: channels of the logits.
        patch: (height, width) in pixels of a token.
        deep_supervision: see above.
    """

    def __init__(
        self,
        width: int,
        widths: Sequence[int],
        features: int,
        classes: int,
        patch: Sequence[int],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        first, second, _, fourth = widths
        self.patch = tuple(patch)
        self.deep_supervision = deep_supervision
        self.projections = nn.ModuleList(nn.Conv2d(width, level, kernel_size=1) for level in widths)
        self.resizings = nn.ModuleList(
            (
                nn.ConvTranspose2d(first, first, kernel_size=4, stride=4),
                nn.ConvTranspose2d(second, second, kernel_size=2, stride=2),
                nn.Identity(),
                nn.Conv2d(fourth, fourth, kernel_size=3, stride=2, padding=1),
            )
        )
        self.levels = nn.ModuleList(nn.Conv2d(level, features, 3, padding=1, bias=False) for level in widths)
        self.fusions = nn.ModuleList(Fusion(features, with_skip=level < 3) for level in range(4))
        self.head = nn.Sequential(nn.Conv2d(features, features, kernel_size=3, padding=1), nn.ReLU(inplace=True))
        # By this name -pretrained_weights leaves it out.
        self.seg_layers = nn.ModuleList([nn.Conv2d(features, classes, kernel_size=1)])

    def reassemble(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps (B, width, h, w) -> (B, features, ...) with grids of 4, 2, 1 and 1/2 times (h, w)."""
        layers = zip(self.projections, self.resizings, self.levels, maps, strict=True)
        return [level(resize(project(features))) for project, resize, level, features in layers]

    def forward(self, maps: Sequence[Tensor]) -> Logits:
        """Logits (B, classes, H, W) of the maps (B, width, H / patch, W / patch) of four blocks, the first first."""
        pyramid = self.reassemble(maps)
        x = None
        for level in (3, 2, 1, 0):
            finer = pyramid[level - 1].shape[2:] if level else tuple(2 * side for side in pyramid[0].shape[2:])
            x = self.fusions[level](pyramid[level], x, finer)
        height, width = maps[0].shape[2:]
        size = (height * self.patch[0], width * self.patch[1])
        logits = F.interpolate(self.seg_layers[0](self.head(x)), size=size, mode="bilinear", align_corners=True)
        return [logits] if self.deep_supervision else logits


class Fusion(nn.Module):
    """One level added to what came from the coarser ones, then enlarged.

    Args:
        features: channels.
        with_skip: whether there is a coarser level; the level then has a residual unit of its own.
    """

    def __init__(self, features: int, with_skip: bool) -> None:
        super().__init__()
        self.own = ResidualUnit(features) if with_skip else None
        self.fused = ResidualUnit(features)
        self.projection = nn.Conv2d(features, features, kernel_size=1)

    def forward(self, level: Tensor, coarser: Tensor | None, size: Sequence[int]) -> Tensor:
        """(B, features, ...) of the level, and from the coarser ones, of the same size -> (B, features, *size)."""
        x = level if self.own is None or coarser is None else coarser + self.own(level)
        x = F.interpolate(self.fused(x), size=tuple(size), mode="bilinear", align_corners=True)
        return self.projection(x)


class ResidualUnit(nn.Module):
    """Two 3 x 3 convolutions, each after a ReLU, beside the input."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, features, kernel_size=3, padding=1)
        self.second = nn.Conv2d(features, features, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape as x."""
        return x + self.second(F.relu(self.first(F.relu(x))))
