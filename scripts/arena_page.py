"""Write docs/results/arena.md: every method of the arena on all of its data, in one table and one picture.

    python scripts/arena_page.py

It reads results/arena*-cpu-small.json, which `run_experiment.py` writes, and results/performance/step-arena.json, the
time of each trainer's step, measured by

    python scripts/benchmark.py step --patch 48 48 --codes 4096 --out results/performance/step-arena.json \\
        --variants nnUNetTrainerSupervised nnUNetTrainerCPS ...

What somebody wrote between question and table, or under it, stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from statistics import fmean
from typing import Any

from experiment_page import ANSWER_BEGIN, ANSWER_END
from matplotlib.figure import Figure
from update_methods import BASELINES, ROOT, ROWS, measured, measured_arenas, seconds_a_step

from nnunetv2_vqseg.core.curve_plot import figure_style
from nnunetv2_vqseg.core.files import replace_bytes, replace_text
from nnunetv2_vqseg.report.pictures import METHOD_COLOURS, picture
from nnunetv2_vqseg.report.statistics import MEAN

PAGE = ROOT / "docs" / "results" / "arena.md"
STOCK, ALWAYS, MOST_ROWS = BASELINES[0], (*BASELINES, "VQ-Seg"), 8
BEGIN, END = "<!-- arena: begin (python scripts/arena_page.py) -->", "<!-- arena: end -->"
PAGES = {name: page for page, name in ROWS.items()}

Row = Mapping[str, Any]
Found = Mapping[str, Mapping[str, Row]]  # data and labels -> name of a row -> the row


def compared() -> dict[str, dict[str, Row]]:
    """What was measured, without data on which stock nnU-Net stands alone."""
    return {where: dict(rows) for where, rows in measured().items() if rows.keys() - {STOCK}}


def complete(found: Found) -> list[str]:
    """The data on which all methods were measured."""
    every = {name for rows in found.values() for name in rows}
    return [where for where, rows in found.items() if rows.keys() == every]


def gains(found: Found) -> dict[str, float]:
    """Mean gain in Dice over stock nnU-Net of each method, best first.

    Over the data where all methods were measured; where there are none, over those that a method has.
    """
    by_method: dict[str, list[float]] = {}
    for rows in (found[where] for where in complete(found) or found):
        for name, row in rows.items():
            if STOCK in rows:
                by_method.setdefault(name, []).append(gain(row, rows[STOCK]))
    means = {name: fmean(values) for name, values in by_method.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def gain(row: Row, stock: Row) -> float:
    """Dice over stock nnU-Net's: the means over the seeds that each has."""
    return dice(row) - dice(stock)


def dice(row: Row) -> float:
    """Mean Dice of a row."""
    return float(row["summary"][MEAN]["Dice"]["mean"])


def shown(found: Found) -> list[str]:
    """Stock nnU-Net, mean teacher and VQ-Seg, and the best of the others; at most `MOST_ROWS`, best first."""
    order = list(gains(found))
    others = [name for name in order if name not in ALWAYS]
    chosen = {*ALWAYS, *others[: MOST_ROWS - len(ALWAYS)]}
    return [name for name in order if name in chosen]


def dice_at_equal_time(row: Row, stock: Row, seconds: Mapping[str, float]) -> float:
    """Online Dice of the first seed when stock nnU-Net's whole training would be over; NaN where a time is not known.

    The row's rate schedule is cut short there, which a training that was planned for that time would not be.
    """
    curves, trainers = row.get("online_dice") or [[]], (row["trainer"], stock["trainer"])
    if not curves[0] or not all(name in seconds for name in trainers):
        return nan
    share = min(1.0, seconds[trainers[1]] / seconds[trainers[0]])
    return float(curves[0][max(1, int(share * len(curves[0]))) - 1])


def table(found: Found, names: Sequence[str], seconds: Mapping[str, float]) -> list[str]:
    """A row a method."""
    ranked_by = complete(found)
    over = "over stock" if len(ranked_by) == len(found) else ", ".join(("over stock", *ranked_by))
    head = ["method", *found, over, *(["ms a step"] if seconds else [])]
    lines = [head, ["---"] * len(head)]
    means = gains(found)
    for name in names:
        rows = [of_data.get(name) for of_data in found.values()]
        cells = [f"[{name}](../methods/{PAGES[name]}.md)", *("" if row is None else _score(row) for row in rows)]
        cells.append(f"{means[name]:+.3f}" if name != STOCK else "")
        if seconds:
            trainer = next(row for row in rows if row is not None)["trainer"]
            cells.append(f"{1e3 * seconds[trainer]:.0f}" if trainer in seconds else "")
        lines.append(cells)
    return [f"| {' | '.join(cells)} |" for cells in lines]


