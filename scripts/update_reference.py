"""Write the tables of keys and commands into docs/reference, between two markers a page."""

from __future__ import annotations

import json
from argparse import SUPPRESS, Action
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.commands import add_labels, compare, convert_weights, evaluate, plan, split, train
from nnunetv2_vqseg.core.config import Config, Key
from nnunetv2_vqseg.methods.abd import ABD
from nnunetv2_vqseg.methods.abd_cross_teaching import ABDCrossTeaching
from nnunetv2_vqseg.methods.arco import ARCO
from nnunetv2_vqseg.methods.base import BudgetConfig, CommonConfig, UnlabeledConfig, UnlabeledImagesConfig
from nnunetv2_vqseg.methods.bcp import BCP
from nnunetv2_vqseg.methods.cps import CPS
from nnunetv2_vqseg.methods.mc_net import MCNet
from nnunetv2_vqseg.methods.mean_teacher import MeanTeacher, MeanTeacherDropout
from nnunetv2_vqseg.methods.nnfiltermatch import NNFilterMatch
from nnunetv2_vqseg.methods.pretrained_vit import EncoderConfig
from nnunetv2_vqseg.methods.self_training import SelfTraining
from nnunetv2_vqseg.methods.ss_net import SSNet
from nnunetv2_vqseg.methods.strong_view import StrongViewConfig
from nnunetv2_vqseg.methods.supervised import SupervisedEMA
from nnunetv2_vqseg.methods.taught_views import TaughtViewsConfig
from nnunetv2_vqseg.methods.teacher import TeacherConfig
from nnunetv2_vqseg.methods.ua_mt import UAMT
from nnunetv2_vqseg.methods.unet import UNet
from nnunetv2_vqseg.methods.unimatch import UniMatch
from nnunetv2_vqseg.methods.unimatch_v2 import UniMatchV2
from nnunetv2_vqseg.methods.vqseg import VQSeg
from nnunetv2_vqseg.trainers import nnUNetTrainerVQSegPaper

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
KEYS, COMMANDS = REFERENCE / "keys.md", REFERENCE / "commands.md"
BEGIN = "<!-- tables: begin (python scripts/update_reference.py) -->\n"
END = "<!-- tables: end -->"
PARSERS = (plan, split, train, compare, evaluate, add_labels, convert_weights)

SHARED: dict[str, type[Config]] = {
    "All methods": BudgetConfig,
    "All but stock nnU-Net (`nnUNetTrainerSupervised`)": CommonConfig,
    "All that learn from unlabelled images": UnlabeledImagesConfig,
    "All whose unlabelled loss has a weight": UnlabeledConfig,
    "All in which strong views learn hard labels": StrongViewConfig,
    "Mean teachers, UniMatch V2 and VQ-Seg": TeacherConfig,
    "Mean teachers and VQ-Seg": TaughtViewsConfig,
    "Trainers whose names end with ViT, and `nnUNetTrainerVQSegPaper`": EncoderConfig,
}
METHODS: dict[str, type[Config]] = {
    "VQ-Seg": VQSeg.Config,
    "Mean teacher": MeanTeacher.Config,
    "Mean teacher with feature dropout": MeanTeacherDropout.Config,
    "ARCO, second stage": ARCO.Config,
    "Bidirectional copy-paste (BCP)": BCP.Config,
    "Adaptive bidirectional displacement on BCP (ABD)": ABD.Config,
    "ABD with cross teaching": ABDCrossTeaching.Config,
    "Cross pseudo supervision (CPS)": CPS.Config,
    "SS-Net": SSNet.Config,
    "nnFilterMatch": NNFilterMatch.Config,
    "Mutual consistency (MC-Net+)": MCNet.Config,
    "Self-training": SelfTraining.Config,
    "Uncertainty-aware mean teacher (UA-MT)": UAMT.Config,
    "UniMatch (V1)": UniMatch.Config,
    "UniMatch V2": UniMatchV2.Config,
    "Supervised, with an EMA of the weights": SupervisedEMA.Config,
    "U-Net of the literature, supervised": UNet.Config,
}


def markdown_table(keys: Collection[Key], preset: Mapping[str, Any] | None = None) -> str:
    """Table of keys with default, valid range and meaning, and a preset's values where they differ from the default."""
    other = preset or {}
    varies = any(other.get(key.name, key.default) != key.default for key in keys)
    heads = ["key", "default", *(["paper"] if varies else []), "valid", "meaning"]
    rows = [heads, ["---"] * len(heads)]
    for key in keys:
        differs = other.get(key.name, key.default) != key.default
        paper = [f"`{_json(other[key.name])}`" if differs else ""] if varies else []
        rows.append([f"`{key.name}`", f"`{_json(key.default)}`", *paper, key.valid, key.meaning])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def tables() -> Iterator[str]:
    """A key stands in the first table that has it, and again where a method has another default or other values."""
    shown: dict[str, Any] = {}
    for title, config in {**SHARED, **METHODS}.items():
        keys = config.declared()
        inherited = {
            name: _values(key)
            for other in SHARED.values()
            if issubclass(config, other) and config is not other
            for name, key in other.declared().items()
        }
        own = [key for name, key in keys.items() if (shown | inherited).get(name) != _values(key)]
        of_all = {name for other in SHARED.values() if issubclass(config, other) for name in other.declared()}
        others = [f"`{name}`" for name, key in keys.items() if key not in own and name not in of_all]
        yield f"## {title}"
        if own:
            yield markdown_table(own, nnUNetTrainerVQSegPaper.preset if issubclass(VQSeg.Config, config) else None)
        if others:
            yield f"From the tables above: {', '.join(others)}."
        values = {name: _values(key) for name, key in keys.items()}
        shown = shown | values if title in SHARED else values | shown


def _values(key: Key) -> tuple[Any, str]:
    return key.default, key.valid


def commands() -> Iterator[str]:
    """What the argument parsers of the commands know."""
    for command in PARSERS:
        parser = command.build_parser()
        yield f"## {parser.prog}"
        yield (parser.description or "").strip()
        rows = [_option(action) for action in parser._actions if action.dest != "help" and action.help != SUPPRESS]
        head = ["option", "default", "meaning"]
        yield "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _option(action: Action) -> list[str]:
    value = action.metavar or (action.dest.upper() if action.nargs != 0 and action.option_strings else "")
    if action.choices:
        value = " or ".join(map(str, action.choices))
    name = " ".join(filter(None, [", ".join(action.option_strings) or action.dest, str(value)]))
    if action.nargs == "+":
        name += " ..."
    told = "default" in (action.help or "").lower()  # by the sentence, as some depend on the machine
    known = not told and action.default is not None and action.nargs != 0 and action.default != SUPPRESS
    values = action.default if isinstance(action.default, list) else [action.default]
    default = "required" if action.required else f"`{' '.join(map(str, values))}`" if known else ""
    meaning = (action.help or "") % {**vars(action), "prog": ""} if action.help else ""
    return [f"`{name}`".replace("|", "\\|"), default, " ".join(meaning.split()).replace("|", "\\|")]


def with_tables(page: Path) -> str:
    """Text of a page with its current tables."""
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    content = "\n\n".join(tables() if page == KEYS else commands())
    return f"{head}{BEGIN}\n{content}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for written in (KEYS, COMMANDS):
        written.write_text(with_tables(written), encoding="utf-8")
