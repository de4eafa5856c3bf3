"""Run an experiment of scripts/experiments and write its page: one command, continued where it was stopped.

    python scripts/run_experiment.py modules --profile cpu --data ACDC_FOLDER --jobs 2
    python scripts/run_experiment.py modules --profile cpu --report-only

An experiment is a list of runs (trainer, keys of the `vqseg` block, labelled patients), each repeated for some seeds.
Trainings that are there already, or whose result is kept in results/trainings, are not repeated, also where another
experiment made them; those that were stopped go on; those that another process is at are left to it. The result of a
training is kept as soon as it has ended. Ctrl-C or SIGTERM lets the running trainings save, then stops.

The page docs/results/NAME-PROFILE.md shows every finished seed of every run, also those that were trained elsewhere and
are kept in results/trainings. Scores are those of the validation patients; `--test` computes and shows those of the
test patients too, to be read once, when everything is chosen. `--keep-test` computes them but shows them nowhere until
`--test` does: for weights that will not be there any more by then. The generated part stands between two markers under
the title and the question: all other text of a page stays.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from benchmarks.output import processor
from experiment_answer import answer, answer_rows
from experiment_figures import draw
from experiment_files import (
    NNUNET_PLANS,
    PLANS,
    VIT_PLANS,
    Experiment,
    ExperimentError,
    Run,
    Training,
    read_experiment,
    trainings_of,
)
from experiment_page import measure, seeds_of_row, tables, write_page
from experiment_results import Result, gather, kept_file, read_record

from nnunetv2_vqseg.core.errors import UserError
from nnunetv2_vqseg.core.files import replace_bytes, replace_text
from nnunetv2_vqseg.core.json import read_json, write_json
from nnunetv2_vqseg.core.versions import git_commit
from nnunetv2_vqseg.report.case_files import SPLITS, Split
from nnunetv2_vqseg.report.pictures import Picture
from nnunetv2_vqseg.trainer.cpu import obey_omp_num_threads
from nnunetv2_vqseg.trainer.stopping import EXIT_INTERRUPTED

ROOT = Path(__file__).resolve().parents[1]
PAGES, RESULTS = ROOT / "docs" / "results", ROOT / "results"
NNUNET_PLANNING = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints"
SECONDS_BETWEEN_NOTES = 30.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """This program was asked to stop."""


class Children:
    """Child processes that are told to stop when this program is, and waited for.

    They have a session of their own: Ctrl-C in a terminal reaches this program alone, which passes it on as SIGTERM,
    the signal at which our trainers save.
    """

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, words: Sequence[object], lock: int, output: IO[str] | None = None, note: Any = None) -> int:
        """Run Python with these arguments and return its exit code.

        Args:
            lock: file descriptor of a lock, which the child keeps, so that it outlives this program.
            note: called from time to time, and when the child has ended.

        Raises:
            Stopped: before or after the child was started.
        """
        if self.stopping.is_set():
            raise Stopped
        command = [sys.executable, *map(str, words)]
        error = None if output is None else subprocess.STDOUT
        child = subprocess.Popen(command, stdout=output, stderr=error, start_new_session=True, pass_fds=[lock])
        self._running.add(child)
        try:
            if self.stopping.is_set():  # the signal came before the child was on the list
                child.terminate()
            while True:
                try:
                    code = child.wait(SECONDS_BETWEEN_NOTES)
                    break
                except subprocess.TimeoutExpired:
                    pass
                finally:
                    if note is not None:
                        _try(note)
        finally:
            self._running.discard(child)
        if self.stopping.is_set():
            raise Stopped
        return code

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Stop at the first of `STOP_SIGNALS`, but not at SIGHUP under nohup."""
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heeded = [number for number in STOP_SIGNALS if not (nohup and number == signal.SIGHUP)]
        previous = {number: signal.signal(number, self._handle) for number in heeded}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stopping.set()
        children = list(self._running)
        text = f"{signal.Signals(number).name}: waiting for {len(children)} child processes to save and stop.\n"
        os.write(2, text.encode())  # not print: the signal may have interrupted one
        for child in children:
            child.terminate()


