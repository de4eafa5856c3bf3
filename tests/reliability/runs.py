"""One case of bad input from a valid dataset to what is said."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cases import Case
from commands import (
    Said,
    convert,
    evaluate,
    in_this_process,
    nnunet_train,
    nnunet_train_without_gpu,
    plan,
    read_only,
    said_by,
    train,
)
from corpus import SECTIONS
from worlds import FOLDERS, World, make_acdc, make_predictions, make_raw, tame_plan

ROOT = Path(__file__).resolve().parents[2]


class Templates:
    """Makes the valid dataset that a command works with, once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[tuple[str, int], Path] = {}

    def __call__(self, command: Callable[..., None], channels: int = 1) -> Path:
        kind = {evaluate: "predictions", convert: "acdc", train: "planned", nnunet_train: "planned"}.get(command, "raw")
        if command is nnunet_train_without_gpu:
            kind = "planned"
        if (kind, channels) not in self.made:
            self.made[kind, channels] = self._make(kind, channels)
        return self.made[kind, channels]

    def _make(self, kind: str, channels: int) -> Path:
        folder = self.folder / f"{kind}_{channels}"
        if kind == "planned":
            world = make_raw(folder, channels)
            assert said_by(plan, world).message is None
            tame_plan(world)
        elif kind == "raw":
            make_raw(folder, channels)
        else:
            {"predictions": make_predictions, "acdc": make_acdc}[kind](folder)
        return folder


class Outcome(NamedTuple):
    """What a command said, and the files that are no longer what they were."""

    said: Said
    changed: list[str]


def run(case: Case, world: World) -> Outcome:
    """Break a valid dataset and run the command on it."""
    with world.environment(), in_this_process(), contextlib.redirect_stdout(io.StringIO()):
        case.damage(world)
    before = world.snapshot()
    options = [option.replace("{root}", str(world.root)) for option in case.options]
    with read_only(*(case.sealed(world) if case.sealed else [])):
        said = said_by(case.command, world, *options)
    after = world.snapshot()
    return Outcome(said, [name for name in before if after.get(name) != before[name]])


def row(case: Case, said: Said, root: Path) -> str:
    """The case's row in docs/reliability.md."""
    if said.message is not None:
        return f"| {case.what} | {shown(said.message, root, case.quotes)} |"
    warned = f", with the warning: {shown(said.warnings[0], root, case.quotes)}" if said.warnings else ""
    return f"| {case.what} | works{warned} |"


def shown(message: str, root: Path, quotes: bool) -> str:
    """A message without this machine's paths and, if asked, without the words of other libraries."""
    for folder, name in FOLDERS.items():
        message = message.replace(str(root / folder), name)
    message = re.sub(r"-[0-9a-f]{8}\b|tmp-\d+", "-...", message.replace(str(root), "...")).replace("|", "\\|")
    return re.sub(r" \((?:[^()]|\([^()]*\))*\)", " (...)", message) if quotes else message


def is_one_sentence(text: str) -> bool:
    """One line that ends with a full stop and has none before, but in names and abbreviations."""
    return "\n" not in text and text.endswith(".") and re.search(r"[.!?] +[A-Z]", text) is None


def page(rows: dict[str, str]) -> str:
    """The tables, given the row of each case."""
    parts = []
    for title, cases in SECTIONS.items():
        parts += [f"### {title}", "", "| input | what happens |", "|---|---|", *(rows[case.what] for case in cases), ""]
    return "\n".join(parts)
