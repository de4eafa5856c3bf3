"""The one module that nnU-Net's trainer lookup scans.

nnU-Net drops every module it finds below `nnUNet_extTrainer` from `sys.modules` after the lookup. The trainers are
therefore defined in the installed package, where they can be pickled and stay the same class, and only named here.
"""

from typing import Any

from nnunetv2_vqseg import trainers


def __getattr__(name: str) -> Any:
    return getattr(trainers, name)
