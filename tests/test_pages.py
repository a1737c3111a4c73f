"""Pages: whole or not at all, nothing loaded or run, every figure in words, nothing of this machine."""

import base64
import dataclasses
import html
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lthlab import spec
from lthlab.files import Files
from lthlab.machine import leaks
from lthlab.pages import PageError, _Facts, gallery, publish, publish_study

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


def test_code_that_shows_nothing_is_one_fold_below_the_finding(notebook):
    page = published(notebook(
        markdown("# Title"), code("first = 1", tags=["parameters"]), code("injected = 2", tags=["injected-parameters"]),
        code("setup = 3", stream("stdout", "noise"), tags=["hide-output"]),
        code("said()", shows("text/html", "<p>outcome</p>"), tags=["hide-input"]), markdown("between"),
        code("alone = 4"), code("drawn()", shows("text/html", "<p>picture</p>")), code("last = 5"),
        code("checked = 6", tags=["checks"]),
    ))  # fmt: skip
    text = Elements(page.partition("<main")[2]).text
    words = ["outcome", "injected", "setup", "between", "alone", "drawn", "picture", "last", "checked"]
    assert sorted(words, key=text.index) == words and "first" not in text and "noise" not in text
    assert page.count("<summary>Code</summary>") == 4 and page.count("<summary>Checks, all passed</summary>") == 1


def test_paper_has_no_links_to_files(notebook):
    style = re.search(r"@media print \{(.*)</style>", published(notebook(markdown("# Title"))), re.DOTALL)[1]
    assert re.search(r"a\[download\] \{ display: none; \}", style)


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
        (code("f()", shows("text/html", "<svg><use xlink:href='a.svg#b'/></svg>")), "must not load 'a.svg#b'"),
        (code("f()", shows("text/html", "<table background='a.png'>")), "the page must not load 'a.png'"),
        (code("f()", shows("text/html", "<style>@import 'a.css'</style>")), "must not load what a <style> names"),
        (code("f()", shows("text/html", "<meta http-equiv=Refresh content='0;a.html'>")), "must not lead elsewhere"),
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


def test_formulas_are_mathml(notebook):
    inline = "The share $R_p$ of $\\theta_0$.\n\n$$1 - (1 - 0.2)^k < 1$$\n\n## Why $k$"
    path = notebook(
        markdown(inline), code("f()", shows("text/markdown", "as **$x_i$**")), code("g()", shows("text/latex", "$y$"))
    )
    page = published(path)
    elements = Elements(page)
    assert [formula.get("display") for formula in elements.of("math")] == [
        "inline", "inline", "inline", "block", "inline", "inline", "inline",
    ]  # fmt: skip
    assert "$" not in elements.text and "<strong><math" in page and "<script" not in page
    (box,) = [span for span in elements.of("span") if span.get("class") == "formula"]
    assert box["tabindex"] == "0"
    assert "$R_p$" in path.read_text()


def test_a_formula_that_cannot_be_read_is_named_with_its_cell(notebook, tmp_path):
    path = notebook(markdown("# Title"), markdown("so $a_{$ is"), code("f()", shows("text/markdown", r"$\foo$")))
    with pytest.raises(PageError) as refusal:
        publish(path, tmp_path / "page.html")
    assert "cell 2: formula 'a_{' cannot be read: its braces" in str(refusal.value)
    assert r"cell 3: formula '\\foo' cannot be read: '\foo' is not known" in str(refusal.value)
    assert not (tmp_path / "page.html").exists()


def test_wide_tables_scroll_in_a_box_of_their_own(notebook):
    frame = "<div><table class='dataframe'><tr><td>1</td></tr></table></div>"
    boxed = "<div class=\"scroll\" tabindex='0'><table><tr><td>2</td></tr></table></div>"
    page = published(notebook(
        markdown("|a|b|\n|-|-|\n|3|4|"), code("f", shows("text/html", frame)), code("g", shows("text/html", boxed)),
        code("h", shows("text/html", '<table class="facts"></table>')),
    ))  # fmt: skip
    boxes = [attributes for attributes in Elements(page).of("div") if attributes.get("class") == "scroll"]
    assert len(boxes) == 3 and all(box["tabindex"] == "0" for box in boxes) and len(Elements(page).of("table")) == 4


@pytest.mark.parametrize("form", ["{}", "{}/runs", "data:text/csv;base64,..."])
def test_a_page_that_gives_away_where_it_was_made_is_refused(form, notebook, tmp_path):
    here = tmp_path / "J. O'Neil & <söhne>"
    text = form.format(here)
    if form.startswith("data:"):
        text = "data:text/csv;base64," + base64.b64encode(f"key,file\n1,{here}/x".encode()).decode()
    shown = f'<a download="x.csv" href="{html.escape(text)}">CSV</a>'
    path = notebook(markdown("# Title"), code("f()", shows("text/html", shown)), code("g()", stream("stderr", text)))
    with pytest.raises(PageError, match=r"executed\.ipynb: cell 2 gives away where it was made: /") as refusal:
        publish(path, tmp_path / "page.html")
    assert str(tmp_path) in str(refusal.value) and not (tmp_path / "page.html").exists()
    published(notebook(code("g()", stream("stderr", text))))


