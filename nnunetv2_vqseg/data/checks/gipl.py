"""What SimpleITK hides in a GIPL file: it reads a truncated one without an error and leaves the rest to chance."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from nnunetv2_vqseg.core.errors import REPLACE, DatasetError

HEADER_BYTES = 256
VOXEL_BYTES = {1: 1, 7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
"""By the number of the voxels' type in the header."""


def check_gipl(path: Path, remedy: str = REPLACE) -> None:
    """Compare the size of a .gipl file with what its header promises.

    Args:
        remedy: what to do about a file that cannot be used, the end of the sentence.

    Raises:
        DatasetError: it is truncated.
    """
    with path.open("rb") as stream:
        head = stream.read(10)
    *extents, kind = struct.unpack(">5H", head.ljust(10, b"\0"))
    total = HEADER_BYTES + math.prod(max(extent, 1) for extent in extents) * VOXEL_BYTES.get(kind, 0)
    size = path.stat().st_size
    if size < total:
        raise DatasetError(f"{path} is truncated: {size} of {total} bytes are there; {remedy}.")
