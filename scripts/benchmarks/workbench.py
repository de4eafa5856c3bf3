"""A dataset with a plan, and trainers on it: phantoms in a temporary folder, or a dataset of the user's."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from small_plan import plans_file, settings, shrink

from nnunetv2_vqseg.planning.missing_plan import OUR_PLANS, VIT_PLANS

SCRIPTS = Path(__file__).resolve().parents[1]
STOCK = "nnUNetTrainerSupervised"  # nnU-Net's own step
VIT_PLANNER = "nnUNetPlannerViT"
FOUNDATION = "vit_small_patch14_dinov2.lvd142m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", dest="dataset_id", type=int, metavar="ID", help="a planned and preprocessed dataset")
    parser.add_argument(
        "-p",
        dest="plans_name",
        default=OUR_PLANS,
        metavar="PLANS",
        help=f"default: %(default)s; {VIT_PLANS} for a ViT",
    )
    parser.add_argument("-c", dest="configuration", default="2d", metavar="NAME")
    group = parser.add_argument_group("without -d", "phantoms of about this size, in a temporary folder")
    group.add_argument("--patch", type=int, nargs=2, metavar="PX", help="default: 64 64; on a GPU 256 224")
    group.add_argument("--features", type=int, metavar="N", help="of the first stage (default: 16; on a GPU 32)")
    group.add_argument("--max-features", type=int, metavar="N", help="largest (default: 128; on a GPU 512)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="labelled images a step (default: 8)")
    parser.add_argument("--codes", type=int, default=16384, metavar="K", help="default: 16384")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="of nnU-Net's loader; 0 loads in the step (default: 0; GPU: nnU-Net's)"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the vqseg block, JSON values"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile, nnU-Net's default on a GPU")


class Workbench:
    """Makes trainers whose results go to a temporary folder."""

    def __init__(self, args: argparse.Namespace, device: torch.device, dataset_id: int) -> None:
        self.device = device
        self.configuration = args.configuration
        file = plans_file(dataset_id, args.plans_name)
        self.plans = json.loads(file.read_text(encoding="utf-8"))
        self.dataset_json = json.loads((file.parent / "dataset.json").read_text(encoding="utf-8"))
        self.plans["configurations"][args.configuration]["batch_size"] = args.batch_size
        self.block = {
            "num_codes": args.codes,
            "labeled_batch_size": args.batch_size,
            "unlabeled_batch_size": max(2, args.batch_size // 2),  # CutMix needs two
            "foundation_policy": "off",
            "num_epochs": 1000,
            "seed": 0,
            **settings(args.set),
        }

    def trainer(self, name: str, **block: Any) -> Any:
        """A trainer of that name that has not been initialised; `block` are keys of the plan's `vqseg` block."""
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        plans = json.loads(json.dumps(self.plans))
        configuration = plans["configurations"][self.configuration]
        configuration["vqseg"] = {**configuration.get("vqseg", {}), **self.block, **block}
        plans["continue_training"] = False
        with silence():
            return recursive_find_trainer_class_by_name(name)(
                plans, self.configuration, 0, self.dataset_json, device=self.device
            )

    def started_trainer(self, name: str, **block: Any) -> Any:
        """The same with its loaders running, at the start of its first epoch."""
        trainer = self.trainer(name, **block)
        with silence():
            trainer.on_train_start()
            trainer.on_train_epoch_start()
        return trainer


@contextlib.contextmanager
def workbench(args: argparse.Namespace, device: torch.device) -> Iterator[Workbench]:
    """The user's dataset, or phantoms that are planned and preprocessed first."""
    gpu = device.type == "cuda"
    os.environ["nnUNet_compile"] = "true" if args.compile else "false"
    if args.workers is not None or not gpu:
        os.environ["nnUNet_n_proc_DA"] = str(args.workers or 0)
    os.environ.setdefault("nnUNet_def_n_proc", "1")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["nnUNet_results"] = str(home / "results")
        dataset_id = args.dataset_id
        if dataset_id is None:
            dataset_id = 901
            patch = tuple(args.patch or ((256, 224) if gpu else (64, 64)))
            features = args.features or (32 if gpu else 16)
            make_phantoms(
                home, dataset_id, args.plans_name, patch, features, args.max_features or (512 if gpu else 128)
            )
        yield Workbench(args, device, dataset_id)


def make_phantoms(
    home: Path, dataset_id: int, plans_name: str, patch: tuple[int, int], features: int, max_features: int
) -> None:
    """A raw dataset a little larger than the patch, planned, preprocessed, with the network asked for."""
    for name in ("raw", "preprocessed"):
        os.environ[f"nnUNet_{name}"] = str(home / name)
        (home / name).mkdir()
    sizes = [*("--labeled", "3", "--unlabeled", "4", "--val", "1", "--test", "0"), "--size", str(max(patch))]
    command = [sys.executable, SCRIPTS / "make_phantoms.py", "-d", str(dataset_id), *sizes, str(max(patch) * 9 // 8)]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)

    from nnunetv2_vqseg.commands.plan import main as plan_and_preprocess

    with silence():
        options = ["-overwrite_plans_name", plans_name, "-np", "1", "-npfp", "1", "--no_pbar"]
        options += ["-pl", VIT_PLANNER] if plans_name == VIT_PLANS else []
        plan_and_preprocess(["-d", str(dataset_id), *options])
    file = plans_file(dataset_id, plans_name)
    plans = json.loads(file.read_text(encoding="utf-8"))
    shrink(plans, min(patch), features, max_features)
    plans["configurations"]["2d"]["patch_size"] = list(patch)
    file.write_text(json.dumps(plans), encoding="utf-8")


def stop_loaders(trainer: Any) -> None:
    """End the workers of a trainer's loaders, where it has any."""
    for name in ("dataloader_train", "dataloader_val", "dataloader_unlabeled"):
        finish = getattr(getattr(trainer, name, None), "_finish", None)
        if finish is not None:
            finish()


def foundation_weights(folder: Path) -> dict[str, Any]:
    """Keys of the `vqseg` block for alignment with a model of DINOv2's size; what it computes costs the same."""
    import timm

    file = folder / "untrained.pth"
    torch.save(timm.create_model(FOUNDATION, pretrained=False, img_size=224).state_dict(), file)
    return {"foundation_policy": "required", "foundation_model": FOUNDATION, "foundation_checkpoint": str(file)}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without what nnU-Net prints; it stays in its log files."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
