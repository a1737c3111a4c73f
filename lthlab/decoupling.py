"""Hyperparameters that masks are found with against those that tickets are trained with (Lan).

A cell is a pair of recipes: one that the mask was found with and one that the ticket is trained with; it is coupled
if the two are the same. The unpruned network of a cell is trained as its tickets are, whatever the mask was found with.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lthlab import parts, results, spec
from lthlab.errors import InputError, nearest

END = "end"
"""What `prune_at` says in these frames of a training that was ranked at its end."""
EVERYTHING = "all of them"
"""What `hyperparameter` says where all that vary may differ between finding and evaluating."""
TICKETS = ("LT", "WR", "LRR", "FT")
"""Kinds of ticket that are drawn, each by itself."""
_RANDOM = {"global": "global random", "layer": "random, LPR kept"}
_KIND = ("ticket", "method", "pruning", "scope", "rewind", "schedule")
_SIZE = ("level", "sparsity")
_DONE = {"find": "found", "eval": "evaluated"}
_TIE = 1e-9


def hyperparameters(frame: pd.DataFrame) -> list[str]:
    """List the fields of the recipe that vary between the cells of any panel.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study.

    Returns
    -------
    list of str
        Names such as 'lr', without 'find_' and 'eval_'.
    """
    return list(dict.fromkeys(name for _, _, names in _panels(frame) for name in names))


def cells(frame: pd.DataFrame, hyperparameter: str) -> pd.DataFrame:
    """Summarise each pair of a finding and an evaluating value, all other fields equal.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study.
    hyperparameter : str
        Field of the recipe, such as 'lr', 'batch_size', 'weight_decay', 'optimizer' or 'epochs'.

    Returns
    -------
    DataFrame
        One row per panel, ticket, method, variant, level, context (the other fields that vary) and cell: find, eval,
        coupled, replicates (asked for), n (done), mean test accuracy in [0, 1] with its t interval (low, high), and
        mean validation accuracy. A cell of which nothing is done has n = 0.

    Raises
    ------
    InputError
        If no panel has several values of the field.
    """
    found = [_crossed(masked, names, hyperparameter) for masked, _, names in _panels(frame) if hyperparameter in names]
    if not found:
        known = hyperparameters(frame)
        allowed = nearest(hyperparameter, known) if known else "none varies, so set find and eval"
        raise InputError(f"hyperparameter '{hyperparameter}' does not vary in this frame; {allowed}")
    rows = pd.concat(found)
    by = [*_present(rows, *results.PANEL, *_KIND, "prune_at", "layer_counts", *_SIZE), "context"]
    by += ["find", "eval", "coupled"]
    asked = rows.groupby(by, dropna=False, sort=False)["replicate"].nunique().rename("replicates").reset_index()
    accuracy = results.summarise(rows, by)
    validation = results.summarise(rows.assign(value=rows["validation"]), by)[[*by, "mean"]]
    out = asked.merge(accuracy, how="left", on=by)
    out = out.merge(validation.rename(columns={"mean": "validation"}), how="left", on=by)
    return out.assign(n=out["n"].fillna(0).astype(int))


def kind(ticket: str, rewind: str) -> str:
    """Name a kind of ticket where it is not LT, as in 'WR 2ep' or 'LRR'."""
    return "" if ticket == "LT" else f"WR {rewind}" if ticket == "WR" else ticket


def curves(frame: pd.DataFrame, fixed: str = "eval", tickets: Sequence[str] = TICKETS) -> pd.DataFrame:
    """Choose what Lan's Figures 2, 4 and A2 to A7 draw: at each value of one side, a line for every value of the other.

    Masks are ranked at the end of the finding training and have their own counts per layer. Each line begins with the
    unpruned network, trained as the tickets of the line are; random tickets are those of the fixed value on both sides.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study.
    fixed : {'eval', 'find'}
        Side that has one value in each drawing.
    tickets : sequence of str, optional
        Kinds of ticket.

    Returns
    -------
    DataFrame
        Tidy rows without recipes, and the columns hyperparameter, context, find, eval, facet (text of the drawing),
        series (text of the line) and order (its number, from 0). Empty if nothing varies.
    """
    other = {"eval": "find", "find": "eval"}[fixed]
    found = []
    for masked, dense, names in _panels(frame):
        own = masked[_regular(masked)]
        for name in names:
            crossed = _crossed(own, names, name)
            several = crossed[crossed["ticket"].isin(tickets)].groupby(["ticket", "rewind"], dropna=False, sort=False)
            for (ticket, rewind), lines in several:
                if lines[other].nunique() < 2:
                    continue
                values = sorted(lines[other].unique())
                lines = lines.assign(order=lines[other].map(values.index))
                texts = {value: f"{_DONE[other]} with {_worded(name, value)}" for value in values}
                lines = lines.assign(series=lines[other].map(texts))
                random = crossed[crossed["ticket"].isin(["RT", "RR"]) & (crossed["find"] == crossed["eval"])]
                random = random[random["method"].isin(lines["method"]) & random[fixed].isin(lines[fixed])]
                rows = pd.concat([lines, _baseline(random, len(values))])
                titles = pd.Series([f"{_DONE[fixed]} with {_worded(name, value)}" for value in rows[fixed]], rows.index)
                told = kind(str(ticket), str(rewind))
                rows = rows.assign(facet=titles + _rest(rows) + (f", {told}" if told else ""))
                rows = rows.sort_values(["method", "context", fixed, "order", *_SIZE], kind="stable")
                found.append(_from_unpruned(rows, dense, names))
    return _plain(found, "hyperparameter", "context", "find", "eval", "facet", "series", "order")


def envelopes(frame: pd.DataFrame, tickets: Sequence[str] = TICKETS) -> pd.DataFrame:
    """Choose the best coupled and the best of all cells at each sparsity, on validation images (Lan Fig. 3).

    The choice goes by the mean validation accuracy over replicates, so `value`, the test accuracy, took no part in it.
    Masks are ranked at the end of the finding training and have their own counts per layer. Only cells of which all
    replicates are done compete. Of cells with equal means a coupled one goes before others,
    then the first in the order of the finding, then of the evaluating values. The decoupled envelope takes its maximum
    over more cells. Test images are new to the choice, but the trainings are not: a cell that was lucky in the seeds of
    its replicates is lucky on both sets of images, which flatters the envelope with more cells.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with a validation split.
    tickets : sequence of str, optional
        Kinds of ticket.

    Returns
    -------
    DataFrame
        Tidy rows without recipes, one per envelope and replicate: hyperparameter (one, while all other fields are
        coupled, or `EVERYTHING`), context, series ('best decoupled' or 'best coupled'), facet, order, find and eval
        (text of the chosen cell), coupled, cells (that competed), left_out (that lack a replicate), and tied (others
        that were as good). Where no cell competes, status is 'missing'. Level 0 is the unpruned network.

    Raises
    ------
    InputError
        If a training that is done has no validation accuracy.
    """
    found = []
    for masked, dense, names in _panels(frame):
        own = masked[masked["ticket"].isin(tickets) & _regular(masked)]
        kinds = own[_present(own, *_KIND)].drop_duplicates()
        unpruned = dense.drop(columns=list(kinds)).merge(kinds, how="cross")
        rows = pd.concat([own, unpruned])
        for name in [*names, *[EVERYTHING] * (len(names) > 1)]:
            crossed = _crossed(rows, names, name)
            crossed = crossed[crossed["alike"]]
            if crossed.loc[crossed["sparsity"] > 0, "coupled"].nunique() == 2:
                _refuse_unvalidated(crossed)
                found.append(_enveloped(crossed, [name] if name in names else names))
    return _plain(
        found, "hyperparameter", "context", "facet", "series", "order", "find", "eval", "coupled", "cells", "left_out",
        "tied",
    )  # fmt: skip


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Subtract the best coupled cell from the best of all, replicate by replicate.

    Parameters
    ----------
    rows : DataFrame
        What `envelopes` returns.

    Returns
    -------
    DataFrame
        One row per place: n, mean, low and high of the paired difference (fractions; 95 % t interval), and of each
        envelope, with the prefixes coupled_ and decoupled_: its mean test accuracy, find, eval, cells, left_out, tied.
        `same` where both chose one cell; then the difference is zero by that choice alone.
    """
    by = [*_present(rows, *results.PANEL, *_KIND, *_SIZE), "context"]
    told = ["find", "eval", "cells", "left_out", "tied", "value"]
    sides = []
    for side in ("decoupled", "coupled"):
        own = rows.loc[rows["series"] == f"best {side}", [*by, "replicate", *told]]
        sides.append(own.rename(columns={name: f"{side}_{name}" for name in told}))
    pairs = sides[0].merge(sides[1], on=[*by, "replicate"])
    pairs = pairs.assign(value=pairs["decoupled_value"] - pairs["coupled_value"], status="done")
    named = [f"{side}_{name}" for side in ("decoupled", "coupled") for name in told]
    places = pairs.groupby([*by, *(name for name in named if not name.endswith("_value"))], dropna=False, sort=False)
    means = places[["decoupled_value", "coupled_value"]].mean().reset_index()
    means = means.rename(columns={"decoupled_value": "decoupled_mean", "coupled_value": "coupled_mean"})
    out = means.merge(results.summarise(pairs.dropna(subset=["value"]), by), how="left", on=by)
    same = (out["coupled_find"] == out["decoupled_find"]) & (out["coupled_eval"] == out["decoupled_eval"])
    return out.assign(same=same, n=out["n"].fillna(0).astype(int))


