"""Compares trained models on the same cases and writes a report: `nnUNetv2_vqseg_compare`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.errors import DatasetError, EvaluationError, explained_disk_errors
from nnunetv2_vqseg.core.files import replace_bytes, replace_text
from nnunetv2_vqseg.core.json import read_json, read_object, write_json
from nnunetv2_vqseg.core.versions import versions
from nnunetv2_vqseg.report import analysis, datasets, figures, provenance, tables
from nnunetv2_vqseg.report.datasets import SPLITS, Case, Split
from nnunetv2_vqseg.report.evaluate import ScoreSettings, Units, add_scoring_arguments
from nnunetv2_vqseg.report.labels import classes_from_dataset_json
from nnunetv2_vqseg.report.methods import parse_methods
from nnunetv2_vqseg.report.metrics import DEFINITIONS, EMPTY_DEFINITIONS, METRICS, EmptyConvention
from nnunetv2_vqseg.report.models import TrainingRecord, find_models, read_training_record
from nnunetv2_vqseg.report.overlays import overlays_of_method
from nnunetv2_vqseg.report.pictures import Picture, distinct
from nnunetv2_vqseg.report.postprocessing import describe
from nnunetv2_vqseg.report.reading import reader_for
from nnunetv2_vqseg.report.report_html import ReportPictures, render
from nnunetv2_vqseg.report.scored_training import Scoring
from nnunetv2_vqseg.report.statistics import DEFAULT_PATIENT_REGEX, patient_key, summarize

MAX_BOXED_CLASSES = 12
"""Box plots are drawn for this many classes; the tables have all."""

SPREAD_DEFINITION = (
    "Standard deviation (n - 1) over patients, whose frames and trainings are averaged first; what is called SD is "
    "over trainings."
)


def run(
    dataset: str | int,
    trainers: Sequence[str],
    output: str | Path,
    *,
    configuration: str = "2d",
    plans: Sequence[str] = ("nnUNetPlans",),
    folds: Sequence[str | int] = (0,),
    labels: Sequence[str] | None = None,
    split: Split = "test",
    device: str | None = None,
    checkpoint: str = "checkpoint_final.pth",
    units: Units = "voxel",
    empty_convention: EmptyConvention = "protocol",
    patient_regex: str = DEFAULT_PATIENT_REGEX,
    num_processes: int = 1,
    postprocess: bool = False,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Predict what is missing, score, and write `output/report/`.

    Args:
        dataset: name or id.
        trainers: `[NAME=]TRAINER[:PLANS[:CONFIGURATION[,CONFIGURATION...]]]`; the first is the baseline. Several
            configurations, for example with different seeds, are repetitions of one method.
        output: folder for `predictions/` and `report/` (index.html, summary.json, tables/, figures/).
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

    Returns:
        What `output/report/summary.json` holds, where the names of the figures are added.

    Raises:
        EvaluationError: if a model, case or file is missing or cannot be used.
    """
    name = datasets.dataset_name(dataset)
    raw = datasets.raw_folder(name)
    methods = parse_methods(trainers, plans, labels, configuration)
    fold_names = [str(fold) for fold in folds]
    patient = patient_key(patient_regex)
    trainings = find_models(name, methods, fold_names, checkpoint)
    dataset_json = read_json(raw / "dataset.json", "restore the dataset's folder in nnUNet_raw", dict)
    judges = _validation_cases(raw, dataset_json, fold_names) if postprocess else None
    cases = (
        judges if judges and split == "val" else {fold: _cases(raw, dataset_json, split, fold) for fold in fold_names}
    )
    patients = {case: patient(case) for content in cases.values() for case in content}
    classes = classes_from_dataset_json(dataset_json)
    baseline, _ = next(iter(trainings[methods[0]].values()))
    reader = reader_for(dataset_json | baseline.named_reader, next(iter(cases[fold_names[0]].values())).reference)
    output = Path(output)
    scoring = Scoring(
        dataset=name,
        split=split,
        output=output,
        cases=cases,
        validation_cases=judges,
        settings=ScoreSettings(classes, reader, units, empty_convention),
        ending=datasets.file_ending(dataset_json),
        device=_checked_device(device),
        num_processes=num_processes,
    )

    analyses: dict[str, dict[str, Any]] = {}
    records: dict[str, dict[str, TrainingRecord]] = {}
    overlays: dict[str, list[Picture]] = {}
    for method, repetitions in trainings.items():
        done = {repetition: scoring.score(model, fold) for repetition, (model, fold) in repetitions.items()}
        files = {
            repetition: {case: (cases[fold][case], file) for case, file in done[repetition].predictions.items()}
            for repetition, (_, fold) in repetitions.items()
        }
        scores = {repetition: scored.scores for repetition, scored in done.items()}
        records[method.name] = {
            repetition: read_training_record(model.checkpoint(fold))
            for repetition, (model, fold) in repetitions.items()
        }
        training = analysis.describe_training(method, repetitions, records[method.name])
        titles = {repetition: told["title"] for repetition, told in training["folds"].items()}
        overlays[method.name] = overlays_of_method(method.name, titles, files, scores, classes, reader)
        analyses[method.name] = analysis.analyse_method(scores, classes.keys, patient) | {
            "training": training,
            "prediction": {repetition: scored.record for repetition, scored in done.items()},
        }
        if postprocess:
            as_predicted = {repetition: scored.as_predicted for repetition, scored in done.items()}
            chosen = {key: scored.postprocessing for key, scored in done.items() if scored.postprocessing is not None}
            analyses[method.name]["postprocessing"] = {
                "steps": {repetition: describe(one.steps, classes) for repetition, one in chosen.items()},
                "lacking": {
                    repetition: [classes.names[key] for key in one.lacking] for repetition, one in chosen.items()
                },
                "as_predicted": summarize(as_predicted, classes.keys, patient),
            }
    summary = {
        "title": title or f"{name}: {_versus([method.name for method in methods])}",
        "dataset": name,
        "split": split,
        "folds": fold_names,
        "checkpoint": checkpoint,
        "postprocessing": postprocess,
        "units": units,
        "empty_convention": empty_convention,
        "patient_regex": patient_regex,
        "n_cases": len(patients),
        "n_patients": len(set(patients.values())),
        "classes": classes.names,
        "created": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "methods": analyses,
        "paired": analysis.analyse_pairs(analyses, classes.keys),
        "notes": list(notes),
        "versions": versions(),
        "definitions": {**DEFINITIONS, "empty": EMPTY_DEFINITIONS[empty_convention], "±": SPREAD_DEFINITION},
    }
    summary["notices"] = analysis.notices(summary)
    summary["command"] = provenance.command(summary, output)
    write_report(summary, records, overlays, output / "report")
    return summary


