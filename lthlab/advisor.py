"""What is found about early winning tickets as HTML: advice and what it costs, heat maps, slopes, gradual pruning."""

import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lthlab import early, results, saturation
from lthlab.markup import Html, download, found_out, heat, interval, percent, points, signed, table

SAVED, LOST = 0.25, 0.005
"""What advice should reach: the least share of a search's epochs saved, and the most accuracy lost."""
_NO_CHANGE = {
    "missing": "is missing",
    "no change": "does not change by more than its noise",
    "too few": f"has fewer than {saturation.FEWEST} steps",
    "moves on": "still moves at the end",
}
_WAYS = {
    ("others", "step"): "the others in hindsight",
    ("others", "known"): "the others when they know",
    ("own", "known"): "its own curves when they tell",
}
_WHEN = {"OMP": "at once, {prune_at}", "GMP": "gradually, {pruning}", "IMP": "iteratively, {prune_at}"}
_THEN = {
    "LT": "initial weights",
    "WR": "weights of {rewind}",
    "LRR": "the ranked weights",
    "GMP": "nothing anew",
}
_MEAN = ("mean", "low", "high", "n")
_HIDDEN = ("step", "known", "named", "plateau", "change", "noise")


def advice(signals: pd.DataFrame, tickets: pd.DataFrame, kind: str = "LRR") -> Html:
    """Say at which epoch the signals advise to prune, and show what it costs and saves to follow them.

    Parameters
    ----------
    signals : DataFrame
        What `lthlab.early.signals` returns.
    tickets : DataFrame
        What `lthlab.early.tickets` returns, of one kind.
    kind : str, optional
        Its name.
    """
    said, judged = saturation.advice(signals), saturation.summary(saturation.evaluate(signals, tickets))
    sentences, tables = [], []
    for name, cell, own in _cells(said):
        followed = _same(judged, cell).to_dict("records")
        sentences.append(f"{name}: {_advised(own, _split(signals, cell))} {_judged(followed, kind)}")
        if followed:
            words = f"{name}: {kind} of a replicate at the advised epoch, against its {kind} ranked at the end"
            tables.append(_titled(f"{words} (paired, 95 % t interval)", table(_followed(followed), words)))
    none = ["No mask is ranked at several steps, so nothing advises when to prune."]
    return Html(found_out(sentences or none) + "".join(tables))


def _advised(rows: pd.DataFrame, split: str) -> str:
    by_name = {row["signal"]: row for row in rows.to_dict("records")}
    vote = by_name.pop(saturation.VOTE)
    told = "; ".join(f"{name} {_state(row, split if name == 'PPR' else '')}" for name, row in by_name.items())
    counted = [row for row in by_name.values() if row["state"] in saturation.CHANGING]
    about = f"{told} (n = {vote['n']}, tolerance {100 * saturation.TOLERANCE:g} % of the change)."
    if not counted:
        return f"{about} None of them changes, so there is no advice."
    most = f"{len(counted) // 2 + 1} of {len(counted)}"
    if np.isnan(vote["step"]):
        return f"{about} Fewer than {most} saturate, so the advice is to prune at the end."
    saves = f"saves {_share(vote['saved_step'])} of the epochs of a search"
    text = f"{about} {most} have saturated by epoch {vote['step']:g} of {vote['end']:g}: pruning there {saves}."
    if np.isnan(vote["known"]):
        return f"{text} Nobody would have known it before the end."
    rest = ", too early, for a rest on the way looked like the end" * bool(vote["known"] < vote["step"])
    return (
        f"{text} Who watches knows at epoch {vote['known']:g}{rest}: that saves {_share(vote['saved_known'])}, and "
        f"{_share(vote['saved_net'])} less what PPR took."
    )


def _state(row: dict[Any, Any], split: str) -> str:
    words = f" on {split} images" * bool(split)
    if row["state"] != "saturates":
        return _NO_CHANGE[row["state"]] + words * (row["state"] != "missing")
    known = "not known before the end" if np.isnan(row["known"]) else f"known at {row['known']:g}"
    return f"saturates at epoch {row['step']:g}{words} ({known})"


