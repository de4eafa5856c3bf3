"""Optimiser, schedule and supervised losses of the papers beside nnU-Net's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import Tensor, nn

from nnunetv2_vqseg.methods.base import BudgetConfig, CommonConfig, Loss, Method
from nnunetv2_vqseg.modules.collectives import mean_over_processes
from nnunetv2_vqseg.modules.losses.cross_entropy_dice import CrossEntropyAndDice


class ScaledPolyLR(PolyLRScheduler):
    """nnU-Net's poly schedule, times each parameter group's `lr_scale`.

    Attributes:
        place: epoch -> epoch of the schedule whose rate it has.
    """

    place: Callable[[int], float] = staticmethod(lambda epoch: epoch)

    def step(self, current_step: int | None = None) -> None:
        super().step(current_step if current_step is None else self.place(current_step))
        for group in self.optimizer.param_groups:
            group["lr"] *= group["lr_scale"]
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class FullResolutionCrossEntropy(nn.Module):
    """The paper's L_seg: cross entropy at full resolution; coarser outputs stay in the graph with weight zero (DDP).

    Mean over the pixels that have a label, in the batches of all processes; 0 where none has.
    """

    def __init__(self, ignore_label: int | None) -> None:
        super().__init__()
        self.ignore_label = ignore_label
        ignored = {} if ignore_label is None else {"ignore_index": ignore_label}
        self.cross_entropy = RobustCrossEntropyLoss(reduction="sum", **ignored)

    def forward(self, outputs: list[Tensor] | Tensor, target: list[Tensor] | Tensor) -> Tensor:
        outputs = outputs if isinstance(outputs, list) else [outputs]
        target = target[0] if isinstance(target, list) else target
        labels = target[:, 0]
        number: Tensor | int = labels.numel()
        if self.ignore_label is not None:
            number = mean_over_processes((labels != self.ignore_label).sum().float()).clamp(min=1e-6)
        return self.cross_entropy(outputs[0], labels) / number + 0 * sum(output.sum() for output in outputs[1:])


class InFullPrecision(nn.Module):
    """A loss of float32 logits: a CPU's autocast leaves softmax and sums in bfloat16, where a GPU's does not."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: list[Tensor] | Tensor, target: list[Tensor] | Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.loss([o.float() for o in outputs] if isinstance(outputs, list) else outputs.float(), target)


def chosen_loss(method: Method[Any], nnunet: Loss) -> Loss:
    """The loss of labelled images that the key `supervised_loss` names.

    Args:
        method: with the weights of its original's loss and what is known of the labels.
        nnunet: nnU-Net's.

    Raises:
        NotImplementedError: cross entropy alone of regions.
    """
    chosen, context = getattr(method.config, "supervised_loss", "nnunet"), method.context
    if chosen == "literature" and method.literature is not None:
        return CrossEntropyAndDice(context.regions, context.ignore_label, context.ddp, *method.literature)
    if chosen != "ce":
        return nnunet
    if context.regions:
        raise NotImplementedError(
            "vqseg.supervised_loss = 'ce' is not implemented for region-based labels; use 'nnunet'."
        )
    return FullResolutionCrossEntropy(context.ignore_label)


def build_optimizer(
    groups: list[dict[str, Any]],
    config: BudgetConfig,
    initial_lr: float,
    weight_decay: float,
    device: str = "cpu",
) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
    """nnU-Net's SGD (Nesterov) or AdamW (4.2), and nnU-Net's poly schedule with exponent 0.9.

    Args:
        groups: of parameters, each with an `lr_scale`.
        initial_lr, weight_decay: nnU-Net's, for a configuration that leaves them to nnU-Net.
        device: type of the device; on a GPU the step is one operation, which skips by itself what a `GradScaler` found
            not to be finite.
    """
    one_kernel: dict[str, Any] = {"fused": True} if device == "cuda" else {}
    settings = config if isinstance(config, CommonConfig) else CommonConfig()
    decay = settings.weight_decay
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "sgd":
        decay = weight_decay if decay is None else decay
        optimizer = torch.optim.SGD(
            groups,
            initial_lr,
            weight_decay=decay,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            **one_kernel,
        )
    else:
        decay = 1e-2 if decay is None else decay
        optimizer = torch.optim.AdamW(groups, initial_lr, weight_decay=decay, **one_kernel)
    return optimizer, ScaledPolyLR(optimizer, initial_lr, config.num_epochs)
