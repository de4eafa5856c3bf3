"""The README's own commands, run on the phantoms as they stand there: own data, comparison, prediction."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from real_training import console_script, finish, kill_all, start
from small_plan import shrink
from tiny_trainings import DATASET, ROOT, TINY, variables

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text(encoding="utf-8")
ON_A_CPU = {"nnUNetv2_train": ["-device", "cpu"], "nnUNetv2_predict": ["-device", "cpu"]}


def commands(section: str) -> list[list[str]]:
    """Of the bash blocks in a section, with the phantoms' number and one epoch."""
    (text,) = re.findall(rf"^## {section}\n(.*?)^## ", README, flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    text = "".join(blocks).replace("\\\n", " ").replace("_30epochs", "_1epoch")
    lines = re.sub(r"\b123\b", "901", text)
    return [shlex.split(line) for line in lines.splitlines() if line.strip()]


@pytest.fixture
def raw_phantoms(home: Path, tmp_path: Path) -> Path:
    """nnU-Net's folders with the raw phantoms alone, without a split."""
    for name in variables(tmp_path):
        (tmp_path / name.removeprefix("nnUNet_")).mkdir()
    raw = Path(shutil.copytree(home / "raw" / DATASET, tmp_path / "raw" / DATASET))
    (raw / "splits_final.json").unlink()
    return tmp_path


def make_small(home: Path) -> None:
    """As a user may edit the plan: a small network, a few steps."""
    file = home / "preprocessed" / DATASET / "nnUNetPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    shrink(plans, patch=32, features=8, max_features=16, convs=1)
    plans["configurations"]["2d"]["vqseg"] = {key: value for key, value in TINY.items() if key != "num_epochs"}
    file.write_text(json.dumps(plans), encoding="utf-8")


def assert_it_trains_longer(home: Path, train: list[str], log: Path) -> None:
    """README: raise `num_epochs` in the plan and add `--c`, also where the trainer's name has a number."""
    assert re.search(r"`num_epochs` \| length; raise it and add `--c`", README)
    file = home / "preprocessed" / DATASET / "nnUNetPlans.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    plans["configurations"]["2d"]["vqseg"]["num_epochs"] = 2
    file.write_text(json.dumps(plans), encoding="utf-8")
    arguments = [*train, "--c", *ON_A_CPU[train[0]]]
    process = start(console_script, *arguments, log=log, environment=variables(home), shortened=False)
    assert finish([process], seconds=600) == [0], log.read_text(encoding="utf-8")[-3000:]
    assert "num_epochs was 1 and is 2" in log.read_text(encoding="utf-8")


def test_own_data_in_five_commands_and_a_prediction(raw_phantoms, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    *five, predict = commands("Your data")
    assert [words[0] for words in five] == [
        "nnUNetv2_plan_and_preprocess",
        "nnUNetv2_vqseg_split",
        "nnUNetv2_train",
        "nnUNetv2_train",
        "nnUNetv2_vqseg_compare",
    ]
    predict = [{"INPUT": str(raw_phantoms / "raw" / DATASET / "imagesTs")}.get(word, word) for word in predict]
    monkeypatch.chdir(tmp_path)
    try:
        for number, words in enumerate([*five, predict]):
            log = tmp_path / f"{number}.log"
            arguments = [*words, *ON_A_CPU.get(words[0], [])]
            process = start(console_script, *arguments, log=log, environment=variables(raw_phantoms), shortened=False)
            assert finish([process], seconds=600) == [0], f"{words}: {log.read_text(encoding='utf-8')[-3000:]}"
            if number == 0:
                make_small(raw_phantoms)
    finally:
        kill_all()
    page = (tmp_path / "comparison" / "report" / "index.html").read_text(encoding="utf-8")
    assert "nnUNetTrainerVQSeg_1epoch" in page
    assert_it_trains_longer(raw_phantoms, five[2], tmp_path / "longer.log")
    cases = {file.name.removesuffix("_0000.nii.gz") for file in (raw_phantoms / "raw" / DATASET / "imagesTs").iterdir()}
    assert {file.name.removesuffix(".nii.gz") for file in (tmp_path / "OUTPUT").glob("*.nii.gz")} == cases