def _try(note: Callable[[], object]) -> None:
    """A full disk must not part this program from its trainings, which wait until there is room again."""
    try:
        note()
    except OSError as error:
        print(f"WARNING: the notes on a training could not be written ({error}); make room.", flush=True)


@contextmanager
def lock_file(file: Path) -> Iterator[int | None]:
    """Lock a file; gives its descriptor, or None where another process has the lock."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield opened.fileno()


def prepare_all(
    trainings: Sequence[Training], data: Path | None, experiment: Experiment, home: Path, children: Children
) -> None:
    """Data, plans and configurations of `trainings`, one program at a time."""
    told = False
    while not children.stopping.is_set():
        with lock_file(home / "experiment.lock") as lock:
            if lock is not None:
                for run in dict.fromkeys(training.run for training in trainings):
                    prepare(run, data, experiment.profile, children, lock)
                add_configurations(trainings)
                return
        if not told:
            print(f"Another program prepares data in {home}; waiting for it.", flush=True)
            told = True
        time.sleep(1)
    raise Stopped


def prepare(run: Run, data: Path | None, profile: Mapping[str, Any], children: Children, lock: int) -> None:
    """Convert, plan and preprocess, each once."""

    def call(*words: object) -> None:
        if children.run(words, lock):
            raise ExperimentError(f"{shlex.join(map(str, words))} failed.")

    dataset, dataset_id = run.data.folder(run.labeled), run.data.dataset_id(run.labeled)
    if not (Path(os.environ["nnUNet_raw"]) / dataset / "splits_final.json").is_file():
        if data is None:
            raise ExperimentError(f"{dataset} is not there yet; give the folder with the original data with --data.")
        if run.dataset == "busi":
            folder = Path(os.environ["nnUNet_raw"]) / dataset
            shutil.copytree(data, folder, ignore=shutil.ignore_patterns("*hidden*"), dirs_exist_ok=True)
        else:
            call(*conversion(run, data))
    home = Path(os.environ["nnUNet_preprocessed"]) / dataset
    stamp, wanted = home / f"{run.plans}_experiment.json", {"plan": profile["plan"]}
    if stamp.is_file():
        if read_json(stamp, f"delete {home}", dict) != wanted:
            raise ExperimentError(f"{home} was planned for another profile; give another folder with --home.")
        return
    # nnU-Net's planner sets as many torch threads as nnUNet_n_proc_DA says, which fails at 0; ours takes care of that
    planner = (
        "from nnunetv2_vqseg.commands.plan import main"
        if run.plans in (PLANS, VIT_PLANS)
        else "import os; os.environ['nnUNet_n_proc_DA'] = '1'; "
        f"from {NNUNET_PLANNING} import plan_and_preprocess_entry as main"
    )
    vit = ["-pl", "nnUNetPlannerViT"] if run.plans == VIT_PLANS else []
    call("-c", f"{planner}; main()", "-d", dataset_id, "-c", "2d", "--no_pp", *vit)
    if profile["plan"] is not None:
        # nnU-Net's own plan keeps its batch size, by which it differs from ours once both are made small
        size = {
            key: value for key, value in profile["plan"].items() if run.plans != NNUNET_PLANS or key != "batch-size"
        }
        options = [text for key, value in size.items() for text in (f"--{key}", str(value))]
        call(ROOT / "scripts" / "small_plan.py", "-d", dataset_id, "-p", run.plans, *options)
    preprocess = f"from {NNUNET_PLANNING} import preprocess_entry as main; main()"
    call("-c", preprocess, "-d", dataset_id, "-plans_name", run.plans, "-c", "2d", "-np", "2")
    write_json(wanted, stamp)


def conversion(run: Run, data: Path) -> list[object]:
    """Script and arguments that make the run's dataset of the original data."""
    scripts, general = ROOT / "dataset_conversion", ["-i", data, "-d", run.data.dataset_id(run.labeled)]
    if run.data.name.startswith("ACDC"):
        labeled = [] if run.labeled >= run.data.everything else ["--labeled", run.labeled]
        if run.data.labeled is not None:
            labeled = ["--labeled-list", run.data.labeled]
        return [scripts / "Dataset027_ACDC.py", *general, "--protocol", scripts / "acdc_protocol", *labeled]
    percent = ["--labeled-percent", run.labeled]
    if (data / "imagesTr").is_dir():
        return [scripts / "DatasetXXX_MSD_Lung.py", *general, *percent]
    return [scripts / "DatasetXXX_LC.py", *general, "--name", run.data.name, *percent]


