"""Write what the arena measured of a method into its page of docs/methods, between two markers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_vqseg.report.statistics import MEAN

ROOT = Path(__file__).resolve().parents[1]
PAGES, DATA = ROOT / "docs" / "methods", ROOT / "results"
BEGIN, END = "<!-- arena: begin (python scripts/update_methods.py) -->\n", "<!-- arena: end -->\n"
ROWS = {
    "supervised": "stock nnU-Net",
    "supervised-ema": "labelled images alone",
    "unet": "U-Net",
    "mean-teacher": "mean teacher",
    "vq-seg": "VQ-Seg",
    "cps": "CPS",
    "ua-mt": "UA-MT",
    "mc-net": "MC-Net+",
    "ss-net": "SS-Net",
    "bcp": "BCP",
    "abd": "ABD",
    "arco": "ARCO",
    "unimatch": "UniMatch",
    "unimatch-v2": "UniMatch V2",
    "nnfiltermatch": "nnFilterMatch",
    "self-training": "self-training",
}
"""Page of a method -> its row in the arena."""
OWN_PAPER: dict[str, dict[int, float]] = {
    "supervised": {3: 0.830, 7: 0.863},
    "unet": {3: 0.478, 7: 0.794},
    "vq-seg": {3: 0.906, 7: 0.910},
    "cps": {3: 0.610, 7: 0.788},
    "ua-mt": {3: 0.460, 7: 0.817},
    "mc-net": {7: 0.871},
    "ss-net": {3: 0.658, 7: 0.868},
    "bcp": {3: 0.876, 7: 0.888},
    "abd": {3: 0.890, 7: 0.898},
    "arco": {3: 0.887, 7: 0.894},
    "unimatch": {3: 0.889, 7: 0.899},
    "unimatch-v2": {3: 0.892, 7: 0.898},
    "nnfiltermatch": {3: 0.896, 7: 0.901},
}
"""Page of a method -> labelled patients of ACDC -> Dice of its own paper, whose source the page names."""
ARENAS = {
    "arena-cpu-small": "ACDC, {} labelled patients",
    "arena-b-cpu-small": "ACDC, {} other patients (b)",
    "arena-c-cpu-small": "ACDC, {} other patients (c)",
    "arena-busi-cpu-small": "BUSI, {} labelled images",
}
BASELINES = ("stock nnU-Net", "labelled images alone", "mean teacher")
UNEVEN = "nnUNetTrainerSelfTraining"
SOURCE = "From [the arena](../results/arena.md)."
PROTOCOL = (
    " Most papers have another network, 256 or 224 pixels instead of 48, ten times as many steps, and test patients: "
    "the last column tells how far this arena is from them more than how well the method was rebuilt."
)
NOT_YET = "Not measured here yet."

Row = Mapping[str, Any]


def measured(data: Path = DATA) -> dict[str, dict[str, Row]]:
    """Data and labels -> name of a row -> the row, on the test patients where they were read, else for validation."""
    found: dict[str, dict[str, Row]] = {}
    for name, title in ARENAS.items():
        file = data / f"{name}.json"
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        split = "test" if "test" in content else "val"
        for row in content.get(split, []):
            if "summary" in row:
                where = f"{title.format(row['labeled'])} ({'test' if split == 'test' else 'validation'})"
                found.setdefault(where, {})[row["name"]] = row
    return found


def measured_arenas(data: Path = DATA) -> list[str]:
    """Those of `ARENAS` that have results."""
    return [name for name in ARENAS if (data / f"{name}.json").is_file()]


def here(
    name: str,
    found: Mapping[str, Mapping[str, Row]],
    seconds: Mapping[str, float],
    paper: Mapping[int, float] | None = None,
) -> str:
    """What the arena says of a row, as Markdown.

    Args:
        seconds: a step, by trainer.
        paper: Dice that its own paper has on ACDC, by labelled patients.
    """
    paper = paper or {}
    others = [other for other in BASELINES if other != name]
    lines = []
    for where, rows in found.items():
        if name in rows:
            scores = [_dice(rows[name]), *(_dice(rows[other]) if other in rows else "" for other in others)]
            cells = [where, *scores, _cost(rows[name], rows, seconds)]
            if paper:
                cells.append(_over_paper(rows[name], paper) if where.startswith("ACDC") else "")
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return NOT_YET
    head = ["Dice here", name, *others, "time of a step over stock's", *(["over its own paper"] if paper else [])]
    rule = ["---"] * len(head)
    return "\n".join(
        [*(f"| {' | '.join(cells)} |" for cells in (head, rule)), *lines, "", SOURCE + (PROTOCOL if paper else "")]
    )


def _over_paper(row: Row, paper: Mapping[int, float]) -> str:
    own = paper.get(row["labeled"])
    return "" if own is None else f"{row['summary'][MEAN]['Dice']['mean'] - own:+.3f}"


def _dice(row: Row) -> str:
    score = row["summary"][MEAN]["Dice"]
    seeds = len(row["settings"]["seed"])
    spread = "" if seeds == 1 else f" ± {score['sd_folds']:.3f}"
    return f"{score['mean']:.3f}{spread} ({seeds} seed{'s' if seeds > 1 else ''})"


def seconds_a_step(data: Path = DATA) -> dict[str, float]:
    """Trainer -> seconds, alone on the machine; empty where it was not measured.

    Self-training has none: the benchmark times its first round, and later ones have twice the images.
    """
    file = data / "performance" / "step-arena.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"tables": {"totals": []}}
    return {row["variant"]: row["ms"] / 1e3 for row in content["tables"]["totals"] if row["variant"] != UNEVEN}


def _cost(row: Row, rows: Mapping[str, Row], seconds: Mapping[str, float]) -> str:
    trainers = row.get("trainer"), rows.get(BASELINES[0], {}).get("trainer")
    if not all(trainer in seconds for trainer in trainers):
        return ""
    return f"{seconds[trainers[0]] / seconds[trainers[1]]:.1f}"


def with_arena(text: str, page: str, found: Mapping[str, Mapping[str, Row]], seconds: Mapping[str, float]) -> str:
    """A page's text with the current figures."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}{here(ROWS[page], found, seconds, OWN_PAPER.get(page))}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    figures, times = measured(), seconds_a_step()
    for page in ROWS:
        file = PAGES / f"{page}.md"
        file.write_text(with_arena(file.read_text(encoding="utf-8"), page, figures, times), encoding="utf-8")
