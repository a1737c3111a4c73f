"""Layer-wise pruning ratios: against even pruning, settings and steps; what of a ticket's accuracy they carry."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lthlab import results

SEARCH = ("method", "prune_at", "pruning", "layer_counts")
"""Columns that say how a mask was found."""
WEIGHTS = ("rewind", "schedule")
"""Columns that say which weights a search, or a ticket, began with."""
LADDER = ("rate", "level", "sparsity")
"""Columns that say how sparse a mask is."""
_NAMES = {"find_lr": "learning rate"}
CONTRASTS = {
    "ticket − global": ("ticket", "global"),
    "ticket − layer": ("ticket", "layer"),
    "layer − global": ("layer", "global"),
    "layer − even": ("layer", "even"),
}
"""What `contrasts` subtracts: the ticket, and random tickets permuted within layers, globally, or even."""


def cell(frame: pd.DataFrame, *without: str) -> list[str]:
    """List the columns that tell masks apart, the replicate aside.

    Parameters
    ----------
    frame : DataFrame
        Rows of masks, or of what stands on them.
    *without : str
        Columns that are left out.
    """
    names = (*results.PANEL, *SEARCH, *WEIGHTS, *LADDER, *(name for name in map(str, frame) if name[:5] == "find_"))
    return [name for name in names if name in frame and name not in without]


def plain(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Write lists, as some fields of recipes are, as text."""
    return frame.assign(
        **{name: frame[name].map(str) for name in names if any(isinstance(v, list) for v in frame[name])}
    )


def alike(rows: pd.DataFrame, method: str | None = None, latest: bool = True) -> pd.DataFrame:
    """Choose what stands on masks of one method, with their own counts per layer, of one kind of chain.

    Parameters
    ----------
    rows : DataFrame
        Tidy rows of masks, layers or trainings.
    method : str, optional
        Whose masks; by default of OMP, or of IMP where there are none of OMP.
    latest : bool, optional
        Whether only those ranked last count (`lthlab.results.ranked_last`).

    Returns
    -------
    DataFrame
        Rows of the chain that rewinds to the earliest step, of IMP masks.
    """
    method = method or ("OMP" if rows["method"].eq("OMP").any() else "IMP")
    own = rows[(rows["method"] == method) & rows["layer_counts"].isna()]
    if own.empty:
        return own
    chains = results.step_epochs(own, "rewind").fillna(np.inf)
    chains = chains.where(own["rewind"].notna() & (own["what"] == "mask"), -1.0)
    own = own[chains == chains.groupby(own["panel"]).transform("min")]
    return results.ranked_last(own, ["panel"]) if latest else own


def varied(rows: pd.DataFrame) -> str:
    """Name the column of a setting that masks were found with several values of; the learning rate if there is none."""
    numbers = [name for name in map(str, rows) if name[:5] == "find_" and pd.api.types.is_numeric_dtype(rows[name])]
    return next((name for name in ["find_lr", *numbers] if rows[name].nunique() > 1), "find_lr")


def found_with(layers: pd.DataFrame, field: str = "find_lr") -> pd.DataFrame:
    """Tell masks of a panel apart by a setting that they were found with, in order of its values.

    Parameters
    ----------
    layers : DataFrame
        What `lthlab.results.layers` returns.
    field : str, optional
        Column of numbers, such as 'find_weight_decay'.

    Returns
    -------
    DataFrame
        Its rows, the setting in words in the column ticket, such as 'weight decay 0.001', and no longer in its own.
    """
    rows = layers.sort_values(field, kind="stable")
    words = [f"{_word(field)} {value:g}" for value in rows[field]]
    return rows.assign(ticket=words).drop(columns=[field, field.replace("find_", "eval_")], errors="ignore")


def _word(field: str) -> str:
    return _NAMES.get(field, field.removeprefix("find_").replace("_", " "))


