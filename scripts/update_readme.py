"""Write the tables of hyper-parameters into README.md, between two markers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nnunetv2_vqseg.core.config import Config, markdown_table
from nnunetv2_vqseg.methods.base import CommonConfig
from nnunetv2_vqseg.methods.mean_teacher import MeanTeacherDropout
from nnunetv2_vqseg.methods.teacher import TeacherConfig
from nnunetv2_vqseg.methods.vqseg import PAPER, VQSeg

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- hyper-parameters: begin (python scripts/update_readme.py) -->\n"
END = "<!-- hyper-parameters: end -->"

TABLES: dict[str, type[Config]] = {
    "All methods": CommonConfig,
    "Methods with unlabelled images, and their teacher": TeacherConfig,
    "VQ-Seg": VQSeg.Config,
    "Mean teacher with feature dropout": MeanTeacherDropout.Config,
}
"""By title; a key stands in the first table that has it."""
SHARED = (CommonConfig, TeacherConfig)


def tables() -> Iterator[str]:
    """Each method's own keys; of those that stand in another method's table the names."""
    shown: set[str] = set()
    shared = {key for config in SHARED for key in config.declared()}
    for title, config in TABLES.items():
        keys = config.declared()
        own = [key for name, key in keys.items() if name not in shown]
        elsewhere = [f"`{name}`" for name in keys if name in shown - shared]
        yield f"### {title}"
        if own:
            yield markdown_table(own, PAPER)
        if elsewhere:
            yield f"From the tables above: {', '.join(elsewhere)}."
        shown |= keys.keys()


def with_table(text: str) -> str:
    """README text with the current tables."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    content = "\n\n".join(tables())
    return f"{head}{BEGIN}\n{content}\n\n{END}{tail}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
