"""Write the table of hyper-parameters into README.md, between its two markers."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_vqseg.config import markdown_table

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- hyper-parameters: begin (python scripts/update_readme.py) -->\n"
END = "<!-- hyper-parameters: end -->"


def with_table(text: str) -> str:
    """README text with the current table."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{markdown_table()}\n\n{END}{tail}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
