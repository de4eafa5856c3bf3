"""The methods that a command line asks to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnunetv2_vqseg.core.errors import EvaluationError


@dataclass(frozen=True)
class Method:
    """One row of the comparison: a trainer with its plans, under the name that tables and figures show.

    Several configurations are repetitions of it, for example with different seeds.
    """

    name: str
    trainer: str
    plans: str
    configurations: tuple[str, ...] = ("2d",)

    def repetition(self, configuration: str, fold: str, folds: Sequence[str]) -> str:
        """What tells a training from the others of this method: the fold, the configuration, or both."""
        if len(self.configurations) == 1:
            return fold
        return configuration if len(folds) == 1 else f"{configuration} fold {fold}"

    def __str__(self) -> str:
        """The item of `-tr` that asks for this method."""
        return f"{self.name}={self.trainer}:{self.plans}:{','.join(self.configurations)}"


def parse_methods(
    trainers: Sequence[str], plans: Sequence[str], labels: Sequence[str] | None = None, configuration: str = "2d"
) -> list[Method]:
    """One `Method` per item `[NAME=]TRAINER[:PLANS[:CONFIGURATION[,CONFIGURATION...]]]`.

    Args:
        trainers: the items.
        plans: a plans name for the items that have none, and/or `TRAINER:PLANS` for some trainers.
        labels: names, one per item, instead of `NAME=`.
        configuration: for the items that have none; several with commas between.

    Raises:
        EvaluationError: if an item has no plans or cannot be read, names are given twice or not as many as trainers, or
            two methods are the same.
    """
    general = [item for item in plans if ":" not in item]
    special = dict(item.split(":", 1) for item in plans if ":" in item)
    if len(general) > 1:
        raise EvaluationError(f"-p gives {len(general)} plans for all trainers ({', '.join(general)}); give one.")
    parsed = [_parse_item(item) for item in trainers]
    unused = sorted(set(special) - {trainer for _, trainer, _, _ in parsed})
    if unused:
        raise EvaluationError(f"-p names plans for {', '.join(unused)}, which -tr does not list; add or remove them.")
    if labels is not None and len(labels) != len(parsed):
        raise EvaluationError(f"--labels gives {len(labels)} names for {len(parsed)} trainers; give one for each.")
    if labels is not None and any(name for name, *_ in parsed):
        raise EvaluationError("Names are given twice, by --labels and by NAME= in -tr; leave one of them out.")
    what = []
    for _, trainer, own_plans, own_configurations in parsed:
        chosen = own_plans or special.get(trainer) or (general[0] if general else "")
        if not chosen:
            raise EvaluationError(f"-p gives no plans for {trainer}; add a plans name, or {trainer}:PLANS.")
        configurations = tuple((own_configurations or configuration).split(","))
        if "" in configurations or len(set(configurations)) < len(configurations):
            raise EvaluationError(
                f"The configurations {','.join(configurations)} of {trainer} are not different names with commas "
                "between; list each one once."
            )
        what.append((trainer, chosen, configurations))
    names = labels or [name or default for (name, *_), default in zip(parsed, _default_names(what), strict=True)]
    if len(set(what)) < len(what) or len(set(names)) < len(names):
        raise EvaluationError(f"Two of the methods {', '.join(names)} are the same; list each one once.")
    return [Method(name, *content) for name, content in zip(names, what, strict=True)]


def _parse_item(item: str) -> tuple[str, str, str, str]:
    """Name, trainer, plans and configurations of an item, empty where it does not give them."""
    name, _, rest = item.rpartition("=")  # names may have any sign; trainers, plans and configurations have no =
    trainer, *more = rest.split(":")
    if not trainer or len(more) > 2:
        raise EvaluationError(
            f"-tr {item} is not of the form [NAME=]TRAINER[:PLANS[:CONFIGURATION[,CONFIGURATION...]]]; correct it."
        )
    plans, configurations = [*more, "", ""][:2]
    return name, trainer, plans, configurations


def _default_names(what: Sequence[tuple[str, str, tuple[str, ...]]]) -> list[str]:
    """Short names, with the plans where they differ, and the configurations where nothing else does."""
    several_plans = len({plans for _, plans, _ in what}) > 1
    names = []
    for trainer, plans, configurations in what:
        told = [plans] if several_plans else []
        if len([other for other in what if other[:2] == (trainer, plans)]) > 1:
            told += configurations
        names.append(_short_name(trainer) + (f" ({', '.join(told)})" if told else ""))
    return names


def _short_name(trainer: str) -> str:
    """nnUNetTrainerVQSeg is VQSeg, nnUNetTrainer is nnU-Net, nnUNetTrainer_5epochs is nnU-Net 5epochs."""
    rest = trainer.removeprefix("nnUNetTrainer")
    return f"nnU-Net {rest.lstrip('_')}".strip() if rest == "" or rest.startswith("_") else rest
