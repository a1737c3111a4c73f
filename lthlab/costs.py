"""What finding and training tickets costs, in epochs, beside the accuracy it buys."""

import pandas as pd

from lthlab import results

COLUMNS = ("ticket", "method", *results.VARIANT, "level", "sparsity")


def at_dense_best(frame: pd.DataFrame) -> pd.DataFrame:
    """Choose in every panel the trainings at that learning rate of the tickets at which dense networks do best.

    So all tickets have one learning rate, which none of them chose; the choice flatters dense networks, if any.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study.

    Returns
    -------
    DataFrame
        Trainings at that learning rate, on masks that were found with it too if there are such; all trainings of panels
        without dense networks that are done.
    """
    trained = frame[(frame["what"] == "train") & (frame["ticket"] != "search")]
    found = []
    for _, rows in results.panels(trained) if len(trained) else []:
        sparse = rows["ticket"] != "dense"
        dense = rows[~sparse & rows["eval_lr"].isin(rows.loc[sparse, "eval_lr"]) & (rows["status"] == "done")]
        if len(dense):
            best = results.summarise(dense, ["eval_lr"]).sort_values("mean")["eval_lr"].iloc[-1]
            rows = rows[rows["eval_lr"] == best]
            same = rows["find_lr"] == best
            rows = rows[same] if (same & (rows["ticket"] != "dense")).any() else rows
        found.append(rows)
    return pd.concat(found) if found else trained


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """List what tickets cost and what accuracy they have.

    Parameters
    ----------
    frame : DataFrame
        Tidy rows of trainings.

    Returns
    -------
    DataFrame
        One row per panel, ticket, method, variant, level and learning rates, the cheapest first within a level: panel
        (its name), `COLUMNS`, find_lr, eval_lr, search_epochs (of finding mask and weights; begun epochs count),
        train_epochs, epochs (both), n, mean, low, high (accuracy in [0, 1], `lthlab.results.summarise`).
    """
    trained = frame[(frame["what"] == "train") & (frame["ticket"] != "search")]
    by = [name for name in (*COLUMNS, "find_lr", "eval_lr", "search_epochs", "train_epochs") if name in frame]
    found = [
        results.summarise(rows, by).assign(panel=name)
        for name, rows in (results.panels(trained) if len(trained) else [])
    ]  # fmt: skip
    out = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*by, "n", "mean", "low", "high"])
    out = out.assign(epochs=out["search_epochs"] + out["train_epochs"])
    shown = ["panel", *by, "epochs", "n", "mean", "low", "high"]
    return out.reindex(columns=shown).sort_values(["panel", "sparsity", "epochs"], ignore_index=True)


def saved(frame: pd.DataFrame, ticket: str = "LT", dear: str = "IMP", cheap: str = "OMP") -> pd.DataFrame:
    """Compare a ticket on masks of a dear search with one on masks of a cheap one, paired by replicate.

    Parameters
    ----------
    frame : DataFrame
        Tidy rows of trainings; masks of the longest search of each method count, none with imposed layer counts.
    ticket : str, optional
        Which ticket.
    dear, cheap : str, optional
        Methods.

    Returns
    -------
    DataFrame
        One row per panel, level and learning rates: panel (its name), level, sparsity, find_lr, eval_lr, dear and cheap
        (epochs of the searches), n, mean, low and high of the accuracy with the dear minus that with the cheap search.
    """
    rows = frame[(frame["what"] == "train") & (frame["ticket"] == ticket) & frame["layer_counts"].isna()]
    rows = rows[rows["method"].isin([dear, cheap])]
    by = ["level", "sparsity", "find_lr", "eval_lr"]
    found = []
    for name, own in results.panels(rows) if len(rows) else []:
        if own["method"].nunique() < 2:
            continue
        longest = own.groupby([*by, "method"], dropna=False)["search_epochs"].transform("max")
        own = results.ranked_last(own[own["search_epochs"] == longest], ["method", "level", "sparsity"])
        spent = own.pivot_table(index=by, columns="method", values="search_epochs", dropna=False)
        spent = spent.rename(columns={dear: "dear", cheap: "cheap"}).reset_index()
        pairs = results.summarise(results.paired(own, "method", dear, cheap, by), by)
        found.append(pairs.merge(spent, on=by).assign(panel=name))
    columns = ["panel", *by, "dear", "cheap", "n", "mean", "low", "high"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)
