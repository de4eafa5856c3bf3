"""What the README says is what the code has."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from update_readme import with_table  # noqa: E402

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_table_of_hyper_parameters_is_current():
    assert with_table(TEXT) == TEXT, "run python scripts/update_readme.py"


def test_every_named_trainer_exists_and_every_trainer_is_named():
    from nnunetv2_vqseg import trainers

    table = TEXT.split("## Trainers")[1].split("##")[0]
    named = set()
    for row in re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE)[1:]:
        words = re.findall(r"`([\w.]+)`", row)
        stem = words[0]
        for word in words:
            if word.startswith("..."):
                prefix = "nnUNetTrainerSupervised" if "Supervised" in stem else "nnUNetTrainerVQSeg"
                word = prefix.replace("Supervised", "") + word[3:] if "Supervised" in word else prefix + word[3:]
            elif word.startswith("_"):
                word = stem.rsplit("_", 1)[0] + word
            named.add(word)
    made_when_asked_for = {name for name in named if "_" in name}
    assert named - made_when_asked_for == set(trainers.__all__)
    assert made_when_asked_for
    assert all(getattr(trainers, name).__name__ == name for name in made_when_asked_for)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
