"""Make a plan's 2d configuration small enough for a CPU, and set keys of its `vqseg` block.

    python scripts/small_plan.py -d 27 --spacing 3 --patch 80 --set num_epochs=15 iterations_per_epoch=100
    python scripts/small_plan.py -d 27 -c 2d_eps3 --set epsilon=0.3    # a configuration that inherits from 2d

Edits nnUNet_preprocessed/DATASET/PLANS.json, as nnU-Net's documentation allows. Preprocess afterwards
(`nnUNetv2_preprocess -d 27 -plans_name nnUNetVQSegPlans -c 2d`), because the spacing may have changed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MINIMUM_EDGE = 4  # of the deepest feature map, as nnU-Net's planner has it


def shrink(plans: dict[str, Any], patch: int, features: int = 16, max_features: int = 128, convs: int = 2) -> None:
    """Give the 2d configuration a square patch, few features and as many stages as the patch carries, in place.

    A ViT stays as it is and gets the patch alone.

    Args:
        patch: side in pixels, divisible by the resulting strides, for a ViT by those of its tokens.
        features: of the first stage; doubled each stage up to `max_features`.
        convs: convolutions a stage (residual blocks stay one).
    """
    configuration = plans["configurations"]["2d"]
    architecture = configuration["architecture"]["arch_kwargs"]
    configuration["patch_size"] = [patch, patch]
    if "encoder" in architecture:
        step = max(architecture["strides"][0])
        if patch % step:
            sys.exit(f"A patch of {patch} pixels does not fit the ViT's tokens of {step}; take {patch // step * step}.")
        return
    stages = 1
    while patch % 2**stages == 0 and patch // 2**stages >= MINIMUM_EDGE:
        stages += 1
    architecture.update(
        n_stages=stages,
        features_per_stage=[min(features * 2**stage, max_features) for stage in range(stages)],
        kernel_sizes=[[3, 3]] * stages,
        strides=[[1, 1]] + [[2, 2]] * (stages - 1),
        n_conv_per_stage_decoder=[convs] * (stages - 1),
    )
    blocks = "n_conv_per_stage" if "n_conv_per_stage" in architecture else "n_blocks_per_stage"
    architecture[blocks] = [convs if blocks == "n_conv_per_stage" else 1] * stages


def plans_file(dataset_id: int, plans_name: str) -> Path:
    """The plans file of a dataset in nnUNet_preprocessed."""
    home = os.environ.get("nnUNet_preprocessed")
    if home is None:
        sys.exit("nnUNet_preprocessed is not set; export nnU-Net's three path variables first.")
    found = sorted(Path(home).glob(f"Dataset{dataset_id:03d}_*/{plans_name}.json"))
    if len(found) != 1:
        sys.exit(f"Found {len(found)} files {plans_name}.json for dataset {dataset_id} in {home}; plan it first.")
    return found[0]


def settings(words: Sequence[str]) -> dict[str, Any]:
    """Keys and values of words `KEY=VALUE`: values that are JSON, else text."""
    found: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-d", dest="dataset_id", type=int, required=True, metavar="ID")
    parser.add_argument("-p", dest="plans_name", default="nnUNetVQSegPlans", metavar="PLANS")
    parser.add_argument(
        "-c", dest="configuration", default="2d", metavar="NAME", help="made, inheriting from 2d, where it is missing"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="labelled images a step")
    parser.add_argument("--patch", type=int, metavar="PX", help="side of the patch; without it the network stays as is")
    parser.add_argument("--spacing", type=float, metavar="MM", help="in-plane spacing (default: the plan's)")
    parser.add_argument("--features", type=int, metavar="N", help="of the first stage, with --patch (default: 16)")
    parser.add_argument("--max-features", type=int, metavar="N", help="largest, with --patch (default: 128)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the vqseg block, JSON values"
    )
    args = parser.parse_args(argv)
    asked = {"features": args.features, "max_features": args.max_features}
    features = {name: number for name, number in asked.items() if number is not None}
    if features and not args.patch:
        parser.error("--features and --max-features make a network for a patch; add --patch.")
    file = plans_file(args.dataset_id, args.plans_name)
    plans = json.loads(file.read_text(encoding="utf-8"))
    if args.patch:
        shrink(plans, args.patch, **features)
    if args.spacing:
        plans["configurations"]["2d"]["spacing"] = [args.spacing, args.spacing]
    configuration = plans["configurations"].setdefault(args.configuration, {"inherits_from": "2d"})
    if args.batch_size:
        configuration["batch_size"] = args.batch_size
    block = configuration.setdefault("vqseg", {})
    block.update(settings(args.set))
    file.write_text(json.dumps(plans, indent=4), encoding="utf-8")
    print(f"{file}, {args.configuration}: vqseg {block}")


if __name__ == "__main__":
    main()
