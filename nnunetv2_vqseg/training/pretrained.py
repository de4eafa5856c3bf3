"""`-pretrained_weights` for a trainer on any device and machine."""

from __future__ import annotations

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_vqseg.core.errors import CheckpointError
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.training.checkpoint import read_checkpoint
from nnunetv2_vqseg.unpickling import trusted_numpy

OWN_PARTS = ("quantizer", "image_decoder", "adapter")
"""Parts of the network that stock nnU-Net lacks; `network_weights` has the first at most."""


def load_pretrained_weights(trainer: nnUNetTrainer, filename: str) -> None:
    """The weights of a checkpoint of nnU-Net or of a VQ-Seg trainer, without `.seg_layers.` as in nnU-Net.

    What VQ-Seg adds to the U-Net keeps its fresh values where the file does not have all of it in the same shapes; the
    log says so. Unlike nnU-Net's function of that name it runs no code from the file.

    Raises:
        CheckpointError: the file is missing, damaged or holds code, or lacks one of the U-Net's weights or has it in
            another shape.
    """
    if not trainer.was_initialized:
        trainer.initialize()
    network: Any = unwrap(trainer.network)
    with trusted_numpy():
        content = read_checkpoint(filename, trainer.device)
    pretrained = content.get("network_weights") if isinstance(content, dict) else None
    if not isinstance(pretrained, dict):
        raise CheckpointError(f"{filename} has no network_weights; -pretrained_weights needs a checkpoint of nnU-Net.")
    weights = network.state_dict()
    wanted = [key for key in weights if ".seg_layers." not in key]
    unfit = [key for key in wanted if key not in pretrained or pretrained[key].shape != weights[key].shape]
    fresh = [part for part in OWN_PARTS if any(key.startswith(f"{part}.") for key in unfit)]
    for key in wanted:
        if key.startswith(tuple(f"{part}." for part in fresh)):
            continue
        if key in unfit:
            raise CheckpointError(
                f"{filename} has no weights of shape {tuple(weights[key].shape)} for {key}; -pretrained_weights needs "
                f"a checkpoint with the same network, such as one of the same plan."
            )
        weights[key] = pretrained[key]
    network.load_state_dict(weights)
    without = f", but for what it does not have: {', '.join(fresh)}" if fresh else ""
    trainer.print_to_log_file(f"Starting from the weights of {filename}{without}.")