def swaps(frame: pd.DataFrame, ticket: str = "LT") -> pd.DataFrame:
    """Choose masks with their own counts per layer and with those of masks found otherwise (Lan Fig. 7).

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with `prune.layer_counts`.
    ticket : str, optional
        Kind of ticket.

    Returns
    -------
    DataFrame
        Tidy rows without recipes: ranked and counts (text of the finding fields whose weights were ranked, and of those
        that gave the counts), first and second (the two in ascending order), context, facet, series, order. Empty if
        the study asks for no such masks.
    """
    found = []
    for masked, dense, names in _panels(frame):
        own = masked[(masked["ticket"] == ticket) & _ends(masked)]
        for fields in own["layer_counts"].dropna().map(_fields).drop_duplicates():
            finding = own[[f"find_{name}" for name in fields]].drop_duplicates().sort_values([f"find_{fields[0]}"])
            texts = list(dict.fromkeys(_text(row, fields) for row in finding.to_dict("records")))
            ranked = [_text(row, fields) for row in own[list(finding)].to_dict("records")]
            rest = [name for name in names if name not in fields]
            rows = _crossed(own, names, EVERYTHING).assign(
                ranked=ranked, counts=own["layer_counts"].fillna(pd.Series(ranked, own.index)),
                context=[_evaluated(row, names, rest) for row in own.to_dict("records")],
            )  # fmt: skip
            imposed = rows[rows["layer_counts"].notna() & rows["counts"].isin(texts)]
            pairs = {
                tuple(sorted(pair, key=texts.index)) for pair in zip(imposed["ranked"], imposed["counts"], strict=True)
            }
            for first, second in sorted(pairs, key=lambda pair: [texts.index(text) for text in pair]):
                orders = [(second, first), (first, second), (first, first), (second, second)]
                both = list(zip(rows["ranked"], rows["counts"], strict=True))
                chosen = rows[[pair in orders for pair in both]]
                both = list(zip(chosen["ranked"], chosen["counts"], strict=True))
                series = [f"{a} ranked, " + ("own counts" if a == b else f"counts of {b}") for a, b in both]
                chosen = chosen.assign(
                    first=first, second=second, order=[orders.index(pair) for pair in both], series=series,
                    hyperparameter=", ".join(fields), facet=f"{first} against {second}" + _rest(chosen),
                )  # fmt: skip
                chosen = chosen.sort_values(["method", "context", "order", *_SIZE], kind="stable")
                found.append(_from_unpruned(chosen, dense, names))
    return _plain(found, "hyperparameter", "context", "ranked", "counts", "first", "second", "facet", "series", "order")


