"""Loss surfaces, sharpness, eigenvalues and barriers as HTML."""

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from lthlab import contours, plots, results, strokes
from lthlab.markup import Html, download, found_out, framed, image, level_of, listed, signed, slug, spanned, svg, table

_SIZE = (3.5, 3.3)
_PLANES = {"pca": "the plane of the path of training", "random": "a random plane"}
_NORMS = {"fixed": "fixed, as the state at the centre has them", "recompute": "computed anew at each point"}
_NOTES = {"fixed": "BatchNorm fixed", "recompute": "BatchNorm recomputed"}
_SPLITS = {"train": "training", "test": "test"}
_SAID = ["plane", "batchnorm", "images", "split", "parameters", "points"]
_MOST_NAMED, _HALF = 2, 0.5
_NOTHING = '<p class="nothing">No {} is done, or asked for.</p>'
MEASURES = {
    "sharpness": "sharpness", "hessian_eigenvalue": "largest eigenvalue", "loss_barrier": "barrier of the loss",
}  # fmt: skip
"""Measures that are one number, in words."""


def surfaces(cells: pd.DataFrame, paths: pd.DataFrame, plane: str, about: str = "", closer: str | None = None) -> Html:
    """Draw loss surfaces beside each other, with one scale of colours and the same axes (Ma Figs. 4 and 5).

    Parameters
    ----------
    cells : DataFrame
        Points of surfaces, as of `lthlab.results.measured`.
    paths : DataFrame
        Their trajectories, as of the same function with 'path.jsonl'.
    plane : {'pca', 'random'}
        Which of them.
    about : str, optional
        First sentence of the caption.
    closer : str, optional
        Column: those entries of which all surfaces fill less than half of a common axis are drawn on axes of their own,
        in a figure for each, with the colours that they have among all; others are left out.

    Returns
    -------
    Html
        A `<figure>` of one surface per network, ticket and learning rate, that of the first replicate; a table of what
        is on it, and files of all points and of the trajectories. Surfaces that were evaluated in several ways have a
        figure for each. A sentence where nothing is done.
    """
    cells = cells if cells.empty else cells[cells["plane"] == plane]
    if cells.empty:
        return Html(_NOTHING.format(f"loss surface over {_PLANES[plane]}"))
    figures = []
    for _, rows in cells.groupby(list(_SAID), sort=False):
        chosen = pd.concat(list(_chosen(rows)))
        own = paths[paths["key"].isin(chosen["key"])]
        colours = contours.scale(chosen, own)
        for _, part in chosen.groupby(closer) if closer else [("", chosen)]:
            there = own[own["key"].isin(part["key"])]
            common = replace(contours.scale(part, there), levels=colours.levels)
            if not closer or min(np.ptp(common.x) / np.ptp(colours.x), np.ptp(common.y) / np.ptp(colours.y)) < _HALF:
                figures.append(_surfaces(part, there, common, about))
    return Html("".join(figures) or '<p class="nothing">All surfaces are large enough on common axes.</p>')


