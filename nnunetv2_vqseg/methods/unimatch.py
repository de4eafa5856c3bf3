"""UniMatch, now called V1 (Yang et al., CVPR 2023, https://arxiv.org/abs/2208.09910), in its form for medical images.

Two strong views and the weak view with dropped features learn the network's own labels of the weak view. Original code,
from which the constants are: https://github.com/LiheYoung/UniMatch, more-scenarios/medical/unimatch.py.

What differs, beside what docs/methods/README.md names for all: the whole sum counts, not half of it. CutMix partners
are other images of the batch instead of a third loader's. Labels are from a pass of their own without a gradient:
without dropout inside its blocks and with instance normalisation the planned U-Net gives the same in training and
evaluation mode. The features of labelled images are not dropped, as the original does without using them. Strong views
have this package's jitter for z-scored images instead of color jitter and blur.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.methods.base import Batch, Context, Metrics, Terms, finest, split
from nnunetv2_vqseg.methods.strong_view import StrongViewConfig, StrongViewMethod
from nnunetv2_vqseg.modules.losses.squared_dice import squared_dice_loss
from nnunetv2_vqseg.modules.nd import channel_dropout
from nnunetv2_vqseg.modules.own_labels import own_outputs
from nnunetv2_vqseg.networks.planned import ChangedUNet


@dataclass(frozen=True)
class UniMatchConfig(StrongViewConfig):
    """Hyper-parameters of UniMatch."""

    lambda_u: Annotated[float, Range(0, 1000), "factor on the weights of all three unlabelled streams"] = 1.0
    ramp_up: Annotated[float, Range(0, 1), "share of the training over which it rises; 0: at once"] = 0.0
    pseudo_loss: Annotated[
        Literal["dice", "ce_dice", "ce"],
        "loss against the network's own labels; dice: with background, squares below, over all images",
    ] = "dice"
    weight_strong: Annotated[float, Range(0, 1000), "weight of each strong view"] = 0.25
    weight_perturbed: Annotated[float, Range(0, 1000), "weight of the weak view with dropped features"] = 0.5
    dropout_rate: Annotated[float, Range(0, 1), "channel dropout rate of all stages there"] = 0.5


class ChannelDropout(nn.Module):
    """Channel dropout of all stages, of the images from `first` on."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, maps: list[Tensor], first: int) -> list[Tensor]:
        return [torch.cat((features[:first], channel_dropout(features[first:], self.rate))) for features in maps]


class UniMatch(StrongViewMethod[UniMatchConfig]):
    """Strong views and dropped features learn the network's own labels."""

    Config = UniMatchConfig
    literature = (0.5, 0.5)
    is_static = True

    def __init__(self, config: UniMatchConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.pseudo_loss == "dice":
            self.pseudo = self._dice

    def training_network(self) -> nn.Module:
        """The planned U-Net with channel dropout between encoder and decoder."""
        return ChangedUNet(self.network(self.context.plan, self.config), ChannelDropout(self.config.dropout_rate))

    @property
    def unlabeled_views(self) -> int:
        """Both strong views, and the weak one with dropped features."""
        return 3

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """The labels' loss, and the own labels' on three streams."""
        assert batch.unlabeled is not None
        weak = batch.unlabeled
        labels, confidence, metrics = self.hard_labels(finest(own_outputs(self.student, weak)))
        views = [self.strong(weak, labels, confidence) for _ in range(2)]
        images = torch.cat((batch.labeled, *(view.images for view in views), weak))
        sizes = (len(batch.labeled), *[len(weak)] * 3)
        labeled, *strong, perturbed = split(self.student(images, len(images) - len(weak)), *sizes)
        first, second = (
            self.pseudo(finest(logits), view.labels, view.confidence)
            for logits, view in zip(strong, views, strict=True)
        )
        weight = self.unlabeled_weight(progress)
        return {
            "supervised": (1.0, self.supervised(labeled, batch.target)),
            "pseudo_first": (weight * self.config.weight_strong, first),
            "pseudo_second": (weight * self.config.weight_strong, second),
            "pseudo_perturbed": (
                weight * self.config.weight_perturbed,
                self.pseudo(finest(perturbed), labels, confidence),
            ),
        }, metrics

    def _dice(self, logits: Tensor, labels: Tensor, confidence: Tensor) -> Tensor:
        kept = confidence >= self.config.confidence_threshold
        return squared_dice_loss(logits, labels, kept, self.context.regions, self.context.ddp)
