"""What methods with an EMA teacher share: the teacher, its pseudo-labels, and the views that learn them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nnunetv2_vqseg.core.config import Config, Range
from nnunetv2_vqseg.methods.base import (
    Batch,
    CommonConfig,
    Context,
    Loss,
    Method,
    Metrics,
    UnlabeledConfig,
    switch_deep_supervision,
)
from nnunetv2_vqseg.modules.ema import build_teacher, unwrap, update_teacher
from nnunetv2_vqseg.modules.losses.pseudo_label import PseudoLabelLoss, kept_share, pseudo_labels
from nnunetv2_vqseg.modules.views.jitter import IntensityJitter
from nnunetv2_vqseg.modules.views.strong import UnlabeledView, strong_view
from nnunetv2_vqseg.networks.backbone import Logits


@dataclass(frozen=True)
class EMAConfig(Config):
    """The EMA of the weights."""

    ema_decay: Annotated[float, Range(0, 1), "largest decay of the EMA teacher, alpha (4.2)"] = 0.996
    ema_warmup: Annotated[
        float,
        Range(1, 1000),
        "w of the teacher's decay min(1 - w / (t + w), alpha): at first it follows the last 1/w of the steps",
    ] = 10.0


@dataclass(frozen=True)
class SupervisedEMAConfig(EMAConfig, CommonConfig):
    """Supervised training whose EMA is saved."""


@dataclass(frozen=True)
class TeacherConfig(EMAConfig, UnlabeledConfig):
    """A teacher whose labels a strong view of unlabelled images learns."""

    pseudo_loss: Annotated[Literal["ce_dice", "ce"], "loss against the teacher's labels (Eq. 9)"] = "ce_dice"
    confidence_threshold: Annotated[
        float, Range(0, 1), "teacher's probability under which a pixel is left out; 0: none"
    ] = 0.95
    jitter_strength: Annotated[float, Range(0, 5), "scale of the intensity jitter's ranges"] = 1.0
    jitter_brightness: Annotated[float, Range(0, 10), "largest shift, in standard deviations"] = 0.5
    jitter_contrast: Annotated[float, Range(0, 10), "largest log of the factor about the mean"] = 0.5
    jitter_gamma: Annotated[float, Range(0, 10), "largest log of the exponent"] = 0.5
    jitter_blur: Annotated[float, Range(0, 20), "largest standard deviation of the blur, in pixels"] = 1.5
    jitter_noise: Annotated[float, Range(0, 10), "largest standard deviation of the noise, in those of the image"] = 0.2
    jitter_color_probability: Annotated[float, Range(0, 1), "chance of each of brightness, contrast and gamma"] = 0.8
    jitter_blur_probability: Annotated[float, Range(0, 1), "chance of blur"] = 0.5
    jitter_noise_probability: Annotated[float, Range(0, 1), "chance of noise"] = 0.5
    cutmix_probability: Annotated[float, Range(0, 1), "share of the strong views that get a CutMix box [43]"] = 0.5
    cutmix_area: Annotated[tuple[float, float], Range(0, 1), "a box's share of the image"] = (0.02, 0.4)
    cutmix_aspect: Annotated[tuple[float, float], Range(0.01, 100), "a box's height over its width"] = (0.3, 1 / 0.3)

    def jitter(self, z_scored: bool) -> IntensityJitter:
        """The strong view's intensity jitter."""
        names = ("brightness", "contrast", "gamma", "blur", "noise")
        ranges = {name: getattr(self, f"jitter_{name}") for name in names}
        chances = {f"{name}_probability": getattr(self, f"jitter_{name}_probability") for name in ("color", *names[3:])}
        return IntensityJitter(self.jitter_strength, **ranges, **chances, relative=not z_scored)


E = TypeVar("E", bound=Any)


class EMAMethod(Method[E]):
    """A method whose teacher, an EMA of the student, is validated, saved and predicts."""

    teacher: AveragedModel

    def begin(self, student: nn.Module, supervised: Loss) -> None:
        """The teacher begins as a copy of the student."""
        super().begin(student, supervised)
        self.teacher = build_teacher(unwrap(student), self.config.ema_decay, self.config.ema_warmup)
        switch_deep_supervision(self.teacher, False)

    def start(self, batches: Iterator[Batch]) -> None:
        """The teacher takes over the student's first values, which may be pretrained."""
        self.teacher.module.load_state_dict(unwrap(self.student).state_dict())

    def after_step(self) -> dict[str, float]:
        """One EMA step."""
        update_teacher(self.teacher, unwrap(self.student))
        return {}

    def predictor(self) -> nn.Module:
        """The teacher."""
        return self.teacher.module

    def state(self) -> dict[str, Any]:
        """The teacher's weights and its count of updates."""
        return {"teacher": self.teacher.state_dict()}

    def load_state(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore the teacher."""
        self.teacher.load_state_dict(state["teacher"], strict=strict)

    def preview(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Logits]]:
        """The teacher beside the student."""
        return {}, {"teacher": self.teacher(images), "student": unwrap(self.student)(images)}


class TeacherMethod(EMAMethod[E]):
    """A method that learns from the labels which its teacher gives to a weak view of unlabelled images."""

    panels: ClassVar = {"pseudo-labels": ("ramp", "confidence", "kept_share")}

    def __init__(self, config: E, context: Context) -> None:
        super().__init__(config, context)
        self.jitter = config.jitter(context.z_scored)
        self.pseudo = PseudoLabelLoss(
            use_dice=config.pseudo_loss == "ce_dice",
            threshold=config.confidence_threshold,
            regions=context.regions,
            ddp=context.ddp,
        )

    @property
    def mixes_unlabeled(self) -> bool:
        """By CutMix."""
        return self.uses_unlabeled and self.config.cutmix_probability > 0

    @torch.no_grad()
    def teach(self, weak: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """The teacher's labels of a weak view (B, C, ...) and its confidence, and their curves."""
        with self.context.autocast():
            logits = self.teacher(weak)
        labels, confidence = pseudo_labels(logits.float(), self.context.regions)
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
