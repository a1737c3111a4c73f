"""The correlation indicator R_p (Ma et al. 2021, Fig. 6, appendix G): its readings, controls and contrasts."""

import html
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from lthlab import plots, results, strokes
from lthlab.markup import Html, found_out, interval, level_of, listed, signed, spanned, table

USUAL_P = 0.1
"""The p of Ma's Figure 6."""
READINGS = {
    "own": "initial against own trained weights",
    "dense": "initial against dense trained weights",
    "trained": "own against dense trained weights",
    "permuted": "initial against dense (mask permuted)",
}
"""What entries of the column `reading` compare, under the mask of a ticket; of dense networks there is 'own' alone."""
_FORMULAS = {
    "own": "θ₀⊙m and (θ₀⊙m)_T",
    "dense": "θ₀⊙m and θ_T⊙m",
    "trained": "(θ₀⊙m)_T and θ_T⊙m",
    "permuted": "θ₀⊙πm and θ_T⊙πm",
}
TICKETS, MASKS, NETWORKS = "LT − RR", "mask − permuted mask", "ticket − dense network"
"""What `contrasts` subtracts."""
_FOUND = ("method", "prune_at", "pruning", "layer_counts", "level", "rate", "sparsity")


# --- rows -----------------------------------------------------------------------------------------------------


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Choose the rows of the correlation indicator.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study.

    Returns
    -------
    DataFrame
        With measured_epoch, the step of the second state in epochs of the training that it is of.
    """
    found = frame[frame["what"] == "correlation_indicator"]
    own = found["reading"] == "own"
    clock = {name: found[f"eval_{name}"].where(own, found[f"find_{name}"]) for name in ("epochs", "batch_size")}
    epochs = results.step_epochs(found.assign(find_batch_size=clock["batch_size"]), "measured_at")
    return found.assign(measured_epoch=epochs.fillna(clock["epochs"]).astype(float))


def usual(indicator: pd.DataFrame) -> pd.DataFrame:
    """Choose the rows of p = 0.1, or the p nearest to it as a ratio, that are measured at the latest step.

    Parameters
    ----------
    indicator : DataFrame
        What `rows` returns.
    """
    nearest = min(indicator["p"].unique(), key=lambda p: (max(p / USUAL_P, USUAL_P / p), p), default=USUAL_P)
    return _latest(indicator[indicator["p"] == nearest])


def _latest(indicator: pd.DataFrame) -> pd.DataFrame:
    epochs = indicator["measured_epoch"]
    return indicator[epochs == _most(epochs, indicator, "ticket", "reading")]


def sparsest(indicator: pd.DataFrame) -> pd.DataFrame:
    """Choose the rows of every panel at its highest sparsity, and those of dense networks."""
    most = _most(indicator["sparsity"], indicator)
    return indicator[(indicator["sparsity"] == most) | (indicator["ticket"] == "dense")]


def ends(indicator: pd.DataFrame) -> pd.DataFrame:
    """Choose the rows of the smallest and the largest learning rate of every panel."""
    rates = indicator["eval_lr"]
    return indicator[(rates == _most(rates, indicator)) | (-rates == _most(-rates, indicator))]


def own(indicator: pd.DataFrame) -> pd.DataFrame:
    """Choose the rows that compare initial weights with those that their own training ends with, or is at."""
    return indicator[indicator["reading"] == "own"]


def _most(values: "pd.Series[Any]", indicator: pd.DataFrame, *names: str) -> "pd.Series[Any]":
    """The largest value of each panel, recipe and entry of columns."""
    recipes = [name for name in _recipes(indicator) if not name.endswith("_lr")]
    texts = [indicator[name].map(str) for name in (*results.PANEL, *recipes, *names) if name in indicator]
    return values.groupby(texts).transform("max")


def _recipes(indicator: pd.DataFrame) -> list[str]:
    return [name for name in map(str, indicator) if name.startswith(("find_", "eval_"))]


def by_reading(indicator: pd.DataFrame) -> pd.DataFrame:
    """Set rows apart by what they compare, each reading beside the dense networks.

    Parameters
    ----------
    indicator : DataFrame
        What `usual` returns, at one sparsity.

    Returns
    -------
    DataFrame
        Rows with facet, the reading in words; those of dense networks once for each.
    """
    dense = indicator["ticket"] == "dense"
    found = [name for name in READINGS if (indicator["reading"] == name).any()]
    parts = [
        indicator[dense | (indicator["reading"] == name)].assign(facet=f"{READINGS[name]}, {_FORMULAS[name]}")
        for name in found
    ]
    return pd.concat(parts, ignore_index=True) if parts else indicator.assign(facet="")


def over_p(indicator: pd.DataFrame) -> pd.DataFrame:
    """Choose what is measured at the latest step with several p, each network against its own training; else no row.

    Parameters
    ----------
    indicator : DataFrame
        What `rows` returns.
    """
    found = _latest(own(indicator))
    return found[found["p"].groupby(found["panel"]).transform("nunique") > 1]


def over_epochs(indicator: pd.DataFrame) -> pd.DataFrame:
    """Choose what is measured at several steps with the usual p, each network against its own training; else no row.

    Parameters
    ----------
    indicator : DataFrame
        What `rows` returns.
    """
    found = own(indicator)
    found = found[found["p"].isin(usual(found)["p"])]
    return found[found["measured_epoch"].groupby(found["panel"]).transform("nunique") > 1]


def by_layer(details: pd.DataFrame) -> pd.DataFrame:
    """Number layers in network order; those of which no weight is large are left out.

    Parameters
    ----------
    details : DataFrame
        What `lthlab.results.measured` returns of rows of the indicator.

    Returns
    -------
    DataFrame
        Its rows with number (from 1, of the layers of which some network of the panel has weights left).
    """
    if details.empty:
        return details
    numbers = []
    for _, of_panel in details.groupby("panel", sort=False):
        longest = of_panel.groupby("key")["layer"].size().idxmax()
        names = of_panel.loc[of_panel["key"] == longest, "layer"].unique()
        order = {name: place for place, name in enumerate(names, start=1)}
        numbers.append(of_panel["layer"].map(order))
    return details.assign(number=pd.concat(numbers), status="done").dropna(subset=["value", "number"])


def added_up(details: pd.DataFrame) -> "pd.Series[float]":
    """Add up the layers of every comparison to its R_p, by key.

    Parameters
    ----------
    details : DataFrame
        What `lthlab.results.measured` returns of rows of the indicator.
    """
    if details.empty:
        return pd.Series(dtype=float)
    sums = details.groupby("key")[["overlap", "k"]].sum()
    return sums["overlap"] / sums["k"]


def contrasts(indicator: pd.DataFrame) -> pd.DataFrame:
    """Subtract, replicate by replicate: RR from LT, the permuted mask from the mask, the dense network from tickets.

    Parameters
    ----------
    indicator : DataFrame
        What `usual` returns.

    Returns
    -------
    DataFrame
        contrast (`TICKETS`, of the reading 'own', for in others RR is at chance; of each ticket `MASKS`, the reading
        'dense' minus its control 'permuted', and `NETWORKS`, 'own' minus R_p of the dense network at the same learning
        rate), facet (the contrast with the reading in words), ticket, reading, columns of the cells, replicate, value
        (a difference of R_p, in [-1, 1]), metric and status.

    Raises
    ------
    ValueError
        If a cell has several values of one replicate.
    """
    names = [*results.PANEL, *_FOUND, "p", *_recipes(indicator)]
    by = [name for name in names if name in indicator]
    told = [name for name in ("ticket", "rewind", "schedule") if name in indicator]
    done = indicator[indicator["status"] == "done"]
    tickets = results.paired(own(done), "ticket", "LT", "RR", by)
    parts = [tickets.assign(contrast=TICKETS, ticket=TICKETS, reading="own")]
    selected = results.paired(done[done["ticket"] != "dense"], "reading", "dense", "permuted", [*by, *told])
    parts.append(selected.assign(contrast=MASKS, reading="dense"))
    for _, of_panel in results.panels(own(done)) if len(done) else []:
        dense = of_panel["ticket"] == "dense"
        networks = of_panel[dense].drop_duplicates(["eval_lr", "replicate", "key"])
        of_dense = networks[["eval_lr", "replicate", "value"]].rename(columns={"value": "of_dense"})
        pairs = of_panel[~dense].merge(of_dense, on=["eval_lr", "replicate"])
        pairs["value"] -= pairs["of_dense"]
        lists = {name: pairs[name].map(str) for name in by if any(isinstance(value, list) for value in pairs[name])}
        pairs = pairs.assign(contrast=NETWORKS, status="done", **lists)
        parts.append(pairs[["contrast", *by, *told, "reading", "replicate", "value", "status"]])
    kept = [part for part in parts if len(part)]
    columns = ["contrast", "facet", *by, *told, "reading", "replicate", "value", "status"]
    out = pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(columns=columns)
    facets = out["contrast"] + ", " + out["reading"].map(READINGS)
    return out.assign(facet=facets, what="correlation_indicator", metric="difference of R_p")


# --- in words and tables --------------------------------------------------------------------------------------


def finding(indicator: pd.DataFrame) -> Html:
    """Say what R_p is at the smallest and the largest learning rate of every panel, reading by reading.

    Parameters
    ----------
    indicator : DataFrame
        What `rows` returns. Of masks, those of IMP count, or of OMP where there are none.
    """
    found = usual(indicator[indicator["status"] == "done"])
    sentences = []
    for name, of_panel in results.panels(found) if len(found) else []:
        method = next((one for one in strokes.METHODS if (of_panel["method"] == one).any()), "no")
        last = sparsest(of_panel[(of_panel["ticket"] == "dense") | (of_panel["method"] == method)])
        rates = sorted({last["eval_lr"].min(), last["eval_lr"].max()})
        place = level_of(last.sort_values("sparsity").to_dict("records")[-1])
        sentences.append(
            f"{name}, {place}, {method} masks: R_p with p = {last['p'].iloc[0]:g} at learning rate "
            f"{listed([f'{rate:g}' for rate in rates])} (chance {last['chance'].mean():.2f}; 95 % t interval, "
            f"{plots.sample_size(last)}) was:"
        )
        sentences += _told(last, rates)
    return found_out(sentences or ["The correlation indicator is not done, or not asked for."])


def _told(last: pd.DataFrame, rates: Sequence[float]) -> list[str]:
    """R_p of every ticket and paired differences, a sentence for each reading; the control stands with its reading."""
    pairs = contrasts(last)
    pairs = pairs[pairs["find_lr"] == pairs["eval_lr"]] if len(pairs) else pairs.assign(reading="")
    sentences = []
    for name in ("own", "dense", "trained"):
        items = _tickets(last[last["reading"] == name], rates, _at)
        if name == "dense":
            items += _tickets(last[last["reading"] == "permuted"], rates, _at, ", mask permuted,")
        about = pairs[pairs["reading"] == name]
        items += _tickets(about[about["contrast"] == TICKETS], rates, _apart)
        items += _tickets(about[about["contrast"] == MASKS], rates, _apart, f", {MASKS},")
        if items:
            sentences.append(f"{READINGS[name][0].upper()}{READINGS[name][1:]}: {'; '.join(items)}.")
    return sentences


def _tickets(
    rows: pd.DataFrame, rates: Sequence[float], say: Callable[[pd.DataFrame, Sequence[float]], str], how: str = ""
) -> list[str]:
    """Say something of every ticket, by what tells those of a kind apart."""
    told = strokes.variants(rows)
    names = sorted(rows["ticket"].unique(), key=[*strokes.TICKETS, TICKETS].index)
    return [
        f"{ticket}{f' ({text})' if text else ''}{how} {say(cells, rates)}"
        for ticket in names
        for text, cells in rows[rows["ticket"] == ticket].groupby(told, sort=False)
    ]


def _at(rows: pd.DataFrame, rates: Sequence[float]) -> str:
    """The indicator of a ticket at learning rates; by the masks' too, where several masks were trained at one."""
    masks = sorted(rows["find_lr"].unique())
    grid = rows.groupby("eval_lr")
    if len(masks) > 1 and (grid["key"].nunique() > grid["replicate"].nunique()).any():
        outer = (masks[0], masks[-1])
        return ", ".join(f"{_at(rows[rows['find_lr'] == lr], rates)} on masks found at {lr:g}" for lr in outer)
    cells = {cell["eval_lr"]: interval(cell) for cell in results.summarise(rows, ["eval_lr"]).to_dict("records")}
    return listed([cells.get(rate, "not known") for rate in rates])


