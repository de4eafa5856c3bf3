"""Preprocessed unlabelled cases: images that stay decompressed in memory, labels only where there are any."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2


class KeptImage(np.ndarray):
    """A decompressed image. Pieces of it are copies, as those of a compressed one, so that views may change them."""

    def __getitem__(self, place: Any) -> Any:
        return np.array(np.asarray(self)[place])


class UnlabeledDataset(nnUNetDatasetBlosc2):
    """The cases of a folder, as nnU-Net's loader reads them; nothing is opened that was not asked for.

    Args:
        folder: `preprocess.unlabeled_folder(...)`.
        cases: their names.
        labels: folder of a `LabelStore` that has labels of all of them.
        keep_bytes: memory in which this process keeps images once it has read them.

    Attributes:
        kept: names of the cases that it keeps, in order of their names, that fit.
        kept_bytes: what they take.
    """

    def __init__(
        self, folder: str, cases: Sequence[str], labels: str | Path | None = None, keep_bytes: int = 0
    ) -> None:
        super().__init__(folder, list(cases))
        self.labels = labels
        self.kept: set[str] = set()
        self.kept_bytes = 0
        self._images: dict[str, KeptImage] = {}
        for case in self.identifiers if keep_bytes > 0 else ():
            image = self._open(case)
            size = math.prod(image.shape) * image.dtype.itemsize
            if size <= keep_bytes - self.kept_bytes:
                self.kept.add(case)
                self.kept_bytes += size

    def image(self, case: str) -> Any:
        """(C, D, H, W): decompressed, or where it is not kept decompressed piece by piece when it is indexed."""
        if case in self._images:
            return self._images[case]
        image = self._open(case)
        if case in self.kept:
            image = self._images[case] = image[:].view(KeptImage)
        return image

    def load_case(self, identifier: str) -> tuple[Any, Any, None, dict[str, Any]]:
        """Image, labels (or the normalisation's mask: -1 outside, else 0), nothing, and where the classes are."""
        if self.labels is None:
            return self.image(identifier), self._open(f"{identifier}_seg"), None, {"class_locations": {}}
        places = load_pickle(f"{self.labels}/{identifier}.pkl")
        return self.image(identifier), open_array(f"{self.labels}/{identifier}_seg.b2nd"), None, places

    def _open(self, name: str) -> Any:
        return open_array(f"{self.source_folder}/{name}.b2nd", **self.mmap_kwargs)


def open_array(file: str, **options: Any) -> Any:
    """A compressed array, read when it is indexed, with one thread."""
    return blosc2.open(urlpath=file, mode="r", dparams={"nthreads": 1}, **options)
