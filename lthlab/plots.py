"""Tidy frames drawn on matplotlib Axes, and put into words."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from lthlab import results, strokes

CELL = [
    *results.PANEL, "facet", "series", "what", "trained_on", "ticket", "found_on", "method", *results.VARIANT,
    "level", "sparsity", "layer", "find_lr", "eval_lr", "reading", "p", "measured_at", "images",
]  # fmt: skip
"""Columns that tell cells of a panel apart; within a cell only the replicate differs."""


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
    ax, alone = strokes.axes(ax)
    done = strokes.percent(strokes.done(frame, ["sparsity"]))
    dense = done["ticket"] == "dense"
    strokes.level(ax, done[dense])
    strokes.series(ax, done[~dense], "sparsity", strokes.remaining)
    strokes.sparsity_axis(ax, done[~dense])
    strokes.accuracy_axis(ax)
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
    ax, alone = strokes.axes(ax)
    done = strokes.percent(strokes.done(frame, ["eval_lr"]))
    strokes.series(ax, done, "eval_lr", lambda lr: lr)
    strokes.lr_axis(ax, done)
    strokes.accuracy_axis(ax)
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
    ax, alone = strokes.axes(ax)
    done = strokes.percent(strokes.done(frame, ["sparsity"], ["series"]))
    lines = sorted(set(zip(done["order"], done["series"], strict=True)))
    for place, (number, name) in enumerate(lines):
        own = done[done["series"] == name]
        random = own["ticket"].isin(["RT", "RR"]).any()
        colour, marker = (strokes.COLOURS["RT"], "v") if random else strokes.SEVERAL[number % len(strokes.SEVERAL)]
        cells = results.summarise(own, ["sparsity"]).sort_values("sparsity")
        shift = 1.02 ** (place - (len(lines) - 1) / 2)
        strokes.line(
            ax,
            strokes.remaining(cells["sparsity"]) * shift,
            cells,
            name,
            colour,
            marker,
            strokes.DASHED if random else "-",
        )
    strokes.sparsity_axis(ax, done)
    strokes.accuracy_axis(ax)
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
    ax, alone = strokes.axes(ax)
    done = strokes.percent(strokes.done(frame, ["sparsity"]))
    strokes.series(ax, done, "sparsity", strokes.remaining, dots=True)
    strokes.difference_axis(ax, done)
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
    ax, alone = strokes.axes(ax)
    done = strokes.percent(strokes.done(frame, ["sparsity"], strokes.SOURCES))
    dense = done["ticket"] == "dense"
    strokes.level(ax, done[dense])
    strokes.sources(ax, done[~dense])
    strokes.sparsity_axis(ax, done[~dense])
    strokes.accuracy_axis(ax)
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
    ax, alone = strokes.axes(ax)
    done = strokes.percent(strokes.done(frame, ["sparsity"], strokes.SOURCES))
    strokes.sources(ax, done, dots=True)
    strokes.difference_axis(ax, done)
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
    ax, alone = strokes.axes(ax)
    done = strokes.done(frame, ["eval_lr"])
    strokes.chance(ax, done)
    strokes.series(ax, done, "eval_lr", lambda lr: lr)
    strokes.lr_axis(ax, done)
    strokes.indicator_axis(ax)
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
    ax, alone = strokes.axes(ax)
    done = strokes.done(frame, ["sparsity"])
    strokes.chance(ax, done)
    dense = done["ticket"] == "dense"
    strokes.level(ax, done[dense])
    strokes.series(ax, done[~dense], "sparsity", strokes.remaining)
    strokes.sparsity_axis(ax, done[~dense])
    strokes.indicator_axis(ax)
    return legend(ax) if alone else ax


def correlation_by_p(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the correlation indicator R_p against the share p of weights that count as large.

    Parameters
    ----------
    frame : DataFrame
        Tidy rows of the measure 'correlation_indicator' at one sparsity and learning rate, and of dense networks.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        R_p in [0, 1] and chance, which is about p; p on a logarithmic axis; means with intervals.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = strokes.axes(ax)
    done = strokes.done(frame, ["p"])
    strokes.chance(ax, done, "p")
    strokes.series(ax, done, "p", lambda p: p)
    shares = sorted(done["p"].unique())
    strokes.log_axis(ax, shares, [f"{share:g}" for share in shares])
    ax.set_xlabel("share p of the weights that counts as large")
    strokes.indicator_axis(ax)
    return legend(ax) if alone else ax


def correlation_by_epoch(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the correlation indicator R_p of initial weights and those after some epochs against the epoch.

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.correlations.over_epochs` returns, at one sparsity and learning rate.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        R_p in [0, 1], 1 at epoch 0; means with intervals.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = strokes.axes(ax)
    done = strokes.done(frame, ["measured_epoch"])
    strokes.chance(ax, done)
    strokes.series(ax, done, "measured_epoch", lambda epoch: epoch, linear=True)
    strokes.number_axis(ax, done["measured_epoch"])
    ax.set_xlabel("epoch of the trained weights")
    strokes.indicator_axis(ax)
    return legend(ax) if alone else ax


def correlation_by_layer(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the correlation indicator R_p of each layer, in network order.

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.correlations.by_layer` returns, at one sparsity and learning rate.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        R_p in [0, 1] by number of the layer, and chance, which is far from p where few weights are left.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = strokes.axes(ax)
    done = strokes.done(frame, ["number"])
    strokes.chance(ax, done, "number")
    strokes.series(ax, done, "number", lambda number: number, linear=True)
    strokes.number_axis(ax, done["number"])
    ax.set_xlabel("prunable layer, from the input")
    strokes.indicator_axis(ax)
    return legend(ax) if alone else ax


def correlation_difference(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw paired differences of the correlation indicator R_p against the learning rate.

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.correlations.contrasts` returns of one facet, at one sparsity.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Differences in [-1, 1], each pair as a dot; learning rate on a logarithmic axis; means with intervals.

    Raises
    ------
    ValueError
        If there are no pairs, or rows differ in more than what is drawn.
    """
    ax, alone = strokes.axes(ax)
    done = strokes.done(frame, ["eval_lr"])
    ax.axhline(0, color="#4d4d4d", linewidth=0.9, zorder=1)
    strokes.series(ax, done, "eval_lr", lambda lr: lr, dots=True)
    strokes.lr_axis(ax, done)
    ax.set_ylabel("difference of Rₚ")
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
    ax, alone = strokes.axes(ax)
    told = strokes.variants(frame.assign(ticket=frame["method"]))
    names = frame["method"] + " masks" + told.map(lambda text: f" ({text})" if text else "")
    done = strokes.percent(strokes.done(frame.assign(method=names), ["layer", "sparsity"]))
    common = set.intersection(*(set(rows["sparsity"]) for _, rows in done.groupby("method")))
    sparsities = sorted(common or set(done["sparsity"]))
    chosen = [sparsities[i] for i in strokes.spread(len(sparsities), len(strokes.STEPS))]
    by = ["method", "level", "sparsity", "number"]
    cells = results.summarise(done[done["sparsity"].isin(chosen)], by)
    for (method, sparsity), own in cells.groupby(["method", "sparsity"]):
        colour, marker = strokes.STEPS[-len(chosen) :][chosen.index(sparsity)]
        level = own["level"].iloc[0]
        left = f"{100 * (1 - own['sparsity'].iloc[0]):.3g} % left"
        label = f"{method}, {left}" if pd.isna(level) else f"{method}, level {level:g} ({left})"
        base = str(method)[:3]
        alike = sorted(name for name in cells["method"].unique() if name.startswith(base)).index(method)
        style = (strokes.LINES.get(base, "-"), strokes.DOTTED, strokes.DASHED)[alike % 3]
        strokes.line(ax, own["number"], own, label, colour, marker, style)
    strokes.number_axis(ax, done["number"])
    ax.set_xlabel("prunable layer, from the input")
    ax.set_ylabel("weights pruned (%)")
    ax.set_ylim(0, 100)
    return legend(ax) if alone else ax


