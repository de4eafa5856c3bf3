"""The whole corrected command where `nnUNetv2_train` was given a plan that the dataset does not have.

nnU-Net's command looks for nnUNetPlans unless `-p` names another plan, and ends in a traceback where there is none. It
asks for the trainer first: that is when this is said.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_vqseg.core.errors import UserError
from nnunetv2_vqseg.core.folders import folder_or_none, matching_datasets
from nnunetv2_vqseg.planning.plans import load_plans

NNUNET_PLANS, OUR_PLANS = "nnUNetPlans", "nnUNetVQSegPlans"


def corrected_command(argv: Sequence[str]) -> str | None:
    """The sentence for this command line; None where its plan is there, or nothing better is known.

    Args:
        argv: of a process, `nnUNetv2_train DATASET CONFIGURATION FOLD ...`.
    """
    preprocessed = folder_or_none("nnUNet_preprocessed")
    if len(argv) < 4 or Path(argv[0]).name != "nnUNetv2_train" or preprocessed is None:
        return None
    names = matching_datasets(argv[1], preprocessed)
    named = argv.index("-p") + 1 if "-p" in argv else len(argv)
    wanted = argv[named] if named < len(argv) else NNUNET_PLANS
    if len(names) != 1 or (preprocessed / names[0] / f"{wanted}.json").is_file():
        return None
    others = sorted(file.stem for file in (preprocessed / names[0]).glob("*.json") if _is_plan(file))
    if not others:
        return None
    other = OUR_PLANS if OUR_PLANS in others else others[0]
    command = shlex.join(
        ["nnUNetv2_train", *argv[1:named], *([] if "-p" in argv else ["-p"]), other, *argv[named + 1 :]]
    )
    return f"{names[0]} has no plan {wanted}, but {', '.join(others)}; run: {command}"


def _is_plan(file: Path) -> bool:
    try:
        return bool(load_plans(file))
    except UserError:
        return False
