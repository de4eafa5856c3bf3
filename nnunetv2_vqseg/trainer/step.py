"""From loss terms to a step of the optimiser that every process takes, or none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnunetv2_vqseg.methods.base import Metrics, Terms
from nnunetv2_vqseg.trainer.ranks import Ranks


class StepValues(NamedTuple):
    """What a step gave: means over ranks by name, whether the weights moved, whether any rank was asked to stop."""

    values: dict[str, float]
    finite: bool
    stop: bool

    @property
    def loss(self) -> float:
        """The objective."""
        return self.values["loss"]


class Stepper:
    """Backward, clipping, step; steps that are not finite are skipped, counted, and after too many the training stops.

    Args:
        network: the wrapped training network.
        max_norm: norm at which the gradient is clipped; nnU-Net's is 12.
        max_bad_steps: steps in a row without a finite loss or gradient after which training stops.
        asked_to_stop: whether this process was.
        what_next: for the message when it stops, from which checkpoint to continue.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        grad_scaler: Any,
        ranks: Ranks,
        max_norm: float,
        max_bad_steps: int,
        asked_to_stop: Callable[[], bool],
        log: Callable[[str], None],
        what_next: Callable[[], str],
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.grad_scaler = grad_scaler
        self.ranks = ranks
        self.max_norm = max_norm
        self.max_bad_steps = max_bad_steps
        self.asked_to_stop = asked_to_stop
        self.log = log
        self.what_next = what_next
        self.step = 0
        self.bad_steps = 0
        self.skipped_steps = 0

    def __call__(self, terms: Terms, metrics: Metrics) -> StepValues:
        """Step on the weighted sum of the terms.

        Raises:
            RuntimeError: too many steps in a row were not finite; it names the term that went bad.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        norm = self._backward_and_step(loss)
        # Losses first: the first that is not finite is the one to blame.
        values = self.ranks.mean(
            {name: value for name, (_, value) in terms.items()}
            | {"loss": loss, "gradient_norm": norm}
            | metrics
            | {"stop": loss.new_tensor(float(self.asked_to_stop()))}
        )
        stop = values.pop("stop") > 0
        finite = self._was_finite(values)
        self.step += 1
        return StepValues(values, finite, stop)

    def _backward_and_step(self, loss: Tensor) -> Tensor:
        """Clip and step unless loss or gradient are not finite; returns the gradient's norm.

        The norm is NaN where the loss is not finite: an infinite loss may have a finite gradient, as L1 has.
        """
        parameters = list(self.network.parameters())
        loss = loss * (1 + 0 * loss.detach())  # times 1, or times NaN, on the device
        if self.ranks.distributed:
            loss = loss + unreached(loss, parameters)
        if self.grad_scaler is None:
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, self.max_norm)
            if torch.isfinite(norm):
                self.optimizer.step()
            return norm
        self.grad_scaler.scale(loss).backward()
        self.grad_scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self.max_norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        return norm

    def _was_finite(self, values: Mapping[str, float]) -> bool:
        """Count skipped steps, and those in a row whose loss was NaN or infinite."""
        finite = math.isfinite(values["gradient_norm"])
        self.skipped_steps += not finite
        # AMP finds its scale by overflowing now and then; where even a scale below 1 does, it is not AMP's doing.
        amp = self.grad_scaler is not None and math.isfinite(values["loss"]) and self.grad_scaler.get_scale() >= 1
        if finite or amp:
            self.bad_steps = 0 if finite else self.bad_steps
            return finite
        self.bad_steps += 1
        culprit = next((name for name, value in values.items() if not math.isfinite(value)), "gradient_norm")
        self.log(f"Step {self.step} skipped: {culprit} is {values[culprit]}.")
        if self.bad_steps >= self.max_bad_steps:
            raise RuntimeError(
                f"Training stopped: {culprit} was not finite for {self.bad_steps} steps in a row; lower "
                f"vqseg.initial_lr or look at the images for extreme intensities, then {self.what_next()}."
            )
        return False


def unreached(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """0 times the sum of the parameters that the loss does not depend on: DDP waits for a gradient of each."""
    seen, waiting, reached = set(), [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        waiting.extend(following for following, _ in node.next_functions)
    rest = [parameter.sum() for parameter in parameters if id(parameter) not in reached and parameter.requires_grad]
    return 0 * torch.stack(rest).sum() if rest else loss.new_zeros(())
