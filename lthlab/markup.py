"""Small pieces of HTML and of text that reports are made of: tables, images, files, numbers with their signs."""

import base64
import html
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from lthlab import plots, results
from lthlab.roles import ROLE

_NAMED = ("study", "panel", "network", "data", "what", "ticket", "method", "level", "sparsity", "find_lr", "eval_lr")

_GRID = "display:grid;gap:0.8rem;grid-template-columns:repeat(auto-fill,minmax(min(19rem,100%),1fr))"
_FLOW = "display:flex;flex-wrap:wrap;gap:0.1rem 1.3rem;list-style:none;margin:0.5rem 0;padding:0"


class Html(str):
    """HTML that notebooks show."""

    def _repr_html_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"<HTML of {len(self)} characters>"


def found_out(sentences: Sequence[str]) -> Html:
    """Show sentences as what came out."""
    text = "<br>".join(html.escape(sentence).replace("R_p", "R<sub>p</sub>") for sentence in sentences)
    return Html(f'<p class="finding"><strong>What came out.</strong> {text}</p>')


def drawing(ax: Any, alternative: str = "") -> Html:
    """Show an Axes of its own figure as an image; its alternative text is made from what it shows, if not given."""
    return Html(image(svg(ax.figure), alternative or plots.describe(ax)))


def svg(figure: Any) -> bytes:
    """Draw as SVG, to hundredths of a point; equal drawings give equal bytes."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lthlab"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _smaller(out.getvalue().decode()).encode()


def _smaller(drawn: str) -> str:
    """Leave out of an SVG what no reader sees: a third of it."""
    text = re.sub(r"<metadata>.*?</metadata>|<!.*?>|<\?.*?\?>", "", drawn, flags=re.DOTALL)
    # Not the factors of scale(): these may be small.
    text = re.sub(r"-?\d+\.\d{3,}(?=[^\d.)]|\) *scale)", lambda n: re.sub(r"\.?0+$", "", f"{float(n[0]):.2f}"), text)
    for long, short in (
        (' xmlns:xlink="http://www.w3.org/1999/xlink"', ""),
        ("xlink:href", "href"),
        ("DejaVuSans-", "d"),
    ):
        text = text.replace(long, short)
    text = re.sub(r"\s*\n\s*", " ", text).replace("> <", "><").strip()
    text = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r" ?([A-Za-z]) ?", r"\1", path[0]), text)
    text = re.sub(r'(<use [^>]*?) ?transform="translate\(([-\d.]+) 0\)"', r'\1 x="\2"', text)
    used = set(re.findall(r"#([\w-]+)", text))
    return re.sub(r' id="([\w.-]+)"', lambda name: name[0] if name[1] in used else "", text)


def image(drawn: bytes, alternative: str) -> str:
    """Hold an SVG in an HTML image; without an alternative text it is decoration."""
    role = "" if alternative else ' role="presentation"'
    data = base64.b64encode(drawn).decode()
    return f'<img alt="{html.escape(alternative)}"{role} src="data:image/svg+xml;base64,{data}">'


def framed(images: Sequence[str], legend: Mapping[str, Any], words: str, numbers: str) -> Html:
    """Lay out drawings with a legend of handles by label, a caption, and the numbers behind them, folded."""
    # Four drawings stand in two columns; a notebook has no style sheet of ours, so the elements have their own.
    even, width = ("even", "47rem") if len(images) in (2, 4) else ("", "none")
    entries = "".join(f"<li>{swatch(handle)}{html.escape(label)}</li>" for label, handle in legend.items())
    return Html(
        f'<figure><div class="panels {even}" style="{_GRID};max-width:{width}">{"".join(images)}</div>'
        f'<ul class="legend" style="{_FLOW}">{entries}</ul><figcaption>{html.escape(words)}</figcaption>'
        f"<details><summary>The numbers</summary>{numbers}</details></figure>"
    )


def swatch(handle: Any) -> str:
    """Draw a legend's line and marker, which words beside them explain."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(0.42, 0.16))
    drawn.legend([handle], [""], loc="center", frameon=False, borderpad=0, handletextpad=0, handlelength=2.6)
    return image(svg(drawn), "")


