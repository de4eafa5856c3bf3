"""A training in this process, in a temporary folder, for probes that look inside."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunetv2_vqseg.trainer.trainer import MethodTrainer


def training_parser(description: str) -> argparse.ArgumentParser:
    """Which training, as `nnUNetv2_train` asks for it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("-f", default=0, type=int, help="fold (default: 0)")
    parser.add_argument("-tr", default="nnUNetTrainerVQSegQPMDB", help="trainer (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetVQSegPlans", help="plans (default: %(default)s)")
    parser.add_argument("-device", default="cpu", help="default: %(default)s")
    return parser


@contextmanager
def started_training(args: argparse.Namespace) -> Iterator[MethodTrainer]:
    """The trainer after `on_train_start`; what it writes goes to a temporary folder."""
    if args.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["nnUNet_results"] = scratch  # a trainer writes from its first moment on
        trainer = get_trainer_from_args(
            args.dataset, args.configuration, args.f, args.tr, args.p, device=torch.device(args.device)
        )
        trainer.on_train_start()
        try:
            yield trainer
        finally:
            trainer.stop_loaders()


def train_epochs(trainer: MethodTrainer, epochs: int, at_end: Callable[[], None]) -> None:
    """Training steps of some epochs, without validation and checkpoints; `at_end` is called after each epoch."""
    for _ in range(epochs):
        trainer.on_train_epoch_start()
        losses = [
            float(trainer.train_step(next(trainer.dataloader_train))["loss"])
            for _ in range(trainer.num_iterations_per_epoch)
        ]
        print(f"epoch {trainer.current_epoch}: loss {sum(losses) / len(losses):.3f}", flush=True)
        at_end()
        trainer.current_epoch += 1
