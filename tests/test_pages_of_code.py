"""Code that the pages quote is the code that runs, but for docstrings, annotations and assertions."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nnunetv2_vqseg"
PAGES = {
    "docs/design.md": ("trainer/trainer.py",),
    "docs/how-to/add-a-method.md": ("methods/cps.py", "methods/pair.py", "trainers.py"),
}


class _Bare(ast.NodeTransformer):
    """Leaves out what a page leaves out."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        for argument in node.args.args:
            argument.annotation = None
        return self._without_words(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        return self._without_words(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        return None

    def _without_words(self, node):
        self.generic_visit(node)
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        return node


def definitions(code: str) -> dict[str, str]:
    """Name -> bare code of every class and function."""
    tree = _Bare().visit(ast.parse(code))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name: ast.unparse(node) for node in ast.walk(tree) if isinstance(node, kinds)}


@pytest.mark.parametrize("page", PAGES)
def test_quoted_code_is_the_code_that_runs(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    running = [definitions((PACKAGE / file).read_text(encoding="utf-8")) for file in PAGES[page]]
    for block in blocks:
        for name, code in definitions(block).items():
            assert code in [found.get(name) for found in running], f"{page}: {name}"
