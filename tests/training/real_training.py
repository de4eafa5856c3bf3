"""Real trainings in processes of their own, for tests that kill, stop and distribute them.

Importing nnU-Net takes 10 s: a fork server imports this module once, and every training is a fork of it.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from importlib.metadata import entry_points
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.run import run_training
from nnunetv2.run.run_training import get_trainer_from_args, run_training_entry
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_vqseg.commands import train as train_command
from nnunetv2_vqseg.commands.rendezvous import join_process_group
from nnunetv2_vqseg.core.errors import DatasetError
from nnunetv2_vqseg.methods import vqseg
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.trainer import cases, checkpoint_files, ranks
from nnunetv2_vqseg.trainer.curves import EpochCurves
from nnunetv2_vqseg.trainer.step import Stepper
from nnunetv2_vqseg.trainer.stopping import StopRequest
from nnunetv2_vqseg.trainer.trainer import MethodTrainer

DATASET = "Dataset901_Phantom"
Target = Callable[..., None]
_started: list[ForkServerProcess] = []


def console_script(name: str, *arguments: str) -> None:
    """A command of this environment, with forks in place of the processes that it spawns, each to import nnU-Net."""
    get_context = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: get_context("fork" if method == "spawn" else method)
    (script,) = entry_points(group="console_scripts", name=name)
    sys.argv = [name, *arguments]
    script.load()()


def nnunet_train(*arguments: str) -> None:
    """The command `nnUNetv2_train`."""
    sys.argv = ["nnUNetv2_train", *arguments]
    run_training_entry()


def distributed_train(*arguments: str) -> None:
    """`-m nnunetv2_vqseg.train`, as torchrun starts it."""
    train_command.main(list(arguments))


def nnunet_ddp(*arguments: str) -> None:
    """A process of `nnUNetv2_train ... -num_gpus N`, with gloo and a CPU in place of NCCL and a GPU."""
    args = train_command.parse_arguments(list(arguments))
    rank, world = (int(os.environ.pop(name)) for name in ("RANK", "WORLD_SIZE"))
    run_training.setup_ddp = lambda rank, world: dist.init_process_group("gloo", rank=rank, world_size=world)
    run_training.get_trainer_from_args = functools.partial(get_trainer_from_args, device=torch.device("cpu"))
    torch.cuda.set_device = lambda device: None
    plan = (args.dataset_name_or_id, args.configuration, args.fold, args.tr, args.p)
    run_training.run_ddp(rank, *plan, False, args.c, args.val, None, args.npz, args.val_best, world)


def weights_on_rank_0_only(*arguments: str) -> None:
    """The foundation model's weights are on one of two machines."""
    found = os.environ["RANK"] == "0"
    vqseg.load_foundation_model = lambda *args, **options: (torch.nn.Identity() if found else None, "looked")
    _distributed_trainer(arguments).initialize()


