"""What methods share in which strong views of unlabelled images learn hard labels: the views and the labels' loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from nnunetv2_vqseg.core.config import Config, Range
from nnunetv2_vqseg.methods.base import Context, Method, Metrics, UnlabeledConfig
from nnunetv2_vqseg.modules.losses.image_confidence import ImageConfidenceLoss
from nnunetv2_vqseg.modules.losses.pseudo_label import PseudoLabelLoss, kept_share, pseudo_labels
from nnunetv2_vqseg.modules.views.jitter import IntensityJitter
from nnunetv2_vqseg.modules.views.strong import UnlabeledView, strong_view

ConfidenceThreshold = Annotated[
    float,
    Range(0, 1),
    "teacher's probability under which a pixel is not sure and is left out (pseudo_loss image: only counted); 0: none",
]
CutMixProbability = Annotated[float, Range(0, 1), "share of the strong views that get a CutMix box [43]"]
CutMixArea = Annotated[tuple[float, float], Range(0, 1), "a box's share of the image"]
CutMixAspect = Annotated[tuple[float, float], Range(0.01, 100), "a box's height over its width"]


@dataclass(frozen=True)
class JitterConfig(Config):
    """The intensity jitter of strong views."""

    jitter_strength: Annotated[float, Range(0, 5), "scale of the intensity jitter's ranges"] = 1.0
    jitter_brightness: Annotated[float, Range(0, 10), "largest shift, in standard deviations"] = 0.5
    jitter_contrast: Annotated[float, Range(0, 10), "largest log of the factor about the mean"] = 0.5
    jitter_gamma: Annotated[float, Range(0, 10), "largest log of the exponent"] = 0.5
    jitter_blur: Annotated[float, Range(0, 20), "largest standard deviation of the blur, in pixels"] = 1.5
    jitter_noise: Annotated[float, Range(0, 10), "largest standard deviation of the noise, in those of the image"] = 0.2
    jitter_color_probability: Annotated[float, Range(0, 1), "chance of each of brightness, contrast and gamma"] = 0.8
    jitter_blur_probability: Annotated[float, Range(0, 1), "chance of blur"] = 0.5
    jitter_noise_probability: Annotated[float, Range(0, 1), "chance of noise"] = 0.5

    def jitter(self, z_scored: bool) -> IntensityJitter:
        """The strong view's intensity jitter."""
        names = ("brightness", "contrast", "gamma", "blur", "noise")
        ranges = {name: getattr(self, f"jitter_{name}") for name in names}
        chances = {f"{name}_probability": getattr(self, f"jitter_{name}_probability") for name in ("color", *names[3:])}
        return IntensityJitter(self.jitter_strength, **ranges, **chances, relative=not z_scored)


@dataclass(frozen=True)
class StrongViewConfig(JitterConfig, UnlabeledConfig):
    """Strong views and the loss of hard labels on them."""

    confidence_threshold: ConfidenceThreshold = 0.95
    cutmix_probability: CutMixProbability = 0.5
    cutmix_area: CutMixArea = (0.02, 0.4)
    cutmix_aspect: CutMixAspect = (0.3, 1 / 0.3)


S = TypeVar("S", bound=Any)


class StrongViewMethod(Method[S]):
    """A method in which strong views learn hard labels where those are sure; its configuration has a `pseudo_loss`."""

    panels: ClassVar = {"pseudo-labels": ("ramp", "confidence", "kept_share")}

    def __init__(self, config: S, context: Context) -> None:
        super().__init__(config, context)
        self.jitter = config.jitter(context.z_scored)
        threshold, regions, ddp = config.confidence_threshold, context.regions, context.ddp
        self.pseudo: Any = (
            ImageConfidenceLoss(threshold, ddp, regions)
            if config.pseudo_loss == "image"
            else PseudoLabelLoss(config.pseudo_loss == "ce_dice", threshold, regions, ddp)
        )

    @property
    def mixes_unlabeled(self) -> bool:
        """By CutMix."""
        return self.uses_unlabeled and self.config.cutmix_probability > 0

    @torch.no_grad()
    def hard_labels(self, logits: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """Hard labels and confidence of logits (B, K, ...), and their curves."""
        labels, confidence = pseudo_labels(logits, self.context.regions)
        kept = kept_share(confidence, self.config.confidence_threshold)
        return labels, confidence, {"confidence": confidence.mean(), "kept_share": kept}

    @torch.no_grad()
    def strong(self, weak: Tensor, labels: Tensor, confidence: Tensor) -> UnlabeledView:
        """A strong view with a jitter and a CutMix of its own."""
        config = self.config
        return strong_view(
            weak,
            labels,
            confidence,
            self.jitter,
            config.cutmix_probability,
            config.cutmix_area,
            config.cutmix_aspect,
            self.context.masked,
        )
