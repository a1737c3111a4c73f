"""Whether a ticket wins: Ma's conditions ① to ⑤ over a grid of learning rates, with what is uncertain about them.

Conditions compare best means over the grid; how the intervals allow for that stands in `lthlab.contrasts`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from lthlab.contrasts import (
    Bootstrap,
    Cell,
    Contrast,
    Grid,
    Runs,
    against_best,
    at_same_lr,
    best_lrs,
    collect,
    decide,
    divergences,
    lacking,
    uneven_spreads,
)
from lthlab.errors import nearest

MARKS = ("①", "②", "③", "④", "⑤")
STATES = ("yes", "boundary", "insufficient evidence", "no")
"""What can be said of a condition or a prize; of several levels the first of these that occurs."""
READINGS = ("literal", "same_lr")


@dataclass(frozen=True)
class Criterion:
    """What counts on a data set.

    Attributes
    ----------
    tolerance : float
        Points of test accuracy that a ticket may lose and be similar (inclusive).
    epochs : int
        Epochs that are sufficient for condition ①.
    source : str
        Where both are from.
    """

    tolerance: float
    epochs: int
    source: str


CRITERIA = {
    "cifar10": Criterion(0.5, 160, "Ma 2.2, E.1"),
    "cifar100": Criterion(1.0, 160, "Ma 2.2, E.1"),
    "tiny_imagenet": Criterion(1.0, 160, "Ma 2.2, E.1"),
    "imagenet": Criterion(1.5, 90, "Ma 2.2, E.1"),
    "digits": Criterion(0.5, 20, "ours"),
}


@dataclass(frozen=True)
class Rules(Bootstrap):
    """What a verdict is made by; the parameters of `judge`.

    Attributes
    ----------
    data : str
        Data set.
    reading : str
        One of `READINGS`.
    ticket : str
        'LT' or 'WR'.
    tolerance, gap, sdt_gap : float
        Points of similar accuracy, and of clear gaps to RR and SDT.
    min_sparsity : float
        Smallest sparsity that is not trivial.
    epochs : int or None
        Epochs that suffice, if known.
    source : str
        Where the tolerance is from: Ma, 'ours' or 'set'.
    decent, confidence, draws, seed
        As in `lthlab.contrasts.Bootstrap`.
    """

    data: str
    reading: str
    ticket: str
    tolerance: float
    gap: float
    sdt_gap: float
    min_sparsity: float
    epochs: int | None
    source: str


@dataclass(frozen=True)
class Condition:
    """One of Ma's conditions, judged.

    Attributes
    ----------
    mark : str
        '①' to '⑤'.
    state : str
        One of `STATES`: 'yes' and 'no' where the whole interval says so, 'boundary' where the threshold lies within.
    by_means : str or None
        'yes' or 'no' by the estimate alone, as in Ma's Table 3; None without an estimate.
    estimate, low, high : float
        Accuracy of the ticket minus that of its rival, in points, and its interval; NaN where runs are lacking.
        For ① the sparsity in percent.
    threshold : float
        What the estimate has to exceed (②, ③) or at least to reach (①, ④, ⑤).
    cells : tuple of Cell
        The ticket's cell and its rival's, which decided.
    missing : tuple of str
        What is lacking where the state is 'insufficient evidence'.
    change : str
        What would change the state.
    epochs : int or None
        For ① the epochs that the tickets were trained for, where known.
    """

    mark: str
    state: str
    by_means: str | None
    estimate: float
    low: float
    high: float
    threshold: float
    cells: tuple[Cell, ...] = ()
    missing: tuple[str, ...] = ()
    change: str = ""
    epochs: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What a ticket wins at one level.

    Attributes
    ----------
    method : str
        'IMP' or 'OMP'.
    level : int or None
        Level of the sparsity ladder, where there is one.
    sparsity : float
        In [0, 1).
    rules : Rules
        What it was judged by.
    conditions : tuple of Condition
        ① to ⑤.
    verdict : str
        'jackpot', 'secondary prize', 'none', 'boundary' or 'insufficient evidence'.
    jackpot, secondary : str
        States of '① to ⑤ hold' and of '① to ④ hold and ⑤ does not'.
    by_means : str
        The verdict if means are taken for the truth, as in Ma's Table 3.
    warnings : tuple of str
        What makes the verdict doubtful: best learning rates at an edge of the grid, divergence, uneven spread.
    """

    method: str
    level: int | None
    sparsity: float
    rules: Rules
    conditions: tuple[Condition, ...]
    verdict: str
    jackpot: str
    secondary: str
    by_means: str
    warnings: tuple[str, ...]

    @property
    def ticket(self) -> str:
        """State of '① to ④ hold': a jackpot or a secondary prize, whichever."""
        return _all_hold(condition.state for condition in self.conditions[:4])

    def __getitem__(self, mark: str) -> Condition:
        return self.conditions[MARKS.index(mark)]