def add_configurations(trainings: Sequence[Training]) -> None:
    """Name every training's settings in its plan, inheriting from 2d."""
    for dataset, plans in {(training.dataset, training.run.plans) for training in trainings}:
        file = Path(os.environ["nnUNet_preprocessed"]) / dataset / f"{plans}.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        for training in trainings:
            if (training.dataset, training.run.plans) == (dataset, plans):
                content["configurations"][training.configuration] = {
                    "inherits_from": "2d",
                    "vqseg": training.block,
                }
        replace_text(file, json.dumps(content, indent=4))


def training_command(training: Training, device: str) -> list[str]:
    """Arguments of Python: `nnUNetv2_train` with the profile's number of threads, continued if it was stopped."""
    run = training.run
    command = ["-m", "nnunetv2_vqseg.train", training.dataset, training.configuration, "0"]
    command += ["-tr", run.trainer, "-p", run.plans, "-device", device]
    return [*command, "--c"] if any(training.fold.glob("checkpoint_*.pth")) else command


def train(training: Training, device: str, log: Path, children: Children) -> str:
    """Train, or continue a training that was stopped.

    Commit, machine, seconds and exit code are kept in experiment.json beside the checkpoint, from the start on.

    Returns:
        "done", "failed", "stopped", or "elsewhere" where another process trains in this folder.
    """
    if training.done:
        return "done"
    with lock_file(training.fold / "experiment.lock") as lock:
        if lock is None:
            place = training.fold / "experiment.lock"
            print(f"{training.folder} is left to another process, which trains in it and locks {place}.", flush=True)
            return "elsewhere"
        if training.done:  # by the process that had the lock until now
            return "done"
        command = training_command(training, device)
        record = read_record(training) | {"exit_code": None}
        for key, value in (("commits", git_commit(ROOT / "nnunetv2_vqseg")), ("machines", machine(device))):
            if value not in record[key]:
                record[key] = [*record[key], value]
        before, started = record["seconds"] or 0.0, time.monotonic()

        def note(**changed: Any) -> None:
            record.update(seconds=before + time.monotonic() - started, **changed)
            write_json(record, training.fold / "experiment.json")

        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("a", encoding="utf-8") as output:
                if not children.stopping.is_set():
                    print(f"{time.strftime('%H:%M:%S')} {shlex.join(command)}", flush=True)
                    note()
                code = children.run(command, lock, output, note)
        except Stopped:
            return "stopped"
        if code == EXIT_INTERRUPTED:
            return "stopped"
        code = code or int(not training.done)
        note(exit_code=code)
    if code:
        print(f"FAILED ({code}), see {log}: {shlex.join(command)}", file=sys.stderr, flush=True)
    return "failed" if code else "done"


def machine(device: str) -> dict[str, Any]:
    """What a training runs on: CPU model, number of cores, GPU (None on the CPU)."""
    gpu = None
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        try:
            gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
        except (OSError, subprocess.SubprocessError, IndexError):
            gpu = "unknown GPU"
    return {"cpu": processor(), "cores": os.cpu_count(), "gpu": gpu}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("experiment", help="a file of scripts/experiments, without its ending")
    parser.add_argument("--profile", default="cpu", help="of scripts/experiments/profiles.yaml (default: cpu)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="original data, for the first time: the ACDC folder; for lung, a folder for each case or Task06_Lung; for "
        "busi, a dataset in nnU-Net's layout",
    )
    parser.add_argument("--home", type=Path, default=ROOT / "experiments_output", help="default: experiments_output/")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="of page, scores and records (docs/results/ and results/)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time (default: 1)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="S", help="train these instead of the experiment's")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train (and test) runs with these names")
    parser.add_argument("--labeled", type=int, nargs="+", metavar="N", help="train (and test) runs with so many labels")
    parser.add_argument("--report-only", action="store_true", help="train nothing, write the page of what is there")
    parser.add_argument("--test", action="store_true", help="score the test patients too; when all is chosen")
    parser.add_argument(
        "--keep-test", action="store_true", help="score the test patients too, show it with --test only"
    )
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: give the number of trainings at a time, 1 or more.")
    try:
        failed = run_experiment(args)
    except (ExperimentError, UserError, OSError) as error:
        sys.exit(f"Error: {error}")
    except (Stopped, KeyboardInterrupt):
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    if failed:
        sys.exit(f"Error: {len(failed)} trainings failed: {'; '.join(failed)}.")