def slug(panel: str) -> str:
    """Write the name of a panel so that it can be part of the name of a file."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", panel).strip("_")


def download(frame: pd.DataFrame, name: str, words: str) -> Html:
    """Link to a frame as a CSV file of that name, which the link itself holds.

    Columns without any entry are left out, and so is what all of several rows share of roles and recipes, which a page
    says elsewhere: else these would be most of it.
    """
    role = {*results.PANEL, *ROLE} - {*_NAMED}
    shared = [
        column
        for column in map(str, frame)
        if column in role or (column[:5] in ("find_", "eval_") and column not in _NAMED)
        if len(frame) > 1 and frame[column].map(str).nunique() == 1
    ]
    rows = frame.drop(columns=shared).dropna(axis="columns", how="all")
    data = base64.b64encode(rows.to_csv(index=False).encode()).decode()
    return Html(f'<p><a download="{name}" href="data:text/csv;base64,{data}">{html.escape(words)}</a></p>')


def table(frame: pd.DataFrame, label: str) -> Html:
    """Show a frame as it is, named for readers who do not see it."""
    text = frame.astype(object).where(frame.notna(), "").to_html(index=False, border=0, classes="rows")
    return Html(f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(label)}">{text}</div>')


def ruled(heads: Iterable[str], rows: Iterable[str], label: str, kind: str = "verdict", above: str = "") -> str:
    """Put rows of a table below its heads, where wide ones can be scrolled.

    Parameters
    ----------
    heads, rows : iterable of str
        HTML of the heads of the columns, and of the rows.
    label : str
        Name of the table for readers who do not see it.
    kind : str, optional
        Classes of the table.
    above : str, optional
        HTML of a caption.
    """
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    return (
        f'<div class="scroll" style="max-height:none" role="region" tabindex="0" aria-label="{html.escape(label)}">'
        f'<table class="{kind}">{above}<thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def heat(grid: pd.DataFrame, label: str, scale: tuple[float, float], decimals: int = 1) -> Html:
    """Show numbers in coloured cells, darker the larger, which are read without the colours too.

    Parameters
    ----------
    grid : DataFrame
        Numbers; NaN leaves a cell empty. Names of index and columns stand in the corner.
    label : str
        Names the table for readers who do not see it.
    scale : (float, float)
        Numbers of the lightest and of the darkest colour; what is beyond has the colour at the end.
    decimals : int, optional
        How numbers are written.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize, to_hex

    colours, shade = colormaps["Blues"], Normalize(*scale, clip=True)

    def cell(value: float) -> str:
        if math.isnan(value):
            return "<td></td>"
        colour = colours(0.9 * float(shade(value)))
        light = 0.2126 * colour[0] ** 2.2 + 0.7152 * colour[1] ** 2.2 + 0.0722 * colour[2] ** 2.2
        ink = "#000000" if light > 0.18 else "#ffffff"
        return f'<td style="background:{to_hex(colour)};color:{ink}">{value:.{decimals}f}</td>'

    corner = html.escape(f"{grid.index.name} \\ {grid.columns.name}")
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in grid)
    rows = "".join(
        f'<tr><th scope="row">{html.escape(str(name))}</th>' + "".join(map(cell, values)) + "</tr>"
        for name, values in zip(grid.index, grid.to_numpy(float), strict=True)
    )
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(label)}"><table class="heat">'
        f'<thead><tr><th scope="col">{corner}</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def signed(value: float, decimals: int) -> str:
    """Write a difference with its sign; what rounds to zero is not negative."""
    return f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "−")


def spanned(row: dict[Any, Any], write: Callable[[float], str]) -> str:
    """Write a mean with its interval, if n is above 1."""
    mean, low, high = (write(row[name]) for name in ("mean", "low", "high"))
    return mean if row["n"] < 2 else f"{mean} [{low}, {high}]"


def points(row: dict[Any, Any]) -> str:
    """Write a mean with its interval, if n is above 1, in percentage points."""
    return spanned(row, lambda value: signed(100 * value, 1))


def percent(row: dict[Any, Any]) -> str:
    """Write a share with its interval, if n is above 1, in percent."""
    return spanned(row, lambda value: f"{100 * value:.1f}")


def interval(row: dict[Any, Any]) -> str:
    return spanned(row, "{:.2f}".format)


def level_of(row: dict[Any, Any]) -> str:
    """Say where on the ladder a row with level and sparsity is."""
    left = f"{100 * (1 - row['sparsity']):.3g} % of the {results.unit(row)} left"
    return left if pd.isna(row["level"]) else f"level {row['level']:g} ({left})"


def listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
