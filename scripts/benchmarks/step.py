"""`step`: one training step of stock nnU-Net and of VQ-Seg on the same plan, and where its time goes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import workbench
from benchmarks.against import compared
from benchmarks.measure import clock, compare, in_the_kernel, peak_memory
from benchmarks.output import Row, print_table
from nnunetv2_vqseg import trainers as all_trainers
from nnunetv2_vqseg.methods import teacher as teacher_module
from nnunetv2_vqseg.methods.teacher import EMAMethod, TeacherMethod
from nnunetv2_vqseg.methods.vqseg import VQSeg
from nnunetv2_vqseg.modules.vq import quantizer

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "nnU-Net": (workbench.STOCK, {}),
    "mean teacher": ("nnUNetTrainerMeanTeacher", {}),
    "VQ-Seg": ("nnUNetTrainerVQSeg", {}),
    "VQ-Seg + DINOv2": ("nnUNetTrainerVQSeg", {"foundation": True}),
}

STEPS_OF_A_ROUND = 2
"""With `--against`."""

WINDOW = 300
"""Steps of a row of `--train-first`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    workbench.add_arguments(parser)
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(VARIANTS),
        type=_variant,
        metavar="NAME",
        help=f"{', '.join(VARIANTS)} (the default), or any trainer with the batch that its method has",
    )
    parser.add_argument(
        "--progress",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the training that is over, for methods that have stages (default: 0)",
    )
    parser.add_argument(
        "--train-first",
        type=int,
        default=0,
        metavar="STEPS",
        help="steps before measuring, over which QPM is timed with the rebuilds of its table (default: 0)",
    )
    parser.add_argument(
        "--against",
        metavar="COMMIT",
        help="or JSON of an earlier measurement, which names it: time that commit's step and today's in turns, and "
        "nothing else; `--set` is for today's alone",
    )
    parser.add_argument(
        "--plain-steps",
        type=int,
        default=0,
        metavar="N",
        help="run N steps of each variant and measure nothing, for TORCH_LOGS: a stopwatch inside compiled code would "
        "break its graph (default: 0)",
    )


def _variant(name: str) -> str:
    if name not in VARIANTS and name not in all_trainers.__all__:
        raise argparse.ArgumentTypeError(
            f"there is no {name}; there are {', '.join([*VARIANTS, *all_trainers.__all__])}"
        )
    return name


def run(args: argparse.Namespace, device: torch.device) -> dict[str, list[Row]]:
    if args.against:
        only_now = ["--set", *args.set] if args.set else []
        rows = compared(args.against, forwarded(args), args.variants, args.repeats, STEPS_OF_A_ROUND, only_now)
        print_table(rows, f"One step, then ({args.against}) and now, in turns; only the ratio means something")
        return {"against": rows}
    with workbench.workbench(args, device) as bench:
        trainers = {name: _start(bench, name, args.progress) for name in args.variants}
        if args.plain_steps:
            for trainer in trainers.values():
                _train(trainer, range(args.plain_steps))
                workbench.stop_loaders(trainer)
            return {}
        steps = {name: lambda trainer=trainer: _step(trainer) for name, trainer in trainers.items()}
        counted = [
            row for name, trainer in trainers.items() for row in _train_first(name, trainer, args.train_first, device)
        ]
        seconds = compare(steps, device, args.repeats, args.seconds, args.compile)
        memory = {name: peak_memory(step, device) for name, step in steps.items()}
        totals = [_total(name, trainers[name], seconds[name], memory[name]) for name in steps]
        if device.type == "cpu":
            for row, step in zip(totals, steps.values(), strict=True):
                in_kernel, faults = in_the_kernel(step)
                row |= {"kernel_ms": in_kernel * 1e3, "page_faults": faults}
        stock = totals[0]["ms_per_image"]
        totals = [{**row, "of_first": row["ms_per_image"] / stock} for row in totals]
        parts = [_parts(name, trainer, device, args.repeats) for name, trainer in trainers.items()]
        for trainer in trainers.values():
            workbench.stop_loaders(trainer)
    print_table(totals, "One step; images are those that pass the student")
    print_table(parts, "Milliseconds of its parts")
    if counted:
        print_table(counted, "QPM's neighbour table")
    return {"totals": totals, "parts": parts, "tables": counted}


def forwarded(args: argparse.Namespace) -> list[str]:
    """The arguments that make the same workbench again."""
    names = {"dataset_id": "-d", "plans_name": "-p", "configuration": "-c"}
    keys = ("device", "dataset_id", "plans_name", "configuration", "features", "max_features", "batch_size", "codes")
    found: list[str] = []
    for key in (*keys, "workers", "progress"):
        value = getattr(args, key)
        if value is not None and (key, value) != ("progress", 0.0):  # which earlier commits do not know
            found += [names.get(key, f"--{key.replace('_', '-')}"), str(value)]
    if args.patch:
        found += ["--patch", *map(str, args.patch)]
    return found + ["--compile"] * args.compile


def _start(bench: workbench.Workbench, name: str, progress: float) -> Any:
    trainer_name, block = VARIANTS.get(name, (name, {"unlabeled_batch_size": None}))
    if block.get("foundation"):
        block = workbench.foundation_weights(Path(os.environ["nnUNet_results"]).parent)
    trainer = bench.started_trainer(trainer_name, **block)
    trainer.stepper.step = round(progress * trainer.num_epochs * trainer.num_iterations_per_epoch)
    return trainer


