"""Building blocks of a self-contained HTML page: plain text in, escaped markup out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from nnunetv2_vqseg.report.formatting import Table
from nnunetv2_vqseg.report.pictures import Picture

_CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def page(title: str, body: Iterable[str]) -> str:
    """A whole document from markup in the order it is read."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def navigation(sections: Mapping[str, str]) -> str:
    """Links to the sections, by their id."""
    links = "".join(f'<li><a href="#{escape(key)}">{escape(title)}</a></li>' for key, title in sections.items())
    return f'<nav aria-label="Sections"><ul>{links}</ul></nav>'


def heading(key: str, title: str) -> str:
    """The heading of a section that `navigation` links to."""
    return f'<h2 id="{escape(key)}">{escape(title)}</h2>'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph, with a class of our style sheet."""
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</p>"


def notice_list(notices: Sequence[str]) -> str:
    """Sentences that must not be missed; nothing if there are none."""
    if not notices:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in notices)
    return f'<ul class="notices" aria-label="Read this first">{items}</ul>'


def table(content: Table) -> str:
    """A table that scrolls on its own where the page is too narrow, its first column standing still."""
    header, rows = content.header, content.rows
    if content.grouped:
        header = header[1:]
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    body, group = [], None
    for row in rows:
        if content.grouped:
            if row[0].text != group:
                group = row[0].text
                title = f'<th scope="rowgroup" colspan="{len(header)}"><span>{escape(group)}</span></th>'
                body.append(f"</tbody><tbody><tr>{title}</tr>")
            row = row[1:]
        note = f"<small>{escape(row[0].note)}</small>" if row[0].note else ""
        cells = [f'<th scope="row"><span>{escape(row[0].text)}</span>{note}</th>']
        for cell in row[1:]:
            text = escape(cell.text)
            cells.append(f"<td>{f'<strong>{text}</strong>' if cell.bold else text}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    bodies = f"<tbody>{''.join(body)}</tbody>".replace("<tbody></tbody>", "")
    caption = escape(content.caption)
    # a region that scrolls has to be reachable with the keyboard
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>'
        f"<caption><span>{caption}</span></caption><thead><tr>{head}</tr></thead>{bodies}</table></div>"
    )


def gallery(pictures: Sequence[Picture], wide: bool = False) -> str:
    """Figures side by side where there is room, with their pixels inside the page."""
    figures = []
    for item in pictures:
        width, height = item.size
        figures.append(
            f'<figure><img src="{item.data_uri}" alt="{escape(item.alt)}" width="{width}" height="{height}">'
            f"<figcaption>{escape(item.caption)}</figcaption></figure>"
        )
    return f'<div class="grid{" wide" if wide else ""}">{"".join(figures)}</div>'


def details(title: str, body: str) -> str:
    """Content that is folded away until asked for."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def definitions(entries: Mapping[str, str]) -> str:
    """A list of terms and what they mean."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items()) + "</dl>"


def code(text: str) -> str:
    """A command."""
    return f"<pre><code>{escape(text)}</code></pre>"
