"""Parts of drawings: colours and markers, rows that are done, lines with intervals, axes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from lthlab import results

TICKETS = ("dense", "LT", "WR", "LRR", "FT", "GMP", "RR", "RT", "SDT")
METHODS = ("IMP", "OMP", "GMP")
# Okabe and Ito's colours (RT's is a dark orange, GMP's a violet), which colour-blind readers tell apart; markers and
# lines say the same without colour.
COLOURS = {
    "dense": "#4d4d4d", "LT": "#0072b2", "WR": "#009e73", "RR": "#d55e00", "RT": "#5b2c00", "SDT": "#cc79a7",
    "LRR": "#56b4e9", "FT": "#e69f00", "GMP": "#6a4c93",
}  # fmt: skip
_OTHER_COLOUR = "#8c4b85"
_MARKERS = {
    "dense": "D", "LT": "o", "WR": "^", "RR": "s", "RT": "v", "SDT": "P", "LRR": "<", "FT": ">", "GMP": "X",
}  # fmt: skip
VARIED = "os^vDP<>X"
SOURCES = ("ticket", "method", *results.VARIANT, "found_on")
_SCOPES = {"layer": "permuted within layers", "global": "permuted globally", "even": "the same share of every layer"}
_Style = str | tuple[float, tuple[float, float]]
DASHED: _Style = (0, (4.0, 2.0))
DOTTED: _Style = (0, (1.0, 1.5))
LINES: dict[str, _Style] = {"OMP": DASHED, "GMP": DOTTED}
_MOST_TICKS = 7
STEPS = (("#4a98c9", "o"), ("#2070b4", "s"), ("#084a91", "^"), ("#000000", "D"))
SEVERAL = (
    ("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "P"), ("#5b2c00", "v"), ("#4d4d4d", "D"),
)  # fmt: skip
_PLACES = (*SEVERAL[:4], ("#e69f00", ">"), ("#56b4e9", "<"), ("#6a4c93", "X"))
NAMES = {"eval_lr": "learning rate", "find_lr": "learning rate that the mask was found with"}


def axes(ax: Axes | None) -> tuple[Axes, bool]:
    """Make Axes of a figure of their own if none are given, and say whether they were made."""
    if ax is not None:
        return ax, False
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")[1], True


def done(
    frame: pd.DataFrame, x: Sequence[str], series: Sequence[str] = ("ticket", "method", *results.VARIANT)
) -> pd.DataFrame:
    """The rows that are done, refused if a point would mix what is not a replicate of the same."""
    rows = frame[frame["status"] == "done"]
    if rows.empty:
        raise ValueError(f"nothing to draw: none of {len(frame)} rows is done")
    for column in ("study", "what", "metric"):
        if column in rows and rows[column].nunique() > 1:
            raise ValueError(f"rows differ in {column}: {', '.join(sorted(rows[column].unique()))}; choose one")
    point = [name for name in (*x, *series, "replicate") if name in rows]
    same = next((own for _, own in rows.groupby(point, dropna=False) if len(own) > 1), None)
    if same is not None:
        place = ", ".join(f"{name} {same[name].iloc[0]}" for name in point)
        texts = same.drop(columns=["key", "value"], errors="ignore").map(str)
        differ = [str(name) for name in texts if texts[name].nunique() > 1]
        raise ValueError(f"several rows for one point ({place}); they differ in: {', '.join(differ) or 'nothing'}")
    return rows


def spread(count: int, most: int) -> list[int]:
    """Choose at most so many of a number of places, spread evenly, the last among them."""
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def percent(frame: pd.DataFrame) -> pd.DataFrame:
    """Bring values from shares to percent."""
    return frame.assign(value=100 * frame["value"])


def level(ax: Axes, dense: pd.DataFrame) -> None:
    """Draw dense networks as a level with its interval."""
    if dense.empty:
        return
    (cell,) = results.summarise(dense, ["ticket"]).to_dict("records")
    ax.axhspan(cell["low"], cell["high"], color=COLOURS["dense"], alpha=0.18, linewidth=0, zorder=0)
    ax.axhline(cell["mean"], color=COLOURS["dense"], linewidth=1.1, zorder=1, label="dense, with its interval")


def chance(ax: Axes, done: pd.DataFrame, x: str | None = None) -> None:
    """Draw the chance level of a measure; that of each place, where it differs by a column."""
    look: dict[str, Any] = {"color": "#4d4d4d", "linestyle": ":", "linewidth": 1.3, "zorder": 1}
    if x is None:
        ax.axhline(done["chance"].mean(), label="chance level", **look)
    else:
        means = done.groupby(x)["chance"].mean()
        ax.plot(means.index, means, label="chance level", **look)


def accuracy_axis(ax: Axes) -> None:
    """Frame the means, so that an interval much wider than they lie apart does not flatten all others."""
    ax.set_ylabel("test accuracy (%)")
    means = np.concatenate([heights(item) for item in drawn(ax)])
    ends = [value for item in drawn(ax) for value in reaches(item)] or list(means)
    low, high = means.min(), means.max()
    around = max(0.4 * (high - low), 2.0)
    bottom, top = max(min(ends), low - around, 0.0), min(max(ends), high + around, 100.0)
    margin = 0.04 * (top - bottom) + 0.05
    ax.set_ylim(bottom - margin, top + margin)


def drawn(ax: Axes) -> list[ErrorbarContainer]:
    """List the series that Axes show."""
    return [item for item in ax.containers if isinstance(item, ErrorbarContainer)]


def heights(item: ErrorbarContainer) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Read the means of a series."""
    line = item.lines[0]
    return np.asarray([] if line is None else line.get_ydata(orig=False), dtype=float)


