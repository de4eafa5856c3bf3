"""The methods that a command line asks to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnunetv2_vqseg.evaluation.errors import EvaluationError


@dataclass(frozen=True)
class Method:
    """One row of the comparison: a trainer with its plans, under the name that tables and figures show."""

    name: str
    trainer: str
    plans: str


def parse_methods(trainers: Sequence[str], plans: Sequence[str], labels: Sequence[str] | None = None) -> list[Method]:
    """One `Method` per trainer, with the plans that `TRAINER:PLANS` or the bare plans name give it.

    Raises:
        EvaluationError: if a trainer has no plans, names are not as many as trainers, or two methods are the same.
    """
    general = [item for item in plans if ":" not in item]
    special = dict(item.split(":", 1) for item in plans if ":" in item)
    if len(general) > 1:
        raise EvaluationError(f"-p gives {len(general)} plans for all trainers ({', '.join(general)}); give one.")
    unused = sorted(set(special) - {trainer.split(":")[0] for trainer in trainers})
    if unused:
        raise EvaluationError(f"-p names plans for {', '.join(unused)}, which -tr does not list; add or remove them.")
    pairs = []
    for item in trainers:
        trainer, _, own = item.partition(":")
        chosen = own or special.get(trainer) or (general[0] if general else "")
        if not chosen:
            raise EvaluationError(f"-p gives no plans for {trainer}; add a plans name, or {trainer}:PLANS.")
        pairs.append((trainer, chosen))
    if labels is not None and len(labels) != len(pairs):
        raise EvaluationError(f"--labels gives {len(labels)} names for {len(pairs)} trainers; give one for each.")
    several_plans = len({chosen for _, chosen in pairs}) > 1
    names = labels or [_short_name(t) + (f" ({chosen})" if several_plans else "") for t, chosen in pairs]
    if len(set(pairs)) < len(pairs) or len(set(names)) < len(names):
        raise EvaluationError(f"Two of the methods {', '.join(names)} are the same; list each one once.")
    return [Method(name, trainer, chosen) for name, (trainer, chosen) in zip(names, pairs, strict=True)]


def _short_name(trainer: str) -> str:
    """nnUNetTrainerVQSeg is VQSeg, nnUNetTrainer is nnU-Net, nnUNetTrainer_5epochs is nnU-Net 5epochs."""
    rest = trainer.removeprefix("nnUNetTrainer")
    return f"nnU-Net {rest.lstrip('_')}".strip() if rest == "" or rest.startswith("_") else rest
