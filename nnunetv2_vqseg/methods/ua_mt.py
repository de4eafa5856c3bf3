"""UA-MT: uncertainty-aware mean teacher (Yu et al., MICCAI 2019, https://arxiv.org/abs/1907.07034).

The student agrees with its teacher in probability where eight noisy passes of the teacher are certain. Original code:
https://github.com/yulequan/UA-MT; its form for ACDC, from which the constants are: SSL4MIS,
train_uncertainty_aware_mean_teacher_2D.py.

What differs, beside what docs/methods/README.md names for all: dropout of the U-Net's skips instead of inside its
blocks, which would change the network's keys; noise in units of z-scored images (0.1 and 0.2 of a range from 0 to 1 are
0.7 and 1.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.methods.base import Batch, Metrics, Terms, UnlabeledConfig, finest, ramp, split
from nnunetv2_vqseg.methods.teacher import EMAConfig, EMAMethod, EMAWarmup, SavedNetwork
from nnunetv2_vqseg.modules.losses.consistency import masked_mse, predictive_entropy
from nnunetv2_vqseg.modules.losses.reconstruction import channel_scale
from nnunetv2_vqseg.modules.skip_dropout import skip_dropout
from nnunetv2_vqseg.networks.backbone import backbone_of
from nnunetv2_vqseg.networks.planned import ChangedUNet


@dataclass(frozen=True)
class UAMTConfig(EMAConfig, UnlabeledConfig):
    """Hyper-parameters of the uncertainty-aware mean teacher."""

    lambda_u: Annotated[float, Range(0, 1000), "weight of the consistency"] = 0.1
    ramp_up: Annotated[float, Range(0, 1), "share of the training over which it rises; 0: at once"] = 1.0
    ema_decay: Annotated[float, Range(0, 1), "largest decay of the teacher"] = 0.99
    ema_warmup: EMAWarmup = 1.0
    saved_network: SavedNetwork = "student"
    passes: Annotated[int, Range(1, 256), "the teacher's noisy passes for the uncertainty"] = 8
    noise: Annotated[float, Range(0, 10), "standard deviation of the noise, in those of the image"] = 0.7
    noise_limit: Annotated[float, Range(0, 100), "largest noise"] = 1.4
    skip_rates: Annotated[
        tuple[float, float, float, float, float],
        Range(0, 0.99),
        "dropout from the first to the last stage, interpolated between five stages",
    ] = (0.05, 0.1, 0.2, 0.3, 0.5)
    entropy_limit: Annotated[
        float, Range(0, 10), "entropy below which a pixel counts at the end, in nats: ln 2 for any number of classes"
    ] = 0.6931
    entropy_start: Annotated[float, Range(0, 1), "share of that limit at the start"] = 0.75


class SkipDropout(nn.Module):
    """Element dropout of every stage's features."""

    def __init__(self, rates: list[float]) -> None:
        super().__init__()
        self.rates = rates

    def forward(self, maps: list[Tensor], first: int) -> list[Tensor]:
        return skip_dropout(maps, self.rates)


class UAMT(EMAMethod[UAMTConfig]):
    """Squared error of probabilities where the teacher's mean prediction has little entropy."""

    Config = UAMTConfig
    literature = (0.5, 0.5)
    is_static = True
    panels: ClassVar = {"consistency": ("ramp", "certain_share"), "teacher's entropy (nats)": ("uncertainty",)}

    def training_network(self) -> nn.Module:
        """The planned U-Net with dropout of its skips."""
        unet = self.network(self.context.plan, self.config)
        stages = len(backbone_of(unet).widths)
        rates = np.interp(np.linspace(0, 4, stages), range(5), self.config.skip_rates)
        return ChangedUNet(unet, SkipDropout(rates.tolist()))

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """The labels' loss, and the consistency on unlabelled images (Eq. 1 to 4)."""
        assert batch.unlabeled is not None
        target, entropy = self.teach(batch.unlabeled)
        start = self.config.entropy_start
        limit = self.config.entropy_limit * (start + (1.0 - start) * ramp(progress, 1.0))
        certain = entropy < limit
        logits = self.student(torch.cat((batch.labeled, batch.unlabeled)), 0)
        labeled, unlabeled = split(logits, len(batch.labeled), len(batch.unlabeled))
        consistency = masked_mse(self.probabilities(finest(unlabeled)), target, certain, ddp=self.context.ddp)
        return {
            "supervised": (1.0, self.supervised(labeled, batch.target)),
            "consistency": (self.unlabeled_weight(progress), consistency),
        }, {"certain_share": certain.float().mean(), "uncertainty": entropy.mean()}

    @torch.no_grad()
    def teach(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (B, K, ...) of one noisy pass, and the entropy (B, ...) of the mean of the others."""
        spread = 1.0 if self.context.z_scored else channel_scale(images)[1]

        def noisy_pass() -> Tensor:
            noise = (self.config.noise * torch.randn_like(images)).clamp(
                -self.config.noise_limit, self.config.noise_limit
            )
            return self.probabilities(self.teacher(images + spread * noise, 0))

        target = noisy_pass()
        mean = torch.stack([noisy_pass() for _ in range(self.config.passes)]).mean(0)
        return target, predictive_entropy(mean, self.context.regions)
