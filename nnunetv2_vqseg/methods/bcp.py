"""BCP: bidirectional copy-paste (Bai et al., CVPR 2023, https://arxiv.org/abs/2305.00673).

First a training on boxes of labelled images in labelled images; then boxes of labelled images in unlabelled ones and
the other way round, where an EMA teacher labels the unlabelled part. Original code, from which the constants are:
https://github.com/DeepMed-Lab-ECNU/BCP (ACDC_BCP_train.py).

What differs, beside what docs/methods/README.md names for all: the loss is the original's with `supervised_loss`
"literature", else it has deep supervision and, unless `region_dice` says otherwise, nnU-Net's Dice; each pixel counts
once with its weight, background too, where the loss of the published figures scored background over the whole image
(mended in its code in October 2023); the second stage starts from the end of the first (weights and momentum), not from
its best checkpoint; the box may lie at the last rows too; of unequal or odd batches some images are used twice. Each
process draws its own box.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.methods.base import Batch, Context, Metrics, Terms, UnlabeledConfig, split
from nnunetv2_vqseg.methods.teacher import EMAConfig, EMAMethod, EMAWarmup, SavedNetwork
from nnunetv2_vqseg.modules.components import cleaned
from nnunetv2_vqseg.modules.losses.pseudo_label import pseudo_labels
from nnunetv2_vqseg.modules.losses.region import RegionLoss
from nnunetv2_vqseg.modules.targets import full_resolution, split_ignored
from nnunetv2_vqseg.modules.views.copy_paste import LabeledImages, both_ways, halves, paste, random_box
from nnunetv2_vqseg.networks.backbone import Logits


@dataclass(frozen=True)
class BCPConfig(EMAConfig, UnlabeledConfig):
    """Hyper-parameters of bidirectional copy-paste."""

    lambda_u: Annotated[float, Range(0, 1000), "weight of the unlabelled parts of the mixed images"] = 0.5
    ramp_up: Annotated[float, Range(0, 1), "share of the training over which it rises; 0: at once"] = 0.0
    ema_decay: Annotated[float, Range(0, 1), "decay of the teacher in the second stage"] = 0.99
    ema_warmup: EMAWarmup = 0.0
    saved_network: SavedNetwork = "student"
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
        own = config.supervised_loss
        dice = config.region_dice if own == "nnunet" else None if own == "ce" else "squared"
        self.region = RegionLoss(dice, context.regions, context.ddp, deep=own == "nnunet")

    @property
    def unlabeled_views(self) -> int:
        """None of its own: the student sees as many mixed images as there are labelled ones."""
        return 0

    def before_step(self, progress: float) -> None:
        """Which stage this is; the second one, once begun, goes on also where `num_epochs` was raised."""
        self.pretraining = self.pretraining and progress < self.config.pretrain_share

    def state(self) -> dict[str, Any]:
        """The teacher and the stage."""
        return {**super().state(), "pretraining": self.pretraining}

    def load_state(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore them."""
        super().load_state(state, strict)
        self.pretraining = state.get("pretraining", True)

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
        halved = zip(split(outputs, half, half), mix.labels.split(half), mix.known.split(half), strict=True)
        first, second = (self.region(own, labels, (known & box, known & ~box)) for own, labels, known in halved)
        return (first[0] + second[1]) / 2, (first[1] + second[0]) / 2
