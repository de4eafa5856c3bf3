"""The page of an experiment: scores of its finished trainings as tables between two markers, and the same as JSON."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment_files import Experiment, ExperimentError, Run, Training

from nnunetv2_vqseg.evaluation.analysis import analyse_method
from nnunetv2_vqseg.evaluation.datasets import Split, test_cases, validation_cases
from nnunetv2_vqseg.evaluation.evaluate import ScoreSettings, score_cases
from nnunetv2_vqseg.evaluation.json_files import read_json, write_json
from nnunetv2_vqseg.evaluation.labels import classes_from_dataset_json
from nnunetv2_vqseg.evaluation.methods import Method
from nnunetv2_vqseg.evaluation.models import TrainedModel, read_training_record
from nnunetv2_vqseg.evaluation.prediction import predict_missing
from nnunetv2_vqseg.evaluation.reading import reader_for
from nnunetv2_vqseg.evaluation.statistics import DEFAULT_PATIENT_REGEX, MEAN, paired_test, patient_key
from nnunetv2_vqseg.training.signals import EXIT_INTERRUPTED

Scores = Mapping[str, Mapping[str, Any]]  # seed -> case -> scores
BEGIN, END = "<!-- results: begin ({}) -->", "<!-- results: end -->"
EXPLANATION = (
    "Dice, Jaccard, HD95 and ASD (in voxels): mean over the volumes of a class, then over the classes, then over the "
    "seeds, ± standard deviation over the seeds. Empty predictions, of all volumes, classes and seeds, have no HD95 "
    "and no ASD. Difference in Dice and its p-values (Wilcoxon, paired t-test, not corrected for their number) against "
    "the first row with as many labels, over patients; frames, and those seeds that both have, averaged first. Images "
    "a step: labelled ones and views of unlabelled ones that pass the student; images seen: that sum times the steps. "
    "Minutes of wall time a training, other work on the machine."
)


def replace_json(content: Any, file: Path) -> None:
    """Write JSON so that a kill leaves the old file or the new one."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    write_json(content, temporary)
    temporary.replace(file)


def read_record(training: Training) -> dict[str, Any]:
    """What the runner noted about a training: commits, machines, seconds so far, exit code of the last attempt."""
    file = training.fold / "experiment.json"
    record = read_json(file, "delete it") if file.is_file() else {}
    return {"commits": [], "machines": [], "seconds": None, "exit_code": None} | record


def has_failed(training: Training) -> bool:
    """The last attempt ended otherwise than by finishing or by being stopped."""
    return not training.done and read_record(training)["exit_code"] not in (None, EXIT_INTERRUPTED)


def stored_scores(training: Training, split: Split) -> Path | None:
    """The file with a finished training's scores, None where they are older than its weights or not there."""
    file, weights = training.fold / f"experiment_scores_{split}.json", training.fold / "checkpoint_final.pth"
    return file if file.is_file() and file.stat().st_mtime_ns >= weights.stat().st_mtime_ns else None


def score(training: Training, split: Split, device: str, num_processes: int) -> dict[str, Any]:
    """Scores of a finished training's validation or test cases, computed once."""
    stored = stored_scores(training, split)
    if stored is not None:
        return {case: _with_nan(scores) for case, scores in read_json(stored, "delete it").items()}
    raw, dataset_json = _raw(training)
    ending = dataset_json["file_ending"]
    if split == "val":
        cases, folder = validation_cases(raw, dataset_json, "0"), training.fold / "validation"
    else:
        cases, folder = test_cases(raw, dataset_json), training.fold / "test"
        method = Method(training.run.name, training.run.trainer, training.run.plans)
        model = TrainedModel(method, training.folder, ("0",), "checkpoint_final.pth")
        predict_missing(model, "0", cases, folder, ending, device, num_processes)
    classes = classes_from_dataset_json(dataset_json)
    settings = ScoreSettings(classes, reader_for(dataset_json, next(iter(cases.values())).reference))
    pairs = {case: (files.reference, folder / f"{case}{ending}") for case, files in cases.items()}
    scores = score_cases(pairs, settings, num_processes, f"{training.run.name}, seed {training.seed}")
    replace_json(scores, training.fold / f"experiment_scores_{split}.json")
    return dict(scores)


def _raw(training: Training) -> tuple[Path, dict[str, Any]]:
    raw = Path(os.environ["nnUNet_raw"]) / training.dataset
    return raw, read_json(raw / "dataset.json", "convert the dataset again")