def _surfaces(cells: pd.DataFrame, paths: pd.DataFrame, common: contours.Scale, about: str) -> Html:
    from matplotlib.figure import Figure

    said = cells.iloc[0].to_dict()
    images, rows, ways = [], list[dict[str, Any]](), []
    for number, (title, own) in enumerate(cells.groupby("title", sort=False), start=1):
        path = paths[paths["key"] == own["key"].iloc[0]].drop_duplicates("step")
        ax = Figure(figsize=_SIZE, layout="constrained").subplots()
        contours.surface(own, path, ax, common, _NOTES[said["batchnorm"]] + f", {said['images']:g} images")
        ax.set_title(_broken(str(title)), fontsize=9)
        for axis, side in ((ax.xaxis, 1), (ax.yaxis, 2)):
            axis.set_label_text(_along(own.iloc[0].to_dict(), side), fontsize=9)
        images.append(image(svg(ax.figure), f"{title}. {contours.describe(own, path)}"))
        rows.append({"drawing": number, "of": title, **_summary(own, path)})
        ways.append(path.assign(drawing=number))
    cells = cells.merge(pd.DataFrame(rows)[["drawing", "of"]], left_on="title", right_on="of")
    legend = common.legend() | (contours.markers(common.epochs) if said["plane"] == "pca" else {})
    points = cells[["drawing", "x", "y", "loss", "accuracy"]].map(_short)
    path = pd.concat(ways)[["drawing", "step", "epoch", "x", "y", "loss", "plane_loss", "residual", "accuracy"]]
    lrs = "_".join(f"{lr:g}" for lr in sorted(cells["eval_lr"].unique()))
    file = f"loss_surface_{said['plane']}_{lrs}"
    numbers = (
        table(pd.DataFrame(rows), f"What is on {_PLANES[said['plane']]}")
        + download(points, f"{file}.csv", f"All {len(points)} points (CSV)")
        + download(path.map(_short), f"{file}_path.csv", f"All {len(path)} states of the trainings (CSV)")
    )
    drawn = listed([f"{number}" for number in sorted(cells["replicate"].unique())])
    words = (
        about,
        f"Loss over {_PLANES[said['plane']]} through the trained weights, which are at (0, 0); replicate {drawn}.",
        _evaluated(said),
        "All drawings have one scale of colours and the same axes; grey was not computed.",
    )
    return framed(images, legend, " ".join(filter(None, words)), numbers)


