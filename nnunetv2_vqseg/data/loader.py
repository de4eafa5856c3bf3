"""Batches of unlabelled patches, drawn and augmented as nnU-Net draws and augments labelled ones."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_vqseg.data.label_store import PseudoLabeledDataset


class EndWithParent(BasicTransform):
    """Transforms of a loader, whose worker then ends when its parent is killed; nothing else would end it.

    On Linux only, and not under the start method forkserver, where a worker's parent is not the training.
    """

    def __init__(self, transforms: BasicTransform) -> None:
        super().__init__()
        self.transforms = transforms
        self._parent: int | None = os.getpid()

    def __call__(self, **data_dict: Any) -> dict:
        if self._parent is not None and os.getpid() != self._parent:
            _end_with(self._parent)
            self._parent = None
        return self.transforms(**data_dict)


def _end_with(parent: int) -> None:
    if sys.platform != "linux" or multiprocessing.get_start_method() == "forkserver":
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_parent_death_signal, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it died before
        os.kill(os.getpid(), signal.SIGKILL)


def build_unlabeled_loader(
    folder: str,
    identifiers: Sequence[str],
    batch_size: int,
    initial_patch_size: Sequence[int],
    patch_size: Sequence[int],
    transforms: BasicTransform | None,
    num_processes: int,
    pin_memory: bool,
    labels: str | Path | None = None,
    oversample_foreground: float = 0.0,
) -> SingleThreadedAugmenter | NonDetMultiThreadedAugmenter:
    """An endless iterator of batches `{"data": (B, C, H, W) float32, "target": ..., "keys": [...]}`.

    Without `labels`, `target` holds none: 0 everywhere, before `RemoveLabelTansform` -1 outside the image.

    Args:
        folder: `preprocess.unlabeled_folder(...)`.
        initial_patch_size: what is cut out before the spatial transform crops it to `patch_size`.
        num_processes: workers; 0 draws in this process.
        pin_memory: for a CUDA device.
        labels: folder of a `LabelStore`.
        oversample_foreground: share of the batch whose patches are centred on their foreground.
    """
    cases = list(identifiers)
    dataset = nnUNetDatasetBlosc2(folder, cases) if labels is None else PseudoLabeledDataset(folder, cases, labels)
    loader = nnUNetDataLoader(
        dataset,
        batch_size,
        list(initial_patch_size),
        list(patch_size),
        # Without an ignore label, with which the loader would look for annotated voxels to centre on.
        LabelManager({"background": 0, "foreground": 1}, regions_class_order=None),
        oversample_foreground_percent=oversample_foreground,
        transforms=transforms if transforms is None else EndWithParent(transforms),
    )
    if num_processes == 0:
        return SingleThreadedAugmenter(loader, None)
    return NonDetMultiThreadedAugmenter(
        data_loader=loader,
        transform=None,
        num_processes=num_processes,
        num_cached=max(6, num_processes // 2),
        seeds=None,
        pin_memory=pin_memory,
        wait_time=0.002,
    )


def weak_transforms(
    patch_size: Sequence[int],
    rotation_for_DA: RandomScalar,
    mirror_axes: Sequence[int] | None,
    use_mask_for_norm: Sequence[bool] | None,
) -> BasicTransform:
    """The weak view: nnU-Net's spatial augmentation of a 2D plan, with its own parameters, and nothing else.

    Args:
        rotation_for_DA: as `configure_rotation_dummyDA_mirroring_and_inital_patch_size` returns it, in radians.
        mirror_axes: spatial axes that may be flipped.
        use_mask_for_norm: per channel; where True, voxels outside the nonzero mask are set back to 0.
    """
    transforms: list[BasicTransform] = [
        SpatialTransform(
            tuple(patch_size),
            patch_center_dist_from_border=0,
            random_crop=False,
            p_elastic_deform=0,
            p_rotation=0.2,
            rotation=rotation_for_DA,
            p_scaling=0.2,
            scaling=(0.7, 1.4),
            p_synchronize_scaling_across_axes=1,
            bg_style_seg_sampling=False,
            border_mode_seg="constant",
            padding_value_seg=-1,
        )
    ]
    if mirror_axes:
        transforms.append(MirrorTransform(allowed_axes=tuple(mirror_axes)))
    masked_channels = [channel for channel, masked in enumerate(use_mask_for_norm or ()) if masked]
    if masked_channels:
        transforms.append(MaskImageTransform(apply_to_channels=masked_channels, channel_idx_in_seg=0, set_outside_to=0))
    transforms.append(RemoveLabelTansform(-1, 0))
    return ComposeTransforms(transforms)
