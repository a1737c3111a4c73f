"""Runs of tickets over learning rates, and differences between their best means with what chance does to them.

The best of several means of few runs is flattered by chance. The intervals are therefore a parametric bootstrap
inside the maximum: runs are taken as normal, with one spread for the two tickets compared (pooled over their learning
rates), noise is drawn for every learning rate, and the largest draw counts. All learning rates are drawn as if they
were equally good, which is where the maximum flatters most, and the draws are divided by a drawn spread, because the
spread is estimated too. The intervals so cover at least what they claim whatever the true means are. They are about
other seeds on the same test set; that replicates are paired is not used, and several comparisons are not corrected
for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

DIVERGED = ("diverged", "blocked")
"""Statuses that are an outcome of a training, not a want of one: 'blocked' needs a training that diverged."""
MASKS = ("prune_at", "pruning", "layer_counts")
"""Columns that tell masks of one method apart."""
_UNEVEN = 3.0
# Means of test accuracies differ by more than this many decimals of a point; float32 accuracies are wrong by less.
_DECIMALS = 4


@dataclass(frozen=True)
class Cell:
    """Runs that differ in the replicate alone.

    Attributes
    ----------
    ticket : str
        'LT', 'WR', 'RR', 'SDT' or 'dense'.
    eval_lr : float
        Learning rate of the training.
    find_lr : float or None
        Learning rate under which the mask was found; None where there is no mask, or it is not known.
    mean : float
        Mean test accuracy in points (0 to 100).
    n : int
        Number of runs.
    """

    ticket: str
    eval_lr: float
    find_lr: float | None
    mean: float
    n: int

    def __str__(self) -> str:
        return f"{_place(self.ticket, (self.eval_lr, self.find_lr))}: {self.mean:.2f} (n = {self.n})"


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn.

    Attributes
    ----------
    decent : float
        Points below a ticket's best mean within which a learning rate is decent; others neither compete nor count to
        the spread.
    confidence : float
        Coverage of the intervals.
    draws, seed : int
        Number of draws; where they begin.
    """

    decent: float
    confidence: float
    draws: int
    seed: int


Point = tuple[float, float | None]
"""eval_lr and find_lr."""


class Grid:
    """Runs of one ticket over learning rates.

    Parameters
    ----------
    ticket : str
        'LT', 'WR', 'RR', 'SDT' or 'dense'.
    runs : mapping
        Learning rates to replicates to accuracy in points, or the status of a run that has none.

    Attributes
    ----------
    points : list of Point
        Learning rates with means: those with a run that is done, and none that diverged.
    mean, n, squares : ndarray, shape (points,)
        Means in points, numbers of runs, sums of squared deviations.
    diverged : list of Point
        Learning rates at which a run diverged.
    replicates : set of int
        All replicates.
    """

    def __init__(self, ticket: str, runs: Mapping[Point, Mapping[int, float | str]]) -> None:
        self.ticket = ticket
        self.runs = {point: dict(sorted(runs[point].items())) for point in sorted(runs, key=_order)}
        self.replicates = {replicate for cell in self.runs.values() for replicate in cell}
        # A run that diverged is an outcome: a learning rate at which that happens is not one to choose.
        self.diverged = [point for point, cell in self.runs.items() if set(cell.values()) & set(DIVERGED)]
        values = {
            p: np.array([run for run in cell.values() if not isinstance(run, str)]) for p, cell in self.runs.items()
        }
        done = {point: found for point, found in values.items() if len(found) and point not in self.diverged}
        self.points = list(done)
        self.mean = np.array([found.mean() for found in done.values()])
        self.n = np.array([len(found) for found in done.values()], dtype=int)
        self.squares = np.array([((found - found.mean()) ** 2).sum() for found in done.values()])

    def cell(self, index: int) -> Cell:
        """Describe the cell of a point by its index."""
        eval_lr, find_lr = self.points[index]
        return Cell(self.ticket, eval_lr, find_lr, float(self.mean[index]), int(self.n[index]))

    def decent(self, points: float) -> np.ndarray:
        """Tell the cells that are within some points of the best one."""
        return self.mean >= self.mean.max() - points

    def edge(self, eval_lr: float) -> str | None:
        """Word at which edge of the grid a learning rate lies; grids that end in divergence end there."""
        lrs = sorted({lr for lr, _ in self.runs})
        if len(lrs) == 1:
            return "the only one"
        return {lrs[0]: "the smallest", lrs[-1]: "the largest"}.get(eval_lr)


