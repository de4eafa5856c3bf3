"""`-pretrained_weights` for a trainer on any device and machine."""

from __future__ import annotations

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunetv2_vqseg.core.errors import CheckpointError
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.trainer.checkpoint_files import read_checkpoint

STOCK_PARTS = ("encoder", "decoder")
"""Parts of nnU-Net's own networks."""


def load_pretrained_weights(trainer: nnUNetTrainer, filename: str) -> None:
    """The weights of a checkpoint of nnU-Net or of one of our trainers, without `.seg_layers.` as in nnU-Net.

    What a method adds to the U-Net keeps its fresh values where the file does not have all of it in the same shapes;
    the log says so. Unlike nnU-Net's function of that name it runs no code from the file.

    Raises:
        CheckpointError: the file is missing, damaged or holds code, or lacks one of the U-Net's weights or has it in
            another shape.
    """
    if not trainer.was_initialized:
        ours: Any = trainer
        ours.restores, before = True, getattr(trainer, "restores", False)  # a ViT needs no other weights
        trainer.initialize()
        ours.restores = before
    content = read_checkpoint(filename, trainer.device)
    pretrained = content.get("network_weights") if isinstance(content, dict) else None
    if not isinstance(pretrained, dict):
        raise CheckpointError(f"{filename} has no network_weights; -pretrained_weights needs a checkpoint of nnU-Net.")
    method: Any = getattr(trainer, "method", None)
    networks = method.pretrained() if method is not None else [unwrap(trainer.network)]
    fresh = [part for network in networks for part in _load(network, pretrained, filename)]
    without = f", but for what it does not have: {', '.join(dict.fromkeys(fresh))}" if fresh else ""
    told = f"Starting from the weights of {filename}{without}."
    trainer.print_to_log_file(told)
    if hasattr(method, "encoder_status"):  # a ViT's
        method.encoder_status = told


def _load(network: nn.Module, pretrained: dict[str, Any], filename: str) -> list[str]:
    """Load into one network; the parts of it that stay fresh."""
    weights = network.state_dict()
    wanted = [key for key in weights if ".seg_layers." not in key]
    unfit = [key for key in wanted if key not in pretrained or pretrained[key].shape != weights[key].shape]
    parts = [key.partition(".")[0] for key in unfit]
    fresh = [part for part in dict.fromkeys(parts) if part not in STOCK_PARTS]
    for key in wanted:
        if key.partition(".")[0] in fresh:
            continue
        if key in unfit:
            raise CheckpointError(
                f"{filename} has no weights of shape {tuple(weights[key].shape)} for {key}; -pretrained_weights needs "
                f"a checkpoint with the same network, such as one of the same plan."
            )
        weights[key] = pretrained[key]
    network.load_state_dict(weights)
    return fresh
