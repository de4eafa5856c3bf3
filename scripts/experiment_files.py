"""Experiments as scripts/experiments/*.yaml describe them: the rows of a table, and the training of each seed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nnunetv2_vqseg.core.config import Config
from nnunetv2_vqseg.methods.base import known_keys

EXPERIMENTS = Path(__file__).resolve().parent / "experiments"
PLANS, VIT_PLANS, NNUNET_PLANS = "nnUNetVQSegPlans", "nnUNetViTPlans", "nnUNetPlans"
NO_EXPERIMENTS = {"profiles", "defaults"}
_EXPERIMENT_KEYS = {"title", "question", "notes", "answer", "dataset", "labeled", "seeds", "columns", "figure", "runs"}
_EXPERIMENT_KEYS |= {"against", "defaults"}
_RUN_KEYS = {"name", "trainer", "labeled", "plans", "set", "profiles", "line", "against"}


class ExperimentError(ValueError):
    """An experiment or profile that cannot be run."""


@dataclass(frozen=True)
class Data:
    """A dataset that an experiment can ask for.

    Attributes:
        name: in nnU-Net's `DatasetXXX_NAME`.
        first_id: the dataset's id is this plus the number of labelled patients, or their percentage.
        everything: that number or percentage where no training patient is left unlabelled.
        unit: of `everything`, as a table shows it.
        labeled: list of the labelled patients, instead of the protocol's or the seed's.
    """

    name: str
    first_id: int
    everything: int
    unit: str = ""
    labeled: Path | None = None

    def dataset_id(self, labeled: int) -> int:
        return self.first_id + labeled

    def folder(self, labeled: int) -> str:
        return f"Dataset{self.dataset_id(labeled)}_{self.name}"


DATA = {
    "acdc": Data("ACDC", 500, 70),
    "acdc-b": Data("ACDCb", 510, 70, labeled=EXPERIMENTS / "labeled" / "acdc-b.txt"),
    "acdc-c": Data("ACDCc", 520, 70, labeled=EXPERIMENTS / "labeled" / "acdc-c.txt"),
    "lung": Data("Lung", 600, 100, " %"),
    "busi": Data("BUSI", 700, 260),
}


@dataclass(frozen=True, eq=False)
class Run:
    """A row of an experiment's table.

    Attributes:
        labeled: patients, or their percentage where the dataset counts so.
        settings: of the vqseg block, the profile's included.
        defaults: of the trainer, where the experiment wants those that an earlier version had.
        seeds: to be trained.
        known_seeds: that the table shows where they are finished, whichever experiment trained them.
        not_measured: why the profile does not have this row.
        line: of the experiment's figure, which this row is a point of.
        against: name of another run that this one is compared with, besides the first; None for the first alone.
    """

    name: str
    trainer: str
    labeled: int
    plans: str = PLANS
    dataset: str = "acdc"
    settings: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    known_seeds: tuple[int, ...] = ()
    not_measured: str | None = None
    line: str | None = None
    against: str | None = None

    @property
    def data(self) -> Data:
        return DATA[self.dataset]


@dataclass(frozen=True, eq=False)
class Training:
    """One seed of a run: where nnU-Net keeps it and how it is made."""

    run: Run
    seed: int

    @property
    def dataset(self) -> str:
        return self.run.data.folder(self.run.labeled)

    @property
    def block(self) -> dict[str, Any]:
        """Keys of the plan's vqseg block."""
        return {**self.run.defaults, **self.named}

    @property
    def named(self) -> dict[str, Any]:
        """Those of them after which the training is named."""
        return {**self.run.settings, "seed": self.seed}

    @property
    def configuration(self) -> str:
        """A name that is the same wherever the same settings are asked for."""
        digest = hashlib.sha1(json.dumps(self.named, sort_keys=True).encode()).hexdigest()
        return f"2d_{digest[:8]}"

    @property
    def folder(self) -> Path:
        """`TRAINER__PLANS__CONFIGURATION` in nnUNet_results."""
        home = Path(os.environ["nnUNet_results"]) / self.dataset
        return home / f"{self.run.trainer}__{self.run.plans}__{self.configuration}"

    @property
    def fold(self) -> Path:
        return self.folder / "fold_0"

    @property
    def done(self) -> bool:
        return (self.fold / "validation" / "summary.json").is_file()

    @property
    def config(self) -> Config:
        """What the training would be made with today: its trainer's configuration and its own settings."""
        from nnunetv2_vqseg import trainers  # nnU-Net wants its folders named before it is imported

        default = getattr(trainers, self.run.trainer).default_config()
        return default.override(self.block, elsewhere=known_keys())


@dataclass(frozen=True)
class Experiment:
    """A file of scripts/experiments as one profile has it.

    Attributes:
        question: one sentence, with which the page opens.
        notes: what one must know to read all rows; folded away with them.
        answer: names of the rows that stand above the fold, the first few of all where it is empty.
        columns: of our curves, whose last values the page shows.
        figure: see `experiment_figures.draw`; empty for one row of dots a run.
        profile: device, plan and environment.
    """

    name: str
    profile_name: str
    title: str
    question: str
    columns: tuple[str, ...]
    figure: Mapping[str, Any]
    profile: Mapping[str, Any]
    runs: tuple[Run, ...]
    notes: str = ""
    answer: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        return f"python scripts/run_experiment.py {self.name} --profile {self.profile_name}"

    @property
    def variables(self) -> list[str]:
        """Environment variables in its settings, which name files of the user's."""
        texts = {value for run in self.runs for value in run.settings.values() if isinstance(value, str)}
        return sorted({name for text in texts for name in re.findall(r"\$(\w+)", text)})


