"""The comparison on one sheet of A4, as PDF."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunetv2_vqseg.core.curve_plot import figure_style
from nnunetv2_vqseg.report.charts import OVERVIEW, draw_overview
from nnunetv2_vqseg.report.formatting import Cell, Table, score
from nnunetv2_vqseg.report.page import facts
from nnunetv2_vqseg.report.verdict import verdict

WIDTH, HEIGHT, MARGIN = 595.0, 842.0, 45.0
"""Of A4, in points."""
FOOT = 62.0
"""Points above the lower edge that the command takes."""
MOST_ROWS, MOST_CLASSES = 12, 6
"""Methods, and classes, for which there is room."""
ELSEWHERE = "There is more than fits on this sheet; index.html beside it has all."
_GLYPH = 0.59
"""Mean width of a letter over its font's size, a little too wide rather than too narrow."""


def sheet(summary: Mapping[str, Any], tables: Mapping[str, Table]) -> bytes:
    """One page: verdict, picture, scores, tests and what to know before the numbers; what does not fit is named.

    Args:
        summary: what `Comparison.run` writes to summary.json.
        tables: `summary` and `paired`.
    """
    with figure_style(), matplotlib.rc_context({"pdf.fonttype": 42, "figure.constrained_layout.use": False}):
        page = _Sheet()
        page.text(summary["title"], 15, weight="bold", most=2)
        page.text(facts(summary), 8, colour="#5b6470", most=3)
        page.text(verdict(summary), 11, weight="bold", most=6)
        page.overview(summary)
        page.text(OVERVIEW, 7.5, colour="#5b6470")
        page.table("Scores: mean over classes ± standard deviation over patients", *_columns(tables["summary"], 5))
        page.table("Dice of each class", *_dice_of_classes(summary))
        if summary["paired"]:
            rows = [row for row in tables["paired"].rows if row[1].text in ("Dice", "HD95")]
            page.table("Difference over patients [95 % confidence interval]", tables["paired"].header, rows)
        for sentence in [*summary["notes"], *summary["notices"]]:
            page.text(f"•  {sentence}", 8, most=4)
        page.foot(f"{summary['command']}\nnnunetv2_vqseg {summary['versions'].get('nnunetv2_vqseg', '')}")
        return page.pdf()


def _columns(table: Table, count: int) -> tuple[list[str], list[list[Cell]]]:
    return table.header[:count], [row[:count] for row in table.rows]


def _dice_of_classes(summary: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    shown = list(summary["classes"].items())[:MOST_CLASSES]
    rows = [
        [Cell(name), *(Cell(score(method["summary"][key]["Dice"]["mean"], "Dice")) for key, _ in shown)]
        for name, method in summary["methods"].items()
    ]
    more = len(summary["classes"]) - len(shown)
    return ["Method" + (f" ({more} classes more in index.html)" if more else ""), *(name for _, name in shown)], rows


class _Sheet:
    """A page that is filled from the top; blocks that do not fit are left out, and the foot says so."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        self.y = HEIGHT - MARGIN
        self.full = False

    def text(self, text: str, size: float, *, colour: str = "#1d2126", weight: str = "normal", most: int = 3) -> None:
        """A paragraph of at most so many lines."""
        width = int((WIDTH - 2 * MARGIN) / (_GLYPH * size * (1.1 if weight == "bold" else 1.0)))
        lines = _wrapped(text, width, most)
        if not lines or not self._room(len(lines) * 1.35 * size + 0.5 * size):
            return
        for line in lines:
            self._put(MARGIN, self.y - size, line, size, color=colour, weight=weight)
            self.y -= 1.35 * size
        self.y -= 0.5 * size

    def overview(self, summary: Mapping[str, Any]) -> None:
        """The picture, with the first methods where there are many."""
        shown = dict(list(summary["methods"].items())[:MOST_ROWS])
        self.full |= len(shown) < len(summary["methods"])
        height = min(32.0 * len(shown) + 20, 230.0)
        left = MARGIN + 118
        box = (left / WIDTH, (self.y - height - 4) / HEIGHT, (WIDTH - MARGIN - left) / WIDTH, height / HEIGHT)
        axes = self.figure.add_axes(box)
        draw_overview(axes, {**summary, "methods": shown})
        axes.tick_params(labelsize=7)
        axes.xaxis.label.set_fontsize(7.5)
        self.y -= height + 34

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A table whose first column is wide and to the left; rows beyond `MOST_ROWS` are left out."""
        shown = rows[:MOST_ROWS]
        self.full |= len(shown) < len(rows)
        size, step = 7.5, 12.5
        if not self._room(step * (len(shown) + 2.6)):
            return
        cells = [[Cell(text) for text in header], *shown]
        letters = [max(len(row[column].text) for row in cells) + 3 for column in range(1, len(header))]
        most = int((WIDTH - 2 * MARGIN) / (_GLYPH * size))
        first = max(most - sum(letters), most // 4)
        letters = [
            min(count, (most - first) // max(len(letters), 1)) if sum(letters) > most - first else count
            for count in letters
        ]
        ends = [MARGIN + _GLYPH * size * (first + sum(letters[: column + 1])) for column in range(len(letters))]
        self._put(MARGIN, self.y - step, title, 8.5, weight="bold")
        self.y -= 1.5 * step
        for index, row in enumerate(cells):
            weight = "bold" if index == 0 else "normal"
            self._put(MARGIN, self.y - step + 3.5, _short(row[0].text, first), size, weight=weight)
            for cell, end, most in zip(row[1:], ends, letters, strict=True):
                style = "bold" if cell.bold else weight
                self._put(end, self.y - step + 3.5, _short(cell.text, most), size, weight=style, ha="right")
            self.y -= step
            self._rule("#1d2126" if index == 0 else "#d9dde2")
        self.y -= 0.9 * step

    def foot(self, text: str) -> None:
        """What made the page, at its end."""
        y = FOOT - 10
        told = [ELSEWHERE] * self.full + [line for part in text.split("\n") for line in _wrapped(part, 155, 3)]
        for line in told:
            self._put(MARGIN, y, line, 6, color="#5b6470")
            y -= 8

    def pdf(self) -> bytes:
        """The file's bytes, the same for the same numbers."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
        return buffer.getvalue()

    def _room(self, height: float) -> bool:
        fits = self.y - height >= FOOT
        self.full |= not fits
        return fits

    def _put(self, x: float, y: float, text: str, size: float, **style: Any) -> None:
        self.figure.text(x / WIDTH, y / HEIGHT, text, fontsize=size, va="baseline", **style)

    def _rule(self, colour: str) -> None:
        ends = (MARGIN / WIDTH, 1 - MARGIN / WIDTH)
        self.figure.add_artist(Line2D(ends, [self.y / HEIGHT] * 2, color=colour, linewidth=0.6))


def _wrapped(text: str, width: int, most: int) -> list[str]:
    """Lines of at most `width` letters; the last of `most` ends in an ellipsis where there would be more."""
    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    return lines if len(lines) <= most else [*lines[: most - 1], _short(f"{lines[most - 1]} …", width)]


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: max(letters - 1, 1)].rstrip()}…"