def effects(rows: pd.DataFrame) -> pd.DataFrame:
    """Divide the difference between two finding values into what follows the counts per layer and the rest.

    Let a(p, q) be the test accuracy on masks of weights trained with p under the counts of masks found with q. The
    total a(first, first) − a(second, second) is the sum of the effect of the counts and of that of the ranks within the
    layers. The counts can be changed under either ranks, a(second, first) − a(second, second) or a(first, first) −
    a(first, second); the mean of the two is taken where both are there.

    Parameters
    ----------
    rows : DataFrame
        What `swaps` returns.

    Returns
    -------
    DataFrame
        Four rows per place, by effect: 'total', 'counts' and 'ranks', paired by replicate (fractions), and 'share', the
        effect of the counts over the total: n, mean, and the 95 % interval low to high, of Student's t, and for the
        share Fieller's (1954); a share is NaN where the interval of the total includes zero, for then its own has no
        bound. ways: under how many ranks (1 or 2) the counts were changed.
    """
    pruned = rows[rows["sparsity"] > 0]
    by = [*_present(pruned, *results.PANEL, *_KIND, *_SIZE), "context", "first", "second"]
    found, shares = [], []
    for place, group in pruned.groupby(by, dropna=False, sort=False):
        wide = group.pivot_table(index="replicate", columns="order", values="value").reindex(columns=range(4))
        ways = [way for way in (wide[0] - wide[3], wide[2] - wide[1]) if way.notna().any()]
        if not ways:
            continue
        total, counts = wide[2] - wide[3], pd.concat(ways, axis=1).mean(axis=1, skipna=False)
        whole = pd.DataFrame({"total": total, "counts": counts, "ranks": total - counts}).dropna()
        where: dict[str, Any] = dict(zip(by, place, strict=True)) | {"ways": len(ways)}
        found.append(whole.reset_index().melt("replicate", var_name="effect").assign(**where))
        ratio = dict(zip(("mean", "low", "high"), results.ratio(whole["counts"], whole["total"]), strict=True))
        shares.append(where | {"effect": "share", "n": len(whole)} | ratio)
    if not found:
        return pd.DataFrame(columns=[*by, "ways", "effect", "n", "mean", "low", "high"])
    each = results.summarise(pd.concat(found).assign(status="done"), [*by, "ways", "effect"])
    out = pd.concat([each, pd.DataFrame(shares)], ignore_index=True).drop(columns="sd")
    order = out["effect"].map(["total", "counts", "ranks", "share"].index)
    return out.assign(order=order).sort_values([*by, "order"], ignore_index=True).drop(columns="order")


