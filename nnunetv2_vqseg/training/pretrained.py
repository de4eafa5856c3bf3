"""`-pretrained_weights` for a trainer on any device and machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.training.checkpoint import read_checkpoint

# What nnU-Net's checkpoints hold beside tensors and plain values.
NUMPY_SCALARS = [
    np.float64(0).__reduce__()[0],  # the function that unpickles a scalar, wherever this NumPy keeps it
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int64")),
]


def load_pretrained_weights(trainer: nnUNetTrainer, filename: str) -> None:
    """As nnU-Net's function of that name, which loads onto `cuda:<global rank>`: everything but `.seg_layers.`.

    Raises:
        RuntimeError: the file lacks one of the network's keys or has it in another shape, is damaged, or holds code.
    """
    if not trainer.was_initialized:
        trainer.initialize()
    network: Any = unwrap(trainer.network)
    with torch.serialization.safe_globals(NUMPY_SCALARS):
        pretrained = read_checkpoint(filename, trainer.device)["network_weights"]
    weights = network.state_dict()
    for key, value in weights.items():
        if ".seg_layers." in key:
            continue
        if key not in pretrained or pretrained[key].shape != value.shape:
            raise RuntimeError(
                f"{filename} has no weights of shape {tuple(value.shape)} for {key}; -pretrained_weights needs a "
                f"checkpoint of the same trainer and plan."
            )
        weights[key] = pretrained[key]
    network.load_state_dict(weights)
