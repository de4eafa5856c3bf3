"""What the folder of preprocessed unlabelled cases holds, and from which files and settings it was made.

The manifest is a JSON file beside the folder (nnU-Net expects nothing but cases inside). A case is trusted if its entry
lists its output files with the sizes they have on disk; entries are taken out before files are touched and put back
after the last one is in place, so whatever an interrupted run leaves behind is not trusted.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

VERSION = 1
OUTPUT_SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl")


class Source(TypedDict):
    """One channel file as it was read: bytes, modification time in nanoseconds, hash of the content."""

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
        self.cases: dict[str, Entry] = {}
        with suppress(OSError, ValueError):
            content = json.loads(self.file.read_text(encoding="utf-8"))
            if isinstance(content, dict) and content.get("version") == VERSION:
                cases = content.get("cases")
                entries = cases.items() if isinstance(cases, dict) else ()
                self.cases = {case: entry for case, entry in entries if _is_entry(entry)}

    def save(self) -> None:
        """Replace the file as a whole: readers see the old or the new one."""
        temporary = self.file.with_name(f"{self.file.name}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_text(json.dumps({"version": VERSION, "cases": self.cases}, indent=1), encoding="utf-8")
            temporary.replace(self.file)
        finally:
            temporary.unlink(missing_ok=True)

    def is_complete(self, case: str) -> bool:
        """Are all files of the case there, with the sizes they were written with?"""
        outputs = self.cases.get(case, {}).get("outputs", {})
        return len(outputs) == len(OUTPUT_SUFFIXES) and all(
            _size(self.folder / name) == size for name, size in outputs.items()
        )

    def is_current(self, case: str, files: Sequence[str], settings: str) -> bool:
        """Complete, made with these settings, and from these files as they are now?

        A file that was only copied or touched (same content, other time) is the same file.
        """
        entry = self.cases.get(case, {})
        if entry.get("settings") != settings or not self.is_complete(case):
            return False
        sources = entry.get("sources", [])
        return len(sources) == len(files) and all(
            _is_same_file(Path(file), source) for file, source in zip(files, sources, strict=True)
        )


def manifest_file(folder: str | Path) -> Path:
    """`<folder>.json`."""
    return Path(f"{folder}.json")


def output_sizes(folder: str | Path, case: str) -> dict[str, int]:
    """Sizes in bytes of the files that make up a preprocessed case."""
    return {case + suffix: (Path(folder) / (case + suffix)).stat().st_size for suffix in OUTPUT_SUFFIXES}


def describe_source(file: str | Path) -> Source:
    """Size, time and content hash of a file, the first two taken before it is read."""
    status = Path(file).stat()
    return Source(size=status.st_size, mtime_ns=status.st_mtime_ns, content=_content_hash(Path(file)))


def settings_hash(settings: dict[str, Any]) -> str:
    """A hash of JSON content that does not depend on the order of keys or on tuples and lists."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True, default=float).encode(), digest_size=16).hexdigest()


def _is_entry(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    sources, outputs = value.get("sources", []), value.get("outputs", {})
    return (
        isinstance(outputs, dict)
        and isinstance(sources, list)
        and all(isinstance(source, dict) and set(source) == {"size", "mtime_ns", "content"} for source in sources)
    )


def _is_same_file(file: Path, source: Source) -> bool:
    try:
        status = file.stat()
    except OSError:
        return False
    if status.st_size != source["size"]:
        return False
    return status.st_mtime_ns == source["mtime_ns"] or _content_hash(file) == source["content"]


def _content_hash(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except (OSError, ValueError):  # the latter where this is no name for a file
        return -1