def early(frame: pd.DataFrame, ticket: str = "LT") -> pd.DataFrame:
    """Choose tickets on masks of weights ranked at several steps of the finding training (Lan Fig. 9).

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with `prune.at`.
    ticket : str, optional
        Kind of ticket.

    Returns
    -------
    DataFrame
        Tidy rows without recipes: steps (iteration at which weights were ranked), epochs (the same in epochs), context,
        facet, series, order; `search_epochs` is what the search cost, of all its rounds. Empty if the study ranks
        at one step only. Steps that are the best of a training, not fixed, are left out.
    """
    found = []
    for masked, dense, names in _panels(frame):
        own = masked[(masked["ticket"] == ticket) & masked["method"].isin(["IMP", "OMP"])]
        own = own[own["layer_counts"].isna() & ~own["prune_at"].str.startswith("best", na=True)]
        if not len(own):
            continue
        per_epoch = np.ceil(own["train_size"] / own["find_batch_size"]).astype(int)
        at = own["prune_at"].where(own["prune_at"] != END, own["find_epochs"].map("{}ep".format))
        steps = [parts.iterations(text, number) for text, number in zip(at, per_epoch, strict=True)]
        context = [_evaluated(row, names, names) for row in own.to_dict("records")]
        told = "pruned at " + at + (own["prune_at"] == END).map({True: " (the end)", False: ""})
        rows = own.assign(steps=steps, epochs=np.asarray(steps) / per_epoch, context=context, series=told)
        several = rows.groupby(["method", "context"])["steps"].transform("nunique") > 1
        rows = rows[several]
        if len(rows):
            numbers = sorted(rows["epochs"].unique())
            titles = [
                ", ".join(filter(None, pair)) for pair in zip(rows["context"], rows["method"] + " masks", strict=True)
            ]
            rows = rows.assign(order=rows["epochs"].map(numbers.index), facet=titles)
            rows = rows.sort_values(["method", "context", "order", *_SIZE], kind="stable")
            found.append(_from_unpruned(rows.assign(hyperparameter="prune.at"), dense, names))
    return _plain(found, "hyperparameter", "context", "steps", "epochs", "facet", "series", "order")


