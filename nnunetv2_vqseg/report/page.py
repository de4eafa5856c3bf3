"""Building blocks of a self-contained HTML page: plain text in, escaped markup out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from nnunetv2_vqseg.report.pictures import Picture
from nnunetv2_vqseg.report.table import Table

_CSS = """
:root { --ink: #1d2126; --soft: #5b6470; --line: #d9dde2; --tint: #f5f6f8; --accent: #0b5394; }
* { box-sizing: border-box; }
html { color-scheme: light; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 70rem; padding: 2rem 1.25rem 4rem; background: #fff; color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0 0 .35rem; font-size: 1.7rem; line-height: 1.25; text-wrap: balance; overflow-wrap: anywhere; }
h2 { margin: 2.75rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: 1.25rem; }
h3 { margin: 1.75rem 0 .5rem; font-size: 1rem; }
p, li, dd { max-width: 46rem; overflow-wrap: anywhere; }
.facts, figcaption, caption { color: var(--soft); }
.facts { margin: 0 0 1.25rem; }
.result { margin: 1rem 0; font-size: 1.1rem; }
.notices { margin: 1.25rem 0; padding: .75rem 1rem .75rem 2.1rem; border-left: 4px solid #b7791f; background: #fdf8ec; }
.notices li { max-width: none; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0; padding: 0; list-style: none; }
a { color: var(--accent); }
.scroll { overflow-x: auto; margin: 1rem 0; container-type: inline-size; }
.scroll:focus-visible, a:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; min-width: 100%; font-size: .93rem;
  font-variant-numeric: tabular-nums; }
caption { padding: 0 0 .5rem; text-align: left; caption-side: top; font-size: .9rem; }
caption span { display: block; position: sticky; left: 0; width: min(100%, 100cqw); }
th, td { padding: 7px 0 7px 16px; line-height: 1.5rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 500; }
th[scope=row] span { display: inline-block; width: max-content; max-width: 18rem; white-space: normal;
  overflow-wrap: break-word; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; font-weight: 600; line-height: 1.3;
  white-space: normal; }
tr > :first-child { position: sticky; left: 0; padding-left: 0; background: #fff padding-box;
  text-align: left; }
th small { display: block; max-width: 11rem; color: var(--soft); font-weight: 400; line-height: 1.3;
  white-space: normal; }
th[scope=rowgroup] { padding-top: .9rem; font-weight: 700; }
th[scope=rowgroup] span { position: sticky; left: 0; }
td strong { font-weight: 700; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20.5rem), 1fr)); gap: 1.5rem; }
.grid.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .35rem; font-size: .88rem; line-height: 1.4; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: fit-content(16rem) minmax(0, 1fr); gap: .3rem 1.25rem; }
dt { font-weight: 600; }
dd { margin: 0; }
pre { padding: .75rem 1rem; overflow-x: auto; background: var(--tint); font-size: .85rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 40rem) {
  body { padding: 1.25rem 1rem 3rem; }
  h1 { font-size: 1.35rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
  th[scope=row] span { max-width: 9.5rem; }
}
@media print {
  @page { margin: 14mm; }
  html { font-size: 9.5pt; }
  body { max-width: none; padding: 0; }
  h2 { margin-top: 1.5rem; }
  nav, summary { display: none; }
  h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  th[scope=rowgroup], thead { break-after: avoid; }
  th, td { line-height: 1.3; }
  th, td { padding-left: .5rem; }
  table { font-size: .8rem; }
  th[scope=row] span { max-width: 9rem; }
  caption span, tr > :first-child { position: static; background: none; }
  .grid { grid-template-columns: repeat(3, 1fr); gap: .8rem; }
  .grid.wide { grid-template-columns: 1fr 1fr; }
  .notices { background: none; border: 1px solid var(--line); border-left-width: 4px; }
  a { color: inherit; text-decoration: none; }
}
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document from markup in the order it is read."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
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
