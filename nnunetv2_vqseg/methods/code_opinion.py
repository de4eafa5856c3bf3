"""Codes as a second opinion on the teacher's labels (`code_agreement`); not of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from nnunetv2_vqseg.core.errors import ConfigError
from nnunetv2_vqseg.methods.base import Batch, Context, Metrics, finest
from nnunetv2_vqseg.methods.taught_views import TaughtViewsMethod
from nnunetv2_vqseg.modules.targets import full_resolution, split_ignored
from nnunetv2_vqseg.modules.vq.code_classes import CodeClasses
from nnunetv2_vqseg.networks.vq import VQSegNet

E = TypeVar("E", bound=Any)


class CodeOpinionMethod(TaughtViewsMethod[E]):
    """A method whose network has codes, which are asked about the teacher's labels where the configuration says so."""

    panels: ClassVar = {
        **TaughtViewsMethod.panels,
        "codes as a second opinion": ("kept_by_codes", "unknown_codes"),
    }

    def __init__(self, config: E, context: Context) -> None:
        super().__init__(config, context)
        self.code_classes: CodeClasses | None = None
        self._labeled: tuple[Tensor, Tensor, Tensor] | None = None
        self._weak_codes: Tensor | None = None
        if config.code_agreement > 0:
            if context.regions:
                raise ConfigError(
                    "vqseg.code_agreement > 0 is for classes, of which a pixel has one, and these labels are regions; "
                    "set it to 0."
                )
            classes = context.plan.heads
            self.code_classes = CodeClasses(config.num_codes, classes, config.code_momentum, context.device)

    def teacher_logits(self, weak: Tensor) -> Tensor:
        """What the teacher says; its codes are kept for `teach` where those are asked."""
        if self.code_classes is None:
            return super().teacher_logits(weak)
        teacher = self.teacher.module
        assert isinstance(teacher, VQSegNet)
        logits, self._weak_codes = teacher.segment_with_codes(weak)
        return finest(logits)

    @torch.no_grad()
    def teach(self, weak: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """As the mean teacher's, with confidence -1 where the codes do not bear the labels out."""
        labels, confidence, metrics = super().teach(weak)
        if self.code_classes is not None and self._weak_codes is not None:
            agrees, unknown = self.code_classes.judge(labels, self._weak_codes, self.config.code_agreement)
            confidence = torch.where(agrees, confidence, -1.0)
            metrics |= {"kept_by_codes": agrees.float().mean(), "unknown_codes": unknown.float().mean()}
        return labels, confidence, metrics

    def remember_labeled(self, indices: Tensor, batch: Batch) -> None:
        """Codes (B, ...) of the labelled images, which `count_labeled` counts after the step."""
        if self.code_classes is not None:
            labels, known = split_ignored(full_resolution(batch.target), ignore_label=self.context.ignore_label)
            self._labeled = indices, labels, known

    def count_labeled(self) -> None:
        """Take them in; every process must call this."""
        if self.code_classes is not None and self._labeled is not None:
            self.code_classes.update(*self._labeled)

    def state(self) -> dict[str, Any]:
        """Teacher, and the classes of codes."""
        own = {} if self.code_classes is None else {"code_classes": self.code_classes.state()}
        return {**super().state(), **own}

    def load_state(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore them."""
        super().load_state(state, strict)
        if self.code_classes is not None and "code_classes" in state:
            self.code_classes.load_state(state["code_classes"])