def against_end(rows: pd.DataFrame) -> pd.DataFrame:
    """Subtract tickets on masks ranked at the last step from those on earlier ones, replicate by replicate.

    Parameters
    ----------
    rows : DataFrame
        What `early` returns.

    Returns
    -------
    DataFrame
        One row per place and earlier step: series, epochs, search_epochs (that its search cost), end_epochs (what that
        of the last step cost), n, and mean, low, high of the difference (fractions; 95 % t interval).
    """
    pruned = rows[rows["sparsity"] > 0]
    by = [*_present(pruned, *results.PANEL, *_KIND, *_SIZE), "context"]
    last = pruned[pruned["prune_at"] == END]
    sides = ["replicate", "value", "search_epochs"]
    before = pruned[pruned["prune_at"] != END][[*by, "series", "order", "epochs", *sides]]
    pairs = before.merge(last[[*by, *sides]], on=[*by, "replicate"], suffixes=("", "_end"))
    pairs = pairs.assign(value=pairs["value"] - pairs["value_end"], status="done").dropna(subset=["value"])
    pairs = pairs.rename(columns={"search_epochs_end": "end_epochs"})
    return results.summarise(pairs, [*by, "order", "series", "epochs", "search_epochs", "end_epochs"])


# --- parts --------------------------------------------------------------------------------------------------------


def _panels(frame: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, pd.DataFrame, list[str]]]:
    """Split into panels: trainings under masks, unpruned networks trained like these, and the fields that vary."""
    rows = frame[(frame["what"] == "train") & ~frame["ticket"].isin(["search", "SDT", "GMP"])]
    recipes = [name for name in map(str, rows) if name.startswith(("find_", "eval_"))]
    lists = [name for name in recipes if len(rows) and isinstance(rows[name].iloc[0], list)]
    rows = rows.astype(dict.fromkeys(lists, str)).assign(
        value=pd.to_numeric(rows["value"].where(rows["status"] == "done")),
        validation=pd.to_numeric(rows["validation"].where(rows["status"] == "done")),
        prune_at=rows["prune_at"].mask(rows["prune_at"] == rows["find_epochs"].map("{}ep".format), END),
    )
    for _, panel in rows.groupby(_present(rows, *results.PANEL), dropna=False, sort=False):
        masked, dense = panel[panel["ticket"] != "dense"], panel[panel["ticket"] == "dense"]
        pairs = [(name[5:], masked[[name, f"eval_{name[5:]}"]]) for name in recipes if name.startswith("find_")]
        names = [name for name, pair in pairs if len(pd.unique(pair.to_numpy().ravel())) > 1]
        evaluated = [f"eval_{name}" for name in names]
        idle = [name for name in recipes if name[5:] not in (*names, "epochs", "batch_size")]
        masked, dense = masked.drop(columns=idle), dense.drop(columns=idle)
        if names:
            dense = dense.merge(masked[evaluated].drop_duplicates(), on=evaluated)
        dense = dense.drop_duplicates([*evaluated, "replicate"])
        yield masked, dense.assign(**{f"find_{name}": dense[f"eval_{name}"] for name in names}), names


