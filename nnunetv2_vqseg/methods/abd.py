"""ABD: adaptive bidirectional displacement (Chi et al., CVPR 2024, https://arxiv.org/abs/2405.00378), on BCP.

Two networks: one learns BCP's mixed images, the other the same mixes of strong views. Each learns the other's labels of
its mixes, and of further images in which the least sure patch of one view is replaced by a sure one of the other
(ABD-R). This is the stronger of its two forms; the other one is `abd_cross_teaching.py`. Original code, from which the
constants are: https://github.com/chy-upc/ABD (train_ACDC_BCP.py, displacement.py).

What differs, beside what docs/methods/README.md names for all: all that BCP's file names, of which the background's
score is one: this code still has it over the whole image; two networks that both learn the first stage from weights of
their own instead of two copies of one; one optimiser for both; this package's jitter, then cutout with the smallest
and largest value of the channel, instead of a jitter of 0.8 on every image and cutout with 0 and 1; a patch of an axis
that four does not divide is rounded down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import Batch, Context, Metrics, Terms, finest
from nnunetv2_vqseg.methods.bcp import BCP, BCPConfig
from nnunetv2_vqseg.methods.pair import PairMethod
from nnunetv2_vqseg.methods.strong_view import JitterConfig
from nnunetv2_vqseg.modules.losses.pseudo_label import pseudo_labels
from nnunetv2_vqseg.modules.losses.squared_dice import squared_dice_loss
from nnunetv2_vqseg.modules.targets import full_resolution, split_ignored
from nnunetv2_vqseg.modules.views.cutmix import AREA, ASPECT
from nnunetv2_vqseg.modules.views.cutout import cutout
from nnunetv2_vqseg.modules.views.displacement import displace_unlabeled
from nnunetv2_vqseg.modules.views.strong import jittered
from nnunetv2_vqseg.networks.backbone import Logits


@dataclass(frozen=True)
class DisplacementConfig(JitterConfig):
    """The strong view and the patches of both forms."""

    cutout_probability: Annotated[float, Range(0, 1), "share of the strong views that get a box of noise"] = 0.5
    cutout_area: Annotated[tuple[float, float], Range(0, 1), "the box's share of the image"] = AREA
    cutout_aspect: Annotated[tuple[float, float], Range(0.01, 100), "the box's height over its width"] = ASPECT
    patches_per_axis: Annotated[int, Range(2, 64), "patches that an axis of the image is divided into"] = 4
    sure_patches: Annotated[int, Range(1, 4), "of so many surest patches the most alike one replaces another"] = 4
    divergence_share: Annotated[
        float, Range(0, 1), "share of the images in which it is chosen so; in the others it is the surest"
    ] = 0.5


@dataclass(frozen=True)
class ABDConfig(DisplacementConfig, BCPConfig):
    """Hyper-parameters of displacement on BCP."""

    weight_consistency: Annotated[
        float, Range(0, 1000), "weight of each network's Dice against the other's labels, of mixed and displaced images"
    ] = 1.0


D = TypeVar("D", bound=Any)


class DisplacementMethod(PairMethod[D]):
    """A method whose first network sees weak views and whose second one strong views, with patches moved between."""

    def __init__(self, config: D, context: Context) -> None:
        super().__init__(config, context)
        self.jitter = config.jitter(context.z_scored)
        if min(context.plan.patch_size) < config.patches_per_axis:
            raise ConfigError(
                f"A patch of {'x'.join(map(str, context.plan.patch_size))} pixels cannot be divided into "
                f"{config.patches_per_axis} parts along each axis; lower vqseg.patches_per_axis, or use "
                f"nnUNetTrainerBCP, which moves no patches."
            )

    @torch.no_grad()
    def strong(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Strong views of images (B, C, ...), and where a box was cut out of them, (B, 1, ...) bool."""
        config = self.config
        changed = jittered(images, self.jitter, self.context.masked)
        return cutout(changed, config.cutout_probability, config.cutout_area, config.cutout_aspect)

    def strong_batch(self, batch: Batch) -> Batch:
        """Strong views with labels at full resolution, background where something was cut out that had a label."""
        assert batch.unlabeled is not None
        labeled, boxes = self.strong(batch.labeled)
        target, context = full_resolution(batch.target), self.context
        known = split_ignored(target, context.regions, context.ignore_label)[1]
        return Batch(labeled, target.masked_fill(boxes & known, 0), self.strong(batch.unlabeled)[0])

    @torch.no_grad()
    def displaced(self, weak: Tensor, strong: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Both views after ABD-R, one after the other, by the first network's logits of `weak` and the second's."""
        config = self.config
        by_divergence = torch.rand(len(weak), device=weak.device) < config.divergence_share
        patches = (config.patches_per_axis, config.sure_patches)
        moves = displace_unlabeled(first, second, by_divergence, *patches, self.context.regions)
        return torch.cat(moves.apply(weak, strong))

    def mutual(self, outputs: tuple[Logits, Logits]) -> tuple[Tensor, Tensor]:
        """Each network's Dice loss, at full resolution, against the other's labels."""
        first, second = map(finest, outputs)
        regions, ddp = self.context.regions, self.context.ddp
        return (
            squared_dice_loss(first, pseudo_labels(second, regions)[0], regions=regions, ddp=ddp),
            squared_dice_loss(second, pseudo_labels(first, regions)[0], regions=regions, ddp=ddp),
        )


class ABD(DisplacementMethod[ABDConfig], BCP):
    """BCP of a weak and a strong view by two networks that agree on mixed images and on displaced ones."""

    Config = ABDConfig
    panels: ClassVar = BCP.panels

    @property
    def unlabeled_views(self) -> int:
        """A step has six times as many images as labelled ones: weak, strong, and both displaced in either network."""
        return 5

    def validated(self) -> dict[str, nn.Module]:
        """The second network beside BCP's teacher and student, which is the first."""
        return {**BCP.validated(self), "second": self.pair.second}

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """BCP's terms of both networks, and each one's Dice against the other's labels."""
        box = self.box(batch)
        if self.pretraining:
            mix = self.labeled_mix(batch, box)
            first, second = (self.labeled_loss(outputs, mix, box) for outputs in self.student(mix.images))
            return {"supervised": (1.0, first), "supervised_second": (1.0, second)}, {}
        weak, metrics = self.mix(batch, box)
        strong, _ = self.mix(self.strong_batch(batch), box)
        outputs = self.student(weak.images, strong.images)
        displaced = self.displaced(weak.images, strong.images, *map(finest, outputs))
        terms: Terms = {}
        parts = zip(("", "_second"), outputs, (weak, strong), strict=True)
        weight, agreement = self.unlabeled_weight(progress), self.unlabeled_factor * self.config.weight_consistency
        for name, own, mix in parts:
            supervised, pseudo = self.losses(own, mix, box)
            terms |= {f"supervised{name}": (1.0, supervised), f"pseudo{name}": (weight, pseudo)}
        for name, pair in (("consistency", outputs), ("displaced", self.student(displaced))):
            first, second = self.mutual(pair)
            terms |= {name: (agreement, first), f"{name}_second": (agreement, second)}
        return terms, metrics
