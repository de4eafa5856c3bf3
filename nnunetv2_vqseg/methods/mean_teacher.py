"""Mean teacher (Tarvainen and Valpola, NeurIPS 2017, https://arxiv.org/abs/1703.01780) with a strong view.

As in FixMatch and UniMatch the student learns hard labels of the teacher on a strong view, intensity jitter and
CutMix. As in ReCo and ARCO (https://arxiv.org/abs/2302.01735) it learns all pixels, each image weighs as much as its
share of pixels of which the teacher is sure, and CutMix exchanges half of every image; what that is worth is in
docs/results/recipe.md. The original has the squared error of probabilities on another weak view instead. What can be
changed about it is in `taught_views.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.methods.base import Batch, Metrics, Terms, split
from nnunetv2_vqseg.methods.taught_views import TaughtViewsConfig, TaughtViewsMethod
from nnunetv2_vqseg.modules.nd import channel_dropout
from nnunetv2_vqseg.networks.backbone import Logits
from nnunetv2_vqseg.networks.planned import ChangedUNet, StageConfig, stage_of


@dataclass(frozen=True)
class MeanTeacherConfig(TaughtViewsConfig):
    """Hyper-parameters of the mean teacher."""

    strong_view_count: Annotated[
        int, Range(1, 16), "strong views of each unlabelled image, whose losses are averaged (UniMatch: 2)"
    ] = 1


T = TypeVar("T", bound=Any)


class _MeanTeacher(TaughtViewsMethod[T]):
    term: ClassVar[str]
    """Name of the unlabelled loss."""

    @property
    def unlabeled_views(self) -> int:
        """Views of each unlabelled image that pass the student in a step."""
        return self.config.strong_view_count

    def see(self, images: Tensor, labeled: int) -> Logits:
        """The student's logits of labelled images and, after them, strong views."""
        return self.student(images)

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """The labels' loss, and the teacher's on the strong views (Eq. 9 of VQ-Seg, third term)."""
        assert batch.unlabeled is not None
        labels, confidence, metrics = self.teach(batch.unlabeled)
        views = [self.view(batch, labels, confidence) for _ in range(self.config.strong_view_count)]
        images = [batch.labeled, *(view.images for view in views)]
        labeled, *strong = split(self.see(torch.cat(images), len(batch.labeled)), *map(len, images))
        losses = [self.learn(outputs, view) for outputs, view in zip(strong, views, strict=True)]
        return {
            "supervised": (1.0, self.supervised(labeled, batch.target)),
            self.term: (self.unlabeled_weight(progress), torch.stack(losses).mean()),
        }, metrics


class MeanTeacher(_MeanTeacher[MeanTeacherConfig]):
    """The student learns the teacher's labels on a strong view."""

    Config = MeanTeacherConfig
    term = "pseudo_strong"


@dataclass(frozen=True)
class MeanTeacherDropoutConfig(StageConfig, MeanTeacherConfig):
    """A mean teacher with dropped features."""

    dropout_rate: Annotated[float, Range(0, 1), "channel dropout rate on the strong view (VQ-Seg, Fig. 1)"] = 0.5


class StageDropout(nn.Module):
    """Channel dropout at the deepest stage it is given, of the images from `first` on."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, maps: list[Tensor], first: int) -> list[Tensor]:
        z = maps[-1]
        return [*maps[:-1], torch.cat((z[:first], channel_dropout(z[first:], self.rate)))]


class MeanTeacherDropout(_MeanTeacher[MeanTeacherDropoutConfig]):
    """Mean teacher in whose student feature dropout perturbs the strong view (Fig. 1's alternative to QPM)."""

    Config = MeanTeacherDropoutConfig
    term = "pseudo_perturbed"

    def training_network(self) -> nn.Module:
        """The planned U-Net with dropout at one stage."""
        plan, config = self.context.plan, self.config
        unet = self.network(plan, config)
        return ChangedUNet(unet, StageDropout(config.dropout_rate), stage_of(unet, plan, config))

    def see(self, images: Tensor, labeled: int) -> Logits:
        """With the strong views' features dropped."""
        return self.student(images, labeled)
