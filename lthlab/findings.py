"""What came out of layer-wise pruning, and what searches cost, as HTML."""

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lthlab import costs, plots, ratios, results
from lthlab.markup import Html, download, found_out, level_of, percent, points, table

_WIDEST = 5  # times the advantage itself: beyond, where an interval ends says nothing
_SHOWN = {
    "search_epochs": "search epochs", "train_epochs": "training epochs", "epochs": "in all", "mean": "accuracy (%)",
}  # fmt: skip


def settings(layers: pd.DataFrame, field: str = "find_lr") -> Html:
    """Say how a setting of the search moves pruning in the first and the last layer at the sparsest level.

    Parameters
    ----------
    layers : DataFrame
        What `lthlab.results.layers` returns, for masks of one method and step.
    field : str, optional
        Column of numbers that masks were found with.
    """
    pairs = ratios.by_setting(layers, field)
    ends = ratios.by_setting(ratios.first_to_last(layers), field)
    ends_of = dict(results.panels(ends)) if len(ends) else {}
    sentences = []
    for name, rows in results.panels(pairs) if len(pairs) else []:
        last = rows[rows["sparsity"] == rows["sparsity"].max()]
        numbers = (last["number"].min(), last["number"].max())
        own = ends_of[name][ends_of[name]["sparsity"] == rows["sparsity"].max()]
        places = [last[last["number"] == number] for number in numbers]
        words = [_over(place, ["layer"], f"{place['layer'].iloc[0]} ") for place in places]
        words.append(_over(own, ["sparsity"], "the first minus the last "))
        where = level_of(last.iloc[0].to_dict())
        values = rows["setting"].iloc[0].replace("−", "minus")
        sentences.append(
            f"{name}, {last['method'].iloc[0]} masks, {where}: weights pruned when found with {values} (in points, "
            f"paired, 95 % t interval, {plots.sample_size(last)}): {'; '.join(words)}."
        )
    return found_out(sentences or ["All masks were found with the same settings."])


def cut_through(layers: pd.DataFrame) -> Html:
    """Name the layers of which masks keep nothing, or say that there are none.

    Parameters
    ----------
    layers : DataFrame
        What `lthlab.results.layers` returns.
    """
    gone = ratios.collapsed(layers)
    if gone.empty:
        return Html(f"<p>None of {layers['key'].nunique()} masks cuts through a layer.</p>")
    by = ["method", "level", "sparsity", "layer", "find_lr"]
    items = [
        f"{name}: {row['method']} masks at {level_of(row)}, found at {row['find_lr']:g}, keep nothing of "
        f"{row['layer']} in {row['count']} of {row['of']} cases"
        for name, rows in results.panels(gone)
        for row in _counts(rows, layers, by)
    ]
    listed = "".join(f"<li>{html.escape(item)}.</li>" for item in items)
    return Html(f'<div class="warning">Layers that masks cut through:<ul>{listed}</ul></div>')


def _counts(gone: pd.DataFrame, layers: pd.DataFrame, by: Sequence[str]) -> list[dict[Any, Any]]:
    """Count masks that cut through a layer, and those that could."""
    alike = layers[layers["panel"].isin(gone["panel"])].groupby(list(by), dropna=False)["key"].nunique().rename("of")
    found = gone.groupby(list(by), dropna=False)["key"].nunique().rename("count").reset_index()
    return found.merge(alike.reset_index(), on=list(by)).to_dict("records")


def still_moving(steps: pd.DataFrame) -> Html:
    """Show by how much pruned shares still move after each step at which weights are ranked, panel by panel.

    Parameters
    ----------
    steps : DataFrame
        What `lthlab.ratios.by_step` returns, for masks of one method and level.
    """
    moving = ratios.left_to_move(steps)
    texts, about = {}, "points that a layer's share still moves, mean over layers"
    for name, rows in results.panels(moving) if len(moving) else []:
        cells = results.summarise(rows, ["find_lr", "prune_epoch"]).to_dict("records")
        texts[name, plots.sample_size(rows)] = [
            (f"{cell['find_lr']:g}", f"after epoch {cell['prune_epoch']:g}", percent(cell)) for cell in cells
        ]
    return _tables(texts, about)