def _judged(followed: list[dict[Any, Any]], kind: str) -> str:
    """What following the advice of others cost, at the epoch at which they know."""
    if not followed:
        return f"There is no {kind} ranked at these steps and at the end, so the advice is not judged."
    (row,) = [row for row in followed if (row["advisers"], row["reading"]) == ("others", "known")] or followed[:1]
    alone = "".join(
        f" By its own curves alone a search saves {_share(own['saved'])}, and {_share(own['net'])} less its PPR."
        for own in followed
        if own["advisers"] == "own" and own is not row
    )
    way = _WAYS[row["advisers"], row["reading"]]
    return (
        f"Replicates that follow the advice of {way} get {points(row)} points (95 % t interval, n = {row['n']}) and "
        f"save {_share(row['saved'])} of the epochs. Of the aim, {_share(SAVED)} saved is {_reached(row)}, at most "
        f"{100 * LOST:g} points lost is {_kept(row)}.{alone}"
    )


def _reached(row: dict[Any, Any]) -> str:
    return "reached" if row["saved"] >= SAVED else "missed"


def _kept(row: dict[Any, Any]) -> str:
    """Whether the loss is within the aim, as far as the interval says."""
    if row["n"] < 2:
        return "not certain"
    least = -LOST - 1e-9
    return "reached" if row["low"] >= least else "missed" if row["high"] < least else "not certain"


def _followed(rows: list[dict[Any, Any]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "advice of": _WAYS[row["advisers"], row["reading"]],
            "epoch": " to ".join(dict.fromkeys(f"{row[name]:g}" for name in ("first", "last"))),
            "points": points(row),
            "n": row["n"],
            "epochs saved": _share(row["saved"]),
            "less its PPR": _share(row["net"]),
            f"{100 * LOST:g} lost at most": _kept(row),
        }
        for row in rows
    )


def evidence(signals: pd.DataFrame, tickets: pd.DataFrame) -> Html:
    """Show, folded, where each signal saturates, and every ticket that followed the advice, with CSV files.

    Parameters
    ----------
    signals, tickets : DataFrame
        As in `advice`.
    """
    said, judged = saturation.advice(signals), saturation.evaluate(signals, tickets)
    parts = []
    for name, cell, own in _cells(said):
        shown = own[["signal", "n", "state", *_HIDDEN, "saved_step", "saved_known", "saved_net"]]
        for column in shown.columns[3:]:
            shown = shown.assign(**{column: ["" if np.isnan(v) else f"{v:.3g}" for v in shown[column].astype(float)]})
        parts.append(_titled(name, table(shown, f"Signals, {name}")))
        followed = _same(judged, cell)[["advisers", "reading", "replicate", "epoch", "value", "saved", "net"]]
        if len(followed):
            values = [signed(100 * value, 2) for value in followed["value"]]
            rows = followed.assign(value=values).round({"saved": 3, "net": 3}).rename(columns={"value": "points"})
            parts.append(table(rows, f"Tickets that followed the advice, {name}"))
    files = download(said, "advice.csv", "All signals (CSV)") + download(judged, "followed.csv", "All tickets (CSV)")
    return Html(f"<details><summary>The evidence in numbers</summary>{''.join(parts)}{files}</details>")


def grid(tickets: pd.DataFrame, baseline: pd.DataFrame | None = None) -> Html:
    """Show accuracy by the epoch of ranking (columns, s) and of rewinding (rows, v), as Sooner's Figure 1.

    Parameters
    ----------
    tickets, baseline : DataFrame
        As in `lthlab.early.grid`.
    """
    if tickets.empty:
        return Html('<p class="nothing">The study has no tickets on masks that were ranked at several steps.</p>')
    rows = early.grid(tickets, baseline)

    def shown(own: pd.DataFrame, name: str) -> str:
        pruned = own.loc[own["order"] > 0, "mean"] * 100
        cells = own.pivot(index=["order", "row"], columns="prune_epoch", values="mean").droplevel("order") * 100
        return heat(_named(cells, "v", "s"), name, (pruned.min(), pruned.max()))

    return _tables(rows, "test accuracy (%) of tickets ranked at epoch s, rewound to v", shown, "grid")