def _apart(rows: pd.DataFrame, rates: Sequence[float]) -> str:
    cells = {cell["eval_lr"]: _difference(cell) for cell in results.summarise(rows, ["eval_lr"]).to_dict("records")}
    return listed([cells.get(rate, "not known") for rate in rates])


def _difference(cell: dict[Any, Any]) -> str:
    unseen = cell["n"] > 1 and cell["low"] <= 0 <= cell["high"]
    return spanned(cell, lambda value: signed(value, 2)) + ", not seen" * bool(unseen)


def dropped(indicator: pd.DataFrame) -> Html:
    """Say how many comparisons lack a layer because the mask keeps nothing of it.

    Parameters
    ----------
    indicator : DataFrame
        What `rows` returns.
    """
    done = indicator[indicator["status"] == "done"].drop_duplicates("key")
    found = done[done["collapsed"].fillna(0) > 0]
    if found.empty:
        return Html(f"<p>None of {len(done)} comparisons lacks a layer: every mask keeps something of each.</p>")
    items = [
        f"{name}, {ticket} on {method} masks, {level_of(cells.iloc[0].to_dict())}: {len(cells)} comparisons"
        for name, of_panel in results.panels(found)
        for (ticket, method, _), cells in of_panel.groupby(["ticket", "method", "sparsity"], sort=False)
    ]
    words = f"Of {len(done)} comparisons, {len(found)} lack layers of which the mask keeps nothing: {'; '.join(items)}."
    return Html(f'<p class="warning">{html.escape(words)}</p>')