def twenty_steps(folder: str, *arguments: str) -> None:
    """Steps of a real trainer on several ranks; what each saw and became goes to `folder/<rank>.pt`."""
    trainer = _distributed_trainer(arguments)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    rank, seen = dist.get_rank(), []
    for _ in range(20):
        batch = next(trainer.dataloader_train)
        seen.append(float(batch["data"].sum()))
        trainer.train_step(batch)
    result: dict[str, Any] = {
        "seen": seen,
        "batch_sizes": [len(batch["data"]), len(next(trainer.dataloader_unlabeled)["data"])],
        "state": {"student": trainer.method.net.state_dict(), "teacher": trainer.method.teacher.state_dict()},
        "sums": dict(trainer.curves._sums),
    }

    if rank == 0:  # as in the final validation, where ranks have different numbers of forward passes
        with torch.no_grad():
            trainer.network.eval()(batch["data"])
        trainer.network.train()
    dist.barrier()

    student = {name: value.clone() for name, value in trainer.method.net.state_dict().items()}
    batch = next(trainer.dataloader_train)
    batch["data"].mul_(float("nan") if rank == 1 else 1.0)
    trainer.train_step(batch)
    weighted = trainer.method.weighted  # next a loss that is infinite, but its gradient is not
    more = {"more": (1.0, torch.tensor(float("inf") if rank else 0.0))}
    trainer.method.weighted = lambda *args: weighted(*args) | more
    trainer.train_step(next(trainer.dataloader_train))
    trainer.method.weighted = weighted
    result["bad_steps"] = trainer.stepper.bad_steps
    result["unchanged"] = all(
        torch.equal(student[name], value) for name, value in trainer.method.net.state_dict().items()
    )

    trainer.stop_request = StopRequest()
    trainer.stop_request.received = signal.SIGTERM if rank == 1 else None
    try:
        trainer.train_step(next(trainer.dataloader_train))
    except SystemExit as stop:
        result["exit_code"] = stop.code
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def steps_of_methods(folder: str, *trainings: Sequence[str]) -> None:
    """Five steps of several trainers in their last epoch, one after the other, on several ranks.

    What each rank saw and became goes to `folder/<trainer>.<rank>.pt`.
    """
    join_process_group("gloo", timedelta(minutes=5))
    for arguments in trainings:
        trainer = _trainer(arguments)
        trainer.on_train_start()
        trainer.current_epoch = trainer.num_epochs - 1
        trainer.on_train_epoch_start()
        seen = []
        for _ in range(5):
            batch = next(trainer.dataloader_train)
            seen.append(float(batch["data"].sum()))
            trainer.train_step(batch)
        trainer.stop_loaders()
        guard = None if trainer.method.guard is None else trainer.method.guard.state()
        own = {"cases": trainer.pool.state(), "guard": guard, **trainer.method.state()}
        content = {"seen": seen, "student": unwrap(trainer.network).state_dict(), **own}
        torch.save(content, Path(folder) / f"{type(trainer).__name__}.{dist.get_rank()}.pt")
        dist.barrier()
    dist.destroy_process_group()


def prepare(what_rank_0_does: str, *arguments: str) -> None:
    """The start of a training whose first rank is slow, fails or dies while it preprocesses."""
    trainer = _distributed_trainer(arguments)
    original = cases.prepare_unlabeled_cases

    def prepare_unlabeled_cases(*args: Any, **kwargs: Any) -> list[str]:
        if what_rank_0_does == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if what_rank_0_does == "fails":
            raise DatasetError("This image is broken.")
        time.sleep(3)
        return original(*args, **kwargs)

    cases.prepare_unlabeled_cases = prepare_unlabeled_cases
    ranks.SECONDS_BETWEEN_MESSAGES = 1.5
    print("prepared", trainer.cases.prepare_unlabeled(trainer.ranks, False))
    dist.barrier()
    dist.destroy_process_group()


def _distributed_trainer(arguments: Sequence[str]) -> MethodTrainer:
    join_process_group("gloo", timedelta(minutes=5))
    return _trainer(arguments)


def _trainer(arguments: Sequence[str]) -> MethodTrainer:
    args = train_command.parse_arguments(list(arguments))
    return get_trainer_from_args(
        args.dataset_name_or_id, args.configuration, args.fold, args.tr, args.p, device=torch.device("cpu")
    )


def start(
    target: Target,
    *arguments: Any,
    log: Path,
    environment: Mapping[str, str] | None = None,
    shortened: bool = True,
) -> ForkServerProcess:
    """`target(*arguments)` in a new process that writes to `log`.

    `shortened` is without what `shorten` leaves out.
    `environment` may hold, beside what trainings read, KILL_IN_WRITE=n, to die in the middle of writing the n-th
    checkpoint.
    """
    import quick_nnunet  # of the tests, which torchrun does not find

    quick_nnunet.preload()
    context = multiprocessing.get_context("forkserver")
    settings = {name: value for name, value in os.environ.items() if name.lower().startswith(("nnunet_", "omp_"))}
    process = context.Process(
        target=_run, args=(target, arguments, str(log), settings | dict(environment or {}), shortened)
    )
    process.start()
    _started.append(process)
    return process


def kill_all() -> None:
    """End what a test that failed has left running."""
    while _started:
        process = _started.pop()
        process.kill()
        process.join()


