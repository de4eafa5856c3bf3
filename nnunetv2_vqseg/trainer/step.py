"""From loss terms to a step of the optimiser that every process takes, or none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nnunetv2_vqseg.methods.base import Metrics, Terms
from nnunetv2_vqseg.modules.collectives import mean_over_processes
from nnunetv2_vqseg.trainer.curves import weighted
from nnunetv2_vqseg.trainer.ranks import Ranks

STOP = "stop"
WEIGHT = "weight of "


class Losses(NamedTuple):
    """What a step's forward and backward pass gave; the gradients are where the optimiser finds them.

    names: of the loss terms, of "loss" and of the metrics.
    weights: of the terms, numbers, or scalars on the device where they change while the step is replayed.
    values: (names,) float32 on the device, this process's.
    """

    names: tuple[str, ...]
    weights: dict[str, float | Tensor]
    values: Tensor


class Reading:
    """A step's numbers on their way from the device; they are the same on all ranks.

    Attributes:
        step: the step's number.
        also: what else belongs to the step, by the names of the curves.
    """

    def __init__(self, step: int, losses: Losses, stacked: Tensor, names: Sequence[str], late: bool) -> None:
        self.step = step
        self.also: dict[str, float] = {}
        self._names = names
        self._weights = losses.weights
        self._event: Any = None
        self._values: dict[str, float] | None = None
        self._host = stacked
        if late and stacked.device.type == "cuda":
            self._host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            self._host.copy_(stacked, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def values(self) -> dict[str, float]:
        """The numbers by name; waits until they are there."""
        if self._values is None:
            if self._event is not None:
                self._event.synchronize()
            found = dict(zip(self._names, self._host.tolist(), strict=True))
            self._values = {name: found[name] for name in self._to_blame()} | found
        return self._values

    def curves(self) -> dict[str, float]:
        """All numbers of the step, by the names of their curves."""
        values = self.values()
        weights = {
            name: values[f"{WEIGHT}{name}"] if isinstance(weight, Tensor) else weight
            for name, weight in self._weights.items()
        }
        own = {name: value for name, value in values.items() if not name.startswith((WEIGHT, STOP))}
        return own | weighted(weights, values) | self.also

    def culprit(self) -> str:
        """The first of losses and gradient that is not finite: of a metric nobody has heard."""
        values = self.values()
        return next((name for name in self._to_blame() if not math.isfinite(values[name])), "gradient_norm")

    def _to_blame(self) -> list[str]:
        return [*self._weights, "loss", "gradient_norm"]

    @property
    def stop(self) -> bool:
        """Whether any rank was asked to stop."""
        return self.values()[STOP] > 0

    def __float__(self) -> float:
        """The objective."""
        return float(np.float32(self.values()["loss"]))


class Stepper:
    """Backward, clipping, step; steps that are not finite are skipped, counted, and after too many the training stops.

    Args:
        network: the wrapped training network.
        max_norm: norm at which the gradient is clipped; nnU-Net's is 12.
        max_bad_steps: steps in a row without a finite loss or gradient after which training stops.
        asked_to_stop: whether this process was.
        what_next: for the message when it stops, from which checkpoint to continue.
        late: leave numbers on the device until somebody asks for them, and wait for it nowhere; the optimiser must then
            skip by itself what is not finite, as fused ones do under a `GradScaler`.
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
        late: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self.grad_scaler = grad_scaler
        self.ranks = ranks
        self.max_norm = max_norm
        self.max_bad_steps = max_bad_steps
        self.asked_to_stop = asked_to_stop
        self.log = log
        self.what_next = what_next
        self.late = late
        self.parameters = list(network.parameters())
        self.step = 0
        self.bad_steps = 0
        self.skipped_steps = 0

    def gradients(self, terms: Terms, metrics: Metrics) -> Losses:
        """Gradients of the weighted sum of the terms, times the scaler's scale.

        They are NaN where the loss is not finite: an infinite loss may have a finite gradient, as L1 has.
        """
        self.optimizer.zero_grad(set_to_none=True)
        weights: dict[str, float | Tensor] = {name: _fitting(weight, value) for name, (weight, value) in terms.items()}
        loss = torch.stack([weights[name] * value for name, (_, value) in terms.items()]).sum()
        changing = {f"{WEIGHT}{name}": weight for name, weight in weights.items() if isinstance(weight, Tensor)}
        # Losses first: the first that is not finite is the one to blame.
        values: dict[str, Tensor] = {name: value for name, (_, value) in terms.items()}
        values |= {"loss": loss} | metrics | changing
        stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        loss = loss * (1 + 0 * loss.detach())  # times 1, or times NaN, on the device
        if self.ranks.distributed:
            loss = loss + unreached(loss, self.parameters)
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
        return Losses(tuple(values), weights, stacked)

    def __call__(self, losses: Losses) -> Reading:
        """Clip and step unless loss or gradient are not finite."""
        if self.grad_scaler is None:
            norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
            if torch.isfinite(norm):
                self.optimizer.step()
        else:
            self.grad_scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
            begin_momentum(self.optimizer)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        stop = torch.full_like(norm, float(self.asked_to_stop()))
        stacked = torch.cat((losses.values, torch.stack((norm.float(), stop.float()))))
        names = (*losses.names, "gradient_norm", STOP)
        reading = Reading(self.step, losses, mean_over_processes(stacked), names, self.late)
        self.step += 1
        return reading

    def settle(self, reading: Reading) -> bool:
        """Count a step; whether the weights moved.

        Raises:
            RuntimeError: too many steps in a row were not finite; it names the term that went bad.
        """
        values = reading.values()
        finite = math.isfinite(values["gradient_norm"])
        self.skipped_steps += not finite
        # AMP finds its scale by overflowing now and then; where even a scale below 1 does, it is not AMP's doing.
        amp = self.grad_scaler is not None and math.isfinite(values["loss"])
        if finite or (amp and self.grad_scaler.get_scale() >= 1):
            self.bad_steps = 0 if finite else self.bad_steps
            return finite
        self.bad_steps += 1
        culprit = reading.culprit()
        self.log(f"Step {reading.step} skipped: {culprit} is {values[culprit]}.")
        if self.bad_steps >= self.max_bad_steps:
            raise RuntimeError(
                f"Training stopped: {culprit} was not finite for {self.bad_steps} steps in a row; lower "
                f"vqseg.initial_lr or look at the images for extreme intensities, then {self.what_next()}."
            )
        return False


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give a fused SGD momentum of zero where it has none yet, which is how it begins.

    By itself it takes memory as it finds it and fills it in its first step: not where that is skipped, as AMP's first
    ones are, and not for parameters that get their first gradient later than others.
    """
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum"):
            for parameter in group["params"]:
                if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _fitting(weight: float | Tensor, value: Tensor) -> float | Tensor:
    """A weight that is rounded as a number is."""
    return weight.to(value.dtype) if isinstance(weight, Tensor) else weight


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
