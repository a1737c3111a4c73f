"""What happens while a network is trained, for early tickets, drawn on matplotlib Axes (Sooner)."""

import re
from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from lthlab import plots, results, strokes
from lthlab.parts import iterations

_ADVISED = "#4d4d4d"
_MOST_LINES = 5


def spread_by_epoch(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw how the weights of each layer spread, with what weight decay alone predicts (Sooner Fig. 2a).

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.early.spreads` returns, of one recipe.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Standard deviations on a logarithmic axis by epoch, one line per layer, darker towards the output; means with
        intervals. Thin strokes lead from a mean to the next as equation (5) predicts it from the former. Vertical
        lines are drops of the learning rate.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = strokes.axes(ax)
    done = strokes.done(frame, ["at_epoch"], ["layer"])
    order = done.drop_duplicates("layer").sort_values("number")
    colours = matplotlib.colormaps["viridis_r"](np.linspace(0.15, 1, len(order)))
    predicted: list[list[tuple[float, float]]] = []
    for place, row in enumerate(order.to_dict("records")):
        own = done[done["layer"] == row["layer"]]
        cells = results.summarise(own, ["at_epoch"]).sort_values("at_epoch")
        name = f"{row['number']}: {row['layer'].removesuffix('.weight')}"
        style, marker = ("-", strokes.DASHED)[place % 2], strokes.VARIED[place % len(strokes.VARIED)]
        strokes.line(ax, cells["at_epoch"], cells, name, to_hex(colours[place]), marker, style)
        for (since, epoch), pair in own.dropna(subset=["predicted"]).groupby(["since_epoch", "at_epoch"]):
            before = own.loc[(own["at_epoch"] == since) & own["replicate"].isin(pair["replicate"]), "value"].mean()
            predicted.append([(since, before), (epoch, pair["predicted"].astype(float).mean())])
    if predicted:
        label = "as equation 5 predicts from the state before"
        ax.add_collection(LineCollection(predicted, colors="#000000", linewidths=0.9, zorder=4, label=label))
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    ax.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    ax.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    _epochs(ax, done, "at_epoch", "epoch")
    ax.set_ylabel("standard deviation of the weights")
    return plots.legend(ax) if alone else ax


def ppr_by_epoch(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the accuracy of pseudo-pruned and retrained networks by the epoch of pruning (Sooner Figs. 4 and 6).

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.early.ppr` returns, at one sparsity.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Test accuracy in % by epoch, one line per rate, and the dense network; means with intervals.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = strokes.axes(ax)
    done = strokes.percent(strokes.done(frame, ["prune_epoch"], ["series"]))
    _lines(ax, done, "prune_epoch", last="dense, not pruned")
    _epochs(ax, done, "prune_epoch", "epoch at which the network is pruned")
    strokes.accuracy_axis(ax)
    return plots.legend(ax) if alone else ax


def signals_by_epoch(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the signals that the advice on the epoch of pruning goes by, each on its own scale.

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.early.scaled` returns, at one sparsity.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Signals by epoch, 0 where they begin and 1 at their level at the end; means with intervals, which are cut where
        they leave the frame. A ring marks where a signal saturates, a vertical line the epoch that most of them advise.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = strokes.axes(ax)
    done = strokes.done(frame, ["prune_epoch"], ["series"])
    _lines(ax, done, "prune_epoch")
    means = done.groupby(["series", "order", "saturated", "prune_epoch"])["value"].mean().reset_index()
    for row in means[means["saturated"] == means["prune_epoch"]].to_dict("records"):
        colour = strokes.SEVERAL[row["order"]][0]
        ax.plot(row["prune_epoch"], row["value"], "o", markersize=13, markerfacecolor="none", color=colour, zorder=4)
    if done["advised"].notna().any():
        epoch = done["advised"].iloc[0]
        ax.axvline(epoch, color=_ADVISED, linewidth=1.4, zorder=1)
        ax.annotate(f"advised: {epoch:g}", (epoch, 0), (4, 4), xycoords=("data", "axes fraction"),
                    textcoords="offset points", color=_ADVISED, fontsize=9)  # fmt: skip
    _epochs(ax, done, "prune_epoch", "epoch at which weights are ranked")
    ax.set_ylabel("share of its whole change")
    ax.set_ylim(-0.3, 1.5)
    return plots.legend(ax) if alone else ax


def memorized_by_images(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw how many random labels networks learn by how many images they have (Sooner Fig. 5).

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.early.memorization` returns, at one sparsity.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Training accuracy in %; images on a logarithmic axis, one line per epoch of pruning, darker the later; means
        with intervals. At most five epochs, spread evenly, the last among them.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = strokes.axes(ax)
    pruned = sorted(frame.loc[frame["series"] != "dense", "order"].unique())
    chosen = [pruned[place] for place in strokes.spread(len(pruned), _MOST_LINES)] if len(pruned) else []
    shown = frame[frame["order"].isin(chosen) | (frame["series"] == "dense")]
    done = strokes.percent(strokes.done(shown, ["images"], ["series"]))
    colours = matplotlib.colormaps["Blues"](np.linspace(0.35, 1, len(chosen)))
    _lines(ax, done, "images", [to_hex(colour) for colour in colours], "dense", lambda x, shift: x * 1.015**shift)
    images = sorted(done["images"].unique())
    strokes.log_axis(ax, images, [f"{count:g}" for count in images])
    ax.set_xlabel("images with random labels")
    ax.set_ylabel("training accuracy (%)")
    return plots.legend(ax) if alone else ax


# --- parts of a drawing ---------------------------------------------------------------------------------------


def _lines(
    ax: Axes,
    done: pd.DataFrame,
    x: str,
    colours: list[str] | None = None,
    last: str | None = None,
    place: Callable[["pd.Series[float]", float], "pd.Series[float]"] = lambda x, shift: x + 0.06 * shift,
) -> None:
    """Draw one line per entry of `series` in the order of `order`, that of `last` as dense networks are drawn."""
    lines = sorted(set(zip(done["order"], done["series"], strict=True)))
    for number, (order, name) in enumerate(lines):
        cells = results.summarise(done[done["series"] == name], [x]).sort_values(x)
        colour, marker = strokes.SEVERAL[int(order) % len(strokes.SEVERAL)]
        if colours is not None or name == last:
            marker = strokes.VARIED[number % len(strokes.VARIED)]
            colour = strokes.COLOURS["dense"] if name == last else (colours or [])[number]
        style = strokes.DOTTED if name == last else ("-", strokes.DASHED)[int(order) % 2]
        strokes.line(ax, place(cells[x], number - (len(lines) - 1) / 2), cells, name, colour, marker, style)


def _epochs(ax: Axes, done: pd.DataFrame, column: str, name: str) -> None:
    """Name the horizontal axis by epochs, and mark where the learning rate drops."""
    epochs = sorted(done[column].unique())
    step = -(-len(epochs) // 9)
    named = epochs[::-1][::step]
    ax.set_xticks(named, [f"{epoch:g}" for epoch in named])
    row = done.iloc[0]
    for text in re.findall(r"\d+(?:ep|it)", str(row.get("find_milestones", ""))):
        count = -(-row["train_size"] // row["find_batch_size"])
        ax.axvline(iterations(text, count) / count, color="#999999", linestyle=(0, (1.0, 2.0)), linewidth=0.9, zorder=0)
    ax.set_xlabel(name)
    strokes.plain(ax)
