"""`preview.png`: what teacher and student make of a few fixed validation slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from torch import Tensor

from nnunetv2_vqseg.methods.base import Method, finest
from nnunetv2_vqseg.modules.ema import unwrap
from nnunetv2_vqseg.networks.backbone import Logits


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
) -> None:
    """One row a slice: image, what the method shows of it, reference.

    Args:
        region_labels: nnU-Net's `regions_class_order`, None without regions.
    """
    import matplotlib.pyplot as plt

    network = unwrap(method.student)
    was_training = network.training
    network.eval()
    pictures, logits = method.preview(slices.images.to(device))
    network.train(was_training)
    columns = {"image": slices.images[:, 0]} | {title: values[:, 0].cpu() for title, values in pictures.items()}
    overlays = {title: _labels(values, region_labels) for title, values in logits.items()}
    overlays["reference"] = slices.references

    top = max(1, *(int(labels.max()) for labels in overlays.values()))
    width = len(columns) + len(overlays)
    figure, axes = plt.subplots(
        len(slices.cases), width, figsize=(2.2 * width, 2.35 * len(slices.cases)), squeeze=False
    )
    for row, case in enumerate(slices.cases):
        low, high = np.percentile(columns["image"][row], (0.5, 99.5))
        for axis, (title, values) in zip(axes[row], columns.items(), strict=False):
            axis.imshow(values[row], cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            axis.set_title(title, fontsize=8)
        for axis, (title, labels) in zip(axes[row, len(columns) :], overlays.items(), strict=True):
            axis.imshow(columns["image"][row], cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            axis.imshow(
                np.ma.masked_equal(labels[row].numpy(), 0),
                cmap="tab10",
                vmin=1,
                vmax=max(top, 10),
                alpha=0.55,
                interpolation="nearest",
            )
            axis.set_title(title, fontsize=8)
        axes[row, 0].set_ylabel(case, fontsize=7)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout(pad=0.4)
    figure.savefig(filename, dpi=90)
    plt.close(figure)


def _labels(logits: Logits, region_labels: Sequence[int] | None) -> Tensor:
    values = finest(logits)
    if region_labels is None:
        return values.argmax(1).cpu()
    painted = torch.zeros(values[:, 0].shape, dtype=torch.long, device=values.device)
    for index, label in enumerate(region_labels):  # a later one lies over an earlier one
        painted[values[:, index] > 0] = label
    return painted.cpu()
