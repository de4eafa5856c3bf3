"""Labels that a training gives its own unlabelled cases: files beside the images, with a record of what was written."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

from nnunetv2_vqseg.core.files import replace_bytes
from nnunetv2_vqseg.data.unlabeled_dataset import open_array

SUFFIXES = ("_seg.b2nd", ".pkl")


class LabelStore:
    """One folder of labels; each case has its labels as nnU-Net keeps them, and where its classes are.

    Args:
        folder: of this training and round alone.
        files: of each case a hash of its files.
    """

    def __init__(self, folder: Path, files: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.files = dict(files or {})

    def write(self, case: str, labels: np.ndarray, classes: Sequence[Any], patch_size: Sequence[int]) -> str:
        """Each file as a whole; the hash of both.

        Args:
            labels: (1, D, H, W), -1 outside the image.
            classes: labels or regions from which a loader may want a voxel.
            patch_size: of the plan, for the files' blocks.

        Raises:
            OSError: a file cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        labels = np.ascontiguousarray(labels, dtype=np.int16)
        blocks, chunks = comp_blosc2_params(labels.shape, tuple(patch_size), labels.itemsize)
        array = blosc2.asarray(labels, chunks=chunks, blocks=blocks, cparams={"nthreads": 1})
        places = DefaultPreprocessor._sample_foreground_locations(labels, list(classes))
        contents = (array.to_cframe(), pickle.dumps({"class_locations": places}))
        for suffix, content in zip(SUFFIXES, contents, strict=True):
            replace_bytes(self.folder / (case + suffix), content)
        return _hash(contents)

    def read(self, case: str) -> np.ndarray:
        """Labels (1, D, H, W), -1 outside the image."""
        return open_array(f"{self.folder}/{case}_seg.b2nd")[:]

    def is_there(self) -> bool:
        """Whether this machine sees every file."""
        return all((self.folder / (case + suffix)).is_file() for case in self.files for suffix in SUFFIXES)

    def changed(self) -> list[str]:
        """The cases whose files are missing or are not those that were written."""
        return [case for case, content in self.files.items() if self._hash_on_disk(case) != content]

    def _hash_on_disk(self, case: str) -> str | None:
        try:
            return _hash([(self.folder / (case + suffix)).read_bytes() for suffix in SUFFIXES])
        except OSError:
            return None


def instability(before: np.ndarray, after: np.ndarray) -> float:
    """Differing voxels over the foreground voxels of the later labels (FLARE 2022's winner); -1 counts as background.

    Where the later labels have no foreground the number of differing voxels.
    """
    before, after = np.maximum(before, 0), np.maximum(after, 0)
    return float((before != after).sum() / max(int((after > 0).sum()), 1))


def _hash(contents: Sequence[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for content in contents:
        digest.update(content)
    return digest.hexdigest()
