"""What is uploaded for pip is small, complete and valid."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("build", reason="made with the extra [dev]")


def run(*command: str) -> str:
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run("build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_sdist_is_small_and_has_no_tests_and_data(files):
    sdist, _ = files
    assert sdist.stat().st_size < 1_000_000
    with tarfile.open(sdist) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= names
    assert {name.split("/")[0] for name in names if "/" in name} == {"nnunetv2_vqseg"}


def test_wheel_has_every_module_and_nothing_else(files):
    _, wheel = files
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
    installed = {name for name in names if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "nnunetv2_vqseg", "nnunetv2_vqseg_register.pth"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    if tracked:  # in a clone
        assert installed == set(tracked)
    assert all(name.startswith("nnunetv2_vqseg") for name in installed)


def test_checkers_of_the_index_have_nothing_to_say(files):
    run("twine", "check", "--strict", *map(str, files))
    run("check_wheel_contents", str(files[1]))


def test_citation_has_what_the_format_requires():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    citation = yaml.safe_load(text)
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    for work in (citation, *citation["references"]):
        assert work["title"]
        assert all(set(one) in ({"name"}, {"family-names", "given-names"}) for one in work["authors"])
    assert all("type" in work for work in citation["references"])
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf'^version = "{re.escape(citation["version"])}"$', pyproject, re.MULTILINE)
