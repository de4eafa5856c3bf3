"""What SimpleITK hides in a NIfTI file.

It reads a truncated file without an error and fills the rest with zeros, turns NaN and Inf into 0, drops the imaginary
part of complex voxels, and takes a spacing of 0 for 1 mm.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from nnunetv2_vqseg.core.errors import REPLACE, DatasetError, reason_of

CHUNK_BYTES = 1 << 22
HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348


def check_nifti(path: Path, remedy: str = REPLACE) -> None:
    """Read a .nii or .nii.gz file to its end, without keeping it in memory.

    Args:
        remedy: what to do about a file that cannot be used, the end of the sentence.

    Raises:
        DatasetError: it is no NIfTI file, truncated or damaged, or it has NaN, Inf or complex voxels or no spacing.
    """
    compressed = path.name.lower().endswith(".gz")
    try:
        with cast("IO[bytes]", gzip.open(path, "rb") if compressed else path.open("rb")) as stream:
            _check_stream(path, stream, remedy)
    except EOFError:
        raise DatasetError(f"{path} is truncated: its compressed data end early; {remedy}.") from None
    except gzip.BadGzipFile as error:
        raise DatasetError(f"{path} is not a valid gzip file ({error}); {remedy}.") from None
    except (DatasetError, MemoryError):
        raise
    except Exception as error:  # zlib.error, which is no OSError, and input/output errors
        raise DatasetError(f"{path} cannot be read ({reason_of(error)}); {remedy}.") from error


def spacing_message(file: str | Path, spacing: Sequence[float]) -> str:
    """The sentence for a spacing that is not a positive number in every direction."""
    steps = ", ".join(f"{step:g}" for step in spacing)
    return f"{file} has a spacing of ({steps}) mm, which is not positive everywhere; correct its header."


def check_finite(file: str | Path, values: np.ndarray) -> None:
    """Raise `DatasetError` where there is NaN or Inf."""
    if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "Inf"
        raise DatasetError(f"{file} holds {kind} values; replace them by numbers or remove the case.")


def _check_stream(path: Path, stream: IO[bytes], remedy: str) -> None:
    header = _parse_header(path, stream.read(HEADER_BYTES), remedy)
    dimensions = [int(extent) for extent in header["dim"][1 : int(header["dim"][0]) + 1]]
    if not dimensions or min(dimensions) < 1:
        raise DatasetError(f"{path} holds no voxel (its dimensions are {dimensions}); {remedy}.")
    spacing = [float(step) for step in header["pixdim"][1 : min(len(dimensions), 3) + 1]]
    if not all(math.isfinite(step) and step != 0 for step in spacing):
        raise DatasetError(spacing_message(path, spacing))
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise DatasetError(f"{path} holds complex numbers or colours, not grey values; convert it or remove the case.")

    offset = int(header["vox_offset"])
    missing = math.prod(dimensions) * dtype.itemsize
    total = offset + missing
    stream.seek(offset)
    while missing and (block := stream.read(min(missing, CHUNK_BYTES))):
        missing -= len(block)
        values = np.frombuffer(block[: len(block) // dtype.itemsize * dtype.itemsize], dtype)
        if dtype.kind == "f":
            check_finite(path, values)
    if missing:
        raise DatasetError(f"{path} is truncated: {total - missing} of {total} bytes are there; {remedy}.")
    while stream.read(CHUNK_BYTES):  # up to the checksum at the end of a compressed file
        pass


def _parse_header(path: Path, head: bytes, remedy: str) -> Nifti1Header | Nifti2Header:
    for header_class in (Nifti1Header, Nifti2Header):
        size = int(header_class.sizeof_hdr)
        if len(head) >= size and size in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")):
            return header_class(head[:size], check=False)
    raise DatasetError(f"{path} is not a NIfTI file; {remedy}.")
