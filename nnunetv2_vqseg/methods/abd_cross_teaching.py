"""ABD with cross teaching (Chi et al., CVPR 2024, https://arxiv.org/abs/2405.00378), without a teacher and without BCP.

Two networks, one for weak and one for strong views, learn each other's labels of unlabelled images and of views that
exchanged patches (ABD-R); labelled views exchange their surest for the other's least sure patch, with its labels
(ABD-I). Original code, from which the constants are: https://github.com/chy-upc/ABD (train_ACDC_Cross_Teaching.py).

What differs, beside what docs/methods/README.md names for all: a second planned U-Net instead of a Swin-Unet that was
trained on ImageNet; one optimiser for both networks; strong views and patches as in `abd.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.methods.abd import DisplacementConfig, DisplacementMethod
from nnunetv2_vqseg.methods.base import Batch, Metrics, Terms, UnlabeledConfig, finest, split
from nnunetv2_vqseg.modules.losses.pseudo_label import pseudo_labels
from nnunetv2_vqseg.modules.targets import at_scales, full_resolution
from nnunetv2_vqseg.modules.views.displacement import displace_labeled


@dataclass(frozen=True)
class ABDCrossTeachingConfig(DisplacementConfig, UnlabeledConfig):
    """Hyper-parameters of displacement with cross teaching."""

    lambda_u: Annotated[float, Range(0, 1000), "weight of each network's loss against the other's labels"] = 0.1
    ramp_up: Annotated[float, Range(0, 1), "share of the training over which it rises; 0: at once"] = 1.0
    divergence_share: Annotated[
        float, Range(0, 1), "share of the images in which it is chosen so; in the others it is the surest"
    ] = 1.0
    weight_displaced_labeled: Annotated[float, Range(0, 1000), "weight of labelled images with moved patches"] = 2.0
    displaced_labeled_until: Annotated[float, Range(0, 1), "share of the training in which there are any"] = 2 / 3
    displaced_labeled_share: Annotated[float, Range(0, 1), "share of the labelled images in which patches move"] = 0.5


class ABDCrossTeaching(DisplacementMethod[ABDCrossTeachingConfig]):
    """A network for weak and one for strong views learn each other's labels, also where patches have moved."""

    Config = ABDCrossTeachingConfig
    literature = (0.5, 0.5)
    panels: ClassVar = {"pseudo-labels": ("ramp", "agreement")}

    @property
    def unlabeled_views(self) -> int:
        """Each network sees its own view and both displaced ones."""
        return 6

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """Each network's loss on its view and on displaced ones, against labels and against the other network's."""
        strong = self.strong_batch(batch)
        assert batch.unlabeled is not None
        assert strong.unlabeled is not None
        sizes = (len(batch.labeled), len(batch.unlabeled))
        views = torch.cat((batch.labeled, batch.unlabeled)), torch.cat((strong.labeled, strong.unlabeled))
        (first, own), (second, other) = (split(logits, *sizes) for logits in self.student(*views))
        moved = [self.displaced(batch.unlabeled, strong.unlabeled, finest(own), finest(other))]
        target: Tensor | None = None
        if progress < self.config.displaced_labeled_until:
            images, target = self.displaced_labeled(batch, strong, finest(first), finest(second))
            moved.append(images)
        again = [split(logits, *map(len, moved)) for logits in self.student(torch.cat(moved))]
        weight = self.unlabeled_weight(progress)
        consistency, displaced = self.mutual((own, other)), self.mutual((again[0][0], again[1][0]))
        targets = (batch.target, at_scales(full_resolution(strong.target), second))
        terms: Terms = {}
        for number, name in enumerate(("", "_second")):
            terms[f"supervised{name}"] = (1.0, self.supervised((first, second)[number], targets[number]))
            terms[f"consistency{name}"] = (weight, consistency[number])
            terms[f"displaced{name}"] = (weight, displaced[number])
            if target is not None:
                loss = self.supervised(again[number][1], at_scales(target, again[number][1]))
                terms[f"displaced_labeled{name}"] = (self.config.weight_displaced_labeled, loss)
        labels = [pseudo_labels(finest(logits), self.context.regions)[0] for logits in (own, other)]
        return terms, {"agreement": (labels[0] == labels[1]).float().mean()}

    @torch.no_grad()
    def displaced_labeled(self, weak: Batch, strong: Batch, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Both labelled views after ABD-I, one after the other, and their labels at full resolution."""
        config = self.config
        chosen = torch.rand(len(first), device=first.device) < config.displaced_labeled_share
        moves = displace_labeled(first, second, chosen, config.patches_per_axis, self.context.regions)
        targets = (full_resolution(weak.target), full_resolution(strong.target))
        return torch.cat(moves.apply(weak.labeled, strong.labeled)), torch.cat(moves.apply(*targets))