def read_experiment(name: str, profile_name: str) -> Experiment:
    """Read an experiment; runs are sorted by the number of labelled patients.

    Raises:
        ExperimentError: unknown names or keys; the message lists the known ones.
    """
    known = sorted(file.stem for file in EXPERIMENTS.glob("*.yaml") if file.stem not in NO_EXPERIMENTS)
    if name not in known:
        raise ExperimentError(f"There is no experiment '{name}'; there are {', '.join(known)}.")
    profiles = _read_yaml("profiles")
    if profile_name not in profiles:
        raise ExperimentError(f"There is no profile '{profile_name}'; there are {', '.join(profiles)}.")
    content = _read_yaml(name)
    _check_keys(content, _EXPERIMENT_KEYS | set(profiles), f"{name}.yaml")
    if isinstance(content["runs"], str):  # those of another experiment, with this one's numbers of labels
        own = {"labeled"} & content.keys()
        content["runs"] = [
            {key: value for key, value in row.items() if key not in own} for row in _read_yaml(content["runs"])["runs"]
        ]
    dataset = content.get("dataset", "acdc")
    if dataset not in DATA:
        raise ExperimentError(f"{name}.yaml: there is no dataset '{dataset}'; there are {', '.join(DATA)}.")
    profile, here = profiles[profile_name], content.get(profile_name, {})
    if profile["plan"] is not None:
        profile = {**profile, "plan": {**profile["plan"], **here.get("plan", {})}}
    lines = content.get("figure", {}).get("lines", {})
    general_seeds = content.get("seeds", profile["seeds"])
    names = {row["name"] for row in content["runs"]}
    runs = []
    for row in content["runs"]:
        _check_keys(row, _RUN_KEYS | set(profiles), f"{name}.yaml, run '{row.get('name')}'")
        own = row.get(profile_name, {})
        _check_keys(here, {"settings", "seeds", "labeled", "plan", "answer"}, f"{name}.yaml, {profile_name}")
        _check_keys(own, {"settings", "seeds"}, f"{name}.yaml, {profile_name}")
        if row.get("line") not in {None, *lines}:
            raise ExperimentError(f"{name}.yaml: the figure has no line '{row['line']}', only {', '.join(lines)}.")
        against = row.get("against", content.get("against"))
        if against not in {None, *names}:
            raise ExperimentError(f"{name}.yaml: there is no run '{against}' to compare with.")
        seeds = own.get("seeds", here.get("seeds", general_seeds))
        labeled = row.get("labeled", here.get("labeled", content.get("labeled", [3])))
        runs += [
            Run(
                name=row["name"],
                trainer=row["trainer"],
                labeled=count,
                plans=row.get("plans", PLANS),
                dataset=dataset,
                settings={
                    **profile["settings"],
                    **here.get("settings", {}),
                    **row.get("set", {}),
                    **own.get("settings", {}),
                },
                defaults=_earlier_defaults(content.get("defaults"), row["trainer"], name),
                seeds=tuple(seeds),
                known_seeds=tuple(sorted({*seeds, *general_seeds, *profile["seeds"]})),
                not_measured=_why_not_measured(row, profile_name),
                line=row.get("line"),
                against=None if against == row["name"] else against,
            )
            for count in (labeled if isinstance(labeled, list) else [labeled])
        ]
    return Experiment(
        name=name,
        profile_name=profile_name,
        title=content["title"],
        question=content["question"].strip(),
        columns=tuple(content.get("columns", ())),
        figure=content.get("figure", {}),
        profile=profile,
        runs=tuple(sorted(runs, key=lambda run: run.labeled)),
        notes=content.get("notes", "").strip(),
        answer=_known_rows(here.get("answer", content.get("answer", ())), names, name),
    )


def trainings_of(run: Run, seeds: Sequence[int]) -> list[Training]:
    """One training a seed."""
    return [Training(run, seed) for seed in seeds]


def _earlier_defaults(version: str | None, trainer: str, experiment: str) -> dict[str, Any]:
    if version is None:
        return {}
    known = _read_yaml("defaults")
    if version not in known:
        raise ExperimentError(f"{experiment}.yaml: there are no defaults '{version}'; there are {', '.join(known)}.")
    groups = [group["settings"] for group in known[version] if trainer in group["trainers"]]
    return {key: value for settings in groups for key, value in settings.items()}


def _why_not_measured(row: Mapping[str, Any], profile_name: str) -> str | None:
    profiles = row.get("profiles")
    if profiles is None or profile_name in profiles:
        return None
    if "PFA" in row["trainer"]:
        return "needs DINOv2 weights"
    return f"{' or '.join(profiles).replace('gpu', 'GPU')} profile"


def _known_rows(asked: Sequence[str], names: set[str], experiment: str) -> tuple[str, ...]:
    unknown = sorted(set(asked) - names)
    if unknown:
        raise ExperimentError(f"{experiment}.yaml: answer names no run: {', '.join(unknown)}.")
    return tuple(asked)


def _check_keys(found: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        raise ExperimentError(
            f"{where} has the unknown keys {', '.join(unknown)}; known are {', '.join(sorted(known))}."
        )


def _read_yaml(name: str) -> dict[str, Any]:
    file = EXPERIMENTS / f"{name}.yaml"
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ExperimentError(f"{file} is not YAML: {error}") from error
