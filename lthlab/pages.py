"""Executed notebooks as self-contained HTML pages, and indexes of them."""

import ast
import html
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import lthlab
from lthlab import formulas
from lthlab.files import Files
from lthlab.machine import leaks
from lthlab.spec import Config

TEMPLATES = Path(__file__).parent / "templates"
_INDEX = "index.html"
_FORBIDDEN = {"script", "iframe", "object", "embed", "form", "base", "audio", "video"}
_LOADING = {"src", "srcset", "background", "poster"}
_LOADING_HREF = {"link", "image", "feimage", "use"}
_NO_WORDS = {"", "No description has been provided for this image"}  # the latter from nbconvert


class PageError(ValueError):
    """A notebook that must not become a page; says which cell and why."""


class _OtherSettings(PageError):
    """A report that was executed with other settings of the command line."""

    def __init__(self, notebook: Path, sets: Sequence[str], asked: Sequence[str]) -> None:
        executed, words = (shlex.join(_options(given)) or "no --set" for given in (sets, asked))
        super().__init__(f"{notebook}: was executed with {executed}, and is asked for with {words}")
        self.sets = sets


def publish(notebook: str | Path, target: str | Path) -> Path:
    """Make a page of an executed notebook: one HTML file that needs no network, no server and no script.

    Parameters
    ----------
    notebook : str or Path
        Executed notebook. Formulas in its markdown, between dollar signs, become MathML.
    target : str or Path
        HTML file; folders are made, and an older page is replaced by a whole one or not at all.

    Returns
    -------
    Path
        `target`.

    Raises
    ------
    PageError
        If a cell failed or was not run, a formula cannot be read, or a page would run a script, load something,
        show a figure that has no alternative text, or give away where it was made. The page that was there stays.
    OSError
        If a file cannot be read or written.
    """
    target = Path(target)
    _write({target: _page(Path(notebook))})
    return target


def publish_study(
    config: Config,
    notebooks: str | Path,
    folder: str | Path,
    command: Callable[[str, Sequence[str]], str] | None = None,
) -> list[Path]:
    """Make a page of each report of a study, and the index of the folder.

    All pages are made and checked before the first one is replaced.

    Parameters
    ----------
    config : Config
        The study.
    notebooks : str or Path
        Folder of the executed notebooks, `<report>.ipynb`.
    folder : str or Path
        Folder for the pages, `<report>.html`, and for `index.html`.
    command : callable, optional
        From 'run' or 'publish' and the settings of the command line to the command that does this for the study, for
        errors; by default with the study's name and the settings alone.

    Returns
    -------
    list of Path
        The pages in the order of the study, then the index.

    Raises
    ------
    PageError
        With all that is wrong: what `publish` refuses, executed notebooks that are missing or failed the last time,
        and files that would be replaced and are not pages of this study.
    OSError
        If a file cannot be read or written.
    """
    notebooks, folder = Path(notebooks), Path(folder)
    made: dict[Path, str] = {}
    problems = _foreign(folder / _INDEX)
    if not config.reports:
        problems.append(f"study {config.name} has no reports; name some under 'reports'")
    command = command or (lambda verb, sets: shlex.join(["lthlab", verb, *config.named, *_options(sets)]))
    again = command("run", config.sets)
    for report in config.reports:
        target = folder / f"{report}.html"
        problems += _foreign(target, config.name)
        failure = notebooks / f"{report}.failed.ipynb"
        try:
            if failure.exists():
                raise PageError(f"{failure}: its last execution failed")
            made[target] = _page(notebooks / f"{report}.ipynb", config)
        except _OtherSettings as error:
            remedy = f"to publish it: {command('publish', error.sets)}; to make it as asked: {again}"
            problems.append(f"{error}; {remedy}")
        except FileNotFoundError as error:
            problems.append(f"{error.filename}: is not there; to make it: {again}")
        except PageError as error:
            problems.append(f"{error}; to make it again: {again}")
    if problems:
        raise PageError("\n".join(problems))
    _write(made)
    return [*made, _index(folder)]