def reaches(item: ErrorbarContainer) -> list[float]:
    """Where the intervals of a series end."""
    values = [value for bars in item.lines[2] for segment in bars.get_segments() for _, value in segment]
    return [float(value) for value in values if np.isfinite(value)]


def indicator_axis(ax: Axes) -> None:
    """Name the axis of the correlation indicator, from 0 on."""
    ax.set_ylabel("correlation indicator Rₚ")
    ax.set_ylim(bottom=0)


def series(
    ax: Axes,
    done: pd.DataFrame,
    x: str,
    place: Callable[["pd.Series[float]"], "pd.Series[float]"],
    dots: bool = False,
    linear: bool = False,
) -> None:
    """Draw one line per kind of ticket and mask, moved a little sideways so that intervals do not hide each other.

    What is moved is multiplied, as suits a logarithmic axis, or added to if the axis is linear.
    """
    if done.empty:
        return
    names = ["ticket", "method", "variant"]
    labelled = done.assign(**{name: done[name].fillna("") if name in done else "" for name in names[:2]})
    labelled = labelled.assign(variant=variants(labelled))
    cells = results.summarise(labelled, [*names, x]).sort_values(x)
    found = sorted(set(zip(*(cells[name] for name in names), strict=True)), key=_rank)
    kinds: dict[tuple[str, str], list[str]] = {}
    for ticket, method, variant in found:
        kinds.setdefault((ticket, method), []).append(variant)
    apart = min(0.035, 0.2 / len(found))
    span = np.ptp(cells[x]) / 3 if linear else 0.0
    for number, (ticket, method, variant) in enumerate(found):
        own, points = (
            rows[(rows["ticket"] == ticket) & (rows["method"] == method) & (rows["variant"] == variant)]
            for rows in (cells, labelled)
        )
        at = number - (len(found) - 1) / 2
        factor, term = (1.0, apart * at * span) if linear else ((1 + apart) ** at, 0.0)
        colour = COLOURS.get(ticket, _OTHER_COLOUR if method == "OMP" else COLOURS["LT"])
        marker = _MARKERS.get(ticket, "s" if method == "OMP" else "o")
        others = kinds[ticket, method]
        if len(others) > 1:
            nth = others.index(variant)
            colour, marker = _lighter(colour, 0.6 * nth / (len(others) - 1)), VARIED[nth % len(VARIED)]
        name = f"{ticket} on {'permuted ' if ticket == 'RT' else ''}{method} masks" if method else ticket
        name += f" ({variant})" if variant else ""
        line(ax, place(own[x]) * factor + term, own, name, colour, marker, LINES.get(method, "-"))
        if dots:
            ax.plot(
                place(points[x]) * factor + term, points["value"], ".", color=colour, alpha=0.4, markersize=4, zorder=2
            )


def sources(ax: Axes, done: pd.DataFrame, dots: bool = False) -> None:
    """Draw one line per source of tickets, each in the colour that it has in every drawing of the network."""
    own = done.assign(variant=variants(done)).fillna({"found_on": "", "method": "", "source_number": -1})
    several = own["method"].nunique() > 1
    cells = own.groupby(["source_number", "found_on", "method", "variant"])
    kinds: list[tuple[Any, pd.DataFrame]] = list(cells)
    for place, ((number, found_on, method, variant), points) in enumerate(kinds):
        shift = 1.02 ** (place - (cells.ngroups - 1) / 2)
        colour, marker = (COLOURS["RT"], _MARKERS["RT"]) if number < 0 else _PLACES[int(number) % len(_PLACES)]
        label = f"ticket found on {found_on}" if found_on else "random ticket"
        label += f", {method} masks" * several + f" ({variant})" * bool(variant)
        alike = list(own.loc[own["source_number"] == number, "variant"].unique())
        style = DOTTED if number < 0 else (LINES.get(method, "-"), DASHED)[alike.index(variant) % 2]
        means = results.summarise(points, ["sparsity"])
        line(ax, remaining(means["sparsity"]) * shift, means, label, colour, marker, style)
        if dots:
            places = remaining(points["sparsity"]) * shift
            ax.plot(places, points["value"], ".", color=colour, alpha=0.4, markersize=4, zorder=2)


