"""What a case of bad input is, and the damage that cases share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from commands import plan
from worlds import Damage, World, configuration, edit, truncate, write_json

REPLACE = "replace the file or remove the case"
CORRECT = "correct it"


class Refused(NamedTuple):
    """Parts of the sentence: the file (or key) at fault, what is wrong with it, what to do."""

    file: str
    problem: str
    remedy: str


@dataclass(frozen=True)
class Case:
    """One thing that is wrong.

    Attributes:
        what: in words, unique; a row of the table.
        command: what is run.
        damage: done to a valid dataset before.
        refused: what the command must say; None: it works.
        options: of the command.
        warns: where it works, a part of the one warning that is printed.
        channels: of the dataset.
        sealed: folders without permission to write.
        holds: where it works, what must be true of the world then.
        quotes: whether the sentence quotes another library, whose words the table leaves out.
    """

    what: str
    command: Callable[..., None]
    damage: Damage
    refused: Refused | None = None
    options: tuple[str, ...] = ()
    warns: str | None = None
    channels: int = 1
    sealed: Callable[[World], list[Path]] | None = None
    holds: Callable[[World], bool] | None = None
    quotes: bool = False


def image(damage: Callable[[Path], object]) -> Damage:
    return lambda world: damage(world.image)


def label(damage: Callable[[Path], object]) -> Damage:
    return lambda world: damage(world.label)


def unlabeled(damage: Callable[[Path], object]) -> Damage:
    return lambda world: damage(world.unlabeled)


def dataset_json(**values: Any) -> Damage:
    """Keys of dataset.json; None takes one away."""

    def damage(world: World) -> None:
        edit(world.raw / "dataset.json", lambda content: update(content, values))

    return damage


def plans(**values: Any) -> Damage:
    """Keys of the plan; None takes one away."""
    return lambda world: edit(world.preprocessed / "nnUNetVQSegPlans.json", lambda plan: update(plan, values))


def in_2d(**values: Any) -> Damage:
    """Keys of the plan's 2d configuration; None takes one away."""
    return lambda world: edit(
        world.preprocessed / "nnUNetVQSegPlans.json", lambda plan: update(configuration(plan), values)
    )


def arch(**values: Any) -> Damage:
    """Arguments of the planned network."""
    return lambda world: edit(
        world.preprocessed / "nnUNetVQSegPlans.json",
        lambda plan: update(configuration(plan)["architecture"]["arch_kwargs"], values),
    )


def block(**values: Any) -> Damage:
    """Keys of the plan's vqseg block."""
    return lambda world: edit(
        world.preprocessed / "nnUNetVQSegPlans.json", lambda plan: configuration(plan)["vqseg"].update(values)
    )


def splits(content: Any) -> Damage:
    return lambda world: write_json(world.preprocessed / "splits_final.json", content)


def raw_splits(content: Any) -> Damage:
    return lambda world: write_json(world.raw / "splits_final.json", content)


def text(content: str, file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(content, encoding="utf-8")


# What may become of a file of our own.
NO_RECORDS = (
    ("half a file", truncate),
    ("a list", lambda file: write_json(file, [])),
    ("of another kind", lambda file: write_json(file, {"version": 1, "U": 3})),
)


def nothing(world: World) -> None:
    """A valid dataset."""


def update(content: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if value is None:
            del content[key]
        else:
            content[key] = value


def clear(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def nnunet_1_plan(world: World) -> None:
    write_json(
        world.preprocessed / "nnUNetVQSegPlans.json",
        {"plans_per_stage": {"0": {"batch_size": 12, "patch_size": [32, 32]}}, "num_modalities": 1},
    )


IMAGE, LABEL, UNLABELED = "imagesTr/A_0000.nii.gz", "labelsTr/A.nii.gz", "imagesUl/U_0000.nii.gz"
PLANS_FILE = "nnUNetVQSegPlans.json"
AGAIN = "plan again with nnUNetv2_vqseg_plan_and_preprocess"
TRUNCATED, NO_GZIP = Refused("", "is truncated", REPLACE), Refused("", "is not a valid gzip file", REPLACE)


ALL = "image, label, unlabelled"


def on_each(
    what: str, damage: Callable[[Path], object], refused: Refused | None, where: str = "image, unlabelled", **more: Any
) -> list[Case]:
    """The same damage to a labelled image, its label, an unlabelled image."""
    sides = {
        "image": (image, "labelled image", IMAGE),
        "label": (label, "label", LABEL),
        "unlabelled": (unlabeled, "unlabelled image", UNLABELED),
    }
    cases = []
    for side in where.split(", "):
        wrap, words, file = sides[side]
        cases.append(Case(f"{words}: {what}", plan, wrap(damage), refused and refused._replace(file=file), **more))
    return cases