def to_even(layers: pd.DataFrame) -> pd.DataFrame:
    """Divide the pruned share of each layer by that of all layers together (Morcos Fig. 1b).

    Parameters
    ----------
    layers : DataFrame
        What `lthlab.results.layers` returns.

    Returns
    -------
    DataFrame
        Its rows with value, at least 0: 1 where a layer loses the share that it would lose were all pruned alike,
        below 1 where it is spared. Masks that prune nothing have no ratio, and no row.
    """
    sums = layers.groupby("key")[["kept", "weights"]].transform("sum")
    pruned = 1 - sums["kept"] / sums["weights"]
    rows = layers.assign(value=layers["value"] / pruned.where(pruned > 0), metric="ratio to even pruning")
    return rows.dropna(subset="value")


def first_to_last(layers: pd.DataFrame) -> pd.DataFrame:
    """Subtract the pruned share of the last prunable layer from that of the first.

    Parameters
    ----------
    layers : DataFrame
        What `lthlab.results.layers` returns.

    Returns
    -------
    DataFrame
        One row per mask and role, with value in [-1, 1]: above 0 where the first layer loses more.
    """
    ends = layers["number"] == layers.groupby("key")["number"].transform("max")
    last = layers[ends].drop_duplicates("key").set_index("key")["value"]
    first = layers[layers["number"] == 1]
    rows = first.assign(value=first["value"] - first["key"].map(last), metric="first minus last layer")
    return rows.drop(columns=["layer", "number", "weights", "kept"])


def by_setting(rows: pd.DataFrame, field: str) -> pd.DataFrame:
    """Subtract what masks have at the largest value of a setting from what they have at the smallest, paired.

    Lan's Figures 6 and 8 show opposite signs for the learning rate in early layers, so the sign is for data to say.

    Parameters
    ----------
    rows : DataFrame
        Rows of masks: what `lthlab.results.layers`, `to_even` or `first_to_last` returns.
    field : str
        Column of numbers that masks were found with, such as 'find_lr'.

    Returns
    -------
    DataFrame
        Columns of the cells, `setting` (such as 'learning rate 0.02 − 0.3'), replicate, value and status; pairs that
        differ in `field` alone. No row where a panel has one value of the field.
    """
    by = [*cell(rows, field), *(name for name in ("layer", "number") if name in rows)]
    found = []
    for _, own in rows.groupby([name for name in results.PANEL if name in rows], dropna=False):
        low, high = own[field].min(), own[field].max()
        if low < high:
            pairs = results.paired(own, field, low, high, by)
            found.append(pairs.assign(setting=f"{_word(field)} {low:g} − {high:g}"))
    metric = "" if rows.empty else rows["metric"].iloc[0]
    columns = [*by, "replicate", "value", "status", "setting"]
    out = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)
    return out.assign(metric=metric, what="mask")


def by_step(layers: pd.DataFrame) -> pd.DataFrame:
    """Say how the pruned share of each layer moves with the step at which weights are ranked (Sooner Fig. 2b).

    Parameters
    ----------
    layers : DataFrame
        What `lthlab.results.layers` returns, of masks ranked at several steps.

    Returns
    -------
    DataFrame
        Its rows, in order of the step, with prune_epoch (the step in epochs); change, the pruned share at the last of
        the steps minus that at this one, in [-1, 1]; and variation, the sum of absolute changes from this step on from
        one to the next, at least |change|. Steps that are known only after training, as 'best_val', are left out.
    """
    rows = layers.assign(prune_epoch=results.step_epochs(layers)).dropna(subset="prune_epoch").reset_index(drop=True)
    chain = [*cell(rows, "prune_at"), "layer", "number", "replicate"]
    rows = plain(rows, chain).drop_duplicates([*chain, "prune_epoch"])
    rows = rows.sort_values(["prune_epoch", "number"], kind="stable")
    values = rows.groupby(chain, dropna=False)["value"]
    steps = values.diff().abs().fillna(0.0)
    walked = steps.groupby([rows[name] for name in chain], dropna=False)
    left = walked.transform("sum") - walked.cumsum()
    return rows.assign(change=values.transform("last") - rows["value"], variation=left)


