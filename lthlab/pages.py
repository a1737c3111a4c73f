"""Executed notebooks as self-contained HTML pages, and the parts of a report that are HTML."""

import argparse
import base64
import getpass
import html
import io
import json
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd

import lthlab
from lthlab import plots, results
from lthlab.files import Files
from lthlab.parts import Recipe
from lthlab.spec import Config
from lthlab.store import Store

TEMPLATES = Path(__file__).parent / "templates"
_FORBIDDEN = {"script", "iframe", "object", "embed", "form", "base", "audio", "video"}
_SIZE = (3.5, 2.9)


class PageError(ValueError):
    """A notebook that must not become a page; says which cell and why."""


class Html(str):
    """HTML that notebooks show."""

    def _repr_html_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"<HTML of {len(self)} characters>"


# --- publishing -----------------------------------------------------------------------------------------------


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

    exporter = HTMLExporter(
        extra_template_basedirs=[str(TEMPLATES)], template_name="report", exclude_anchor_links=True
    )
    exporter.register_filter("contents", _contents)
    exporter.register_filter("alternative", _alternative)
    markdown = "\n".join("".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "markdown")
    heading = re.search(r"^# +(.+?) *$", markdown, re.MULTILINE)
    title = heading[1] if heading else name
    facts = {"report": {"title": title, "version": lthlab.__version__, "notebook": name}}
    page: str = exporter.from_file(io.StringIO(json.dumps(content)), resources=facts)[0]
    return page


def _contents(body: str) -> str:
    """List the sections of a page."""
    sections = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', body, re.DOTALL)
    items = "".join(f'<li><a href="#{anchor}">{text}</a></li>' for anchor, text in sections)
    return f'<nav aria-label="Contents"><ol>{items}</ol></nav>' if items else ""


def _alternative(output: dict[str, Any], kind: str) -> str:
    return html.escape(output["metadata"].get(kind, output["metadata"]).get("alt", ""))


def _anonymous(page: str) -> str:
    """Leave out where on this machine a page was made."""
    for folder, word in ((Path.cwd(), "."), (Path(tempfile.gettempdir()), "tmp"), (Path.home(), "~")):
        if len(folder.parts) > 1:
            page = page.replace(html.escape(str(folder)), word)
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
        if tag == "img" and not given.get("alt", "").strip():
            self.problems.append("a figure has no alternative text; show it with lthlab.pages.figure")
        for name, value in given.items():
            loads = name in ("src", "srcset") or (name == "href" and tag == "link")
            if name.startswith("on") or value.strip().lower().startswith("javascript:"):
                self.problems.append(f"the page must not run a script: {name} of <{tag}>")
            elif loads and not value.startswith("data:"):
                self.problems.append(f"the page must not load {value[:80]!r}")
            elif name == "style" and "url(" in value:
                self.problems.append(f"the page must not load what the style of <{tag}> names")


# --- parts of reports -----------------------------------------------------------------------------------------


def figure(draw: Callable[..., Any], frame: pd.DataFrame, panels: str, about: str = "") -> Html:
    """Draw a frame in panels, with legend, caption, alternative texts, and the numbers behind it.

    Parameters
    ----------
    draw : callable
        Function of `lthlab.plots` that draws rows on Axes.
    frame : DataFrame
        Rows to draw.
    panels : str
        Column with one panel per value; with 'level', dense networks (level 0) are in every panel.
    about : str, optional
        First sentence of the caption.

    Returns
    -------
    Html
        A `<figure>` with SVG images, a table of means and intervals, and the rows as a CSV file.

    Raises
    ------
    ValueError
        As `draw` does.
    """
    from matplotlib.figure import Figure

    drawn = []
    for title, rows in _panels(frame, panels):
        ax = Figure(figsize=_SIZE, layout="constrained").subplots()
        draw(rows, ax=ax)
        ax.set_title(title, fontsize=10)
        drawn.append(ax)
    low, high = min(ax.get_ylim()[0] for ax in drawn), max(ax.get_ylim()[1] for ax in drawn)
    names: dict[str, Any] = {}
    for ax in drawn:
        ax.set_ylim(low, high)
        names |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    size = plots.sample_size(frame)
    images = "".join(_image(_svg(ax.figure), f"{plots.describe(ax)} {size}.", width=336) for ax in drawn)
    entries = "".join(f"<li>{_swatch(handle, label)}{_escape(label)}</li>" for label, handle in names.items())
    classes = "panels two" if len(drawn) in (2, 4) else "panels"
    columns = [name for name in plots.CELL if name in frame] + ["kept", "replicate", "value", "status", "key"]
    rows = frame[[name for name in dict.fromkeys(columns) if name in frame]]
    data = base64.b64encode(rows.to_csv(index=False).encode()).decode()
    return Html(
        f'<figure><div class="{classes}">{images}</div><ul class="legend">{entries}</ul>'
        f"<figcaption>{_escape(' '.join(filter(None, (about, plots.caption(frame)))))}</figcaption>"
        f"<details><summary>The numbers</summary>{_table(_numbers(frame), 'scroll tall', 'Means and intervals')}"
        f'<p><a download="{draw.__name__}.csv" href="data:text/csv;base64,{data}">'
        f"All {len(rows)} values, one row per replicate (CSV)</a></p></details></figure>"
    )


