"""Where a curve over steps saturates, and what several such curves advise about the step to prune at.

Saturated is a curve from the first step on from which it stays within a tolerance, a share of its whole change, of the
level that it ends at. The curve is smoothed by isotonic regression, rising or falling, whichever fits better; its level
is the mean of the last quarter of the values, at least three. So the shape is free: a hinge, an exponential, a jump.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lthlab import results

TOLERANCE = 0.1
"""Share of the whole change within which a curve counts as saturated."""
FEWEST = 6
"""Values without which nothing is said of a curve."""
SIGNALS = ("PPR", "LPR", "Hamming")
"""Accuracy after pseudo-pruning and one epoch at the small rate; how far pruned shares of layers have moved; how far a
mask is from the one before it, relative to chance."""
VOTE = "vote"
_SEEN = 5.0  # times the noise; see docs/decisions.md
_STATES = ("saturates", "moves on", "no change", "too few")
_READINGS = ("step", "known")


@dataclass(frozen=True)
class Saturation:
    """What `saturation` returns.

    Attributes
    ----------
    state : str
        'saturates'; 'moves on' where the last third or more of the curve is not level; 'no change' where it does not
        change by more than its noise; 'too few' where there are fewer than `FEWEST` values.
    step : float
        First step of the plateau, in hindsight; NaN unless it saturates.
    known : float
        The first step at which the values until then alone would have said 'saturates'; NaN if none does.
    named : float
        The step that they would have named.
    plateau, change : float
        The level at the end, and how far it is from the first smoothed value, with its sign; NaN if there are too few
        values.
    noise : float
        Standard deviation of a value about the curve, from second differences (their median, so that a jump counts
        little); NaN if there are too few values.
    """

    state: str
    step: float = np.nan
    known: float = np.nan
    named: float = np.nan
    plateau: float = np.nan
    change: float = np.nan
    noise: float = np.nan


def saturation(steps: Sequence[float], values: Sequence[float], tolerance: float = TOLERANCE) -> Saturation:
    """Find where a curve saturates, in hindsight and as its values come in.

    Parameters
    ----------
    steps : sequence of float
        Rising.
    values : sequence of float
        One for each step; rising or falling, with noise.
    tolerance : float, optional
        Share of the whole change within which the curve counts as saturated, in (0, 1).

    Returns
    -------
    Saturation

    Raises
    ------
    ValueError
        If the tolerance is out of range, steps do not rise, there is not one value for each, or one is not finite.

    Notes
    -----
    Simulated with 12 steps and normal noise of 3 % of the whole change (of one curve, or of a mean of several), the
    step was within one of the true one in 98 % of curves or more: of hinges, exponentials, jumps and rises in two
    parts, up or down. It fails more often the flatter a curve is where it enters the tolerance, and the more noise
    there is: at 5 % noise 98 % of hinges and jumps, but 90 % of exponentials (81 % with a time constant of three
    steps); at 8 % 90 and 77 %; at 12 % 65 and 56 %, a quarter of them because nothing was said. A plateau shorter
    than a third of the steps is not told from a curve that moves on, and one that creeps, such as a root, may be
    called saturated. Before the end is seen, the level is that of the values so far: of a hinge one knows three steps
    later, where a curve creeps `named` lies before `step`, and one that rests on its way, as between drops of the
    learning rate, is called saturated too early (a third of the rises in two parts).
    """
    x, y = np.asarray(steps, float), np.asarray(values, float)
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance of a saturation is {tolerance}: allowed is 0 < tolerance < 1")
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"{x.size} steps and {y.size} values: allowed is one value for each step")
    if not np.isfinite(y).all():
        raise ValueError(f"value {y[~np.isfinite(y)][0]} at step {x[~np.isfinite(y)][0]:g}: allowed are finite values")
    if not (np.diff(x) > 0).all():
        raise ValueError(f"steps {', '.join(f'{step:g}' for step in x)} do not rise")
    if len(y) < FEWEST:
        return Saturation("too few")
    state, place, level, change, noise = _read(y, tolerance)
    known = named = np.nan
    for end in range(FEWEST, len(y) + 1):
        said, at, *_ = _read(y[:end], tolerance)
        if said == "saturates":
            known, named = x[end - 1], x[at]
            break
    return Saturation(state, float(x[place]) if state == "saturates" else np.nan, known, named, level, change, noise)


def _read(y: NDArray[np.float64], tolerance: float) -> tuple[str, int, float, float, float]:
    """State, place of the first value of the plateau, level, change and noise."""
    from scipy.optimize import isotonic_regression

    rising, falling = (isotonic_regression(y, increasing=up).x for up in (True, False))
    smooth = rising if np.sum((y - rising) ** 2) <= np.sum((y - falling) ** 2) else falling
    tail = max(3, len(y) // 4)
    level = float(y[-tail:].mean())
    change = level - float(smooth[0])
    noise = float(np.median(np.abs(np.diff(y, 2))) / 0.6745 / 6**0.5)
    if abs(change) <= max(_SEEN * noise, 1e-12):
        return "no change", 0, level, change, noise
    short = (level - smooth) * np.sign(change) > tolerance * abs(change) * (1 + 1e-9)
    place = int(np.flatnonzero(short)[-1]) + 1
    return ("saturates" if place < len(y) - tail else "moves on"), place, level, change, noise


# --- advice -------------------------------------------------------------------------------------------------------


def vote(steps: Sequence[float]) -> float:
    """Find the step by which most of several curves have saturated.

    Parameters
    ----------
    steps : sequence of float
        Where each saturates, NaN where it does not.

    Returns
    -------
    float
        Of three the middle one, of two the later, of one itself; NaN where most do not saturate, or without any.
    """
    ordered = sorted(np.inf if np.isnan(step) else step for step in steps)
    found = ordered[len(ordered) // 2] if ordered else np.inf
    return found if np.isfinite(found) else np.nan


def cells(signals: pd.DataFrame) -> list[str]:
    """Columns that tell apart what is advised of: a panel, how masks are found, and their sparsity."""
    outcome = ("signal", "replicate", "prune_epoch", "value", "status", "split", "end", "probe")
    return [name for name in map(str, signals) if name not in outcome]


def advice(signals: pd.DataFrame, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """Say at which epoch the signals advise to prune, from their means over replicates.

    Parameters
    ----------
    signals : DataFrame
        What `lthlab.early.signals` returns.
    tolerance : float, optional
        As in `saturation`.

    Returns
    -------
    DataFrame
        For each cell (`cells`) one row per signal of `SIGNALS` and one of `VOTE`: signal, n (replicates), state (as of
        `Saturation`, or 'missing'), step, known, named, plateau, change, noise; end (epochs of the training), probe (of
        the vote: epochs that PPR takes until `known`, beside the training), saved_step and saved_known, the share of
        the epochs of a search that is saved by pruning there and not at the end, and saved_net, saved_known less what
        probes take. The vote goes by the signals that change (`vote`); its state is 'saturates', 'moves
        on', or 'missing' where none of them changes.
    """
    by = cells(signals)
    rows = []
    for place, own in signals.groupby(by, dropna=False, sort=False):
        where = dict(zip(by, place, strict=True)) | {"end": float(own["end"].iloc[0])}
        found = {name: _of(own[own["signal"] == name], tolerance) for name in SIGNALS}
        changing = [each for each in found.values() if each["state"] in ("saturates", "moves on")]
        last = {name: vote([each[name] for each in changing]) for name in ("step", "known")}
        state = "missing" if not changing else "moves on" if np.isnan(last["step"]) else "saturates"
        spent = own[(own["signal"] == "PPR") & (own["prune_epoch"] <= last["known"])]
        probe = float(spent.drop_duplicates("prune_epoch")["probe"].sum())
        n = max(each["n"] for each in found.values())
        found[VOTE] = {"n": n, "state": state, **last, "probe": probe}
        rows += [where | {"signal": name} | each for name, each in found.items()]
    columns = [
        *by, "signal", "n", "state", "step", "known", "named", "plateau", "change", "noise", "end", "probe",
    ]  # fmt: skip
    out = pd.DataFrame(rows, columns=columns).astype({name: signals[name].dtype for name in by})
    saved = {f"saved_{name}": 1 - out[name] / out["end"] for name in _READINGS}
    return out.assign(**saved, saved_net=saved["saved_known"] - out["probe"] / out["end"])


def _of(rows: pd.DataFrame, tolerance: float) -> dict[str, Any]:
    """What a signal says, of the mean over the replicates that have every step."""
    grid = rows.pivot_table(index="replicate", columns="prune_epoch", values="value").dropna()
    if grid.empty:
        return {"n": 0, "state": "missing", "step": np.nan, "known": np.nan}
    found = saturation(grid.columns.to_numpy(float).tolist(), grid.mean().tolist(), tolerance)
    return {"n": len(grid), **vars(found)}


def evaluate(signals: pd.DataFrame, tickets: pd.DataFrame, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """Follow the advice with tickets that took no part in it, and compare with pruning at the end.

    Parameters
    ----------
    signals : DataFrame
        What `lthlab.early.signals` returns.
    tickets : DataFrame
        Trainings of one kind of ticket on masks ranked at several steps, one recipe for each cell of `signals`, with
        prune_epoch, the step in epochs.
    tolerance : float, optional
        As in `saturation`.

    Returns
    -------
    DataFrame
        One row per cell, replicate and way to the advice: advisers, 'others' (the mean curves of all other replicates)
        or 'own' (the replicate's own curves, which is what a single search has); reading, 'step' (in hindsight) or
        'known' (the step at which one would have known; what is advised is to prune there); epoch, the nearest step
        that has a ticket, the end where nothing is advised; value, accuracy of the replicate's ticket ranked there
        minus that of its ticket ranked at the end, in [-1, 1]; saved, the share of the epochs of a search that is
        saved; net, the same less the epochs of PPR until then, which the others' advice has not cost this replicate.
        The hindsight of 'own' saves nothing, for it takes the whole training, and is left out.
    """
    by = cells(signals)
    rows: list[dict[str, Any]] = []
    done = tickets[tickets["status"] == "done"]
    for place, own in signals.groupby(by, dropna=False, sort=False):
        where = dict(zip(by, place, strict=True))
        same = np.logical_and.reduce([_same(done[name], value) for name, value in where.items()])
        grid = done[same].pivot_table(index="replicate", columns="prune_epoch", values="value")
        end = float(own["end"].iloc[0])
        if end not in grid:
            continue
        for replicate, accuracy in grid[grid[end].notna()].iterrows():
            is_own = own["replicate"] == replicate
            for advisers, rest in (("others", own[~is_own]), ("own", own[is_own])):
                if rest.empty:
                    continue
                said = advice(rest, tolerance)
                (given,) = said[said["signal"] == VOTE].to_dict("records")
                for reading in _READINGS if advisers == "others" else ("known",):
                    steps = accuracy.dropna().index.to_numpy(float)
                    epoch = end if np.isnan(given[reading]) else steps[np.abs(steps - given[reading]).argmin()]
                    spent = _spent(rest, epoch) if advisers == "own" else 0.0
                    rows.append(where | {
                        "replicate": replicate, "advisers": advisers, "reading": reading, "epoch": float(epoch),
                        "value": accuracy[epoch] - accuracy[end], "saved": 1 - epoch / end,
                        "net": 1 - (epoch + spent) / end, "status": "done",
                    })  # fmt: skip
    columns = [*by, "replicate", "advisers", "reading", "epoch", "value", "saved", "net", "status"]
    return pd.DataFrame(rows, columns=columns)


def _spent(rows: pd.DataFrame, epoch: float) -> float:
    """Epochs that PPR took until one."""
    until = rows[(rows["signal"] == "PPR") & (rows["prune_epoch"] <= epoch)]
    return float(until.drop_duplicates("prune_epoch")["probe"].sum())


def _same(column: "pd.Series[Any]", value: Any) -> "pd.Series[bool]":
    return column.isna() if pd.isna(value) else column == value


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise what following the advice costs and saves.

    Parameters
    ----------
    rows : DataFrame
        What `evaluate` returns.

    Returns
    -------
    DataFrame
        For each cell, advisers and reading: n, mean, low and high of the paired difference in accuracy (95 % t
        interval), first and last (the earliest and the latest epoch that was advised), saved and net (means).
    """
    outcome = ("replicate", "epoch", "value", "saved", "net", "status")
    by = [name for name in map(str, rows) if name not in outcome]
    accuracy = results.summarise(rows, by).drop(columns="sd")
    told = rows.groupby(by, dropna=False).agg(
        first=("epoch", "min"), last=("epoch", "max"), saved=("saved", "mean"), net=("net", "mean")
    )
    return accuracy.merge(told.reset_index(), on=by)