def _with_nan(scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    return {
        key: {name: float("nan") if value is None else value for name, value in values.items()}
        for key, values in scores.items()
    }


def measure(
    experiment: Experiment,
    trainings: Mapping[Run, Sequence[Training]],
    split: Split,
    may_compute: Callable[[Training], bool],
    num_processes: int,
) -> list[dict[str, Any]]:
    """The experiment's rows; those with a `summary` are measured, the others have a `state` instead.

    Args:
        trainings: of each run, finished or not.
        may_compute: whether scores of a finished training that are not stored are to be computed.
    """
    rows: list[dict[str, Any]] = []
    baselines: dict[int, Scores] = {}
    for run in experiment.runs:
        row: dict[str, Any] = {"name": run.name, "labeled": run.labeled, "trainer": run.trainer}
        finished = [training for training in trainings[run] if training.done]
        scored = [item for item in finished if stored_scores(item, split) is not None or may_compute(item)]
        first = run.labeled not in baselines
        if first:
            baselines[run.labeled] = {}
        failed = [training.seed for training in trainings[run] if has_failed(training)]
        if not scored:
            rows.append(row | {"state": "not read" if finished else _state(run, trainings[run], failed)})
            continue
        scores = {str(item.seed): score(item, split, experiment.profile["device"], num_processes) for item in scored}
        classes = classes_from_dataset_json(_raw(scored[0])[1])
        if first:
            baselines[run.labeled] = scores
        analysis = analyse_method(scores, classes.keys, patient_key(DEFAULT_PATIENT_REGEX))
        test = None if first else compare_shared_seeds(baselines[run.labeled], scores, classes.keys)
        records = [read_training_record(training.fold / "checkpoint_final.pth") for training in scored]
        for training, record in zip(scored, records, strict=True):
            check_defaults(training, record.config)
        notes = [read_record(training) for training in scored]
        images = records[0].images_a_step or []
        steps = records[0].steps
        rows.append(
            row
            | {
                "settings": {**run.settings, "seed": [training.seed for training in scored]},
                "classes": classes.names,
                "summary": analysis["summary"],
                "folds": analysis["folds"],
                "empty": analysis["empty"],
                "patients": analysis["patients"],
                "test_against_first": test,
                "last_values": {
                    name: [item.vqseg_curves[name][-1] for item in records if name in item.vqseg_curves]
                    for name in experiment.columns
                },
                "steps": steps,
                "images_a_step": images,
                "images_seen": steps * sum(images) if steps and images else None,
                "minutes": [note["seconds"] / 60 for note in notes if note["seconds"] is not None],
                "commits": _distinct(short_commit(commit) for note in notes for commit in note["commits"] if commit),
                "machines": _distinct(machine for note in notes for machine in note["machines"]),
                "failed_seeds": failed,
                "line": run.line,
                "x": scored[0].config.as_dict()[experiment.figure["lines"][run.line]] if run.line else None,
            }
        )
    return rows


def _state(run: Run, trainings: Sequence[Training], failed: Sequence[int]) -> str:
    if run.not_measured:
        return f"not measured: {run.not_measured}"
    if failed:
        return f"failed (seed {', '.join(map(str, failed))})"
    begun = any(any(training.fold.glob("checkpoint_*.pth")) for training in trainings)
    return "not finished" if begun else "not run"


def _distinct(values: Any) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def short_commit(commit: str) -> str:
    """Seven digits, and what `git_commit` says about uncommitted changes."""
    digits, _, remark = commit.partition(" ")
    return f"{digits[:7]} {remark}".strip()


def compare_shared_seeds(baseline: Scores, scores: Scores, classes: Sequence[str]) -> dict[str, Any] | None:
    """Paired test of the patients' mean Dice over the seeds that both have; None where they share none."""
    seeds = sorted(set(baseline) & set(scores))
    if not seeds:
        return None
    first, second = (
        analyse_method({seed: values[seed] for seed in seeds}, classes, patient_key(DEFAULT_PATIENT_REGEX))
        for values in (baseline, scores)
    )
    return dict(paired_test(first["patients"][MEAN]["Dice"], second["patients"][MEAN]["Dice"]))


def check_defaults(training: Training, trained_with: Mapping[str, Any]) -> None:
    """A folder is named by the settings that differ from the trainer's; those may have changed since.

    Args:
        trained_with: the whole configuration that the checkpoint names; empty for nnU-Net's own trainer.

    Raises:
        ExperimentError: the same run would train with other values today.
    """
    config = training.config
    changed = config.changed_since(trained_with)
    if not config.has_perturbed_stream:
        changed.pop("perturbed_view", None)
    if changed:
        raise ExperimentError(
            f"{training.fold} was trained with other defaults ({'; '.join(changed.values())}); name the old value in "
            "the experiment and the folder after it, or move the folder away and train again."
        )


def tables(rows: Sequence[Mapping[str, Any]], unit: str, columns: Sequence[str]) -> list[str]:
    """What `measure` found, as two tables in Markdown: the scores, and what they cost.

    Args:
        unit: of the number of labelled patients, empty or percent.
        columns: names of the curves whose last values, mean over seeds, are shown.
    """
    measured = [row for row in rows if "summary" in row]
    names = measured[0]["classes"] if measured else {}
    classes = list(names) if len(names) > 1 else []  # a single class is its own mean
    head = ["labelled", "method", "Dice", *(names[key] for key in classes), "HD95", "empty", "difference"]
    head += ["p (Wilcoxon)", "p (t-test)", "seeds"]
    scores = []
    for row in rows:
        start = [f"{row['labeled']}{unit}", row["name"]]
        if "summary" not in row:
            scores.append([*start, row["state"], *[""] * (len(head) - 3)])
            continue
        summary, empty, test = row["summary"], row["empty"][MEAN], row["test_against_first"]
        seeds = ", ".join(map(str, row["settings"]["seed"]))
        if row["failed_seeds"]:
            seeds += f" (failed: {', '.join(map(str, row['failed_seeds']))})"
        scores.append(
            [
                *start,
                _mean_sd(summary[MEAN]["Dice"], 3),
                *(f"{summary[key]['Dice']['mean']:.3f}" for key in classes),
                _mean_sd(summary[MEAN]["HD95"], 1),
                f"{empty['empty_prediction']} of {empty['n_cases']}",
                *(
                    ["", "", ""]
                    if test is None
                    else [f"{test['difference']:+.3f}", _p(test, "wilcoxon"), _p(test, "t")]
                ),
                seeds,
            ]
        )
    lines = _markdown(head, scores)
    if measured:
        head = ["labelled", "method", "Jaccard", "ASD", "images a step", "images seen", *columns, "minutes", "commit"]
        costs = [
            [
                f"{row['labeled']}{unit}",
                row["name"],
                _mean_sd(row["summary"][MEAN]["Jaccard"], 3),
                _mean_sd(row["summary"][MEAN]["ASD"], 1),
                " + ".join(map(str, row["images_a_step"])),
                "" if row["images_seen"] is None else f"{row['images_seen']:,}",
                *(_mean(values, ".4g") for values in row["last_values"].values()),
                _mean(row["minutes"], ".0f"),
                ", ".join(row["commits"]),
            ]
            for row in measured
        ]
        lines += ["", *_markdown(head, costs)]
    machines = _distinct(machine for row in measured for machine in row["machines"])
    if machines:
        lines += ["", f"Trained on {'; '.join(map(describe_machine, machines))}."]
    return lines


def describe_machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['gpu'] or 'no GPU'}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _mean_sd(value: Mapping[str, float], digits: int) -> str:
    spread = value["sd_folds"]
    return f"{value['mean']:.{digits}f}" + ("" if spread != spread else f" ± {spread:.{digits}f}")


