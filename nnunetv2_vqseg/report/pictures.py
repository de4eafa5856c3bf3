"""Pictures of a report: PNG bytes with the texts that go with them, and the colours all of them share."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from nnunetv2_vqseg.core.curve_plot import COLOURS

METHOD_COLOURS = ("#5a5a5a", *COLOURS)  # the first method, the baseline, is grey
CLASS_COLOURS = ("#e69f00", "#56b4e9", "#cc79a7", "#f0e442", "#009e73", "#d55e00", "#0072b2")


@dataclass(frozen=True)
class Picture:
    """One figure: file name without ending, PNG bytes, what it shows in words, and its caption."""

    name: str
    png: bytes
    alt: str
    caption: str

    @property
    def data_uri(self) -> str:
        """The PNG as an address that needs no file beside the page."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the PNG's header."""
        return int.from_bytes(self.png[16:20], "big"), int.from_bytes(self.png[20:24], "big")


def picture(figure: Figure, name: str, alt: str, caption: str, dpi: int = 160) -> Picture:
    """Render a figure."""
    buffer = io.BytesIO()
    # no software or date inside: equal numbers give equal files
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return Picture(name, buffer.getvalue(), alt, caption)


def distinct(names: Sequence[str]) -> list[str]:
    """Names of files, with a number behind those that are taken: signs that methods differ in may not be in names."""
    taken: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        taken.append(next(candidate for candidate in candidates if candidate.lower() not in map(str.lower, taken)))
    return taken


def colour(colours: tuple[str, ...], index: int) -> str:
    """The colour of the method or class with this index; they repeat after the last."""
    return colours[index % len(colours)]
