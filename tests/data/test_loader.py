"""Unlabelled batches are patches of the images under nnU-Net's own spatial augmentation, and nothing else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_raw_dataset import add_case, make_dataset, phantom, tiny_plans, write_volume

from nnunetv2_vqseg.data.cases import find_unlabeled_cases
from nnunetv2_vqseg.data.loader import build_unlabeled_loader, weak_transforms
from nnunetv2_vqseg.data.preprocess import prepare_unlabeled_cases
from nnunetv2_vqseg.data.unlabeled_dataset import UnlabeledDataset

ROTATION = (-np.pi, np.pi)


def prepare(root: Path, channels: int = 2, mask: bool = False) -> str:
    raw = make_dataset(root, channels=channels)
    if mask:  # a disc of tissue in air
        inside = np.hypot(*np.ogrid[-16:16, -16:16])[..., None] < 12
        for case, channel in ((case, channel) for case in "UV" for channel in range(channels)):
            write_volume(raw / "imagesUl" / f"{case}_{channel:04d}.nii.gz", phantom(channel)[0] * inside)
    return prepare_images(raw, root, channels, mask)


def prepare_images(raw: Path, root: Path, channels: int, mask: bool = False) -> str:
    dataset_json = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    plans_manager = PlansManager(tiny_plans(channels, mask=mask))
    folder = str(root / "prepared")
    prepare_unlabeled_cases(
        find_unlabeled_cases(raw, dataset_json, None),
        plans_manager,
        plans_manager.get_configuration("2d"),
        dataset_json,
        folder,
        num_processes=0,
        show_progress=False,
    )
    return folder


def weak(patch: int, mask: bool = False, channels: int = 2):
    return weak_transforms((patch, patch), ROTATION, (0, 1), [mask] * channels)


def test_batches(tmp_path: Path):
    folder = prepare(tmp_path)
    identifiers = ["V", "U"]
    loader = build_unlabeled_loader(
        UnlabeledDataset(folder, identifiers), 5, (22, 22), (16, 16), weak(16), 0, pin_memory=False
    )
    batches = [next(loader) for _ in range(6)]
    for batch in batches:
        assert batch["data"].shape == (5, 2, 16, 16)
        assert batch["data"].dtype == torch.float32
        assert torch.isfinite(batch["data"]).all()
        assert batch.keys() == {"data", "keys"}
    assert {key for batch in batches for key in batch["keys"]} == {"U", "V"}
    assert identifiers == ["V", "U"]


def test_only_the_named_cases_are_drawn(tmp_path: Path):
    loader = build_unlabeled_loader(
        UnlabeledDataset(prepare(tmp_path), ["V"]), 4, (16, 16), (16, 16), None, 0, pin_memory=False
    )
    assert {key for _ in range(5) for key in next(loader)["keys"]} == {"V"}


def test_a_patch_is_a_piece_of_the_image(tmp_path: Path):
    folder = prepare(tmp_path, channels=1)
    volume = nnUNetDatasetBlosc2(folder, ["U"]).load_case("U")[0][:]
    loader = build_unlabeled_loader(UnlabeledDataset(folder, ["U"]), 3, (16, 16), (16, 16), None, 0, pin_memory=False)
    windows = np.lib.stride_tricks.sliding_window_view(volume[0], (16, 16), axis=(1, 2)).reshape(-1, 256)
    for patch in next(loader)["data"][:, 0].reshape(3, 256).numpy():
        assert (np.abs(windows - patch).max(axis=1) < 1e-6).any()


def test_images_smaller_than_the_patch_are_padded(tmp_path: Path):
    loader = build_unlabeled_loader(
        UnlabeledDataset(prepare(tmp_path), ["U"]), 2, (70, 70), (64, 64), weak(64), 0, pin_memory=False
    )
    assert next(loader)["data"].shape == (2, 2, 64, 64)


def test_outside_the_mask_stays_zero(tmp_path: Path):
    folder = prepare(tmp_path, channels=1, mask=True)
    volume, seg, *_ = nnUNetDatasetBlosc2(folder, ["U"]).load_case("U")
    assert (seg[:] == -1).any()
    assert not volume[:][seg[:] == -1].any()
    transforms = weak(32, mask=True, channels=1)
    masked = build_unlabeled_loader(
        UnlabeledDataset(folder, ["U"]), 8, (32, 32), (32, 32), transforms, 0, pin_memory=False, masks=True
    )
    for _ in range(3):
        corners = next(masked)["data"][:, 0, :2, :2]
        assert not corners.any()


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("keep_bytes", [0, 10**9])
def test_images_are_those_of_nnunets_loader_to_the_last_bit(tmp_path: Path, mask: bool, keep_bytes: int):
    """It draws as many random numbers, although it looks at no segmentation."""
    folder = prepare(tmp_path, channels=1, mask=mask)
    manager = LabelManager({"background": 0, "foreground": 1}, regions_class_order=None)
    plain = nnUNetDataLoader(
        nnUNetDatasetBlosc2(folder, ["U", "V"]), 6, [40, 40], [32, 32], manager, transforms=weak(32, mask, 1)
    )
    dataset = UnlabeledDataset(folder, ["U", "V"], keep_bytes=keep_bytes)
    ours = build_unlabeled_loader(dataset, 6, (40, 40), (32, 32), weak(32, mask, 1), 0, pin_memory=False, masks=mask)
    batches = []
    for loader in (plain, ours):
        np.random.seed(3)  # noqa: NPY002 batchgenerators draws from it
        torch.manual_seed(3)
        batches.append([next(loader) for _ in range(5)])
    for expected, found in zip(*batches, strict=True):
        assert torch.equal(found["data"], expected["data"])
        assert list(found["keys"]) == list(expected["keys"])


def test_no_segmentation_and_no_properties_are_read(tmp_path: Path):
    folder = prepare(tmp_path)
    for file in [*Path(folder).glob("*_seg.b2nd"), *Path(folder).glob("*.pkl")]:
        file.unlink()
    loader = build_unlabeled_loader(UnlabeledDataset(folder, ["U"]), 2, (16, 16), (16, 16), weak(16), 0, False)
    assert next(loader)["data"].shape == (2, 2, 16, 16)


def test_images_stay_in_memory_as_far_as_they_fit(tmp_path: Path):
    folder = prepare(tmp_path)
    size = 2 * 3 * 32 * 32 * 4
    for room, kept in ((0, set()), (size - 1, set()), (size, {"U"}), (2 * size - 1, {"U"}), (2 * size, {"U", "V"})):
        dataset = UnlabeledDataset(folder, ["V", "U"], keep_bytes=room)
        assert dataset.kept == kept
        assert dataset.kept_bytes == size * len(kept) <= room
    dataset = UnlabeledDataset(folder, ["U", "V"], keep_bytes=size)
    before = {case: dataset.image(case)[:] for case in "UV"}
    for file in Path(folder).glob("?.b2nd"):
        file.unlink()
    assert np.array_equal(dataset.image("U")[:], before["U"])
    with pytest.raises(FileNotFoundError):
        dataset.image("V")


def test_an_image_larger_than_the_room_leaves_it_to_smaller_ones(tmp_path: Path):
    raw = make_dataset(tmp_path, unlabeled=("V",))
    add_case(raw, "imagesUl", "U", shape=(64, 64, 3))
    folder = prepare_images(raw, tmp_path, channels=1)
    assert UnlabeledDataset(folder, ["U", "V"], keep_bytes=3 * 40 * 40 * 4).kept == {"V"}


def test_a_view_that_changes_its_piece_leaves_the_kept_image_as_it_is(tmp_path: Path):
    dataset = UnlabeledDataset(prepare(tmp_path), ["U"], keep_bytes=10**9)
    before = np.array(dataset.image("U")[:])

    def erase(image):
        return {"image": image.zero_()}

    loader = build_unlabeled_loader(dataset, 2, (16, 16), (16, 16), None, 0, pin_memory=False)
    loader.data_loader.transforms = erase
    assert not next(loader)["data"].any()
    assert np.array_equal(dataset.image("U")[:], before)


def test_the_weak_view_is_nnunets_spatial_augmentation():
    """The same classes with the same parameters as its training transforms, without those that change intensities."""
    stock = nnUNetTrainer.get_training_transforms(
        (16, 16), ROTATION, None, (0, 1), False, use_mask_for_norm=[True, False], foreground_labels=(1,)
    ).transforms
    kept = {"SpatialTransform", "MirrorTransform", "MaskImageTransform"}
    expected = [transform for transform in stock if type(transform).__name__ in kept]
    ours = weak_transforms((16, 16), ROTATION, (0, 1), [True, False]).transforms
    assert [type(transform) for transform in ours] == [type(transform) for transform in expected]
    assert [vars(transform) for transform in ours] == [vars(transform) for transform in expected]
    assert isinstance(ours[0], SpatialTransform)


def test_without_mirroring_and_masks_only_space_changes():
    names = [type(transform).__name__ for transform in weak_transforms((16, 16), ROTATION, (), [False]).transforms]
    assert names == ["SpatialTransform"]


def test_what_workers_get_can_be_pickled(tmp_path: Path):
    loader = build_unlabeled_loader(
        UnlabeledDataset(prepare(tmp_path), ["U"]), 2, (22, 22), (16, 16), weak(16), 1, pin_memory=False
    )
    assert isinstance(loader, NonDetMultiThreadedAugmenter)
    copy = pickle.loads(pickle.dumps(loader.generator))
    assert next(copy)["data"].shape == (2, 2, 16, 16)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the augmenter's reader thread
def test_workers_deliver_and_end(tmp_path: Path):
    loader = build_unlabeled_loader(
        UnlabeledDataset(prepare(tmp_path), ["U", "V"]), 2, (22, 22), (16, 16), weak(16), 1, pin_memory=False
    )
    try:
        assert next(loader)["data"].shape == (2, 2, 16, 16)
        workers = list(loader._processes)
    finally:
        loader._finish()
    assert not any(worker.is_alive() for worker in workers)
