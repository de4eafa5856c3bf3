"""The one module that nnU-Net's trainer lookup scans.

nnU-Net drops every module it finds below `nnUNet_extTrainer` from `sys.modules` after the lookup. The trainers are
therefore defined in the installed package, where they can be pickled and stay the same class, and only named here.
"""

import sys
from typing import Any

from nnunetv2_vqseg import trainers
from nnunetv2_vqseg.planning.missing_plan import corrected_command


def __getattr__(name: str) -> Any:
    trainer = getattr(trainers, name)
    if sentence := corrected_command(sys.argv):
        raise SystemExit(f"ERROR: {sentence}")
    return trainer
