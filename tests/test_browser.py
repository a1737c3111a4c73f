"""Pages as readers see them: opened in Chromium from disk, with no network, in light and dark, wide, narrow and print.

`problems` finds what is wrong with any page. Where there is no Chromium these tests are skipped, unless
LTHLAB_BROWSER=required says that there must be one.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import test_plots
from axe_playwright_python.sync_playwright import Axe
from matplotlib.image import imread
from playwright.sync_api import Browser, Page, sync_playwright
from test_pages import PIXEL, code, markdown, notebook, shows, study  # noqa: F401

from lthlab import plots, reports
from lthlab.machine import leaks
from lthlab.pages import gallery, publish, publish_study

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = [path for name in ("gallery", "cifar10") for path in (ROOT / "reports" / name).rglob("*.html")]
PUBLISHED.append(ROOT / "reports" / "findings.html")
GALLERY = list({path.name: path for path in sorted(PUBLISHED, key=lambda path: path.stat().st_size)}.values())
"""The largest page of each report, of what the repository keeps."""
NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDE, NARROW = (1400, 900), (360, 740)

OPEN_ALL = "document.querySelectorAll('details').forEach(details => details.open = true)"
TOO_WIDE = "document.documentElement.scrollWidth - window.innerWidth"
LINKS = "[...document.querySelectorAll('a[href]')].map(link => [link.getAttribute('href'), link.href])"
IDS = "[...document.querySelectorAll('[id]')].map(element => element.id)"
LIGHTNESS = "Math.min(...getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3))"
SHOWN = "selector => [...document.querySelectorAll(selector)].filter(e => e.checkVisibility()).length"
WIDTH_OF = "text => { const c = document.createElement('canvas').getContext('2d'); return c.measureText(text).width }"


def chromium() -> str:
    """Find Chromium, or skip the test or let it fail."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        said = f"no Chromium: none of {', '.join(NAMES)} is installed"
        pytest.fail(said) if os.environ.get("LTHLAB_BROWSER") == "required" else pytest.skip(said)
    return found


@contextmanager
def launched():
    program = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


class Visit:
    """A page opened from disk where there is no network, and what went wrong."""

    def __init__(self, browser: Browser, path: Path, size: tuple[int, int], scheme: str, policy: bool = True) -> None:
        self.problems: list[str] = []
        viewport = {"width": size[0], "height": size[1]}
        self.context = browser.new_context(
            viewport=viewport, color_scheme=scheme, offline=True, bypass_csp=not policy, service_workers="block"
        )
        self.context.route("**/*", self._route)
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda said: self.problems.append(f"console: {said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("requestfailed", lambda request: self.problems.append(f"not loaded: {request.url[:80]}"))
        self.page.goto(path.resolve().as_uri(), wait_until="load")

    def _route(self, route) -> None:
        own = route.request.is_navigation_request() and route.request.url.startswith("file:")
        route.continue_() if own else route.abort()

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_) -> None:
        self.context.close()


def problems(browser: Browser, path: Path, shots: Path) -> list[str]:
    """Say what is wrong with a page; screenshots go to the folder `shots`."""
    found: list[str] = []
    shots.mkdir(parents=True, exist_ok=True)
    for name, size, scheme in (("light", WIDE, "light"), ("dark", WIDE, "dark"), ("narrow", NARROW, "light")):
        with Visit(browser, path, size, scheme) as visit:
            page = visit.page
            page.screenshot(path=shots / f"{path.stem}-{name}.png", full_page=True)
            if blank(page.screenshot()):
                found.append(f"{name}: the screenshot is blank")
            page.evaluate(OPEN_ALL)
            found += visit.problems
            if page.evaluate(TOO_WIDE) > 0:
                found.append(f"{name}: scrolls sideways by {page.evaluate(TOO_WIDE)} pixels")
            if (page.evaluate(LIGHTNESS) > 200) != (scheme == "light"):
                found.append(f"{name}: the background is not {scheme}")
            if name == "light":
                found += broken_links(page) + in_print(page)
    for size, scheme in ((WIDE, "light"), (NARROW, "dark")):
        with Visit(browser, path, size, scheme, policy=False) as visit:
            visit.page.evaluate(OPEN_ALL)
            for item in Axe().run(visit.page).response["violations"]:
                if item["impact"] in ("serious", "critical"):
                    places = "; ".join(" ".join(map(str, node["target"])) for node in item["nodes"][:3])
                    found.append(f"{scheme}: axe: {item['impact']}: {item['id']}: {places}")
            found += [problem for problem in visit.problems if problem not in found]
    return found


