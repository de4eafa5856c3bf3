"""Draw docs/performance.png: milliseconds of a step on a GPU by what makes it faster, predicted and measured.

python scripts/performance_picture.py            # of results/performance/gpu_table.json where that is there
"""

from __future__ import annotations

import json
from pathlib import Path

from gpu_table import PREDICTED, VARIANTS, holds
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "results" / "performance" / "gpu_table.json"
KINDS = list(dict.fromkeys(kind for kind, _ in PREDICTED))


def measured() -> dict[tuple[str, str], float]:
    """Milliseconds by method and variant, of a GPU."""
    content = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {"device": "CPU", "rows": []}
    rows = [] if content["device"] == "CPU" else content["rows"]
    return {(row["kind"], row["variant"]): row["ms"] for row in rows if row["what"] == "step" and holds(row)}


def draw() -> Figure:
    """One panel a method."""
    found = measured()
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(1, len(KINDS), sharey=True), KINDS, strict=True):
        for row, variant in enumerate(VARIANTS):
            expected = PREDICTED[kind, variant]
            axes.barh(row, expected, height=0.7, color="none", edgecolor="0.35", hatch="////", linewidth=0.8)
            if (kind, variant) in found:
                axes.barh(row, found[kind, variant], height=0.35, color="tab:blue")
            axes.text(max(expected, found.get((kind, variant), 0)) + 1, row, f"{expected:g}", va="center", fontsize=8)
        axes.set_yticks(range(len(VARIANTS)), VARIANTS, fontsize=8)
        axes.invert_yaxis() if axes.get_ylim()[0] < axes.get_ylim()[1] else None
        axes.set_xlim(0, 80)
        axes.set_title(kind, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    legend = "hatched: predicted" + ("; blue: measured" if found else "; nothing measured yet")
    figure.supxlabel(f"ms a step ({legend})", fontsize=8)
    return figure


if __name__ == "__main__":
    draw().savefig(ROOT / "docs" / "performance.png", dpi=110)