def start_ranks(
    target: Target, *arguments: Any, world: int, log: Path, environments: Sequence[Mapping[str, str]] | None = None
) -> list[ForkServerProcess]:
    """`target` in `world` processes with the environment that torchrun gives them; logs are `<log>.<rank>`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        environment |= environments[rank] if environments else {}
        processes.append(start(target, *arguments, log=log.with_name(f"{log.name}.{rank}"), environment=environment))
    return processes


def finish(processes: Sequence[ForkServerProcess], seconds: float = 600) -> list[int | None]:
    """Exit codes; None, and killed, for one that did not end in time."""
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def write_plan(home: Path, name: str, trainer: str = "nnUNetTrainerVQSeg", **block: Any) -> list[str]:
    """A plan of this name with these keys in its `vqseg` block; the arguments of a training with it."""
    folder = home / "preprocessed" / DATASET
    plans = json.loads((folder / "nnUNetVQSegPlans.json").read_text(encoding="utf-8"))
    plans["plans_name"] = name
    # Two unlabelled images on each of two processes, which CutMix needs.
    plans["configurations"]["2d"]["vqseg"].update({"unlabeled_batch_size": 4, **block})
    (folder / f"{name}.json").write_text(json.dumps(plans), encoding="utf-8")
    return ["901", "2d", "0", "-tr", trainer, "-p", name, "-device", "cpu"]


def fold_folder(home: Path, plan: str) -> Path:
    """Where a training with this plan writes."""
    return home / "results" / DATASET / f"nnUNetTrainerVQSeg__{plan}__2d" / "fold_0"


def _run(target: Target, arguments: Sequence[Any], log: str, environment: Mapping[str, str], shortened: bool) -> None:
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout.reconfigure(line_buffering=True)  # tests wait for lines of the log
    multiprocessing.set_start_method("fork", force=True)  # what Linux does, for the loaders' workers
    (shorten if shortened else stay_on_one_thread)()
    target(*arguments)


def stay_on_one_thread() -> None:
    """nnU-Net takes all cores of the machine on a CPU."""
    torch.set_num_threads(1)
    torch.set_num_threads = lambda number: None


def shorten() -> None:
    """Leave out what takes longest and is no part of these tests: plots, final validation, threads, timed blur."""
    stay_on_one_thread()
    MetaLogger.plot_progress_png = lambda self, output_folder: None
    EpochCurves.plot = lambda self, filename: None
    if "PREVIEWS" not in os.environ:
        MethodTrainer._draw_preview = lambda self: None
    nnUNetTrainer.perform_actual_validation = lambda self, save_probabilities=False: None
    GaussianBlurTransform._apply_to_image = lambda self, image, **_: image
    if number := int(os.environ.get("KILL_IN_WRITE", "0")):
        _die_in_write(number)
    if place := os.environ.get("KILL_AT"):
        _die_at(*(int(part) for part in place.split(":")))


def _die_in_write(number: int) -> None:
    save, count = torch.save, 0

    def save_half(content: Any, file: Any) -> None:
        nonlocal count
        count += 1
        if count < number:
            return save(content, file)
        half = file.tell()
        save(content, file)
        file.flush()
        os.truncate(file.fileno(), (file.tell() - half) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint_files.torch.save = save_half


def _die_at(rank: int, epoch: int, step: int) -> None:
    """One rank dies in the middle of a step, in the first attempt of torchrun."""
    gradients, on_epoch_start = Stepper.gradients, MethodTrainer.on_train_epoch_start
    place = [0, 0]  # epoch, and step in it

    def count_epochs(self: MethodTrainer) -> None:
        place[:] = [self.current_epoch, 0]
        on_epoch_start(self)

    def die_or_step(self: Stepper, *arguments: Any) -> Any:
        if [self.ranks.rank, *place] == [rank, epoch, step] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        place[1] += 1
        return gradients(self, *arguments)

    Stepper.gradients = die_or_step
    MethodTrainer.on_train_epoch_start = count_epochs


if __name__ == "__main__":
    shorten()
    distributed_train(*sys.argv[1:])
