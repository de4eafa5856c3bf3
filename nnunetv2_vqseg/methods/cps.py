"""Cross pseudo supervision (Chen et al., CVPR 2021, https://arxiv.org/abs/2106.01226).

Two networks of one architecture with weights of their own; each learns the other's hard labels. Original code:
https://github.com/charlesCXK/TorchSemiSeg; its form for ACDC, from which the constants are: SSL4MIS,
train_cross_pseudo_supervision_2D.py.

What differs, beside what docs/methods/README.md names for all: one optimiser for both networks; no CutMix (an option
of the original). From the first form SSL4MIS's differs, and so this: labelled images have no pseudo-labels, the weight
is 0.1 with a ramp instead of 1.5 or 6 without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.methods.base import Batch, Context, Metrics, Terms, UnlabeledConfig, finest, split
from nnunetv2_vqseg.methods.pair import PairMethod
from nnunetv2_vqseg.modules.losses.pseudo_label import PseudoLabelLoss, pseudo_labels


@dataclass(frozen=True)
class CPSConfig(UnlabeledConfig):
    """Hyper-parameters of cross pseudo supervision."""

    lambda_u: Annotated[float, Range(0, 1000), "weight of each network's loss against the other's labels"] = 0.1
    ramp_up: Annotated[float, Range(0, 1), "share of the training over which it rises; 0: at once"] = 1.0
    pseudo_loss: Annotated[Literal["ce", "ce_dice"], "loss against the other network's labels"] = "ce"


class CPS(PairMethod[CPSConfig]):
    """Each of two networks learns the other's labels; the first one is saved and predicts."""

    Config = CPSConfig
    literature = (0.5, 0.5)
    is_static = True
    panels: ClassVar = {"pseudo-labels": ("ramp", "agreement")}

    def __init__(self, config: CPSConfig, context: Context) -> None:
        super().__init__(config, context)
        dice = config.pseudo_loss == "ce_dice"
        self.pseudo = PseudoLabelLoss(use_dice=dice, threshold=0.0, regions=context.regions, ddp=context.ddp)

    @property
    def unlabeled_views(self) -> int:
        """Each network sees every image once."""
        return 2

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """Both networks' supervised loss, and each one's against the other's labels."""
        assert batch.unlabeled is not None
        sizes = (len(batch.labeled), len(batch.unlabeled))
        first, second = (split(logits, *sizes) for logits in self.student(torch.cat((batch.labeled, batch.unlabeled))))
        own, other = finest(first[1]), finest(second[1])
        own_labels, other_labels = (pseudo_labels(logits, self.context.regions) for logits in (own, other))
        weight = self.unlabeled_weight(progress)
        return {
            "supervised": (1.0, self.supervised(first[0], batch.target)),
            "supervised_second": (1.0, self.supervised(second[0], batch.target)),
            "pseudo": (weight, self.pseudo(own, *other_labels)),
            "pseudo_second": (weight, self.pseudo(other, *own_labels)),
        }, {"agreement": (own_labels[0] == other_labels[0]).float().mean()}
