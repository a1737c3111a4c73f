"""Claims of papers as questions to tables of results: an effect with its 95 % interval, and what follows.

The settings of a claim name a table of `lthlab.evidence.TABLES` and choose from each panel's rows. A choice is a
mapping of columns to an entry, a list of entries, or a word that stands for one of the values that the panel has: of a
learning rate or another number 'smallest', 'next' (to the largest) or 'largest', where there are several, or 'usual',
the largest or only one; of the column `level` (by sparsity) 'least', 'sparsest' or 'nontrivial' (the first from 60 %
on); of `step`, the share of the training after which weights were ranked, 'first', 'half', 'last' or 'any'. `lr` is
the learning rate of masks and tickets alike. `at` holds for both sides, `first` and `second` are the sides; `than` is
laid over `at` for the difference that another one is compared with. What no choice names is as usual: masks of the end
of training with their own counts per layer, and the recipe that found them. `on` says which panels a claim is about;
`together`, that it compares those of a study that differ in nothing else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lthlab import guidelines, results, verdicts
from lthlab.errors import InputError, nearest
from lthlab.evidence import POINTS, TABLES, Source
from lthlab.published import Claim

OUTCOMES = ("contradicts", "undecided", "supports", "not yet run")
SETTINGS = (
    "table", "at", "first", "second", "than", "of", "reference", "along", "margin", "absolute", "on", "together",
    "question", "statement",
)  # fmt: skip
"""What the settings of a claim may say."""
MARGIN = 0.5
"""Points that count, where a claim says nothing else: Ma's on CIFAR-10."""
NONTRIVIAL = 0.6
_INDEX = {
    "usual": -1,
    "smallest": 0,
    "least": 0,
    "first": 0,
    "nontrivial": 0,
    "largest": -1,
    "sparsest": -1,
    "last": -1,
    "next": -2,
}
_WORDS = (*_INDEX, "half", "any")
_ALIKE = ("method", "sparsity", "find_lr", "eval_lr", "step", "reading", "p", "layer", "images", "data", "across")
_OF_MASKS = ("level", "step", "method", "scope")
_CLOCK = ("epochs", "milestones", "lr_schedule", "warmup", "batch_size", "weight_decay")
"""Fields that papers change with the length of a training."""


@dataclass(frozen=True)
class Effect:
    """What a panel says of a claim.

    Attributes
    ----------
    panel : str
        Network and data set.
    network, data : str
        Their names.
    effect, low, high : float
        Estimate and 95 % interval; NaN where there is none.
    n : int
        Replicates, or panels of a claim about all of them; 0 where nothing is done.
    unit : str
        'points' or ''.
    outcome : str
        One of `OUTCOMES`.
    words : str
        Where it was looked for, and what is special.
    """

    panel: str
    network: str
    data: str
    effect: float
    low: float
    high: float
    n: int
    unit: str
    outcome: str
    words: str


def evaluate(claim: Claim, source: Source) -> Iterator[Effect]:
    """Ask a study about a claim, panel by panel; panels that have nothing to do with it are left out.

    Parameters
    ----------
    claim : Claim
        From `lthlab.published.claims`.
    source : Source
        The study.

    Raises
    ------
    InputError
        If the claim's predicate or settings are not known.
    """
    if claim.predicate not in PREDICATES:
        raise InputError(f"claim {claim.id}: predicate '{claim.predicate}': {nearest(claim.predicate, PREDICATES)}")
    if unknown := [name for name in claim.settings if name not in SETTINGS]:
        raise InputError(f"claim {claim.id}: setting '{unknown[0]}' is not known; {nearest(unknown[0], SETTINGS)}")
    yield from PREDICATES[claim.predicate](claim, source)


def decide(expected: str, low: float, high: float, margin: float) -> str:
    """Say what an interval makes of a claim.

    'more' is supported if all of the interval is above zero, contradicted if none of it reaches the margin, the
    smallest effect that matters; 'less' likewise below. 'alike' is supported if all of it is within the margin of zero,
    contradicted if none of it is. Without an interval nothing is decided.
    """
    if np.isnan(low):
        return "undecided"
    if expected == "less":
        return decide("more", -high, -low, margin)
    if expected == "more":
        return "supports" if low > 0 else "contradicts" if high < margin else "undecided"
    within, beyond = -margin <= low and high <= margin, low > margin or high < -margin
    return "supports" if within else "contradicts" if beyond else "undecided"


# --- panels and choices -------------------------------------------------------------------------------------------