# --- pages of a study -----------------------------------------------------------------------------------------

STUDY = """
name: {name}
title: {title}
net: lenet_300_100
data: digits
find: {{epochs: 1, batch_size: 64, lr: 0.1}}
reports: [winning_tickets, weight_correlation]
"""


@pytest.fixture
def study(notebook, tmp_path):
    """Write the executed notebooks of a study; returns the study and their folder."""

    def write(name="small", title="A small study", finding="It was so.", sets=()):
        config = spec.parse(STUDY.format(name=name, title=json.dumps(title)), sets=sets)
        folder = tmp_path / "notebooks" / name
        folder.mkdir(parents=True, exist_ok=True)
        image = '<img alt="{}" src="data:image/svg+xml;base64,{}">'
        figure = f"<figure>{image.format('first', 'AAAA')}{image.format('second', 'BBBB')}</figure>"
        said = f'<p class="finding"><strong>Finding.</strong> {html.escape(finding)}</p>'
        for report in config.reports:
            given = {"study": config.document, "configuration": None} | ({"sets": list(sets)} if sets else {})
            given = json.dumps(given)
            path = notebook(
                markdown(f"# On {report}"),
                code(f"# Parameters\nparameters = {given!r}\n", tags=["injected-parameters"]),
                code("f()", shows("text/html", said)), code("g()", shows("text/html", figure)),
                code("h()", shows("text/html", '<table class="facts" data-trainings="12"></table>')),
            )  # fmt: skip
            content = json.loads(path.read_text())
            content["metadata"]["papermill"] = {"end_time": "2026-01-02T14:29:15.564334+00:00"}
            (folder / f"{report}.ipynb").write_text(json.dumps(content))
        return config, folder

    return write


def test_the_pages_of_a_study_have_an_index(study, tmp_path):
    config, notebooks = study()
    folder = tmp_path / "pages"
    made = publish_study(config, notebooks, folder)
    assert [path.name for path in made] == ["winning_tickets.html", "weight_correlation.html", "index.html"]
    assert sorted(os.listdir(folder)) == sorted(path.name for path in made)
    index = Elements(made[-1].read_text())
    links = [link["href"] for link in index.of("a")]
    assert links == ["#content", "winning_tickets.html", "weight_correlation.html"]
    for words in ("A small study", "On winning_tickets", "Finding. It was so.", "2026-01-02 · 12 trainings"):
        assert words in index.text
    images = index.of("img")
    assert [image["src"] for image in images] == ["data:image/svg+xml;base64,AAAA"] * 2
    assert all(image["alt"] == "" and image["role"] == "presentation" for image in images)
    page = Elements(made[0].read_text())
    assert {"href": "index.html"} in page.of("a") and "All reports" in page.text
    assert {"name": "date", "content": "2026-01-02"} in page.of("meta")
    before = [path.read_bytes() for path in made]
    assert publish_study(config, notebooks, folder) == made and [path.read_bytes() for path in made] == before


def test_a_page_by_itself_names_no_index(notebook):
    assert "All reports" not in published(notebook(markdown("# Title")))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.unlink(), "weight_correlation.ipynb: is not there; to make it: lthlab run small"),
        (lambda path: path.write_text("{"), "weight_correlation.ipynb: not a notebook of format 4"),
        (
            lambda path: path.with_suffix(".failed.ipynb").write_text(""),
            "weight_correlation.failed.ipynb: its last execution failed; to make it again: lthlab run small",
        ),
        (
            lambda path: path.write_text(path.read_text().replace("lenet_300_100", "resnet20")),
            "n.ipynb: was executed for another version of study small; to make it again: lthlab run small",
        ),
    ],
)
def test_one_report_that_cannot_be_published_keeps_all_pages_as_they_were(spoil, message, study, tmp_path):
    config, notebooks = study()
    folder = tmp_path / "pages"
    made = publish_study(config, notebooks, folder)
    before = [path.read_bytes() for path in made]
    study(finding="It was not so.")
    spoil(notebooks / "weight_correlation.ipynb")
    with pytest.raises(PageError, match=re.escape(message)):
        publish_study(config, notebooks, folder)
    assert [path.read_bytes() for path in made] == before and len(os.listdir(folder)) == 3


def test_a_report_of_other_settings_is_named_with_the_command_that_publishes_it(study, tmp_path):
    sets = ["find.lr=0.2", "title=A b"]
    config, notebooks = study(sets=sets)
    with pytest.raises(PageError) as refusal:
        publish_study(study()[0], study(sets=sets)[1], tmp_path / "pages")
    first, *_ = str(refusal.value).splitlines()
    options = "--set find.lr=0.2 --set 'title=A b'"
    assert first == (
        f"{notebooks / 'winning_tickets.ipynb'}: was executed with {options}, and is asked for with no --set; "
        f"to publish it: lthlab publish small {options}; to make it as asked: lthlab run small"
    )
    assert len(publish_study(config, notebooks, tmp_path / "pages")) == 3