def details(found: Found, seconds: Mapping[str, float]) -> list[str]:
    """HD95, postprocessed Dice and Dice at equal time, a table for each data set."""
    parts: list[str] = []
    for where, rows in found.items():
        head = ["method", "Dice", "postprocessed", "HD95", "images a step"]
        head += ["online Dice at the end", "online Dice when stock's time is over"]
        cells = [head, ["---"] * len(head)]
        for name, row in sorted(rows.items(), key=lambda item: -dice(item[1])):
            after, curves = row.get("postprocessed"), row.get("online_dice") or [[]]
            equal = dice_at_equal_time(row, rows[STOCK], seconds) if STOCK in rows else nan
            cells.append(
                [
                    name,
                    _score(row),
                    f"{after['summary']['Dice']['mean']:.3f}" if after else "",
                    f"{row['summary'][MEAN]['HD95']['mean']:.1f}",
                    " + ".join(map(str, row["images_a_step"])),
                    f"{curves[0][-1]:.3f}" if curves[0] else "",
                    "" if equal != equal else f"{equal:.3f}",
                ]
            )
        parts += [f"**{where}**", "", *(f"| {' | '.join(line)} |" for line in cells), ""]
    return parts


def _score(row: Row) -> str:
    score = row["summary"][MEAN]["Dice"]
    count = len(row["settings"]["seed"])
    return f"{score['mean']:.3f}" + ("" if count == 1 else f" ± {score['sd_folds']:.3f}")


def draw(found: Found) -> Figure:
    """A line a method, a dot for each data set: Dice over stock nnU-Net's."""
    order = [name for name in gains(found) if name != STOCK]
    figure = Figure(figsize=(6.3, 0.6 + 0.26 * len(order)), layout="constrained")
    axes = figure.subplots()
    for number, (where, rows) in enumerate(found.items()):
        there = [name for name in order if name in rows]
        values = [gain(rows[name], rows[STOCK]) for name in there]
        places = [order.index(name) for name in there]
        axes.scatter(values, places, color=METHOD_COLOURS[number], label=where, s=34, zorder=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    axes.set_xlabel("Dice over stock nnU-Net's")
    axes.legend(fontsize=8, loc="best")
    return figure


def page(
    text: str, found: Found, seconds: Mapping[str, float], picture_name: str | None, experiments: Sequence[str]
) -> str:
    """The page's text with the current figures.

    Args:
        text: of the page as it is; what stands after the answer's end and outside the fold stays.
        experiments: those that `found` comes from, whose own pages are linked.
    """
    head, _, rest = text.partition(ANSWER_BEGIN)
    prose, _, tail = rest.partition(ANSWER_END)[2].partition("<details markdown>")
    tail = tail.partition("</details>")[2].strip()
    answer = [] if picture_name is None else [f"![Dice over stock nnU-Net's by method and data]({picture_name})", ""]
    answer += table(found, shown(found), seconds)
    pages = ", ".join(f"[{name}]({name}.md)" for name in experiments)
    folded = [
        "<details markdown>",
        "<summary>All methods, HD95, postprocessing and equal time</summary>",
        "",
        BEGIN,
        "",
        "A gain over stock is the difference of means, each over the seeds that a row has. Online Dice is that of "
        "validation patches, of the first seed. When stock's time is over a slower method has done a part of its "
        "steps, in the middle of its schedule: a training that was planned for that time would do better. Images a "
        "step are the labelled ones and each view of unlabelled ones that passes a network; CPS passes the labelled "
        "ones twice, SS-Net three times.",
        "",
        *table(found, list(gains(found)), seconds),
        "",
        *details(found, seconds),
        f"Every row with its seeds, classes, tests, commits and the command: {pages}.",
        "",
        END,
        "</details>",
    ]
    parts = [head.strip(), ANSWER_BEGIN, "\n".join(answer), ANSWER_END, prose.strip(), "\n".join(folded), tail]
    return "\n\n".join(filter(None, parts)) + "\n"


def main() -> None:
    """Write picture and page."""
    found, seconds = compared(), seconds_a_step()
    if not any(STOCK in rows for rows in found.values()):
        raise SystemExit("The arena has no row of stock nnU-Net yet; train one with run_experiment.py.")
    with figure_style():
        drawn = picture(draw(found), "arena", "Dice over stock nnU-Net's by method and data", "", dpi=150)
    replace_bytes(PAGE.with_name("arena.png"), drawn.png)
    replace_text(PAGE, page(PAGE.read_text(encoding="utf-8"), found, seconds, "arena.png", measured_arenas()))


if __name__ == "__main__":
    main()