def variants(frame: pd.DataFrame) -> "pd.Series[str]":
    """Say of each row what tells it from others of its ticket and method; '' where there is nothing.

    Parameters
    ----------
    frame : DataFrame
        Tidy rows.
    """
    texts = np.full(len(frame), "", dtype=object)
    for places in frame.groupby(["ticket", "method"], dropna=False).indices.values():
        rows = frame.iloc[places]
        differ = [name for name in results.VARIANT if name in rows and rows[name].map(str).nunique() > 1]
        told = [", ".join(filter(None, map(_worded, differ, row))) for row in rows[differ].itertuples(index=False)]
        texts[places] = told
    return pd.Series(texts, frame.index)


def varies(frame: pd.DataFrame, name: str) -> bool:
    """Whether a column tells rows apart; of what tells tickets of one kind apart, nothing is a value too."""
    kinds = [kind for kind in ("ticket", "method") if kind in frame]
    if name in results.VARIANT and kinds:
        return bool(frame.groupby(kinds, dropna=False)[name].nunique(dropna=False).gt(1).any())
    return bool(frame[name].nunique() > 1)


def _worded(column: str, value: Any) -> str:
    """Put what tells tickets apart into words."""
    if column == "rewind":
        return "fresh weights" if pd.isna(value) else f"weights of {value}"
    if pd.isna(value):
        return ""
    before = {"prune_at": "ranked at ", "layer_counts": "layer counts of "}.get(column, "")
    return before + str(_SCOPES.get(str(value), value))


def _lighter(colour: str, share: float) -> str:
    """Mix a colour with white."""
    parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(part + share * (255 - part)):02x}" for part in parts)


def line(
    ax: Axes, x: "pd.Series[float]", own: pd.DataFrame, label: str, colour: str, marker: str, style: _Style
) -> None:
    """Draw means with their intervals."""
    ax.errorbar(
        x,
        own["mean"],
        yerr=[own["mean"] - own["low"], own["high"] - own["mean"]],
        color=colour,
        linestyle=style,
        marker=marker,
        markerfacecolor=colour if style == "-" else "white",
        markersize=4.6,
        linewidth=1.2,
        elinewidth=1,
        capsize=2.2,
        label=label,
        zorder=3,
    )


def remaining(sparsity: "pd.Series[float]") -> "pd.Series[float]":
    """Turn sparsities into what remains, in percent."""
    return 100 * (1 - sparsity)


def _rank(name: tuple[str, ...]) -> tuple[int, ...]:
    known = [*TICKETS, *METHODS]
    return tuple(known.index(part) if part in known else len(known) for part in name)


def sparsity_axis(ax: Axes, done: pd.DataFrame) -> None:
    """Name the horizontal axis by what remains and by levels, denser to the left; bare where nothing is pruned."""
    if done.empty:
        ax.set_xticks([])
        ax.set_xlabel("nothing is pruned")
        return
    cells = done.drop_duplicates("sparsity").sort_values("sparsity")
    remaining = 100 * (1 - cells["sparsity"])
    level = ["" if pd.isna(k) else f"\n{int(k)}" for k in cells["level"]]
    log_axis(ax, remaining, [f"{share:.3g}{k}" for share, k in zip(remaining, level, strict=True)])
    ax.invert_xaxis()
    ax.set_xlabel(f"{results.unit(done)} remaining (%)" + ("\nand pruning level" if any(level) else ""))


def difference_axis(ax: Axes, done: pd.DataFrame) -> None:
    """Name both axes of differences against what remains."""
    ax.axhline(0, color="#4d4d4d", linewidth=0.9, zorder=1)
    sparsity_axis(ax, done)
    names = ", ".join(map(str, done["ticket"].unique())) if "ticket" in done else "difference"
    ax.set_ylabel(f"{names} (percentage points)")


def lr_axis(ax: Axes, done: pd.DataFrame, column: str = "eval_lr") -> None:
    """Name the horizontal axis by learning rates, logarithmic."""
    rates = sorted(done[column].unique())
    log_axis(ax, rates, [f"{rate:g}" for rate in rates])
    ax.set_xlabel(NAMES[column])


def number_axis(ax: Axes, numbers: "pd.Series[Any]") -> None:
    """Name at most ten of the numbers on a linear horizontal axis."""
    found = sorted(numbers.unique())
    some = found[:: -(-len(found) // 10)]
    ax.set_xticks(some, [f"{number:g}" for number in some])
    plain(ax)


def log_axis(ax: Axes, places: Iterable[float], labels: Sequence[str]) -> None:
    """Make the horizontal axis logarithmic, with labels at some of the places, the last among them."""
    at = np.asarray(list(places), dtype=float)
    logs = np.log(at)
    apart = (1 - 1e-9) * np.ptp(logs) / (_MOST_TICKS - 1)
    named = [len(at) - 1]  # the last is always named, others where there is room
    for i in reversed(range(len(at))):
        if abs(logs[i] - logs[named[0]]) >= apart > 0:
            named.insert(0, i)
    ax.set_xscale("log")
    ax.set_xlim(at.min() / 1.35, at.max() * 1.35)
    ax.set_xticks(at[named], [labels[i] for i in named])
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    plain(ax)


def plain(ax: Axes) -> None:
    """Leave horizontal grid lines and two spines."""
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
