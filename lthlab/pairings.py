"""Finding and evaluating hyperparameters as HTML: envelopes, tables, swapped layer counts, early pruning (Lan)."""

import html
from collections.abc import Callable
from typing import Any

import pandas as pd

from lthlab import decoupling, markup, plots, reports, results, spec
from lthlab.errors import InputError
from lthlab.markup import Html


def finding(frame: pd.DataFrame) -> Html:
    """Say how the best of all cells compares with the best coupled one at the sparsest level, panel by panel.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study.
    """
    try:
        rows = decoupling.envelopes(frame)
    except InputError as error:
        return markup.found_out([f"No cell can be chosen: {error}."])
    if rows.empty:
        return markup.found_out(["Every mask was found with the hyperparameters that its ticket is trained with."])
    sentences = []
    for name, own in results.panels(decoupling.gains(rows)):
        by = ["method", "context", "ticket", "rewind"]
        for (method, context, ticket, rewind), cells in own[own["sparsity"] > 0].groupby(by, dropna=False, sort=False):
            where = ", ".join(
                filter(None, (name, str(context), f"{method} masks", decoupling.kind(str(ticket), str(rewind))))
            )
            sentences.append(_sentence(where, cells.sort_values("sparsity").to_dict("records")))
    return markup.found_out(sentences)


def _sentence(where: str, cells: list[dict[Any, Any]]) -> str:
    last = cells[-1]
    place = f"{where}, {markup.level_of(last)}"
    if not last["n"]:
        return f"{place}: no coupled cell has all replicates."
    seen = sum(row["low"] > 0 or row["high"] < 0 for row in cells)
    levels = f"we saw a difference at {seen or 'none'} of {len(cells)} levels"
    if last["same"]:
        return (
            f"{place}: the best of {last['decoupled_cells']} cells is a coupled one ({last['coupled_find']}); {levels}."
        )
    return (
        f"{place}: the best of {last['decoupled_cells']} cells (found with {last['decoupled_find']}, evaluated with "
        f"{last['decoupled_eval']}) minus the best of {last['coupled_cells']} coupled ones ({last['coupled_find']}), "
        f"chosen on validation images, is {markup.points(last)} test points (paired, 95 % t interval, n = {last['n']} "
        f"replicates); {levels}."
    )


def envelopes(frame: pd.DataFrame) -> Html:
    """Draw the best coupled and the best of all cells against sparsity, and say which they are (Lan Fig. 3)."""
    try:
        rows = decoupling.envelopes(frame)
    except InputError as error:
        return Html(f'<p class="warning">{html.escape(f"No envelopes: {error}.")}</p>')
    if rows.empty:
        return Html('<p class="nothing">No hyperparameter has coupled and other cells in one panel.</p>')
    about = "Best coupled and best of all cells, chosen by mean validation accuracy at each sparsity."
    drawn = reports.figure(plots.series_by_sparsity, rows, "facet", about, "envelopes")
    return Html(
        drawn
        + _tables(
            decoupling.gains(rows), _gains, "What was chosen (found → evaluated), test accuracy, of how many cells"
        )
    )


def _gains(rows: pd.DataFrame) -> pd.DataFrame:
    shown = []
    for row in rows[rows["sparsity"] > 0].sort_values(["method", "context", "sparsity"]).to_dict("records"):
        cells = {f"best {side}": _chosen(row, side) for side in ("decoupled", "coupled")}
        difference = "the same cell" if row["same"] else markup.points(row) if row["n"] else ""
        lacking = {"not whole": row["decoupled_left_out"] or ""}
        shown.append(_place(row) | cells | {"difference (points)": difference, "n": row["n"] or ""} | lacking)
    return pd.DataFrame(shown)


def _chosen(row: dict[Any, Any], side: str) -> str:
    """Say which cell is the best, of how many, and how many are as good."""
    if not row[f"{side}_cells"]:
        return "none whole"
    name = f"{row['hyperparameter'].replace('_', ' ')} "
    find, evaluate = (row[f"{side}_{end}"].removeprefix(name) for end in ("find", "eval"))
    cell = find if find == evaluate else f"{find} → {evaluate}"
    tied = f", tied with {row[f'{side}_tied']}" if row[f"{side}_tied"] else ""
    return f"{cell}: {100 * row[f'{side}_mean']:.1f} %, of {row[f'{side}_cells']}{tied}"


def crossings(frame: pd.DataFrame) -> Html:
    """Show tables of finding against evaluating values at the sparsest level, for each hyperparameter that varies."""
    tables = []
    for name in decoupling.hyperparameters(frame):
        found = decoupling.cells(frame, name)
        found = found[
            found["ticket"].isin(decoupling.TICKETS)
            & found["prune_at"].eq(decoupling.END)
            & found["layer_counts"].isna()
        ]
        found = found[found.groupby("panel")["sparsity"].transform("max") == found["sparsity"]]
        crossed = found.groupby(["panel", "context"])[["find", "eval"]].transform("nunique").max(axis=1) > 1
        if crossed.any():
            tables.append(
                _tables(
                    found[crossed],
                    _crossed,
                    f"Test accuracy (%) by {name.replace('_', ' ')} with 95 % t intervals, ◆ coupled",
                )
            )
    return Html("".join(tables) or '<p class="nothing">Nothing varies in finding or in evaluating.</p>')