def _mean(values: Sequence[float], digits: str) -> str:
    return f"{sum(values) / len(values):{digits}}" if values else ""


def _p(test: Mapping[str, float], kind: str) -> str:
    return f"{test[f'p_{kind}']:.2g}"


def write_page(file: Path, experiment: Experiment, parts: Sequence[str]) -> None:
    """Write title, question and, between the markers, the generated part; all other text of the page stays.

    The title is the page's first line, the question the paragraph under it.

    Raises:
        ExperimentError: the page has lost the marker at the end of the results.
    """
    begin = BEGIN.format(experiment.command)
    old = file.read_text(encoding="utf-8") if file.is_file() else ""
    head, found, rest = old.partition(begin)
    if found and END not in rest:
        raise ExperimentError(f"{file} has no line '{END}' after its results; put it back, or delete the page.")
    tail = rest.partition(END)[2]
    head = head.strip()
    prose = [head]
    if head.startswith("# "):
        prose = head.partition("\n")[2].strip().split("\n\n")[1:]
    before = [f"# {experiment.title} ({experiment.profile_name} profile)", experiment.question, *filter(None, prose)]
    text = "\n\n".join([*before, begin, "\n".join(parts).strip(), EXPLANATION, _bash(experiment), END])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + (tail or "\n"), encoding="utf-8")


def _bash(experiment: Experiment) -> str:
    return f"```bash\n{experiment.command} --data FOLDER\n```"
