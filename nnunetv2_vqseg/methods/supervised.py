"""Trainings on the labelled images alone."""

from __future__ import annotations

from typing import ClassVar

from nnunetv2_vqseg.methods.base import Batch, BudgetConfig, Method, Metrics, Terms
from nnunetv2_vqseg.methods.teacher import EMAMethod, SupervisedEMAConfig


class Supervised(Method[BudgetConfig]):
    """nnU-Net as it is, but for the number of steps and the seed: for comparisons."""

    Config = BudgetConfig
    is_static = True
    is_stock: ClassVar = True

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """nnU-Net's loss."""
        return {"supervised": (1.0, self.supervised(self.student(batch.labeled), batch.target))}, {}


class SupervisedEMA(EMAMethod[SupervisedEMAConfig]):
    """nnU-Net on the labelled images alone; the EMA of its weights is what is validated, saved and predicts."""

    Config = SupervisedEMAConfig
    is_static = True
    terms = Supervised.terms
