"""Run an experiment of scripts/experiments on ACDC and write its page: one command, continued where it was stopped.

    python scripts/run_experiment.py modules --profile cpu --data ACDC_FOLDER --jobs 2
    python scripts/run_experiment.py modules --profile cpu --report-only

An experiment is a list of runs (trainer, keys of the `vqseg` block, labelled patients), each repeated for the profile's
seeds. Trainings that are there already are not repeated, also where another experiment made them; those that were
stopped go on. Scores are those of the validation patients; `--test` adds the test patients, to be read once, when
everything is chosen. The page docs/results/NAME-PROFILE.md is written between two markers: what stands outside stays.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nnunetv2_vqseg.config import VQSegConfig
from nnunetv2_vqseg.evaluation.analysis import analyse_method
from nnunetv2_vqseg.evaluation.datasets import test_cases, validation_cases
from nnunetv2_vqseg.evaluation.evaluate import ScoreSettings, score_cases
from nnunetv2_vqseg.evaluation.json_files import read_json, write_json
from nnunetv2_vqseg.evaluation.labels import classes_from_dataset_json
from nnunetv2_vqseg.evaluation.methods import Method
from nnunetv2_vqseg.evaluation.models import TrainedModel, read_training_record
from nnunetv2_vqseg.evaluation.prediction import predict_missing
from nnunetv2_vqseg.evaluation.provenance import git_commit
from nnunetv2_vqseg.evaluation.reading import reader_for
from nnunetv2_vqseg.evaluation.statistics import DEFAULT_PATIENT_REGEX, MEAN, paired_test, patient_key

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "scripts" / "experiments"
PLANS = "nnUNetVQSegPlans"
NNUNET_PLANNING = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints"
PATIENTS = 70  # ACDC's training patients in the protocol: this many labelled ones leave none unlabelled
Scores = Mapping[str, Mapping[str, Any]]  # seed -> case -> scores
BEGIN, END = "<!-- results: begin ({}) -->", "<!-- results: end -->"


@dataclass(frozen=True, eq=False)
class Run:
    """A row of an experiment's table."""

    name: str
    trainer: str
    labeled: int
    plans: str = PLANS
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Training:
    """One seed of a run: where nnU-Net keeps it and how it is made."""

    run: Run
    seed: int
    dataset: str
    block: Mapping[str, Any]

    @property
    def configuration(self) -> str:
        """A name that is the same wherever the same settings are asked for."""
        digest = hashlib.sha1(json.dumps(self.block, sort_keys=True).encode()).hexdigest()
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


class ExperimentError(ValueError):
    """An experiment or profile that cannot be run."""


def read_experiment(name: str, profile_name: str) -> tuple[dict[str, Any], dict[str, Any], list[Run]]:
    """The experiment's file, the profile, and the runs that the profile has.

    Raises:
        ExperimentError: unknown names or keys; the message lists the known ones.
    """
    known = sorted(file.stem for file in EXPERIMENTS.glob("*.yaml") if file.stem != "profiles")
    if name not in known:
        raise ExperimentError(f"There is no experiment '{name}'; there are {', '.join(known)}.")
    profiles = yaml.safe_load((EXPERIMENTS / "profiles.yaml").read_text(encoding="utf-8"))
    if profile_name not in profiles:
        raise ExperimentError(f"There is no profile '{profile_name}'; there are {', '.join(profiles)}.")
    experiment = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8"))
    runs = []
    for row in experiment["runs"]:
        unknown = set(row) - {"name", "trainer", "labeled", "plans", "set", "profiles"}
        if unknown:
            raise ExperimentError(f"{name}.yaml: a run has the unknown keys {sorted(unknown)}.")
        if profile_name not in row.get("profiles", profiles):
            continue
        labeled = row.get("labeled", experiment.get("labeled", [3]))
        for count in labeled if isinstance(labeled, list) else [labeled]:
            runs.append(Run(row["name"], row["trainer"], count, row.get("plans", PLANS), {**row.get("set", {})}))
    return experiment, profiles[profile_name], runs


def trainings_of(run: Run, profile: Mapping[str, Any], seeds: Sequence[int]) -> list[Training]:
    """One training a seed."""
    dataset = f"Dataset{500 + run.labeled}_ACDC"
    return [Training(run, seed, dataset, {**profile["settings"], **run.settings, "seed": seed}) for seed in seeds]


