"""Which room of the package may import which: arrows go one way, so that each is read and used without those above."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "nnunetv2_vqseg"
BELOW = {
    "core": "",
    "modules": "core",
    "networks": "core modules",
    "methods": "core modules networks",
    "data": "core",
    "planning": "core data",
    "trainer": "core modules networks methods data planning",
    "report": "core data",
    "trainers": "core modules networks methods trainer",
    "shim": "planning trainers",
    "commands": "core modules networks methods data planning trainer trainers report",
    "train": "commands",
}
"""Rooms that a room may import from, beside itself and the package's version."""
FOREIGN = {
    "core": {"torch", "nnunetv2", "timm"},
    "modules": {"nnunetv2"},
    "networks": {"nnunetv2"},
    "methods": {"nnunetv2"},
}
"""Packages that a room does without."""
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / PACKAGE).rglob("*.py"))
}


def imports(module: str, for_types: bool = True) -> set[str]:
    """Full names of what a module imports, also inside functions, and for type checkers alone."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    if not for_types:
        tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if TYPE_CHECKING:")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in names}
    return found


IMPORTS = {module: imports(module) for module in FILES}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("name", BELOW)
def test_a_room_imports_only_from_rooms_below_it(name):
    allowed = {"", name, *BELOW[name].split()}
    wrong = [
        f"{module} -> {other}"
        for module in FILES
        if room(module) == name
        for other in sorted(IMPORTS[module])
        if other.split(".")[0] == PACKAGE and room(other) not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("name", FOREIGN)
def test_a_room_does_without_some_packages(name):
    wrong = [
        f"{module} -> {other}"
        for module in FILES
        if room(module) == name
        for other in sorted(IMPORTS[module])
        if other.split(".")[0] in FOREIGN[name]
    ]
    assert wrong == []


def test_every_room_has_its_place():
    assert {room(module) for module in FILES} - {""} == BELOW.keys()


def test_no_two_modules_import_each_other():
    try:
        TopologicalSorter({module: imports(module, False) & FILES.keys() for module in FILES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_method_is_read_in_one_sitting():
    """One file each of at most 150 lines; ARCO has more parts, VQ-Seg is what the package is for."""
    longer = {"base": 500, "vqseg": 600, "arco": 200}
    for file in (ROOT / PACKAGE / "methods").glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= longer.get(file.stem, 150), file.name


def test_no_function_is_longer_than_a_screen():
    long = [
        f"{module}.{node.name}"
        for module, file in FILES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert not long