def _present(frame: pd.DataFrame, *names: str) -> list[str]:
    return [name for name in names if name in frame]


def _crossed(rows: pd.DataFrame, names: Sequence[str], chosen: str) -> pd.DataFrame:
    """Note the values of a hyperparameter and of its context.

    coupled: finding and evaluating recipes are the same; alike: they are, but for what was chosen.
    """
    same = pd.DataFrame({name: rows[f"find_{name}"] == rows[f"eval_{name}"] for name in names}, rows.index)
    rest = [name for name in names if chosen not in (name, EVERYTHING)]
    context = [_context(row, rest) for row in rows.to_dict("records")]
    out = rows.assign(hyperparameter=chosen, context=context, coupled=same.all(axis=1), alike=same[rest].all(axis=1))
    return out if chosen == EVERYTHING else out.assign(find=rows[f"find_{chosen}"], eval=rows[f"eval_{chosen}"])


def _context(row: dict[Any, Any], names: Sequence[str]) -> str:
    """Say what the other fields that vary are."""
    found = []
    for name in names:
        find, evaluate = row[f"find_{name}"], row[f"eval_{name}"]
        text = _worded(name, find)
        found.append(text if find == evaluate else f"{text} to find, {_worded(name, evaluate)} to evaluate")
    return ", ".join(found)


def _evaluated(row: dict[Any, Any], names: Sequence[str], finding: Sequence[str]) -> str:
    """Say what a ticket was found with, of some of the fields that vary, and what it is trained with."""
    found = [f"found with {_text(row, finding)}"] if finding else []
    return ", ".join([*found, *[f"evaluated with {_text(row, names, 'eval')}"] * bool(names)])


def _text(row: dict[Any, Any], names: Sequence[str], side: str = "find") -> str:
    return spec.fields_text({name: row[f"{side}_{name}"] for name in names})


def _worded(name: str, value: Any) -> str:
    return spec.fields_text({name: value})


def _fields(text: str) -> list[str]:
    """Names of the fields in a text such as 'lr 0.05, batch size 64'."""
    return [part.rpartition(" ")[0].replace(" ", "_") for part in text.split(", ")]


