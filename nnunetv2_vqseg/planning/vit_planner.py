"""nnU-Net's planner with a ViT in the place of the U-Net."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from torch import nn

from nnunetv2_vqseg.core.errors import PlansError, reason_of
from nnunetv2_vqseg.core.foundation_models import OTHERS, timm_name

NETWORK = "nnunetv2_vqseg.networks.vit.ViTSegmenter"
ENCODER = "vit_small_patch14_dinov2.lvd142m"
BLOCKS = {12: [2, 5, 8, 11], 24: [4, 11, 17, 23], 40: [9, 19, 29, 39]}
"""Depth of a ViT -> blocks whose maps UniMatch V2 decodes."""
DECODERS = {
    384: (64, [48, 96, 192, 384]),
    768: (128, [96, 192, 384, 768]),
    1024: (256, [256, 512, 1024, 1024]),
    1536: (384, [1536] * 4),
}
"""Width of a ViT -> channels of UniMatch V2's decoder, and of its levels."""


class nnUNetPlannerViT(ExperimentPlanner):
    """nnU-Net's plan in which the 2D network is a ViT with a DPT decoder and the patch a multiple of the ViT's.

    Sides of nnU-Net's patch are rounded up to the next multiple, so that an image that fits still does. Trainers whose
    names end with ViT train this plan.

    Args:
        encoder: timm's name of the ViT, or a name of `core.foundation_models.OTHERS`.

    The other arguments are nnU-Net's.
    """

    default_plans_name: ClassVar[str] = "nnUNetViTPlans"

    def __init__(self, *args: Any, plans_name: str = default_plans_name, encoder: str = ENCODER, **kwargs: Any) -> None:
        super().__init__(*args, plans_name=plans_name, **kwargs)
        self.architecture, self.patch = vit_architecture(encoder)
        self._told: set[tuple[int, ...]] = set()

    def get_plans_for_configuration(self, spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache):
        """nnU-Net's; in 2D with our network, and the patch rounded."""
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        if len(spacing) != 2 or min(plan["patch_size"]) == 1:  # lines, which the caller refuses
            return plan
        before = tuple(int(side) for side in plan["patch_size"])
        after = tuple(-(-side // step) * step for side, step in zip(before, self.patch, strict=True))
        if after != before and after not in self._told:
            self._told.add(after)
            sizes = (" x ".join(map(str, size)) for size in (before, after, self.patch))
            print("nnU-Net's patch of {} pixels becomes {}, because the ViT's tokens have {}.".format(*sizes))
        return {**plan, "patch_size": after, "architecture": self.architecture}


def vit_architecture(encoder: str) -> tuple[dict[str, Any], tuple[int, int]]:
    """What a plan says of this ViT with a DPT decoder, and the ViT's patch.

    Blocks and channels are UniMatch V2's for a ViT of its sizes, else the ends of four quarters and one sixth of the
    ViT's width.

    Raises:
        PlansError: timm does not know it, it is no ViT, patches are not cut from the image itself, or its last
            normalisation is of the tokens' mean alone.
    """
    import timm  # takes seconds, and other planners do without
    from timm.layers import PatchEmbed

    try:
        with torch.device("meta"):  # no memory, no initialisation
            vit: Any = timm.create_model(timm_name(encoder), num_classes=0, dynamic_img_size=True)
        depth, width, patch = len(vit.blocks), int(vit.embed_dim), tuple(map(int, vit.patch_embed.patch_size))
        if type(vit.patch_embed) is not PatchEmbed:
            raise TypeError("a network of its own makes its patches")
        if isinstance(vit.norm, nn.Identity):
            raise TypeError("its last normalisation is of the tokens' mean and not of the tokens")
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        raise PlansError(
            f"{encoder} cannot be the encoder ({reason_of(error).rstrip('.')}); choose a ViT of timm such as "
            f"{ENCODER}, or {' or '.join(OTHERS)}."
        ) from error
    features, widths = DECODERS.get(width, (-(-width // 6), [max(width // part, 1) for part in (8, 4, 2, 1)]))
    arguments = {
        "encoder": encoder,
        "blocks": BLOCKS.get(depth, [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]),
        "features": features,
        "widths": widths,
        "strides": [list(patch), *[[1, 1]] * 3],
    }
    return {"network_class_name": NETWORK, "arch_kwargs": arguments, "_kw_requires_import": []}, (patch[0], patch[1])
