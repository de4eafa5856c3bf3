"""What the folder of preprocessed unlabelled cases holds, and from which files and settings it was made.

The manifest is a JSON file beside the folder (nnU-Net expects nothing but cases inside). A case is trusted if its entry
lists its output files with the sizes they have on disk; entries are taken out before files are touched and put back
after the last one is in place, so whatever an interrupted run leaves behind is not trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from nnunetv2_vqseg.core.json import read_object, write_entries
from nnunetv2_vqseg.data.records import file_states
from nnunetv2_vqseg.data.side_files import with_side_files

VERSION = 1
OUTPUT_SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl")


class Source(TypedDict):
    """One file as it was read: bytes, modification time in nanoseconds, hash of the content; -1, -1, "" if missing."""

    size: int
    mtime_ns: int
    content: str


class Entry(TypedDict, total=False):
    """One case: where it comes from and, once it is complete, what it was made of and the sizes of its files."""

    origin: str
    settings: str
    sources: list[Source]
    outputs: dict[str, int]


class Manifest:
    """The entries of one folder; reading never fails, a file that cannot be understood counts as no entries."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.file = manifest_file(folder)
        content = read_object(self.file)
        cases = content.get("cases") if content.get("version") == VERSION else None
        entries = cases.items() if isinstance(cases, dict) else ()
        self.cases: dict[str, Entry] = {case: entry for case, entry in entries if _is_entry(entry)}

    def save(self) -> None:
        """Replace the file as a whole: readers see the old or the new one."""
        write_entries(f'{{"version": {VERSION}, "cases": {{', self.cases, "}}", self.file)

    def is_complete(self, case: str) -> bool:
        """Are all files of the case there, with the sizes they were written with?"""
        outputs = self.cases.get(case, {}).get("outputs", {})
        states = file_states([f"{self.folder}/{name}" for name in outputs])
        return len(outputs) == len(OUTPUT_SUFFIXES) and [size for size, _ in states] == list(outputs.values())

    def is_current(self, case: str, files: Sequence[str], settings: str) -> bool:
        """Complete, made with these settings, and from these files as they are now?

        A file that was only copied or touched (same content, other time) is the same file.
        """
        entry = self.cases.get(case, {})
        if entry.get("settings") != settings or not self.is_complete(case):
            return False
        sources, read = entry.get("sources", []), with_side_files(files)
        return len(sources) == len(read) and all(map(_is_same_file, read, sources))


def manifest_file(folder: str | Path) -> Path:
    """`<folder>.json`."""
    return Path(f"{folder}.json")


def describe_sources(files: Sequence[str]) -> list[Source]:
    """Channel files and what is read with them; size and time are taken before the content."""
    sources = []
    for file in with_side_files(files):
        ((size, mtime_ns),) = file_states([file])
        sources.append(Source(size=size, mtime_ns=mtime_ns, content="" if size < 0 else _content_hash(file)))
    return sources


def _is_entry(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    sources, outputs = value.get("sources", []), value.get("outputs", {})
    return (
        isinstance(outputs, dict)
        and isinstance(sources, list)
        and all(isinstance(source, dict) and set(source) == set(Source.__annotations__) for source in sources)
    )


def _is_same_file(file: Path, source: Source) -> bool:
    ((size, mtime_ns),) = file_states([file])
    if size != source["size"]:
        return False
    return mtime_ns == source["mtime_ns"] or _content_hash(file) == source["content"]


def _content_hash(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
