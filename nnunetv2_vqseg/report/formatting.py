"""A table as CSV, JSON and LaTeX, and how numbers are printed in a report."""

from __future__ import annotations

import csv
import io
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.core.files import replace_text
from nnunetv2_vqseg.core.json import to_jsonable, write_json

NOTHING = "–"
OVERLAPS = ("Dice", "Jaccard")
"""The metrics without a unit, with four decimals."""


@dataclass(frozen=True)
class Cell:
    """Text as people read it, bold where it is the best of its column, and a note to the name of a row."""

    text: str
    bold: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Formatted cells for readers and the full-precision records behind them for programs.

    The first column names a row; in a `grouped` table the first names a group of rows and the second a row in it.
    """

    name: str
    caption: str
    header: list[str]
    rows: list[list[Cell]]
    records: list[dict[str, Any]]
    grouped: bool = False

    def groups(self) -> list[tuple[str, list[list[Cell]]]]:
        """Name and rows of each group; all rows in one without a name where the table is not grouped."""
        if not self.grouped:
            return [("", self.rows)]
        grouped = itertools.groupby(self.rows, key=lambda row: row[0].text)
        return [(name, [row[1:] for row in rows]) for name, rows in grouped]

    def write(self, folder: Path) -> None:
        """Write NAME.csv, NAME.json and, where there are cells, NAME.tex into `folder`, where no older one stays."""
        write_json(self.records, folder / f"{self.name}.json")
        replace_text(folder / f"{self.name}.csv", self.to_csv())
        latex = folder / f"{self.name}.tex"
        if self.rows:
            replace_text(latex, self.to_latex())
        else:
            latex.unlink(missing_ok=True)

    def to_csv(self) -> str:
        """The records, NaN as an empty field."""
        buffer = io.StringIO()
        columns = list(dict.fromkeys(key for record in self.records for key in record))
        writer = csv.DictWriter(buffer, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([{key: to_jsonable(value) for key, value in record.items()} for record in self.records])
        return buffer.getvalue()

    def to_latex(self) -> str:
        """A `table` environment for the booktabs package."""
        names = 2 if self.grouped else 1
        columns = "l" * names + "r" * (len(self.header) - names)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_escape(self.caption)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(latex_escape(title) for title in self.header) + r" \\",
            r"\midrule",
        ]
        for row in self.rows:
            texts = [latex_escape(f"{cell.text} ({cell.note})" if cell.note else cell.text) for cell in row]
            cells = [rf"\textbf{{{text}}}" if c.bold else text for c, text in zip(row, texts, strict=True)]
            lines.append(" & ".join(cells) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def number(value: float | None, places: int, sign: bool = False) -> str:
    """A number with fixed decimals; an en dash for NaN and None."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:{'+' if sign else ''}.{places}f}".replace("-", "−")


def score(value: float, metric: str, sign: bool = False) -> str:
    """`number` with the decimals of a metric."""
    return number(value, 4 if metric in OVERLAPS else 2, sign)


def with_unit(metric: str, units: str) -> str:
    """'Dice', 'HD95 (voxels)'."""
    return metric if metric in OVERLAPS else f"{metric} ({'voxels' if units == 'voxel' else units})"


def p_value(value: float) -> str:
    """As journals print it: three decimals, and '< 0.001' below."""
    return "< 0.001" if value < 0.001 else number(value, 3)


def duration(seconds: float | None) -> str:
    """Seconds as people read them: 0.8 s, 41 s, 12 min, 3.4 h."""
    if seconds is None:
        return NOTHING
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def quantity(name: str, value: Any) -> str:
    """A recorded value with the unit that its name ends in: `_bytes`, `_seconds`, or none; a seed counts nothing."""
    if value is None or isinstance(value, str):
        return value or NOTHING
    if name == "seed":
        return str(value)
    if name.endswith("bytes"):
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
    if name.endswith("seconds"):
        return duration(value)
    return f"{value:,}" if isinstance(value, int) else number(value, 3)


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return "".join(c if c.isalnum() else "_" for c in name)


def latex_escape(text: str) -> str:
    """Text for LaTeX, with the signs that our cells use."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        "<": "$<$",
        ">": "$>$",
        "×": r"$\times$",
    }
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)
