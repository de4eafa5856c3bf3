"""`preview.png`: what teacher and student make of a few fixed validation slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from torch import Tensor, nn

from nnunetv2_vqseg.modules.losses.reconstruction import channel_scale
from nnunetv2_vqseg.network import VQSegNet


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
    student: VQSegNet,
    teacher: nn.Module,
    region_labels: Sequence[int] | None,
    device: Any,
    standardized: bool = False,
) -> None:
    """One row a slice: image, reconstruction from q(z), teacher, student under perturbation, reference.

    Args:
        region_labels: nnU-Net's `regions_class_order`, None without regions.
        standardized: reconstructions are in units of each image's `channel_scale`.
    """
    import matplotlib.pyplot as plt

    images = slices.images.to(device)
    was_training = student.training
    student.eval()
    columns = {"image": images[:, 0].cpu()}
    if student.image_decoder is not None:
        mean, std = channel_scale(images) if standardized else (0.0, 1.0)
        columns["reconstruction"] = (student.reconstruct(images).float() * std + mean)[:, 0].cpu()
    overlays = {
        "teacher": _labels(teacher(images), region_labels),
        "student, perturbed": _labels(_perturbed(student, images), region_labels),
        "reference": slices.references,
    }
    student.train(was_training)

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


def _perturbed(student: VQSegNet, images: Tensor) -> Tensor | list[Tensor]:
    """The perturbation draws random numbers; a preview must not change those of the training."""
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        return student.predict_perturbed(images)


def _labels(logits: Tensor | list[Tensor], region_labels: Sequence[int] | None) -> Tensor:
    finest = logits[0] if isinstance(logits, list) else logits
    if region_labels is None:
        return finest.argmax(1).cpu()
    painted = torch.zeros(finest[:, 0].shape, dtype=torch.long, device=finest.device)
    for index, label in enumerate(region_labels):  # a later one lies over an earlier one
        painted[finest[:, index] > 0] = label
    return painted.cpu()
