"""The whole path on a small dataset: data, plan, training of stock nnU-Net and VQ-Seg, prediction, report.

Called by `scripts/demo.sh`, which makes the environment. On a CPU the plan is shrunk and the training short; the report
says how many steps each method had. Everything is written below --out; nothing else is touched.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.report.training_records import TrainingRecord, read_training_record

SCRIPTS = Path(__file__).resolve().parent
TRAINERS = {"nnU-Net (supervised)": "nnUNetTrainerSupervised", "VQ-Seg": "nnUNetTrainerVQSeg"}
PLANS = "nnUNetVQSegPlans"
EPOCHS = 10
STAMP = "demo.json"
ENOUGH_SHARED = 1 << 29
"""Bytes of shared memory for nnU-Net's predicting workers; Docker's default is 1 << 26."""
WITHOUT_PFA = "VQ-Seg trains without its alignment with the foundation model DINOv2 (PFA), which is off by default."


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    home = args.out.resolve()
    started = time.monotonic()

    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    claim(home, args, device.type)
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(home / f"nnUNet_{name}")
        (home / f"nnUNet_{name}").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    patients = "1 labelled patient" if args.labeled == 1 else f"{args.labeled} labelled patients"
    say(f"1/4 Data: {'phantoms' if args.data is None else args.data}, {patients}")
    dataset_id = make_dataset(args)
    say("2/4 Plan and preprocess")
    plan(dataset_id, args, device.type == "cuda")
    print(WITHOUT_PFA)
    say(f"3/4 Train {' and '.join(TRAINERS)} for {args.steps} steps each on the {device.type.upper()}")
    train_all(dataset_id, device.type, home / "logs")
    torch.set_num_threads(os.cpu_count() or 1)
    say("4/4 Predict the test set, evaluate, write the report")
    summary = report(dataset_id, args, device.type)
    print_table(summary)
    print(f"Report: {home / 'report' / 'index.html'}")
    print(f"Whole path: {(time.monotonic() - started) / 60:.1f} minutes, not counting the installation.")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="an ACDC folder instead of the phantoms")
    parser.add_argument("--out", type=Path, default=SCRIPTS.parent / "demo_output", help="default: demo_output/")
    parser.add_argument("--labeled", type=int, metavar="N", help="labelled patients (default: 1, of ACDC 3)")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="training steps a method (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    args = parser.parse_args(argv)
    if args.labeled is None:
        args.labeled = 1 if args.data is None else 3
    if args.steps < EPOCHS:
        parser.error(f"--steps must be at least {EPOCHS}")
    if args.steps % EPOCHS:
        asked, args.steps = args.steps, EPOCHS * round(args.steps / EPOCHS)
        print(f"--steps {asked} is no multiple of the {EPOCHS} epochs: training {args.steps} steps.")
    return args


def claim(home: Path, args: argparse.Namespace, device: str) -> None:
    """Write down what this folder is made with, or stop where an earlier run of the demo made it with something else.

    Data, plan and models of the earlier run stay, so that a run that was stopped goes on.
    """
    data = None if args.data is None else str(args.data.resolve())
    wanted = {"data": data, "labeled": args.labeled, "steps": args.steps, "seed": args.seed, "device": device}
    remedy = "give another --out, or delete the folder."
    file = home / STAMP
    if not any(home.glob("nnUNet_*/Dataset*")):  # also where an earlier run was refused its data
        home.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        return
    if not file.is_file():
        sys.exit(f"Error: {home} holds a dataset, but no {STAMP} that says what it was made with; {remedy}")
    made = json.loads(file.read_text(encoding="utf-8"))
    for name, value in wanted.items():
        if made.get(name) != value:
            before, now = (str("none" if v is None else v) for v in (made.get(name), value))
            argument = "the device" if name == "device" else f"--{name}"
            sys.exit(f"Error: {home} was made with {argument} {before}, not {now}; {remedy}")


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def make_dataset(args: argparse.Namespace) -> int:
    """Write the raw dataset unless an earlier run of the demo has; returns its ID."""
    dataset_id = 901 if args.data is None else 27
    if list(Path(os.environ["nnUNet_raw"]).glob(f"Dataset{dataset_id:03d}_*")):
        print("The dataset is there from an earlier run.")
        return dataset_id
    if args.data is None:
        command = [SCRIPTS / "make_phantoms.py", "--labeled", str(args.labeled), "--seed", str(args.seed)]
    else:
        converter = SCRIPTS.parent / "dataset_conversion" / "Dataset027_ACDC.py"
        command = [converter, "-i", args.data, "--labeled", str(args.labeled)]
    done = subprocess.run([sys.executable, *map(str, command)], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return dataset_id


def plan(dataset_id: int, args: argparse.Namespace, has_gpu: bool) -> None:
    """nnU-Net's planning with the unlabelled images, then a plan and a budget that this machine can carry."""
    from small_plan import main as edit_plan

    from nnunetv2_vqseg.commands.plan import main as plan_and_preprocess

    common = ["-d", str(dataset_id), "-npfp", "2", "-np", "2", "--no_pbar"]
    plan_and_preprocess([*common, "--no_pp"])
    spacing = "2.4" if args.data is None else "5"
    shape = [] if has_gpu else ["--patch", "48", "--spacing", spacing, "--features", "16", "--max-features", "128"]
    edit_plan(["-d", str(dataset_id), *shape, "--set", *settings(args, has_gpu)])

    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess

    preprocess([dataset_id], PLANS, ["2d"], [2], show_progress_bar=False)


