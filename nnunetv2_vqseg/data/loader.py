"""Batches of unlabelled patches, drawn and augmented as nnU-Net draws and augments labelled ones."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from threadpoolctl import ThreadpoolController
from torch import Tensor

from nnunetv2_vqseg.data.unlabeled_dataset import UnlabeledDataset


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


class UnlabeledLoader(nnUNetDataLoader):
    """nnU-Net's loader, which gives no segmentation where there are no labels: a batch is one tensor.

    It draws the same random numbers with and without, so that the images are the same to the last bit.

    Args:
        masks: the transforms need the mask of nnU-Net's normalisation beside the image.
        options: nnU-Net's.
    """

    def __init__(self, dataset: UnlabeledDataset, masks: bool, **options: Any) -> None:
        # Without an ignore label, with which the loader would look for annotated voxels to centre on.
        manager = LabelManager({"background": 0, "foreground": 1}, regions_class_order=None)
        super().__init__(dataset, label_manager=manager, **options)
        self._masks = masks
        self._threads: ThreadpoolController | None = None

    def generate_train_batch(self) -> dict[str, Any]:
        """`{"data": (B, C, ...) float32, "keys": (B,)}`, with labels also nnU-Net's `target`."""
        if self._data.labels is not None:
            return super().generate_train_batch()
        if self._masks:
            batch = super().generate_train_batch()
            del batch["target"]
            return batch
        keys = self.get_indices()
        self._threads = self._threads or ThreadpoolController()  # 3 ms to make one
        with torch.no_grad(), self._threads.limit(limits=1):
            return {"data": torch.stack([self._image(case) for case in keys]), "keys": keys}

    def _image(self, case: str) -> Tensor:
        image = self._data.image(case)
        box = zip(*self.get_bbox(image.shape[1:], False, None), strict=True)
        patch = torch.from_numpy(crop_and_pad_nd(image, list(map(list, box)), 0)).float()
        patch = patch[:, 0] if self.patch_size_was_2d else patch
        return patch if self.transforms is None else self.transforms(image=patch)["image"]


def build_unlabeled_loader(
    dataset: UnlabeledDataset,
    batch_size: int,
    initial_patch_size: Sequence[int],
    patch_size: Sequence[int],
    transforms: BasicTransform | None,
    num_processes: int,
    pin_memory: bool,
    masks: bool = False,
    oversample_foreground: float = 0.0,
) -> SingleThreadedAugmenter | NonDetMultiThreadedAugmenter:
    """An endless iterator of the batches of an `UnlabeledLoader`.

    Args:
        initial_patch_size: what is cut out before the spatial transform crops it to `patch_size`.
        num_processes: workers; 0 draws in this process.
        pin_memory: for a CUDA device.
        masks: as `UnlabeledLoader` says.
        oversample_foreground: share of the batch whose patches are centred on the labels' foreground.
    """
    loader = UnlabeledLoader(
        dataset,
        masks,
        batch_size=batch_size,
        patch_size=list(initial_patch_size),
        final_patch_size=list(patch_size),
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
    return ComposeTransforms(transforms)
