"""What one training step of a plan sends between processes, collective by collective.

    python scripts/count_traffic.py -d 27 -p nnUNetVQSegPlans

Runs real steps on random images, on the CPU and in a process group of one, and writes down the size of every
collective on the way: it depends on the plan, not on the number of processes. Figures in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nnunetv2.run.run_training import get_trainer_from_args
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_vqseg.methods import vqseg
from nnunetv2_vqseg.trainer.trainer import MethodTrainer

STEPS = 2  # DDP puts gradients into its buckets after the first
LABELED, UNLABELED = 2, 1  # images; what is sent does not depend on them

Traffic = Counter[tuple[str, str, int]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, metavar="ID", help="dataset, planned and preprocessed")
    parser.add_argument("-p", default="nnUNetVQSegPlans", help="plans identifier")
    parser.add_argument("-c", default="2d", help="configuration")
    parser.add_argument("-tr", default="nnUNetTrainerVQSeg", help="trainer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        trainer = build(args, folder)
        with FlopCounterMode(display=False) as flops:
            traffic = count(trainer)
        trainer.save_checkpoint(str(Path(folder) / "checkpoint_latest.pth"))
        saved = (Path(folder) / "checkpoint_latest.pth").stat().st_size
        dist.destroy_process_group()
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    print(f"\n{parameters:,} parameters, a checkpoint of {saved / 1e6:.0f} MB")
    operations = flops.get_total_flops() / STEPS / 1e9
    print(f"{operations:.0f} GFLOP a step with {LABELED} labelled and {UNLABELED} unlabelled image\n")
    print("| collective | called in | calls | bytes |\n|---|---|---|---|")
    for (operation, caller, size), calls in sorted(traffic.items(), key=lambda item: -item[0][2] * item[1]):
        print(f"| {operation} | `{caller}` | {calls} | {size * calls:,} |")


def build(args: argparse.Namespace, folder: str) -> MethodTrainer:
    """The trainer, initialised, with an untrained foundation model: only the size of its features counts."""
    load = functools.partial(vqseg.load_foundation_model, random_weights=True)
    vqseg.load_foundation_model = load  # type: ignore[assignment]
    trainer = get_trainer_from_args(args.d, args.c, 0, args.tr, args.p, device=torch.device("cpu"))
    trainer.log_file = str(Path(folder) / "log.txt")
    trainer.initialize()
    return trainer


def count(trainer: MethodTrainer) -> Traffic:
    """The last of some steps; (collective, function that calls it, bytes) -> number of calls."""
    traffic: Traffic = Counter()

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def collective(*arguments: Any, **options: Any) -> Any:
            sent = next(part for part in arguments[::-1] if isinstance(part, torch.Tensor))
            traffic[name, caller(), sent.nbytes] += 1
            return call(*arguments, **options)

        return collective

    trainer.network.register_comm_hook(None, allreduce_hook)  # DDP's own is not called from Python
    for name in ("all_reduce", "broadcast", "all_gather"):
        setattr(dist, name, counted(name, getattr(dist, name)))
    channels, height, width = trainer.num_input_channels, *trainer.configuration_manager.patch_size
    labeled, unlabeled = (torch.randn(count, channels, height, width) for count in (LABELED, UNLABELED))
    scales = trainer._get_deep_supervision_scales()
    target = [torch.randint(2, (LABELED, 1, int(height * h), int(width * w))) for h, w in scales]
    trainer.dataloader_unlabeled = itertools.repeat({"data": unlabeled})
    trainer.network.train()
    for _ in range(STEPS):
        traffic.clear()
        trainer.train_step({"data": labeled, "target": target})
    return traffic


def caller() -> str:
    """The function of this package or of nnU-Net's from which a collective is called."""

    def frames() -> Iterator[Any]:
        frame = sys._getframe(2)
        while frame is not None:
            yield frame
            frame = frame.f_back

    helpers = ("mean_over_processes", "forward", "backward")
    for frame in frames():
        if "nnunetv2" in frame.f_code.co_filename and frame.f_code.co_name not in helpers:
            return f"{Path(frame.f_code.co_filename).name}, {frame.f_code.co_name}"
    return "backward"


if __name__ == "__main__":
    main()
