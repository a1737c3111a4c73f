"""Layer-wise pruning and costs of tickets drawn on matplotlib Axes."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from lthlab import plots, results, strokes

_MOST_LINES = 7
_BEYOND = 1.6


def ratio_to_even(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the ratio of each layer's pruned share to that of even pruning, one line per level (Morcos Fig. 1b).

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.ratios.to_even` returns, for masks of one method, setting and step.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Ratios by number of the layer, lighter blues at lower levels; means with intervals. At most seven levels,
        spread evenly, the sparsest among them.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    rows, names = _at_levels(frame, _MOST_LINES)
    colours = matplotlib.colormaps["Blues"](np.linspace(0.35, 1, len(names)))
    ax, alone = _by_layer(rows, "sparsity", names, [to_hex(colour) for colour in colours], ax)
    ax.axhline(1, color="#4d4d4d", linewidth=0.9, zorder=1)
    ax.set_ylabel("global to layer-wise pruning rate")
    ax.set_ylim(bottom=0)
    return plots.legend(ax) if alone else ax


def layers_by_setting(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the pruned share of each layer, one line per setting that masks were found with (Lan Figs. 6 and 8).

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.ratios.found_with` returns, for masks of one method, level and step.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Shares in % by number of the layer; means with intervals.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    names = {name: f"found with {name}" for name in frame["ticket"].unique()}
    ax, alone = _by_layer(strokes.percent(frame), "ticket", names, None, ax)
    ax.set_ylabel("weights pruned (%)")
    ax.set_ylim(0, 100)
    return plots.legend(ax) if alone else ax


def setting_by_layer(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw by how much a setting moves the pruned share of each layer, one line per level.

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.ratios.by_setting` returns of layers, for masks of one method and step.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Paired differences in percentage points by number of the layer, with intervals; at most four levels.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    rows, names = _at_levels(frame, 4)
    ax, alone = _by_layer(strokes.percent(rows), "sparsity", names, None, ax)
    ax.axhline(0, color="#4d4d4d", linewidth=0.9, zorder=1)
    ax.set_ylabel(f"weights pruned,\n{frame['setting'].iloc[0]} (points)")
    return plots.legend(ax) if alone else ax


def layers_by_step(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the pruned share of each layer against the epoch at which weights are ranked (Sooner Fig. 2b).

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.ratios.by_step` returns, for masks of one method, level and setting.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Shares in % by epoch, one line per layer, darker towards the output; means with intervals.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = strokes.axes(ax)
    done = strokes.percent(strokes.done(frame, ["prune_epoch"], ["layer"]))
    order = done.drop_duplicates("layer").sort_values("number")
    colours = matplotlib.colormaps["viridis_r"](np.linspace(0.15, 1, len(order)))
    for place, row in enumerate(order.to_dict("records")):
        cells = results.summarise(done[done["layer"] == row["layer"]], ["prune_epoch"]).sort_values("prune_epoch")
        label = f"{row['number']}: {row['layer'].removesuffix('.weight')}"
        style = "-" if place % 2 == 0 else strokes.DASHED
        marker = strokes.VARIED[place % len(strokes.VARIED)]
        strokes.line(ax, cells["prune_epoch"], cells, label, to_hex(colours[place]), marker, style)
    epochs = sorted(done["prune_epoch"].unique())
    ax.set_xticks(epochs, [f"{epoch:g}" for epoch in epochs])
    ax.set_xlabel("epoch at which weights are ranked")
    ax.set_ylabel("weights pruned (%)")
    ax.set_ylim(0, 100)
    strokes.plain(ax)
    return plots.legend(ax) if alone else ax


def contrasts_by_sparsity(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw paired differences in accuracy against the weights that remain, one line per contrast.

    Parameters
    ----------
    frame : DataFrame
        What `lthlab.ratios.contrasts` or `by_ranking` returns, for masks of one method, setting and step.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Differences in percentage points; weights that remain in % on a logarithmic axis, denser to the left. The frame
        is that of the means, so that a wide interval does not flatten the others.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = strokes.axes(ax)
    done = strokes.percent(strokes.done(frame, ["sparsity"], ["ticket"]))
    ax.axhline(0, color="#4d4d4d", linewidth=0.9, zorder=1)
    for place, name in enumerate(done["ticket"].unique()):
        cells = results.summarise(done[done["ticket"] == name], ["sparsity"]).sort_values("sparsity")
        shift = 1.02 ** (place - (done["ticket"].nunique() - 1) / 2)
        x = strokes.remaining(cells["sparsity"]) * shift
        strokes.line(ax, x, cells, name, *strokes.SEVERAL[place], strokes.DASHED if place % 2 else "-")
    strokes.sparsity_axis(ax, done)
    means = np.concatenate([strokes.heights(item) for item in strokes.drawn(ax)])
    around = max(0.6 * np.ptp([*means, 0.0]), 2.0)
    ax.set_ylim(min(means.min(), 0.0) - around, max(means.max(), 0.0) + around)
    ax.set_ylabel("difference in test accuracy\n(percentage points)")
    return plots.legend(ax) if alone else ax


def accuracy_by_cost(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw test accuracy against the epochs that a search takes (Ma section 1, Sooner Table 4).

    Parameters
    ----------
    frame : DataFrame
        Tidy rows of trainings at one sparsity and learning rate, and of dense networks.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Accuracy in %; epochs on a logarithmic axis, with a place of their own, left of a break, for tickets that need
        no search. A line joins masks of one kind that were ranked at different steps; dense networks are a level. Of
        random tickets that cost nothing whatever step their counts are from, those of the first step are drawn.

    Raises
    ------
    ValueError
        If nothing is done, or rows differ in more than what is drawn.
    """
    ax, alone = strokes.axes(ax)
    done = strokes.percent(strokes.done(frame, ["search_epochs"]))
    dense = done["ticket"] == "dense"
    strokes.level(ax, done[dense])
    alike = [name for name in ("ticket", "method", *results.VARIANT[1:], "search_epochs", "replicate") if name in done]
    tickets = done[~dense].drop_duplicates(alike)
    costs = sorted(tickets["search_epochs"].unique())
    found = [cost for cost in costs if cost > 0] or [1]
    nothing = found[0] / _BEYOND**2
    strokes.series(ax, tickets.assign(prune_at=None), "search_epochs", lambda x: x.where(x > 0, nothing))
    places = [cost if cost > 0 else nothing for cost in costs]
    strokes.log_axis(ax, places, [f"{cost:g}" for cost in costs])
    if costs[0] == 0 and len(costs) > 1:
        ax.axvline(nothing * _BEYOND, color="#999999", linestyle=(0, (1.0, 2.0)), linewidth=0.9, zorder=1)
    ax.set_xlabel("epochs of the search")
    strokes.accuracy_axis(ax)
    return plots.legend(ax) if alone else ax


