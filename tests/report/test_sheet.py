"""The printed sheet: nothing runs over its end or into another column."""

from __future__ import annotations

from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from nnunetv2_vqseg.report.formatting import Cell
from nnunetv2_vqseg.report.sheet import ELSEWHERE, FOOT, HEIGHT, MARGIN, MOST_ROWS, WIDTH, _Sheet


def boxes(page):
    """Text and its box in points."""
    renderer = FigureCanvasAgg(page.figure).get_renderer()
    scale = 72 / page.figure.dpi
    return [
        (text.get_text(), text.get_window_extent(renderer).transformed(_Scale(scale))) for text in page.figure.texts
    ]


def _Scale(factor):
    from matplotlib.transforms import Affine2D

    return Affine2D().scale(factor)


@pytest.mark.parametrize("count", [3, 200])
def test_what_does_not_fit_is_left_out_and_told(count):
    page = _Sheet()
    for number in range(count):
        page.text(f"Sentence {number}: " + "words and more words " * 8, 8)
    page.foot("command")
    found = boxes(page)
    assert all(box.y0 >= 0 and box.y1 <= HEIGHT and box.x1 <= WIDTH - MARGIN / 2 for _, box in found)
    assert page.full == (count > 3)
    assert any(text == ELSEWHERE for text, _ in found) == (count > 3)
    assert all(box.y0 >= FOOT - 3 for text, box in found if text not in (ELSEWHERE, "command"))


def test_cells_of_a_row_do_not_touch():
    page = _Sheet()
    header = ["Method", "Dice", "Difference over patients", "p"]
    row = [Cell("A method with a name that takes more than a line " * 3), Cell("0.9000 ± 0.0100", bold=True)]
    row += [Cell("+0.3195 [+0.2921, +0.3470]", bold=True), Cell("< 0.001")]
    page.table("Scores", header, [row] * (MOST_ROWS + 1))
    assert page.full
    lines = {}
    for _, box in boxes(page):
        lines.setdefault(round(box.y0), []).append((box.x0, box.x1))
    rows = [sorted(line) for line in lines.values() if len(line) > 1]
    assert len(rows) >= MOST_ROWS
    for line in rows:
        assert all(before[1] < after[0] for before, after in pairwise(line))
        assert line[-1][1] <= WIDTH - MARGIN / 2
