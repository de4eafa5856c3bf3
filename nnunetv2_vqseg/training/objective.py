"""The loss of one training iteration, term by term (Eq. 8 to 12)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_vqseg.config import VQSegConfig
from nnunetv2_vqseg.modules.losses.infonce import patch_contrastive_loss
from nnunetv2_vqseg.modules.losses.pseudo_label import PseudoLabelLoss
from nnunetv2_vqseg.modules.losses.reconstruction import reconstruction_loss
from nnunetv2_vqseg.modules.views.strong import UnlabeledView
from nnunetv2_vqseg.network import BatchLayout, VQSegOutput


class Views(NamedTuple):
    """The images of one step and what they are compared with.

    labeled: (B_l, C, H, W), and `target` as nnU-Net's loader gives it.
    strong: the strong view x_a of the unlabelled images (third term of Eq. 9); None where there is none.
    perturbed: the view whose features are perturbed or reconstructed (first and second term); None where there is none.
    """

    labeled: Tensor
    target: Tensor | list[Tensor]
    strong: UnlabeledView | None = None
    perturbed: UnlabeledView | None = None

    def batch(self) -> tuple[Tensor, BatchLayout]:
        """The student's one batch, cat(x_l, x_a, x_u), and how it is made up."""
        strong, perturbed = ([] if view is None else [view.images] for view in (self.strong, self.perturbed))
        layout = BatchLayout(len(self.labeled), sum(map(len, strong)), sum(map(len, perturbed)))
        return torch.cat([self.labeled, *strong, *perturbed]), layout


def ramp(progress: float, length: float) -> float:
    """Sigmoid ramp-up exp(-5 (1 - t/T)^2), from e^-5 to 1.

    Args:
        progress: share of the training that is over, in [0, 1].
        length: share of the training over which the ramp rises; 0 for no ramp.
    """
    if length <= 0 or progress >= length:
        return 1.0
    return math.exp(-5.0 * (1.0 - progress / length) ** 2)


@dataclass
class Objective:
    """Weighted sum of the loss terms (Eq. 10, 12 and Section 4.2).

    Args:
        config: the weights.
        supervised: nnU-Net's loss for the labelled part, (outputs, target) -> scalar.
        regions: labels are overlapping regions (sigmoid) instead of classes (softmax).
        standardize: images are not z-scored, and their reconstruction is one in units of their `channel_scale`.
        ddp: reduce mask counts and Dice sums over ranks.
    """

    config: VQSegConfig
    supervised: Callable[[Tensor | list[Tensor], Tensor | list[Tensor]], Tensor]
    regions: bool = False
    standardize: bool = False
    ddp: bool = False

    def __post_init__(self) -> None:
        self.pseudo = PseudoLabelLoss(
            use_dice=self.config.pseudo_loss == "ce_dice",
            threshold=self.config.confidence_threshold,
            regions=self.regions,
            ddp=self.ddp,
        )

    def terms(
        self,
        output: VQSegOutput,
        layout: BatchLayout,
        views: Views,
        progress: float,
        alignment_target: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, tuple[float, Tensor]]:
        """Every loss term with its weight; their weighted sum is the objective.

        Args:
            progress: share of the training that is over, for the ramp.
            alignment_target: foundation model features (layout.aligned, C', H', W') and the mask of patches that count.
        """
        config = self.config
        labeled_out, strong_out, perturbed_out = _split(output.segmentation, layout)
        terms: dict[str, tuple[float, Tensor]] = {"supervised": (1.0, self.supervised(labeled_out, views.target))}
        unlabeled = config.lambda_u * ramp(progress, config.ramp_up)
        strong, perturbed = views.strong, views.perturbed
        if strong is not None:
            terms["pseudo_strong"] = (
                unlabeled * config.weight_strong,
                self.pseudo(_finest(strong_out), strong.labels, strong.confidence),
            )
        if perturbed is not None and config.perturbation != "none":
            terms["pseudo_perturbed"] = (
                unlabeled * config.weight_perturbed,
                self.pseudo(_finest(perturbed_out), perturbed.labels, perturbed.confidence),
            )
        if output.reconstruction is not None:
            weight = config.weight_reconstruction
            terms["reconstruction"] = (
                weight,
                reconstruction_loss(views.labeled, output.reconstruction[: layout.labeled], self.standardize),
            )
            if perturbed is not None:
                terms["reconstruction_unlabeled"] = (
                    unlabeled * weight,
                    reconstruction_loss(perturbed.clean, output.reconstruction[layout.labeled :], self.standardize),
                )
        if output.adapted is not None and alignment_target is not None:
            features, mask = alignment_target
            terms["alignment"] = (
                config.lambda_a,
                patch_contrastive_loss(output.adapted, features, config.temperature, mask, ddp=self.ddp),
            )
        if output.vq_loss is not None and output.entropy is not None:
            terms["vq"] = (config.weight_vq, output.vq_loss)
            terms["entropy"] = (config.weight_entropy, output.entropy)
        if output.feature_loss is not None:
            terms["feature"] = (config.weight_vq, output.feature_loss)
        return terms


def _split(segmentation: Tensor | list[Tensor], layout: BatchLayout) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    outputs = segmentation if isinstance(segmentation, list) else [segmentation]
    parts = [output.split(list(layout)) for output in outputs]
    labeled, strong, perturbed = ([part[kind] for part in parts] for kind in range(3))
    return labeled, strong, perturbed


def _finest(outputs: list[Tensor]) -> Tensor:
    return outputs[0]
