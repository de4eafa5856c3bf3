"""Which of nnU-Net's readers opens the files of a dataset; only `nnunetv2.imageio` is imported."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunetv2_vqseg.core.errors import DatasetError


def find_reader(dataset_json: dict[str, Any], examples: Iterable[str | Path]) -> type[BaseReaderWriter]:
    """The reader that nnU-Net picks: the one that dataset.json names, else the first that opens one of the examples.

    Raises:
        DatasetError: no reader opens any of them.
    """
    refused: list[str] = []
    for example in examples:
        try:
            # nnU-Net prints a traceback for each reader that fails
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                return determine_reader_writer_from_dataset_json(dataset_json, str(example), verbose=False)
        except RuntimeError:
            refused.append(str(example))
    raise DatasetError(
        f'None of nnU-Net\'s readers opens {refused[0]}; check that the file is complete and that "file_ending" in '
        f"dataset.json is right."
    )
