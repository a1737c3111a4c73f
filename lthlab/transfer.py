"""Transferred tickets (Morcos et al. 2019): by what they were found on and are trained on, and their contrasts."""

import pandas as pd

from lthlab import markup, results, strokes
from lthlab.markup import Html

_FROM, _TO = "found_on", "trained_on"
_NETWORK = ["study", "network", "width", "shortcut", "ranking"]
_PLACE = [*_NETWORK, _TO, "method", "prune_at", "pruning", "layer_counts", "level", "sparsity"]
_KEPT = [
    *_NETWORK, "what", "ticket", "method", *results.VARIANT, _FROM, "source_number", _TO, "level",
    "rate", "sparsity", "replicate", "kept", "collapsed", "epoch", "metric", "value", "validation", "status", "note",
    "key",
]  # fmt: skip
REFERENCES = ("random", "own")
"""What transferred tickets are compared with: the random ticket on the target, and the target's own ticket."""


def rows(frame: pd.DataFrame, ticket: str | None = None) -> pd.DataFrame:
    """Choose what is compared on every target: tickets from every source, the random ticket and the dense network.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study.
    ticket : str, optional
        Tickets that are transferred: 'WR' (late reset, counted on the source; Morcos 3.1), 'LT', or 'RR', of which the
        mask alone is. By default 'WR', or 'LT' where there is none.

    Returns
    -------
    DataFrame
        Columns of a role but those of source, target and recipes, and instead of these found_on and trained_on: text
        of a data set, with the fields of the recipe that tell it from others on the same data, such as 'digits,
        optimizer adam'. A ticket is the target's own where both are equal. Random tickets ('RT') have fresh weights and
        a globally permuted mask (Morcos 3.1); theirs and the dense networks' found_on is None, and of several alike on
        one target the one that goes with the target's own ticket is taken, or else the first. source_number is that
        of found_on among the places of a network, from 0.
    """
    trained = frame[frame["what"] == "train"]
    ticket = ticket or ("WR" if (trained["ticket"] == "WR").any() else "LT")
    random = (trained["ticket"] == "RT") & (trained["scope"] == "global") & trained["rewind"].isna()
    dense = trained["ticket"] == "dense"
    trained = trained[random | dense | (trained["ticket"] == ticket)]
    network = [name for name in _NETWORK if name in trained]
    labelled = [_labelled(own) for _, own in trained.groupby(network, sort=False, dropna=False)]
    found = pd.concat(labelled) if labelled else trained.assign(**{_FROM: None, _TO: None, "source_number": None})
    whole = found["ticket"] == ticket
    tickets = found[whole].drop_duplicates([*network, _FROM, _TO, "level", "sparsity", "key"])  # panels may share some
    place = [name for name in (*_PLACE, "ticket", "replicate") if name in found]
    others = found[~whole].assign(foreign=found[_FROM] != found[_TO]).sort_values("foreign", kind="stable")
    others = others.drop_duplicates(place).assign(**{_FROM: None, "source_number": None})
    kept = [name for name in _KEPT if name in found]
    return pd.concat([tickets, others])[kept].reset_index(drop=True)


def _labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """Name what tickets of a network are found on and trained on; of the data only what differs."""
    sides = {}
    for name, side, data in ((_FROM, "find_", "source"), (_TO, "eval_", "target")):
        recipe = rows[[column for column in map(str, rows) if column.startswith(side)]].map(str)
        sides[name] = recipe.set_axis(recipe.columns.str.removeprefix(side), axis=1).assign(data=rows[data])
    places = pd.concat(sides.values()).drop_duplicates()
    first = [name for name in ("optimizer", "lr") if name in places]
    fields = [*first, *(name for name in map(str, places) if name not in (*first, "data"))]
    short = dict(zip(places["data"], _short(places["data"].to_list()), strict=True))
    texts = places["data"].map(short)
    for field in fields:
        alike = places.assign(text=texts).groupby("text", sort=False)
        if (alike.size() == 1).all():
            break
        differs = alike[field].transform("nunique") > 1
        texts = texts.where(~differs, texts + f", {field.replace('_', ' ')} " + places[field])
    names = dict(zip(places.itertuples(index=False, name=None), texts, strict=True))
    columns = list(places)
    found = {
        name: [names[key] for key in side[columns].itertuples(index=False, name=None)] for name, side in sides.items()
    }
    numbers = {text: number for number, text in enumerate(sorted(names.values()))}
    return rows.assign(**found, source_number=[numbers[text] for text in found[_FROM]])


