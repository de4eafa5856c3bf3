"""What README and reference say is what the code has."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import pytest

from nnunetv2_vqseg.core.config import Config, Range

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from readme_picture import BREASTS, HEARTS, scores  # noqa: E402
from update_reference import COMMANDS, KEYS, markdown_table, with_tables  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_LINES = 150
TABLE = {
    "stock nnU-Net": "stock nnU-Net",
    "labelled images alone": "`nnUNetTrainerSupervisedEMA`: our",
    "mean teacher": "`nnUNetTrainerMeanTeacher` |",
    "VQ-Seg": "`nnUNetTrainerVQSeg` |",
}
"""Row of the arena -> how its line in the README's first table begins."""
PAGES = ("README.md", "docs/index.md", "docs/glossary.md")


@pytest.mark.parametrize("page", [KEYS, COMMANDS], ids=lambda page: page.stem)
def test_tables_are_current(page):
    assert with_tables(page) == page.read_text(encoding="utf-8"), "run python scripts/update_reference.py"


def test_table_has_a_presets_column_where_it_differs():
    @dataclass(frozen=True)
    class Base(Config):
        epsilon: Annotated[float, Range(0, 1), "a share"] = 0.5
        codes: Annotated[int, Range(2, 64), "how many"] = 16

    keys = Base.declared().values()
    assert markdown_table(keys) == (
        "| key | default | valid | meaning |\n"
        "| --- | --- | --- | --- |\n"
        "| `epsilon` | `0.5` | number in [0, 1] | a share |\n"
        "| `codes` | `16` | integer in [2, 64] | how many |"
    )
    assert markdown_table(keys, {"codes": 8, "epsilon": 0.5, "other": 1}).splitlines() == [
        "| key | default | paper | valid | meaning |",
        "| --- | --- | --- | --- | --- |",
        "| `epsilon` | `0.5` |  | number in [0, 1] | a share |",
        "| `codes` | `16` | `8` | integer in [2, 64] | how many |",
    ]
    assert markdown_table(keys, {"codes": 16}) == markdown_table(keys)


def test_every_command_is_in_the_reference():
    text = COMMANDS.read_text(encoding="utf-8")
    scripts = re.findall(
        r"^(nnUNetv2_vqseg_\w+) = ", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert scripts
    assert all(f"## {name}\n" in text or f"`{name}`" in text for name in scripts)


def test_every_trainer_is_named_among_the_methods():
    from nnunetv2_vqseg import trainers

    page = (ROOT / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    with_a_page, others = (
        set(re.findall(r"`(nnUNetTrainer\w+)`", part)) for part in page.split("## All other trainers")
    )
    assert set(trainers.__all__) <= with_a_page | others
    assert all(getattr(trainers, name).__name__ == name for name in others)
    assert others - set(trainers.__all__), "one with a number of epochs"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert (folder / target).exists(), target


def test_the_picture_has_the_table_s_numbers():
    """A row that is renamed in the arena would be missing."""
    found = scores()
    hearts, breasts = found[HEARTS.format(3)], found[BREASTS]
    shown = {name: re.findall(rf"^\| {re.escape(start)}.*$", README, re.MULTILINE) for name, start in TABLE.items()}
    assert set(hearts) == set(TABLE)
    for name, (line, *_) in shown.items():  # others are of another table
        _, _, first, second, _ = (cell.strip(" *") for cell in line.split("|"))
        assert first.startswith(f"{fmean(hearts[name]):.3f}")
        assert second.startswith(f"{fmean(breasts[name]):.3f}" if name in breasts else "")


def test_the_readme_is_short():
    assert len(README.splitlines()) <= MOST_LINES


def quoted(section: str) -> list[str]:
    """What stands in backticks in the first column of a section's table."""
    (text,) = re.findall(rf"^## {section}\n(.*?)^## ", README, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^\| `([^`]+)`[^|]*\|", text, flags=re.MULTILINE)


def templates(file: Path) -> Iterator[str]:
    """Every text in a Python file, with ... for what is put in."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_among_the_troubles_are_those_of_the_code(monkeypatch, tmp_path):
    import nnunetv2
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    from nnunetv2_vqseg.trainer.curves import EpochCurves

    files = [*(ROOT / "nnunetv2_vqseg").rglob("*.py"), Path(nnunetv2.__path__[0]) / "utilities" / "find_objects.py"]
    said = [text for file in files for text in templates(file)]
    said.append(EpochCurves.summary_line({"kept_share": 0.0}))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    trained_with_another_plan = get_output_folder("Dataset123_Name", "nnUNetTrainerVQSeg", "nnUNetPlans", "2d")
    with pytest.raises(FileNotFoundError) as stopped:
        nnUNetPredictor(perform_everything_on_device=False).initialize_from_trained_model_folder(
            trained_with_another_plan, (0,)
        )
    said.append(str(stopped.value))
    messages = quoted("When something is wrong")
    assert len(messages) == 6
    for message in messages:
        pattern = ".*".join(map(re.escape, message.split("...")))
        assert any(re.search(rf"(?<![\w.]){pattern}(?![\w.])", text) for text in said), message


def test_keys_and_the_dataset_json_are_as_the_code_takes_them(tmp_path):
    from nnunetv2_vqseg.data.checks.dataset_json import load_dataset_json
    from nnunetv2_vqseg.trainers import nnUNetTrainerVQSeg

    keys = nnUNetTrainerVQSeg.method_class.Config.declared()
    named = [name for name in quoted("Settings that people change") if not name.startswith("nnUNet_")]
    assert named
    assert set(named) <= set(keys)
    (line,) = re.findall(r"```json\n(.*?)\n```", README)
    (tmp_path / "dataset.json").write_text(line, encoding="utf-8")
    assert load_dataset_json(tmp_path / "dataset.json") == json.loads(line)