def test_all_that_is_wrong_is_said_at_once_with_the_settings_of_the_command(study, tmp_path):
    config, notebooks = study(sets=["find.lr=0.2"])
    for path in notebooks.iterdir():
        path.unlink()
    with pytest.raises(PageError) as refusal:
        publish_study(config, notebooks, tmp_path / "pages")
    lines = str(refusal.value).splitlines()
    assert len(lines) == 2 and all(line.endswith("lthlab run small --set find.lr=0.2") for line in lines)
    with pytest.raises(PageError, match="study small has no reports"):
        publish_study(dataclasses.replace(config, reports=()), notebooks, tmp_path / "pages")
    assert not (tmp_path / "pages").exists()


def test_what_is_no_page_of_the_study_is_not_replaced(study, tmp_path):
    config, notebooks = study()
    folder = tmp_path / "pages"
    publish_study(config, notebooks, folder)
    other, others = study("other")
    with pytest.raises(PageError, match=r"winning_tickets\.html: is a page of study small; choose another folder"):
        publish_study(other, others, folder)
    (folder / "index.html").write_text("<title>Mine</title>")
    with pytest.raises(PageError, match=r"index\.html: is there and was not made by lthlab"):
        publish_study(config, notebooks, folder)
    assert (folder / "index.html").read_text() == "<title>Mine</title>"


def test_a_gallery_groups_pages_by_study_and_their_indexes_lead_back(study, tmp_path):
    folder = tmp_path / "gallery"
    for name, title in (("b", "Second"), ("a", "First")):
        publish_study(*study(name, title), folder / name)
    (folder / "empty").mkdir()
    index = Elements(gallery(folder).read_text())
    links = [link["href"] for link in index.of("a")][1:]
    assert links == [f"{name}/{page}.html" for name in "ab" for page in ("winning_tickets", "weight_correlation")]
    assert index.text.index("First") < index.text.index("On winning_tickets") < index.text.index("Second")
    inner = folder / "a" / "index.html"
    assert {"href": "../index.html"} in Elements(inner.read_text()).of("a")
    before = inner.read_text()
    publish_study(*study("a", "First"), folder / "a")
    assert inner.read_text() == before
    with pytest.raises(PageError, match="no folder in it holds pages of a study"):
        gallery(folder / "empty")


def test_names_titles_and_findings_are_text(study, tmp_path):
    hostile = "\"'><script>f()</script>\n{{ 7 * 7 }} <img src=x onerror=f()> __import__('os') \u2028"
    config, notebooks = study(title=hostile, finding=hostile)
    folder = tmp_path / "J. O'Neil & <söhne> #1?" / "a b"
    publish_study(config, notebooks, folder)
    for path in (folder / "winning_tickets.html", folder / "index.html", gallery(folder.parent)):
        elements = Elements(path.read_text(encoding="utf-8"))
        assert elements.of("script") == [] and {"src": "x", "onerror": "f()"} not in elements.of("img")
        assert "{{ 7 * 7 }} <img src=x onerror=f()> __import__('os')" in elements.text
        assert leaks(path.read_text(encoding="utf-8")) == []
    targets = [link["href"] for link in elements.of("a")][1:]
    assert targets == ["a%20b/winning_tickets.html", "a%20b/weight_correlation.html"]


@pytest.mark.parametrize("name", ["winning_tickets.html", "weight_correlation.html", "index.html"])
def test_pages_are_replaced_whole_and_the_index_last(name, study, tmp_path, monkeypatch):
    folder = tmp_path / "pages"
    config, notebooks = study()
    made = publish_study(config, notebooks, folder)
    study(finding="It was not so.")
    replace = Files.replace

    def fails(self, source, target):
        if target.name == name:
            raise OSError(28, "No space left on device")
        replace(self, source, target)

    monkeypatch.setattr(Files, "replace", fails)
    with pytest.raises(OSError, match="No space left"):
        publish_study(config, notebooks, folder)
    new = ["It was not so" in path.read_text() for path in made]
    assert new == [path.name != name and made.index(path) < [m.name for m in made].index(name) for path in made]
    assert sorted(os.listdir(folder)) == sorted(path.name for path in made)


def test_a_symbol_keeps_its_index_in_the_index(tmp_path):
    (tmp_path / "page.html").write_text('<p class="finding">R<sub>p</sub> was 0.9</p>')
    assert _Facts.of(tmp_path / "page.html").finding == "R_p was 0.9"


def test_lines_of_a_finding_stay_apart_in_the_index(tmp_path):
    (tmp_path / "page.html").write_text('<p class="finding">One.<br>Two.</p>')
    assert _Facts.of(tmp_path / "page.html").finding == "One. Two."
