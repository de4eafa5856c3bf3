"""Draw docs/dice.png, the README's picture, from the kept scores of the full-size trainings.

    python scripts/readme_picture.py

Its numbers are those of docs/results/finalists-gpu-short.md: 3500 steps of nnU-Net's planned network at full size, 20
test patients. VQ-Seg has the image decoder, which is off by default: of today's default the test patients of 3 labelled
ones were read in part only.
"""

from __future__ import annotations

from matplotlib.figure import Figure
from run_experiment import RESULTS, ROOT

from nnunetv2_vqseg.core.curve_plot import figure_style
from nnunetv2_vqseg.core.files import replace_bytes
from nnunetv2_vqseg.core.json import read_json
from nnunetv2_vqseg.report.pictures import METHOD_COLOURS, picture
from nnunetv2_vqseg.report.statistics import MEAN

ROWS = {
    "stock nnU-Net": "stock nnU-Net",
    "mean teacher": "mean teacher",
    "VQ-Seg without PFA": "VQ-Seg with\nimage decoder",
}
"""Row of the page -> its name in the picture."""
LABELED = (3, 7)
TARGET = ROOT / "docs" / "dice.png"


def scores() -> dict[int, dict[str, float]]:
    """Labelled patients -> name in the picture -> Dice."""
    content = read_json(RESULTS / "finalists-gpu-short.json", "take it back from git", dict)
    found: dict[int, dict[str, float]] = {count: {} for count in LABELED}
    for row in content["test"]:
        if row["name"] in ROWS and row["labeled"] in LABELED and "summary" in row:
            found[row["labeled"]][ROWS[row["name"]]] = row["summary"][MEAN]["Dice"]["mean"]
    return found


def draw(dice: dict[int, dict[str, float]]) -> Figure:
    """A panel for each number of labelled patients, a bar for each method."""
    figure = Figure(figsize=(6.3, 2.2), layout="constrained")
    figure.suptitle("ACDC, 20 test patients, 3500 steps of nnU-Net's 2D network", x=0.01, ha="left", fontsize=9)
    panels = figure.subplots(1, len(dice), sharey=True)
    panels[0].invert_yaxis()  # the first method on top, in all panels
    for axes, (count, values) in zip(panels, dice.items(), strict=True):
        bars = axes.barh(list(values), list(values.values()), color=METHOD_COLOURS[: len(values)], height=0.62)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="y")
        axes.set_title(f"{count} labelled patients", fontsize=9, fontweight="normal")
        axes.set_xlabel("Dice", fontsize=9)
    return figure


if __name__ == "__main__":
    with figure_style():
        text = "Dice of stock nnU-Net, a mean teacher and VQ-Seg with its image decoder, with 3 and 7 labelled patients"
        replace_bytes(TARGET, picture(draw(scores()), "dice", text, text, dpi=150).png)