def _step(trainer: Any) -> None:
    trainer.train_step(next(trainer.dataloader_train))


def _train_first(name: str, trainer: Any, steps: int, device: torch.device) -> list[Row]:
    """What QPM costs beside the lookup while codes move as they do in training, rebuilds of its table included.

    Returns:
        A row for every `WINDOW` steps; none for a trainer without QPM.
    """
    perturbation = trainer.method.net.perturbation if isinstance(trainer.method, VQSeg) else None
    done, rows = 0, []
    while done < steps:
        count = min(WINDOW, steps - done)
        if perturbation is None:
            _train(trainer, range(done, done + count))
        else:
            rows.append({"variant": name, "steps": f"{done} to {done + count - 1}"})
            rows[-1] |= _qpm_of_lookup(trainer, perturbation, range(done, done + count), device)
        done += count
    return rows


def _train(trainer: Any, numbers: range) -> None:
    for number in numbers:
        if number and number % trainer.num_iterations_per_epoch == 0:
            with workbench.silence():
                trainer.on_train_epoch_start()
        _step(trainer)


def _qpm_of_lookup(trainer: Any, perturbation: Any, numbers: range, device: torch.device) -> Row:
    watch = Stopwatch(device)
    with ExitStack() as stack:
        lookup = watch.timed("lookup", quantizer.nearest_codes)
        stack.enter_context(patch.object(quantizer, "nearest_codes", lookup))
        for method in ("prepare", "forward"):
            timed = watch.timed(f"QPM {method}", getattr(perturbation, method))
            stack.enter_context(patch.object(perturbation, method, timed))
        _train(trainer, numbers)
    # The teacher does not look codes up where its decoder reads z.
    row: Row = {f"{part}_ms": 1e3 * seconds / len(numbers) for part, seconds in watch.seconds.items()}
    return {**row, "QPM_of_lookup": (row["QPM prepare_ms"] + row["QPM forward_ms"]) / row["lookup_ms"]}


def _total(name: str, trainer: Any, seconds: float, memory: int) -> Row:
    images = sum(trainer.runtime()["images_a_step"])
    return {
        "variant": name,
        "images": images,
        "ms": seconds * 1e3,
        "images_per_s": images / seconds,
        "ms_per_image": seconds * 1e3 / images,
        "peak_MB": memory / 1e6,
        "MB_per_image": memory / 1e6 / images,
    }


def _parts(name: str, trainer: Any, device: torch.device, repeats: int) -> Row:
    """Mean milliseconds of each part of a step, apart from the parts inside it; sums up to the step.

    A GPU is waited for at every boundary, so that the sum exceeds the step as it usually runs.
    """
    watch = Stopwatch(device)
    trainer.step_graph.recorder = None  # a graph would repeat what it recorded, past the stopwatch
    with _instrumented(trainer, watch):
        for _ in range(repeats):
            watch.timed("rest", _step)(trainer)
    total = sum(watch.seconds.values())
    row: Row = {"variant": name}
    row |= {part: 1e3 * watch.seconds.get(part, 0.0) / repeats for part in PARTS}
    return {**row, "sum": 1e3 * total / repeats}


PARTS = (
    "loading",
    "views",
    "teacher",
    "foundation model",
    "QPM table",
    "student forward",
    "losses",
    "backward",
    "optimiser",
    "EMA",
    "codebook",
    "rest",
)


class Stopwatch:
    """Adds up the time spent in each named part, without that of parts called from within."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time going to `part`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            started = clock(self.device)
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = clock(self.device) - started
                self.seconds[part] = self.seconds.get(part, 0.0) + elapsed - self._inner.pop()
                self._inner[-1] += elapsed

        return run


class _TimedLoader:
    def __init__(self, loader: Any, watch: Stopwatch) -> None:
        self._next = watch.timed("loading", loader.__next__)

    def __next__(self) -> Any:
        return self._next()


@contextmanager
def _instrumented(trainer: Any, watch: Stopwatch) -> Iterator[None]:
    """A trainer whose step reports to the stopwatch, by the names that its parts have there."""
    with ExitStack() as stack:
        for owner, name, part in _places(trainer):
            stack.enter_context(patch.object(owner, name, watch.timed(part, getattr(owner, name))))
        for name in ("dataloader_train", "dataloader_unlabeled"):
            loader = getattr(trainer, name)
            if loader is not None:
                stack.enter_context(patch.object(trainer, name, _TimedLoader(loader, watch)))
        yield


def _places(trainer: Any) -> Iterator[tuple[Any, str, str]]:
    """Object, name of its function, and the part of the step that this is."""
    method = trainer.method
    yield trainer.network, "forward", "student forward"
    yield trainer.optimizer, "step", "optimiser"
    yield torch.nn.utils, "clip_grad_norm_", "optimiser"
    yield torch.Tensor, "backward", "backward"
    yield method, "supervised", "losses"
    if isinstance(method, EMAMethod):
        yield teacher_module, "update_teacher", "EMA"
    if isinstance(method, TeacherMethod):
        yield method, "teach", "views"
        yield method.teacher, "forward", "teacher"
        yield method, "strong", "views"
        yield method, "pseudo", "losses"
    if isinstance(method, VQSeg):
        yield method, "views", "views"
        yield method, "alignment_target", "foundation model"
        yield method, "before_step", "QPM table"
        yield method, "weighted", "losses"
        yield method, "after_step", "codebook"
