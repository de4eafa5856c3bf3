"""`files`: planning and preparing many small unlabelled images, and what a training that starts looks at."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.io import imsave

from benchmarks.measure import exponent
from benchmarks.output import Row, print_table

NAME, LABELED, SIDE = "Dataset950_Files", 6, 64
PR_SET_CHILD_SUBREAPER = 36

# What a training does on cases that are prepared; seconds without the imports.
LOOK = """
import json, sys, time
from pathlib import Path
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2_vqseg.data.cases import find_unlabeled_cases
from nnunetv2_vqseg.data.preprocess import prepare_unlabeled_cases, unlabeled_folder
raw, base = map(Path, sys.argv[1:])
dataset = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
plans = PlansManager(str(base / "nnUNetVQSegPlans.json"))
configuration = plans.get_configuration("2d")
folder = unlabeled_folder(str(base / configuration.data_identifier))
start = time.perf_counter(), time.process_time()
cases = find_unlabeled_cases(raw, dataset, None)
prepare_unlabeled_cases(cases, plans, configuration, dataset, folder, 0)
print(json.dumps([time.perf_counter() - start[0], time.process_time() - start[1]]))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--files", type=int, nargs="+", default=(20, 2000, 20000), metavar="N", help="default: 20 2000 20000"
    )
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="for -np and -npfp (default: 2)")
    parser.add_argument("--folder", type=Path, help="where datasets are written (default: one that is deleted)")


def run(args: argparse.Namespace, device: torch.device) -> dict[str, list[Row]]:
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:  # processor time of grandchildren
        raise OSError("this benchmark needs Linux")
    rows: list[Row] = []
    for number in sorted(args.files):
        with tempfile.TemporaryDirectory(dir=args.folder) as root:
            rows.append(_measure(Path(root), number, args.processes))
            least = rows[0]
            for key in ("wall", "processor") if number > least["files"] else ():
                more = rows[-1][f"{key} s"] - least[f"{key} s"]
                rows[-1][f"{key} ms a file"] = 1e3 * more / (number - least["files"])
        print_table(rows, f"Planning and preparing, {args.processes} processes")
    table = {"files": rows}
    if len(rows) > 2:
        table["exponents"] = [
            {
                "what": f"{key}, above that of {least['files']} files",
                "exponent": exponent(
                    [row["files"] for row in rows[1:]], [row[f"{key} s"] - least[f"{key} s"] for row in rows[1:]]
                ),
            }
            for key in ("wall", "processor")
        ]
        print_table(table["exponents"], "Exponents b of seconds = a * files^b")
    return table


def make_dataset(raw: Path, unlabeled: int) -> None:
    """PNG images of a bright rectangle in noise: a few labelled ones, and as many unlabelled ones as wanted."""
    generator = np.random.default_rng(0)
    for folder, number in (("imagesTr", LABELED), ("imagesUl", unlabeled)):
        (raw / folder).mkdir(parents=True)
        (raw / "labelsTr").mkdir(exist_ok=True)
        for case in range(number):
            image = generator.integers(60, 140, (SIDE, SIDE), np.uint8)
            label = np.zeros_like(image)
            label[20:40, 20 + case % 10 : 40] = 1
            name = f"{folder[-2:]}{case:06d}"
            imsave(raw / folder / f"{name}_0000.png", image + 80 * label, check_contrast=False)
            if folder == "imagesTr":
                imsave(raw / "labelsTr" / f"{name}.png", label, check_contrast=False)
    content = {
        "channel_names": {"0": "gray"},
        "labels": {"background": 0, "block": 1},
        "numTraining": LABELED,
        "file_ending": ".png",
    }
    (raw / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def _measure(root: Path, number: int, processes: int) -> Row:
    folders = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    raw, base = (Path(folders[name]) / NAME for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    make_dataset(raw, number)
    environment = {**os.environ, **folders}
    command: list[Any] = [sys.executable, "-m", "nnunetv2_vqseg.commands.plan", "-d", 950, "-np", processes]
    before, start = _processor_seconds(), time.perf_counter()
    subprocess.run(
        [*map(str, command), "-npfp", str(processes), "--no_pbar"],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    wall = time.perf_counter() - start
    _wait_for_orphans()
    processor, peak = _processor_seconds() - before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    look = subprocess.run(
        [sys.executable, "-c", LOOK, str(raw), str(base)], env=environment, check=True, capture_output=True, text=True
    )
    look_wall, look_processor = json.loads(look.stdout.splitlines()[-1])
    return {
        "files": number,
        "wall s": wall,
        "processor s": processor,
        "largest process MB": peak / 1e3,
        "look wall s": look_wall,
        "look processor s": look_processor,
    }


def _wait_for_orphans() -> None:
    """The workers' processor time counts once they have been waited for."""
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