def _ends(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Whether masks are of weights at the end of the finding training (its best epoch where none is) or of none."""
    steps = rows["prune_at"].dropna().unique()
    best = sorted(step for step in steps if step.startswith("best"))
    return rows["prune_at"].isna() | (rows["prune_at"] == (best[-1] if best and END not in steps else END))


def _regular(rows: pd.DataFrame) -> "pd.Series[bool]":
    return _ends(rows) & rows["layer_counts"].isna()


def _rest(rows: pd.DataFrame) -> "pd.Series[str]":
    """What a drawing's title has beside the fixed value: context and masks."""
    told = rows["context"].map(lambda text: f", {text}" if text else "")
    return told + rows["method"].map(lambda method: f", {method} masks")


def _baseline(rows: pd.DataFrame, first: int) -> pd.DataFrame:
    """Name random tickets, RR only where there are no others; `first` is the number of the first line."""
    random = rows[(rows["ticket"] == "RT") & (rows["rewind"] == "0ep") & rows["scope"].isin(_RANDOM)]
    if random.empty:
        return rows[rows["ticket"] == "RR"].assign(series="RR, the ticket's mask", order=first)
    scopes = [scope for scope in _RANDOM if (random["scope"] == scope).any()]
    numbers = random["scope"].map({scope: first + n for n, scope in enumerate(scopes)})
    return random.assign(series=random["scope"].map(_RANDOM), order=numbers)


def _from_unpruned(rows: pd.DataFrame, dense: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Begin every line with the unpruned network that is trained as its tickets are."""
    evaluated = [f"eval_{name}" for name in names]
    told = [
        "method",
        "hyperparameter",
        "context",
        "find",
        "eval",
        "ranked",
        "counts",
        "first",
        "second",
        "facet",
        "series",
    ]
    lines = rows[[*_present(rows, *told, "order", "prune_at"), *evaluated]].drop_duplicates()
    unpruned = dense.drop(columns=["method", "prune_at"])
    first = unpruned.merge(lines, how="inner", on=evaluated) if names else unpruned.merge(lines, how="cross")
    return pd.concat([rows, first])


def _refuse_unvalidated(rows: pd.DataFrame) -> None:
    lacking = rows[(rows["status"] == "done") & rows["validation"].isna()]
    if len(lacking):
        where = str(lacking.iloc[0].get("panel", "this panel"))
        raise InputError(
            f"{where}: no validation accuracy, without which the best cell would be chosen on test images; "
            "set data.val_size above 0"
        )


def _enveloped(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Choose the best coupled cell and the best of all at each place."""
    place = [*_present(rows, *results.PANEL, *_KIND, *_SIZE), "context"]
    cell = [f"{side}_{name}" for name in names for side in ("find", "eval")]
    parts = [
        (f"{row['method']} masks", kind(row["ticket"], row["rewind"]), row["context"])
        for row in rows[["method", "ticket", "rewind", "context"]].to_dict("records")
    ]
    rows = rows.assign(facet=[", ".join(filter(None, words)) for words in parts])
    found = []
    for _, group in rows.groupby(place, dropna=False, sort=False):
        one = group.groupby([*cell, "coupled"], dropna=False)
        means = one.agg(n=("value", "count"), score=("validation", "mean")).reset_index()
        for order, side in enumerate(("decoupled", "coupled")):
            asked = means[means["coupled"]] if side == "coupled" else means
            found.append(_best(group, asked, cell, names).assign(series=f"best {side}", order=order))
    return pd.concat(found)


def _best(group: pd.DataFrame, asked: pd.DataFrame, cell: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """Choose the best of the cells of which all replicates are done."""
    whole = asked[asked["n"] == group["replicate"].nunique()]
    counted = {"cells": len(whole), "left_out": len(asked) - len(whole)}
    if whole.empty:
        nothing = dict.fromkeys(("value", "validation", "find", "eval", "key"))
        return group.drop_duplicates("replicate").assign(**nothing, **counted, status="missing", tied=0)
    best = whole[whole["score"] > whole["score"].max() - _TIE].sort_values("coupled", ascending=False, kind="stable")
    chosen = best.iloc[:1]
    texts = {side: _text(chosen.to_dict("records")[0], names, side) for side in ("find", "eval")}
    return group.merge(chosen[[*cell]], on=list(cell)).assign(**texts, **counted, tied=len(best) - 1)


def _plain(found: Sequence[pd.DataFrame], *columns: str) -> pd.DataFrame:
    """Join rows and leave recipes out, which `columns` and titles tell."""
    if not found:
        return pd.DataFrame(columns=[*results.PANEL, "status", *columns])
    rows = pd.concat(found, ignore_index=True)
    return rows[[name for name in map(str, rows) if not name.startswith(("find_", "eval_")) and name != "alike"]]
