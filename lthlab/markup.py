"""Small pieces of HTML and of text that reports are made of: tables, images, files, numbers with their signs."""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lthlab import plots, results

_GRID = "display:grid;gap:0.8rem;grid-template-columns:repeat(auto-fill,minmax(min(19rem,100%),1fr))"
_FLOW = "display:flex;flex-wrap:wrap;gap:0.1rem 1.3rem;list-style:none;margin:0.5rem 0;padding:0"

_PLACES = re.compile(rb' d="[^"]*"')
_DECIMALS = re.compile(rb"(\.\d)\d+")


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
    """Draw as SVG, places cut to tenths of a point; equal drawings give equal bytes."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lthlab"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _PLACES.sub(lambda found: _DECIMALS.sub(rb"\1", found[0]), out.getvalue())


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
    """Link to a frame as a CSV file of that name, which the link itself holds."""
    data = base64.b64encode(frame.to_csv(index=False).encode()).decode()
    return Html(f'<p><a download="{name}" href="data:text/csv;base64,{data}">{html.escape(words)}</a></p>')


def table(frame: pd.DataFrame, label: str) -> Html:
    """Show a frame as it is, named for readers who do not see it."""
    text = frame.astype(object).where(frame.notna(), "").to_html(index=False, border=0, classes="rows")
    return Html(f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(label)}">{text}</div>')


def signed(value: float, decimals: int) -> str:
    """Write a difference with its sign; what rounds to zero is not negative."""
    return f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "−")


def points(row: dict[Any, Any]) -> str:
    """Write a mean with its interval, if n is above 1, in percentage points."""
    mean, low, high = (signed(100 * row[name], 1) for name in ("mean", "low", "high"))
    return mean if row["n"] < 2 else f"{mean} [{low}, {high}]"


def percent(row: dict[Any, Any]) -> str:
    """Write a share with its interval, if n is above 1, in percent."""
    mean, low, high = (f"{100 * row[name]:.1f}" for name in ("mean", "low", "high"))
    return mean if row["n"] < 2 else f"{mean} [{low}, {high}]"


def interval(row: dict[Any, Any]) -> str:
    return f"{row['mean']:.2f}" + ("" if row["n"] < 2 else f" [{row['low']:.2f}, {row['high']:.2f}]")


def level_of(row: dict[Any, Any]) -> str:
    """Say where on the ladder a row with level and sparsity is."""
    left = f"{100 * (1 - row['sparsity']):.3g} % of the {results.unit(row)} left"
    return left if pd.isna(row["level"]) else f"level {row['level']:g} ({left})"


def listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