def _crossed(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for every finding value, a column for every evaluating one."""
    texts = ["◆ " * row["coupled"] + _mean(row) for row in rows.to_dict("records")]
    rows = rows.assign(text=texts)
    shown = []
    by = ["method", "context", "ticket", "rewind", "find"]
    for _, own in rows.sort_values([*by, "eval"]).groupby(by, dropna=False):
        first, *_ = lines = own.to_dict("records")
        cells = {f"trained with {_value(line, 'eval')}": line["text"] for line in lines}
        shown.append(_place(first) | {"found with": _value(first, "find")} | cells)
    return pd.DataFrame(shown)


def _value(row: dict[Any, Any], side: str) -> str:
    return spec.fields_text({row["hyperparameter"]: row[side]})


def _mean(row: dict[Any, Any]) -> str:
    lacking = f" (n = {row['n']} of {row['replicates']})" if row["n"] < row["replicates"] else ""
    if not row["n"]:
        return "not done"
    return f"{markup.percent(row)}{lacking}"


def swaps(frame: pd.DataFrame) -> Html:
    """Draw tickets under their own and under imposed layer counts, and say what follows the counts (Lan Fig. 7)."""
    rows = decoupling.swaps(frame)
    if rows.empty:
        return Html('<p class="nothing">The study imposes no layer counts (prune.layer_counts).</p>')
    about = "Which weights of each layer are kept follows the training that was ranked, how many follows the counts."
    words = "Effects in points and the share of the counts, with 95 % intervals"
    drawn = reports.figure(plots.series_by_sparsity, rows, "facet", about, "layer_counts")
    return Html(drawn + _tables(decoupling.effects(rows), _effects, words))


def _effects(rows: pd.DataFrame) -> pd.DataFrame:
    shown: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows.to_dict("records"):
        place = _place(row) | {"difference": f"{row['first']} minus {row['second']}"}
        cells = shown.setdefault(tuple(place.values()), place)
        if row["effect"] == "share":
            known = not pd.isna(row["mean"])
            cells["share"] = f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" if known else "not known"
        else:
            cells[row["effect"]] = markup.points(row)
        cells["n"] = row["n"]
    return pd.DataFrame(shown.values())


def early(frame: pd.DataFrame) -> Html:
    """Draw tickets on masks ranked at several steps of the finding training, and say what it cost (Lan Fig. 9)."""
    rows = decoupling.early(frame)
    if rows.empty:
        return Html('<p class="nothing">The study ranks at one step of each training only (prune.at).</p>')
    about = "Masks ranked at several steps of the finding training."
    words = "Points above masks ranked at the end, with 95 % t intervals"
    drawn = reports.figure(plots.series_by_sparsity, rows, "facet", about, "early_pruning")
    return Html(drawn + _tables(decoupling.against_end(rows), _against_end, words))


def _against_end(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.sort_values(["method", "context", "sparsity", "order"])
    return pd.DataFrame(
        _place(row)
        | {
            "ranked": row["series"].removeprefix("pruned at "),
            "difference (points)": markup.points(row),
            "n": row["n"],
        }
        | {"search (epochs)": row["search_epochs"], "to the end (epochs)": row["end_epochs"]}
        for row in rows.to_dict("records")
    )


# --- parts ------------------------------------------------------------------------------------------------------------


_WORDS = {"masks": "{} masks", "tickets": "{}", "n": "n = {}", "level (left)": "level {}", "difference": "{}"}


def _place(row: dict[Any, Any]) -> dict[str, Any]:
    left = f"{100 * (1 - row['sparsity']):.3g} %"
    level = left if pd.isna(row["level"]) else f"{row['level']:g} ({left})"
    found, evaluated, trained = row["context"].rpartition("evaluated with ")
    context = {"found with": found.removeprefix("found with ").removesuffix(", "), "trained with": trained}
    kind = decoupling.kind(row["ticket"], row["rewind"])
    masks = {"masks": row["method"]} | ({"tickets": kind} if kind else {})
    return masks | (context if evaluated else {"with": row["context"]}) | {"level (left)": level}


def _tables(rows: pd.DataFrame, show: Callable[[pd.DataFrame], pd.DataFrame], label: str) -> str:
    """Show what is known of each panel in a table under its name, and what is the same in all rows in words."""
    parts = []
    for name, own in results.panels(rows) if len(rows) else []:
        table = show(own).fillna("")
        same = {
            column: table[column].iloc[0]
            for column in map(str, table)
            if len(table) > 1 and table[column].nunique() == 1
        }
        table = table.drop(columns=list(same))
        told = [_WORDS.get(column, f"{column} {{}}").format(value) for column, value in same.items() if value]
        words = ", ".join([label, name, *told])
        parts.append(f"<p><strong>{html.escape(words)}.</strong></p>{markup.table(table, words)}")
    return "".join(parts)