def _short(texts: list[str]) -> list[str]:
    """Shorten texts such as 'digits (classes 0-1, 99 images)' by what all have in their brackets."""
    parts = [text.removesuffix(")").partition(" (") for text in texts]
    details = [detail.split(", ") if detail else [] for _, _, detail in parts]
    common = set.intersection(*map(set, details)) if details else set()
    own = [", ".join(part for part in detail if part not in common) for detail in details]
    return [f"{name} ({text})" if text else name for (name, _, _), text in zip(parts, own, strict=True)]


def matrix(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise accuracies by source, target and level (the lines of Morcos Figs. 2 to 5).

    Parameters
    ----------
    rows : DataFrame
        What `rows` returns.

    Returns
    -------
    DataFrame
        One row per place, ticket and found_on: n, mean, sd, low and high, as `lthlab.results.summarise`.
    """
    by = [*_PLACE, *results.VARIANT, "ticket", _FROM]
    return results.summarise(rows, [name for name in dict.fromkeys(by) if name in rows])


def differences(rows: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Subtract from every ticket what it is compared with on its target, replicate by replicate.

    Parameters
    ----------
    rows : DataFrame
        What `rows` returns.
    reference : {'random', 'own'}
        The random ticket on the target; or the target's own ticket, with which only transferred ones are compared.

    Returns
    -------
    DataFrame
        The rows of the tickets of which both are done, with `value` the difference and `ticket` saying of what.

    Raises
    ------
    ValueError
        If the reference is another.
    """
    if reference not in REFERENCES:
        raise ValueError(f"reference {reference!r} is not allowed; allowed: {', '.join(REFERENCES)}")
    done = rows[(rows["status"] == "done")]
    tickets = done[done[_FROM].notna()]
    own = tickets[_FROM] == tickets[_TO]
    place = [*_PLACE, "replicate"] + (["rewind"] if reference == "own" else [])
    place = [name for name in place if name in rows]
    other = tickets[own] if reference == "own" else done[done["ticket"] == "RT"]
    pairs = tickets[~own] if reference == "own" else tickets
    pairs = pairs.merge(other[[*place, "value"]], on=place, suffixes=("", "_of_other"), validate="many_to_one")
    difference = pairs["value"] - pairs.pop("value_of_other")
    return pairs.assign(value=difference, metric="difference", ticket=f"minus {reference}")


def profit(rows: pd.DataFrame) -> pd.DataFrame:
    """Count at how many levels tickets of every source differ from what they are compared with on every target.

    Parameters
    ----------
    rows : DataFrame
        What `rows` returns.

    Returns
    -------
    DataFrame
        One row per network, method, target, source and reference: reference ('random', 'own'); levels; above and
        below, at how many of them the whole t interval of the paired difference is on that side of zero; and, at the
        sparsest one, sparsity, level, n, mean, low and high.
    """
    found = [_counted(differences(rows, reference)).assign(reference=reference) for reference in REFERENCES]
    return pd.concat(found).reset_index(drop=True)


def _counted(pairs: pd.DataFrame) -> pd.DataFrame:
    by = [name for name in (*_NETWORK, "method", _TO, _FROM, "prune_at", "rewind") if name in pairs]
    cells = results.summarise(pairs, [*by, "level", "sparsity"]).sort_values("sparsity")
    cells = cells.assign(levels=1, above=cells["low"] > 0, below=cells["high"] < 0)
    groups = cells.groupby(by, dropna=False, sort=False)
    counts = groups[["levels", "above", "below"]].sum().astype(int)
    return counts.reset_index().merge(groups.tail(1).drop(columns=list(counts)), on=by)


# --- in words and tables --------------------------------------------------------------------------------------


def finding(rows: pd.DataFrame) -> Html:
    """Say how many transferred tickets differ from the random and the own ticket of their target at the sparsest level.

    Parameters
    ----------
    rows : DataFrame
        What `rows` returns.
    """
    counted = profit(rows)
    moved = counted[counted[_FROM] != counted[_TO]]
    sentences = [_sentence(name, own) for name, own in (results.panels(moved) if len(moved) else [])]
    how = "Better and worse: the whole 95 % t interval of the paired difference is above or below zero."
    nothing = "No transferred ticket is done together with what it is compared with."
    return markup.found_out([*sentences, how] if sentences else [nothing])


def _sentence(network: str, counted: pd.DataFrame) -> str:
    last = counted[counted["sparsity"] == counted["sparsity"].max()]
    words = []
    for reference, name in (("random", "the random ticket of their target"), ("own", "the target's own ticket")):
        cells = last[last["reference"] == reference]
        if len(cells):
            ends = dict.fromkeys(markup.signed(100 * cells["mean"].agg(end), 1) for end in ("min", "max"))
            better, worse = (cells["low"] > 0).sum(), (cells["high"] < 0).sum()
            words.append(
                f"of {len(cells)}, {better} do better and {worse} worse than {name} ({' to '.join(ends)} points)"
            )
    sizes = " to ".join(dict.fromkeys(str(last["n"].agg(end)) for end in ("min", "max")))
    place = markup.level_of(last.iloc[0].to_dict())
    return f"{network}, {place}, transferred tickets: {'; '.join(words)}; n = {sizes}."


def gains(rows: pd.DataFrame) -> Html:
    """Show for every source and target at how many levels a ticket differs from what it is compared with.

    Parameters
    ----------
    rows : DataFrame
        What `rows` returns.
    """
    counted = profit(rows)
    text = [
        f"{cell['above']} above, {cell['below']} below of {cell['levels']}; {markup.points(cell)}"
        for cell in counted.to_dict("records")
    ]
    by = [name for name in (*_NETWORK, "method", "prune_at", "rewind", _TO, _FROM) if name in counted]
    by = [name for name in by if name in (_TO, _FROM) or counted[name].nunique(dropna=False) > 1]
    known = counted[[*by, "reference"]].fillna(dict.fromkeys(by, "")).assign(text=text)
    wide = known.pivot(index=by, columns="reference", values="text").reset_index()
    names = {"random": "minus random ticket", "own": "minus own ticket"} | {name: name.replace("_", " ") for name in by}
    label = "At how many levels the interval is on one side of zero; the difference at the sparsest one, in points"
    wide = wide.rename_axis(columns=None).rename(columns=names)
    return Html(f"<p>{label}</p>{markup.table(wide, label)}")


def tables(rows: pd.DataFrame) -> Html:
    """Show accuracies by source and target, a table for every network and level, the sparsest one unfolded.

    Parameters
    ----------
    rows : DataFrame
        What `rows` returns.
    """
    shown, cells = [], matrix(rows)
    for network, found in results.panels(cells) if len(cells) else []:
        dense = found["ticket"] == "dense"
        for method, own in found[~dense].groupby("method", sort=False):
            own = own.assign(variant=strokes.variants(own))
            name = f"{network}, {method} masks"
            *others, last = [_crossed(level, found[dense], name) for _, level in own.groupby("sparsity")]
            folded = f"<details><summary>The other {len(others)} levels</summary>{''.join(others)}</details>"
            shown.append(last + folded * bool(others))
    return Html("".join(shown))


def _crossed(cells: pd.DataFrame, dense: pd.DataFrame, name: str) -> str:
    """One level: sources below each other, targets side by side, in % with intervals."""
    place = markup.level_of(cells.iloc[0].to_dict())
    label = f"{name}, {place}: accuracy in % by what tickets were found on (rows) and trained on (columns)"
    every = pd.concat([cells.fillna({_FROM: "random ticket"}), dense.fillna({_FROM: "dense network"})])
    told = every["variant"].fillna("").map(lambda text: f", {text}" if text else "")
    wide = every.assign(by=every[_FROM] + told)
    wide["text"] = [f"{markup.percent(cell)}, n = {cell['n']}" for cell in every.to_dict("records")]
    wide = wide.pivot(index="by", columns=_TO, values="text").rename_axis(index="found on", columns=None)
    rows = sorted(wide.index, key=lambda name: (name.startswith("dense network"), name.startswith("random ticket")))
    return f"<p>{label}</p>{markup.table(wide.loc[rows].reset_index(), label)}"