# --- conditions and verdicts --------------------------------------------------------------------------------------


def _all_hold(states: Iterable[str]) -> str:
    found = set(states)
    return next((state for state in ("no", "insufficient evidence", "boundary") if state in found), "yes")


def _prizes(states: Sequence[str]) -> tuple[str, str, str]:
    """Verdict, jackpot and secondary prize from the states of ① to ⑤."""
    no_fifth = {"yes": "no", "no": "yes"}.get(states[4], states[4])
    jackpot, secondary = _all_hold(states), _all_hold([*states[:4], no_fifth])
    if "yes" in (jackpot, secondary):
        return ("jackpot" if jackpot == "yes" else "secondary prize"), jackpot, secondary
    verdict = next((s for s in ("insufficient evidence", "boundary") if s in (jackpot, secondary)), "none")
    return verdict, jackpot, secondary


def _nontrivial(sparsity: float, epochs: int | None, rules: Rules) -> Condition:
    missing: list[str] = []
    changes: list[str] = []
    percent, threshold = round(100 * sparsity, 9), round(100 * rules.min_sparsity, 9)
    if percent < threshold:
        changes.append(f"a sparsity of at least {rules.min_sparsity:g}")
    if rules.epochs is None:
        missing.append("the number of epochs that is sufficient")
    elif epochs is None:
        missing.append("column eval_epochs")
    elif epochs < rules.epochs:
        changes.append(f"{rules.epochs} epochs (now {epochs})")
    state = "no" if changes else "insufficient evidence" if missing else "yes"
    means = None if state == "insufficient evidence" else state
    change = "; ".join(changes + missing)
    return Condition("①", state, means, percent, percent, percent, threshold, (), tuple(missing), change, epochs)


def _condition(mark: str, first: Grid, second: Grid, contrast: Contrast | None, at: int, threshold: float) -> Condition:
    """Judge a difference at one of the contrast's learning rates; a gap is strict, a tolerance inclusive."""
    missing, strict = lacking(first, second), mark in ("②", "③")
    if contrast is None:
        missing = missing or (f"learning rates at which {first.ticket} and a decent {second.ticket} both were trained",)
        nan = math.nan
        return Condition(mark, "insufficient evidence", None, nan, nan, nan, threshold, (), missing, "; ".join(missing))
    estimate = float(contrast.estimate[at])
    cells = first.cell(contrast.points[at]), second.cell(contrast.others[at])
    means = decide(estimate, estimate, threshold, strict)
    low, high = estimate - contrast.below, estimate + contrast.above
    if math.isnan(low):
        missing += (f"a second replicate of {first.ticket} or {second.ticket}, for the spread",)
    margin = abs(estimate - threshold)
    if missing:
        state, change = "insufficient evidence", "; ".join(missing)
    elif (state := decide(low, high, threshold, strict)) != "boundary":
        change = f"{first.ticket} {margin:.2f} points {'higher' if state == 'no' else 'lower'}"
    elif margin < 1e-9:
        change = "the estimate is at the threshold; replicates alone need not decide"
    else:
        n, width = min(cell.n for cell in cells), contrast.below if means == "yes" else contrast.above
        change = f"about {math.ceil(n * (width / margin) ** 2)} replicates (now {n}) for '{means}' if the means stay"
    return Condition(mark, state, means, estimate, low, high, threshold, cells, missing, change)


