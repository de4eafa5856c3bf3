"""`preview.png`: what teacher and student make of a few fixed validation slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from torch import Tensor

from nnunetv2_vqseg.methods.base import Method, finest
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.networks.backbone import Logits
from nnunetv2_vqseg.trainer.preview_plot import draw_slices


class PreviewSlices(NamedTuple):
    """Images (N, C, H, W), reference labels (N, H, W) and the cases they come from."""

    images: Tensor
    references: Tensor
    cases: list[str]


def preview_slices(dataset: Any, patch_size: Any, count: int = 4) -> PreviewSlices | None:
    """The slice with the most foreground of the first `count` cases, cut or padded to the patch; None without cases."""
    images, references, cases = [], [], sorted(dataset.identifiers)[:count]
    for case in cases:
        data, seg, _, _ = dataset.load_case(case)
        labels = np.maximum(np.asarray(seg[0]), 0)
        index = int((labels > 0).sum((1, 2)).argmax())
        box = [
            [(size - patch) // 2, (size - patch) // 2 + patch]
            for size, patch in zip(labels.shape[1:], patch_size, strict=True)
        ]
        images.append(crop_and_pad_nd(np.asarray(data[:, index]), box, 0))
        references.append(crop_and_pad_nd(labels[index], box, 0))
    if not cases:
        return None
    return PreviewSlices(
        torch.from_numpy(np.stack(images)).float(), torch.from_numpy(np.stack(references)).long(), cases
    )


@torch.no_grad()
def draw_preview(
    filename: str | Path,
    slices: PreviewSlices,
    method: Method[Any],
    region_labels: Sequence[int] | None,
    device: Any,
    draw: Callable[..., None] = draw_slices,
) -> None:
    """One row a slice: image, what the method shows of it, reference.

    Args:
        region_labels: nnU-Net's `regions_class_order`, None without regions.
        draw: as `draw_slices`, of which it gets the arguments.
    """
    network = unwrap(method.student)
    was_training = network.training
    network.eval()
    pictures, logits = method.preview(slices.images.to(device))
    network.train(was_training)
    columns = {"image": slices.images[:, 0]} | {title: values[:, 0].cpu() for title, values in pictures.items()}
    overlays = {title: _labels(values, region_labels) for title, values in logits.items()}
    overlays["reference"] = slices.references
    draw(filename, slices.cases, *({title: v.numpy() for title, v in part.items()} for part in (columns, overlays)))


def _labels(logits: Logits, region_labels: Sequence[int] | None) -> Tensor:
    values = finest(logits)
    if region_labels is None:
        return values.argmax(1).cpu()
    painted = torch.zeros(values[:, 0].shape, dtype=torch.long, device=values.device)
    for index, label in enumerate(region_labels):  # a later one lies over an earlier one
        painted[values[:, index] > 0] = label
    return painted.cpu()