def run_experiment(args: argparse.Namespace) -> list[str]:
    """Everything: data, plans, trainings, scores, page.

    Returns:
        The trainings that failed.
    """
    experiment = read_experiment(args.experiment, args.profile)
    home = args.home.resolve()
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(home / f"nnUNet_{name}")
        (home / f"nnUNet_{name}").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    os.environ.update(experiment.profile["environment"])
    obey_omp_num_threads()  # scoring predicts in this process
    wanted = select(experiment.runs, args.only, args.labeled)
    asked = {run: trainings_of(run, args.seeds or run.seeds) for run in wanted}
    page = (args.results or PAGES) / f"{args.experiment}-{args.profile}.md"
    file = (args.results or RESULTS) / f"{page.stem}.json"
    scored = {training.folder for trainings in asked.values() for training in trainings}
    keep = Keeper(
        file.parent / "trainings" / experiment.profile_name,
        experiment.profile["device"],
        testing=scored if args.test else set(),
        sealing=scored if args.keep_test else set(),
        num_processes=2 if args.jobs == 1 else 1,
    )
    failed = [] if args.report_only else train_all(asked, args, experiment, home, keep)
    shown = earlier_rows(file)
    known = {
        run: trainings_of(run, sorted({*run.known_seeds, *(args.seeds or ()), *seeds_of_row(run, shown)}))
        for run in experiment.runs
    }
    report(experiment, known, keep, page, file, shown)
    return failed


@dataclass(frozen=True)
class Keeper:
    """Keeps the results of trainings.

    Attributes:
        folder: of the kept results.
        testing: folders of the trainings whose test patients are to be scored.
        sealing: the same, for scores that are not shown yet.
        num_processes: for scoring; 1 works in this process, as others take 10 s each to start, beside trainings more.
    """

    folder: Path
    device: str
    testing: set[Path]
    sealing: set[Path]
    num_processes: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def has(self, training: Training) -> bool:
        return kept_file(self.folder, training).is_file()

    def __call__(self, trainings: Iterable[Training]) -> dict[Training, Result]:
        """Results of what is finished here or was kept; scores that are missing are computed first."""
        with self.lock:  # two trainings that end together would score with all processors each
            return gather(
                trainings,
                self.folder,
                lambda one: one.folder in self.testing,
                self.device,
                self.num_processes,
                may_seal=lambda one: one.folder in self.sealing,
            )


def earlier_rows(file: Path) -> dict[Split, list[dict[str, Any]]]:
    """The rows of each split that the page shows now.

    Raises:
        DatasetError: the file of them cannot be read.
    """
    earlier = read_json(file, "delete it, or take it back from git", dict) if file.is_file() else {}
    return {split: earlier[split] for split in SPLITS if split in earlier}


def select(runs: Sequence[Run], names: Sequence[str] | None, labeled: Sequence[int] | None) -> list[Run]:
    """The runs of the profile that the command line asks for.

    Raises:
        ExperimentError: a name or number of labels that no such run has, or no run at all.
    """
    runs = [run for run in runs if run.not_measured is None]
    if not runs:
        raise ExperimentError("The experiment has no run on this profile; give another one with --profile.")
    for option, asked, known in (
        ("--only", names, [run.name for run in runs]),
        ("--labeled", labeled, [run.labeled for run in runs]),
    ):
        for value in asked or ():
            if value not in known:
                there = ", ".join(map(str, dict.fromkeys(known)))
                raise ExperimentError(f"{option} {value}: this profile of the experiment has only {there}.")
    return [run for run in runs if run.name in (names or [run.name]) and run.labeled in (labeled or [run.labeled])]