def settings(args: argparse.Namespace, has_gpu: bool) -> list[str]:
    """Keys of the plan's `vqseg` block, as `scripts/small_plan.py --set` takes them."""
    budget = [
        f"num_epochs={EPOCHS}",
        f"iterations_per_epoch={args.steps // EPOCHS}",
        "val_iterations_per_epoch=5",
        f"seed={args.seed}",
    ]
    return budget if has_gpu else [*budget, "num_codes=1024"]


def train_all(dataset_id: int, device: str, logs: Path) -> None:
    """Train what an earlier run has not; on a CPU side by side, because one training cannot keep all of it busy."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    logs.mkdir(exist_ok=True)
    try:
        for name, trainer in TRAINERS.items():
            folder = fold_folder(dataset_id, trainer)
            if folder and (folder[0] / "validation" / "summary.json").is_file():
                print(f"{name}: trained by an earlier run.")
                continue
            running[name] = start_training(dataset_id, trainer, device, bool(folder), logs / f"{trainer}.txt")
            if device != "cpu":
                watch(running, logs)
        watch(running, logs)
    except BaseException:
        for process in running.values():
            process.terminate()  # at which they save
        for process in running.values():
            process.wait()
        raise


def start_training(dataset_id: int, trainer: str, device: str, again: bool, log: Path) -> subprocess.Popen[bytes]:
    """`nnUNetv2_train` with a share of the processors; it goes on where an earlier run was stopped."""
    environment = dict(os.environ)
    if device == "cpu":
        environment |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(TRAINERS))), "nnUNet_n_proc_DA": "0"}
    command = [sys.executable, "-m", "nnunetv2_vqseg.train", str(dataset_id), "2d", "0", "-tr", trainer, "-p", PLANS]
    command += ["-device", device, *(["--c"] if again else [])]
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def watch(running: Mapping[str, subprocess.Popen[bytes]], logs: Path) -> None:
    """Wait for trainings, and say how far they are.

    Raises:
        SystemExit: one failed; its last lines are shown.
    """
    told = ""
    while None in (codes := [process.poll() for process in running.values()]) and not any(codes):
        time.sleep(1)
        text = "; ".join(f"{name}: {progress(logs / f'{TRAINERS[name]}.txt')}" for name in running)
        if text != told:
            print(text, flush=True)
        told = text
    for name, process in running.items():
        if process.returncode:
            log = logs / f"{TRAINERS[name]}.txt"
            print(*log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:], sep="\n")
            sys.exit(f"Error: the training of {name} failed; see {log}.")


def progress(log: Path) -> str:
    """How far a training is, as its log says."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if "Training done." in text:
        return "final validation"
    epochs = re.findall(r": Epoch (\d+)", text)
    return f"epoch {int(epochs[-1]) + 1} of {EPOCHS}" if epochs else "starting"


def fold_folder(dataset_id: int, trainer: str) -> list[Path]:
    """Where a training writes, in a list; empty before its start."""
    return list(Path(os.environ["nnUNet_results"]).glob(f"Dataset{dataset_id:03d}_*/{trainer}__{PLANS}__2d/fold_0"))


def facts(records: Mapping[str, TrainingRecord]) -> list[str]:
    """What a reader must know about the demonstration, as the checkpoints have it."""
    told = "; ".join(
        f"{name} {record.steps} steps on {record.runtime.get('labeled_cases')} labelled volumes"
        for name, record in records.items()
    )
    return [
        f"Demonstration: {told}. Few cases and short trainings: which method is better on your data, only they say.",
        WITHOUT_PFA,
    ]


def report(dataset_id: int, args: argparse.Namespace, device: str) -> dict[str, Any]:
    from nnunetv2_vqseg.report.compare import Comparison

    records = {
        name: read_training_record(fold_folder(dataset_id, trainer)[0] / "checkpoint_final.pth")
        for name, trainer in TRAINERS.items()
    }
    return Comparison(
        dataset_id,
        list(TRAINERS.values()),
        args.out,
        plans=[PLANS],
        labels=list(TRAINERS),
        device=device,
        num_processes=workers(),
        title="VQ-Seg demonstration",
        notes=facts(records),
    ).run()


def workers(shared: Path = Path("/dev/shm")) -> int:
    """Processes of the report: this one where there is little shared memory for handing images over, as in Docker."""
    small = shared.is_dir() and shutil.disk_usage(shared).total < ENOUGH_SHARED
    return 1 if small else 2


def print_table(summary: dict[str, Any]) -> None:
    """Mean over the test cases and classes, a line a method; then what a reader must know."""
    metrics = ("Dice", "Jaccard", "HD95", "ASD")
    print(f"\n{'':24s}" + "".join(f"{metric:>10s}" for metric in metrics) + f"   ({summary['units']}s)")
    for name, method in summary["methods"].items():
        means = (method["summary"]["mean"][metric]["mean"] for metric in metrics)
        print(f"{name:24s}" + "".join(f"{'-' if value is None else f'{value:.3f}':>10s}" for value in means))
    print("\n".join([*summary["notes"], *summary["notices"]]))


if __name__ == "__main__":
    main()
