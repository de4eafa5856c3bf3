"""Draw docs/dice.png, the README's picture, from the kept scores of the small trainings.

    python scripts/readme_picture.py

Its numbers are those of the table under it: 3000 steps of a small plan, of hearts the arena's validation patients
(docs/results/arena.md), of breast ultrasound the unlabelled images with hidden labels (docs/results/probes.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from matplotlib.figure import Figure
from run_experiment import RESULTS, ROOT

from nnunetv2_vqseg.core.curve_plot import figure_style
from nnunetv2_vqseg.core.files import replace_bytes
from nnunetv2_vqseg.core.json import read_json
from nnunetv2_vqseg.report.pictures import METHOD_COLOURS, picture
from nnunetv2_vqseg.report.statistics import MEAN

ROWS = {
    "stock nnU-Net": "stock nnU-Net",
    "labelled images alone": "ours on the\nlabelled images alone",
    "mean teacher": "mean teacher",
    "VQ-Seg": "VQ-Seg",
}
"""Row of the arena -> its name in the picture."""
HEARTS = "heart MRI (ACDC)\n{} labelled patients"
BREASTS = "breast ultrasound (BUSI)\n10 labelled images"
LABELED = (3, 7)
TARGET = ROOT / "docs" / "dice.png"
TEXT = "Dice of stock nnU-Net, our settings without unlabelled images, mean teacher and VQ-Seg; a dot a seed"

Scores = Mapping[str, Mapping[str, list[float]]]  # panel -> row -> Dice of its seeds


def scores() -> Scores:
    """Those that were measured."""
    found: dict[str, dict[str, list[float]]] = {HEARTS.format(count): {} for count in LABELED}
    arena = read_json(RESULTS / "arena-cpu-small.json", "take it back from git", dict)
    for row in arena["val"]:
        if row["name"] in ROWS and row["labeled"] in LABELED and "folds" in row:
            seeds = [values[MEAN]["Dice"] for values in row["folds"].values()]
            found[HEARTS.format(row["labeled"])][row["name"]] = seeds
    hidden = read_json(RESULTS / "probe-hidden-labels-busi.json", "take it back from git", dict)
    found[BREASTS] = {row["method"]: list(row["folds"].values()) for row in hidden["rows"] if row["method"] in ROWS}
    return found


def draw(found: Scores) -> Figure:
    """A panel for each kind of data, a line of seeds with their mean for each method."""
    figure = Figure(figsize=(6.9, 2.3), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True)
    panels[0].set_ylim(len(ROWS) - 0.5, -0.5)  # the first method on top, in all panels
    panels[0].set_yticks(range(len(ROWS)), list(ROWS.values()), fontsize=9)
    for axes, (title, rows) in zip(panels, found.items(), strict=True):
        for place, name in enumerate(ROWS):
            if name in rows:
                mean, colour = fmean(rows[name]), METHOD_COLOURS[place]
                axes.scatter(mean, place, color=colour, marker="|", s=160, linewidth=2.5)
                axes.scatter(rows[name], [place] * len(rows[name]), color=colour, s=16)
                axes.text(max(rows[name]) + 0.015, place, f"{mean:.2f}", va="center", fontsize=9)
        axes.set_xlim(0.5, 0.9)
        axes.grid(visible=False, axis="y")
        axes.set_title(title, fontsize=9, fontweight="normal")
        axes.set_xlabel("Dice", fontsize=9)
    return figure


if __name__ == "__main__":
    with figure_style():
        replace_bytes(TARGET, picture(draw(scores()), "dice", TEXT, TEXT, dpi=150).png)