def carried(pairs: pd.DataFrame) -> Html:
    """Show which share of tickets' advantage over globally random ones the counts per layer carry, panel by panel.

    Parameters
    ----------
    pairs : DataFrame
        What `lthlab.ratios.contrasts` returns, for masks of one method and step and one recipe of tickets.
    """
    texts, about = {}, "share of the advantage that the counts per layer carry"
    for name, rows in results.panels(pairs) if len(pairs) else []:
        cells = ratios.carried(rows, ["find_lr", "eval_lr", "sparsity"]).to_dict("records")
        texts[name, plots.sample_size(rows)] = [
            (
                f"{cell['find_lr']:g}" + f", trained at {cell['eval_lr']:g}" * (cell["find_lr"] != cell["eval_lr"]),
                f"{100 * (1 - cell['sparsity']):.3g} % left",
                _percent(cell) if pd.notna(cell["mean"]) else "advantage not seen",
            )
            for cell in cells
        ]
    return _tables(texts, about)


def _tables(texts: dict[tuple[str, str], list[tuple[str, str, str]]], about: str) -> Html:
    """Show for each panel its cells, of which each is a row's name, a column's name and a text."""
    shown = []
    for (panel, n), cells in texts.items():
        if cells:
            words = f"{panel}, {n}: {about}, with 95 % interval"
            grid = pd.DataFrame(cells, columns=["row", "column", "text"]).pivot(
                index="row", columns="column", values="text"
            )
            grid = grid[list(dict.fromkeys(column for _, column, _ in cells))]
            rows = table(grid.rename_axis(index="mask found at", columns=None).reset_index(), words)
            shown.append(f"<p>{html.escape(words)}</p>{rows}")
    return Html("".join(shown) or '<p class="nothing">The study has no masks or random tickets to say that of.</p>')


def searches(frame: pd.DataFrame) -> Html:
    """Say what iterative pruning costs more than one-shot pruning, and what accuracy that buys.

    Parameters
    ----------
    frame : DataFrame
        Tidy rows of trainings, at one learning rate per panel.
    """
    found = costs.saved(frame)
    sentences = []
    for name, rows in found.groupby("panel", sort=False):
        words = [
            f"{row['dear']:g} against {row['cheap']:g} epochs at {level_of(row)}: {_interval(row)}"
            for row in rows.sort_values("sparsity").to_dict("records")
        ]
        n = sorted(set(rows["n"]))
        sentences.append(
            f"{name}: LT on IMP minus LT on OMP masks (in points, paired{', 95 % t interval' * (n[-1] > 1)}, "
            f"n = {' to '.join(map(str, dict.fromkeys((n[0], n[-1]))))}), with epochs of the searches: "
            f"{'; '.join(words)}."
        )
    return found_out(sentences or ["There is no LT on masks of both IMP and OMP to compare."])


def bill(frame: pd.DataFrame) -> Html:
    """Show what each ticket costs in epochs and the accuracy it has, folded, with all numbers as CSV.

    Parameters
    ----------
    frame : DataFrame
        Tidy rows of trainings.
    """
    found = costs.table(frame)
    if found.empty:
        return Html('<p class="nothing">Nothing was trained.</p>')
    percent = {name: [f"{100 * value:.2f}" for value in found[name]] for name in ("mean", "low", "high")}
    shown = found.assign(**percent, sparsity=[f"{100 * (1 - sparsity):.3g}" for sparsity in found["sparsity"]])
    shown["low"] = shown["low"].where(found["n"] > 1)
    shown["high"] = shown["high"].where(found["n"] > 1)
    shown = shown.drop(columns=[name for name in results.VARIANT if name in shown and shown[name].isna().all()]).astype(
        {"level": "Int64"}
    )
    rows = table(shown.rename(columns=_SHOWN | {"sparsity": "left (%)"}), "Costs and accuracies of tickets")
    csv = download(found, "costs.csv", f"All {len(found)} rows (CSV)")
    return Html(f"<details><summary>What each ticket costs</summary>{rows}{csv}</details>")


def _over(rows: pd.DataFrame, by: Sequence[str], words: str) -> str:
    (cell,) = results.summarise(rows, by).to_dict("records")
    return words + _interval(cell)


def _interval(row: dict[Any, Any]) -> str:
    unseen = row["n"] > 1 and row["low"] <= 0 <= row["high"]
    return points(row) + ", no difference seen" * bool(unseen)


def _percent(row: dict[Any, Any]) -> str:
    mean, low, high = (100 * row[name] for name in ("mean", "low", "high"))
    if high - low > 100 * _WIDEST:
        return f"{mean:.0f} %, interval wider than {100 * _WIDEST} points"
    return f"{mean:.0f} % [{low:.0f}, {high:.0f}]".replace("-", "−")