def tables(indicator: pd.DataFrame) -> Html:
    """Show R_p of all readings side by side, beside the dense network and chance, the sparsest level unfolded.

    Parameters
    ----------
    indicator : DataFrame
        What `usual` returns.

    Returns
    -------
    Html
        A table for each panel and level, a row for each ticket and learning rate: means with 95 % t intervals, z (the
        mean over replicates of the distance from chance in standard deviations) and n.
    """
    shown = []
    done = indicator[indicator["status"] == "done"]
    for name, of_panel in results.panels(done) if len(done) else []:
        dense = of_panel[of_panel["ticket"] == "dense"]
        sparse = of_panel[of_panel["ticket"] != "dense"]
        *others, last = [_table(name, own, dense) for _, own in sparse.groupby("sparsity")] or [""]
        more = f"{len(others)} more level{'s' * (len(others) > 1)}"
        folded = f"<details><summary>{more}</summary>{''.join(others)}</details>"
        shown.append(last + folded * bool(others))
    return Html("".join(shown) or '<p class="nothing">The study measures no ticket.</p>')


def _table(panel: str, sparse: pd.DataFrame, dense: pd.DataFrame) -> str:
    networks = {cell["eval_lr"]: _with_z(cell) for cell in _cells(dense, ["eval_lr"])}
    sparse = sparse.assign(variant=strokes.variants(sparse))
    place = ["eval_lr", "find_lr", "ticket", "method", "variant"]
    lines = []
    for (rate, mask, ticket, method, variant), own in sparse.groupby(place, sort=True):
        found = {cell["reading"]: cell for cell in _cells(own, ["reading"])}
        line = {"learning rate": f"{rate:g}", "mask found at": f"{mask:g}", "ticket": ticket, "masks": method}
        line |= {"variant": variant}
        line |= {name: _with_z(found[name]) for name in READINGS if name in found}
        line |= {"dense network": networks.get(rate, "")}
        sizes = sorted({cell["n"] for cell in found.values()})
        lines.append(line | {"chance": f"{own['chance'].mean():.3f}", "n": " to ".join(map(str, sizes))})
    wide = pd.DataFrame(lines)
    idle = [name for name, same in (("mask found at", "learning rate"), ("variant", None)) if _idle(wide, name, same)]
    names = {name: f"{name}: {_FORMULAS[name]}" for name in READINGS}
    label = f"{panel}, {level_of(sparse.iloc[0].to_dict())}, p = {sparse['p'].iloc[0]:g}: R_p by what is compared"
    about = f"{label}; means with 95 % t interval, z averaged over replicates"
    order = [name for name in wide if name not in idle and name not in ("dense network", "chance", "n")]
    wide = wide[[*order, "dense network", "chance", "n"]].rename(columns=names)
    return f"<p>{html.escape(about).replace('R_p', 'R<sub>p</sub>')}</p>{table(wide, label)}"


def _idle(wide: pd.DataFrame, name: str, same: str | None) -> bool:
    return bool((wide[name] == (wide[same] if same else "")).all())


def _cells(rows: pd.DataFrame, by: Sequence[str]) -> list[dict[Any, Any]]:
    """Means and intervals, and the mean z."""
    if rows.empty:
        return []
    z = results.summarise(rows.assign(value=rows["z"].astype(float)), by)["mean"]
    return results.summarise(rows, by).assign(z=z).to_dict("records")


def _with_z(cell: dict[Any, Any]) -> str:
    return interval(cell) + ("" if pd.isna(cell["z"]) else f", z {signed(cell['z'], 1 if abs(cell['z']) < 10 else 0)}")
