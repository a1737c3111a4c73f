"""The papers' numbers beside ours under the same recipe, with the switches that differ; and their claims.

A number is compared with trainings of the same network on the same data under the recipe that its paper states (its
preset): optimizer, rates, schedule and length are equal, and so are sparsity, steps and whatever else the number's
conditions say. What may differ are switches: those that papers and codes disagree on (C1 to C20 of our notes on the
papers), and those that say how exactly we computed. Each that differs is named beside the number. They are read off by
comparing the study with the preset, nothing is assumed of a study. Weight decay differs only as far as between a
paper and its own code, since any other decay is another experiment.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from lthlab import early, predicates, prizes, published, results, sizes, verdicts
from lthlab.datasets import facts_of
from lthlab.evidence import Source
from lthlab.parts import Data, Net, Recipe
from lthlab.predicates import Effect
from lthlab.published import PAPERS, Claim, Number
from lthlab.spec import Panel

OUTCOMES = ("outside", "undecided", "inside", "not comparable", "not yet run")
"""What can come out for a number (see `values`)."""
COLUMNS = (
    "seed", "paper", "where", "network", "data", "quantity", "condition", "unit", "value", "outcome", "ours", "n",
    "low", "high", "reach_low", "reach_high", "difference", "switches", "study", "panel", "note",
)  # fmt: skip
CLAIM_COLUMNS = (
    "id", "seed", "paper", "where", "claim", "study", "panel", "network", "data", "outcome", "expected", "effect",
    "low", "high", "n", "unit", "elsewhere", "words",
)  # fmt: skip
STRICT = ("optimizer", "lr_schedule", "milestones", "gamma", "nesterov")
"""Fields of a recipe that make it another one, beside learning rate and epochs."""
SWITCHES = {
    "weight_decay": "C1", "prunable": "C2", "denominator": "C3", "report": "C7", "masks_from": "C7", "schedule": "C8",
    "warmup": "C17", "momentum": "C17", "label_smoothing": "C17", "mixup": "C17", "decay_on": "C17", "init": "C17",
    "replicates": "C19",
}  # fmt: skip
"""Switches that have a number among the contradictions of the papers and their codes."""
_AS_IN_CODE = ("weight_decay", "warmup", "momentum", "label_smoothing", "mixup", "decay_on")
_SEEN_ALIKE = ("classes", "part", "train_size", "channels", "size", "random_labels", "label_noise")
_SEEN = ("augment", "normalise", "val_size")
_OF_MASKS = ("prunable", "denominator", "masks_from", "floor")
_LADDER = 6e-4
"""Sparsities of the papers are rounded to three decimals."""
_POINTS = ("%", "pp")
WIDEST = 2.0
"""Points that a reach may have to say that a number is inside."""
_ONE = "one replicate gives no interval"
_MOST_NAMED = 3
_HEADS = (10, 100, 200, 1000)


def values(sources: Iterable[Source]) -> pd.DataFrame:
    """Compare every number that the papers print with what studies have.

    A paper prints a number, the mean of k runs (three of Ma's; one where nothing is said), without a spread. If its
    runs are like ours, it differs from our mean with the standard deviation s √(1/n + 1/k), s being that of a run, so
    `reach_low` to `reach_high`, our mean ± t₀.₉₇₅ s √(1/n + 1/k), contains it in 95 of 100 cases. The interval of
    our mean alone would not do: it narrows with n as if the paper's number had no spread, and would make of every
    number a disagreement in the end. Both ends are widened by half a unit of the last decimal that the paper prints.
    As two or three replicates hardly tell a spread, that of accuracies after training is pooled over all cells of the
    study that are compared with the same quantity (dense networks, or tickets of one kind and method), as verdicts
    pool it over learning rates (`lthlab.contrasts`); the spread of other quantities is their own. A reach of more than
    `WIDEST` points says of no number that it is inside.

    Parameters
    ----------
    sources : iterable of Source
        Studies, from `lthlab.evidence.load`.

    Returns
    -------
    DataFrame
        One row per number and way of ours, which are told apart by study and by the switches that differ, the fewest
        first; a way whose trainings are all among another's is left out. Of the
        number: seed (as in `PAPERS`), paper, where, network, data, quantity, condition, unit, value. Of ours: outcome,
        ours (mean in the paper's unit, or a verdict's state), n (replicates), low and high (95 % interval of our mean),
        reach_low and reach_high, difference (ours minus the paper's), switches, study, panel, note. The outcome is
        'inside' or 'outside' the reach; 'undecided' with a reach that is too wide, with one replicate (no interval,
        unless both round to the same), of a verdict that our runs leave open, and where the paper does not give the
        sparsity; 'not comparable' where it leaves out more than that; 'not yet run' without a training under the
        recipe, or while none is done. Counts of parameters need no training.
    """
    sources = list(sources)
    sites: dict[tuple[str, ...], list[_Site]] = {}
    for number in published.numbers():
        if number.recipe and _alike(number) not in sites:
            placed = [_Site(number, source, _place(number, source.frame)) for source in sources]
            sites[_alike(number)] = [site for site in placed if len(site.rows)]
    compared = [
        (number, [row for site in sites.get(_alike(number), ()) for row in _rows(number, site)])
        for number in published.numbers()
    ]
    measured = [row for _, found in compared for row in found if "found" in row]
    rows: list[dict[str, Any]] = []
    for number, found in compared:
        about = {name: getattr(number, name) for name in ("seed", "where", "network", "data", "quantity", "condition")}
        about |= {"paper": PAPERS[number.seed], "unit": number.unit, "value": number.value}
        fixed = _without_training(number)
        done = [_decided(number, row, measured) for row in _once(found) if row["outcome"] != "not yet run"]
        chosen = [fixed] if fixed else sorted(done, key=_differ) or found[:1] or [{"outcome": "not yet run"}]
        rows += [about | row for row in chosen]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype({"n": "Int64"})


def _once(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Leave out ways of ours whose trainings are all among those of another, as where studies share them."""
    cells = [set(row.get("cell", ())) for row in rows]
    for place, (row, cell) in enumerate(zip(rows, cells, strict=True)):
        others = (other for number, other in enumerate(cells) if cell < other or (cell == other and number < place))
        if not cell or not any(others):
            yield row


def _differ(row: dict[str, Any]) -> int:
    return len(list(filter(None, row["switches"].split("; "))))


def claims(sources: Iterable[Source]) -> pd.DataFrame:
    """Ask studies about every claim of the papers, panel by panel.

    Parameters
    ----------
    sources : iterable of Source
        Studies, from `lthlab.evidence.load`.

    Returns
    -------
    DataFrame
        One row per claim, study and panel that it is about: id, seed, paper, where, claim (one sentence); study, panel
        (such as 'resnet8 (width 4) on digits'), network, data; outcome ('supports', 'contradicts', 'undecided', or
        'not yet run' where the study asks for what is needed and does not have it yet, or, with study and panel None,
        where no study does); expected ('more' or 'less' than zero, 'alike' to it, or 'yes' or 'no' to a question);
        effect with low and high, its 95 % interval (percentage points, or a number without a unit); n (replicates, or
        panels of a claim over all of them), unit ('points' or ''); elsewhere (where the paper claims it, if not there:
        'not on cifar10, not with resnet20'), and words (which settings were compared). By paper, in the order of the
        file. Panels of a study that give the same numbers, as they share trainings, count once.
    """
    sources = list(sources)
    rows: list[dict[str, Any]] = []
    for claim in published.claims():
        about = {name: getattr(claim, name) for name in ("id", "seed", "where", "claim", "expected")}
        about["paper"] = PAPERS[claim.seed]
        found: list[tuple[str | None, Effect]] = []
        if claim.predicate == "redundancy":
            whole = predicates.redundancy(claim, sources)
            found += [] if whole is None else [(None, whole)]
        for source in sources if claim.predicate != "redundancy" else ():
            found += [(source.config.name, effect) for effect in predicates.evaluate(claim, source)]
        told = [
            about | {"study": study, "elsewhere": _elsewhere(claim, effect)} | vars(effect) for study, effect in found
        ]
        rows += told or [about | {"outcome": "not yet run", "n": 0, "elsewhere": "", "words": "", "unit": ""}]
    frame = pd.DataFrame(rows).reindex(columns=list(CLAIM_COLUMNS))
    same = frame.duplicated(["id", "study", "effect", "low", "high", "n"]) & (frame["n"] > 0) & frame["effect"].notna()
    return frame[~same].reset_index(drop=True)


def _elsewhere(claim: Claim, effect: Effect) -> str:
    """Say where the paper claims it, where that is not on these data and this network."""
    if not claim.data and not claim.networks:
        return "the paper's network and data are not at hand" if effect.data else ""
    places = (("on", "data", claim.data, effect.data), ("with", "networks", claim.networks, effect.network))
    words = [
        f"not {word} {' or '.join(names) if len(names) <= _MOST_NAMED else f'{what} of the paper'}"
        for word, what, names, own in places
        if names and own and own not in names
    ]
    return ", ".join(words)


# --- numbers that need no training --------------------------------------------------------------------------------


def _without_training(number: Number) -> dict[str, Any] | None:
    """Compare a count of parameters, or say why a number cannot be compared."""
    if number.quantity == "parameters":
        return _parameters(number)
    if number.quantity == "memorization capacity":
        note = "number of images, epochs and learning rate of the memorization are not stated"
        return {"outcome": "not comparable", "note": note}
    return None


def _parameters(number: Number) -> dict[str, Any]:
    assert isinstance(number.value, float)
    stems = {"imagenet": "imagenet", "tiny_imagenet": "imagenet" if number.network == "resnet50" else "tiny_imagenet"}
    net = number.net
    if number.data in stems:
        net = Net(name=net.name, stem=stems[number.data])  # type: ignore[arg-type]
    facts = facts_of(number.data)
    counts = {k: sizes.count(net, replace(facts, classes=k)).parameters for k in (facts.classes, *_HEADS)}
    ours = counts[facts.classes] / 1e6
    same = [k for k, count in counts.items() if abs(count / 1e6 - number.value) <= number.rounding + 1e-9]
    inside = facts.classes in same
    known = "C9: " * (number.data == "tiny_imagenet")
    switches = f"{known}head of {same[0]} classes (ours has {facts.classes})" if same and not inside else ""
    difference = ours - number.value
    return {
        "outcome": "inside" if inside else "outside", "ours": ours, "difference": difference, "switches": switches,
        "note": "counted, no training needed",
    }  # fmt: skip


# --- ours ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Site:
    """What a study has under a recipe, of a network on a data set; all numbers of which are compared with it."""

    number: Number
    source: Source
    rows: pd.DataFrame

    @cached_property
    def judged(self) -> list[tuple[str, str, prizes.Judged]]:
        """Verdicts, over whatever learning rates there are, with the switches that differ and the panel."""
        trained = self.rows[(self.rows["what"] == "train") & (self.rows["ticket"] != "search")]
        trained = trained[trained["layer_counts"].isna() & (trained["find_lr"] == trained["eval_lr"])]
        found = _variants(self.number, trained.assign(prune_at="", schedule=""), self.source)
        rules = self.source.config.verdicts
        return [
            (switches, panel, judged)
            for switches, panel, own in found
            for judged in prizes.judge(rules, trained.loc[own.index])
        ]


def _alike(number: Number) -> tuple[str, ...]:
    return number.recipe, number.network, number.data


def _rows(number: Number, site: _Site) -> Iterator[dict[str, Any]]:
    """Compare a number with what a study has, by the switches that differ."""
    about = {"study": site.source.config.name}
    if number.unit == "verdict":
        reading = site.source.config.verdicts.reading
        for switches, panel, judged in site.judged:
            yield about | {"switches": switches, "panel": panel} | _stated(number, judged, reading)
    elif not _without_training(number):
        (choose,) = (chosen for start, chosen in _CHOSEN.items() if number.quantity.startswith(start))
        for switches, panel, own in _variants(number, choose(number, site.rows, site.source), site.source):
            yield about | {"switches": switches, "panel": panel} | _compared(number, own)


def _place(number: Number, frame: pd.DataFrame) -> pd.DataFrame:
    """Choose rows of the network on the data set, both as they usually are, trained as long as the paper's."""
    net, epochs = number.net, published.panel(number).recipes[0][1].epochs
    frame = frame[(frame["eval_epochs"] == epochs) & (frame["find_epochs"] == epochs)]
    rows = frame[(frame["network"] == net.name) & (frame["data"] == number.data) & (frame["source"] == frame["target"])]
    if "width" in rows and len(rows):
        rows = rows[(rows["width"] == net.width) & (rows["shortcut"] != "none")]
    return rows[rows["ranking"] == "global"]


def _trained(number: Number, rows: pd.DataFrame) -> pd.DataFrame:
    """Choose trainings with the number's learning rates."""
    asked = number.conditions
    evaluated = asked.eval_lr or asked.lr or published.panel(number).recipes[0][1].lr
    rows = rows[np.isclose(rows["eval_lr"], evaluated)]
    return rows[(rows["ticket"] == "dense") | np.isclose(rows["find_lr"], asked.find_lr or evaluated)]


def _sparse(number: Number, rows: pd.DataFrame) -> pd.DataFrame:
    """Choose what stands on masks of the number's sparsity, with their own counts per layer."""
    rows = rows[rows["layer_counts"].isna() & (rows["sparsity"] > 0)]
    sparsity = number.conditions.sparsity
    return rows if sparsity is None else rows[(rows["sparsity"] - sparsity).abs() <= _LADDER]


def _at_end(rows: pd.DataFrame) -> pd.DataFrame:
    """Choose masks of the end of the training, or of its best epoch."""
    whole = rows["prune_at"] == rows["find_epochs"].map("{:.0f}ep".format)
    return rows[whole | rows["prune_at"].str.startswith("best", na=False)]


def _dense(number: Number, rows: pd.DataFrame, source: Source) -> pd.DataFrame:
    rows = _trained(number, rows[(rows["what"] == "train") & (rows["ticket"] == "dense")])
    if number.conditions.epoch is None or rows.empty:
        return rows
    return _where(early.dense(source.store, rows.drop_duplicates("key")), epoch=number.conditions.epoch)


def _where(rows: pd.DataFrame, **entries: Any) -> pd.DataFrame:
    for name, entry in entries.items():
        rows = rows[rows[name] == entry]
    return rows


def _ticket(number: Number, rows: pd.DataFrame, source: Source) -> pd.DataFrame:
    ticket, _, method = number.quantity.split()[0].partition("-")
    rows = _where(rows, what="train", ticket=ticket, method=method)
    return _at_end(_sparse(number, _trained(number, rows)))


def _early(number: Number, rows: pd.DataFrame, source: Source) -> pd.DataFrame:
    """Choose tickets of Sooner: rows of (s, v), s = v where v is not given, or gradual pruning over a window."""
    asked = number.conditions
    rows = _sparse(number, _trained(number, rows[rows["what"] == "train"]))
    if asked.window is not None:
        words = "{}ep to {}ep ".format(*asked.window)
        gradual = _where(rows, ticket="GMP")
        return gradual[gradual["pruning"].str.contains(words, na=False, regex=False)]
    s = asked.mask_epoch
    v = s if asked.rewind_epoch is None else asked.rewind_epoch
    rows = rows[(rows["method"] == "OMP") & (results.step_epochs(rows) == s)]
    kinds = rows["ticket"].isin(["LT", "WR"]) & (results.step_epochs(rows, "rewind") == v)
    return rows[kinds | ((rows["ticket"] == "LRR") & (s == v))]


def _distances(number: Number, rows: pd.DataFrame, source: Source) -> pd.DataFrame:
    asked = number.conditions
    rows = results.measured(source.store, _sparse(number, _trained(number, _where(rows, what="hamming"))))
    return _where(rows, first_epoch=asked.epoch_a, second_epoch=asked.epoch_b) if len(rows) else rows


def _changes(number: Number, rows: pd.DataFrame, source: Source) -> pd.DataFrame:
    """Subtract dense networks from tickets whose search and training took as long as the paper's."""
    asked = number.conditions
    method = {"gradual": "GMP", "iterative": "IMP"}[str(asked.method).partition(" ")[0]]
    trained = rows[rows["what"] == "train"]
    tickets = _sparse(number, trained[(trained["method"] == method) & (trained["ticket"] != "search")])
    spent = (tickets["search_epochs"], tickets["train_epochs"])
    whole = (spent[0] == asked.search_epochs) & (spent[1] == asked.epochs)
    tickets = tickets[whole if asked.search_epochs else spent[0] + spent[1] == asked.epochs]
    dense = trained[(trained["ticket"] == "dense") & (trained["status"] == "done")].drop_duplicates("key")
    pairs = tickets.merge(dense[["panel", "eval_lr", "replicate", "value"]], on=["panel", "eval_lr", "replicate"])
    return pairs.assign(value=pairs["value_x"] - pairs["value_y"])


def _spreads(number: Number, rows: pd.DataFrame, source: Source) -> pd.DataFrame:
    """How far W_std of layer 10 falls in 782 updates, from the first milestone on, where the rate has become low."""
    rows = _trained(number, rows[(rows["what"] == "weight_std") & (rows["ticket"] == "dense")])
    rows = results.measured(source.store, rows)
    if rows.empty:
        return rows
    rows = rows[rows["number"] == 10]
    start = 120.0
    end = start + 782 / -(-rows["train_size"] // rows["eval_batch_size"])
    sides = [rows[(rows["epoch"] - at).abs() < 1e-6] for at in (start, end)]
    pairs = sides[0].merge(sides[1][["key", "value"]], on="key", suffixes=("", "_later"))
    return pairs.assign(value=pairs["value"] - pairs["value_later"])


_CHOSEN: dict[str, Callable[[Number, pd.DataFrame, Source], pd.DataFrame]] = {
    "dense": _dense, "LT-": _ticket, "RR-": _ticket, "ticket": _early, "mask Hamming distance": _distances,
    "accuracy change": _changes, "decrease of W_std": _spreads,
}  # fmt: skip
"""How rows are chosen for a quantity, by how its name begins."""


# --- which switches differ ----------------------------------------------------------------------------------------


def _variants(number: Number, rows: pd.DataFrame, source: Source) -> list[tuple[str, str, pd.DataFrame]]:
    """Split rows by the switches that differ from the paper; what is another recipe is left out."""
    if rows.empty:
        return []
    masked = bool((rows["ticket"] != "dense").any())
    sides = ("find_", "eval_") if masked else ("eval_",)
    recipes = [name for name in map(str, rows) if name.startswith(sides) and not name.endswith("_lr")]
    by = ["panel", *recipes, "report", "prune_at", "schedule"]
    texts = rows[by].map(str)
    found: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for _, key in texts.drop_duplicates().iterrows():
        alike = rows[(texts == key).all(axis=1)]
        switches = _switches(number, alike, source, sides)
        if switches is not None:
            found.setdefault(("; ".join(switches), str(alike["panel"].iloc[0])), []).append(alike)
    return [(text, panel, pd.concat(parts)) for (text, panel), parts in found.items()]


def _switches(number: Number, rows: pd.DataFrame, source: Source, sides: tuple[str, ...]) -> list[str] | None:
    """List the switches that differ from the paper; None where it is another recipe."""
    paper, ours = published.panel(number), source.panels[str(rows["panel"].iloc[0])]
    found: dict[str, str] | None = _of_data(paper.data, ours.data)
    row = rows.iloc[0].to_dict()
    for side in sides:
        more = _of_recipe(number, paper.recipes[0][side == "eval_"], row, side)
        found = None if found is None or more is None else found | more
    if found is None:
        return None
    found |= _of_net(paper.net, ours.net) | _of_protocol(paper, ours, row, len(sides) > 1)
    n, runs = rows["replicate"].nunique(), number.origin.runs
    if n != runs and runs > 1:
        found["replicates"] = f"{n} run{'s' * (n > 1)} (paper {runs})"
    return [": ".join(filter(None, (SWITCHES.get(name), text))) for name, text in found.items()]


def _of_data(paper: Data, ours: Data) -> dict[str, str] | None:
    if any(getattr(paper, name) != getattr(ours, name) for name in _SEEN_ALIKE):
        return None
    return _differing(paper.model_dump(), ours.model_dump(), _SEEN)


def _of_recipe(number: Number, paper: Recipe, row: dict[Any, Any], side: str) -> dict[str, str] | None:
    told, ours = paper.model_dump(mode="json"), {name: row.get(f"{side}{name}") for name in Recipe.model_fields}
    if any(told[name] != ours[name] for name in STRICT):
        return None
    code = published.panel(number, True).recipes[0][0].model_dump(mode="json")
    names = [name for name in told if name not in (*STRICT, "lr", "epochs", "betas")]
    if any(ours[name] not in (told[name], code[name]) for name in names if name in _AS_IN_CODE):
        return None
    found = _differing(told, ours, [name for name in names if name not in number.origin.unstated])
    unstated = [f"{name.replace('_', ' ')} {ours[name]:g} (paper: not stated)" for name in number.origin.unstated]
    return found | dict(zip(number.origin.unstated, unstated, strict=True))


def _of_net(paper: Net, ours: Net) -> dict[str, str]:
    return _differing(paper.model_dump(), ours.model_dump(), ("shortcut", "init", "bias", "stem"))


def _of_protocol(paper: Panel, ours: Panel, row: dict[Any, Any], masked: bool) -> dict[str, str]:
    rules = ours.protocol.model_dump()
    step = str(row["prune_at"])
    rules |= {"masks_from": step if step.startswith("best") else "last"}
    names = ["report", *(_OF_MASKS if masked else ())]
    if row["ticket"] == "WR":
        names += ["schedule", "rewound_masks", "batchnorm"]
        rules["schedule"] = row["schedule"]
    return _differing(paper.protocol.model_dump(), rules, names)


def _differing(paper: dict[str, Any], ours: dict[str, Any], names: Iterable[str]) -> dict[str, str]:
    return {
        name: f"{name.replace('_', ' ')} {_word(ours[name])} (paper {_word(paper[name])})"
        for name in names
        if ours[name] != paper[name]
    }


def _word(value: Any) -> str:
    return "none" if value in (None, ()) else f"{value:g}" if isinstance(value, float) else str(value)


# --- ours against the paper's -------------------------------------------------------------------------------------


def _compared(number: Number, rows: pd.DataFrame) -> dict[str, Any]:
    """Note the values of the replicates of one way of ours, and what they are pooled with."""
    assert isinstance(number.value, float)
    done = rows[(rows["status"] == "done") & rows["value"].notna()].drop_duplicates("replicate")
    if done.empty:
        return {"outcome": "not yet run", "note": f"asked for, {rows['status'].iloc[0]}"}
    if number.conditions.unstated:
        return _over_levels(rows)
    found = (100 if number.unit in _POINTS else 1) * done["value"].to_numpy(float)
    alike = number.quantity if number.unit in _POINTS and number.conditions.epoch is None else number
    return {"outcome": "", "found": found, "alike": alike, "cell": tuple(sorted(done["key"]))}


def _decided(number: Number, row: dict[str, Any], rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Compare a number with ours, the spread being pooled over all cells of the same kind and study."""
    from scipy.stats import t

    if "found" not in row:
        return row
    kind = row["study"], row["alike"]
    cells = {other["cell"]: other["found"] for other in rows if (other["study"], other["alike"]) == kind}
    found, (squares, df) = row["found"], _pooled(cells.values())
    n, mean = len(found), float(found.mean())
    assert isinstance(number.value, float)
    row = row | {"ours": mean, "n": n, "difference": mean - number.value}
    apart = abs(row["difference"])
    if n == 1:
        return row | {"outcome": "inside" if apart <= number.rounding else "undecided", "note": _ONE}
    quantile, sd = float(t.ppf(0.975, df)), math.sqrt(squares / df)
    half = quantile * sd / math.sqrt(n)
    reach = quantile * sd * math.sqrt(1 / n + 1 / number.origin.runs) + number.rounding
    row |= {"low": mean - half, "high": mean + half, "reach_low": mean - reach, "reach_high": mean + reach}
    wide = number.unit in _POINTS and reach > WIDEST
    outcome = "outside" if apart > reach + 1e-9 else "undecided" if wide else "inside"
    note = f"the interval reaches {reach:.1f} points, too far to tell" if outcome == "undecided" else ""
    return row | {"outcome": outcome, "note": note}


def _pooled(cells: Iterable["np.ndarray[Any, Any]"]) -> tuple[float, int]:
    """Sum of squares around the means of cells, and its degrees of freedom."""
    found = [(float(((cell - cell.mean()) ** 2).sum()), len(cell) - 1) for cell in cells]
    return sum(squares for squares, _ in found), sum(df for _, df in found)


def _over_levels(rows: pd.DataFrame) -> dict[str, Any]:
    """Say what we have at every sparsity, where the paper does not say at which its number was measured."""
    means = 100 * rows[rows["status"] == "done"].drop_duplicates("key").groupby("sparsity")["value"].mean()
    words = ", ".join(f"{mean:.1f} at {sparsity:.3f}" for sparsity, mean in means.items())
    return {"outcome": "undecided", "note": f"the paper does not state the sparsity (C6); ours by sparsity: {words}"}


def _stated(number: Number, judged: prizes.Judged, reading: str) -> dict[str, Any]:
    rates = ", ".join(f"{lr:g}" for lr in sorted(judged.frame["eval_lr"].unique()))
    note = f"at learning rates {rates}; the paper's are in a figure only"
    found = judged.of("LT", reading)
    if not found:
        return {"outcome": "not yet run", "note": judged.problem or "there are no LT"}
    answers = verdicts.overview(judged.frame, found)
    answers = answers[answers["question"] == number.quantity].sort_values("method")  # IMP before OMP
    answer = answers.to_dict("records")[0]
    state = answer["state"]
    outcome = "inside" if state == number.value else "outside"
    if state == "insufficient evidence" or (state == "boundary" and outcome == "outside"):
        outcome = "undecided"
    missing = answer["missing"]
    return {
        "outcome": outcome,
        "ours": state,
        "note": note if pd.isna(missing) or not missing else f"{note}; lacks {missing}",
    }
