"""Compares trained models on the same cases and writes a report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.errors import EvaluationError
from nnunetv2_vqseg.core.files import replace_bytes, replace_text
from nnunetv2_vqseg.core.folders import raw_folder
from nnunetv2_vqseg.core.json import read_json, read_object, write_json
from nnunetv2_vqseg.core.versions import versions
from nnunetv2_vqseg.data.readers import find_reader
from nnunetv2_vqseg.report import charts, tables
from nnunetv2_vqseg.report.case_files import Split, dataset_name, file_ending, test_cases, validation_cases
from nnunetv2_vqseg.report.classes import classes_from_dataset_json
from nnunetv2_vqseg.report.methods import Method, parse_methods
from nnunetv2_vqseg.report.metrics import DEFINITIONS, EMPTY_DEFINITIONS, METRICS, EmptyConvention
from nnunetv2_vqseg.report.notices import notices
from nnunetv2_vqseg.report.overlays import overlays_of_method
from nnunetv2_vqseg.report.page import ReportPictures, render
from nnunetv2_vqseg.report.pictures import distinct
from nnunetv2_vqseg.report.scored_training import ScoredTraining, Scoring, describe_method
from nnunetv2_vqseg.report.scoring import ScoreSettings, Units
from nnunetv2_vqseg.report.sheet import sheet
from nnunetv2_vqseg.report.statistics import (
    DEFAULT_PATIENT_REGEX,
    analyse_pairs,
    patient_key,
)
from nnunetv2_vqseg.report.trained_models import TrainedModel, find_models

MAX_BOXED_CLASSES = 12
"""Box plots are drawn for this many classes; the tables have all."""

SPREAD_DEFINITION = (
    "Standard deviation (n - 1) over patients, whose frames and trainings are averaged first; what is called SD is "
    "over trainings."
)


@dataclass(frozen=True)
class Comparison:
    """What to compare, and how.

    Attributes:
        dataset: name or id.
        trainers: `[NAME=]TRAINER[:PLANS[:CONFIGURATION[,CONFIGURATION...]]]`; the first is the baseline. Several
            configurations, for example with different seeds, are repetitions of one method.
        output: folder for `predictions/` and `report/` (index.html, report.pdf, summary.json, tables/, figures/).
        configuration: for the trainers that name none.
        plans: one plans name for the trainers that name none, and/or `TRAINER:PLANS` for some.
        folds: repetitions; each is predicted with its own model.
        labels: names for tables and figures, one per trainer.
        split: `test` compares on imagesTs and labelsTs, `val` on the folds' validation cases.
        device: torch's name; default CUDA if there is a device, else the CPU.
        checkpoint: file name of the weights.
        patient_regex: see `patient_key`.
        num_processes: for scoring and for nnU-Net's predictor; 0 or 1 works in this process.
        postprocess: score each training's predictions after the postprocessing that nnU-Net chooses on the validation
            cases of its fold, which are predicted for that.
        title, notes: heading of the page, and sentences to print above the result.
    """

    dataset: str | int
    trainers: Sequence[str]
    output: Path
    _: KW_ONLY
    configuration: str = "2d"
    plans: Sequence[str] = ("nnUNetPlans",)
    folds: Sequence[str | int] = (0,)
    labels: Sequence[str] | None = None
    split: Split = "test"
    device: str | None = None
    checkpoint: str = "checkpoint_final.pth"
    units: Units = "voxel"
    empty_convention: EmptyConvention = "protocol"
    patient_regex: str = DEFAULT_PATIENT_REGEX
    num_processes: int = 1
    postprocess: bool = False
    title: str | None = None
    notes: Sequence[str] = ()

    def run(self) -> dict[str, Any]:
        """Predict what is missing, score, and write `output/report/`.

        Returns:
            What `output/report/summary.json` holds, where the names of the figures are added.

        Raises:
            UserError: if a model, case or file is missing or cannot be used.
        """
        name, patient = dataset_name(self.dataset), patient_key(self.patient_regex)
        methods = parse_methods(self.trainers, self.plans, self.labels, self.configuration)
        command = partial(self._command, name)
        found = find_models(name, methods, list(map(str, self.folds)), self.checkpoint, command)
        scoring = self._scoring(name, next(iter(found[methods[0]].values())))
        patients = {case: patient(case) for cases in scoring.cases.values() for case in cases}
        done = {m.name: {key: scoring.score(model) for key, model in found[m].items()} for m in methods}
        names, classes = [method.name for method in methods], scoring.settings.classes
        analyses = {method.name: describe_method(method, done[method.name], classes, patient) for method in methods}
        versus = names[0] if len(names) == 1 else f"{', '.join(names[1:])} against {names[0]}"
        summary = {
            "title": self.title or f"{name}: {versus}",
            "dataset": name,
            "split": self.split,
            "folds": list(map(str, self.folds)),
            "checkpoint": self.checkpoint,
            "postprocessing": self.postprocess,
            "units": self.units,
            "empty_convention": self.empty_convention,
            "patient_regex": self.patient_regex,
            "n_cases": len(patients),
            "n_patients": len(set(patients.values())),
            "classes": classes.names,
            "created": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            "methods": analyses,
            "paired": analyse_pairs(analyses, classes.keys),
            "notes": list(self.notes),
            "versions": versions(),
            "definitions": {**DEFINITIONS, "empty": EMPTY_DEFINITIONS[self.empty_convention], "±": SPREAD_DEFINITION},
        }
        summary |= {"notices": notices(summary), "command": command(methods)}
        write_report(summary, done, scoring.settings, self.output / "report")
        return summary

    def _scoring(self, name: str, baseline: TrainedModel) -> Scoring:
        """Everything that is looked up before the first case is predicted."""
        raw = raw_folder(name)
        dataset_json = read_json(raw / "dataset.json", "restore the dataset's folder in nnUNet_raw", dict)
        folds, instead = list(map(str, self.folds)), "leave out --postprocessing, which asks the validation cases"
        judges = {fold: validation_cases(raw, dataset_json, fold, instead) for fold in folds if self.postprocess}
        if self.split == "test":
            cases = dict.fromkeys(folds, test_cases(raw, dataset_json))
        else:
            cases = judges or {fold: validation_cases(raw, dataset_json, fold) for fold in folds}
        classes = classes_from_dataset_json(dataset_json)
        example = next(iter(cases[folds[0]].values())).reference
        reader = find_reader(dataset_json | baseline.named_reader, [example])
        return Scoring(
            dataset=name,
            split=self.split,
            output=self.output,
            cases=cases,
            validation_cases=judges,
            settings=ScoreSettings(classes, reader, self.units, self.empty_convention),
            ending=file_ending(dataset_json),
            device=_checked_device(self.device),
            num_processes=self.num_processes,
        )

    def _command(self, name: str, methods: Sequence[Method]) -> str:
        """The command that repeats the comparison, also where Python asked for it."""
        words = ["nnUNetv2_vqseg_compare", "-d", name, "-tr", *map(str, methods), "-f", *map(str, self.folds)]
        words += ["--split", self.split, "-chk", self.checkpoint, "--units", self.units]
        words += ["--empty-convention", self.empty_convention, "--patient-regex", self.patient_regex]
        words += ["--postprocessing"] if self.postprocess else []
        return shlex.join([*words, "-o", str(self.output)])


def write_report(
    summary: Mapping[str, Any],
    done: Mapping[str, Mapping[str, ScoredTraining]],
    settings: ScoreSettings,
    folder: Path,
) -> None:
    """Write index.html, report.pdf, summary.json, tables/ and figures/ into `folder`; figures of an earlier report go.

    Args:
        done: the trainings of each method, by repetition.
    """
    made = [make(summary) for make in tables.ON_PAGE]
    boxed, others = list(summary["classes"])[:MAX_BOXED_CLASSES], list(summary["methods"])[1:]
    records = {method: {key: one.training for key, one in scored.items()} for method, scored in done.items()}
    pictures = ReportPictures(
        overview=charts.overview_plot(summary),
        boxes={metric: [charts.box_plot(summary, key, metric) for key in boxed] for metric in METRICS},
        differences={metric: [charts.difference_plot(summary, m, metric) for m in others] for metric in METRICS},
        overlays={method: overlays_of_method(summary, method, scored, settings) for method, scored in done.items()},
        curves=charts.curve_plots(records),
        vqseg_curves={m: plots for m, folds in records.items() if (plots := charts.vqseg_plots(m, folds))},
    )
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    named = dict(zip(distinct([item.name for item in pictures.all()]), pictures.all(), strict=True))
    outdated = set(read_object(folder / "summary.json").get("figures", [])) - set(named)
    for file in (folder / "figures").glob("*.png"):
        if file.stem in outdated:
            file.unlink()
    for name, item in named.items():
        replace_bytes(folder / "figures" / f"{name}.png", item.png)
    for table in [*made, tables.case_table(summary)]:
        table.write(folder / "tables")
    write_json({**summary, "figures": sorted(named)}, folder / "summary.json")
    by_name = {table.name: table for table in made}
    replace_bytes(folder / "report.pdf", sheet(summary, by_name))
    replace_text(folder / "index.html", render(summary, by_name, pictures))


def _checked_device(device: str | None) -> str:
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise EvaluationError(f"torch finds no GPU here for -device {device}; leave the option out, or give cpu.")
    return device