def blank(shot: bytes) -> bool:
    """Whether a screenshot shows nothing: hardly a pixel that is not like the first."""
    pixels = imread(io.BytesIO(shot), format="png")[..., :3]
    other = np.abs(pixels - pixels[0, 0]).max(axis=-1) > 0.3
    return bool(other.mean() < 1e-3)


def broken_links(page: Page) -> list[str]:
    """Links to what is not there: anchors and files."""
    found = []
    for written, address in page.evaluate(LINKS):
        parts = urlsplit(address)
        if parts.scheme != "file":
            continue
        target = Path(unquote(parts.path))
        if not target.is_file():
            found.append(f"link to {written}, which is not there")
        elif parts.fragment and f'id="{unquote(parts.fragment)}"' not in target.read_text(encoding="utf-8"):
            found.append(f"link to {written}, which has no such place")
    ids = page.evaluate(IDS)
    return found + [f"more than one place #{name}" for name in sorted(set(ids)) if ids.count(name) > 1]


def in_print(page: Page) -> list[str]:
    """What is wrong on paper, where readers with a dark screen print too."""
    page.emulate_media(media="print", color_scheme="dark")
    found = [] if page.evaluate(LIGHTNESS) > 200 else ["print: the background is dark"]
    if page.evaluate(SHOWN, "nav, .skip, body > header"):
        found.append("print: links for readers on a screen are shown")
    if not page.pdf(format="A4").startswith(b"%PDF"):
        found.append("print: no PDF")
    page.emulate_media(media="screen", color_scheme="light")
    return found


WORDS = """# A page with everything

The share $R_p$ is

$$R_p = \\frac{|\\mathrm{top}_p(\\theta_0) \\cap \\mathrm{top}_p(\\theta_T)|}{p\\,d} \\quad \\text{for } 0 < p \\le 1$$

## What came out

<p class="warning">The best learning rate is at the edge of the grid.</p>

<table class="verdict"><thead><tr><th>condition</th><th>level 4</th><th>level 8</th></tr></thead><tbody>
<tr><th scope="row">①</th><td class="yes">yes</td><td class="no">no</td></tr>
<tr><th scope="row">②</th><td class="boundary">boundary</td><td class="insufficient">insufficient evidence</td></tr>
</tbody></table>

| a | b | c | d | e | f | g | h |
|---|---|---|---|---|---|---|---|
| long word | long word | long word | long word | long word | long word | long word | long word |

> Said by somebody, with `code` and a [link](#section-1).
"""
CODE = 'from lthlab import plots  # why\nassert plots is not None and 3 < 4.5, f"text {plots}"\n' + "x = 1; " * 40


def everything() -> list[dict]:
    """Cells with all kinds of things that a page can show."""
    figure = reports.figure(plots.accuracy_by_sparsity, test_plots.tidy(), "eval_lr", "What it is.")
    facts = '<table class="facts" data-trainings="3"><tbody><tr><th scope="row">Key</th><td>{}</td></tr></table>'
    cells = [
        markdown(WORDS),
        code(CODE, shows("text/html", figure)),
        code("1", shows("image/png", PIXEL, alt="One pixel."), shows("text/plain", "x" * 200)),
        code("2", shows("text/html", facts.format("0123456789abcdef" * 8))),
        code("assert True", tags=["checks"]),
    ]
    return [cell | {"id": f"more-{number}"} for number, cell in enumerate(cells)]


