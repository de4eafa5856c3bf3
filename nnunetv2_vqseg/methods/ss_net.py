"""SS-Net: exploring smoothness and class separation (Wu et al., MICCAI 2022, https://arxiv.org/abs/2203.01324).

Smoothness: the output stays where it is when an image is changed in the direction that moves it most (VAT). Separation:
a pixel's vector comes close to those that a memory holds of its class. Original code, from which the constants are:
https://github.com/ycwu1997/SS-Net, for ACDC train_ss_2d.py. As there, and not as its comment says, the memory holds the
vectors with the lowest scores (`memory_keeps`).

What differs, beside what docs/methods/README.md names for all: features at full resolution as wide as the plan's first
stage instead of 16; lengths in units of z-scored images (6 and 10 on 65536 pixels of a range from 0 to 1 are 0.165 and
0.275 a pixel); LayerNorm instead of BatchNorm in the heads; `pixels_per_class` random pixels instead of all, for the
terms and for the memory; no selectors for the background and for the memory, which have no effect in the original. The
memory is one for all processes; the adversarial direction is each process's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.core.config import Range
from nnunetv2_vqseg.methods.base import Batch, Loss, Metrics, Terms, UnlabeledConfig, finest, split
from nnunetv2_vqseg.methods.tapped import TappedMethod
from nnunetv2_vqseg.modules.class_memory import ClassMemory
from nnunetv2_vqseg.modules.losses.prototype import memory_distance
from nnunetv2_vqseg.modules.losses.reconstruction import channel_scale
from nnunetv2_vqseg.modules.losses.soft_dice import soft_dice_loss
from nnunetv2_vqseg.modules.losses.vat import adversarial_direction
from nnunetv2_vqseg.modules.pixels import draw_per_class, features_at
from nnunetv2_vqseg.modules.prototype_heads import PrototypeHeads
from nnunetv2_vqseg.networks.backbone import backbone_of
from nnunetv2_vqseg.networks.tap import TappedUNet


@dataclass(frozen=True)
class SSNetConfig(UnlabeledConfig):
    """Hyper-parameters of SS-Net."""

    lambda_u: Annotated[float, Range(0, 1000), "weight of smoothness and separation"] = 0.1
    ramp_up: Annotated[float, Range(0, 1), "share of the training over which it rises; 0: at once"] = 1.0
    vat_radius: Annotated[float, Range(0, 10), "adversarial change of a pixel, in standard deviations of the image"] = (
        0.165
    )
    vat_xi: Annotated[float, Range(1e-6, 10), "change at which its direction is measured, in the same unit"] = 0.275
    vat_steps: Annotated[int, Range(0, 16), "steps of the iteration for the direction; 0: a random one"] = 1
    weight_prototype: Annotated[float, Range(0, 1000), "weight of the separation beside the smoothness"] = 0.1
    prototype_dim: Annotated[int, Range(1, 4096), "width of projection and prediction"] = 32
    memory_size: Annotated[int, Range(2, 65_536), "vectors of each class in the memory"] = 32
    memory_keeps: Annotated[
        Literal["lowest", "highest"], "which scores the memory keeps: as the original's code, or as its comment"
    ] = "lowest"
    pixels_per_class: Annotated[int, Range(2, 1_000_000), "largest number of pixels of each class in a term"] = 4096

    same_to_continue: ClassVar[frozenset[str]] = UnlabeledConfig.same_to_continue | {"prototype_dim", "memory_size"}


class SSNet(TappedMethod[SSNetConfig]):
    """Virtual adversarial training, and pixels' vectors close to the memory of their class."""

    Config = SSNetConfig
    literature = (0.0, 1.0)
    runs_ahead: ClassVar[bool] = False  # its memory would keep what is not finite
    panels: ClassVar = {"smoothness and separation": ("ramp", "right_share", "memory_share")}

    def training_network(self) -> nn.Module:
        """The planned U-Net with heads that read its features at full resolution."""
        unet: Any = self.network(self.context.plan, self.config)
        width = backbone_of(unet).widths[0]
        return TappedUNet(unet, 0, PrototypeHeads(width, self.config.prototype_dim, unet.decoder.num_classes - 1))

    def begin(self, student: nn.Module, supervised: Loss) -> None:
        """The memory begins empty."""
        super().begin(student, supervised)
        self.classes = len(self.net.heads.selectors)
        size, dim = self.config.memory_size, self.config.prototype_dim
        self.memory = self._next_memory = ClassMemory.empty(self.classes, size, dim, self.context.device)

    @property
    def unlabeled_views(self) -> int:
        """Itself, changed at random, changed in the adversarial direction; labelled images pass as often."""
        return 3

    def terms(self, batch: Batch, progress: float) -> tuple[Terms, Metrics]:
        """The labels' loss, smoothness of all images, separation of labelled and of unlabelled ones."""
        assert batch.unlabeled is not None
        images, sizes = torch.cat((batch.labeled, batch.unlabeled)), [len(batch.labeled), len(batch.unlabeled)]
        output = self.student(images)
        probabilities = finest(output.segmentation).detach().float().softmax(dim=1)
        target = (batch.target[0] if isinstance(batch.target, list) else batch.target)[:, 0].long()
        separation, metrics = self.separation(output.features.split(sizes), target, probabilities.argmax(dim=1))
        weight = self.unlabeled_weight(progress)
        of_prototypes = weight * self.config.weight_prototype
        return {
            "supervised": (1.0, self.supervised(split(output.segmentation, *sizes)[0], batch.target)),
            "smoothness": (weight, self.smoothness(images, probabilities)),
            "separation": (of_prototypes, separation[0]),
            "separation_unlabeled": (of_prototypes, separation[1]),
        }, metrics

    def smoothness(self, images: Tensor, probabilities: Tensor) -> Tensor:
        """Distance of the output for adversarially changed images (B, C, ...) from that for the images themselves."""
        spread = 1.0 if self.context.z_scored else channel_scale(images)[1]
        net, images = self.net, images.float()

        def divergence(change: Tensor) -> Tensor:
            with torch.autocast(images.device.type, enabled=False):
                logits = finest(net(images + spread * change).segmentation)
            return soft_dice_loss(logits.softmax(dim=1), probabilities)

        direction = adversarial_direction(divergence, images, self.config.vat_xi, self.config.vat_steps)
        changed = self.student(images + spread * self.config.vat_radius * direction)
        return soft_dice_loss(finest(changed.segmentation).float().softmax(dim=1), probabilities, ddp=self.context.ddp)

    def separation(self, features: tuple[Tensor, ...], target: Tensor, guess: Tensor) -> tuple[Tensor, Metrics]:
        """Both terms of labelled and unlabelled features (B, C, ...), given labels and all argmaxes."""
        classes, number, ddp = self.classes, self.config.pixels_per_class, self.context.ddp
        right = torch.where(guess[: len(target)] == target, target, 0)
        drawn = draw_per_class(right - 1, classes, number)  # without the background; an ignored pixel is never right
        new = self.net.heads.candidates(features_at(features[0].detach(), drawn.places))
        memory = self.memory.replaced(new.vectors, new.scores, drawn.valid, self.config.memory_keeps)
        self._next_memory = memory
        pixels = [draw_per_class(labels - 1, classes, number) for labels in (target, guess[len(target) :])]
        rows = [features_at(part, drawn.places) for part, drawn in zip(features, pixels, strict=True)]
        vectors, scores = (part.split([row.shape[1] for row in rows], 1) for part in self.student(torch.cat(rows, 1)))
        parts = zip(vectors, scores, pixels, strict=True)
        distances = [memory_distance(own, score, drawn.valid, memory, ddp) for own, score, drawn in parts]
        labeled = ((target > 0) & (target <= classes)).float().mean()
        return torch.stack(distances).sum(dim=1) / (classes + 1), {
            "right_share": (right > 0).float().mean() / labeled.clamp(min=1e-6),
            "memory_share": memory.held.float().mean(),
        }

    def after_step(self) -> dict[str, float]:
        """What the step put into the memory stays there."""
        self.memory = self._next_memory
        return {}

    def state(self) -> dict[str, Any]:
        """The memory."""
        return {"memory": self.memory._asdict()}

    def load_state(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore the memory."""
        if strict or "memory" in state:
            self.memory = self._next_memory = ClassMemory(**state["memory"])