def schedules(frame: pd.DataFrame) -> Html:
    """Show what pruning at once, over a window or iteratively costs and brings, as Sooner's Tables 2 to 4.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with tickets on gradual masks.
    """
    found = early.schedules(frame)
    if found.empty:
        return Html('<p class="nothing">The study has no tickets on gradual masks.</p>')

    def shown(own: pd.DataFrame, name: str) -> str:
        change = ["change", "change_low", "change_high", "n"]
        lines = [
            {
                "pruned": _WHEN[row["method"]].format_map(row | {"pruning": _briefly(str(row["pruning"]))}),
                "%": f"{100 * row['sparsity']:.3g}",
                "then trained": _THEN[row["ticket"]].format_map(row), "epochs": _epochs(row),
                "accuracy (%)": percent(row),
                "minus dense (points)": points(dict(zip(_MEAN, (row[name] for name in change), strict=True))),
            }
            for row in own.to_dict("records")
        ]  # fmt: skip
        return table(pd.DataFrame(lines), name)

    about = "test accuracy and epochs of search + training, with 95 % t intervals"
    return _tables(found, about, shown, "schedules", by_sparsity=False)


def distances(rows: pd.DataFrame) -> Html:
    """Show the Hamming distances between masks of several steps, as Sooner's Figure 3, and how much they share.

    Parameters
    ----------
    rows : DataFrame
        What `lthlab.results.measured` returns of the measure 'hamming'.
    """
    if rows.empty:
        return Html('<p class="nothing">No distances between masks are done (measures.hamming).</p>')
    found = early.distances(rows)

    def shown(own: pd.DataFrame, name: str) -> str:
        cells = own.pivot(index="first_epoch", columns="second_epoch", values="mean")
        over = own.pivot(index="first_epoch", columns="second_epoch", values="overlap") * 100
        random, most = own["random"].mean(), own["maximum"].mean()
        note = f"Independent masks of these densities would differ in {random:.3f}, and no two in more than {most:.3f}."
        far = heat(_named(cells, "s", "later s"), name, (0, random), 3)
        return f"{far}<p>{note} Kept weights that both masks have in common, in %:</p>" + heat(
            _named(over, "s", "later s"), f"Overlap, {name}", (0, 100), 0
        )

    return _tables(found, "share of prunable weights of which two masks differ", shown, "distances")


def slopes(rows: pd.DataFrame) -> Html:
    """Show for every interval by how much the spread of weights changes, and what equation (5) of Sooner predicts.

    Parameters
    ----------
    rows : DataFrame
        What `lthlab.early.spreads` returns.
    """
    found = early.slopes(rows) if len(rows) else rows
    if found.empty:
        return Html('<p class="nothing">There is no prediction: no spreads (measures.weight_std), or no SGD.</p>')

    def shown(own: pd.DataFrame, name: str) -> str:
        lines = []
        for (since, epoch), own_ in own.groupby(["since_epoch", "at_epoch"]):
            (cell,) = results.summarise(own_, ["at_epoch"]).to_dict("records")
            lines.append({
                "epochs": f"{since:g} to {epoch:g}", "measured (%)": signed(100 * own_["change"].mean(), 2),
                "predicted (%)": signed(100 * own_["expected"].mean(), 2), "ratio": interval(cell).replace("-", "−"),
                "of layers": f"{own_['least'].mean():.2f} to {own_['most'].mean():.2f}".replace("-", "−"),
                "n": cell["n"],
            })  # fmt: skip
        return table(pd.DataFrame(lines), name)

    return _tables(found, "change of the spread of weights, mean over layers", shown, "slopes", by_sparsity=False)


