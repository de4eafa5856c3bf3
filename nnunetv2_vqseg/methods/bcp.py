"""BCP: bidirectional copy-paste (Bai et al., CVPR 2023, https://arxiv.org/abs/2305.00673).

First a training on boxes of labelled images in labelled images; then boxes of labelled images in unlabelled ones and
the other way round, where an EMA teacher labels the unlabelled part. Original code, from which the constants are:
https://github.com/DeepMed-Lab-ECNU/BCP (ACDC_BCP_train.py).

What differs: nnU-Net's Dice (foreground, no squares) and cross entropy with deep supervision instead of the original's
at full resolution (`region_dice` has its Dice); each pixel counts once with its weight, background too, where the loss
of the published figures scored background over the whole image (mended in its code in October 2023); one training with
nnU-Net's optimiser and falling rate instead of two with a constant one, and the second stage starts from the end of the
first (weights and momentum), not from its best checkpoint; the teacher is in evaluation mode (the same with instance
normalisation); the box may lie at the last rows too; of unequal or odd batches some images are used twice. Each process
draws its own box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.methods.base import Batch, Context, Metrics, Terms, UnlabeledConfig, split
from nnunetv2_vqseg.methods.teacher import EMAConfig, EMAMethod
from nnunetv2_vqseg.modules.components import cleaned
from nnunetv2_vqseg.modules.losses.pseudo_label import pseudo_labels
from nnunetv2_vqseg.modules.losses.region import RegionLoss
from nnunetv2_vqseg.modules.targets import full_resolution, split_ignored
from nnunetv2_vqseg.modules.views.copy_paste import LabeledImages, both_ways, halves, paste, random_box
from nnunetv2_vqseg.networks.backbone import Logits


@dataclass(frozen=True)
class BCPConfig(EMAConfig, UnlabeledConfig):
    """Hyper-parameters of bidirectional copy-paste."""

    unlabeled_per_labeled: Annotated[float, Range(0.01, 100), "unlabelled images a labelled one"] = 1.0
    lambda_u: Annotated[float, Range(0, 1000), "weight of the unlabelled parts of the mixed images"] = 0.5
    ramp_up: Annotated[float, Range(0, 1), "share of the training over which it rises; 0: at once"] = 0.0
    ema_decay: Annotated[float, Range(0, 1), "decay of the teacher in the second stage"] = 0.99
    ema_warmup: Annotated[
        float, Range(0, 1000), "w of the teacher's decay min(1 - w / (t + w), ema_decay); 0: constant"
    ] = 0.0
    saved_network: Annotated[Literal["student", "teacher"], "which of both is validated, saved and predicts"] = (
        "student"
    )
    pretrain_share: Annotated[float, Range(0, 1), "share of the training on mixed labelled images alone"] = 0.25
    box_share: Annotated[float, Range(0.01, 1), "share of each side of the image that the box takes"] = 2 / 3
    largest_component: Annotated[
        bool, "keep the largest connected part of each class in the teacher's labels; false for scattered structures"
    ] = True
    region_dice: Annotated[
        Literal["nnunet", "squared"], "nnU-Net's Dice, or the original's with squares and background"
    ] = "nnunet"


class BCP(EMAMethod[BCPConfig]):
    """Learns images that are half labelled and half labelled by the teacher, mixed by one box."""

    Config = BCPConfig
    panels: ClassVar = {
        "pseudo-labels": ("ramp", "kept_by_component"),
        "foreground in pseudo-labels (share of pixels)": ("foreground",),
    }
    pretraining = True

    def __init__(self, config: BCPConfig, context: Context) -> None:
        super().__init__(config, context)
        dice = config.region_dice if config.supervised_loss == "nnunet" else None
        self.region = RegionLoss(dice, context.regions, context.ddp)

    def predictor(self) -> nn.Module:
        """The student, as in the original, or the teacher."""
        return self.main if self.config.saved_network == "student" else super().predictor()

    @property
    def unlabeled_views(self) -> int:
        """None of its own: the student sees as many mixed images as there are labelled ones."""
        return 0

    def before_step(self, progress: float) -> None:
        """Which stage this is."""
        self.pretraining = progress < self.config.pretrain_share

    def after_step(self) -> dict[str, float]:
        """The teacher is a copy in the first stage, and so at the start of the second; there it follows."""
        if not self.pretraining:
            return super().after_step()
        self.teacher.module.load_state_dict(self.main.state_dict())
        return {}

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """The labelled and the unlabelled parts of mixed images; in the first stage mixed labelled ones alone."""
        box = self.box(batch)
        if self.pretraining:
            mix = self.labeled_mix(batch, box)
            return {"supervised": (1.0, self.labeled_loss(self.student(mix.images), mix, box))}, {}
        mix, metrics = self.mix(batch, box)
        supervised, pseudo = self.losses(self.student(mix.images), mix, box)
        return {
            "supervised": (1.0, supervised),
            "pseudo": (self.unlabeled_weight(progress), pseudo),
        }, metrics

    def box(self, batch: Batch) -> Tensor:
        """The step's box."""
        return random_box(batch.labeled.shape[2:], self.config.box_share, batch.labeled.device)

    def labeled(self, batch: Batch) -> LabeledImages:
        """The labelled images."""
        target = full_resolution(batch.target)
        return LabeledImages(batch.labeled, *split_ignored(target, self.context.regions, self.context.ignore_label))

    @torch.no_grad()
    def teach(self, images: Tensor) -> tuple[LabeledImages, Metrics]:
        """Images (B, C, ...) with the teacher's labels, and their curves."""
        with self.context.autocast():
            labels, _ = pseudo_labels(self.teacher(images), self.context.regions)
        labels = labels if self.context.regions else labels[:, None]
        kept, share = cleaned(labels) if self.config.largest_component else (labels, labels.new_ones(()).float())
        metrics = {"foreground": (kept > 0).float().mean(), "kept_by_component": share}
        return LabeledImages(images, kept, torch.ones_like(kept[:, :1], dtype=torch.bool)), metrics

    def labeled_mix(self, batch: Batch, box: Tensor) -> LabeledImages:
        """Boxes of one half of the labelled images in the other half."""
        return paste(box, *halves(self.labeled(batch), len(batch.labeled)))

    def labeled_loss(self, outputs: Logits, mix: LabeledImages, box: Tensor) -> Tensor:
        """The mean of the inside's and the outside's loss."""
        return self.region(outputs, mix.labels, (mix.known & box, mix.known & ~box)).mean()

    def mix(self, batch: Batch, box: Tensor) -> tuple[LabeledImages, Metrics]:
        """Labelled boxes in unlabelled images, the first half; unlabelled boxes in labelled images, the second."""
        assert batch.unlabeled is not None
        taught, metrics = self.teach(batch.unlabeled)
        images = max(len(batch.labeled), len(batch.unlabeled))
        return both_ways(self.labeled(batch), taught, images, lambda inside: box), metrics

    def losses(self, outputs: Logits, mix: LabeledImages, box: Tensor) -> tuple[Tensor, Tensor]:
        """The labelled parts' loss and the unlabelled parts', each the mean over both ways of mixing."""
        half = len(mix.images) // 2
        first, second = (
            self.region(logits, labels, (known & box, known & ~box))
            for logits, labels, known in zip(
                split(outputs, half, half), mix.labels.split(half), mix.known.split(half), strict=True
            )
        )
        return (first[0] + second[1]) / 2, (first[1] + second[0]) / 2
