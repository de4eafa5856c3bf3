"""Commands without `-p`: the plan that is meant, and the whole corrected command where nnU-Net's own does not find it.

`nnUNetv2_train` looks for nnUNetPlans unless `-p` names another plan, and ends in a traceback where there is none. It
asks for the trainer first: that is when this is said.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_vqseg.core.errors import PlansError, UserError
from nnunetv2_vqseg.core.folders import folder_or_none, matching_datasets
from nnunetv2_vqseg.planning.plans import load_plans

NNUNET_PLANS, OUR_PLANS, VIT_PLANS = "nnUNetPlans", "nnUNetVQSegPlans", "nnUNetViTPlans"


def plan_without_option(folder: Path) -> str:
    """The plan of a preprocessed dataset that our own commands take without `-p`: nnU-Net's, else ours, else the one.

    Raises:
        PlansError: there are several others.
    """
    here = _plans(folder)
    usual = next((name for name in (NNUNET_PLANS, OUR_PLANS) if (folder / f"{name}.json").is_file()), None)
    if usual is not None or not here:
        return usual or OUR_PLANS
    if len(here) > 1:
        raise PlansError(f"{folder.name} has the plans {', '.join(here)}; say with -p which one.")
    return here[0]


def corrected_command(argv: Sequence[str]) -> str | None:
    """The sentence for this command line; None where its plan is there, or nothing better is known.

    Args:
        argv: of a process, `nnUNetv2_train DATASET CONFIGURATION FOLD ...`, in any order and form that argparse takes.
    """
    preprocessed = folder_or_none("nnUNet_preprocessed")
    if not argv or Path(argv[0]).name != "nnUNetv2_train" or preprocessed is None:
        return None
    rest, wanted, place = _without_plan(argv[1:])
    dataset = _dataset(rest)
    names = [] if dataset is None else matching_datasets(dataset, preprocessed)
    if len(names) != 1 or (preprocessed / names[0] / f"{wanted}.json").is_file():
        return None
    others = _plans(preprocessed / names[0])
    if not others:
        return None
    best = VIT_PLANS if any("ViT" in word for word in argv) else OUR_PLANS
    other = best if best in others else others[0]
    command = shlex.join(["nnUNetv2_train", *rest[:place], "-p", other, *rest[place:]])
    return f"{names[0]} has no plan {wanted}, but {', '.join(others)}; run: {command}"


def _dataset(arguments: Sequence[str]) -> str | None:
    """The first argument that belongs to no option of nnU-Net's command."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("others", nargs="*")
    for option in ("-tr", "-pretrained_weights", "-num_gpus", "-device"):
        parser.add_argument(option)
    for option in ("--npz", "--c", "--val", "--val_best", "--disable_checkpointing"):
        parser.add_argument(option, action="store_true")
    try:
        return parser.parse_known_intermixed_args(arguments)[0].dataset
    except argparse.ArgumentError:
        return None


def _without_plan(arguments: Sequence[str]) -> tuple[list[str], str, int]:
    """The arguments without the plan's, its name (the last counts), and where it stood (else the end).

    argparse takes `-p NAME`, `-p=NAME` and `-pNAME`; what could also be the start of -pretrained_weights it refuses.
    """
    rest: list[str] = []
    wanted, place, following = NNUNET_PLANS, None, iter(arguments)
    for argument in following:
        weights = "-pretrained_weights".startswith(argument.split("=")[0]) and not argument.startswith("-p=")
        if argument == "-p":
            wanted, place = next(following, wanted), len(rest)
        elif argument.startswith("-p") and not weights:
            wanted, place = argument[2:].removeprefix("="), len(rest)
        else:
            rest.append(argument)
    return rest, wanted, len(rest) if place is None else place


def _plans(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.json") if _is_plan(file))


def _is_plan(file: Path) -> bool:
    try:
        return bool(load_plans(file))
    except UserError:
        return False
