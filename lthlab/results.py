"""From studies and the store to tidy frames, with numbers of runs and intervals."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lthlab import packing, tickets
from lthlab.errors import nearest
from lthlab.forms import input_keys
from lthlab.nodes import KINDS
from lthlab.parts import NETS, iterations
from lthlab.runs import read_metrics, staleness, whole
from lthlab.spec import Config
from lthlab.store import Damaged, Part, Store

STATUSES = ("done", "missing", "failed", "diverged", "blocked", "stale")
"""What a value can be: computed; not (yet) or damaged; an analysis that refused; a training whose loss ceased to be
finite; in need of such a one; of another revision, or of bits that could not be repeated."""

_MEASURED = ("value", "chance", "error", "z")
_OUTCOMES = (
    "configuration", "kept", "collapsed", "epoch", "metric", "value", "validation", "chance", "error", "z", "status",
    "note", "key",
)  # fmt: skip
"""Columns that follow from the others."""


def load(runs: str | Path | Store, study: str | Config | None = None) -> pd.DataFrame:
    """Load the tidy frame: one row per role and value, missing and failed ones too.

    Parameters
    ----------
    runs : str, Path or Store
        The store.
    study : str or Config, optional
        Name of a study, as it was run last; or a study as it is, whatever was run last under its name. All of them
        by default.

    Returns
    -------
    DataFrame
        study and the columns of roles (`lthlab.roles.Labelled`), then kept, collapsed, epoch, metric, value,
        validation, chance, error, z, status, note and key. `value` is test accuracy in [0, 1] at the study's reported
        epoch, the number of weights a mask keeps, or what a measure measures; `validation` is the accuracy on
        validation images at that epoch, if there are any; `chance` is what a measure would be by chance, `error` how
        far off it may be, and `z` how far R_p is from chance, in standard deviations. `collapsed` is the number of
        layers that a mask, or that of a training, keeps nothing of; None without a mask. The note of such a mask names
        them.

    Raises
    ------
    LookupError
        If there is no such study.
    """
    store = runs if isinstance(runs, Store) else Store(runs)
    name = study.name if isinstance(study, Config) else study
    names = store.studies() if name is None else [name]
    if name is not None and name not in store.studies():
        first = f"run it first: lthlab run {name}"
        raise LookupError(f"study '{name}' is not in {store.root}; {first}; {nearest(name, store.studies())}")
    if isinstance(study, Config):
        tables = {study.name: [item.row for item in tickets.expand(study)]}
    else:
        tables = {name: store.study(name)["roles"] for name in names}
    reader = _Reader(store)
    return pd.DataFrame([row for name, roles in tables.items() for row in reader.rows(name, roles)])


def statuses(store: Store, keys: Iterable[str]) -> dict[str, str]:
    """Say of values what they are, one of `STATUSES` each; a damaged one is missing.

    Parameters
    ----------
    store : Store
        Where they are.
    keys : iterable of str
        Their keys.
    """
    reader = _Reader(store)
    return {key: reader.status(key)[0] for key in keys}


def select(frame: pd.DataFrame, configuration: str) -> pd.DataFrame:
    """Choose the rows of a configuration, or of a stage, such as 'find_tickets'.

    Raises
    ------
    LookupError
        If there are none.
    """
    stages = frame["configuration"].str.partition(".")[0]
    chosen = frame[(frame["configuration"] == configuration) | (stages == configuration)]
    if chosen.empty:
        allowed = nearest(configuration, {*frame["configuration"], *stages})
        raise LookupError(f"configuration '{configuration}' has no rows; {allowed}")
    return chosen


class _Reader:
    """Reads each value once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._forms: dict[str, dict[str, Any]] = {}
        self._statuses: dict[str, tuple[str, str | None]] = {}
        self._outcomes: dict[tuple[str, str], dict[str, Any]] = {}

    def rows(self, name: str, roles: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        for role in roles:
            key = role["key"]
            fields = {column: value for column, value in role.items() if column != "key"}
            yield {"study": name} | fields | self._outcome(key, role["report"]) | {"key": key}

    def form(self, key: str) -> dict[str, Any]:
        if key not in self._forms:
            self._forms[key] = self.store.description(key)
        return self._forms[key]

    def parts(self, key: str) -> list[Part]:
        return self.store.parts(key)

    def status(self, key: str) -> tuple[str, str | None]:
        """Status of a value, and a note that explains it; inputs first, however long the chain."""
        waiting = [key]
        while waiting:
            top = waiting[-1]
            try:
                before = [source for source in input_keys(self.form(top)) if source not in self._statuses]
                if before:
                    waiting += before
                    continue
                if top not in self._statuses:
                    self._statuses[top] = self._status(top)
            except Damaged as damage:
                self._statuses[top] = "missing", self._note(damage)
            waiting.pop()
        return self._statuses[key]

    def _note(self, damage: Damaged) -> str:
        """Name what is damaged by its place in the store, since notes are read on other machines too."""
        return f"{damage.path.relative_to(self.store.root)}: {damage.reason}"

    def _status(self, key: str) -> tuple[str, str | None]:
        form = self.form(key)
        for kind, revision in _revisions(form):
            if revision != KINDS[kind].revision:
                return "stale", f"computed by revision {revision} of {kind}, now {KINDS[kind].revision}"
        records = [part.record for part in self.parts(key)]
        if reason := staleness(self.store, records):
            return "stale", reason
        for source in input_keys(form):
            status, note = self.status(source)
            if status == "stale":
                return "stale", note
        if any("failed" in record for record in records):
            return "failed", records[0]["failed"]
        trained = [record for record in records if record["kind"] == "train"]
        diverged = [record["diverged"] for record in trained if record["diverged"] is not None]
        if diverged:
            return "diverged", f"loss not finite in epoch {diverged[0]}"
        complete = max(r["until"] for r in trained) >= trained[0]["end"] if trained else whole(records)
        if complete:
            return "done", None
        for source in input_keys(form):
            status, note = self.status(source)
            if status == "diverged":
                return "blocked", f"needs {source}, whose loss is not finite"
            if status in ("blocked", "failed"):
                return "blocked", note
        return "missing", None

    def _outcome(self, key: str, report: str) -> dict[str, Any]:
        if (key, report) not in self._outcomes:
            try:
                self._outcomes[key, report] = self._read(key, report)
            except Damaged as damage:
                nothing = dict.fromkeys(("kept", "collapsed", "epoch", "metric", "validation", *_MEASURED))
                self._outcomes[key, report] = nothing | {"status": "missing", "note": self._note(damage)}
        return self._outcomes[key, report]

    def _read(self, key: str, report: str) -> dict[str, Any]:
        status, note = self.status(key)
        form, parts = self.form(key), self.parts(key)
        under = self._mask(key)
        row: dict[str, Any] = {"kept": under.get("kept"), "collapsed": None}
        if "collapsed" in under:
            row["collapsed"] = len(under["collapsed"])
        row |= dict.fromkeys(("epoch", "metric", "validation", *_MEASURED))
        if form["kind"] == "Train":
            row["metric"] = "test_accuracy"
            rows = [line for line in read_metrics(self.store, key, parts) if "train_loss" in line]
            if status == "done" and rows:
                best = {"last": "epoch", "best_val": "val_accuracy", "best_test": "test_accuracy"}[report]
                chosen = max(rows, key=lambda line: line[best])
                row |= {"epoch": chosen["epoch"], "value": chosen["test_accuracy"]}
                row["validation"] = chosen.get("val_accuracy")
        elif form["kind"] == "Measure":
            row["metric"] = form["name"]
            if status == "done":
                row |= {name: parts[0].record.get(name) for name in _MEASURED}
        else:
            row |= {"metric": "kept", "value": row["kept"] if status == "done" else None}
            if status == "done" and row["collapsed"]:
                note = f"keeps nothing of {', '.join(under['collapsed'])}"
        return row | {"status": status, "note": note}

    def _mask(self, key: str) -> dict[str, Any]:
        """Record of a mask, or of the mask that a training or the first training of a measure is under."""
        try:
            form, parts = self.form(key), self.parts(key)
        except Damaged:
            return {}
        if form["kind"] == "Measure":
            first = form["of"][0]
            return self._mask(first["run"] if isinstance(first, dict) else first)
        if form["kind"] == "Train":
            pruned = [part.record["mask"] for part in parts if "mask" in part.record]
            under = form.get("mask")
            return pruned[-1] if pruned else self._mask(under) if isinstance(under, str) else {}
        return parts[0].record if parts else {}


def _revisions(form: dict[str, Any]) -> list[tuple[str, int]]:
    """Kinds written inside a form, itself first, with the revisions that they have there."""
    found = [(form["kind"], form.get("revision", 1))] if "kind" in form else []
    for item in form.values():
        for part in item if isinstance(item, list) else [item]:
            found += _revisions(part) if isinstance(part, dict) else []
    return found


def summarise(frame: pd.DataFrame, by: Sequence[str], confidence: float = 0.95) -> pd.DataFrame:
    """Summarise `value` over replicates.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame; only rows that are done count, and a value that has several roles in a cell counts once there.
    by : sequence of str
        Columns that tell cells apart.
    confidence : float, optional
        Coverage of the interval.

    Returns
    -------
    DataFrame
        `by`, n, mean, sd, low and high: Student's t interval of the mean; NaN for n = 1.

    Raises
    ------
    ValueError
        If a cell has several values of one replicate, which would count as replicates.
    """
    from scipy.stats import t

    done = frame[frame["status"] == "done"]
    if "replicate" in done:
        place = list(dict.fromkeys([*by, "replicate"]))
        done = done.drop_duplicates([*place, "key", "value"]) if "key" in done else done
        if (several := done.duplicated(place, keep=False)).any():
            raise ValueError(_mixed(done[several], place))
    groups = done.groupby(list(by), dropna=False)["value"]
    out = groups.agg(n="count", mean="mean", sd="std").reset_index()
    half = t.ppf((1 + confidence) / 2, (out["n"] - 1).where(out["n"] > 1)) * out["sd"] / out["n"] ** 0.5
    return out.assign(low=out["mean"] - half, high=out["mean"] + half)


def ratio(part: Iterable[float], whole: Iterable[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Divide the mean of one sample by that of another, paired with it.

    Parameters
    ----------
    part, whole : iterable of float
        Values of the same replicates.
    confidence : float, optional
        Coverage of the interval.

    Returns
    -------
    tuple of float
        Ratio of the means with its interval (Fieller 1954); NaN where the interval of the mean of `whole` includes
        zero, for then that of the ratio has no bound, and for n = 1.
    """
    from scipy.stats import t

    pairs = np.array([list(part), list(whole)], float)
    n = pairs.shape[1]
    if n < 2:
        return np.nan, np.nan, np.nan
    ((vp, both), (_, vw)) = np.cov(pairs) * t.ppf((1 + confidence) / 2, n - 1) ** 2 / n
    a, b = pairs.mean(axis=1)
    lead, middle = b**2 - vw, a * b - both
    if lead <= 0:
        return np.nan, np.nan, np.nan
    half = max(middle**2 - lead * (a**2 - vp), 0.0) ** 0.5
    return float(a / b), float((middle - half) / lead), float((middle + half) / lead)


def _mixed(rows: pd.DataFrame, place: Sequence[str]) -> str:
    """Say by which columns cells would have one value per replicate."""
    one = rows.iloc[0]
    texts = rows.map(str)
    texts = texts.drop(columns=[name for name in _OUTCOMES if name in texts])
    counts = texts.groupby([texts[name] for name in place]).nunique()
    differ = ", ".join(str(name) for name in counts if (counts[name] > 1).any())
    where = ", ".join(f"{name} {one[name]}" for name in place)
    return f"several values of one replicate in a cell ({where}); they differ in: {differ or 'nothing'}; " + (
        "add these to by, or select rows" if differ else "select rows"
    )


def differences(frame: pd.DataFrame, first: str, second: str, by: Sequence[str] | None = None) -> pd.DataFrame:
    """Subtract one ticket's values from another's, replicate by replicate.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of trainings.
    first, second : str
        Tickets, such as 'LT' and 'RR'.
    by : sequence of str, optional
        Columns that tell cells apart, replicate and ticket aside; by default panel, method, how masks were found,
        level, sparsity and recipes.

    Returns
    -------
    DataFrame
        `by`, replicate, value (first minus second) and status 'done', for pairs of which both are done.

    Raises
    ------
    ValueError
        If a cell has several values of one replicate.
    """
    found = ("method", "prune_at", "pruning", "layer_counts", "level", "sparsity")
    names = (*PANEL, *found, *_recipes(frame, "find_", "eval_"), "find_lr", "eval_lr")
    by = [name for name in names if name in frame] if by is None else by
    return paired(frame[frame["what"] == "train"], "ticket", first, second, by)


def paired(frame: pd.DataFrame, column: str, first: Any, second: Any, by: Sequence[str]) -> pd.DataFrame:
    """Subtract the values of rows with one entry of a column from those with another, replicate by replicate.

    Parameters
    ----------
    frame : DataFrame
        Tidy rows.
    column : str
        Column that tells the two sides apart.
    first, second : object
        Its entries on either side.
    by : sequence of str
        Columns that tell cells apart, the replicate and `column` aside.

    Returns
    -------
    DataFrame
        `by`, replicate, value (first minus second) and status 'done', for pairs of which both are done.

    Raises
    ------
    ValueError
        If a cell has several values of one replicate.
    """
    done = frame[frame["status"] == "done"]
    done = done.assign(**{name: done[name].map(str) for name in by if any(isinstance(v, list) for v in done[name])})
    columns = [*by, "replicate"]
    pair = done[done[column].isin([first, second])]
    place = [*columns, column]
    pair = pair.drop_duplicates([*place, "key", "value"]) if "key" in pair else pair
    if (several := pair.duplicated(place, keep=False)).any():
        raise ValueError(_mixed(pair[several], place))
    sides = [pair[pair[column] == side].set_index(columns)["value"] for side in (first, second)]
    return (sides[0] - sides[1]).dropna().reset_index().assign(status="done")


PANEL = (
    "study", "panel", "network", "width", "shortcut", "data", "view", "train_size", "ranking", "source", "target",
    "hyperparameter",
)  # fmt: skip
"""Columns that tell networks on data sets apart, how weights are ranked, what tickets are transferred to, and what is
varied (decoupling)."""


def unit(rows: "pd.DataFrame | Mapping[Any, Any]") -> str:
    """Say what sparsities of rows are shares of: 'prunable weights', or 'filters' where these are pruned whole."""
    found = rows.get("ranking")
    several = [found] if found is None or isinstance(found, str) else found.unique()
    return "filters" if all(str(name).startswith("filters") for name in several) else "prunable weights"


VARIANT = ("prune_at", "pruning", "layer_counts", "scope", "rewind", "schedule")
"""Columns that tell tickets of one kind on masks of one method apart."""


def panels(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Split a frame into panels: a network on a data set under one recipe, learning rates aside.

    Dense networks go with the tickets that are trained like them, steps of a search with those they give masks to;
    in a frame without tickets all rows of a network and data set with one recipe are a panel.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame, or what `differences` makes of one.

    Returns
    -------
    list of (str, DataFrame)
        Name, such as 'resnet8 (width 4) on digits', and rows.
    """
    base = [*(name for name in PANEL if name in frame), *_recipes(frame, "find_")]
    own = [*base, *_recipes(frame, "eval_")]
    texts = frame[own].map(str)  # some fields of recipes are lists
    searched = frame["ticket"] == "search" if "ticket" in frame else pd.Series(False, frame.index)
    tickets = ~searched & (frame["ticket"] != "dense") if "ticket" in frame else ~searched
    keys = texts[tickets if tickets.any() else ~searched if (~searched).any() else slice(None)].drop_duplicates()
    found = []
    for _, key in keys.iterrows():
        rows = (texts[base] == key[base]).all(axis=1) & ((texts == key).all(axis=1) | searched)
        found.append((_panel_name(frame[rows].iloc[0]), key, frame[rows]))
    names = [name for name, _, _ in found]
    return [
        (name if names.count(name) == 1 else f"{name}, {_details(key, keys[[n == name for n in names]])}", rows)
        for name, key, rows in found
    ]


def _recipes(frame: pd.DataFrame, *sides: str) -> list[str]:
    return [name for name in map(str, frame) if name.startswith(sides) and name not in ("find_lr", "eval_lr")]


_RANKINGS = {
    "layer": ", ranked within layers",
    "filters, global": ", whole filters",
    "filters, layer": ", whole filters within layers",
}


def _panel_name(row: "pd.Series[Any]") -> str:
    name = str(row.get("network", "all networks"))
    about = [f"width {row['width']}"] if "width" in NETS.get(name, ()) and "width" in row else []
    about += ["no shortcuts"] if row.get("shortcut") == "none" else []
    name += f" ({', '.join(about)})" if about else ""
    view = row.get("view")
    view = f" ({view})" if view and isinstance(view, str) else ""  # earlier versions noted none
    target = f", transferred to {row['target']}" if row.get("target") != row.get("source") else ""
    ranking = _RANKINGS.get(str(row.get("ranking")), "")
    return f"{name} on {row['data']}{view}{target}{ranking}" if "data" in row else name


def _details(key: "pd.Series[Any]", keys: pd.DataFrame) -> str:
    """What tells a panel from others of the same name; numbers and long texts only where nothing else does."""
    differ = [str(column) for column in keys if keys[column].nunique() > 1]
    for column in ("panel", "source", "target"):
        rest = [name for name in differ if name != column]
        differ = rest if rest and not keys.duplicated(rest).any() else differ
    return ", ".join(f"{column.replace('_', ' ')} {key[column]}" for column in differ)


def sizes(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare small dense networks (SDT) with what the tickets of their level keep.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study.

    Returns
    -------
    DataFrame
        One row per panel and level: panel (its name), level, sparsity, widths and parameters of the SDT, target
        (parameters that the tickets keep), and gap, the share of the target that the SDT lacks.
    """
    trained = frame[frame["what"] == "train"]
    found = []
    for name, rows in panels(trained) if len(trained) else []:
        small = rows[rows["ticket"] == "SDT"].drop_duplicates(["level", "sparsity"]).drop(columns="target")
        target = rows[rows["method"].notna()].groupby("sparsity")["parameters"].max().rename("target")
        found.append(small.join(target, on="sparsity").assign(panel=name).sort_values("sparsity"))
    columns = ["panel", "level", "sparsity", "widths", "parameters", "target"]
    out = pd.concat(found)[columns] if found else pd.DataFrame(columns=columns)
    return out.reset_index(drop=True).assign(gap=1 - out["parameters"].to_numpy(float) / out["target"].to_numpy(float))


def step_epochs(rows: pd.DataFrame, column: str = "prune_at") -> "pd.Series[float]":
    """Give steps in epochs of the finding recipe; NaN where the number is not known beforehand, as of 'best_val'.

    Parameters
    ----------
    rows : DataFrame
        Tidy rows that stand on masks.
    column : str, optional
        Where the steps are: 'prune_at' or 'rewind'.
    """
    epochs = [
        iterations(step, count) / count if str(step)[:1].isdigit() else np.nan
        for step, count in zip(rows[column], -(-rows["train_size"] // rows["find_batch_size"]), strict=True)
    ]
    return pd.Series(epochs, rows.index, dtype=float)


def ranked_last(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Choose, of what stands on masks that were ranked at several steps of a training, what is ranked last.

    Parameters
    ----------
    rows : DataFrame
        Tidy rows that stand on masks.
    by : sequence of str
        Columns beside the finding recipe that tell apart what is chosen from.

    Returns
    -------
    DataFrame
        Rows of the last step known beforehand; where there is none, of 'best_val' before 'best_test'.
    """
    recipes = [name for name in map(str, rows) if name.startswith("find_")]
    place = [rows[name].map(str) for name in (*by, *recipes)]
    epochs = step_epochs(rows).fillna(-1.0)
    last = epochs == epochs.groupby(place).transform("max")
    names = rows["prune_at"].map(str).where(last, "")
    return rows[last & (names == names.groupby(place).transform("max"))]


def layers(store: Store, frame: pd.DataFrame) -> pd.DataFrame:
    """List what masks do to each layer (the layer-wise pruning ratio, LPR, of Lan).

    Parameters
    ----------
    store : Store
        Where the masks are.
    frame : DataFrame
        Tidy frame; its masks that were searched for and are done count.

    Returns
    -------
    DataFrame
        The rows of the masks once per prunable layer, in network order: layer (name), number (from 1), weights,
        kept, and value, the share of the layer's weights that is pruned, in [0, 1]; metric is 'pruned share'.
    """
    counts = {key: _layers(store, key) for key in _masks(frame)["key"].unique()}
    rows = [
        row | {"layer": name, "number": number, "weights": layer.size, "kept": int(layer.sum())}
        | {"metric": "pruned share", "value": 1 - float(layer.mean())}
        for row in _masks(frame).to_dict("records")
        for number, (name, layer) in enumerate(counts[row["key"]].items(), start=1)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=[*frame, "layer", "number", "weights"]).astype({"value": float})


def measured(store: Store, frame: pd.DataFrame, file: str = "frame.jsonl") -> pd.DataFrame:
    """List the rows of measures: of each layer, step, pair of masks or point.

    Parameters
    ----------
    store : Store
        Where the measures are.
    frame : DataFrame
        Tidy frame; its measures that are done count.
    file : str, optional
        'frame.jsonl', or 'path.jsonl', the trajectories on surfaces.

    Returns
    -------
    DataFrame
        The rows of `frame` once per row of their measure, which has columns of its own; a column of both, as value and
        chance, is that of the measure. Of a plane, also what its record says of it.
    """
    rows = []
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in frame[frame["status"] == "done"].to_dict("records"):
        if row["key"] not in tables:
            tables[row["key"]] = list(_table(store, row["key"], file))
        rows += [row | own for own in tables[row["key"]]]
    return pd.DataFrame(rows, columns=None if rows else list(frame))


def _table(store: Store, key: str, file: str) -> Iterator[dict[str, Any]]:
    """Rows of a measure, of all of its parts, with what is noted of the whole."""
    parts = store.parts(key)
    about = {name: item for name, item in parts[0].record.items() if name not in ("kind", "inputs", "left", *_MEASURED)}
    for part in parts:
        if file in part.files:
            yield from (about | json.loads(line) for line in store.read(key, file, part.number).decode().splitlines())


def revived(store: Store, frame: pd.DataFrame) -> pd.DataFrame:
    """Count the weights that a mask of a chain keeps though the mask of the level before had pruned them.

    Parameters
    ----------
    store : Store
        Where the masks are.
    frame : DataFrame
        Tidy frame; its IMP masks that are done count.

    Returns
    -------
    DataFrame
        One row per pair of successive levels: columns of the sparser mask, and value, a number of weights: 0 where
        masks are nested.
    """
    masks = _masks(frame)
    masks = masks[masks["method"] == "IMP"]
    chain = [*PANEL, *VARIANT, *_recipes(frame, "find_"), "find_lr", "rate", "replicate"]
    texts = (
        masks[[name for name in chain if name in masks]].map(str).agg("\n".join, axis=1)
        if len(masks)
        else pd.Series(dtype=str)
    )
    rows = []
    for _, steps in masks.groupby(texts):
        steps = steps.sort_values("level")
        found = [_layers(store, key) for key in steps["key"]]
        for row, inner, outer in zip(steps.to_dict("records")[1:], found[1:], found, strict=False):
            count = sum(int((layer & ~outer[name]).sum()) for name, layer in inner.items())
            rows.append(row | {"metric": "revived", "value": count})
    return pd.DataFrame(rows, columns=masks.columns)


def collapsed(frame: pd.DataFrame) -> pd.DataFrame:
    """List the masks that cut a network through: of some layer they keep nothing, and what follows sees no image.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study.

    Returns
    -------
    DataFrame
        Its rows of such masks, each mask once; their notes name the layers. In a residual network, images may still get
        through beside a layer.
    """
    return frame[(frame["what"] == "mask") & (frame["collapsed"].fillna(0) > 0)].drop_duplicates("key")


def _masks(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["what"] == "mask") & (frame["ticket"] == "search") & (frame["status"] == "done")]


def _layers(store: Store, key: str) -> dict[str, NDArray[np.bool_]]:
    """Read the prunable layers of a mask; one of filters covers other parameters too."""
    found = packing.unpack(store.read_tensors(key, "mask.safetensors"))
    return {name: found[name] for name in store.parts(key)[0].record["layers"]}


def uneven(frame: pd.DataFrame) -> pd.DataFrame:
    """List the cells of panels that lack replicates that others of the panel, and of the same `what`, have.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of a study; rows count whatever their status.

    Returns
    -------
    DataFrame
        Role columns of a cell, and replicates, the number there are; no row where all is as it should be.
    """
    names = [*PANEL, *VARIANT, "what", "ticket", "method", "level", "sparsity"]
    names += ["reading", "p", "measured_at", "images", *_recipes(frame, "find_", "eval_")]
    names = [name for name in (*names, "find_lr", "eval_lr") if name in frame]
    texts = frame[names].map(str)
    counts = frame["replicate"].groupby([texts[name] for name in names]).nunique().rename("replicates").reset_index()
    base = [name for name in (*PANEL, "what") if name in frame]
    return counts[counts["replicates"] < counts.groupby(base)["replicates"].transform("max")]


def count_statuses(frame: pd.DataFrame) -> dict[str, int]:
    """Count rows by status, every status named."""
    counts = dict(frame["status"].value_counts()) if len(frame) else {}
    return {status: int(counts.get(status, 0)) for status in STATUSES}
