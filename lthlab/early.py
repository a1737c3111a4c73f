"""Early winning tickets as tables: spread of weights, masks by step, PPR, rewinding, memorization (Sooner)."""

import numpy as np
import pandas as pd

from lthlab import ratios, results, saturation
from lthlab.roles import RANKED
from lthlab.runs import read_metrics
from lthlab.store import Store

_BASELINE = "dense at s"
_METHODS = ("OMP", "GMP", "IMP")
_SCHEDULE = ("method", "prune_at", "pruning", "rewind")
_SPREAD = ("layer", "number", "predicted", "at_epoch", "since_epoch", "change", "expected", "ratio")


def spreads(rows: pd.DataFrame) -> pd.DataFrame:
    """Divide how the spread of each layer's weights changes by what weight decay alone predicts.

    Parameters
    ----------
    rows : DataFrame
        What `lthlab.results.measured` returns of the measure 'weight_std'.

    Returns
    -------
    DataFrame
        Its rows in order of the epoch, which is called at_epoch (and the step measured_at), with since_epoch (that of
        the state before); change,
        the relative change since then; expected, the one that equation (5) of Sooner predicts; and ratio, change /
        expected. NaN at the first state and where nothing is predicted. Where the ratio is 1, decay alone moves the
        spread, as Sooner says of intervals of low gradient; which these are is not decided here.
    """
    rows = rows.rename(columns={"epoch": "at_epoch"})
    if rows.empty:
        return rows.reindex(columns=list(dict.fromkeys([*rows, *_SPREAD])))
    chain = [name for name in dict.fromkeys([*_cell(rows), "eval_lr", "ticket", "layer", "replicate"]) if name in rows]
    rows = ratios.plain(rows, chain).sort_values(["at_epoch", "number"], kind="stable", ignore_index=True)
    groups = rows.groupby(chain, dropna=False)
    before = groups["value"].shift()
    change, expected = rows["value"] / before - 1, rows["predicted"].astype(float) / before - 1
    return rows.assign(
        measured_at=rows["step"],
        since_epoch=groups["at_epoch"].shift(),
        change=change,
        expected=expected,
        ratio=change / expected.where(expected != 0),
    )


def slopes(rows: pd.DataFrame) -> pd.DataFrame:
    """Average what `spreads` returns over layers, weighted alike, for each interval and replicate.

    Parameters
    ----------
    rows : DataFrame
        What `spreads` returns.

    Returns
    -------
    DataFrame
        One row per cell, interval and replicate: since_epoch, at_epoch, change and expected (means over layers), value
        (mean of the layers' ratios), least and most (of them), status.
    """
    by = [*_cell(rows), "since_epoch", "at_epoch", "replicate"]
    means = rows.dropna(subset=["ratio"]).groupby(by, dropna=False).agg(
        change=("change", "mean"), expected=("expected", "mean"), value=("ratio", "mean"),
        least=("ratio", "min"), most=("ratio", "max"),
    )  # fmt: skip
    return means.reset_index().assign(status="done")


def dense(store: Store, frame: pd.DataFrame) -> pd.DataFrame:
    """List the accuracy of dense networks after every epoch.

    Parameters
    ----------
    store : Store
        Where they are.
    frame : DataFrame
        Tidy frame; its dense trainings that are done count.

    Returns
    -------
    DataFrame
        Their rows once per epoch, with epoch, value (test accuracy in [0, 1]) and validation.
    """
    own = frame[(frame["what"] == "train") & (frame["ticket"] == "dense") & (frame["status"] == "done")]
    rows = [
        row | {"epoch": float(line["epoch"]), "value": line["test_accuracy"], "validation": line.get("val_accuracy")}
        for row in own.to_dict("records")
        for line in read_metrics(store, row["key"], store.parts(row["key"]))
    ]
    return pd.DataFrame(rows, columns=own.columns)


def tickets(frame: pd.DataFrame, kind: str | None = None) -> pd.DataFrame:
    """Choose tickets on one-shot masks that were ranked at several steps: the grid of (s, v) of Sooner, Fig. 1.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with `prune.at`.
    kind : str, optional
        Only this kind of ticket, such as 'LRR'.

    Returns
    -------
    DataFrame
        Trainings of LT (v = 0), WR (rewound to v) and LRR (v = s) with prune_epoch, the step s in epochs, and rewound,
        the step v in epochs, or 'ranked'. Of rates that tickets are trained with, that of their mask, where there is
        one; of schedules 'restart', as in Sooner, where there is one. Steps known only after training are left out.
    """
    kinds = ("LT", "WR", "LRR") if kind is None else (kind,)
    rows = frame[(frame["what"] == "train") & (frame["method"] == "OMP") & frame["ticket"].isin(kinds)]
    rows = rows[rows["layer_counts"].isna()]
    rows = _preferred(rows, rows["eval_lr"] == rows["find_lr"])
    rows = _preferred(rows, rows["schedule"].isna() | (rows["schedule"] == "restart"))
    rewound = results.step_epochs(rows, "rewind").astype(object)
    return _at_steps(rows.assign(rewound=rewound.where(rows["ticket"] != "LRR", RANKED)))