def _witness(third: Contrast, fourth: Contrast, rules: Rules) -> int:
    """Find the learning rate that serves ③ and ④ best together."""
    states = zip(third.states(rules.gap, True), fourth.states(-rules.tolerance, False), strict=True)
    margins = np.minimum(third.estimate - rules.gap, fourth.estimate + rules.tolerance)
    ranks = [(-STATES.index(_all_hold(pair)), margin) for pair, margin in zip(states, margins, strict=True)]
    return max(range(len(ranks)), key=ranks.__getitem__)


def _conditions(sparsity: float, epochs: int | None, grids: Sequence[Grid], rules: Rules) -> tuple[Condition, ...]:
    ticket, rr, sdt, dense = grids
    second, third, fifth = (against_best(ticket, rival, rules) for rival in (sdt, rr, dense))
    fourth = at_same_lr(ticket, dense, rules)
    at3, at4 = (contrast.best if contrast else 0 for contrast in (third, fourth))
    if rules.reading == "same_lr" and third and fourth:
        third = against_best(ticket, rr, rules, fourth.points)
        assert third is not None
        at3 = at4 = _witness(third, fourth, rules)
    return (
        _nontrivial(sparsity, epochs, rules),
        _condition("②", ticket, sdt, second, second.best if second else 0, rules.sdt_gap),
        _condition("③", ticket, rr, third, at3, rules.gap),
        _condition("④", ticket, dense, fourth, at4, -rules.tolerance),
        _condition("⑤", ticket, dense, fifth, fifth.best if fifth else 0, -rules.tolerance),
    )


def _warnings(grids: Sequence[Grid], conditions: Sequence[Condition], rules: Rules) -> tuple[str, ...]:
    found: list[str] = []
    by_name = {grid.ticket: grid for grid in grids}
    edges: dict[str, str] = {}
    for condition in conditions:
        for cell in condition.cells:
            if edge := by_name[cell.ticket].edge(cell.eval_lr):
                place = f"{cell.ticket} at learning rate {cell.eval_lr:g}, {edge} of its grid"
                edges[place] = edges.get(place, "") + condition.mark
    found += [f"{marks} decided by {place}" for place, marks in edges.items()]
    for grid in grids:
        found += [*divergences(grid), *uneven_spreads(grid, rules.decent)]
    ticket, dense = grids[0], grids[3]
    for j in np.flatnonzero(~dense.decent(rules.decent)) if dense.points else ():
        lr, short = dense.points[j][0], dense.mean.max() - dense.mean[j]
        if any(p[0] == lr and ticket.mean[i] >= dense.mean[j] - rules.tolerance for i, p in enumerate(ticket.points)):
            found.append(
                f"④ is not looked for at learning rate {lr:g}, where dense is {short:.1f} points below its best"
            )
    return tuple(found)


