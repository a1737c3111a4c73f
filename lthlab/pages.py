"""Executed notebooks as self-contained HTML pages."""

import argparse
import html
import io
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import lthlab
from lthlab.files import Files

TEMPLATES = Path(__file__).parent / "templates"
_FORBIDDEN = {"script", "iframe", "object", "embed", "form", "base", "audio", "video"}
_NO_WORDS = {"", "No description has been provided for this image"}  # the latter from nbconvert


class PageError(ValueError):
    """A notebook that must not become a page; says which cell and why."""


def publish(notebook: str | Path, target: str | Path) -> Path:
    """Make a page of an executed notebook: one HTML file that needs no network, no server and no script.

    Parameters
    ----------
    notebook : str or Path
        Executed notebook.
    target : str or Path
        HTML file; folders are made, and an older page is replaced by a whole one or not at all.

    Returns
    -------
    Path
        `target`.

    Raises
    ------
    PageError
        If a cell failed or was not run, or a page would run a script, load something, or show a figure that
        has no alternative text. The page that was there stays.
    OSError
        If a file cannot be read or written.
    """
    notebook, target = Path(notebook), Path(target)
    content = _read(notebook)
    page = _anonymous(_render(content, notebook.name))
    problems = _Audit.of(page)
    if problems:
        raise PageError(f"{notebook}: " + "; ".join(problems))
    files = Files()
    files.mkdir(target.parent)
    aside = target.with_name(f".{target.name}.aside")
    try:
        files.write(aside, page.encode())
        files.replace(aside, target)
    finally:
        files.remove(aside)
    return target


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


def _render(content: dict[str, Any], name: str) -> str:
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(extra_template_basedirs=[str(TEMPLATES)], template_name="report", exclude_anchor_links=True)
    exporter.register_filter("sections", _sections)
    exporter.register_filter("alternative", _alternative)
    markdown = "\n".join("".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "markdown")
    heading = re.search(r"^# +(.+?) *$", markdown, re.MULTILINE)
    title = heading[1] if heading else name
    injected = any("injected-parameters" in cell["metadata"].get("tags", []) for cell in content["cells"])
    facts = {"title": title, "version": lthlab.__version__, "notebook": name, "injected": injected}
    page: str = exporter.from_file(io.StringIO(json.dumps(content)), resources={"report": facts})[0]
    return page


def _sections(body: str) -> str:
    """Give each section an anchor and list them before the text."""
    items: list[str] = []

    def anchored(match: re.Match[str]) -> str:
        items.append(f'<li><a href="#section-{len(items) + 1}">{match[1]}</a></li>')
        return f'<h2 id="section-{len(items)}">{match[1]}</h2>'

    text = re.sub(r"<h2>(.*?)</h2>", anchored, body, flags=re.DOTALL)
    contents = f'<nav aria-label="Contents"><ol>{"".join(items)}</ol></nav>' if items else ""
    return f'{contents}<main id="content">{text}</main>'


def _alternative(output: dict[str, Any], kind: str) -> str:
    return html.escape(output["metadata"].get(kind, output["metadata"]).get("alt", ""))


def _anonymous(page: str) -> str:
    """Leave out where on this machine a page was made."""
    words = {Path.cwd(): ".", Path.home(): "~", Path(tempfile.gettempdir()): "tmp"}
    for folder in sorted(words, key=lambda folder: len(folder.parts), reverse=True):
        if len(folder.parts) > 1:
            page = page.replace(html.escape(str(folder)), words[folder])
    return page


class _Audit(HTMLParser):
    """Finds what a page must not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []

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
        for name, value in given.items():
            loads = name in ("src", "srcset") or (name == "href" and tag == "link")
            if name.startswith("on") or value.strip().lower().startswith("javascript:"):
                self.problems.append(f"the page must not run a script: {name} of <{tag}>")
            elif loads and not value.startswith("data:"):
                self.problems.append(f"the page must not load {value[:80]!r}")
            elif name == "style" and "url(" in value:
                self.problems.append(f"the page must not load what the style of <{tag}> names")


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish a notebook from the command line; returns 0, or 2 if there is no page to be made of it."""
    parser = argparse.ArgumentParser(prog="python -m lthlab.pages", description="Make a page of an executed notebook.")
    parser.add_argument("notebook", help="executed notebook")
    parser.add_argument("target", help="HTML file to write")
    options = parser.parse_args(arguments)
    try:
        publish(options.notebook, options.target)
    except (PageError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