def _order(point: Point) -> tuple[float, float]:
    return point[0], -1.0 if point[1] is None else point[1]


def _place(ticket: str, point: Point) -> str:
    mask = "" if point[1] is None or point[1] == point[0] else f" (mask found at {point[1]:g})"
    return f"{ticket} at learning rate {point[0]:g}{mask}"


# --- from the tidy frame to grids ---------------------------------------------------------------------------------

Group = tuple[str, str | None, float]
"""Ticket, method and sparsity."""


@dataclass(frozen=True)
class Runs:
    """All runs that verdicts are about, with the levels of sparsities and the number of epochs."""

    groups: dict[Group, dict[Point, dict[int, float | str]]]
    levels: dict[float, int | None]
    epochs: int | None

    def grid(self, ticket: str, method: str | None, sparsity: float) -> Grid:
        """A ticket's grid; small dense networks may be the same for all methods, dense ones are."""
        options = [(ticket, method, sparsity), (ticket, None, sparsity), (ticket, None, 0.0)]
        wanted = {"dense": options[2:], "SDT": options[:2]}.get(ticket, options[:1])
        return Grid(ticket, next((self.groups[group] for group in wanted if group in self.groups), {}))

    def judged(self, ticket: str) -> list[tuple[str, float]]:
        """List methods and sparsities of a ticket."""
        return sorted((method, sparsity) for kind, method, sparsity in self.groups if kind == ticket and method)


def collect(frame: pd.DataFrame, ticket: str) -> Runs:
    """Sort the trainings of a tidy frame by ticket, method, sparsity and learning rates.

    Parameters
    ----------
    frame : DataFrame
        As in `lthlab.verdicts.judge`.
    ticket : {'LT', 'WR'}
        Which tickets, beside RR, SDT and dense networks.

    Raises
    ------
    ValueError
        As `lthlab.verdicts.judge`.
    """
    needed = ["ticket", "method", "sparsity", "replicate", "eval_lr", "value"]
    if lacking := [column for column in needed if column not in frame]:
        raise ValueError(f"the frame has no column {', '.join(lacking)}; needed: {', '.join(needed)}")
    rows = frame[frame["ticket"].isin([ticket, "RR", "SDT", "dense"])]
    if "what" in rows:
        rows = rows[rows["what"] == "train"]
    _refuse_mixtures(rows, ticket)
    value = pd.to_numeric(rows["value"])
    if len(wrong := value[(value < 0) | (value > 1)]):
        raise ValueError(f"value {wrong.iloc[0]:g} is no test accuracy; allowed: fractions from 0 to 1, not percent")
    nothing = pd.Series(None, index=rows.index, dtype=object)
    columns = [rows[name] for name in needed[:-1]]
    columns += [rows.get(name, nothing) for name in ("find_lr", "level", "status")]
    epochs = rows["eval_epochs"].max() if "eval_epochs" in rows else None
    runs = Runs({}, {}, None if pd.isna(epochs) else int(epochs))
    for kind, method, sparsity, replicate, eval_lr, find_lr, level, status, accuracy in zip(
        *columns, value, strict=True
    ):
        masked = kind not in ("dense", "SDT")
        method = None if pd.isna(method) or kind == "dense" else method
        sparsity = 0.0 if kind == "dense" else round(float(sparsity), 12)
        point = (float(eval_lr), float(find_lr) if masked and not pd.isna(find_lr) else None)
        status = "done" if pd.isna(status) else status
        run = status if status != "done" else "missing" if pd.isna(accuracy) else 100 * float(accuracy)
        if kind == ticket:
            runs.levels[sparsity] = None if pd.isna(level) else int(level)
        cell = runs.groups.setdefault((kind, method, sparsity), {}).setdefault(point, {})
        if cell.setdefault(int(replicate), run) != run:
            where = f"{_place(kind, point)}, method {method}, sparsity {sparsity:g}, replicate {replicate}"
            raise ValueError(f"two rows that differ for {where}; allowed: one")
    return runs