def judge(
    frame: pd.DataFrame,
    data: str | None = None,
    *,
    reading: str = "literal",
    ticket: str = "LT",
    tolerance: float | None = None,
    gap: float = 0.5,
    sdt_gap: float | None = None,
    min_sparsity: float = 0.6,
    epochs: int | None = None,
    decent: float = 5.0,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> list[Verdict]:
    """Judge every ticket of a frame by Ma's conditions (Ma 2.2; with `ticket='WR'` appendix B).

    - ① sparsity and epochs suffice.
    - ② The best small dense network (SDT) is clearly worse: max LT - max SDT > `sdt_gap`.
    - ③ So is the best reinitialised ticket: max LT - max RR > `gap`, whatever the learning rate of RR.
    - ④ At some learning rate LT - dense >= -`tolerance`.
    - ⑤ max LT - max dense >= -`tolerance`.

    A maximum is over the learning rates (of masks and of trainings) at which the mean over replicates was measured.
    Ma's text leaves open whether ③ and ④ may hold at different learning rates of LT, and reads them at one in the
    example of 3.1: 'literal' lets them differ, 'same_lr' looks for one learning rate that serves both. Where ③ and
    ⑤ hold, ④ holds at LT's best learning rate, so the readings differ in secondary prizes, hardly in jackpots.

    Runs that a comparison lacks (unequal learning rates or replicates, failed or missing trainings, no SDT at all)
    make its condition 'insufficient evidence' and are listed, rather than raise: a report on an unfinished study
    can be written, and another condition's 'no' still decides. A training that diverged is no missing run but an
    outcome: its learning rate is left out for its ticket, with a warning.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame of one study, network and data set, as `lthlab.results.load` returns it: ticket ('dense', 'LT',
        'WR', 'RR', 'SDT'), method, sparsity, replicate, eval_lr and value (test accuracy, 0 to 1), and if there
        level, find_lr, eval_epochs, status and what.
    data : str, optional
        Data set of `CRITERIA` whose tolerance and epochs hold; the frame's by default.
    reading : {'literal', 'same_lr'}, optional
        Whether ③ and ④ need one learning rate.
    ticket : {'LT', 'WR'}, optional
        Winning tickets, or rewinding ones.
    tolerance : float, optional
        Points within which accuracy is similar, inclusive.
    gap, sdt_gap : float, optional
        Points that a clear gap exceeds, against RR and against SDT. Ma gives none for SDT; the same by default.
    min_sparsity : float, optional
        Smallest sparsity that is not trivial, inclusive (Ma 2.2: approximately 60 %).
    epochs : int, optional
        Epochs that suffice.
    decent : float, optional
        A learning rate at which the mean is more than these points below the ticket's best is not decent: where
        dense is not, ④ would hold for two bad networks. Ours; Ma's secondary prize of ResNet-20 is at 2.8 points.
    confidence : float, optional
        Coverage of the intervals.
    draws, seed : int, optional
        Of the bootstrap.

    Returns
    -------
    list of Verdict
        One per method and sparsity, in this order.

    Raises
    ------
    ValueError
        If the frame mixes studies, data sets or recipes, holds differing rows for one run or accuracies in percent,
        or an argument is not allowed.

    Examples
    --------
    >>> from lthlab import results, verdicts
    >>> found = verdicts.judge(results.load("runs", "demo"))  # doctest: +SKIP
    >>> verdicts.table(found)  # doctest: +SKIP
    """
    name, tolerance, epochs, source = _criterion(frame, data, tolerance, epochs)
    rules = Rules(
        decent, confidence, draws, seed, name, reading, ticket, tolerance, gap, gap if sdt_gap is None else sdt_gap,
        min_sparsity, epochs, source,
    )  # fmt: skip
    for allowed, given, what in ((READINGS, reading, "reading"), (("LT", "WR"), ticket, "ticket")):
        if given not in allowed:
            raise ValueError(f"{what} '{given}' is not known; {nearest(given, allowed)}")
    if not (0 < confidence < 1 and draws >= 1):
        raise ValueError(f"confidence {confidence}, draws {draws}; allowed: above 0 and below 1, at least 1")
    runs = collect(frame, ticket)
    return [_judge(method, sparsity, runs, rules) for method, sparsity in runs.judged(ticket)]


def _criterion(
    frame: pd.DataFrame, data: str | None, tolerance: float | None, epochs: int | None
) -> tuple[str, float, int | None, str]:
    if data is None:
        names = sorted(set(frame["data"].dropna())) if "data" in frame else []
        if len(names) != 1:
            raise ValueError(f"data: the frame names {len(names)} data sets; name one")
        data = str(names[0])
    known = CRITERIA.get(data)
    if known is None and tolerance is None:
        raise ValueError(f"data: no tolerance is known for '{data}'; give tolerance, or {nearest(data, CRITERIA)}")
    source = known.source if known and tolerance is None else "set"
    if known:
        tolerance = known.tolerance if tolerance is None else tolerance
        epochs = known.epochs if epochs is None else epochs
    assert tolerance is not None
    return data, tolerance, epochs, source


def _judge(method: str, sparsity: float, runs: "Runs", rules: Rules) -> Verdict:
    grids = [runs.grid(ticket, method, sparsity) for ticket in (rules.ticket, "RR", "SDT", "dense")]
    conditions = _conditions(sparsity, runs.epochs, grids, rules)
    states = [condition.state for condition in conditions]
    prizes = _prizes(states)
    by_means = _prizes([condition.by_means or "insufficient evidence" for condition in conditions])[0]
    if states[1] == "insufficient evidence":
        would = f"{conditions[1].change}; with ② the verdict would be '{_prizes([states[0], 'yes', *states[2:]])[0]}'"
        conditions = (conditions[0], replace(conditions[1], change=would), *conditions[2:])
    warnings = _warnings(grids, conditions, rules)
    return Verdict(method, runs.levels[sparsity], sparsity, rules, conditions, *prizes, by_means, warnings)


# --- tables -------------------------------------------------------------------------------------------------------


def table(verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """Lay verdicts out for a report.

    Parameters
    ----------
    verdicts : iterable of Verdict
        From `judge`, in one reading or several.

    Returns
    -------
    DataFrame
        One row per ticket, method, level and reading: verdict, jackpot, secondary, by_means; for each condition its
        state (column '③'), estimate, low and high in points ('③ low'), the cells that decided and what would change
        it; warnings. `readings_differ` tells the levels at which the readings come to different verdicts.
    """
    rows = []
    for found in verdicts:
        row: dict[str, Any] = {"ticket": found.rules.ticket, "method": found.method, "level": found.level}
        row |= {"sparsity": found.sparsity, "reading": found.rules.reading, "verdict": found.verdict}
        row |= {"jackpot": found.jackpot, "secondary": found.secondary, "by_means": found.by_means}
        for condition in found.conditions:
            row |= {condition.mark: condition.state}
            row |= {f"{condition.mark} {name}": getattr(condition, name) for name in ("estimate", "low", "high")}
            row |= {f"{condition.mark} cells": "; ".join(map(str, condition.cells))}
            row |= {f"{condition.mark} change": condition.change}
        rows.append(row | {"warnings": "; ".join(found.warnings)})
    out = pd.DataFrame(rows)
    if len(out):
        per_level = out.groupby(["ticket", "method", "sparsity"])["verdict"]
        out["readings_differ"] = per_level.transform("nunique") > 1
    return out


def largest(verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """Find the largest level at which each condition and each prize is 'yes'.

    Parameters
    ----------
    verdicts : iterable of Verdict
        From `judge`.

    Returns
    -------
    DataFrame
        ticket, method, reading, holds ('①' to '⑤', 'jackpot', 'secondary prize'), level and sparsity; both missing
        where it is 'yes' at no level.
    """
    rows: dict[tuple[str, str, str, str], tuple[float, int | None]] = {}
    for found in verdicts:
        states = {condition.mark: condition.state for condition in found.conditions}
        states |= {"jackpot": found.jackpot, "secondary prize": found.secondary}
        for name, state in states.items():
            row = (found.rules.ticket, found.method, found.rules.reading, name)
            best = rows.setdefault(row, (math.nan, None))
            if state == "yes" and not found.sparsity <= best[0]:
                rows[row] = found.sparsity, found.level
    out = [(*row, level, sparsity) for row, (sparsity, level) in rows.items()]
    columns = ["ticket", "method", "reading", "holds", "level", "sparsity"]
    return pd.DataFrame(out, columns=columns).astype({"level": "Int64"})


def overview(frame: pd.DataFrame, verdicts: Sequence[Verdict], sparsity: float | None = None) -> pd.DataFrame:
    """Sum verdicts up in a row like those of Ma's Table 3.

    A small learning rate is preferred if the ticket does better below the learning rate that is best for the dense
    network than at it and above; IMP, if its tickets do better than those of OMP, each at its best learning rate.
    'yes' means that the whole interval is above zero, 'no' that none of it is. Where several learning rates may be
    the best of the dense network (`lthlab.contrasts.best_lrs`), the interval covers those of all of them.

    Parameters
    ----------
    frame : DataFrame
        Tidy frame that was judged.
    verdicts : sequence of Verdict
        From `judge`, in one reading.
    sparsity : float, optional
        Where the preferences are measured; by default the largest at which all methods were judged.

    Returns
    -------
    DataFrame
        One row per question: 'jackpot' and 'secondary prize' (is there one at any level and by any method?; the
        sparsity is the largest one with that state), 'prefers small lr' by method and 'prefers IMP', with state,
        sparsity, method, and for preferences estimate, low and high in points, n (replicates), dense_lr (the learning
        rate that is best for the dense network), and what is missing.

    Raises
    ------
    ValueError
        If there are no verdicts, or none at that sparsity.
    """
    sparsities = sorted({found.sparsity for found in verdicts})
    if not sparsities or sparsity not in (None, *sparsities):
        known = ", ".join(f"{value:.12g}" for value in sparsities)
        raise ValueError(f"no verdict at sparsity {sparsity}; judged: {known or 'nothing'}")
    rules = verdicts[0].rules
    rows: list[dict[str, Any]] = []
    for name, field in (("jackpot", "jackpot"), ("secondary prize", "secondary")):
        ranked = min(verdicts, key=lambda found: (STATES.index(getattr(found, field)), -found.sparsity))
        state = getattr(ranked, field)
        rows.append({"question": name, "state": state, "sparsity": ranked.sparsity, "method": ranked.method})
    at = _common(verdicts) if sparsity is None else sparsity
    runs = collect(frame, rules.ticket)
    methods = sorted({found.method for found in verdicts if found.sparsity == at})
    grids = {method: runs.grid(rules.ticket, method, at) for method in ("IMP", "OMP", *methods)}
    lrs = best_lrs(runs.grid("dense", None, 0.0), rules)
    for method in methods:
        row = {"question": "prefers small lr", "sparsity": at, "method": method}
        rows.append(row | _prefers_small(grids[method], lrs, rules))
    lacks = lacking(grids["IMP"], grids["OMP"], ("IMP", "OMP"))
    better = _preference([(grids["IMP"], grids["OMP"])], lacks, rules)
    rows.append({"question": "prefers IMP", "sparsity": at, "method": None} | better)
    columns = ["question", "state", "sparsity", "method", "estimate", "low", "high", "n", "dense_lr", "missing"]
    return pd.DataFrame(rows).reindex(columns=columns).astype({"n": "Int64"})


def _common(verdicts: Sequence[Verdict]) -> float:
    """Find the largest sparsity that all methods have; without one, the largest of all."""
    methods = {found.method for found in verdicts}
    own = [{found.sparsity for found in verdicts if found.method == method} for method in methods]
    return max(set.intersection(*own) or set.union(*own))


def _prefers_small(grid: Grid, lrs: Sequence[float], rules: Rules) -> dict[str, Any]:
    """Compare a ticket below and from each learning rate that may be the best of the dense network."""
    pairs = [_split(grid, lr) for lr in lrs]
    lacks = [] if lrs else ["no runs of dense"]
    for lr, (first, second) in zip(lrs, pairs, strict=True):
        if not (first.points and second.points):
            lacks.append(f"learning rates below and from {lr:g}" + ", which may be the best of dense" * (lr != lrs[0]))
    return _preference(pairs, lacks, rules) | {"dense_lr": lrs[0] if lrs else math.nan}


def _preference(pairs: Sequence[tuple[Grid, Grid]], lacks: Sequence[str], rules: Rules) -> dict[str, Any]:
    """Decide whether the first of two grids is better at its best, for all pairs at once; the first pair estimates."""
    nothing: dict[str, Any] = {"state": "insufficient evidence", "missing": "; ".join(lacks)}
    found = [against_best(first, second, rules) for first, second in pairs]
    contrasts = [contrast for contrast in found if contrast is not None]
    if lacks or len(contrasts) < len(pairs):
        return nothing
    estimates = [float(contrast.estimate[contrast.best]) for contrast in contrasts]
    low = min(value - contrast.below for value, contrast in zip(estimates, contrasts, strict=True))
    high = max(value + contrast.above for value, contrast in zip(estimates, contrasts, strict=True))
    n = min(int(grid.n.min()) for pair in pairs for grid in pair)
    row = nothing | {"estimate": estimates[0], "low": low, "high": high, "n": n}
    if math.isnan(low):
        return row | {"missing": "a second replicate, for the spread"}
    return row | {"state": decide(low, high, 0.0, True)}


def _split(grid: Grid, lr: float) -> tuple[Grid, Grid]:
    small = {point: cell for point, cell in grid.runs.items() if point[0] < lr}
    return Grid(grid.ticket, small), Grid(grid.ticket, {p: c for p, c in grid.runs.items() if p not in small})