def _named(settings: Mapping[str, Any]) -> set[str]:
    choices = [settings.get(name, {}) for name in ("at", "first", "second", "than", "of")]
    return {column for choice in choices for column in choice} | {*filter(None, [settings.get("along")])}


def _panels(claim: Claim, source: Source) -> Iterator[tuple[str, pd.DataFrame]]:
    """Split the table of a claim into panels, not by what the claim itself compares, and keep those it is about."""
    table = claim.settings.get("table", "trained")
    rows = source.table(table)
    if rows.empty:
        return
    named = _named(claim.settings)
    fields = {name[5:] for name in map(str, rows) if name[:5] in ("find_", "eval_")}
    own = {name for name in named if name in results.PANEL}
    own |= {"panel"} if own or claim.settings.get("together") else set()
    own |= {f"{side}_{name}" for side in ("find", "eval") for name in fields & {column[5:] for column in named}}
    if "find_epochs" in named or "eval_epochs" in named:
        own |= {f"{side}_{name}" for side in ("find", "eval") for name in _CLOCK}
    varied = frozenset(name for name in own if name in rows and not name.endswith("_lr"))
    split = (table, varied, frozenset(fields - {name[5:] for name in named}))
    if split not in source.split:
        source.split[split] = _divided(rows, *split[1:])
    for name, panel in source.split[split]:
        if _concerned(panel.iloc[0], claim.settings.get("on", {})):
            yield name, panel


def _divided(rows: pd.DataFrame, varied: frozenset[str], coupled: frozenset[str]) -> list[tuple[str, pd.DataFrame]]:
    """Split rows into panels as if some columns were not there, of masks found with the recipe that trains them."""
    hidden = {name: f"own {name}" for name in varied}
    rows = rows[_coupled(rows, coupled)].rename(columns=hidden)
    back = {new: old for old, new in hidden.items()}
    return [(name, panel.rename(columns=back)) for name, panel in (results.panels(rows) if len(rows) else [])]


def _coupled(rows: pd.DataFrame, fields: frozenset[str]) -> "pd.Series[bool]":
    """Rows whose masks were found with the recipe that trains them, but for learning rates and what a claim names."""
    same = pd.Series(True, rows.index)
    for name in fields - {"lr"}:
        if {f"find_{name}", f"eval_{name}"} <= set(rows):
            same &= rows[f"find_{name}"].map(str) == rows[f"eval_{name}"].map(str)
    return same | (rows["ticket"] == "dense") if "ticket" in rows else same


def _concerned(row: "pd.Series[Any]", wanted: Mapping[str, Any]) -> bool:
    networks, data = wanted.get("networks"), wanted.get("data")
    if wanted.get("ranking", row.get("ranking")) != row.get("ranking"):
        return False
    connections = {"residual": guidelines.WITH, "plain": guidelines.WITHOUT}
    if isinstance(networks, str):
        if guidelines.connections(str(row["network"]), row.get("shortcut")) != connections[networks]:
            return False
    elif networks is not None and row["network"] not in networks:
        return False
    if isinstance(data, str):
        return bool((row.get("train_size", 0) <= guidelines.SMALL) == (data == "small"))
    return data is None or row.get("data") in data


def _plain(rows: pd.DataFrame, choice: Mapping[str, Any]) -> pd.DataFrame:
    """Choose rows by entries that are no words."""
    for name, wanted in choice.items():
        if name in ("lr", "level") or _is_word(name, wanted):
            continue
        if name not in rows:
            return rows.iloc[:0]
        entries = wanted if isinstance(wanted, list) else [wanted]
        own = rows[name].isin([entry for entry in entries if entry is not None])
        own |= rows[name].isna() & (None in entries)
        dense = rows["ticket"] == "dense" if "ticket" in rows and name in _OF_MASKS else False
        rows = rows[own | dense]
    if "lr" in choice and not isinstance(choice["lr"], str):
        rows = rows[
            np.isclose(rows["eval_lr"], choice["lr"]) & (np.isclose(rows["find_lr"], choice["lr"]) | _dense(rows))
        ]
    return rows


def _is_word(name: str, wanted: Any) -> bool:
    numeric = name in ("lr", "level", "step", "sparsity", "number", "depth", "images") or name[:5] in ("find_", "eval_")
    return numeric and isinstance(wanted, str) and wanted in _WORDS


def _dense(rows: pd.DataFrame) -> "pd.Series[bool]":
    return rows["ticket"] == "dense" if "ticket" in rows else pd.Series(False, rows.index)


def _column(name: str) -> str:
    return {"level": "sparsity", "lr": "eval_lr"}.get(name, name)


