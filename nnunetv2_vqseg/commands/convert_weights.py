"""`nnUNetv2_vqseg_convert_weights`: a checkpoint that `nnUNetv2_train -pretrained_weights` takes for our trainers."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """Arguments named as in nnU-Net's commands."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_vqseg_convert_weights",
        description="nnUNetv2_train -pretrained_weights wants a checkpoint with every weight of the network. This adds "
        "what one of stock nnU-Net, or of a VQ-Seg trainer, does not have, with fresh values. (python -m "
        "nnunetv2_vqseg.train -pretrained_weights takes such checkpoints as they are.)",
    )
    parser.add_argument("-i", required=True, type=Path, metavar="CHECKPOINT", help="checkpoint to start from")
    parser.add_argument("-d", required=True, metavar="ID", help="dataset to be trained on, name or ID")
    parser.add_argument("-c", default="2d", metavar="CONFIGURATION", help="default: %(default)s")
    parser.add_argument("-tr", default="nnUNetTrainerVQSeg", metavar="TRAINER", help="default: %(default)s")
    parser.add_argument(
        "-p", metavar="PLANS", help="default: nnUNetPlans, where there is none nnUNetVQSegPlans or the only plan"
    )
    parser.add_argument("-o", required=True, type=Path, metavar="FILE", help="file to write; must not exist")
    return parser


def convert(checkpoint: Path, dataset: str, configuration: str, trainer_name: str, plans: str, output: Path) -> None:
    """Write the network that this trainer would start from as `{"network_weights": ...}`.

    Raises:
        CheckpointError: `checkpoint` cannot be used, or `output` exists.
        ConfigError, DatasetError, PlansError, NotImplementedError, FoundationModelUnavailable: as at the start of a
            training.
        OSError: `output` cannot be written.
    """
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    from nnunetv2_vqseg.core.errors import CheckpointError
    from nnunetv2_vqseg.modules.ema import unwrap
    from nnunetv2_vqseg.trainer.checkpoint_files import save_atomically
    from nnunetv2_vqseg.trainer.pretrained import load_pretrained_weights

    if output.exists():
        raise CheckpointError(f"{output} exists; give another name with -o.")
    before = os.environ.get("nnUNet_results")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["nnUNet_results"] = folder  # a trainer writes a log
        try:
            trainer = get_trainer_from_args(dataset, configuration, 0, trainer_name, plans, device=torch.device("cpu"))
            load_pretrained_weights(trainer, str(checkpoint))
        finally:
            if before is None:
                del os.environ["nnUNet_results"]
            else:
                os.environ["nnUNet_results"] = before
    save_atomically({"network_weights": unwrap(trainer.network).state_dict()}, output)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `nnUNetv2_vqseg_convert_weights`."""
    args = build_parser().parse_args(arguments)

    # After the arguments, because nnU-Net takes seconds to import.
    from nnunetv2_vqseg.commands.train import REFUSALS, require_readable_plan

    try:
        _, plans = require_readable_plan(args.d, args.p, args.tr)
        convert(args.i, args.d, args.c, args.tr, plans, args.o)
    except (*REFUSALS, OSError) as error:
        sys.exit(f"Error: {error}")
    print(f"Wrote {args.o}.")


if __name__ == "__main__":
    main()
