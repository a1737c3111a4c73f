"""Loss surfaces and what lies between states, drawn on matplotlib Axes (Ma Figs. 4 and 5; Li et al. 2018)."""

import math
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, Colormap, Normalize
from matplotlib.patches import Patch

from lthlab import plots, results, strokes

_MOST_LEVELS = 12
_MANTISSAS = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
_FEWEST_LEVELS = 5
_FILL, _EPOCHS = "Blues_r", "YlOrRd"  # hues apart: the darkest blue is the lowest loss, the darkest red the last epoch
_PATH = "#1a1a1a"
_LINE = "#4d4d4d"
_MOST_MARKERS = 12
_NOT_COMPUTED = "#e4e4e4"
OWN, ON_PLANE = "own loss", "loss on the plane"
"""Names of the two kinds of lines of `along_path`."""


@dataclass(frozen=True)
class Scale:
    """Levels of a loss, the same for all drawings of a figure.

    Attributes
    ----------
    levels : tuple of float
        Rising; what lies below the first or above the last has colours of its own.
    x, y : pair of float
        Ends of the axes.
    epochs : float
        Last epoch, which has the darkest marker.
    """

    levels: tuple[float, ...]
    x: tuple[float, float]
    y: tuple[float, float]
    epochs: float

    @property
    def colours(self) -> Colormap:
        """A colour for each interval between levels, and one beyond either end."""
        return matplotlib.colormaps[_FILL].resampled(len(self.levels) + 1)

    @property
    def norm(self) -> BoundaryNorm:
        """Where losses lie among the colours."""
        return BoundaryNorm(self.levels, len(self.levels) + 1, extend="both")

    def legend(self) -> dict[str, Any]:
        """Patches of the intervals, by words."""
        names = [f"below {self.levels[0]:g}"]
        names += [f"{low:g} to {high:g}" for low, high in zip(self.levels[:-1], self.levels[1:], strict=True)]
        names.append(f"{self.levels[-1]:g} or more")
        return {
            f"loss {name}" if number == 0 else name: Patch(facecolor=self.colours(number), edgecolor="#999999")
            for number, name in enumerate(names)
        }


def scale(surfaces: pd.DataFrame, paths: pd.DataFrame) -> Scale:
    """Choose levels and axes for all surfaces that are drawn beside each other.

    Parameters
    ----------
    surfaces : DataFrame
        Points of surfaces, as of `lthlab.results.measured`: x, y, loss.
    paths : DataFrame
        Of their trajectories: epoch; may be empty.

    Returns
    -------
    Scale
        Levels are numbers such as 0.1, 0.2, 0.5, 1 …, or evenly spaced where the losses are within a few of these.

    Raises
    ------
    ValueError
        If no loss is finite.
    """
    losses = surfaces["loss"].to_numpy(dtype=float)
    losses = losses[np.isfinite(losses)]
    if not len(losses):
        raise ValueError("no point of these surfaces has a finite loss")
    x, y = ((float(surfaces[axis].min()), float(surfaces[axis].max())) for axis in "xy")
    epochs = float(paths["epoch"].max()) if len(paths) else 0.0
    return Scale(tuple(_levels(losses.min(), losses.max())), x, y, epochs)


def _levels(low: float, high: float) -> list[float]:
    if low > 0:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        for mantissas in _MANTISSAS:
            found = [float(f"{m}e{k}") for k in range(first, last + 1) for m in mantissas]
            found = [level for level in found if low < level < high]
            if _FEWEST_LEVELS <= len(found) <= _MOST_LEVELS:
                return found
        if len(found) > _MOST_LEVELS:
            return [found[i] for i in strokes.spread(len(found), _MOST_LEVELS)]
    ticks = matplotlib.ticker.MaxNLocator(8).tick_values(low, high)
    return [float(f"{tick:.6g}") for tick in ticks if low < tick < high] or [low, low + max(abs(low), 1e-12) * 1e-3]


def surface(cells: pd.DataFrame, path: pd.DataFrame, ax: Axes, common: Scale, note: str = "") -> Axes:
    """Draw one loss surface, with the way that training took on it.

    Parameters
    ----------
    cells : DataFrame
        Points of one surface: i, j, x, y, loss.
    path : DataFrame
        Its trajectory: epoch, x, y; may be empty, or the centre alone.
    ax : Axes
        Where to draw.
    common : Scale
        Levels and axes.
    note : str, optional
        What is printed in a corner.

    Returns
    -------
    Axes
        Filled contours, lines between them; markers along the path from light to dark by epoch, a star at the end.
        Where the loss is not finite it counts as above the last level; grey is what was not computed.
    """
    grid = cells.pivot(index="j", columns="i", values="loss").to_numpy(dtype=float)
    x, y = (cells.drop_duplicates(k).sort_values(k)[axis].to_numpy(dtype=float) for k, axis in (("i", "x"), ("j", "y")))
    grid = np.where(np.isfinite(grid), grid, 2 * common.levels[-1] + 1)
    filled = ax.contourf(x, y, grid, common.levels, cmap=common.colours, norm=common.norm, extend="both")
    filled.set(edgecolor=_LINE, linewidth=0.4)
    if len(path) > 1:
        _trace(ax, path.sort_values("epoch"), common.epochs)
    elif len(path):
        ax.plot(path["x"], path["y"], marker="*", color=_PATH, markersize=7, linestyle="none")
    ax.set_xlim(*common.x)
    ax.set_ylim(*common.y)
    ax.set_facecolor(_NOT_COMPUTED)
    ax.locator_params(nbins=5)
    ax.tick_params(labelsize=8)
    if note:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5}
        ax.text(0.985, 0.02, note, transform=ax.transAxes, ha="right", va="bottom", fontsize=7, bbox=box)
    return ax


