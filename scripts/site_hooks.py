"""What mkdocs needs to build the pages, which are written to be read in the repository too.

The navigation has every page of docs, and the README's path from installation to a segmentation as `start.md`. Links
from a page to a file outside docs (code, data, the README's other sections) cannot be followed in the site: they become
the path.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README, START = ROOT / "README.md", DOCS / "start.md"
PATH = ("Install", "Try it", "Your data", "When something is wrong")
"""The README's sections that are a page of the site."""
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:)([^)#\s]+)(#[^)]*)?\)")


NAV: dict[str, list[str]] = {
    "How-to": ["how-to"],
    "Methods": ["methods"],
    "Results": ["results"],
    "Reference": ["reference", "reliability.md", "performance.md", "scaling.md"],
    "Design": ["design.md", "glossary.md"],
}
"""Sections of the site and their pages, or folders of which every page is one."""
FIRST = ("README.md", "own-data.md", "finalists-cpu.md", "finalists-gpu-short.md", "arena.md", "commands.md", "keys.md")
"""Pages that come before the others of their folder."""


def on_config(config: Any) -> None:
    """Called by mkdocs before it looks for pages: all of them have a place, in order of need."""
    first = ["index.md", {"Install, demo, five commands": START.name}]
    config.nav = [{"Start here": first}, *({title: _pages(parts)} for title, parts in NAV.items())]


def on_files(files: Any, config: Any) -> None:
    """Called by mkdocs with the files it found."""
    files.append(File.generated(config, START.name, content=start_page()))


def start_page() -> str:
    """The README's `PATH`, with links as from docs."""
    sections = re.split(r"^## ", README.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {section.partition("\n")[0]: section for section in sections}
    text = "\n".join(f"## {found[title]}" for title in PATH)
    return f"# Install, demo, five commands\n\n{text.replace('](docs/', '](')}"


def _pages(parts: list[str]) -> list[str]:
    found = []
    for part in parts:
        files = sorted((DOCS / part).glob("*.md"), key=_place) if (DOCS / part).is_dir() else [DOCS / part]
        found += [file.relative_to(DOCS).as_posix() for file in files]
    return found


def _place(file: Path) -> tuple[int, str]:
    return FIRST.index(file.name) if file.name in FIRST else len(FIRST), file.name


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page before it is rendered."""
    return without_links_outside(markdown, (DOCS / page.file.src_uri).parent)


def without_links_outside(markdown: str, folder: Path) -> str:
    """Replace links that leave docs by their text and the path in the repository.

    Raises:
        FileNotFoundError: there is no such file.
    """

    def replaced(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        anchors = ("", *(f"#{title.lower().replace(' ', '-')}" for title in PATH))
        if target == README and (match[3] or "") in anchors:
            return f"[{match[1]}]({os.path.relpath(START, folder)}{match[3] or ''})"
        if target.is_relative_to(DOCS):
            return match[0]
        if not target.exists():
            raise FileNotFoundError(f"{folder.relative_to(ROOT)}: no file {match[2]}; correct the link '{match[0]}'.")
        path = target.relative_to(ROOT).as_posix()
        return f"{match[1]} (`{path}`)" if path not in match[1] else match[1]

    return _LINK.sub(replaced, markdown)