def collapsed(layers: pd.DataFrame) -> pd.DataFrame:
    """Choose the layers that masks cut through: those of which nothing is kept.

    Parameters
    ----------
    layers : DataFrame
        What `lthlab.results.layers` returns.
    """
    return layers[layers["kept"] == 0]


def contrasts(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare tickets with random ones that keep more or less of their structure, paired (Lan Fig. 1, Morcos A.1).

    Random tickets permuted within layers keep the counts per layer and lose which weights are kept within each;
    permuted globally they lose the counts too. All start from the same initial weights as the ticket.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with LT and RT.

    Returns
    -------
    DataFrame
        For each name of `CONTRASTS`, cell and replicate: ticket (the name), value (accuracy in [-1, 1]), status, and
        facet, a title that says the learning rates of masks and, where masks have tickets of several, of these.
        Even random tickets, which no method finds, are compared under every method and step.

    Raises
    ------
    ValueError
        If a cell has several values of one replicate.
    """
    done = frame[(frame["what"] == "train") & (frame["status"] == "done") & (frame["rewind"] == "0ep")]
    done = done[done["ticket"].isin(["LT", "RT"])]
    done = done.assign(kind=done["scope"].where(done["ticket"] == "RT", "ticket"))
    found = [name for name in SEARCH if name in done]
    even = done["kind"] == "even"
    searches = done.loc[~even, found].drop_duplicates()
    done = pd.concat([done[~even], done[even].drop(columns=found).merge(searches, how="cross")], ignore_index=True)
    recipes = [name for name in map(str, done) if name[:5] == "eval_"]
    by = [*cell(done, *WEIGHTS), *recipes]
    pairs = [results.paired(done, "kind", *sides, by).assign(ticket=name) for name, sides in CONTRASTS.items()]
    out = pd.concat(pairs, ignore_index=True).assign(what="train", rewind="0ep")
    several = (out.groupby("find_lr")["eval_lr"].nunique() > 1).any()
    titles = [
        f"mask found at learning rate {find:g}" + f", trained at {trained:g}" * bool(several)
        for find, trained in zip(out["find_lr"], out["eval_lr"], strict=True)
    ]
    return out.assign(facet=titles).sort_values(["find_lr", "eval_lr"], kind="stable", ignore_index=True)


RANKINGS = {"global": "ranked over all layers", "layer": "ranked within layers"}
"""Lines of `rankings`, by where weights are ranked."""
_RANDOM = "random ticket"


def _ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """Choose trainings under the latest masks of every method with their own counts per layer."""
    rows = frame[frame["what"] == "train"]
    return pd.concat([alike(rows, method) for method in ("OMP", "IMP")])


def _tickets(rows: pd.DataFrame) -> pd.DataFrame:
    """Choose the tickets whose rankings are compared: LT, or where there are none WR that rewind to the first step."""
    if (rows["ticket"] == "LT").any():
        return rows[rows["ticket"] == "LT"]
    late = rows[rows["ticket"] == "WR"]
    steps = results.step_epochs(late, "rewind")
    return late[steps == steps.min()]


def rankings(frame: pd.DataFrame) -> pd.DataFrame:
    """Choose what shows whether global rankings make better tickets than layer-wise ones (Morcos Fig. 1a).

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with LT, or WR, in panels of both rankings.

    Returns
    -------
    DataFrame
        Trainings of tickets of both rankings and of random tickets permuted globally, those with new weights if there
        are such: series and order, text and place of their lines, and facet, the method and, where there are several,
        the learning rate that masks were found with. Empty if weights are ranked in one way alone.
    """
    trained = _ranked(frame)
    own, random = _tickets(trained), trained[(trained["ticket"] == "RT") & (trained["scope"] == "global")]
    random = random[random["rewind"].isna()] if random["rewind"].isna().any() else random[random["rewind"] == "0ep"]
    lines = [*RANKINGS.values(), _RANDOM]
    rows = pd.concat([own.assign(series=own["ranking"].map(RANKINGS)), random.assign(series=_RANDOM)])
    rows = rows if own["ranking"].nunique() > 1 else rows.iloc[:0]
    several = rows["find_lr"].nunique() > 1
    facets = [
        f"{method}, mask found at learning rate {lr:g}" if several else method
        for method, lr in zip(rows["method"], rows["find_lr"], strict=True)
    ]
    rows = rows.assign(order=rows["series"].map(lines.index), facet=facets).drop(columns=["panel", "ranking"])
    return rows.sort_values(["find_lr", "method"], kind="stable", ignore_index=True)


def by_ranking(frame: pd.DataFrame) -> pd.DataFrame:
    """Subtract the accuracy of tickets whose weights were ranked within layers from that of globally ranked ones.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with LT, or WR, in panels of both rankings (Morcos Fig. 1a).

    Returns
    -------
    DataFrame
        Columns of the cells, ticket ('global − layer-wise'), replicate, value (accuracy in [-1, 1]) and status.

    Raises
    ------
    ValueError
        If a cell has several values of one replicate.
    """
    rows = _tickets(_ranked(frame))
    recipes = [name for name in map(str, rows) if name[:5] == "eval_"]
    by = [*cell(rows, "panel", "ranking", *WEIGHTS), *recipes]
    return results.paired(rows, "ranking", "global", "layer", by).assign(ticket="global − layer-wise")


def carried(pairs: pd.DataFrame, by: Sequence[str], confidence: float = 0.95) -> pd.DataFrame:
    """Say which share of a ticket's advantage over a globally random one the counts per layer alone carry.

    The share is the mean of 'layer − global' divided by that of 'ticket − global', replicate by replicate.

    Parameters
    ----------
    pairs : DataFrame
        What `contrasts` returns.
    by : sequence of str
        Columns that tell cells apart.
    confidence : float, optional
        Coverage of the interval.

    Returns
    -------
    DataFrame
        `by`, n, mean (the share; 1 if nothing is lost within layers), low and high (`lthlab.results.ratio`): NaN where
        the interval of the advantage itself includes zero, or n = 1; there is then nothing to share out.

    Raises
    ------
    ValueError
        If a cell has several values of one replicate.
    """
    if pairs.duplicated([*by, "ticket", "replicate"]).any():
        raise ValueError("several values of one replicate in a cell; add what tells them apart to by, or select rows")
    sides = [
        pairs[pairs["ticket"] == name].set_index([*by, "replicate"])["value"].rename(side)
        for side, name in (("part", "layer − global"), ("whole", "ticket − global"))
    ]
    both = pd.concat(sides, axis=1).dropna().reset_index()
    rows: list[dict[str, Any]] = []
    for place, own in both.groupby(list(by), dropna=False):
        share = results.ratio(own["part"], own["whole"], confidence)
        row = dict(zip(by, place, strict=True)) | {"n": len(own)}
        rows.append(row | dict(zip(("mean", "low", "high"), share, strict=True)))
    return pd.DataFrame(rows, columns=[*by, "n", "mean", "low", "high"])


def left_to_move(steps: pd.DataFrame) -> pd.DataFrame:
    """Average over layers by how much pruned shares still move after the step at which weights are ranked.

    Parameters
    ----------
    steps : DataFrame
        What `by_step` returns.

    Returns
    -------
    DataFrame
        One row per mask and role, with value, the mean of `variation` over layers, at least 0; 0 at the last step.
    """
    rows = steps[steps["number"] == 1]
    means = steps.groupby(steps["key"])["variation"].mean()
    return rows.assign(value=rows["key"].map(means)).drop(columns=["layer", "number", "weights", "kept"])
