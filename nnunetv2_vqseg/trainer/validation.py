"""nnU-Net's online validation without waiting for the device in each step."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from torch import Tensor

COUNTS = ("tp_hard", "fp_hard", "fn_hard")


def hard_counts(output: Tensor, target: Tensor, label_manager: Any) -> dict[str, Tensor]:
    """True positives, false positives and false negatives of each foreground class or region, (classes,) each.

    As `nnUNetTrainer.validation_step` of nnU-Net 2.8 counts them, but on the device.

    Args:
        output: logits (B, K, ...).
        target: (B, 1, ...) labels, or (B, K, ...) regions with a further channel for pixels to ignore; it is not
            changed.
        label_manager: nnU-Net's.
    """
    axes = [0, *range(2, output.ndim)]
    mask = None
    if label_manager.has_regions:
        predicted = (torch.sigmoid(output) > 0.5).long()
        if label_manager.has_ignore_label:
            ignored = target[:, -1:]
            mask, target = ~ignored if target.dtype == torch.bool else 1 - ignored, target[:, :-1]
    else:
        predicted = torch.zeros(output.shape, device=output.device, dtype=torch.float16)
        predicted.scatter_(1, output.argmax(1)[:, None], 1)
        if label_manager.has_ignore_label:
            known = target != label_manager.ignore_label
            mask, target = known.float(), torch.where(known, target, 0)
    counts = get_tp_fp_fn_tn(predicted, target, axes=axes, mask=mask)[:3]
    first = 0 if label_manager.has_regions else 1  # without the background
    return {name: count.detach()[first:] for name, count in zip(COUNTS, counts, strict=True)}


def on_host(outputs: list[dict[str, Tensor]]) -> list[dict[str, Any]]:
    """The steps' losses and counts as NumPy arrays, in one transfer for each name."""
    arrays = {name: torch.stack([output[name] for output in outputs]).cpu().numpy() for name in outputs[0]}
    return [{name: values[step] for name, values in arrays.items()} for step in range(len(outputs))]