def prepare(dataset: str, labeled: int, data: Path | None, profile: Mapping[str, Any], plans: str) -> None:
    """Convert, plan and preprocess, each once."""
    dataset_id = str(500 + labeled)
    if not (Path(os.environ["nnUNet_raw"]) / dataset / "splits_final.json").is_file():
        if data is None:
            raise ExperimentError(f"{dataset} is not there yet; give the ACDC folder with --data.")
        count = [] if labeled >= PATIENTS else ["--labeled", str(labeled)]
        call([ROOT / "dataset_conversion" / "Dataset027_ACDC.py", "-i", data, "-d", dataset_id, *count])
    home = Path(os.environ["nnUNet_preprocessed"]) / dataset
    stamp, wanted = home / f"{plans}_experiment.json", {"plan": profile["plan"]}
    if stamp.is_file():
        if read_json(stamp, f"delete {home}") != wanted:
            raise ExperimentError(f"{home} was planned for another profile; give another folder with --home.")
        return
    planner = (
        "from nnunetv2_vqseg.planning.entrypoint import main"
        if plans == PLANS
        else f"from {NNUNET_PLANNING} import plan_and_preprocess_entry as main"
    )
    call(["-c", f"{planner}; main()", "-d", dataset_id, "-c", "2d", "--no_pp"])
    if profile["plan"] is not None:
        # nnU-Net's own plan keeps its batch size, by which it differs from ours once both are made small
        size = {key: value for key, value in profile["plan"].items() if plans == PLANS or key != "batch-size"}
        options = [text for key, value in size.items() for text in (f"--{key}", str(value))]
        call([ROOT / "scripts" / "small_plan.py", "-d", dataset_id, "-p", plans, *options])
    preprocess = f"from {NNUNET_PLANNING} import preprocess_entry as main; main()"
    call(["-c", preprocess, "-d", dataset_id, "-plans_name", plans, "-c", "2d", "-np", "2"])
    write_json(wanted, stamp)


def add_configurations(trainings: Sequence[Training]) -> None:
    """Name every training's settings in its plan, inheriting from 2d."""
    for dataset, plans in {(training.dataset, training.run.plans) for training in trainings}:
        file = Path(os.environ["nnUNet_preprocessed"]) / dataset / f"{plans}.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        for training in trainings:
            if (training.dataset, training.run.plans) == (dataset, plans):
                content["configurations"][training.configuration] = {
                    "inherits_from": "2d",
                    "vqseg": dict(training.block),
                }
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=4), encoding="utf-8")
        temporary.replace(file)


def train(training: Training, device: str, log: Path) -> None:
    """As `nnUNetv2_train`, with the profile's number of threads; continued if it was stopped.

    Commit and wall time are kept beside the checkpoint.
    """
    if training.done:
        return
    command = [sys.executable, "-m", "nnunetv2_vqseg.train", training.dataset, training.configuration, "0"]
    command += ["-tr", training.run.trainer]
    command += ["-p", training.run.plans, "-device", device]
    if any(training.fold.glob("checkpoint_*.pth")):
        command.append("--c")
    print(f"{time.strftime('%H:%M:%S')} {shlex.join(command)}", flush=True)
    commit, started = git_commit(ROOT / "nnunetv2_vqseg"), time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    record_file = training.fold / "experiment.json"
    record = read_json(record_file, "delete it") if record_file.is_file() else {"commits": [], "seconds": 0.0}
    if training.fold.is_dir():
        record["commits"] = list(dict.fromkeys([*record["commits"], commit]))
        record["seconds"] += time.monotonic() - started
        write_json(record, record_file)
    if done.returncode:
        print(f"FAILED ({done.returncode}), see {log}: {shlex.join(command)}", file=sys.stderr, flush=True)


def call(words: Sequence[object]) -> None:
    """Run a Python script or `-c` text; its failure ends this program."""
    done = subprocess.run([sys.executable, *map(str, words)], check=False)
    if done.returncode:
        raise ExperimentError(f"{shlex.join(map(str, words))} failed.")


def score(training: Training, split: str, device: str, num_processes: int) -> dict[str, Any]:
    """Scores of a finished training's validation or test cases, computed once."""
    stored = training.fold / f"experiment_scores_{split}.json"
    if stored.is_file() and stored.stat().st_mtime > (training.fold / "checkpoint_final.pth").stat().st_mtime:
        return {case: _with_nan(scores) for case, scores in read_json(stored, "delete it").items()}
    raw = Path(os.environ["nnUNet_raw"]) / training.dataset
    dataset_json = read_json(raw / "dataset.json", "convert the dataset again")
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
    write_json(scores, stored)
    return dict(scores)