# --- parts of a drawing ---------------------------------------------------------------------------------------


def _at_levels(frame: pd.DataFrame, most: int) -> tuple[pd.DataFrame, dict[Any, str]]:
    """Choose rows of at most so many levels, spread evenly, the sparsest among them, and name these."""
    levels = sorted(frame["sparsity"].unique())
    chosen = [levels[i] for i in strokes.spread(len(levels), most)]
    return frame[frame["sparsity"].isin(chosen)], {level: f"{100 * (1 - level):.3g} % left" for level in chosen}


def _by_layer(
    frame: pd.DataFrame, hue: str, names: dict[Any, str], colours: list[str] | None, ax: Axes | None
) -> tuple[Axes, bool]:
    """Draw values by number of the layer, one line per entry of a column."""
    ax, alone = strokes.axes(ax)
    done = strokes.done(frame, ["number"], [hue])
    for place, (value, name) in enumerate(names.items()):
        colour, marker = strokes.SEVERAL[place % len(strokes.SEVERAL)]
        cells = results.summarise(done[done[hue] == value], ["number"]).sort_values("number")
        colour = colours[place] if colours else colour
        strokes.line(ax, cells["number"], cells, name, colour, strokes.VARIED[place % len(strokes.VARIED)], "-")
    strokes.number_axis(ax, done["number"])
    ax.set_xlabel("prunable layer, from the input")
    return ax, alone