def _trace(ax: Axes, path: pd.DataFrame, epochs: float) -> None:
    """Draw a trajectory with at most so many markers, its last one a star."""
    x, y = path["x"].to_numpy(), path["y"].to_numpy()
    chosen = strokes.spread(len(path), min(_MOST_MARKERS, len(path)))
    colours = matplotlib.colormaps[_EPOCHS](Normalize(0, epochs or 1)(path["epoch"].to_numpy()[chosen]))
    ax.plot(x, y, color=_PATH, linewidth=0.9)
    ax.scatter(x[chosen[:-1]], y[chosen[:-1]], s=18, c=colours[:-1], edgecolors=_PATH, linewidths=0.6, zorder=3)
    ax.scatter(x[-1:], y[-1:], s=70, marker="*", c=colours[-1:], edgecolors=_PATH, linewidths=0.6, zorder=4)


def markers(epochs: float) -> dict[str, Any]:
    """Handles of the first and the last marker of a trajectory, by words."""
    from matplotlib.lines import Line2D

    def handle(marker: str, size: float, share: float) -> Line2D:
        face = matplotlib.colormaps[_EPOCHS](share)
        line = Line2D([], [], color=_PATH, linewidth=0.9, marker=marker, markersize=size)
        line.set(markerfacecolor=face, markeredgecolor=_PATH)
        return line

    return {"path of training, epoch 0": handle("o", 6, 0.0), f"its end, epoch {epochs:g}": handle("*", 9, 1.0)}


def along_path(path: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the loss along trainings: that of the weights themselves, and that of the plane where they are projected.

    Parameters
    ----------
    path : DataFrame
        Trajectories, as of `lthlab.results.measured` with 'path.jsonl', of one network at one learning rate: epoch,
        loss, plane_loss, name, replicate, status, key.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Losses on a logarithmic axis by epoch, for each name two lines; means with intervals.
    """
    ax, alone = strokes.axes(ax)
    for place, name in enumerate(path["name"].unique()):
        colour, marker = strokes.SEVERAL[place % len(strokes.SEVERAL)]
        for column, words, style in (("loss", OWN, "-"), ("plane_loss", ON_PLANE, strokes.DASHED)):
            own = path[path["name"] == name]
            cells = results.summarise(own.assign(value=own[column]), ["epoch"]).sort_values("epoch")
            strokes.line(ax, cells["epoch"], cells, f"{name}, {words}", colour, marker, style)
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator("auto", integer=True))
    ax.set_xlabel("epoch")
    return _losses(ax, alone)


def between(rows: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the loss on straight lines between two states.

    Parameters
    ----------
    rows : DataFrame
        Points of lines, as of `lthlab.results.measured`, of one network at one learning rate: fraction, loss, name,
        replicate, status, key.
    ax : Axes, optional
        Where to draw; a figure with a legend is made by default.

    Returns
    -------
    Axes
        Loss on a logarithmic axis by the share of the way, a line for each name; means with intervals.
    """
    ax, alone = strokes.axes(ax)
    for place, name in enumerate(rows["name"].unique()):
        own = rows[rows["name"] == name]
        cells = results.summarise(own.assign(value=own["loss"]), ["fraction"]).sort_values("fraction")
        colour, marker = strokes.SEVERAL[place % len(strokes.SEVERAL)]
        strokes.line(ax, cells["fraction"], cells, name, colour, marker, ("-", strokes.DASHED)[place % 2])
    ax.set_xlabel("share of the way")
    return _losses(ax, alone)


def _losses(ax: Axes, alone: bool) -> Axes:
    """Make the vertical axis one of losses, framed by the means."""
    means = np.concatenate([strokes.heights(item) for item in strokes.drawn(ax)])
    means = means[np.isfinite(means) & (means > 0)]
    ax.set_yscale("log")
    if len(means):
        ax.set_ylim(means.min() / 1.5, means.max() * 1.5)
    ax.set_ylabel("loss")
    strokes.plain(ax)
    return plots.legend(ax) if alone else ax


def describe(cells: pd.DataFrame, path: pd.DataFrame) -> str:
    """Put a surface into words, for readers who do not see it."""
    losses = cells["loss"].dropna()
    lowest = cells.sort_values("loss").iloc[0]
    text = (
        f"Contours of the loss over a plane of weights, from {losses.min():.3g} at ({lowest['x']:.2g}, "
        f"{lowest['y']:.2g}) to {losses.max():.3g}"
    )
    if len(path) < 2:
        return f"{text}; the trained weights are at (0, 0)."
    first, last = (row for _, row in path.sort_values("epoch").iloc[[0, -1]].iterrows())
    return (
        f"{text}; the path of training leads from ({first['x']:.2g}, {first['y']:.2g}), loss {first['loss']:.3g}, to "
        f"({last['x']:.2g}, {last['y']:.2g}), loss {last['loss']:.3g}."
    )