def _with_nan(scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    return {
        key: {name: float("nan") if value is None else value for name, value in values.items()}
        for key, values in scores.items()
    }


def table(
    runs: Sequence[Run],
    finished: Mapping[Run, list[Training]],
    columns: Sequence[str],
    split: str,
    device: str,
    num_processes: int,
) -> tuple[list[str], list[dict[str, Any]]]:
    """Rows of the page and the same as JSON; the first run with as many labels is the baseline of the tests.

    Args:
        columns: names of our curves whose last values, mean over seeds, are shown too.
    """
    titles = ["labelled", "method", "Dice", "RV", "Myo", "LV", "HD95", "against the first", "images a step", *columns]
    titles += ["minutes", "seeds", "commit"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    rows, baselines = [], {}
    for run in runs:
        trainings = finished[run]
        if not trainings:
            lines.append(f"| {run.labeled} | {run.name} | not run " + "| " * (len(titles) - 3) + "|")
            continue
        raw = Path(os.environ["nnUNet_raw"]) / trainings[0].dataset
        classes = classes_from_dataset_json(read_json(raw / "dataset.json", "convert the dataset again"))
        scores = {str(training.seed): score(training, split, device, num_processes) for training in trainings}
        analysis = analyse_method(scores, classes.keys, patient_key(DEFAULT_PATIENT_REGEX))
        baseline = baselines.setdefault(run.labeled, scores)
        test = _test_shared_seeds(baseline, scores, classes.keys)
        records = [read_training_record(training.fold / "checkpoint_final.pth") for training in trainings]
        for training, record in zip(trainings, records, strict=True):
            check_defaults(training, record.config)
        notes = [read_json(training.fold / "experiment.json", "train again") for training in trainings]
        minutes = [note["seconds"] / 60 for note in notes]
        commits = list(dict.fromkeys(commit[:7] for note in notes for commit in note["commits"] if commit))
        summary = analysis["summary"]
        last = {
            name: [record.vqseg_curves[name][-1] for record in records if name in record.vqseg_curves]
            for name in columns
        }
        cells = [run.labeled, run.name, _mean_sd(summary[MEAN]["Dice"], 3)]
        cells += [f"{summary[key]['Dice']['mean']:.3f}" for key in classes.keys]
        cells += [_mean_sd(summary[MEAN]["HD95"], 1)]
        compared = test is not None and scores is not baseline
        cells += [f"{test['difference']:+.3f} (p = {test['p_wilcoxon']:.2g})" if compared else ""]
        cells += [_images(records[0], config_today(trainings[0]))]
        cells += [f"{sum(values) / len(values):.4g}" if values else "" for values in last.values()]
        cells += [f"{sum(minutes) / len(minutes):.0f}", ", ".join(str(training.seed) for training in trainings)]
        cells += [", ".join(commits)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
        rows.append(
            {
                "name": run.name,
                "labeled": run.labeled,
                "trainer": run.trainer,
                "settings": dict(trainings[0].block) | {"seed": [training.seed for training in trainings]},
                "summary": summary,
                "folds": analysis["folds"],
                "empty": analysis["empty"],
                "patients": analysis["patients"],
                "test_against_first": test,
                "last_values": last,
                "minutes": minutes,
                "commits": commits,
            }
        )
    return lines, rows


def _test_shared_seeds(baseline: Scores, scores: Scores, classes: Sequence[str]) -> dict[str, Any] | None:
    """Paired test of the patients' mean Dice over the seeds that both have; None where they share none."""
    seeds = sorted(set(baseline) & set(scores))
    if not seeds:
        return None
    first, second = (
        analyse_method({seed: values[seed] for seed in seeds}, classes, patient_key(DEFAULT_PATIENT_REGEX))
        for values in (baseline, scores)
    )
    return dict(paired_test(first["patients"][MEAN]["Dice"], second["patients"][MEAN]["Dice"]))


def config_today(training: Training) -> VQSegConfig:
    """What the training would be made with now: its trainer's configuration and its own settings."""
    from nnunetv2_vqseg.training import variants  # nnU-Net wants its folders named before it is imported

    trainer = getattr(variants, training.run.trainer)
    return getattr(trainer, "default_config", VQSegConfig.default)().override(training.block)


def check_defaults(training: Training, trained_with: Mapping[str, Any]) -> None:
    """A folder is named by the settings that differ from the trainer's; those may have changed since.

    Args:
        trained_with: the whole configuration that the checkpoint names; empty for nnU-Net's own trainer.

    Raises:
        ExperimentError: the same run would train with other values today.
    """
    config = config_today(training)
    today = config.as_dict()
    idle = [] if config.has_perturbed_stream else ["perturbed_view"]
    changed = [
        f"{key} {value!r}, now {today[key]!r}"
        for key, value in trained_with.items()
        if key in today and value != today[key] and key not in idle
    ]
    if changed:
        raise ExperimentError(
            f"{training.fold} was trained with other defaults ({'; '.join(changed)}); name the old value in the "
            "experiment and the folder after it, or move the folder away and train again."
        )


def _mean_sd(value: Mapping[str, float], digits: int) -> str:
    spread = value["sd_folds"]
    return f"{value['mean']:.{digits}f}" + ("" if spread != spread else f" ± {spread:.{digits}f}")


def _images(record: Any, config: VQSegConfig) -> str:
    runtime = record.runtime
    if "labeled_batch_size" not in runtime:
        return str(record.batch_size)
    unlabeled = [runtime["unlabeled_batch_size"]] * config.unlabeled_streams
    return " + ".join(map(str, [runtime["labeled_batch_size"], *unlabeled]))


def write_page(file: Path, experiment: Mapping[str, Any], name: str, profile: str, parts: Sequence[str]) -> None:
    """Put the generated part between the page's markers; a new page gets a title and the experiment's question."""
    command = f"python scripts/run_experiment.py {name} --profile {profile}"
    begin = BEGIN.format(command)
    if not file.is_file():
        file.write_text(
            f"# {experiment['title']} ({profile} profile)\n\n{experiment['question']}\n\n{begin}\n{END}\n",
            encoding="utf-8",
        )
    head, _, rest = file.read_text(encoding="utf-8").partition(begin)
    _, _, tail = rest.partition(END)
    text = "\n".join(
        [
            "",
            *parts,
            "",
            "Dice: mean over the volumes of a class, then over the classes, then over the seeds, ± standard deviation "
            "over the seeds; HD95 in voxels. Difference and Wilcoxon's p against the first row with as many labels, "
            "over patients; frames, and those seeds that both have, averaged first. Minutes of wall time a training, "
            "other work on the machine. Images a step: labelled ones and views of unlabelled ones that pass the "
            "student.",
            "",
            f"```bash\n{command} --data ACDC_FOLDER\n```",
            "",
        ]
    )
    file.write_text(f"{head}{begin}\n{text}\n{END}{tail}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("experiment", help="a file of scripts/experiments, without its ending")
    parser.add_argument("--profile", default="cpu", help="of scripts/experiments/profiles.yaml (default: cpu)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="ACDC folder, for the first time")
    parser.add_argument("--home", type=Path, default=ROOT / "experiments_output", help="default: experiments_output/")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time (default: 1)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="S", help="instead of the profile's")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train runs with these names")
    parser.add_argument("--labeled", type=int, nargs="+", metavar="N", help="train runs with so many labelled patients")
    parser.add_argument("--report-only", action="store_true", help="train nothing, write the page of what is there")
    parser.add_argument("--test", action="store_true", help="score the test patients too; when all is chosen")
    args = parser.parse_args(argv)
    try:
        run_experiment(args)
    except ExperimentError as error:
        sys.exit(f"Error: {error}")


def run_experiment(args: argparse.Namespace) -> None:
    """Everything: data, plans, trainings, scores, page."""
    experiment, profile, runs = read_experiment(args.experiment, args.profile)
    home = args.home.resolve()
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(home / f"nnUNet_{name}")
        (home / f"nnUNet_{name}").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    os.environ.update(profile["environment"])
    seeds = args.seeds or experiment.get("seeds", profile["seeds"])
    trainings = {run: trainings_of(run, profile, seeds) for run in runs}
    if not args.report_only:
        wanted = [
            run
            for run in runs
            if (args.only is None or run.name in args.only) and (args.labeled is None or run.labeled in args.labeled)
        ]
        for run in wanted:
            prepare(trainings[run][0].dataset, run.labeled, args.data, profile, run.plans)
        # seed by seed, so that a run that is stopped has compared everything once
        queue = [trainings[run][index] for index in range(len(seeds)) for run in wanted]
        add_configurations(queue)
        log = home / "logs"
        with ThreadPoolExecutor(args.jobs) as pool:
            list(
                pool.map(
                    lambda item: train(
                        item, profile["device"], log / f"{item.run.trainer}_{item.run.labeled}_{item.configuration}.txt"
                    ),
                    queue,
                )
            )
    finished = {run: [training for training in trainings[run] if training.done] for run in runs}
    parts: list[str] = []
    content: dict[str, Any] = {"experiment": args.experiment, "profile": args.profile}
    for split in ("val", "test") if args.test else ("val",):
        lines, rows = table(runs, finished, experiment.get("columns", []), split, profile["device"], 2)
        parts += [f"**{'Validation' if split == 'val' else 'Test'} patients**", "", *lines, ""]
        content[split] = rows
    results = ROOT / "docs" / "results"
    page = results / f"{args.experiment}-{args.profile}.md"
    write_page(page, experiment, args.experiment, args.profile, parts)
    write_json(content, results / "data" / f"{page.stem}.json")
    print("\n".join(parts))


if __name__ == "__main__":
    main()
