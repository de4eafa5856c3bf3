"""Mean teacher (Tarvainen and Valpola, NeurIPS 2017, https://arxiv.org/abs/1703.01780) with a strong view.

As in FixMatch and UniMatch the student learns hard labels of the teacher, where that is sure of them, on a strong view:
intensity jitter and CutMix. The original has the squared error of probabilities on another weak view instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.methods.base import Batch, Metrics, Terms, finest, split
from nnunetv2_vqseg.methods.teacher import TeacherConfig, TeacherMethod
from nnunetv2_vqseg.modules.nd import channel_dropout
from nnunetv2_vqseg.networks.planned import ChangedUNet, StageConfig, stage_of


class MeanTeacher(TeacherMethod[TeacherConfig]):
    """The student learns the teacher's labels on a strong view."""

    Config = TeacherConfig

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """The labels' loss, and the teacher's on the strong view (Eq. 9 of VQ-Seg, third term)."""
        assert batch.unlabeled is not None
        labels, confidence, metrics = self.teach(batch.unlabeled)
        view = self.strong(batch.unlabeled, labels, confidence)
        logits = self.student(torch.cat((batch.labeled, view.images)))
        labeled, strong = split(logits, len(batch.labeled), len(view.images))
        return {
            "supervised": (1.0, self.supervised(labeled, batch.target)),
            "pseudo_strong": (
                self.config.unlabeled_weight(progress),
                self.pseudo(finest(strong), view.labels, view.confidence),
            ),
        }, metrics


@dataclass(frozen=True)
class MeanTeacherDropoutConfig(StageConfig, TeacherConfig):
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


class MeanTeacherDropout(TeacherMethod[MeanTeacherDropoutConfig]):
    """Mean teacher in whose student feature dropout perturbs the strong view (Fig. 1's alternative to QPM)."""

    Config = MeanTeacherDropoutConfig

    def training_network(self) -> nn.Module:
        """The planned U-Net with dropout at one stage."""
        plan, config = self.context.plan, self.config
        unet = self.network(plan, config)
        return ChangedUNet(unet, StageDropout(config.dropout_rate), stage_of(unet, plan, config))

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """As the mean teacher's, with the strong view's features dropped."""
        assert batch.unlabeled is not None
        labels, confidence, metrics = self.teach(batch.unlabeled)
        view = self.strong(batch.unlabeled, labels, confidence)
        first = len(batch.labeled)
        labeled, perturbed = split(
            self.student(torch.cat((batch.labeled, view.images)), first), first, len(view.images)
        )
        return {
            "supervised": (1.0, self.supervised(labeled, batch.target)),
            "pseudo_perturbed": (
                self.config.unlabeled_weight(progress),
                self.pseudo(finest(perturbed), view.labels, view.confidence),
            ),
        }, metrics