def sparsity_by_redundancy(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the largest sparsity with a ticket against parameters per training image (Ma 3.2, statement 3).

    Parameters
    ----------
    frame : DataFrame
        Rows of panels with redundancy, sparsity in [0, 1), connections, and certain, whether the sparsity is more than
        what the means say.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Sparsity in %; parameters per training image on a logarithmic axis; open markers where it is not certain.
    """
    ax, alone = strokes.axes(ax)
    kinds = frame["connections"].fillna("residual connections not known")
    for (colour, marker), kind in zip(strokes.SEVERAL, sorted(kinds.unique()), strict=False):
        for certain, face in ((True, colour), (False, "white")):
            own = frame[(kinds == kind) & (frame["certain"] == certain)].sort_values("redundancy")
            label = kind if certain else f"{kind}, by means"
            if len(own):
                places = own["redundancy"], 100 * own["sparsity"]
                ax.errorbar(*places, fmt=marker, color=colour, markerfacecolor=face, markersize=6, label=label)
    ax.set_xscale("log")
    ax.set_ylim(-4, 104)
    ax.set_xlabel("parameters per training image")
    ax.set_ylabel("largest sparsity with a ticket (%)")
    strokes.plain(ax)
    return legend(ax) if alone else ax


def ours_by_papers(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw numbers of ours against those that papers print.

    Parameters
    ----------
    frame : DataFrame
        Rows in percent: value (the paper's), ours, low and high (NaN with one replicate), and kind, text of a series.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Both axes alike, in %, with the line on which numbers agree.
    """
    ax, alone = strokes.axes(ax)
    ends = [column.dropna() for column in (frame["value"], frame["ours"], frame["low"], frame["high"])]
    low, high = min(end.min() for end in ends if len(end)), max(end.max() for end in ends if len(end))
    edge = 0.05 * (high - low) or 1.0
    span = (low - edge, high + edge)
    ax.plot(span, span, color=strokes.COLOURS["dense"], linewidth=1.1, zorder=1, label="equal")
    for (colour, marker), (kind, own) in zip(strokes.SEVERAL, frame.groupby("kind", sort=False), strict=False):
        rows = own.sort_values("value")
        reach = [(rows["ours"] - rows["low"]).fillna(0), (rows["high"] - rows["ours"]).fillna(0)]
        ax.errorbar(rows["value"], rows["ours"], reach, fmt=marker, color=colour, capsize=2.5, markersize=5, label=kind)
    ax.set_xlim(span)
    ax.set_ylim(span)
    ax.set_aspect("equal")
    ax.set_xlabel("the paper's (%)")
    ax.set_ylabel("ours (%)")
    strokes.plain(ax)
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
    ax, alone = strokes.axes(ax)
    masks = hue == "ticket and mask"
    done = strokes.done(frame, [x], ("ticket", "method", *results.VARIANT) if masks else (hue,))
    metric = done["metric"].iloc[0]
    done = strokes.percent(done) if metric == "test_accuracy" else done
    if masks:
        strokes.series(ax, done, x, strokes.remaining if x == "sparsity" else lambda values: values)
    else:
        for number, value in enumerate(sorted(done[hue].dropna().unique())):
            own = results.summarise(done[done[hue] == value], [x]).sort_values(x)
            colour, marker = strokes.SEVERAL[number % len(strokes.SEVERAL)]
            name = f"{strokes.NAMES.get(hue, hue.replace('_', ' '))} {value:.6g}" if np.isreal(value) else str(value)
            places = strokes.remaining(own[x]) if x == "sparsity" else own[x]
            strokes.line(
                ax, places, own, name, colour, marker, strokes.DASHED if number >= len(strokes.SEVERAL) else "-"
            )
    if x == "sparsity":
        strokes.sparsity_axis(ax, done)
    elif x.endswith("_lr"):
        strokes.lr_axis(ax, done, x)
    else:
        ax.set_xlabel(strokes.NAMES.get(x, x.replace("_", " ")))
        strokes.plain(ax)
    if metric == "test_accuracy":
        strokes.accuracy_axis(ax)
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
    ends = [value for item in strokes.drawn(ax) for value in strokes.reaches(item)]
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
    series = strokes.drawn(ax)
    ys = [strokes.heights(item) for item in series]
    lines = {str(line.get_label()): line for line in ax.lines if not str(line.get_label()).startswith("_")}
    title = f"{ax.get_title()}. ".replace("\n", " ") if ax.get_title() else ""
    text = f"{title}Line chart of {y} against {x}"
    if ys:
        text += f"; means range from {min(v.min() for v in ys):.3g} to {max(v.max() for v in ys):.3g}"
    text += ". "
    trends = [f"{item.get_label()} {_trend(values)}" for item, values in zip(series, ys, strict=True)]
    heights = {name: np.asarray(line.get_ydata(), dtype=float) for name, line in lines.items()}
    levels = [f"{name} {_trend(at if np.ptp(at) else at[:1])}" for name, at in heights.items()]
    return text + "; ".join(trends + levels) + "."


# --- in words ---


def _counts(frame: pd.DataFrame) -> "pd.Series[int]":
    return results.summarise(frame, [name for name in CELL if name in frame])["n"]


def _span(values: Sequence[int]) -> str:
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _trend(values: "NDArray[np.float64]") -> str:
    first, last = values[0], values[-1]
    if len(values) == 1:
        return f"is at {first:.3g}"
    steps = np.diff(values)
    if (steps < 0).all() or (steps > 0).all():
        return f"{'falls' if last < first else 'rises'} from {first:.3g} to {last:.3g}"
    return f"goes from {first:.3g} to {last:.3g}, between {values.min():.3g} and {values.max():.3g}"