TINY = """
name: tiny
title: "Lottery tickets & 'others' in <LeNet>"
net: lenet_300_100
data: digits
replicates: 2
find: {epochs: 2, batch_size: 64, lr: [0.05, 0.2], momentum: 0.9}
prune: {levels: [1, 4]}
protocol: {rewound_masks: initial}
tickets: {LT: {}, RR: {}, WR: {rewind: 1ep}, SDT: {}}
measures: {correlation_indicator: {p: 0.1}}
reports: [winning_tickets, weight_correlation]
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """An oddly named folder in which a tiny study was run and published by the command line."""
    folder = tmp_path_factory.mktemp("run") / "J. O'Neil & <söhne>"
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "tiny.yaml").write_text(TINY)
    for arguments in (["run", "--notebooks", ROOT / "notebooks", "--device", "cpu"], ["publish"]):
        command = [sys.executable, "-m", "lthlab", *arguments, "params/tiny.yaml"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_pages_of_a_run_are_in_order(executed, browser, tmp_path):
    paths = sorted((executed / "reports").rglob("*.html"))
    assert [path.name for path in paths] == ["index.html", "weight_correlation.html", "winning_tickets.html"]
    assert {path.name: found for path in paths if (found := problems(browser, path, tmp_path))} == {}


def test_what_a_run_leaves_does_not_tell_where_it_was_made(executed):
    kinds = {".html", ".ipynb", ".json", ".jsonl"}  # logs stay in the store, and a kernel may write a traceback there
    texts = {path: path.read_text(encoding="utf-8") for path in executed.rglob("*") if path.suffix in kinds}
    assert kinds <= {path.suffix for path in texts}
    assert {path.name: found for path, text in texts.items() if (found := leaks(text))} == {}


@pytest.fixture
def folder(study, tmp_path):  # noqa: F811
    """A gallery of two studies in an oddly named folder; the first page of each shows everything."""
    folder = tmp_path / "J. O'Neil & <söhne> #1? 50%"
    for name in ("a", "b"):
        config, notebooks = study(name, f"Study <{name}>")
        path = notebooks / "winning_tickets.ipynb"
        content = json.loads(path.read_text())
        content["cells"] = content["cells"][1:3] + everything()
        path.write_text(json.dumps(content))
        publish_study(config, notebooks, folder / name)
    gallery(folder)
    return folder


def test_pages_and_indexes_are_in_order(folder, browser, tmp_path):
    names = ["index.html", "a/index.html", "a/winning_tickets.html"]
    assert {name: problems(browser, folder / name, tmp_path / "shots") for name in names} == {
        name: [] for name in names
    }
    assert len(os.listdir(tmp_path / "shots")) == 6


def test_pages_of_the_repository_are_in_order(tmp_path):
    """Two browsers share the pages, the largest first, for these take half a minute of one core."""
    assert GALLERY, "make gallery has written nothing"
    chromium()
    left = SimpleQueue()
    for path in sorted(GALLERY, key=lambda path: -path.stat().st_size):
        left.put(path)

    def examine(number):
        found = {}
        with launched() as browser, suppress(Empty):
            while True:
                path = left.get_nowait()
                found[path] = problems(browser, path, tmp_path / str(number))
        return found

    with ThreadPoolExecutor(2) as pool:
        examined = {path: found for each in pool.map(examine, range(2)) for path, found in each.items()}
    assert examined == {path: [] for path in GALLERY}


def test_text_is_drawn_with_a_font(folder, browser):
    with Visit(browser, folder / "index.html", WIDE, "light") as visit:
        assert visit.page.evaluate(WIDTH_OF, "mmmm") > 1.5 * visit.page.evaluate(WIDTH_OF, "iiii") > 0


FAULTS = [
    ("<p style='color: #999'>faint</p>", "axe: serious: color-contrast"),
    ("<div style='width: 30rem'>wide</div>", "narrow: scrolls sideways by"),
    ("<img src='https://a.example/b.png'>", "axe: critical: image-alt"),
    ("<img alt='x' src='https://a.example/c.png'>", "not loaded: https://a.example/c.png"),
    ("<img alt='x' src='d.png'>", "not loaded: file:"),
    ("<style>@import 'https://a.example/e.css';</style>", "console: error: Loading the stylesheet"),
    ("<a href='#nowhere'>x</a>", "link to #nowhere, which has no such place"),
    ("<a href='none.html'>x</a>", "link to none.html, which is not there"),
    ("<p id='content'>x</p>", "more than one place #content"),
    ("<nav style='display: block !important'>x</nav>", "print: links for readers on a screen are shown"),
    ("<style>@media print { :root { --paper: #000 !important } }</style>", "print: the background is dark"),
    ("<style>@media screen { :root { --paper: #fff !important } }</style>", "dark: the background is not dark"),
]


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("</main>", "</main>", []),
        ("</main>", "".join(fault for fault, _ in FAULTS) + "</main>", [said for _, said in FAULTS]),
        ("</main>", "<table><tr>" + "<td>long word</td>" * 9 + "</tr></table></main>", ["narrow: scrolls sideways by"]),
        ("<body>", "<body style='visibility: hidden'>", ["light: the screenshot is blank"]),
        (
            r"<meta content=.default-src[^>]*>",
            "<script>console.error('one fault'); f()</script>",
            ["console: error: one fault", "error: f is not defined"],
        ),
    ],
    ids=["none", "many", "table", "blank", "script"],
)
def test_what_is_wrong_with_a_page_is_found(old, new, said, browser, notebook, tmp_path):  # noqa: F811
    path = publish(notebook(markdown("# Title\n\n## Section\n\ntext")), tmp_path / "page.html")
    text, number = re.subn(old, new, path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    found = problems(browser, path, tmp_path / "shots")
    assert number == 1 and bool(found) == bool(said)
    assert {words for words in said if not any(words in problem for problem in found)} == set(), found


def test_where_there_is_no_browser_the_tests_are_skipped_unless_one_is_required(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("LTHLAB_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium: none of chromium, "):
        chromium()
    monkeypatch.setenv("LTHLAB_BROWSER", "required")
    with pytest.raises(pytest.fail.Exception, match="no Chromium"):
        chromium()
