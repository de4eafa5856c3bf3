"""The site builds without a warning; every page works in a browser, on a phone and on a desk."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REQUIRED = os.environ.get("VQSEG_REQUIRE_SITE", "").split()
"""What `scripts/test.sh` wants: nothing is skipped where mkdocs, or at night Chromium, is missing."""
if "mkdocs" not in REQUIRED:
    pytest.importorskip("mkdocs", reason="made with the extra [docs]")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = {"phone": 390, "desk": 1280}
MOST_ROWS = 8


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_built_and_has_its_pictures(site):
    pages = {file.relative_to(ROOT / "docs") for file in (ROOT / "docs").rglob("*.md")}
    for page in pages:
        name = "index" if page.stem in {"README", "index"} else page.stem
        assert (site / page.parent / (name if name != "index" else "") / "index.html").is_file(), page
    for file in site.rglob("index.html"):
        for source in re.findall(r'<img[^>]* src="([^"]+)"', file.read_text(encoding="utf-8")):
            assert (file.parent / source).is_file(), f"{file}: {source}"


def test_the_readmes_path_is_a_page_at_the_start(site):
    page = (site / "start" / "index.html").read_text(encoding="utf-8")
    for command in (
        "pip install",
        "scripts/demo.sh",
        "nnUNetv2_vqseg_split",
        "nnUNetv2_vqseg_compare",
        "nnUNetv2_predict",
    ):
        assert command in re.sub(r"<[^>]+>", "", page), command
    assert 'href="../how-to/kinds-of-images/"' in page
    assert 'href="start/#your-data"' in (site / "index.html").read_text(encoding="utf-8")
    assert 'href="../../start/#your-data"' in (site / "how-to" / "own-data" / "index.html").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(site):
    for file in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]* (?:src|href)="(https?:[^"]+)"',
            file.read_text(encoding="utf-8"),
        )
        assert not loaded, f"{file}: {loaded}"


def results() -> dict[str, str]:
    """Name -> text of the pages of results that answer a question."""
    return {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "docs" / "results").glob("*.md")}


@pytest.mark.parametrize("name", results())
def test_a_page_of_results_opens_with_a_question_and_something_short_to_look_at(name):
    opening, fold, folded = results()[name].partition("<details markdown>")
    title, question, *_ = opening.strip().split("\n\n")
    assert title.startswith("# ")
    assert "?" in question
    rows = [line for line in opening.splitlines() if line.startswith("|")]
    assert opening.count("![") <= 1
    assert rows or opening.count("!["), "no picture and no table"
    assert len([line for line in rows if not re.fullmatch(r"[|:\- ]+", line)]) - bool(rows) <= MOST_ROWS
    assert fold, "the notebook is not folded away"
    assert "</details>" in folded
    assert not re.search(r"^## ", opening, flags=re.MULTILINE), "a chapter stands before the fold"


def test_a_generated_answer_has_a_picture_and_sentences():
    generated = {name: text for name, text in results().items() if "<!-- answer: begin -->" in text}
    assert generated
    for name, text in generated.items():
        question, _, rest = text.partition("<!-- answer: begin -->")
        answer, _, after = rest.partition("<!-- answer: end -->")
        assert question.strip().splitlines()[-1].endswith("?"), name
        assert answer.count("![") == 1, name
        assert len(after.partition("<details markdown>")[0].strip()) > 100, f"{name}: no sentences under the table"


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Headless Chromium; pages are only those of this machine."""
    if "browser" not in REQUIRED:
        if BROWSER is None:
            pytest.skip("no Chromium on this machine")
        pytest.importorskip("playwright.sync_api", reason="made with the extra [docs]")
    from playwright import sync_api

    assert BROWSER is not None, "VQSEG_REQUIRE_SITE asks for a browser: apt-get install chromium"
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


LOOK = """() => ({
    broken: [...document.images].filter(one => !(one.complete && one.naturalWidth > 0)).map(one => one.src),
    width: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll('.md-content *')].filter(one => {
        const box = one.getBoundingClientRect();
        const scrolls = one.parentElement.closest('table, pre, .md-typeset__scrollwrap');
        return box.width > 0 && box.right > window.innerWidth + 1 && !scrolls;
    }).map(one => one.tagName + ' ' + one.textContent.slice(0, 60)),
})"""


@pytest.mark.nightly
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_pages_fit_and_show_all_pictures(site, address, browser, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    found = {}
    for file in sorted(site.rglob("index.html")):
        page.goto(address + file.parent.relative_to(site).as_posix() + "/", wait_until="load")
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        page.wait_for_function("[...document.images].every(one => one.complete)")
        look = page.evaluate(LOOK)
        if look["broken"] or look["wide"] or look["width"] > width:
            found[file.parent.name] = look
    page.close()
    assert not found
    assert not errors


@pytest.mark.nightly
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_search_finds_qpm(address, browser, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(address)
    if width < 600:
        page.click("label.md-header__button[for=__search]")
    page.fill("input.md-search__input", "QPM")
    page.wait_for_selector(".md-search-result__item mark", timeout=20_000)
    titles = page.locator(".md-search-result__item h1, .md-search-result__item h2").all_inner_texts()
    page.close()
    assert any("QPM" in title for title in titles), titles


@pytest.mark.nightly
def test_a_link_into_the_fold_opens_it(address, browser):
    page = browser.new_page()
    page.goto(address + "results/finalists-cpu/#what-we-read-from-it")
    page.wait_for_timeout(500)
    assert page.locator("#what-we-read-from-it").is_visible()
    page.close()
