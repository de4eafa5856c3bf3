"""Break datasets in every known way and write what the commands say into docs/reliability.md, between its two markers.

Takes about a minute: every case of tests/reliability/corpus.py is run.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN = "<!-- bad input: begin (python scripts/update_reliability.py) -->\n"
END = "<!-- bad input: end -->"


def tables() -> str:
    """What stands between the markers."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return rest.partition(END)[0]


def main() -> None:
    """Run every case and replace the tables."""
    sys.path.insert(0, str(ROOT / "tests" / "reliability"))
    for name, value in {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "MPLBACKEND": "agg"}.items():
        os.environ.setdefault(name, value)
    import worlds
    from corpus import CASES
    from runs import Templates, page, row, run

    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        templates = Templates(Path(scratch) / "templates")
        for number, case in enumerate(CASES):
            world = worlds.World(Path(scratch) / str(number))
            shutil.copytree(templates(case.command, case.channels), world.root)
            said = run(case, world).said
            if (said.message is None) != (case.refused is None):
                raise SystemExit(f"{case.what}: the test of it fails; the page was left as it is.")
            rows[case.what] = row(case, said, world.root)
            print(rows[case.what])
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{page(rows)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