def _chosen(cells: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """One surface for each network, learning rate and ticket, with a title of what tells them apart."""
    for (panel, lr, name), rows in _kinds(cells):
        own = rows[rows["key"] == rows.sort_values("replicate")["key"].iloc[0]].drop_duplicates(["i", "j"])
        level = "" if own["ticket"].iloc[0] == "dense" else f"; {level_of(own.iloc[0].to_dict())}"
        yield own.assign(title=f"{panel}; {name}, learning rate {lr:g}{level}")


def _kinds(rows: pd.DataFrame) -> Iterator[tuple[tuple[str, float, str], pd.DataFrame]]:
    """Split rows by panel, learning rate and kind of ticket, named, dense networks first."""
    for panel, own in results.panels(rows):
        own = own.assign(name=_named(own))
        order = {ticket: number for number, ticket in enumerate(strokes.TICKETS)}
        own = own.assign(order=own["ticket"].map(order)).sort_values(["eval_lr", "order", "name"], kind="stable")
        for (lr, name), alike in own.groupby(["eval_lr", "name"], sort=False):
            yield (panel, float(str(lr)), str(name)), alike


def _named(rows: pd.DataFrame) -> "pd.Series[str]":
    """Name tickets by their masks, and by what tells them from others of their kind."""
    masks = [
        ""
        if pd.isna(row["method"])
        else f" on {row['method']} masks" + f" found at {row['find_lr']:g}" * (row["find_lr"] != row["eval_lr"])
        for row in rows[["method", "find_lr", "eval_lr"]].to_dict("records")
    ]
    told = strokes.variants(rows).map(lambda text: f" ({text})" if text else "")
    several = rows.groupby("ticket")["level"].transform("nunique") > 1
    levels = [f" at level {level:g}" if more else "" for level, more in zip(rows["level"], several, strict=True)]
    return rows["ticket"] + pd.Series(masks, rows.index) + levels + told


def _broken(title: str) -> str:
    """Break a title into three lines, so that all drawings begin at one height."""
    words = title.split("; ")
    return "\n".join([*[""] * (3 - len(words)), *words])


def _along(said: dict[Any, Any], side: int) -> str:
    if said["plane"] == "random":
        return f"random direction {side} (norms of the filters)"
    return f"component {side}: {100 * said[f'explained_{side}']:.3g} % explained"


def _evaluated(said: dict[Any, Any]) -> str:
    return f"{said['images']:g} {_SPLITS[said['split']]} images; statistics of BatchNorm {_NORMS[said['batchnorm']]}."


def _summary(cells: pd.DataFrame, path: pd.DataFrame) -> dict[str, Any]:
    """Numbers of a surface as readers see them."""
    losses = cells["loss"]
    found = {"lowest loss": losses.min(), "highest loss": losses.max(), "not finite": int(losses.isna().sum())}
    if len(path):
        last = path.sort_values("epoch").iloc[-1]
        found |= {"loss at the end": last["loss"]}
    if len(path) > 1:
        found |= {
            "largest gap of own and plane's loss": (path["loss"] - path["plane_loss"]).abs().max(),
            "largest distance from the plane": path["residual"].max(),
        }
    return {name: _short(value) for name, value in found.items()}


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


# --- lines ----------------------------------------------------------------------------------------------------


def along_paths(paths: pd.DataFrame, about: str = "") -> Html:
    """Draw the loss along trainings beside that of the plane where they are projected, by network and learning rate.

    Parameters
    ----------
    paths : DataFrame
        Trajectories, as of `lthlab.results.measured` with 'path.jsonl'.
    about : str, optional
        First sentence of the caption.
    """
    rows = paths if paths.empty else paths[paths["plane"] == "pca"]
    words = "Solid lines are the loss of the weights themselves, dashed ones that of the plane at the nearest point."
    columns = ["epoch", "x", "y", "loss", "plane_loss", "residual", "accuracy"]
    return _lines(rows, contours.along_path, "loss_along_path", f"{about} {words}".strip(), columns)


def ends(paths: pd.DataFrame) -> pd.DataFrame:
    """Take the last state of each trajectory."""
    return paths if paths.empty else paths.sort_values("epoch").drop_duplicates("key", keep="last")


def between(rows: pd.DataFrame, about: str = "") -> Html:
    """Draw the loss on straight lines between two states, by network and learning rate.

    Parameters
    ----------
    rows : DataFrame
        Points of lines, as of `lthlab.results.measured`.
    about : str, optional
        First sentence of the caption.

    Returns
    -------
    Html
        A `<figure>` for each kind of ends: of a training, or of two trainings from one state with different orders.
    """
    figures = [
        _lines(
            own,
            contours.between,
            f"loss_{slug(words)}",
            f"{about} Loss {words}.".strip(),
            ["fraction", "loss", "accuracy"],
        )
        for words, own in (rows.groupby(_ends(rows), sort=False) if len(rows) else [])
    ]
    return Html("".join(figures) or _NOTHING.format("straight line between weights"))


def _lines(
    rows: pd.DataFrame, draw: Callable[[pd.DataFrame, Any], Any], file: str, words: str, columns: Sequence[str]
) -> Html:
    """Draw lines for each network and learning rate, all on one vertical axis."""
    from matplotlib.figure import Figure

    if rows.empty:
        return Html(_NOTHING.format("loss along trainings"))
    drawn, legend, parts = list[tuple[str, Any]](), dict[str, Any](), []
    kinds = [((panel, lr), own) for (panel, lr, _), own in _kinds(rows)]
    for place in dict.fromkeys(place for place, _ in kinds):
        own = pd.concat([part for other, part in kinds if other == place])
        ax = draw(own, Figure(figsize=_SIZE, layout="constrained").subplots())
        title = f"{place[0]},\nlearning rate {place[1]:g}"
        ax.set_title(title, fontsize=9)
        drawn.append((title.replace("\n", " "), ax))
        legend |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        parts.append(own.assign(network=place[0]))
    low, high = min(ax.get_ylim()[0] for _, ax in drawn), max(ax.get_ylim()[1] for _, ax in drawn)
    for _, ax in drawn:
        ax.set_ylim(low, high)
    size = plots.sample_size(rows.assign(fraction=rows[columns[0]], value=rows["loss"]).drop_duplicates("key"))
    images = [image(svg(ax.figure), f"{plots.describe(ax)} {size}.") for _, ax in drawn]
    shown = pd.concat(parts)[["network", "eval_lr", "name", "replicate", *columns]].map(_short)
    csv = download(shown, f"{file}.csv", f"All {len(shown)} points (CSV)")
    cells = [
        {
            "network": network,
            "learning rate": lr,
            "of": name,
            columns[0]: at,
            "n": len(own),
            "loss": _short(own["loss"].mean()),
        }
        for (network, lr, name, at), own in shown.groupby(["network", "eval_lr", "name", columns[0]], sort=False)
    ]
    numbers = table(pd.DataFrame(cells), f"Mean losses, {words}") + csv
    many = "means with 95 % intervals (Student's t)" if "n = 1 " not in size else "one replicate gives no interval"
    text = f"{words} {_evaluated(rows.iloc[0].to_dict())} {size}: {many}."
    return framed(images, legend, text, numbers)


# --- numbers --------------------------------------------------------------------------------------------------


def numbers(frame: pd.DataFrame, measure: str) -> Html:
    """Show means of a measure with intervals over replicates, by network, learning rate and ticket.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame.
    measure : str
        One of `MEASURES`.
    """
    rows = _done(frame, measure)
    if rows.empty:
        return Html(_NOTHING.format(MEASURES[measure]))
    shown = []
    for (panel, lr, name), alike in _kinds(rows):
        for words, own in alike.groupby(_ends(alike), sort=False):
            (cell,) = results.summarise(own, ["name"]).to_dict("records")
            where = {"line": words} if measure == "loss_barrier" else {}
            row = {"network": panel, "learning rate": lr, "of": name, **where, "n": cell["n"]}
            row["mean [95 % interval]"] = _spread(cell)
            shown.append(row | ({} if own["error"].isna().all() else {"own error": _short(float(own["error"].max()))}))
    csv = rows[[name for name in (*plots.CELL, "replicate", "value", "error", "key") if name in rows]]
    words = f"{MEASURES[measure].capitalize()}: means, with 95 % intervals over replicates (Student's t)"
    link = download(csv, f"{measure}.csv", f"All {len(csv)} values of the {MEASURES[measure]} (CSV)")
    return Html(f"<p>{html.escape(words)}</p>{table(pd.DataFrame(shown), words)}{link}")


def _done(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    return frame[(frame["what"] == measure) & (frame["status"] == "done") & frame["value"].notna()]


def _ends(rows: pd.DataFrame) -> "pd.Series[str]":
    """Say what lines are between; '' of what is no line."""
    words = {"ends": "from the first to the last weights"}
    found = [
        f"between two orders of the images from {step}" if reading == "orders" else words.get(reading, "")
        for reading, step in zip(rows["reading"], rows["measured_at"], strict=True)
    ]
    return pd.Series(found, rows.index)


def contrasts(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare sharpness, eigenvalues and barriers of masks of two methods, of learning rates and of networks.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame.

    Returns
    -------
    DataFrame
        measure, contrast (LT on IMP minus on OMP masks; the smallest minus the largest learning rate; networks with
        minus those without shortcuts), at (of what), n, mean, low and high of the differences, which are paired by
        replicate.
    """
    found: list[dict[str, Any]] = []
    for measure, words in MEASURES.items():
        rows = _done(frame, measure)
        for ends, own in rows.groupby(_ends(rows), sort=False) if len(rows) else []:
            if not str(ends).startswith("between"):
                name = f"{words} {ends}".strip()
                found += [
                    {"measure": name, **row} for compare in (_methods, _rates, _shortcuts) for row in compare(own)
                ]
    return pd.DataFrame(found, columns=["measure", "contrast", "at", "n", "mean", "low", "high"])


def _methods(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    by = ["shortcut", "ticket", "level", "sparsity", "eval_lr", "find_lr"]
    yield from _differences(rows[rows["ticket"] != "dense"], "method", "IMP", "OMP", by, "IMP minus OMP masks")


def _rates(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    rates = sorted(rows["eval_lr"].unique())
    same = rows[(rows["find_lr"] == rows["eval_lr"]) | (rows["ticket"] == "dense")]
    if len(rates) > 1:
        words = f"learning rate {rates[0]:g} minus {rates[-1]:g}"
        by = ["shortcut", "ticket", "method", "level", "sparsity"]
        yield from _differences(same, "eval_lr", rates[0], rates[-1], by, words)


def _shortcuts(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    own = rows.assign(shortcuts=rows["shortcut"].map({"A": "with", "B": "with", "none": "without"}))
    by = ["ticket", "method", "level", "sparsity", "eval_lr", "find_lr"]
    yield from _differences(own, "shortcuts", "with", "without", by, "with minus without shortcuts")


def _differences(
    rows: pd.DataFrame, column: str, first: Any, second: Any, by: Sequence[str], words: str
) -> Iterator[dict[str, Any]]:
    """Summarise paired differences, network by network where these differ in more than their shortcuts."""
    fixed = [name for name in results.PANEL if name in rows and name not in ("shortcut", "panel")]
    pairs = results.paired(rows, column, first, second, [*fixed, *by, *results.VARIANT])
    if pairs.empty:
        return
    told = [*fixed, *by, *results.VARIANT]
    for cell in results.summarise(pairs, told).to_dict("records"):
        several = pairs[["network", "width", "data"]].drop_duplicates().shape[0] > 1
        yield {"contrast": words, "at": _place(cell, several)} | {
            name: cell[name] for name in ("n", "mean", "low", "high")
        }


def _place(cell: dict[Any, Any], several: bool) -> str:
    """Say of what a difference is."""
    words = [f"{cell['network']} on {cell['data']}"] * several
    if cell.get("shortcut"):
        words.append("without shortcuts" if cell["shortcut"] == "none" else "with shortcuts")
    if "method" in cell:
        words.append(str(cell["ticket"]) if pd.isna(cell["method"]) else f"{cell['ticket']} on {cell['method']} masks")
    if "eval_lr" in cell:
        words.append(f"learning rate {cell['eval_lr']:g}")
    return ", ".join(words)


def comparisons(frame: pd.DataFrame) -> Html:
    """Say what `contrasts` found, whatever it is, with a table of all differences.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame.
    """
    found = contrasts(frame)
    if found.empty:
        return found_out(["There are no two measures to compare."])
    sentences = []
    for measure, rows in found.groupby("measure", sort=False):
        told = [f"{contrast}: {_told(own)}" for contrast, own in rows.groupby("contrast", sort=False)]
        sentences.append(f"{str(measure)[0].upper()}{str(measure)[1:]}. {'; '.join(told)}.")
    sentences.append("Differences are paired by replicate; an interval (95 %, Student's t) that excludes zero is seen.")
    shown = found.map(_short).rename(columns={"mean": "difference"})
    folded = f"<details><summary>All {len(found)} differences</summary>{table(shown, 'Paired differences')}</details>"
    return Html(found_out(sentences) + folded)


def _told(rows: pd.DataFrame) -> str:
    """Name the differences that are seen, and say how far all reach."""
    cells = rows.to_dict("records")
    seen = [cell for cell in cells if cell["low"] > 0 or cell["high"] < 0]
    lowest, highest = rows["mean"].min(), rows["mean"].max()
    reach = _signed(lowest) if len(cells) == 1 else f"{_signed(lowest)} to {_signed(highest)} at {len(cells)} places"
    if rows["n"].max() < 2:
        return f"{reach}; one replicate gives no interval"
    if not seen:
        return f"we did not see a difference, {reach}"
    named = sorted(seen, key=lambda cell: -abs(cell["mean"]))[:_MOST_NAMED]
    words = [f"{spanned(cell, _signed)} ({cell['at']})" for cell in named]
    most = "the largest " * (len(seen) > len(named))
    return f"seen at {len(seen)} of {len(cells)}, {most}{listed(words)}; all are {reach}"


def _spread(cell: dict[Any, Any]) -> str:
    return spanned(cell, lambda value: f"{value:.3g}".replace("-", "−"))


def _signed(value: float) -> str:
    """Write a difference with its sign and two digits."""
    rounded = float(f"{value:.1e}")
    digits = 1 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return signed(rounded, max(0, min(digits, 6)))
