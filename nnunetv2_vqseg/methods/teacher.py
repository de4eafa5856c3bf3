"""What methods with an EMA teacher share: the teacher and its pseudo-labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nnunetv2_vqseg.core.config import Config, Range
from nnunetv2_vqseg.methods.base import Batch, CommonConfig, Loss, Method, Metrics, WeightDecay, switch_deep_supervision
from nnunetv2_vqseg.methods.strong_view import StrongViewConfig, StrongViewMethod
from nnunetv2_vqseg.modules.ema import build_teacher, update_teacher
from nnunetv2_vqseg.modules.fitting import load_fitting
from nnunetv2_vqseg.networks.backbone import Logits

SavedNetwork = Annotated[Literal["student", "teacher"], "which of both is validated, saved and predicts"]
EMAWarmup = Annotated[
    float,
    Range(0, 1000),
    "w of the teacher's decay min(1 - w / (t + w), alpha): at first it follows the last 1/w of the steps; 0: constant",
]

PseudoLoss = Annotated[
    Literal["ce_dice", "ce", "nnunet", "image"],
    "loss against the teacher's labels (Eq. 9); nnunet: nnU-Net's own at every scale of deep supervision; image: "
    "cross entropy of all pixels, weighted by their image's share of sure ones (ReCo, ARCO)",
]
EMADecay = Annotated[float, Range(0, 1), "largest decay of the EMA teacher, alpha (4.2: 0.996)"]


@dataclass(frozen=True)
class EMAConfig(Config):
    """The EMA of the weights."""

    ema_decay: EMADecay = 0.996
    ema_warmup: EMAWarmup = 10.0


@dataclass(frozen=True)
class SupervisedEMAConfig(EMAConfig, CommonConfig):
    """Supervised training whose EMA is saved: the mean teacher's settings without its unlabelled images."""

    weight_decay: WeightDecay = 0.003
    ema_decay: EMADecay = 0.99


@dataclass(frozen=True)
class TeacherConfig(EMAConfig, StrongViewConfig):
    """A teacher whose labels a strong view of unlabelled images learns."""

    pseudo_loss: PseudoLoss = "ce_dice"


E = TypeVar("E", bound=Any)


class EMAMethod(Method[E]):
    """A method whose teacher, an EMA of the student, is validated, saved and predicts.

    Where its configuration has a `saved_network`, that says whether the student does instead.
    """

    teacher: AveragedModel

    @property
    def averaged(self) -> nn.Module:
        """What the teacher is the average of."""
        return self.main

    def begin(self, student: nn.Module, supervised: Loss) -> None:
        """The teacher begins as a copy of the student."""
        super().begin(student, supervised)
        self.teacher = build_teacher(self.averaged, self.config.ema_decay, self.config.ema_warmup)
        switch_deep_supervision(self.teacher, False)

    def start(self, batches: Iterator[Batch]) -> None:
        """The teacher takes over the student's first values, which may be pretrained."""
        self.teacher.module.load_state_dict(self.averaged.state_dict())

    def after_step(self) -> dict[str, float]:
        """One EMA step."""
        update_teacher(self.teacher, self.averaged)
        return {}

    def predictor(self) -> nn.Module:
        """The teacher, or the student."""
        return self.main if getattr(self.config, "saved_network", "teacher") == "student" else self.teacher.module

    def validated(self) -> dict[str, nn.Module]:
        """The teacher and the student."""
        return {"teacher": self.teacher.module, "student": self.main}

    def state(self) -> dict[str, Any]:
        """The teacher's weights and its count of updates."""
        return {"teacher": self.teacher.state_dict()}

    def load_state(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore the teacher."""
        load_fitting(self.teacher, state["teacher"], strict)

    def preview(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Logits]]:
        """The teacher beside the student."""
        return {}, {"teacher": self.teacher(images), "student": self.main(images)}


class TeacherMethod(StrongViewMethod[E], EMAMethod[E]):
    """A method that learns from the labels which its teacher gives to a weak view of unlabelled images."""

    @torch.no_grad()
    def teach(self, weak: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """The teacher's labels of a weak view (B, C, ...) and its confidence, and their curves."""
        with self.context.autocast():
            logits = self.teacher_logits(weak)
        return self.hard_labels(logits)

    def teacher_logits(self, weak: Tensor) -> Tensor:
        """What the teacher says of a weak view, (B, K, ...)."""
        return self.teacher(weak)