def _domain(rows: pd.DataFrame, name: str) -> set[float]:
    """Values that a word may stand for."""
    if name == "lr" and "find_lr" in rows:
        rows = rows[(rows["find_lr"] == rows["eval_lr"]) | _dense(rows)]
    return set(rows[_column(name)].dropna().round(9))


def _taken(rows: pd.DataFrame, name: str, value: float) -> pd.DataFrame:
    own = np.isclose(rows[_column(name)].astype(float), value)
    if name == "lr":
        own &= (rows["find_lr"] == rows["eval_lr"]) | _dense(rows)
    return rows[own | (_dense(rows) if name in (*_OF_MASKS, "find_lr") else False)]


def _resolved(word: str, values: set[float]) -> float | None:
    """The value that a word stands for; None where the values do not have it."""
    found = sorted(values)
    if word == "half":
        inner = [value for value in found[1:-1] if 0.25 <= value <= 0.75]
        return min(inner, key=lambda value: abs(value - 0.5), default=None)
    found = [value for value in found if value >= NONTRIVIAL] if word == "nontrivial" else found
    index = _INDEX[word]
    if word in ("smallest", "largest") and len(found) < 2:
        return None
    return found[index] if len(found) > (index if index >= 0 else -index - 1) else None


@dataclass
class _Chosen:
    """Sides of a comparison, with what words came to stand for."""

    sides: list[pd.DataFrame]
    told: dict[str, str]


def _choose(rows: pd.DataFrame, at: Mapping[str, Any], sides: Sequence[Mapping[str, Any]]) -> _Chosen | None:
    """Choose the rows of each side; None where a panel does not have what a claim asks for."""
    rows = _plain(_usual(rows, {*at, *(name for side in sides for name in side)}), at)
    found, told = [_plain(rows, side) for side in sides], dict[str, str]()
    for name, word in at.items():
        if not _is_word(name, word) or word == "any":
            continue
        about = [own for own in found if not (name in (*_OF_MASKS, "find_lr") and _dense(own).all())]
        domains = [_domain(own, name) for own in about] or [set()]
        domain = set.intersection(*domains) - ({0.0} if name == "level" else set())
        value = _resolved(word, domain)
        if value is None:
            return None
        told[name] = _worded(name, value)
        found = [_taken(own, name, value) for own in found]
    for name in dict.fromkeys(name for side in sides for name, word in side.items() if _is_word(name, word)):
        domains = [_domain(own, name) for own in found]
        domains = domains if name == "step" else [set.intersection(*domains)] * len(found)
        values = {
            number: _resolved(sides[number][name], domain)
            for number, domain in enumerate(domains)
            if _is_word(name, sides[number].get(name))
        }
        known = [value for value in values.values() if value is not None]
        alike = len(known) > len(set(known)) and _rest(sides[0], name) == _rest(sides[1], name)
        if len(known) < len(values) or alike:
            return None
        for number, value in zip(values, known, strict=True):
            found[number] = _taken(found[number], name, value)
        told[name] = " against ".join(_worded(name, value) for value in known)
    return None if any(own.empty for own in found) else _Chosen(found, told)


