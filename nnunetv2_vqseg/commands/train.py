"""Training on many processes and machines: `torchrun ... -m nnunetv2_vqseg.train DATASET 2d FOLD -tr TRAINER ...`.

The options are those of `nnUNetv2_train`; how many processes there are is torchrun's to say. One process a GPU (NCCL),
or a process on CPUs (gloo, `-device cpu`). A training that torchrun restarts continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch.backends import cudnn
from torch.distributed.elastic.multiprocessing.errors import record

from nnunetv2_vqseg.commands.rendezvous import join_process_group, leave_process_group
from nnunetv2_vqseg.core.errors import CheckpointError, ConfigError, DatasetError, UserError
from nnunetv2_vqseg.core.folders import matching_datasets, nnunet_folder
from nnunetv2_vqseg.data.checks.dataset_json import load_dataset_json
from nnunetv2_vqseg.planning.missing_plan import plan_without_option
from nnunetv2_vqseg.planning.plans import load_plans
from nnunetv2_vqseg.trainer.checkpoint_files import newest_checkpoint
from nnunetv2_vqseg.trainer.pretrained import load_pretrained_weights
from nnunetv2_vqseg.trainer.stopping import exit_when_asked
from nnunetv2_vqseg.trainer.trainer import MethodTrainer

EXIT_REFUSED = 2
"""Exit code where the dataset, the plan or the options cannot be used; argparse uses it too."""

REFUSALS = (UserError, NotImplementedError)
"""What refuses to train says in one sentence why."""

# Ranks wait for each other this long; in the final validation one may have larger images than another.
PATIENCE = timedelta(minutes=30)
# Touched when a training begins anew, so that a restart knows its checkpoints from those of an earlier training.
STARTED = ".vqseg_started"


@record
def main(arguments: list[str] | None = None) -> None:
    """Train as `nnUNetv2_train` does, alone or as one of torchrun's processes."""
    args = parse_arguments(arguments)
    try:
        # Where the trainer has something to save, it handles signals itself.
        with exit_when_asked("start the same command again, with --c if a checkpoint was written"):
            trainer, args.p = require_readable_plan(args.dataset_name_or_id, args.p, args.tr)
            if "TORCHELASTIC_RUN_ID" in os.environ:
                require_trainer_for_torchrun(trainer, args.device)
                train_distributed(args)
            else:
                train_alone(args)
    except REFUSALS as error:
        print(f"ERROR: {error}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED) from error


def build_parser() -> argparse.ArgumentParser:
    """The options of `nnUNetv2_train`."""
    parser = argparse.ArgumentParser(
        prog="python -m nnunetv2_vqseg.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("dataset_name_or_id", help="dataset name or ID")
    parser.add_argument("configuration", help="configuration of the plan, such as 2d")
    parser.add_argument("fold", help="0 to 4, or all")
    parser.add_argument("-tr", default="nnUNetTrainerVQSeg", help="trainer")
    parser.add_argument(
        "-p", help="plans identifier. Default: nnUNetPlans, where there is none nnUNetVQSegPlans or the only plan"
    )
    parser.add_argument("-pretrained_weights", metavar="FILE", help="nnU-Net checkpoint to start from")
    parser.add_argument("-num_gpus", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--npz", action="store_true", help="save the final validation's softmax too")
    parser.add_argument("--c", action="store_true", help="continue from the newest checkpoint")
    parser.add_argument("--val", action="store_true", help="final validation only")
    parser.add_argument("--val_best", action="store_true", help="validate checkpoint_best instead of checkpoint_final")
    parser.add_argument("--disable_checkpointing", action="store_true", help="write no checkpoint")
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"), help="default: cuda")
    return parser


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options of `nnUNetv2_train`, with a sentence for those that make no sense together."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.fold != "all":
        if not args.fold.isdigit():
            parser.error(f"fold {args.fold} is neither a number nor 'all'.")
        args.fold = int(args.fold)
    if args.c and args.val:
        parser.error("--c continues a training and --val only validates a finished one; give one of them.")
    if args.c and args.pretrained_weights:
        parser.error("--c and -pretrained_weights exclude each other: a continued training has its weights.")
    if args.val_best and args.disable_checkpointing:
        parser.error("--val_best needs a checkpoint, which --disable_checkpointing does not write.")
    if args.num_gpus > 1:
        parser.error("use torchrun --nproc-per-node N here, or nnUNetv2_train with -num_gpus N.")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device on this machine; add -device cpu to train without one.")
    if args.device == "mps" and "TORCHELASTIC_RUN_ID" in os.environ:
        parser.error("torchrun works with -device cuda and -device cpu only.")
    return args


def require_readable_plan(dataset: str, plans: str | None, trainer: str) -> tuple[type[nnUNetTrainer], str]:
    """Say in a sentence what `nnUNetv2_train` says in a traceback, before it opens the plan.

    Args:
        plans: the plan's name; None for `plan_without_option`.

    Returns:
        The trainer's class, and the plan's name.

    Raises:
        DatasetError, PlansError: a path variable is not set, or dataset, plan or dataset.json cannot be read.
        ConfigError: there is no such trainer.
    """
    preprocessed = nnunet_folder("nnUNet_preprocessed")
    nnunet_folder("nnUNet_results")
    found = matching_datasets(dataset, preprocessed)
    if len(found) != 1:
        raise DatasetError(
            f"There is not exactly one dataset {dataset} in {preprocessed}; give the number or the full name of one "
            f"that was preprocessed."
        )
    folder = preprocessed / found[0]
    plans = plans or plan_without_option(folder)
    load_plans(folder / f"{plans}.json")
    load_dataset_json(folder / "dataset.json")
    try:
        with contextlib.redirect_stdout(None):  # it tells where it looks, and will again
            return recursive_find_trainer_class_by_name(trainer), plans
    except RuntimeError as error:
        raise ConfigError(
            f"There is no trainer {trainer}; correct its name after -tr, or set nnUNet_extTrainer to its folder."
        ) from error


def require_trainer_for_torchrun(trainer: type[nnUNetTrainer], device: str) -> None:
    """nnU-Net's own trainers take the GPU with the number of the global rank.

    Raises:
        ConfigError: this one would, and there is no such GPU.
    """
    machines = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    if not issubclass(trainer, MethodTrainer) and (device == "cpu" or machines > 1):
        raise ConfigError(
            f"{trainer.__name__} trains on the GPUs of one machine only; use -tr nnUNetTrainerSupervised, which is "
            f"stock nnU-Net anywhere, or leave torchrun out."
        )


def train_alone(args: argparse.Namespace) -> None:
    """What `nnUNetv2_train` does."""
    limit_threads(args.device, processes=1)
    train(args, args.c)


def train_distributed(args: argparse.Namespace) -> None:
    """nnU-Net's `run_ddp`, for any number of machines, for CPUs, and after a restart."""
    gpu = args.device == "cuda"
    limit_threads(args.device, processes=int(os.environ["LOCAL_WORLD_SIZE"]))
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    restarted = join_process_group("nccl" if gpu else "gloo", PATIENCE)
    try:
        continues = args.c or (not args.val and has_checkpoint(args, restarted))
        train(args, continues)
    finally:
        leave_process_group()


def train(args: argparse.Namespace, continues: bool) -> None:
    """nnU-Net's `run_training` for one process, but for `-pretrained_weights`, from which it would run code.

    Args:
        continues: from the newest checkpoint.
    """
    trainer = get_trainer_from_args(
        args.dataset_name_or_id,
        args.configuration,
        args.fold,
        args.tr,
        args.p,
        continues,
        device=torch.device(args.device),
    )
    trainer.disable_checkpointing = args.disable_checkpointing
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    if args.val and not final.is_file():
        raise CheckpointError(
            f"{final} does not exist, so there is nothing to validate; train first, or go on with --c."
        )
    maybe_load_checkpoint(trainer, continues, args.val)
    if args.pretrained_weights and not continues and not args.val:
        load_pretrained_weights(trainer, args.pretrained_weights)
    if torch.cuda.is_available():
        cudnn.deterministic, cudnn.benchmark = False, True
    if not args.val:
        trainer.run_training()
    if args.val_best:
        trainer.load_checkpoint(str(final.with_name("checkpoint_best.pth")))
    trainer.perform_actual_validation(args.npz)


def has_checkpoint(args: argparse.Namespace, restarted: bool) -> bool:
    """Whether a training that torchrun has restarted has a checkpoint to continue from; rank 0 looks for all.

    A checkpoint of an earlier training in the same folder does not count.
    """
    answer = [False]
    if dist.get_rank() == 0:
        name = args.dataset_name_or_id
        dataset = int(name) if name.isdigit() else name
        folder = Path(get_output_folder(dataset, args.tr, args.p, args.configuration, args.fold))
        started, newest = folder / STARTED, newest_checkpoint(folder)
        if not restarted:
            folder.mkdir(parents=True, exist_ok=True)
            started.touch()
        elif started.exists() and newest is not None:
            answer = [newest.stat().st_mtime_ns >= started.stat().st_mtime_ns]
    dist.broadcast_object_list(answer, 0)
    return answer[0]


def limit_threads(device: str, processes: int) -> None:
    """As `nnUNetv2_train`: one thread beside a GPU, otherwise all cores, shared by this machine's processes."""
    if device == "cuda":
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
    elif device == "cpu":
        torch.set_num_threads(max(1, multiprocessing.cpu_count() // processes))


if __name__ == "__main__":
    main()
