"""Tidy frames drawn on matplotlib Axes, and put into words."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from lthlab import results

CELL = [
    *results.PANEL, "facet", "series", "what", "trained_on", "ticket", "found_on", "method", *results.VARIANT,
    "level", "sparsity", "layer", "find_lr", "eval_lr",
]  # fmt: skip
"""Columns that tell cells of a panel apart; within a cell only the replicate differs."""
TICKETS = ("dense", "LT", "WR", "LRR", "FT", "GMP", "RR", "RT", "SDT")
METHODS = ("IMP", "OMP", "GMP")
# Okabe and Ito's colours (RT's is a dark orange, GMP's a violet), which colour-blind readers tell apart; markers and
# lines say the same without colour.
_COLOURS = {
    "dense": "#4d4d4d", "LT": "#0072b2", "WR": "#009e73", "RR": "#d55e00", "RT": "#5b2c00", "SDT": "#cc79a7",
    "LRR": "#56b4e9", "FT": "#e69f00", "GMP": "#6a4c93",
}  # fmt: skip
_OTHER_COLOUR = "#8c4b85"
_MARKERS = {
    "dense": "D", "LT": "o", "WR": "^", "RR": "s", "RT": "v", "SDT": "P", "LRR": "<", "FT": ">", "GMP": "X",
}  # fmt: skip
_VARIED = "os^vDP<>X"
_SOURCES = ("ticket", "method", *results.VARIANT, "found_on")
_SCOPES = {"layer": "permuted within layers", "global": "permuted globally", "even": "the same share of every layer"}
_Style = str | tuple[float, tuple[float, float]]
_DASHED: _Style = (0, (4.0, 2.0))
_DOTTED: _Style = (0, (1.0, 1.5))
_LINES: dict[str, _Style] = {"OMP": _DASHED, "GMP": _DOTTED}
_MOST_TICKS = 7
_STEPS = (("#4a98c9", "o"), ("#2070b4", "s"), ("#084a91", "^"), ("#000000", "D"))
_SEVERAL = (
    ("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "P"), ("#5b2c00", "v"), ("#4d4d4d", "D"),
)  # fmt: skip
_PLACES = (*_SEVERAL[:4], ("#e69f00", ">"), ("#56b4e9", "<"), ("#6a4c93", "X"))
_NAMES = {"eval_lr": "learning rate", "find_lr": "learning rate that the mask was found with"}


def accuracy_by_sparsity(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw test accuracy against the weights that remain, with the dense networks as a level.

    Parameters
    ----------
    frame : DataFrame
        Tidy rows of trainings at one learning rate, dense ones included.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Accuracy in %; sparse networks at 1 - sparsity in % on a logarithmic axis, denser to the left.
        Means with the interval of `lthlab.results.summarise`.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = _axes(ax)
    done = _percent(_done(frame, ["sparsity"]))
    dense = done["ticket"] == "dense"
    _level(ax, done[dense])
    _series(ax, done[~dense], "sparsity", _remaining)
    _sparsity_axis(ax, done[~dense])
    _accuracy_axis(ax)
    return legend(ax) if alone else ax


def accuracy_by_lr(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw test accuracy against the learning rate that tickets are trained with.

    Parameters
    ----------
    frame : DataFrame
        Tidy rows of trainings at one sparsity, and of dense ones.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Accuracy in %, learning rate on a logarithmic axis; means with intervals.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = _axes(ax)
    done = _percent(_done(frame, ["eval_lr"]))
    _series(ax, done, "eval_lr", lambda lr: lr)
    _lr_axis(ax, done)
    _accuracy_axis(ax)
    return legend(ax) if alone else ax


def series_by_sparsity(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw test accuracy against the weights that remain, one line per name in the column `series`.

    Parameters
    ----------
    frame : DataFrame
        Tidy rows of trainings; the column `order` numbers the lines, for their colours. Those of random tickets (RT,
        RR) are dashed.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Accuracy in %; weights that remain in % on a logarithmic axis, denser to the left; means with intervals.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = _axes(ax)
    done = _percent(_done(frame, ["sparsity"], ["series"]))
    lines = sorted(set(zip(done["order"], done["series"], strict=True)))
    for place, (number, name) in enumerate(lines):
        own = done[done["series"] == name]
        random = own["ticket"].isin(["RT", "RR"]).any()
        colour, marker = (_COLOURS["RT"], "v") if random else _SEVERAL[number % len(_SEVERAL)]
        cells = results.summarise(own, ["sparsity"]).sort_values("sparsity")
        shift = 1.02 ** (place - (len(lines) - 1) / 2)
        _line(ax, _remaining(cells["sparsity"]) * shift, cells, name, colour, marker, _DASHED if random else "-")
    _sparsity_axis(ax, done)
    _accuracy_axis(ax)
    return legend(ax) if alone else ax


def difference_by_sparsity(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw paired differences in accuracy against the weights that remain, each pair as a dot.

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.results.differences` returns for one learning rate, by method, level and sparsity; an
        optional column `ticket` says what was subtracted.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Differences in percentage points; weights that remain in % on a logarithmic axis, denser to the left.

    Raises
    ------
    ValueError
        If there are no pairs, or rows differ in more than what is drawn.
    """
    ax, alone = _axes(ax)
    done = _percent(_done(frame, ["sparsity"]))
    _series(ax, done, "sparsity", _remaining, dots=True)
    _difference_axis(ax, done)
    return legend(ax) if alone else ax