def train_all(
    asked: Mapping[Run, Sequence[Training]],
    args: argparse.Namespace,
    experiment: Experiment,
    home: Path,
    keep: Keeper,
) -> list[str]:
    """Prepare the data and train what is not finished, `--jobs` at a time; returns what failed.

    Raises:
        Stopped: after a signal, once the running trainings have saved.
    """
    # seed by seed, so that a run that is stopped has compared everything once
    longest = max(map(len, asked.values()), default=0)
    queue = [items[index] for index in range(longest) for items in asked.values() if index < len(items)]
    left = [training for training in queue if not training.done and not keep.has(training)]
    print(f"{len(left)} of {len(queue)} trainings still to do.", flush=True)
    children, device = Children(), experiment.profile["device"]

    def work(training: Training) -> str:
        log = home / "logs" / f"{training.run.trainer}_{training.run.labeled}_{training.configuration}.txt"
        outcome = train(training, device, log, children)
        if outcome == "done" and not children.stopping.is_set():
            keep([training])
        return outcome

    with children.handling_signals():
        prepare_all(left, args.data, experiment, home, children)
        with ThreadPoolExecutor(args.jobs) as pool:
            results = list(pool.map(work, left))
    if children.stopping.is_set():
        raise Stopped
    return [
        f"{training.run.name}, {training.run.labeled} labelled, seed {training.seed}"
        for training, result in zip(left, results, strict=True)
        if result == "failed"
    ]


def report(
    experiment: Experiment,
    trainings: Mapping[Run, list[Training]],
    keep: Keeper,
    page: Path,
    file: Path,
    shown: Mapping[Split, list[dict[str, Any]]],
) -> None:
    """Write page, figures and JSON of everything that is finished, here or, by what was kept of it, elsewhere.

    Args:
        file: of the rows as JSON; beside it are the records of the trainings.
        shown: rows that the page showed until now, see `earlier_rows`.
    """
    results = keep([training for items in trainings.values() for training in items])
    rows = {split: measure(experiment, trainings, results, split, shown) for split in reversed(SPLITS)}
    if not any("summary" in row for row in rows["test"]):
        del rows["test"]
    page.parent.mkdir(parents=True, exist_ok=True)
    parts, figure = _parts_and_answer_figure(experiment, rows, page)
    print("\n".join(parts))
    write_page(page, experiment, parts, answer(experiment, rows, figure), tested="test" in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json({"experiment": experiment.name, "profile": experiment.profile_name, **rows}, file)


def _parts_and_answer_figure(
    experiment: Experiment, rows: Mapping[Split, list[dict[str, Any]]], page: Path
) -> tuple[list[str], Picture | None]:
    """Tables and figures of all rows, and the figure above the fold: the last of them, or one of the answer's rows."""
    parts: list[str] = []
    figures: list[Picture] = []
    unit = experiment.runs[0].data.unit
    for split, found in rows.items():
        title = "validation" if split == "val" else "test"
        parts += [
            f"**{title.capitalize()} patients**",
            "",
            *tables(found, unit, experiment.columns),
        ]
        parts.append("")
        figure = draw(experiment, found, title, page.stem if split == "val" else f"{page.stem}-test")
        if figure is not None:
            figures.append(figure)
            parts += [f"![{figure.alt}]({figure.name}.png)", ""]
    names = {(row["name"], row["labeled"]) for row in answer_rows(experiment, rows["val"])}
    chosen = [row for row in found if (row["name"], row["labeled"]) in names]
    if figures and not experiment.figure and len(chosen) < sum("summary" in row for row in found):
        figure = draw(experiment, chosen, title, f"{page.stem}-answer")
        figures += [] if figure is None else [figure]
    elif figures:  # it stands above the fold instead
        parts = parts[:-2]
    for drawn in figures:
        replace_bytes(page.parent / f"{drawn.name}.png", drawn.png)
    return parts, figures[-1] if figures else None


if __name__ == "__main__":
    main()
