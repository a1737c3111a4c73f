"""Pages: whole or not at all, nothing loaded or run, every figure in words, nothing of this machine."""

import html
import json
import os
import re
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lthlab import pages
from lthlab.files import Files
from lthlab.pages import PageError, publish

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": text}


def code(source: str, *outputs: dict, tags=(), count: int | None = 1) -> dict:
    return {
        "cell_type": "code", "id": "c", "metadata": {"tags": list(tags)}, "execution_count": count,
        "source": source, "outputs": list(outputs),
    }  # fmt: skip


def shows(kind: str, data: str, **metadata) -> dict:
    return {"output_type": "display_data", "data": {kind: data}, "metadata": metadata}


def stream(name: str, text: str) -> dict:
    return {"output_type": "stream", "name": name, "text": [text]}


ERROR = {"output_type": "error", "ename": "KeyError", "evalue": "'lr'", "traceback": ["KeyError: 'lr'"]}


@pytest.fixture
def notebook(tmp_path):
    """Write a notebook of cells, and return its path."""

    def write(*cells: dict) -> Path:
        path = tmp_path / "executed.ipynb"
        cells = [cell | {"id": f"cell-{number}"} for number, cell in enumerate(cells)]
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        path.write_text(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
        return path

    return write


class Elements(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


def published(path: Path, target: Path | None = None) -> str:
    return publish(path, target or path.with_suffix(".html")).read_text(encoding="utf-8")


def test_a_page_needs_no_script_no_network_and_no_other_file(notebook):
    path = notebook(markdown("# Title"), code("1 + 1", shows("image/png", PIXEL, alt="One grey pixel.")))
    page = published(path)
    elements = Elements(page)
    assert elements.of("script") == [] and elements.of("link") == [{"rel": "icon", "href": "data:,"}]
    assert [image["alt"] for image in elements.of("img")] == ["One grey pixel."]
    assert all(image["src"].startswith("data:image/png;base64,") for image in elements.of("img"))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    policy = next(meta["content"] for meta in elements.of("meta") if "http-equiv" in meta)
    assert policy.split("; ")[:3] == ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]
    assert elements.of("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in elements.of("meta")
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_title_and_contents_come_from_the_headings(notebook):
    page = published(
        notebook(markdown("# A < B\n\ntext\n\n## First part\n\n## First part"), markdown("## R<sub>p</sub>"))
    )
    elements = Elements(page)
    assert re.search(r"<title>(.*?)</title>", page)[1] == "A &lt; B"
    anchors = [link["href"].removeprefix("#") for link in elements.of("a") if link["href"].startswith("#section")]
    assert anchors == [heading["id"] for heading in elements.of("h2")] and len(anchors) == 3
    assert {"class": "skip", "href": "#content"} in elements.of("a") and {"id": "content"} in elements.of("main")
    identifiers = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)


def test_code_is_folded_and_tags_decide_what_is_shown(notebook):
    said = shows("text/plain", "said")
    page = published(notebook(
        code("alpha = 1", said),
        code("beta = 2", said, tags=["hide"]),
        code("gamma = 3", said, tags=["hide-input"]),
        code("delta = 4", said, tags=["hide-output"]),
        code("assert epsilon", tags=["checks"]),
    ))  # fmt: skip
    text = Elements(page).text
    assert [name in text for name in ("alpha", "beta", "gamma", "delta", "epsilon")] == [True, False, False, True, True]
    assert text.count("said") == 2
    assert len(Elements(page).of("details")) == 3 and all("open" not in d for d in Elements(page).of("details"))
    assert text.count("Checks, all passed") == 1


def test_of_two_parameter_cells_the_injected_one_is_shown(notebook):
    page = published(
        notebook(code("runs = 'a'", tags=["parameters"]), code("runs = 'b'", tags=["injected-parameters"]))
    )
    assert "'b'" in Elements(page).text and "'a'" not in Elements(page).text
    assert "'a'" in Elements(published(notebook(code("runs = 'a'", tags=["parameters"])))).text


def test_standard_error_is_not_shown(notebook):
    page = published(notebook(code("f()", stream("stderr", "a warning"), stream("stdout", "1 < 2"))))
    assert "a warning" not in page and "1 &lt; 2" in page


def test_folders_are_made_and_the_same_notebook_gives_the_same_page(notebook, tmp_path):
    path = notebook(markdown("# Title"), code("1", shows("text/html", "<table></table>")))
    first, second = tmp_path / "a" / "b" / "index.html", tmp_path / "c" / "index.html"
    assert published(path, first) == published(path, second)
    assert os.listdir(first.parent) == ["index.html"]


@pytest.mark.parametrize(
    "cell, message",
    [
        (code("f()", stream("stdout", "x"), ERROR), "cell 2 failed: KeyError: 'lr'"),
        (code("f()", count=None), "cell 2 was not run"),
        (code("f()", shows("text/html", "<script>f()</script>")), "the page must not hold <script>"),
        (code("f()", shows("text/html", "<p onclick='f()'>x</p>")), "the page must not run a script: onclick of <p>"),
        (code("f()", shows("text/html", "<a href='javascript:f()'>x</a>")), "must not run a script: href of <a>"),
        (code("f()", shows("text/html", "<img alt='x' src='//a.b/c.png'>")), "the page must not load '//a.b/c.png'"),
        (code("f()", shows("text/html", "<p style='background:url(x.png)'>")), "must not load what the style of <p>"),
        (code("f()", shows("text/html", "<link rel=stylesheet href=x.css>")), "the page must not load 'x.css'"),
        (code("f()", shows("image/png", PIXEL)), "a figure has no alternative text"),
        (code("f()", shows("text/html", f"<img src='data:image/png;base64,{PIXEL}'>")), "no alternative text"),
    ],
)  # fmt: skip
def test_what_must_not_be_published_is_refused_and_the_old_page_stays(cell, message, notebook, tmp_path):
    target = tmp_path / "out" / "index.html"
    target.parent.mkdir()
    target.write_text("old")
    path = notebook(markdown("# Title"), cell)
    with pytest.raises(PageError, match=re.escape(message)) as refusal:
        publish(path, target)
    assert str(refusal.value).startswith(f"{path}: ")
    assert target.read_text() == "old" and os.listdir(target.parent) == ["index.html"]


@pytest.mark.parametrize("text", ["{", "[]", '{"cells": 1}', '{"nbformat": 3, "worksheets": []}'])
def test_what_is_no_notebook_is_refused(text, tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_text(text)
    with pytest.raises(PageError, match=r"x\.ipynb: not a notebook of format 4"):
        publish(path, tmp_path / "index.html")


@pytest.mark.parametrize("operation", ["write", "replace"])
def test_a_page_that_cannot_be_written_leaves_the_old_one(operation, notebook, tmp_path, monkeypatch):
    target = tmp_path / "out" / "index.html"
    target.parent.mkdir()
    target.write_text("old")
    path = notebook(markdown("# Title"))

    def fails(self, path, *rest):
        Path(path).write_bytes(b"half") if operation == "write" else None
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Files, operation, fails)
    with pytest.raises(OSError, match="No space left"):
        publish(path, target)
    assert target.read_text() == "old" and os.listdir(target.parent) == ["index.html"]


def test_nothing_of_this_machine_is_in_a_page(notebook, tmp_path, monkeypatch):
    home = tmp_path / "jane"
    home.mkdir()
    monkeypatch.setattr(Path, "home", lambda: home)
    here = Path.cwd()
    path = notebook(
        code(f"study = '{here}/params/demo.yaml'", stream("stdout", f"{home}/cache {here}\n{tmp_path}/x\n"))
    )
    page = published(path)
    text = html.unescape(page)
    assert str(here) not in text and str(tmp_path) not in text and "jane" not in text
    assert "./params/demo.yaml" in Elements(page).text and "~/cache" in text
    assert socket.gethostname() not in Elements(page).text


def test_the_command_line(notebook, tmp_path):
    path, target = notebook(markdown("# Title")), tmp_path / "new" / "index.html"
    command = [sys.executable, "-m", "lthlab.pages", path, target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and target.exists()
    before = target.read_bytes()
    notebook(code("f()", ERROR))
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"{path}: cell 1 failed: KeyError: 'lr'\n")
    assert target.read_bytes() == before
    assert pages.main([str(tmp_path / "none.ipynb"), str(target)]) == 2