def accuracy_by_source(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw test accuracy against the weights that remain, one line per source of tickets (Morcos Figs. 2 to 5).

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.transfer.rows` returns, for one network and what it is trained on.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Accuracy in %, as `accuracy_by_sparsity`; the random ticket is a line and the dense network a level.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = _axes(ax)
    done = _percent(_done(frame, ["sparsity"], _SOURCES))
    dense = done["ticket"] == "dense"
    _level(ax, done[dense])
    _sources(ax, done[~dense])
    _sparsity_axis(ax, done[~dense])
    _accuracy_axis(ax)
    return legend(ax) if alone else ax


def difference_by_source(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw paired differences in accuracy against the weights that remain, one line per source of tickets.

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.transfer.differences` returns, for one network and what it is trained on.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Differences in percentage points, as `difference_by_sparsity`.

    Raises
    ------
    ValueError
        If there are no pairs, or rows differ in more than what is drawn.
    """
    ax, alone = _axes(ax)
    done = _percent(_done(frame, ["sparsity"], _SOURCES))
    _sources(ax, done, dots=True)
    _difference_axis(ax, done)
    return legend(ax) if alone else ax


def correlation_by_lr(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the correlation indicator R_p against the learning rate, with its chance level.

    Parameters
    ----------
    frame : DataFrame
        Tidy rows of the measure 'correlation_indicator' at one sparsity, and of dense networks.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        R_p in [0, 1], learning rate on a logarithmic axis; means with intervals.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = _axes(ax)
    done = _done(frame, ["eval_lr"])
    _chance(ax, done)
    _series(ax, done, "eval_lr", lambda lr: lr)
    _lr_axis(ax, done)
    _indicator_axis(ax)
    return legend(ax) if alone else ax


def correlation_by_sparsity(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the correlation indicator R_p against the weights that remain, with chance and the dense networks as levels.

    Parameters
    ----------
    frame : DataFrame
        Tidy rows of the measure 'correlation_indicator' at one learning rate, dense networks included.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        R_p in [0, 1]; weights that remain in % on a logarithmic axis, denser to the left.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = _axes(ax)
    done = _done(frame, ["sparsity"])
    _chance(ax, done)
    dense = done["ticket"] == "dense"
    _level(ax, done[dense])
    _series(ax, done[~dense], "sparsity", _remaining)
    _sparsity_axis(ax, done[~dense])
    _indicator_axis(ax)
    return legend(ax) if alone else ax


def layer_ratios(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the share of every layer that masks prune, in network order (the LPR of Lan).

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.results.layers` returns, for masks found at one learning rate.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Shares in % by number of the layer; means with intervals. At most four of the levels that all methods have,
        spread evenly, the sparsest among them.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = _axes(ax)
    told = variants(frame.assign(ticket=frame["method"]))
    names = frame["method"] + " masks" + told.map(lambda text: f" ({text})" if text else "")
    done = _percent(_done(frame.assign(method=names), ["layer", "level"]))
    common = set.intersection(*(set(rows["level"]) for _, rows in done.groupby("method")))
    levels = sorted(common or set(done["level"]))
    chosen = [levels[i] for i in sorted({round(j * (len(levels) - 1) / 3) for j in range(len(_STEPS))})]
    by = ["method", "level", "sparsity", "number"]
    cells = results.summarise(done[done["level"].isin(chosen)], by)
    for (method, level), own in cells.groupby(["method", "level"]):
        colour, marker = _STEPS[-len(chosen) :][chosen.index(level)]
        label = f"{method}, level {level} ({100 * (1 - own['sparsity'].iloc[0]):.3g} % left)"
        base = str(method)[:3]
        alike = sorted(name for name in cells["method"].unique() if name.startswith(base)).index(method)
        style = (_LINES.get(base, "-"), _DOTTED, _DASHED)[alike % 3]
        _line(ax, own["number"], own, label, colour, marker, style)
    numbers = sorted(done["number"].unique())
    step = -(-len(numbers) // 10)
    ax.set_xticks(numbers[::step], [f"{number}" for number in numbers[::step]])
    ax.set_xlabel("prunable layer, from the input")
    ax.set_ylabel("weights pruned (%)")
    ax.set_ylim(0, 100)
    _plain(ax)
    return legend(ax) if alone else ax


def sparsity_by_redundancy(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the largest sparsity with a ticket against parameters per training image (Ma 3.2, statement 3).

    Parameters
    ----------
    frame : DataFrame
        Rows of panels with redundancy, sparsity in [0, 1) and connections, as `lthlab.guidelines.evidence` makes them.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Sparsity in %; parameters per training image on a logarithmic axis.
    """
    ax, alone = _axes(ax)
    kinds = frame["connections"].fillna("residual connections not known")
    for (colour, marker), kind in zip(_SEVERAL, sorted(kinds.unique()), strict=False):
        own = frame[kinds == kind].sort_values("redundancy")
        ax.errorbar(own["redundancy"], 100 * own["sparsity"], fmt=marker, color=colour, markersize=6, label=kind)
    ax.set_xscale("log")
    ax.set_ylim(-4, 104)
    ax.set_xlabel("parameters per training image")
    ax.set_ylabel("largest sparsity with a ticket (%)")
    _plain(ax)
    return legend(ax) if alone else ax


def means(frame: pd.DataFrame, x: str, hue: str, ax: Axes | None = None) -> Axes:
    """Draw means of `value` against any column, one line per value of another.

    Parameters
    ----------
    frame : DataFrame
        Tidy rows of one metric, which differ in x, hue and the replicate alone.
    x : str
        Column of numbers; for 'sparsity' the weights that remain are drawn.
    hue : str
        Column, or 'ticket and mask'.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Accuracies in %, others as they are; means with intervals.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = _axes(ax)
    masks = hue == "ticket and mask"
    done = _done(frame, [x], ("ticket", "method", *results.VARIANT) if masks else (hue,))
    metric = done["metric"].iloc[0]
    done = _percent(done) if metric == "test_accuracy" else done
    if masks:
        _series(ax, done, x, _remaining if x == "sparsity" else lambda values: values)
    else:
        for number, value in enumerate(sorted(done[hue].dropna().unique())):
            own = results.summarise(done[done[hue] == value], [x]).sort_values(x)
            colour, marker = _SEVERAL[number % len(_SEVERAL)]
            name = f"{_NAMES.get(hue, hue.replace('_', ' '))} {value:.6g}" if np.isreal(value) else str(value)
            places = _remaining(own[x]) if x == "sparsity" else own[x]
            _line(ax, places, own, name, colour, marker, _DASHED if number >= len(_SEVERAL) else "-")
    if x == "sparsity":
        _sparsity_axis(ax, done)
    elif x.endswith("_lr"):
        _lr_axis(ax, done, x)
    else:
        ax.set_xlabel(_NAMES.get(x, x.replace("_", " ")))
        _plain(ax)
    if metric == "test_accuracy":
        _accuracy_axis(ax)
    else:
        ax.set_ylabel(str(metric).replace("_", " "))
    return legend(ax) if alone else ax


def legend(ax: Axes) -> Axes:
    """Name what an Axes shows in a legend to the right of the data."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0, frameon=False)
    return ax


def caption(frame: pd.DataFrame, confidence: float = 0.95) -> str:
    """Say how many replicates, which estimator and which interval figures of a frame show.

    Parameters
    ----------
    frame : DataFrame
        Rows as they are drawn.
    confidence : float, optional
        Coverage of the interval, as in `lthlab.results.summarise`.
    """
    text = f"Points are means over {sample_size(frame)}"
    most = _counts(frame).max() if (frame["status"] == "done").any() else 0
    interval = f"bars are {100 * confidence:g} % intervals of the mean (Student's t)"
    text += f"; {interval}." if most > 1 else "; one replicate gives no interval."
    if "epoch" in frame and frame["epoch"].notna().any():
        epochs = sorted(int(epoch) for epoch in frame["epoch"].dropna().unique())
        text += f" Accuracy on the test set after epoch {_span(epochs)}."
    return text


def sample_size(frame: pd.DataFrame) -> str:
    """Say how many replicates are done in each cell, such as 'n = 6 replicates' or 'n = 4 to 6 replicates'."""
    counts = _counts(frame) if (frame["status"] == "done").any() else [0]
    return f"n = {_span(sorted(set(counts)))} replicate" + ("" if max(counts) == 1 else "s")


def cut(ax: Axes) -> bool:
    """Tell whether an interval leaves the frame of an Axes."""
    low, high = ax.get_ylim()
    ends = [value for item in _drawn(ax) for value in _ends(item)]
    return bool(ends) and (min(ends) < low or max(ends) > high)


def describe(ax: Axes) -> str:
    """Put into words what an Axes shows: what against what, the range, and the trend of each series.

    Parameters
    ----------
    ax : Axes
        Drawn by a function of this module.

    Returns
    -------
    str
        An alternative text for readers who do not see the figure.
    """
    x, y = (label.replace("Rₚ", "R_p").partition("\n")[0] for label in (ax.get_xlabel(), ax.get_ylabel()))
    series = _drawn(ax)
    ys = [_means(item) for item in series]
    lines = {str(line.get_label()): line for line in ax.lines if not str(line.get_label()).startswith("_")}
    title = f"{ax.get_title()}. ".replace("\n", " ") if ax.get_title() else ""
    lowest, highest = min(values.min() for values in ys), max(values.max() for values in ys)
    text = f"{title}Line chart of {y} against {x}; means range from {lowest:.3g} to {highest:.3g}. "
    trends = [f"{item.get_label()} {_trend(values)}" for item, values in zip(series, ys, strict=True)]
    levels = [f"{name} is at {np.mean(np.asarray(line.get_ydata())):.3g}" for name, line in lines.items()]
    return text + "; ".join(trends + levels) + "."


# --- parts of a drawing ---------------------------------------------------------------------------------------


def _axes(ax: Axes | None) -> tuple[Axes, bool]:
    if ax is not None:
        return ax, False
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")[1], True


def _done(
    frame: pd.DataFrame, x: Sequence[str], series: Sequence[str] = ("ticket", "method", *results.VARIANT)
) -> pd.DataFrame:
    """The rows that are done, refused if a point would mix what is not a replicate of the same."""
    done = frame[frame["status"] == "done"]
    if done.empty:
        raise ValueError(f"nothing to draw: none of {len(frame)} rows is done")
    for column in ("study", "what", "metric"):
        if column in done and done[column].nunique() > 1:
            raise ValueError(f"rows differ in {column}: {', '.join(sorted(done[column].unique()))}; choose one")
    point = [name for name in (*x, *series, "replicate") if name in done]
    same = next((rows for _, rows in done.groupby(point, dropna=False) if len(rows) > 1), None)
    if same is not None:
        place = ", ".join(f"{name} {same[name].iloc[0]}" for name in point)
        texts = same.drop(columns=["key", "value"], errors="ignore").map(str)
        differ = [str(name) for name in texts if texts[name].nunique() > 1]
        raise ValueError(f"several rows for one point ({place}); they differ in: {', '.join(differ) or 'nothing'}")
    return done


def _percent(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(value=100 * frame["value"])


def _counts(frame: pd.DataFrame) -> "pd.Series[int]":
    return results.summarise(frame, [name for name in CELL if name in frame])["n"]


def _span(values: Sequence[int]) -> str:
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _level(ax: Axes, dense: pd.DataFrame) -> None:
    """Draw dense networks as a level with its interval."""
    if dense.empty:
        return
    (cell,) = results.summarise(dense, ["ticket"]).to_dict("records")
    ax.axhspan(cell["low"], cell["high"], color=_COLOURS["dense"], alpha=0.18, linewidth=0, zorder=0)
    ax.axhline(cell["mean"], color=_COLOURS["dense"], linewidth=1.1, zorder=1, label="dense, with its interval")


def _chance(ax: Axes, done: pd.DataFrame) -> None:
    chance = done["chance"].mean()
    ax.axhline(chance, color="#4d4d4d", linestyle=":", linewidth=1.3, zorder=1, label="chance level")


def _accuracy_axis(ax: Axes) -> None:
    """Frame the means, so that an interval much wider than they lie apart does not flatten all others."""
    ax.set_ylabel("test accuracy (%)")
    means = np.concatenate([_means(item) for item in _drawn(ax)])
    ends = [value for item in _drawn(ax) for value in _ends(item)] or list(means)
    low, high = means.min(), means.max()
    around = max(0.4 * (high - low), 2.0)
    bottom, top = max(min(ends), low - around, 0.0), min(max(ends), high + around, 100.0)
    margin = 0.04 * (top - bottom) + 0.05
    ax.set_ylim(bottom - margin, top + margin)


def _drawn(ax: Axes) -> list[ErrorbarContainer]:
    return [item for item in ax.containers if isinstance(item, ErrorbarContainer)]


def _means(item: ErrorbarContainer) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    line = item.lines[0]
    return np.asarray([] if line is None else line.get_ydata(orig=False), dtype=float)


def _ends(item: ErrorbarContainer) -> list[float]:
    """Where the intervals of a series end."""
    values = [value for bars in item.lines[2] for segment in bars.get_segments() for _, value in segment]
    return [float(value) for value in values if np.isfinite(value)]


def _indicator_axis(ax: Axes) -> None:
    ax.set_ylabel("correlation indicator Rₚ")
    ax.set_ylim(bottom=0)


def _series(
    ax: Axes, done: pd.DataFrame, x: str, place: Callable[["pd.Series[float]"], "pd.Series[float]"], dots: bool = False
) -> None:
    """Draw one line per kind of ticket and mask, moved a little sideways so that intervals do not hide each other."""
    names = ["ticket", "method", "variant"]
    labelled = done.assign(**{name: done[name].fillna("") if name in done else "" for name in names[:2]})
    labelled = labelled.assign(variant=variants(labelled))
    cells = results.summarise(labelled, [*names, x]).sort_values(x)
    found = sorted(set(zip(*(cells[name] for name in names), strict=True)), key=_rank)
    kinds: dict[tuple[str, str], list[str]] = {}
    for ticket, method, variant in found:
        kinds.setdefault((ticket, method), []).append(variant)
    apart = min(0.035, 0.2 / len(found))
    for number, (ticket, method, variant) in enumerate(found):
        own, points = (
            rows[(rows["ticket"] == ticket) & (rows["method"] == method) & (rows["variant"] == variant)]
            for rows in (cells, labelled)
        )
        shift = (1 + apart) ** (number - (len(found) - 1) / 2)
        colour = _COLOURS.get(ticket, _OTHER_COLOUR if method == "OMP" else _COLOURS["LT"])
        marker = _MARKERS.get(ticket, "s" if method == "OMP" else "o")
        others = kinds[ticket, method]
        if len(others) > 1:
            at = others.index(variant)
            colour, marker = _lighter(colour, 0.6 * at / (len(others) - 1)), _VARIED[at % len(_VARIED)]
        name = f"{ticket} on {'permuted ' if ticket == 'RT' else ''}{method} masks" if method else ticket
        name += f" ({variant})" if variant else ""
        _line(ax, place(own[x]) * shift, own, name, colour, marker, _LINES.get(method, "-"))
        if dots:
            ax.plot(place(points[x]) * shift, points["value"], ".", color=colour, alpha=0.4, markersize=4, zorder=2)


def _sources(ax: Axes, done: pd.DataFrame, dots: bool = False) -> None:
    """Draw one line per source of tickets, each in the colour that it has in every drawing of the network."""
    own = done.assign(variant=variants(done)).fillna({"found_on": "", "method": "", "source_number": -1})
    several = own["method"].nunique() > 1
    cells = own.groupby(["source_number", "found_on", "method", "variant"])
    kinds: list[tuple[Any, pd.DataFrame]] = list(cells)
    for place, ((number, found_on, method, variant), points) in enumerate(kinds):
        shift = 1.02 ** (place - (cells.ngroups - 1) / 2)
        colour, marker = (_COLOURS["RT"], _MARKERS["RT"]) if number < 0 else _PLACES[int(number) % len(_PLACES)]
        label = f"ticket found on {found_on}" if found_on else "random ticket"
        label += f", {method} masks" * several + f" ({variant})" * bool(variant)
        alike = list(own.loc[own["source_number"] == number, "variant"].unique())
        style = _DOTTED if number < 0 else (_LINES.get(method, "-"), _DASHED)[alike.index(variant) % 2]
        line = results.summarise(points, ["sparsity"])
        _line(ax, _remaining(line["sparsity"]) * shift, line, label, colour, marker, style)
        if dots:
            places = _remaining(points["sparsity"]) * shift
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


def _line(
    ax: Axes, x: "pd.Series[float]", own: pd.DataFrame, label: str, colour: str, marker: str, style: _Style
) -> None:
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


def _remaining(sparsity: "pd.Series[float]") -> "pd.Series[float]":
    return 100 * (1 - sparsity)


def _rank(name: tuple[str, ...]) -> tuple[int, ...]:
    known = [*TICKETS, *METHODS]
    return tuple(known.index(part) if part in known else len(known) for part in name)


def _sparsity_axis(ax: Axes, done: pd.DataFrame) -> None:
    cells = done.drop_duplicates("sparsity").sort_values("sparsity")
    remaining = 100 * (1 - cells["sparsity"])
    level = ["" if pd.isna(k) else f"\n{int(k)}" for k in cells["level"]]
    _log_axis(ax, remaining, [f"{share:.3g}{k}" for share, k in zip(remaining, level, strict=True)])
    ax.invert_xaxis()
    ax.set_xlabel("prunable weights remaining (%)" + ("\nand pruning level" if any(level) else ""))


def _difference_axis(ax: Axes, done: pd.DataFrame) -> None:
    ax.axhline(0, color="#4d4d4d", linewidth=0.9, zorder=1)
    _sparsity_axis(ax, done)
    names = ", ".join(map(str, done["ticket"].unique())) if "ticket" in done else "difference"
    ax.set_ylabel(f"{names} (percentage points)")


def _lr_axis(ax: Axes, done: pd.DataFrame, column: str = "eval_lr") -> None:
    rates = sorted(done[column].unique())
    _log_axis(ax, rates, [f"{rate:g}" for rate in rates])
    ax.set_xlabel(_NAMES[column])


def _log_axis(ax: Axes, places: Iterable[float], labels: Sequence[str]) -> None:
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
    _plain(ax)


def _plain(ax: Axes) -> None:
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _trend(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> str:
    first, last = values[0], values[-1]
    if len(values) == 1:
        return f"is at {first:.3g}"
    steps = np.diff(values)
    if (steps < 0).all() or (steps > 0).all():
        return f"{'falls' if last < first else 'rises'} from {first:.3g} to {last:.3g}"
    return f"goes from {first:.3g} to {last:.3g}, between {values.min():.3g} and {values.max():.3g}"