def finding(frame: pd.DataFrame, first: str = "LT", second: str = "RR", method: str = "IMP") -> Html:
    """Say what came out for two tickets at the sparsest level, whatever it is.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with ladder levels.
    first, second : str, optional
        Tickets to compare, replicate by replicate.
    method : str, optional
        Whose masks.
    """
    trained = frame[(frame["method"] == method) & (frame["what"] == "train")]
    cells = results.differences(trained, first, second, ["level", "sparsity", "eval_lr"])
    if cells.empty:
        return Html(f'<p class="finding">No pair of {first} and {second} on {method} masks is done.</p>')
    cells = cells[cells["level"] == cells["level"].max()]
    rows = results.summarise(cells, ["eval_lr", "level", "sparsity"]).to_dict("records")
    unseen = [f"{row['eval_lr']:g}" for row in rows if not (row["low"] > 0 or row["high"] < 0)]
    text = (
        f"At level {rows[0]['level']}, where {100 * (1 - rows[0]['sparsity']):.3g} % of the prunable weights remain, "
        f"{first} minus {second} on {method} masks was "
        + _listed([f"{_points(row)} at learning rate {row['eval_lr']:g}" for row in rows])
        + f" (percentage points of test accuracy; mean of paired differences, 95 % t interval, "
        f"{plots.sample_size(cells.assign(method=method))}"
        + ")."
    )
    if unseen:
        text += f" At {_listed(unseen)} we did not see a difference."
    return Html(f'<p class="finding"><strong>What came out.</strong> {text}</p>')


def provenance(config: Config, store: Store, frame: pd.DataFrame, study: str) -> Html:
    """Say what a page is made of and how to make it again.

    Parameters
    ----------
    config : Config
        The study.
    store : Store
        Where its results are.
    frame : DataFrame
        Its tidy frame.
    study : str
        Its file, as named in the notebook.
    """
    trainings = frame[frame["what"] == "train"]
    keys = trainings["key"].unique()
    made = [json.loads(text) for text in _provenances(store, keys)]
    facts = config.data.facts
    command = f"lthlab compute {re.sub(r'^([.][.]?/)+', '', study)}"
    recipes = list(dict.fromkeys(recipe for pair in config.recipes for recipe in pair))
    seeds = "0" if config.replicates == 1 else f"0 to {config.replicates - 1}"
    lines = {
        "Study": f"{config.name}: {config.title}",
        "Make it again": f"<code>{_escape(command)}</code>, then run the notebook",
        "Trainings": f"{len(keys)} trained, {len(trainings) - len(keys)} more roles share one of them; "
        f"{_statuses(frame)}",
        "Replicates": f"{config.replicates}; the seeds are the replicates' numbers, {seeds}",
        "Network": f"{_fields(config.net)}; prunable: {config.protocol.prunable}",
        "Data": f"{_fields(config.data)}; {config.data.images} training and {facts.test} test images of "
        f"{'×'.join(map(str, facts.shape))}, {facts.classes} classes, fingerprint <code>{facts.fingerprint}</code>",
        "Training": _recipe(recipes),
        "Protocol": _fields(config.protocol),
        "Versions": "; ".join(f"{name} {_distinct(made, name)}" for name in ("lthlab", "torch", "numpy", "python")),
        "Machine": f"{_distinct(made, 'device')} ({_distinct(made, 'processor')}), {_distinct(made, 'threads')} threads, "
        f"{sum(item['seconds'] / item['replicas'] for item in made):.0f} s of training in all",
        "Dates": f"trained {_days(made)}; page made {datetime.now(UTC).date()}",
        "Fingerprint": f"<code>{_fingerprint(frame)}</code> of the keys of all values",
    }
    cells = "".join(
        f'<tr><th scope="row">{name}</th><td>{text if "<code>" in text else _escape(text)}</td></tr>'
        for name, text in lines.items()
    )
    return Html(f'<table class="facts"><tbody>{cells}</tbody></table>')
