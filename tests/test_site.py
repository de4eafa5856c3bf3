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


def test_nothing_is_loaded_from_elsewhere(site):
    for file in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]* (?:src|href)="(https?:[^"]+)"',
            file.read_text(encoding="utf-8"),
        )
        assert not loaded, f"{file}: {loaded}"


def test_a_page_of_results_opens_with_one_picture_and_a_short_table():
    with_answer = [
        text
        for file in (ROOT / "docs" / "results").glob("*.md")
        if "<!-- answer: begin -->" in (text := file.read_text(encoding="utf-8"))
    ]
    assert with_answer
    for text in with_answer:
        question, _, rest = text.partition("<!-- answer: begin -->")
        answer, _, after = rest.partition("<!-- answer: end -->")
        assert question.strip().splitlines()[-1].endswith("?"), question
        assert answer.count("![") == 1, question
        assert answer.count("\n|") - 2 <= MOST_ROWS, question
        assert len(after.partition("<details markdown>")[0].strip()) > 100, f"{question}: no sentences under the table"


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
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="made with the extra [docs]")
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