def write_report(
    summary: Mapping[str, Any],
    records: Mapping[str, Mapping[str, TrainingRecord]],
    overlays: dict[str, list[Picture]],
    folder: Path,
) -> None:
    """Write index.html, summary.json, tables/ and figures/ into `folder`, and remove figures of an earlier report."""
    made = [
        tables.summary_table(summary),
        tables.class_table(summary),
        tables.repetition_table(summary),
        tables.paired_table(summary),
        provenance.training_table(summary),
    ]
    boxed = list(summary["classes"])[:MAX_BOXED_CLASSES]
    others = list(summary["methods"])[1:]
    pictures = ReportPictures(
        boxes={metric: [figures.box_plot(summary, key, metric) for key in boxed] for metric in METRICS},
        differences={metric: [figures.difference_plot(summary, m, metric) for m in others] for metric in METRICS},
        overlays=overlays,
        curves=figures.curve_plots(records),
        vqseg_curves={m: plots for m, folds in records.items() if (plots := figures.vqseg_plots(m, folds))},
    )
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    named = dict(zip(distinct([item.name for item in pictures.all()]), pictures.all(), strict=True))
    outdated = set(read_object(folder / "summary.json").get("figures", [])) - set(named)
    for file in (folder / "figures").glob("*.png"):
        if file.stem in outdated:
            file.unlink()
    for picture_name, item in named.items():
        replace_bytes(folder / "figures" / f"{picture_name}.png", item.png)
    for table in [*made, tables.case_table(summary)]:
        table.write(folder / "tables")
    write_json({**summary, "figures": sorted(named)}, folder / "summary.json")
    replace_text(folder / "index.html", render(summary, {table.name: table for table in made}, pictures))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `nnUNetv2_vqseg_compare`."""
    parser = argparse.ArgumentParser(
        description="Predicts with trained models what is not predicted yet, scores them on the same cases and writes "
        "a report with tables, figures and paired tests. The first trainer is the baseline."
    )
    parser.add_argument("-d", required=True, help="dataset name or id")
    parser.add_argument("-c", default="2d", help="configuration where -tr gives none. Default: 2d")
    parser.add_argument(
        "-p",
        nargs="+",
        default=["nnUNetPlans"],
        help="plans where -tr gives none, and/or TRAINER:PLANS for some. Default: nnUNetPlans",
    )
    parser.add_argument("-f", nargs="+", default=["0"], help="folds, repetitions of the training. Default: 0")
    parser.add_argument(
        "-tr",
        nargs="+",
        required=True,
        metavar="[NAME=]TRAINER[:PLANS[:CONFIGURATION,...]]",
        help="trainers, baseline first. Several configurations are repetitions of one method (seeds), averaged for "
        "each patient; NAME is what tables and figures show",
    )
    parser.add_argument("-o", type=Path, required=True, help="folder for predictions/ and report/")
    parser.add_argument("--split", choices=SPLITS, default="test", help="test: imagesTs; val: each fold's validation")
    parser.add_argument("--labels", nargs="+", help="names of the methods, one per trainer, instead of NAME=")
    parser.add_argument(
        "--postprocessing",
        action="store_true",
        help="score after nnU-Net's postprocessing (largest components), which it chooses for each training on the "
        "validation cases of its fold; these are predicted for that",
    )
    parser.add_argument("-chk", default="checkpoint_final.pth", help="checkpoint. Default: checkpoint_final.pth")
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), help="default: cuda if there is one, else cpu")
    parser.add_argument(
        "--patient-regex",
        default=DEFAULT_PATIENT_REGEX,
        help="finds the patient in a case's name: its first group that matches, or all it matches; cases it does "
        "not match are patients of their own. Default, as nnUNetv2_vqseg_split has it: the name without endings like "
        "_frame01, _ses-2 or _ED",
    )
    add_scoring_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        with explained_disk_errors():
            run(
                args.d,
                args.tr,
                args.o,
                configuration=args.c,
                plans=args.p,
                folds=args.f,
                labels=args.labels,
                split=args.split,
                device=args.device,
                checkpoint=args.chk,
                units=args.units,
                empty_convention=args.empty_convention,
                patient_regex=args.patient_regex,
                postprocess=args.postprocessing,
                num_processes=args.np,
            )
    except (DatasetError, EvaluationError) as error:
        raise SystemExit(f"Error: {error}") from error
    print(f"Report: {args.o / 'report' / 'index.html'}")


def _cases(raw: Path, dataset_json: dict[str, Any], split: Split, fold: str) -> dict[str, Case]:
    if split == "test":
        return datasets.test_cases(raw, dataset_json)
    return datasets.validation_cases(raw, dataset_json, fold)


def _validation_cases(raw: Path, dataset_json: dict[str, Any], folds: Sequence[str]) -> dict[str, dict[str, Case]]:
    instead = "leave out --postprocessing, which asks the validation cases"
    return {fold: datasets.validation_cases(raw, dataset_json, fold, instead) for fold in folds}


def _checked_device(device: str | None) -> str:
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise EvaluationError(f"torch finds no GPU here for -device {device}; leave the option out, or give cpu.")
    return device


def _versus(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[1:])} against {names[0]}"