def _refuse_mixtures(rows: pd.DataFrame, ticket: str) -> None:
    recipes = [name for name in rows if str(name).startswith(("find_", "eval_")) and name not in ("find_lr", "eval_lr")]
    own = rows["ticket"] == ticket
    only = {"rewind": own, "schedule": own, "widths": rows["ticket"] != "SDT"}
    panel = ["panel", "network", "width", "shortcut", "widths", "data", "view", "train_size", "source", "target"]
    for column in ["study", *panel, *map(str, recipes), "rewind", "schedule"]:
        _refuse_several(rows[only[column]] if column in only else rows, column, "the frame")
    for method, found in rows[rows["ticket"].isin([ticket, "RR"])].groupby("method"):
        for column in MASKS:
            _refuse_several(found, column, f"the frame, of {method} masks,")
    if not {"source", "target"} <= set(rows):
        return
    sites = rows[["source", "target"]].dropna()
    if len(moved := sites[sites["source"] != sites["target"]]):
        raise ValueError(
            "tickets of {source} are trained on {target}; allowed: tickets on the data that they were found on, which "
            "Ma's conditions are about".format(**moved.iloc[0])
        )


def _refuse_several(rows: pd.DataFrame, column: str, where: str) -> None:
    values = sorted(set(rows[column].dropna().map(str))) if column in rows else []
    values += ["none"] * bool(column in MASKS and values and rows[column].isna().any())
    if len(values) > 1:
        raise ValueError(f"{where} mixes {column} {', '.join(values)}; allowed: one (select rows, or drop the column)")


def lacking(first: Grid, second: Grid, names: tuple[str, str] | None = None) -> tuple[str, ...]:
    """List the runs without which two grids are not alike: equal learning rates, equal replicates.

    Dense networks may have further learning rates, which only make it harder for a ticket.
    """
    named = tuple(zip(names or (first.ticket, second.ticket), (first, second), strict=True))
    if not first.runs or not second.runs:
        return tuple(f"no runs of {name}" for name, grid in named if not grid.runs)
    replicates = sorted(first.replicates | second.replicates)
    masked = second.ticket not in ("dense", "SDT")
    of_second = set(second.runs) | {p if masked else (p[0], None) for p in first.runs}
    have = {p if masked else (p[0], None) for p in first.runs}
    of_first = set(first.runs) | (set(second.runs) - have if second.ticket != "dense" else set())
    found = []
    for (name, grid), wanted in zip(named, (of_first, of_second), strict=True):
        for point in sorted(wanted - set(grid.diverged), key=_order):
            cell = grid.runs.get(point, {})
            runs = {replicate: cell.get(replicate, "not in the frame") for replicate in replicates}
            for why in sorted({run for run in runs.values() if isinstance(run, str)}):
                numbers = ", ".join(str(replicate) for replicate, run in runs.items() if run == why)
                found.append(f"{_place(name, point)}: replicate {numbers} ({why})")
        if len(grid.diverged) == len(grid.runs):
            found.append(f"a learning rate at which {name} does not diverge")
    return tuple(found)


# --- intervals ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _reach(rivals: int, n: int, other_n: int, paired: bool, df: int, confidence: float, draws: int, seed: int) -> float:
    """How far, in units of the spread, chance may lift the best of several means above another mean (a quantile)."""
    rng = np.random.default_rng(seed)
    spread = np.sqrt(rng.chisquare(df, draws) / df)
    first = rng.standard_normal((draws, rivals)) / math.sqrt(n)
    second = rng.standard_normal((draws, rivals if paired else 1)) / math.sqrt(other_n)
    return float(np.quantile((first - second).max(axis=1) / spread, (1 + confidence) / 2))


@dataclass(frozen=True)
class Contrast:
    """Differences between a ticket's cells and a rival's.

    Attributes
    ----------
    points, others : list of int
        Indices of the ticket's cells and of the rival's.
    estimate : ndarray
        Differences in points.
    below, above : float
        Points by which the truth may lie below and above each of them; NaN if the spread is not known.
    """

    points: list[int]
    others: list[int]
    estimate: np.ndarray
    below: float
    above: float

    @property
    def best(self) -> int:
        """Where the difference is largest."""
        return int(np.argmax(self.estimate))

    def states(self, threshold: float, strict: bool) -> list[str]:
        """Decide each difference."""
        return [decide(x - self.below, x + self.above, threshold, strict) for x in self.estimate]


def pooled_spread(grids: Sequence[Grid], decent: float) -> tuple[float, int]:
    """Spread over replicates in points, pooled over learning rates, and its degrees of freedom.

    Cells far below the best of their ticket, which cannot decide and often scatter, do not count.
    """
    kept = [(grid, grid.decent(decent)) for grid in grids]
    df = int(sum((grid.n[chosen] - 1).sum() for grid, chosen in kept))
    squares = float(sum(grid.squares[chosen].sum() for grid, chosen in kept))
    return (math.sqrt(squares / df) if df else math.nan), df


