"""A guard that every method with unlabelled images can have: their loss waits while it would do harm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from nnunetv2_vqseg.core.config import Config, Range


@dataclass(frozen=True)
class GuardConfig(Config):
    """When the unlabelled loss waits."""

    guard: Annotated[
        bool,
        "the unlabelled loss waits in a first, supervised phase, while pseudo-labels lose the foreground, and while "
        "the Dice on validation patches is below that of the supervised phase; the log says so",
    ] = False
    guard_supervised: Annotated[
        float, Range(0, 1), "share of the training in which it waits first, in whole epochs; 0: none, and no such Dice"
    ] = 0.1
    guard_margin: Annotated[
        float, Range(0, 1), "how far an epoch's Dice may be below the best epoch's of the supervised phase"
    ] = 0.02
    guard_foreground: Annotated[
        float, Range(0, 1), "foreground share of pseudo-labels, in that of labelled images, below which it waits"
    ] = 0.5
    guard_every: Annotated[int, Range(1, 100_000), "steps between two looks at pseudo-labels of the saved network"] = 10
    guard_memory: Annotated[float, Range(0, 0.9999), "share of the counts of pixels that is kept from look to look"] = (
        0.9
    )


class Guard:
    """Whether the unlabelled loss waits, and why.

    Args:
        epochs: of the training.
        log: of the training, which is told whenever the answer changes.
    """

    def __init__(self, config: GuardConfig, epochs: int, log: Callable[[str], None]) -> None:
        self.config = config
        self.log = log
        self.phase_end = math.ceil(config.guard_supervised * epochs - 1e-9) / epochs
        """Share of the training at which the supervised phase is over."""
        self.steps = 0
        self.labeled, self.pseudo = (0.0, 0.0), (0.0, 0.0)
        """Foreground pixels and pixels that were counted."""
        self.best_dice: float | None = None
        """On validation patches in the supervised phase."""
        self.last_dice: float | None = None
        """Since then."""
        self.told: str | None = None
        """The kind of reason that the log was told last."""

    def is_due(self) -> bool:
        """Whether this step is one to look at pseudo-labels in; counts the step."""
        self.steps += 1
        return (self.steps - 1) % self.config.guard_every == 0

    def look(self, labeled: tuple[float, float], pseudo: tuple[float, float]) -> None:
        """Take in foreground pixels and pixels of labelled images and of pseudo-labels, of all processes."""
        kept = self.config.guard_memory
        self.labeled, self.pseudo = (
            (kept * before[0] + now[0], kept * before[1] + now[1])
            for before, now in ((self.labeled, labeled), (self.pseudo, pseudo))
        )

    def validated(self, dice: float, progress: float) -> None:
        """Take in an epoch's Dice on validation patches at its end."""
        if not math.isfinite(dice):
            return
        if progress <= self.phase_end + 1e-9:
            self.best_dice = dice if self.best_dice is None else max(dice, self.best_dice)
        else:
            self.last_dice = dice

    @property
    def foreground_ratio(self) -> float:
        """Foreground share of pseudo-labels in that of labelled images; 1 where those have none."""
        labeled, pseudo = (found / max(pixels, 1e-9) for found, pixels in (self.labeled, self.pseudo))
        return pseudo / labeled if labeled > 0 else 1.0

    def reason(self, progress: float) -> tuple[str, str] | None:
        """Why the unlabelled loss waits at this share of the training: the kind of reason, and a sentence."""
        if progress < self.phase_end:
            return "phase", f"labelled images alone in the first {self.phase_end:.0%} of the training"
        if self.foreground_ratio < self.config.guard_foreground:
            labeled, pseudo = (found / max(pixels, 1e-9) for found, pixels in (self.labeled, self.pseudo))
            return "foreground", f"{pseudo:.2%} of pseudo-labels are foreground, {labeled:.2%} of labels"
        best, last = self.best_dice, self.last_dice
        if best is not None and last is not None and last < best - self.config.guard_margin:
            return "dice", f"the Dice on validation patches is {last:.3f}, in the supervised phase it was {best:.3f}"
        return None

    def waits(self, progress: float) -> bool:
        """Whether there is a reason; tells the log where it is another than before."""
        reason = self.reason(progress)
        kind = reason[0] if reason else None
        if kind != self.told:
            self.log(
                f"Guard: the unlabelled loss waits: {reason[1]}." if reason else "Guard: the unlabelled loss counts."
            )
            self.told = kind
        return reason is not None

    def state(self) -> dict[str, Any]:
        """What continuing needs."""
        return {
            "steps": self.steps,
            "labeled": list(self.labeled),
            "pseudo": list(self.pseudo),
            "best_dice": self.best_dice,
            "last_dice": self.last_dice,
            "told": self.told,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.steps, self.told = state["steps"], state["told"]
        self.labeled, self.pseudo = tuple(state["labeled"]), tuple(state["pseudo"])
        self.best_dice, self.last_dice = state["best_dice"], state["last_dice"]