def _preferred(rows: pd.DataFrame, chosen: "pd.Series[bool]") -> pd.DataFrame:
    return rows[chosen] if chosen.any() else rows


def _at_steps(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.assign(prune_epoch=results.step_epochs(rows)).dropna(subset="prune_epoch")
    return ratios.plain(rows, _cell(rows)).drop(columns="epoch", errors="ignore")


def grid(rows: pd.DataFrame, baseline: pd.DataFrame | None = None) -> pd.DataFrame:
    """Summarise tickets by the step at which weights are ranked and the step that they are rewound to.

    Parameters
    ----------
    rows : DataFrame
        What `tickets` returns.
    baseline : DataFrame, optional
        What `dense` returns; its epochs at which weights are ranked make a first row.

    Returns
    -------
    DataFrame
        One row per cell and pair: row ('dense at s', 'v = 0', …, 'v = s', in this order), prune_epoch (s), n, mean,
        low and high (accuracy in [0, 1]).
    """
    names = {v: "v = s" if v == RANKED else f"v = {v:g}" for v in rows["rewound"].unique()}
    order = [_BASELINE, *(names[v] for v in sorted(names, key=lambda v: np.inf if v == RANKED else v))]
    by, found = _cell(rows), [rows.assign(row=rows["rewound"].map(names))]
    if baseline is not None and len(rows):
        found.append(_beside(rows, baseline).assign(row=_BASELINE))
    out = results.summarise(pd.concat(found), [*by, "row", "prune_epoch"])
    return out.assign(order=out["row"].map(order.index)).sort_values([*by, "order", "prune_epoch"], ignore_index=True)


def _beside(rows: pd.DataFrame, baseline: pd.DataFrame) -> pd.DataFrame:
    """Rows of dense networks at the steps at which weights are ranked, at the sparsity of each cell."""
    by = _cell(rows)
    alike = [name for name in by if name in baseline and name not in ("rate", "level", "sparsity")]
    own = ratios.plain(baseline, alike).rename(columns={"epoch": "prune_epoch"})
    own = own.drop(columns=[name for name in ("rate", "level", "sparsity") if name in own])
    return rows[[*by, "prune_epoch"]].drop_duplicates().merge(own, on=[*alike, "prune_epoch"])


def schedules(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare tickets of gradual masks with those of other masks, and with dense networks (Sooner, Tables 2 to 4).

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with tickets on masks of GMP.

    Returns
    -------
    DataFrame
        One row per cell, ticket (LT, WR, LRR or GMP, the pruned training itself), method, prune_at, pruning, rewind,
        search_epochs and train_epochs, in order of method and epoch: n, mean, low and high of the accuracy in [0, 1];
        change, change_low and change_high, of the accuracy minus the dense network's, paired by replicate. No row
        where nothing stands on gradual masks.
    """
    trained = frame[frame["what"] == "train"]
    rows = trained[trained["ticket"].isin(["LT", "WR", "LRR", "GMP"]) & trained["layer_counts"].isna()]
    rows = rows if (rows["method"] == "GMP").any() else rows.iloc[:0]
    recipes = [name for name in map(str, rows) if name[:5] == "eval_"]
    place = [*(name for name in _cell(rows) if name not in ratios.LADDER), *recipes, "replicate"]
    dense = ratios.plain(trained[trained["ticket"] == "dense"], place)[[*place, "value"]]
    rows = ratios.plain(rows, place).merge(dense, on=place, suffixes=("", "_of_dense"))
    by = [*_cell(rows), *recipes, "ticket", *_SCHEDULE, "search_epochs", "train_epochs"]
    changes = results.summarise(rows.assign(value=rows["value"] - rows["value_of_dense"]), by)
    changes = changes.rename(columns={"mean": "change", "low": "change_low", "high": "change_high"})
    found = results.summarise(rows, by).merge(changes.drop(columns=["n", "sd"]), on=by)
    found = found.assign(order=[_METHODS.index(method) for method in found["method"]])
    return found.sort_values([*_cell(rows), "order", "search_epochs"], kind="stable", ignore_index=True)


def ppr(frame: pd.DataFrame, baseline: pd.DataFrame | None = None) -> pd.DataFrame:
    """Choose networks that are pruned at a step and trained for a short while at one rate (PPR; Sooner, Figs. 4, 6).

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with PPR.
    baseline : DataFrame, optional
        What `dense` returns; its epochs at which weights are ranked become a line.

    Returns
    -------
    DataFrame
        Their rows with prune_epoch, the step in epochs, and series and order, the text and the place of the line.
    """
    rows = _at_steps(frame[frame["what"] == "ppr"])
    rows = rows.drop(columns=[name for name in map(str, rows) if name[:5] == "eval_" and name != "eval_lr"])
    lrs = sorted(rows["eval_lr"].unique())
    rows = rows.assign(order=rows["eval_lr"].map(lrs.index), series=[f"PPR at {lr:g}" for lr in rows["eval_lr"]])
    if baseline is None or rows.empty:
        return rows
    own = _beside(rows, baseline).assign(series="dense, not pruned", order=len(lrs), what="ppr")
    own = own.assign(prune_at=own["prune_epoch"].map("{:g}ep".format))
    return pd.concat([rows, own[[name for name in rows if name in own]]], ignore_index=True)


def distances(rows: pd.DataFrame) -> pd.DataFrame:
    """Average distances of masks over replicates.

    Parameters
    ----------
    rows : DataFrame
        What `lthlab.results.measured` returns of the measure 'hamming'.

    Returns
    -------
    DataFrame
        One row per cell and pair of steps: first_epoch, second_epoch, n, mean, low and high of the share of prunable
        positions that differ; random (what independent masks of these densities differ in), maximum, and overlap of
        the kept weights, means over replicates.
    """
    by = [*_cell(rows), "first_epoch", "second_epoch"]
    rows = ratios.plain(rows, by)
    out = results.summarise(rows, by).drop(columns="sd")
    levels = rows.groupby(by, dropna=False)[["random", "maximum", "overlap"]].mean().reset_index()
    return out.merge(levels, on=by)


def memorization(frame: pd.DataFrame) -> pd.DataFrame:
    """Choose networks that were trained on random labels, by how many images they had (Sooner, Fig. 5).

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with `measures.memorization`.

    Returns
    -------
    DataFrame
        Rows of dense networks and of such on one-shot masks, at the sparsities that masks of several steps have where
        there are such; with prune_epoch, the step in epochs (NaN of dense ones), and series and order, text and place
        of the line. Dense networks have rows at each of these sparsities.
    """
    rows = _memorized(frame)
    masked, whole = rows[rows["method"] == "OMP"], rows[rows["method"].isna()]
    counts = masked.groupby("sparsity")["prune_epoch"].nunique()
    several = counts[counts > 1].index if (counts > 1).any() else counts.index
    masked = masked[masked["sparsity"].isin(several)]
    levels = masked[["rate", "level", "sparsity"]].drop_duplicates()
    if len(levels):
        whole = whole.drop(columns=list(levels)).merge(levels, how="cross")
    places = sorted(masked["prune_epoch"].unique())
    rows = pd.concat([masked, whole], ignore_index=True)
    order = [len(places) if pd.isna(epoch) else places.index(epoch) for epoch in rows["prune_epoch"]]
    names = [*(f"pruned at epoch {epoch:g}" for epoch in places), "dense"]
    return rows.assign(order=order, series=[names[place] for place in order])


def gradual(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare gradual with one-shot pruning at the same step and sparsity by what they memorise (Sooner, Table 1).

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with `measures.memorization`.

    Returns
    -------
    DataFrame
        One row per cell, images, prune_epoch and sparsity that both have: one_shot and gradual (mean training
        accuracies of the replicates that have both), n, mean, low and high of gradual minus one-shot, paired by
        replicate.
    """
    rows = _memorized(frame)
    by = [*(name for name in _cell(rows) if name not in ("rate", "level")), "images", "prune_epoch"]
    pairs = results.paired(rows, "method", "GMP", "OMP", by)
    both = rows.merge(pairs[[*by, "replicate"]], on=[*by, "replicate"])
    means = both.groupby([*by, "method"], dropna=False)["value"].mean().unstack("method").reset_index()
    means = means.reindex(columns=[*by, "OMP", "GMP"]).rename(columns={"OMP": "one_shot", "GMP": "gradual"})
    return results.summarise(pairs, by).drop(columns="sd").merge(means, on=by)


def _memorized(frame: pd.DataFrame) -> pd.DataFrame:
    rows = frame[(frame["what"] == "training_accuracy") & (frame["ticket"] == "memorization")]
    rows = rows.assign(prune_epoch=results.step_epochs(rows))
    return ratios.plain(rows, _cell(rows))


# --- advice -------------------------------------------------------------------------------------------------------


def signals(frame: pd.DataFrame, layers: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """Collect what the advice on the step to prune at goes by (`lthlab.saturation.SIGNALS`).

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study with `prune.at`.
    layers : DataFrame
        What `lthlab.results.layers` returns of it.
    distances : DataFrame
        What `lthlab.results.measured` returns of its measure 'hamming'.

    Returns
    -------
    DataFrame
        Columns of the cells; signal, replicate, prune_epoch (the step), value, end (epochs of the whole training),
        probe (epochs that finding the value takes beside the training) and split. Of PPR the accuracy at the smallest
        rate, on validation images where every row has it, else on the test images, which split says; of LPR the sum of
        changes of a layer's pruned share from the first step until this one, mean over layers; of Hamming the distance
        of the mask from that of the step before, divided by what independent masks would differ in.
    """
    parts = {"PPR": _accuracies(frame), "LPR": _movement(layers), "Hamming": _successive(distances)}
    by = _cell(frame)
    columns = [*by, "signal", "replicate", "prune_epoch", "value", "end", "probe", "split"]
    found = [
        ratios.plain(rows, by).assign(signal=name, end=rows["find_epochs"].astype(float)).reindex(columns=columns)
        for name, rows in parts.items()
        if len(rows)
    ]
    out = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)
    return out.drop_duplicates([*by, "signal", "replicate", "prune_epoch"]).assign(status="done")


def _accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    rows = ppr(frame)
    rows = rows[(rows["status"] == "done") & (rows["eval_lr"] == rows.groupby("panel")["eval_lr"].transform("min"))]
    valid = len(rows) > 0 and bool(rows["validation"].notna().all())
    value = rows["validation"] if valid else rows["value"]
    return rows.assign(value=value.astype(float), probe=rows["train_epochs"], split="validation" if valid else "test")


def _movement(layers: pd.DataFrame) -> pd.DataFrame:
    own = ratios.alike(layers, latest=False)
    if own.empty:
        return own
    left = ratios.left_to_move(ratios.by_step(own))
    chain = [*_cell(left), "replicate"]
    whole = ratios.plain(left, chain).groupby(chain, dropna=False)["value"].transform("max")
    return left.assign(value=whole - left["value"], probe=0.0)


def _successive(rows: pd.DataFrame) -> pd.DataFrame:
    if rows.empty:
        return rows
    chain = [*_cell(rows), "replicate", "first_epoch"]
    nearest = ratios.plain(rows, chain).groupby(chain, dropna=False)["second_epoch"].transform("min")
    own = rows[rows["second_epoch"] == nearest]
    return own.assign(prune_epoch=own["second_epoch"], value=own["value"] / own["random"], probe=0.0)


def scaled(signals: pd.DataFrame, said: pd.DataFrame) -> pd.DataFrame:
    """Bring signals to one scale, for a drawing: 0 where they begin, 1 at the level that they end at.

    Parameters
    ----------
    signals : DataFrame
        What `signals` returns.
    said : DataFrame
        What `lthlab.saturation.advice` makes of it.

    Returns
    -------
    DataFrame
        Rows of the signals that change: value on that scale, series (the signal), order, saturated (the step at which
        it saturates, NaN if it does not), advised (the step of the vote) and facet (these in words).
    """
    by = saturation.cells(signals)
    changing = said[said["state"].isin(saturation.CHANGING)]
    rows = signals.merge(changing[[*by, "signal", "step", "plateau", "change"]], on=[*by, "signal"])
    vote = said.loc[said["signal"] == saturation.VOTE, [*by, "step"]].rename(columns={"step": "advised"})
    rows = rows.merge(vote, on=by)
    rows = rows.assign(
        value=1 - (rows["plateau"] - rows["value"]) / rows["change"],
        series=rows["signal"],
        order=rows["signal"].map(saturation.SIGNALS.index),
        saturated=rows["step"],
        what="signal",
        prune_at=rows["prune_epoch"].map("{:g}ep".format),
    ).drop(columns=["step", "plateau", "change"])
    return rows.assign(facet=_told(rows, by))


def _told(rows: pd.DataFrame, by: list[str]) -> "pd.Series[str]":
    """Say of the cell of each row where its signals saturate, and what is advised."""
    words, rates = pd.Series("", rows.index), rows["find_lr"].nunique() > 1
    for _, own in rows.groupby(by, dropna=False):
        steps = own.drop_duplicates("signal").dropna(subset="saturated")
        told = [f"{name} {step:g}" for name, step in zip(steps["signal"], steps["saturated"], strict=True)]
        advised, lr = own["advised"].iloc[0], own["find_lr"].iloc[0]
        end = "advised: the end" if pd.isna(advised) else f"advised: {advised:g}"
        left = f"{100 * (1 - own['sparsity'].iloc[0]):.3g} % left" + f" (found at {lr:g})" * rates
        words[own.index] = f"{left}, saturated: {'; '.join(told) or 'none'}, {end}"
    return words


def _cell(rows: pd.DataFrame) -> list[str]:
    """Columns that tell apart what is drawn or advised by itself: a panel, how masks are found, and their sparsity."""
    return ratios.cell(rows, *ratios.SEARCH, *ratios.WEIGHTS)