def _rest(side: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {column: entry for column, entry in side.items() if column != name}


def _usual(rows: pd.DataFrame, named: set[str]) -> pd.DataFrame:
    """Leave out what a claim has to ask for: imposed counts, and masks of earlier steps."""
    if "layer_counts" in rows and "layer_counts" not in named:
        rows = rows[rows["layer_counts"].isna()]
    if "step" in rows and "step" not in named and "ticket" in rows:
        rows = rows[
            _dense(rows) | rows["step"].isna() | (rows["step"] == rows["step"].max()) | (rows["method"] == "GMP")
        ]
    return rows


def _worded(name: str, value: float) -> str:
    if name == "level":
        return f"{100 * (1 - value):.3g} % left"
    if name == "depth":
        return "first layer" if value == 0 else f"at {100 * value:.0f} % of the depth"
    if name == "step":
        return f"ranked after {100 * value:.3g} % of the training"
    return f"{name.removeprefix('own ').replace('_', ' ').replace('lr', 'learning rate')} {value:g}"


# --- effects ------------------------------------------------------------------------------------------------------


def _pairs(
    rows: pd.DataFrame, at: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple["pd.Series[float]", str] | None:
    """First minus second side by replicate, a mean over what both have else; None where a panel has no such sides."""
    sides = [settings["first"], settings["second"]]
    chosen = _choose(rows, at, sides)
    if chosen is None:
        return None
    named = {_column(name) for side in sides for name in side}
    named |= {"find_lr"} if any("lr" in side for side in sides) else set()
    whole = [own for own in chosen.sides if _dense(own).all()]
    usual = ("eval_lr",) if whole else _ALIKE
    by = [
        name
        for name in usual
        if name in rows and name not in named and all(own[name].notna().any() for own in chosen.sides)
    ]
    means = []
    for own in chosen.sides:
        done = own[(own["status"] == "done") & own["value"].notna()]
        done = done.drop_duplicates([*by, "replicate", *(("key",) if "key" in done else ()), "value"])
        means.append(done.groupby([*by, "replicate"], dropna=False)["value"].mean())
    asked = [set(own[[*by, "replicate"]].itertuples(index=False, name=None)) for own in chosen.sides]
    if not asked[0] & asked[1]:
        return None
    apart = (means[0] - means[1]).dropna()
    if settings.get("absolute"):
        apart = apart.abs()
    return _by_replicate(apart), "; ".join(chosen.told.values())


def _by_replicate(values: "pd.Series[float]") -> "pd.Series[float]":
    """Average over the cells of each replicate that has all of them."""
    groups = values.groupby("replicate")
    counts = groups.count()
    return groups.mean()[counts == counts.max()] if len(counts) else groups.mean()


def _difference(claim: Claim, source: Source) -> Iterator[Effect]:
    """A difference of two sides; with `than`, minus the same difference elsewhere."""
    settings = claim.settings
    at = settings.get("at", {})
    for name, rows in _panels(claim, source):
        found = _pairs(rows, at, settings)
        if found is None:
            continue
        values, words = found
        if "than" in settings:
            other = _pairs(rows, at | settings["than"], settings)
            if other is None or other[1] == words:
                continue
            values, words = (values - other[0]).dropna(), f"{words}; compared with {other[1]}"
        yield _effect(claim, name, rows, values, words)


def _level(claim: Claim, source: Source) -> Iterator[Effect]:
    """A value minus a reference: a number, or a column such as chance."""
    settings = claim.settings
    reference = settings.get("reference", 0)
    for name, rows in _panels(claim, source):
        chosen = _choose(rows, settings.get("at", {}), [settings.get("of", {})])
        if chosen is None:
            continue
        own = chosen.sides[0]
        done = own[own["status"] == "done"].drop_duplicates(
            [*(c for c in ("key", "layer", "measured_at") if c in own), "value"]
        )
        values = done["value"].astype(float) - (done[reference] if isinstance(reference, str) else reference)
        by = [column for column in _ALIKE if column in done]
        means = values.groupby([*(done[column] for column in by), done["replicate"]], dropna=False).mean()
        yield _effect(claim, name, rows, _by_replicate(means.dropna()), "; ".join(chosen.told.values()))


def _trend(claim: Claim, source: Source) -> Iterator[Effect]:
    """Kendall's rank correlation of a value with a column, replicate by replicate."""
    from scipy.stats import kendalltau

    settings = claim.settings
    for name, rows in _panels(claim, source):
        chosen = _choose(rows, settings.get("at", {}), [settings.get("of", {})])
        along = _column(settings["along"])
        if chosen is None or chosen.sides[0][along].nunique() < 3:
            continue
        own = chosen.sides[0]
        if settings["along"] == "lr":
            own = own[(own["find_lr"] == own["eval_lr"]) | _dense(own)]
        done = own[own["status"] == "done"]
        means = done.groupby(["replicate", along])["value"].mean().reset_index()
        taus = {
            replicate: float(kendalltau(cell[along], cell["value"]).statistic)
            for replicate, cell in means.groupby("replicate")
            if len(cell) > 2
        }
        words = f"rank correlation with the {settings['along'].replace('_', ' ')}; {'; '.join(chosen.told.values())}"
        yield _effect(claim, name, rows, pd.Series(taus, dtype=float).dropna(), words.strip("; "), "")


def _cells(claim: Claim, source: Source) -> Iterator[Effect]:
    """Cells that have an interval already: the sparsest one of each panel and method, minus a reference."""
    settings = claim.settings
    unit = TABLES[settings["table"]][1]
    for name, rows in _panels(claim, source):
        rows = _plain(rows.assign(status="done"), settings.get("of", {}))
        for row in rows[rows["sparsity"] == rows["sparsity"].max()].to_dict("records"):
            shift = settings.get("reference", 0)
            mean, low, high = (float(row[side]) - shift for side in ("mean", "low", "high"))
            words = "; ".join(
                filter(None, (f"{row['method']} masks", _worded("level", row["sparsity"]), row["context"]))
            )
            outcome = decide(claim.expected, low, high, settings.get("margin", MARGIN))
            yield Effect(name, row["network"], row["data"], mean, low, high, int(row["n"]), unit, outcome, words)


def _effect(
    claim: Claim, name: str, rows: pd.DataFrame, values: "pd.Series[float]", words: str, unit: str | None = None
) -> Effect:
    unit = TABLES[claim.settings.get("table", "trained")][1] if unit is None else unit
    row = rows.iloc[0]
    place = name, str(row.get("network")), str(row.get("data"))
    if values.empty:
        return Effect(*place, np.nan, np.nan, np.nan, 0, unit, "not yet run", words)
    cell = results.summarise(pd.DataFrame({"value": values, "status": "done", "all": 0}), ["all"]).iloc[0]
    n = int(cell["n"])
    outcome = decide(claim.expected, cell["low"], cell["high"], claim.settings.get("margin", MARGIN))
    words = "; ".join(filter(None, (words, "one replicate gives no interval" if n == 1 else "")))
    return Effect(*place, float(cell["mean"]), float(cell["low"]), float(cell["high"]), n, unit, outcome, words)


def _verdict(claim: Claim, source: Source) -> Iterator[Effect]:
    """Whether there is a prize in a panel, by Ma's conditions."""
    question = claim.settings["question"]
    mark = {"jackpot": "⑤", "secondary prize": "③"}[question]
    for judged in source.judged:
        row = judged.frame.iloc[0]
        found = [v for v in judged.of("LT", source.config.verdicts.reading) if v["①"].state != "no" and v["③"].cells]
        if not found or not _concerned(row, claim.settings.get("on", {})):
            continue
        answer = verdicts.overview(judged.frame, found).set_index("question").loc[question]
        (verdict,) = (x for x in found if (x.sparsity, x.method) == (answer["sparsity"], answer["method"]))
        condition = verdict[mark]
        outcome = {claim.expected: "supports", "boundary": "undecided", "insufficient evidence": "undecided"}
        n = min((cell.n for cell in condition.cells), default=0)
        words = f"{answer['state']}; {mark} on {verdict.method} masks, {_worded('level', verdict.sparsity)}"
        yield Effect(
            judged.panel, str(row["network"]), str(row["data"]), condition.estimate, condition.low, condition.high, n,
            POINTS, outcome.get(answer["state"], "contradicts"), words,
        )  # fmt: skip


def _guideline(claim: Claim, source: Source) -> Iterator[Effect]:
    """What a panel shows about a statement of Ma's guideline (`lthlab.guidelines`)."""
    for judged in source.judged:
        if not judged.verdicts or not _concerned(judged.frame.iloc[0], claim.settings.get("on", {})):
            continue
        for row in guidelines.evidence([judged]).to_dict("records"):
            if row["statement"] != claim.settings["statement"] or row["shows"] not in OUTCOMES:
                continue
            place = judged.panel, str(judged.frame["network"].iloc[0]), str(judged.frame["data"].iloc[0])
            n = 0 if pd.isna(row["n"]) else int(row["n"])
            words = "" if pd.isna(row["note"]) else str(row["note"])
            masks = "" if pd.isna(row["method"]) else f"{row['method']} masks, "
            words = words or masks + _worded("level", row["sparsity"])
            yield Effect(*place, row["estimate"], row["low"], row["high"], n, POINTS, row["shows"], words)


PREDICATES: Mapping[str, Callable[[Claim, Source], Iterator[Effect]]] = {
    "difference": _difference,
    "level": _level,
    "trend": _trend,
    "cells": _cells,
    "verdict": _verdict,
    "guideline": _guideline,
}
"""How claims are asked: by name."""


def redundancy(claim: Claim, sources: Sequence[Source]) -> Effect | None:
    """Ma's third guideline: rank correlation over the panels of all studies (`lthlab.guidelines.summary`)."""
    judged = [panel for source in sources for panel in source.judged if panel.verdicts]
    found = guidelines.evidence(judged)
    if found.empty:
        return None
    row = guidelines.summary(found).query("statement == 3 and half == 'all'").to_dict("records")[0]
    outcome = {"supported": "supports", "contradicted": "contradicts"}.get(row["state"], "undecided")
    words = "rank correlation of parameters per training image and largest sparsity; n counts panels"
    n = int(row["panels"])
    place = ("all panels", "", "")
    return Effect(*place, row["correlation"], row["low"], row["high"], n, "", outcome if n else "not yet run", words)
