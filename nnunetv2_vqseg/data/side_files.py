"""Files that a reader opens beside those that a case names; they belong to what the case is made of, too."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

TIFF = (".tif", ".tiff")
HEADERS = (".mha", ".mhd", ".nrrd", ".nhdr")
PAIRS = {".hdr": ".img", ".img": ".hdr"}
HEADER_BYTES = 1 << 14
_DATA_FILE = re.compile(r"^(?:ElementDataFile *= *|data ?file: *)(?P<name>[^\r\n]+)(?P<rest>.*)", re.I | re.M | re.S)


def with_side_files(files: Iterable[str | Path]) -> list[Path]:
    """The files, each followed by what is read with it, whether that is there or not."""
    found: dict[Path, None] = {}
    for file in map(Path, files):
        spacings = (spacing_file(file, of_label) for of_label in (True, False)) if file.suffix.lower() in TIFF else ()
        found |= dict.fromkeys((file, *spacings, *data_files(file)))
    return list(found)


def spacing_file(file: Path, of_label: bool) -> Path:
    """Where `Tiff3DIO` looks for a spacing: `CASE.json` for the label `CASE.tif` or the image `CASE_0000.tif`."""
    return file.with_name(f"{file.stem if of_label else file.stem[: -len('_0000')]}.json")


def data_files(file: Path) -> list[Path]:
    """The files with voxels that a header names (MetaImage, NRRD), or the other half of an Analyze or NIfTI pair."""
    suffix = file.suffix.lower()
    if suffix in PAIRS:
        return [file.with_suffix(PAIRS[suffix])]
    if suffix not in HEADERS:
        return []
    try:
        with file.open("rb") as stream:
            match = _DATA_FILE.search(stream.read(HEADER_BYTES).decode("latin-1"))
    except OSError:
        return []
    if match is None:
        return []
    name = match["name"].strip()
    if name.upper() == "LOCAL":
        return []
    if name.upper().startswith("LIST"):
        return [file.parent / line.strip() for line in match["rest"].splitlines() if line.strip()]
    if "%" in name:  # a pattern with first, last and step behind it
        return sorted(file.parent.glob(re.sub(r"%\d*d", "*", name.split()[0])))
    return [file.parent / name]
