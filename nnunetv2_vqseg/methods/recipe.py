"""The settings that mean teacher and VQ-Seg have by default, as docs/results/recipe.md chose them."""

from __future__ import annotations

from dataclasses import dataclass

from nnunetv2_vqseg.methods.base import LambdaU, RampUp
from nnunetv2_vqseg.methods.strong_view import ConfidenceThreshold, CutMixArea, CutMixAspect, CutMixProbability
from nnunetv2_vqseg.methods.teacher import EMADecay, PseudoLoss, TeacherConfig


@dataclass(frozen=True)
class RecipeConfig(TeacherConfig):
    """ARCO's views and loss (https://arxiv.org/abs/2302.01735) without its contrast; the teacher is saved."""

    ema_decay: EMADecay = 0.99
    lambda_u: LambdaU = 1.0
    ramp_up: RampUp = 0.0
    pseudo_loss: PseudoLoss = "image"
    confidence_threshold: ConfidenceThreshold = 0.97
    cutmix_probability: CutMixProbability = 1.0
    cutmix_area: CutMixArea = (0.5, 0.5)
    cutmix_aspect: CutMixAspect = (0.5, 2.0)
