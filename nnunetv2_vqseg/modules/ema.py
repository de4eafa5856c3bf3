"""The teacher: an exponential moving average of the student (Section 4.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


def ema_decay(step: int, max_decay: float, warmup: float) -> float:
    """Decay a = min(1 - warmup / (step + warmup), max_decay); the first update, `step` 0, copies.

    With `warmup` 1 the teacher is the mean of all students so far until the decay reaches `max_decay`; with 10 it
    follows about the last tenth of them; with 0 the decay is constant, from the first update on.

    Raises:
        ValueError: `step` is negative, `max_decay` is outside [0, 1] or `warmup` is negative.
    """
    if step < 0 or not 0.0 <= max_decay <= 1.0 or not warmup >= 0.0:
        raise ValueError(
            f"expected step >= 0, 0 <= max_decay <= 1 and warmup >= 0, got {step}, {max_decay} and {warmup}"
        )
    return max_decay if warmup == 0 else min(1.0 - warmup / (step + warmup), max_decay)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside any nesting of DistributedDataParallel, torch.compile and AveragedModel."""
    while True:
        if isinstance(module, (DistributedDataParallel, DataParallel, AveragedModel)):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):  # torch.compile
            module = inner
        else:
            return module


class EMATeacher(AveragedModel):
    """An `AveragedModel` that never leaves evaluation mode; what it averages is in `.module`.

    It averages in one operation over lists that are made once, and counts on the host, so that no GPU is waited for.
    """

    _lists: tuple[nn.Module, list[Tensor], list[Tensor], list[Tensor], list[Tensor]] | None = None
    _updates: int | None = None

    def __init__(self, student: nn.Module, max_decay: float, warmup: float) -> None:
        super().__init__(student, use_buffers=False)
        self.max_decay = max_decay
        self.warmup = warmup

    def train(self, mode: bool = True) -> EMATeacher:
        super().train(False)
        return self

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Parameters move towards the model's, buffers are copied."""
        averaged, current, own_buffers, buffers = self._paired(model)
        if self._updates is None:
            self._updates = int(self.n_averaged)
        share = 1.0 - ema_decay(self._updates, self.max_decay, self.warmup)
        if self._updates == 0:
            torch._foreach_copy_(averaged, current)
        else:
            torch._foreach_lerp_(averaged, current, share)
        if buffers:
            torch._foreach_copy_(own_buffers, buffers)
        self.n_averaged += 1
        self._updates += 1

    def _paired(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        if self._lists is None or self._lists[0] is not model:
            own = self.module
            parts = (own.parameters(), model.parameters(), own.buffers(), model.buffers())
            averaged, current, own_buffers, buffers = (list(part) for part in parts)
            if len(averaged) != len(current) or len(own_buffers) != len(buffers):
                raise ValueError("the teacher was built from another network than this student")
            self._lists = (model, averaged, current, own_buffers, buffers)
        return self._lists[1:]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._updates = None  # to be read from the buffer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lists": None}


def build_teacher(student: nn.Module, max_decay: float, warmup: float) -> EMATeacher:
    """A frozen copy of the student that `update_teacher` moves along theta_T <- a theta_T + (1 - a) theta_S.

    Parameters are averaged, each one once even where modules share it; buffers are copied, because an averaged codebook
    entry that was restarted would lie nowhere near a code. `n_averaged` (a buffer, so it is part of the `state_dict`)
    counts the updates and is the t of `ema_decay`.
    """
    ema_decay(0, max_decay, warmup)  # an impossible decay is refused here and not at the first update
    teacher = EMATeacher(unwrap(student), max_decay, warmup)
    teacher.requires_grad_(False)
    if warmup == 0:
        teacher.n_averaged += 1  # what counts 0 copies
    return teacher.eval()


@torch.no_grad()
def update_teacher(teacher: AveragedModel, student: nn.Module) -> None:
    """One EMA step, to be called after the optimiser's step; `student` may be wrapped in DDP or compiled."""
    teacher.update_parameters(student)  # wrappers list the same parameters and buffers in the same order