def against_best(first: Grid, second: Grid, bootstrap: Bootstrap, at: Sequence[int] | None = None) -> Contrast | None:
    """Compare cells of a ticket (its decent ones, or those given by index) with the rival's best cell."""
    if not first.points or not second.points:
        return None
    points = list(at) if at is not None else [int(i) for i in np.flatnonzero(first.decent(bootstrap.decent))]
    others = [int(np.argmax(second.mean))] * len(points)
    return _bounded(first, second, points, others, int(second.decent(bootstrap.decent).sum()), False, bootstrap)


def at_same_lr(first: Grid, second: Grid, bootstrap: Bootstrap) -> Contrast | None:
    """Compare with the rival at the same learning rate, where the rival is decent."""
    if not first.points or not second.points:
        return None
    decent = {point[0]: j for j, point in enumerate(second.points) if second.decent(bootstrap.decent)[j]}
    pairs = [(i, decent[point[0]]) for i, point in enumerate(first.points) if point[0] in decent]
    if not pairs:
        return None
    return _bounded(first, second, [i for i, _ in pairs], [j for _, j in pairs], 1, True, bootstrap)


def best_lrs(grid: Grid, bootstrap: Bootstrap) -> list[float]:
    """List the learning rates that may be a ticket's best one, that of the best mean first.

    Chance may have put the truly best one below another; its mean is then rarely further below the best mean than
    the margin here (multiple comparisons with the best, Hsu 1981). Without a spread every learning rate may be it.
    """
    if not grid.points:
        return []
    spread, df = pooled_spread([grid], bootstrap.decent)
    margin, rivals, n = math.inf, int(grid.decent(bootstrap.decent).sum()) - 1, int(grid.n.min())
    if df:
        rest = (False, df, bootstrap.confidence, bootstrap.draws, bootstrap.seed)
        margin = spread * _reach(rivals, n, n, *rest) if rivals else 0.0
    order = np.argsort(-grid.mean, kind="stable")
    return list(dict.fromkeys(grid.points[i][0] for i in order if grid.mean[i] >= grid.mean.max() - margin))


def _bounded(
    first: Grid, second: Grid, points: list[int], others: list[int], rivals: int, paired: bool, bootstrap: Bootstrap
) -> Contrast:
    estimate = np.round(first.mean[points] - second.mean[others], _DECIMALS)
    spread, df = pooled_spread([first, second], bootstrap.decent)
    if not df:
        return Contrast(points, others, estimate, math.nan, math.nan)
    n, other_n = int(first.n.min()), int(second.n.min())
    rest = (paired, df, bootstrap.confidence, bootstrap.draws, bootstrap.seed)
    below, above = _reach(len(points), n, other_n, *rest), _reach(rivals, other_n, n, *rest)
    return Contrast(points, others, estimate, spread * below, spread * above)


def decide(low: float, high: float, threshold: float, strict: bool) -> str:
    """Tell whether all of an interval exceeds (`strict`) or reaches a threshold: 'yes', 'no' or 'boundary'."""
    low, high = round(low, _DECIMALS), round(high, _DECIMALS)
    if low > threshold or (low == threshold and not strict):
        return "yes"
    return "no" if high < threshold or (high == threshold and strict) else "boundary"


# --- what makes a comparison doubtful -----------------------------------------------------------------------------


def divergences(grid: Grid) -> list[str]:
    """Say at which learning rates runs diverged; these are left out."""
    found = []
    for point in grid.diverged:
        runs = list(grid.runs[point].values())
        rest = [run for run in runs if not isinstance(run, str)]
        lost = sum(run in DIVERGED for run in runs)
        note = f", the others reach {np.mean(rest):.2f}" if rest else ""
        found.append(f"{_place(grid.ticket, point)}: {lost} of {len(runs)} runs diverged, left out{note}")
    return found


def uneven_spreads(grid: Grid, decent: float) -> list[str]:
    """Say where the assumption of one spread for all learning rates looks wrong."""
    if not grid.points or not (grid.n > 1).any():
        return []
    own, _ = pooled_spread([grid], decent)
    sd = np.sqrt(grid.squares / np.maximum(grid.n - 1, 1))
    worst = int(np.argmax(np.where(grid.decent(decent), sd, 0)))
    if round(own, _DECIMALS) == 0:
        return [f"{grid.ticket}: replicates do not differ at all"]
    place = _place(grid.ticket, grid.points[worst])
    note = f"{place} has a spread of {sd[worst]:.2f} points, pooled {own:.2f}"
    return [note] if sd[worst] > _UNEVEN * own else []