def gallery(folder: str | Path) -> Path:
    """Make the index of several studies, each published to a folder of its own within `folder`.

    Parameters
    ----------
    folder : str or Path
        Folder of the folders. Their own indexes are made again, with a link to this one.

    Returns
    -------
    Path
        The index.

    Raises
    ------
    PageError
        If no folder in `folder` holds pages of a study, or its index was not made by lthlab.
    OSError
        If a file cannot be read or written.
    """
    folder = Path(folder)
    target = folder / _INDEX
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and _pages_in(path)]
    problems = _foreign(target) if inner else [f"{folder}: no folder in it holds pages of a study"]
    if problems:
        raise PageError("\n".join(problems))
    pages = [page for path in inner for page in _pages_in(path)]
    _write({target: _contents("Reports", "gallery", pages, folder)})
    for path in inner:
        _index(path)
    return target


# --- one page -------------------------------------------------------------------------------------------------


def _page(notebook: Path, config: Config | None = None) -> str:
    """Make the page of a notebook, checked; with `config`, as a report of its study."""
    content = _read(notebook)
    problems = []
    told = _parameters(content)
    asked, sets = told.get("study"), told.get("sets", [])
    if config is not None and isinstance(asked, dict) and asked != config.document:
        if sets != list(config.sets):
            raise _OtherSettings(notebook, sets, config.sets)
        problems.append(f"was executed for another version of study {config.name}")
    for number, cell in enumerate(content["cells"], start=1):
        try:
            _prepare(cell)
        except formulas.FormulaError as error:
            problems.append(f"cell {number}: {error}")
    facts = {}
    if config is not None:
        order = str(config.reports.index(notebook.stem))
        facts = {"study": config.name, "study-title": config.title, "order": order}
    page = _render(content, notebook, facts)
    problems += _Audit.of(page)
    texts = [json.dumps(cell, ensure_ascii=False) for cell in content["cells"]]
    for leak in leaks(page):
        places = [f"cell {number}" for number, text in enumerate(texts, start=1) if leak in leaks(text)]
        problems.append(f"{', '.join(places) or 'the page'} gives away where it was made: {leak}")
    if problems:
        raise PageError(f"{notebook}: " + "; ".join(problems))
    return page


def _options(sets: Sequence[str]) -> list[str]:
    return [word for setting in sets for word in ("--set", setting)]


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        cells = content["cells"]
        if not isinstance(cells, list):
            raise TypeError("no list of cells")
    except (ValueError, KeyError, TypeError) as error:
        raise PageError(f"{path}: not a notebook of format 4: {error}") from error
    for number, cell in enumerate(cells, start=1):
        if cell["cell_type"] != "code" or not "".join(cell["source"]).strip():
            continue
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                raise PageError(f"{path}: cell {number} failed: {output['ename']}: {output['evalue']}")
        if cell["execution_count"] is None:
            raise PageError(f"{path}: cell {number} was not run")
    return content


def _parameters(content: dict[str, Any]) -> dict[str, Any]:
    """Parameters that a notebook was executed with; empty if it was opened by hand."""
    for cell in content["cells"]:
        if "injected-parameters" in _tags(cell):
            found = re.search(r"^parameters = (.*)$", "".join(cell["source"]), re.MULTILINE)
            return dict(json.loads(ast.literal_eval(found[1]))) if found else {}
    return {}


def _prepare(cell: dict[str, Any]) -> None:
    """Put HTML in the place of a cell's markdown, source and outputs, and leave out what is not for readers."""
    if cell["cell_type"] == "markdown":
        cell["source"] = formulas.to_html("".join(cell["source"]), cell.get("attachments"))
    if cell["cell_type"] == "code":
        cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    for output in cell.get("outputs", []):
        for kind in {"text/markdown", "text/latex"} & output.get("data", {}).keys():
            output["data"][kind] = formulas.to_html("".join(output["data"][kind]))


