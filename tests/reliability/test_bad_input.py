"""Whatever is wrong with the input: it works, or one sentence says file, problem and remedy, and nothing is lost."""

from __future__ import annotations

import sys

import pytest
from cases import Case
from corpus import CASES
from runs import ROOT, is_one_sentence, row, run, shown
from worlds import World

sys.path.insert(0, str(ROOT / "scripts"))
from update_reliability import PAGE, tables

# torch's launcher, which wants the real standard error.
pytestmark = pytest.mark.filterwarnings("ignore:Unable to enable fault handler")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_bad_input(case: Case, copy_for) -> None:
    world = World(copy_for(case.command, case.channels))
    said, changed = run(case, world)
    if case.refused is None:
        assert said.message is None
        assert [name for name in changed if not name.startswith("nnUNet_preprocessed")] == []
        assert len(said.warnings) == (case.warns is not None)
        assert case.warns is None or case.warns in said.warnings[0]
        assert case.holds is None or case.holds(world)
    else:
        assert said.message is not None, "this must be refused"
        assert is_one_sentence(shown(said.message, world.root, case.quotes))
        for part in case.refused:
            assert part in said.message
        assert changed == []
    assert row(case, said, world.root) in tables().splitlines(), "run python scripts/update_reliability.py"


def test_every_case_is_one_row_of_the_page_and_there_are_no_others() -> None:
    rows = [line for line in tables().splitlines() if line.startswith("| ") and line != "| input | what happens |"]
    assert [line.split(" | ")[0] for line in rows] == [f"| {case.what}" for case in CASES]


def test_there_are_enough_cases() -> None:
    assert len({case.what for case in CASES}) == len(CASES) >= 60
    assert "## Bad input" in PAGE.read_text(encoding="utf-8")
