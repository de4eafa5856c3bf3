"""Every method has a page, with the figures of the arena as they are kept."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import arena_page  # noqa: E402
from experiment_files import read_experiment  # noqa: E402
from update_methods import (  # noqa: E402
    NOT_YET,
    OWN_PAPER,
    PAGES,
    ROWS,
    here,
    measured,
    measured_arenas,
    seconds_a_step,
    with_arena,
)

PAGE_NAMES = sorted(file.stem for file in PAGES.glob("*.md") if file.stem != "README")


def test_every_page_has_a_row_of_the_arena_and_every_row_a_page():
    assert sorted(ROWS) == PAGE_NAMES
    assert {run.name for run in read_experiment("arena", "cpu").runs} <= set(ROWS.values())


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_its_figures_are_current_and_its_trainer_exists(page):
    from nnunetv2_vqseg import trainers

    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    assert with_arena(text, page, measured(), seconds_a_step()) == text, "run python scripts/update_methods.py"
    names = re.findall(r"nnUNetTrainer\w+", text)
    assert names
    assert all(hasattr(trainers, name) for name in names)
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    assert f"({page}.md) | `{names[0]}` |" in index


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_what_its_own_paper_has_stands_on_the_page_with_its_source(page):
    said = (PAGES / f"{page}.md").read_text(encoding="utf-8").partition("- **Its own paper.**")[2].partition("\n")[0]
    figures = [float(number) for number in re.findall(r"\b0\.\d{3}\b", said)]
    assert set(OWN_PAPER.get(page, {}).values()) <= set(figures)
    assert bool(OWN_PAPER.get(page)) == bool(figures), said


def row(name: str, dice: float, seeds: int = 1) -> dict[str, Any]:
    score = {"Dice": {"mean": dice, "sd_folds": 0.012}}
    settings = {"seed": list(range(seeds))}
    return {"name": name, "labeled": 3, "trainer": name, "summary": {"mean": score}, "settings": settings}


def test_figures_stand_beside_the_baselines(tmp_path):
    rows = [row("stock nnU-Net", 0.7), row("labelled images alone", 0.72), row("mean teacher", 0.75)]
    rows.append(row("BCP", 0.8, seeds=3))
    (tmp_path / "arena-cpu-small.json").write_text(json.dumps({"val": rows}), encoding="utf-8")
    expected = (
        "| ACDC, 3 labelled patients (validation) | 0.800 ± 0.012 (3 seeds) "
        "| 0.700 (1 seed) | 0.720 (1 seed) | 0.750 (1 seed) | {} |"
    )
    assert expected.format("") in here("BCP", measured(tmp_path), seconds_a_step(tmp_path))
    (tmp_path / "performance").mkdir()
    totals = [{"variant": "stock nnU-Net", "ms": 200.0}, {"variant": "BCP", "ms": 400.0}]
    (tmp_path / "performance" / "step-arena.json").write_text(
        json.dumps({"tables": {"totals": totals}}), encoding="utf-8"
    )
    assert expected.format("2.0") in here("BCP", measured(tmp_path), seconds_a_step(tmp_path))
    assert here("ABD", measured(tmp_path), {}) == NOT_YET
    beside_paper = here("BCP", measured(tmp_path), {}, {3: 0.876})
    assert f"{expected.format('')} -0.076 |" in beside_paper
    assert f"{expected.format('')}  |" in here("BCP", measured(tmp_path), {}, {7: 0.888}), "not with as many patients"
    (tmp_path / "arena-cpu-small.json").write_text(json.dumps({"val": rows, "test": rows[:1]}), encoding="utf-8")
    assert here("BCP", measured(tmp_path), {}) == NOT_YET, "the test patients of it were not read"
    assert "(test)" in here("stock nnU-Net", measured(tmp_path), {})


def arena_row(name: str, trainer: str, dice: float, online: list[float], postprocessed: bool = True) -> dict[str, Any]:
    return row(name, dice) | {
        "trainer": trainer,
        "summary": {"mean": {"Dice": {"mean": dice, "sd_folds": None}, "HD95": {"mean": 5.25}}},
        "postprocessed": {"summary": {"Dice": {"mean": dice + 0.01}}} if postprocessed else None,
        "images_a_step": [8, 4],
        "online_dice": [online],
    }


def test_the_arena_s_page_has_few_rows_best_first_and_keeps_its_prose(tmp_path):
    names = list(ROWS.values())
    rows = [arena_row(name, f"T{index}", 0.5 + 0.01 * index, [0.1, 0.2, 0.3, 0.4]) for index, name in enumerate(names)]
    (tmp_path / "arena-cpu-small.json").write_text(json.dumps({"val": rows}), encoding="utf-8")
    (tmp_path / "arena-busi-cpu-small.json").write_text(json.dumps({"val": rows[:2]}), encoding="utf-8")
    found = measured(tmp_path)
    shown = arena_page.shown(found)
    assert len(shown) == 8
    assert {"stock nnU-Net", "mean teacher", "VQ-Seg"} <= set(shown)
    assert shown[0] == names[-1]
    old = "# The arena\n\nWhich?\n\n<!-- answer: begin -->\n\nold\n\n<!-- answer: end -->\n\nSentences.\n"
    seconds = {"T0": 0.2, "T5": 0.4}
    text = arena_page.page(old, found, seconds, "arena.png", ["arena-busi-cpu-small"])
    assert text.startswith("# The arena\n\nWhich?\n\n<!-- answer: begin -->\n\n![")
    assert "old" not in text
    assert "<!-- answer: end -->\n\nSentences.\n\n<details markdown>" in text
    above = text.partition("<details")[0]
    assert above.count("\n| [") == 8
    assert arena_page.page(text, found, seconds, "arena.png", ["arena-busi-cpu-small"]) == text
    assert text.count("[arena-busi-cpu-small](arena-busi-cpu-small.md)") == 1
    assert f"| {names[5]} | 0.550 | 0.560 | 5.2 | 8 + 4 | 0.400 | 0.200 |" in text, "half of its epochs in stock's time"
    assert f"| {names[6]} | 0.560 | 0.570 | 5.2 | 8 + 4 | 0.400 |  |" in text, "its time is not known"


def test_a_gain_is_the_difference_that_the_table_shows():
    stock, bcp = arena_row("stock nnU-Net", "T", 0.6, []), arena_row("BCP", "T", 0.65, [])
    first = {"folds": {"0": {"mean": {"Dice": 0.5}}}}
    assert arena_page.gain(bcp | first, stock | first) == pytest.approx(0.05)


def test_methods_are_ranked_on_the_data_that_all_have():
    stock, teacher, bcp = (arena_row(name, "T", 0.6, []) for name in ("stock nnU-Net", "mean teacher", "BCP"))
    better = [arena_row(row["name"], "T", dice, []) for row, dice in ((teacher, 0.7), (bcp, 0.65))]
    found = {"a": {row["name"]: row for row in (stock, *better)}, "b": {row["name"]: row for row in (stock, teacher)}}
    assert arena_page.gains(found) == pytest.approx({"mean teacher": 0.1, "BCP": 0.05, "stock nnU-Net": 0.0})
    assert list(arena_page.gains(found)) == ["mean teacher", "BCP", "stock nnU-Net"]
    del found["a"]["mean teacher"]
    assert arena_page.gains(found) == pytest.approx({"BCP": 0.05, "stock nnU-Net": 0.0, "mean teacher": 0.0})


def test_the_arena_s_page_is_current():
    text = arena_page.PAGE.read_text(encoding="utf-8")
    if arena_page.BEGIN not in text:
        pytest.skip("the arena has not been written yet")
    name = "arena.png" if "](arena.png)" in text else None
    again = arena_page.page(text, arena_page.compared(), seconds_a_step(), name, measured_arenas())
    assert again == text, "run python scripts/arena_page.py"