def _folded(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put code in a row that shows nothing into one cell, below what a cell without code after it shows."""
    left_out = {"hide"} | ({"parameters"} if any("injected-parameters" in _tags(cell) for cell in cells) else set())
    found: list[dict[str, Any]] = []
    bare: list[dict[str, Any]] = []
    for cell in [*(cell for cell in cells if not _tags(cell) & left_out), None]:
        tags = _tags(cell) if cell else set()
        code = cell is not None and cell["cell_type"] == "code" and not tags & {"hide-input", "checks"}
        if cell and code and ("hide-output" in tags or not cell["outputs"]):
            bare.append(cell)
            continue
        last = [cell] if cell else []
        source = "\n\n".join("".join(one["source"]).strip() for one in bare)
        fold = [bare[0] | {"source": source, "outputs": [], "metadata": {}}] if bare else []
        found += [*last, *fold] if "hide-input" in tags else [*fold, *last]
        bare = []
    return found


def _tags(cell: dict[str, Any]) -> set[str]:
    return set(cell["metadata"].get("tags", []))


def _render(content: dict[str, Any], notebook: Path, facts: Mapping[str, str]) -> str:
    cells = content["cells"]
    content = content | {"cells": _folded(cells)}
    prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    heading = re.search(r"<h1\b[^>]*>(.*?)</h1>", prose, re.DOTALL)
    date = content["metadata"].get("papermill", {}).get("end_time")
    date = date or datetime.fromtimestamp(notebook.stat().st_mtime, UTC).isoformat()
    report = {
        "title": html.unescape(re.sub(r"<[^>]*>", "", heading[1])) if heading else notebook.name,
        "notebook": notebook.name,
        "facts": {"date": date[:10]} | {f"lthlab:{name}": value for name, value in facts.items()},
        "up": _INDEX if facts else "",
    }
    page: str = _exporter().from_file(io.StringIO(json.dumps(content)), resources={"report": report})[0]
    return page


def _exporter() -> Any:
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(extra_template_basedirs=[str(TEMPLATES)], template_name="report")
    exporter.register_filter("sections", _sections)
    exporter.register_filter("alternative", _alternative)
    exporter.environment.globals["version"] = lthlab.__version__
    return exporter


def _sections(body: str) -> str:
    """Give each section an anchor and list them before the text; let wide tables scroll in boxes of their own."""
    items: list[str] = []

    def anchored(match: re.Match[str]) -> str:
        items.append(f'<li><a href="#section-{len(items) + 1}">{match[1]}</a></li>')
        return f'<h2 id="section-{len(items)}">{match[1]}</h2>'

    def boxed(match: re.Match[str]) -> str:
        if match[1]:
            return match[0]
        return f'<div class="scroll" role="group" aria-label="Table" tabindex="0">{match[0]}</div>'

    text = re.sub(r"<h2>(.*?)</h2>", anchored, body, flags=re.DOTALL)
    text = re.sub(r'(<div class="scroll[^>]*>\s*)?<table(?! class="facts").*?</table>', boxed, text, flags=re.DOTALL)
    contents = f'<nav class="contents" aria-label="Contents"><ol>{"".join(items)}</ol></nav>' if items else ""
    return f'{contents}<main id="content">{text}</main>'


def _alternative(output: dict[str, Any], kind: str) -> str:
    return html.escape(output["metadata"].get(kind, output["metadata"]).get("alt", ""))


class _Audit(HTMLParser):
    """Finds what a page must not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []
        self._in_style = False

    @classmethod
    def of(cls, page: str) -> list[str]:
        audit = cls()
        audit.feed(page)
        return audit.problems

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in _FORBIDDEN:
            self.problems.append(f"the page must not hold <{tag}>")
        if tag == "img" and given.get("alt", "").strip() in _NO_WORDS and given.get("role") != "presentation":
            self.problems.append("a figure has no alternative text; show it with lthlab.reports.figure")
        if tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
            self.problems.append("the page must not lead elsewhere by itself")
        self._in_style = tag == "style"
        for name, value in given.items():
            loads = name in _LOADING or (name in ("href", "xlink:href") and tag in _LOADING_HREF)
            if name.startswith("on") or value.strip().lower().startswith("javascript:"):
                self.problems.append(f"the page must not run a script: {name} of <{tag}>")
            elif loads and not value.startswith(("data:", "#")):
                self.problems.append(f"the page must not load {value[:80]!r}")
            elif name == "style" and "url(" in value:
                self.problems.append(f"the page must not load what the style of <{tag}> names")

    def handle_data(self, data: str) -> None:
        if self._in_style and re.search(r"url\(|@import", data):
            self.problems.append("the page must not load what a <style> names")


# --- indexes --------------------------------------------------------------------------------------------------


class _Facts(HTMLParser):
    """What an index says about a page, read from the page.

    Attributes
    ----------
    path : Path
        File of the page.
    meta : dict
        What lthlab wrote into its head.
    title, finding, image, trainings : str
        Title, first finding, first panel of the first figure, and number of trainings; '' for what it lacks.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.meta: dict[str, str] = {}
        self.title = self.finding = self.image = self.trainings = ""
        self._field = ""

    @classmethod
    def of(cls, path: Path) -> Self:
        facts = cls(path)
        facts.feed(path.read_text(encoding="utf-8", errors="replace"))
        return facts

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "meta" and (given.get("name") == "date" or given.get("content", "").startswith("lthlab ")):
            self.meta[given["name"]] = given["content"]
        elif tag == "meta" and given.get("name", "").startswith("lthlab:"):
            self.meta[given["name"].removeprefix("lthlab:")] = given["content"]
        elif tag == "img" and not self.image and given.get("src", "").startswith("data:image/svg+xml"):
            self.image = given["src"] if given.get("alt") else ""
        elif tag == "title" and not self.title:
            self._field = "title"
        elif tag == "p" and "finding" in given.get("class", "").split() and not self.finding:
            self._field = "finding"
        elif tag in ("br", "sub") and self._field:
            self.handle_data({"br": " ", "sub": "_"}[tag])
        self.trainings = self.trainings or given.get("data-trainings", "")

    def handle_data(self, data: str) -> None:
        if self._field:
            setattr(self, self._field, getattr(self, self._field) + data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("title", "p"):
            self._field = ""


def _pages_in(folder: Path) -> list[_Facts]:
    """Facts of the pages in a folder, in the order of their studies."""
    found = [_Facts.of(path) for path in sorted(folder.glob("*.html"))]
    pages = [facts for facts in found if "study" in facts.meta]
    return sorted(pages, key=lambda facts: (facts.meta["study"], int(facts.meta["order"])))


def _foreign(target: Path, study: str | None = None) -> list[str]:
    """Say why a file must not be replaced by a page."""
    if not target.exists():
        return []
    meta = _Facts.of(target).meta
    if "generator" not in meta:
        return [f"{target}: is there and was not made by lthlab; choose another folder"]
    if study is not None and meta.get("study", study) != study:
        return [f"{target}: is a page of study {meta['study']}; choose another folder"]
    return []


def _index(folder: Path) -> Path:
    """Write the index of a folder of pages."""
    pages = _pages_in(folder)
    titles = list(dict.fromkeys(facts.meta["study-title"] for facts in pages))
    above = folder.parent / _INDEX
    inside = above.exists() and _Facts.of(above).meta.get("kind") == "gallery"
    title = titles[0] if len(titles) == 1 else "Reports"
    _write({folder / _INDEX: _contents(title, "index", pages, folder, up=f"../{_INDEX}" if inside else "")})
    return folder / _INDEX


def _contents(title: str, kind: str, pages: Sequence[_Facts], folder: Path, up: str = "") -> str:
    studies = [
        (study, [(quote(facts.path.relative_to(folder).as_posix()), facts) for facts in group])
        for study, group in groupby(pages, key=lambda facts: facts.meta["study-title"])
    ]
    template = _exporter().environment.get_template("contents.html.j2")
    page: str = template.render(title=title, kind=kind, studies=studies, up=up)
    problems = _Audit.of(page) + leaks(page)
    if problems:
        raise PageError(f"{folder / _INDEX}: " + "; ".join(problems))
    return page


def _write(made: Mapping[Path, str]) -> None:
    """Write pages aside, all of them, before the first one is put in its place."""
    files = Files()
    aside = {target: target.with_name(f".{target.name}.{os.getpid()}.aside") for target in made}
    try:
        for target, page in made.items():
            files.mkdir(target.parent)
            files.write(aside[target], page.encode())
        for target in made:
            files.replace(aside[target], target)
    finally:
        for path in aside.values():
            files.remove(path)