def gradual(frame: pd.DataFrame) -> Html:
    """Compare what networks memorise after gradual and after one-shot pruning, as Sooner's Table 1.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with `measures.memorization` and a list in `prune.gradual`.
    """
    found = early.gradual(frame)
    if found.empty:
        return Html('<p class="nothing">The study has no gradual masks by a list to compare with one-shot ones.</p>')

    def shown(own: pd.DataFrame, name: str) -> str:
        lines = [
            {
                "images": f"{row['images']:g}", "epoch": f"{row['prune_epoch']:g}",
                "pruned (%)": f"{100 * row['sparsity']:g}",
                "one-shot (%)": f"{100 * row['one_shot']:.1f}", "gradual (%)": f"{100 * row['gradual']:.1f}",
                "gradual − one-shot (points)": points(row), "n": row["n"],
            }
            for row in own.sort_values(["images", "prune_epoch"]).to_dict("records")
        ]  # fmt: skip
        return table(pd.DataFrame(lines), name)

    about = "training accuracy on random labels, paired difference with 95 % t interval"
    return _tables(found, about, shown, "gradual", by_sparsity=False)


# --- parts ----------------------------------------------------------------------------------------------------------


def _cells(rows: pd.DataFrame, by_sparsity: bool = True) -> list[tuple[str, "pd.Series[Any]", pd.DataFrame]]:
    """Split rows by panel, learning rate of the masks and sparsity, each with its name and its columns."""
    found = []
    for panel, own in results.panels(rows) if len(rows) else []:
        rates = own["find_lr"].nunique() > 1
        columns = ["find_lr", *(["sparsity"] if by_sparsity and "sparsity" in own else [])]
        for _, cell in own.groupby(columns, dropna=False, sort=True):
            first = cell.iloc[0]
            words = [panel, *([f"masks found at {first['find_lr']:g}"] if rates else [])]
            if by_sparsity and pd.notna(first.get("sparsity")):
                words.append(f"{100 * (1 - first['sparsity']):.3g} % of the {results.unit(cell)} left")
            place = [
                name for name in saturation.cells(rows) if name in (*results.PANEL, *columns) or name[:5] == "find_"
            ]
            found.append((", ".join(words), first[place], cell))
    return found


def _same(rows: pd.DataFrame, cell: "pd.Series[Any]") -> pd.DataFrame:
    known = cell.index.intersection(rows.columns)
    same = [(rows[name] == cell[name]) | (rows[name].isna() & pd.isna(cell[name])) for name in known]
    return rows[np.logical_and.reduce(same)] if len(rows) else rows


def _split(signals: pd.DataFrame, cell: "pd.Series[Any]") -> str:
    own = _same(signals, cell)
    return next(iter(own.loc[own["signal"] == "PPR", "split"]), "")


def _tables(
    rows: pd.DataFrame, about: str, show: Callable[[pd.DataFrame, str], str], name: str, by_sparsity: bool = True
) -> Html:
    """Show each panel and sparsity under its name, and all rows as a CSV file."""
    parts = []
    for panel, _, own in _cells(rows, by_sparsity):
        words = f"{panel}: {about}"
        counts = sorted(set(own["n"])) if "n" in own else []
        n = f" (n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} replicates)" if counts else ""
        parts.append(_titled(words + n, show(own, words)))
    return Html("".join(parts) + download(rows, f"{name}.csv", f"All {len(rows)} rows, with n and intervals (CSV)"))


def _titled(words: str, shown: str) -> str:
    return f"<p><strong>{html.escape(words)}.</strong></p>{shown}"


def _named(cells: pd.DataFrame, index: str, columns: str) -> pd.DataFrame:
    """Write epochs as they are said."""
    words: Sequence[list[str]] = [
        [name if isinstance(name, str) else f"{name:g}" for name in axis] for axis in (cells.index, cells.columns)
    ]
    return pd.DataFrame(cells.to_numpy(), pd.Index(words[0], name=index), pd.Index(words[1], name=columns))


def _briefly(pruning: str) -> str:
    """Leave out of a schedule's words what the paper's schedules have in common."""
    return pruning.removeprefix("cubic ").removesuffix(" every 1ep")


def _epochs(row: dict[Any, Any]) -> str:
    return f"{row['search_epochs']:g} + {row['train_epochs']:g}"


def _share(value: float) -> str:
    return f"{signed(100 * value, 0)} %".removeprefix("+")
