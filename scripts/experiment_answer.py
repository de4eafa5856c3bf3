"""What a reader of an experiment's page meets first: one picture and a table of few rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from experiment_files import Experiment

from nnunetv2_vqseg.report.case_files import Split
from nnunetv2_vqseg.report.pictures import Picture
from nnunetv2_vqseg.report.statistics import MEAN

MOST_ROWS = 8

Row = Mapping[str, Any]


def answer_rows(experiment: Experiment, rows: Sequence[Row]) -> list[Row]:
    """The first `MOST_ROWS` measured rows of those named in the experiment's `answer`, or of all."""
    measured = [row for row in rows if "summary" in row]
    shown = [row for row in measured if not experiment.answer or row["name"] in experiment.answer][:MOST_ROWS]
    counts = Counter(row["labeled"] for row in shown)
    compared = [row for row in shown if counts[row["labeled"]] > 1]  # a row alone is no comparison
    return compared or shown


def answer(experiment: Experiment, rows: Mapping[Split, Sequence[Row]], figure: Picture | None) -> list[str]:
    """Picture and table as lines of Markdown.

    Args:
        rows: of each split that was read; the validation patients' say which rows are shown.
    """
    shown = answer_rows(experiment, rows.get("val", ()))
    if not shown:
        return []
    of_split = {
        split: {(row["name"], row["labeled"]): row for row in read if "summary" in row} for split, read in rows.items()
    }
    titles = {"test": "test", "val": "validation"}
    splits = [split for split in titles if of_split.get(split)]
    head = ["labelled", "method", *(f"Dice, {titles[split]}" for split in splits), f"HD95, {titles[splits[0]]}"]
    lines = []
    for row in shown:
        found = [of_split[split].get((row["name"], row["labeled"])) for split in splits]
        scores = ["" if one is None else _score(one, "Dice", 3) for one in found]
        distance = "" if found[0] is None else _score(found[0], "HD95", 1)
        minutes = row["minutes"]
        lines.append(
            [
                f"{row['labeled']}{experiment.runs[0].data.unit}",
                row["name"],
                *scores,
                distance,
                str(len(row["settings"]["seed"])),
                f"{sum(minutes) / len(minutes):.0f}" if minutes else "",
            ]
        )
    head += ["seeds", "minutes"]
    table = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)]
    return [*([] if figure is None else [f"![{figure.alt}]({figure.name}.png)", ""]), *table]


def _score(row: Row, name: str, digits: int) -> str:
    score = row["summary"][MEAN][name]
    spread = score["sd_folds"]
    return f"{score['mean']:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread == spread else "")
