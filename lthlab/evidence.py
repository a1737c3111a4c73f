"""What studies hold, in the form in which it is compared with papers: one source a study, and tables of its rows."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from lthlab import correlations, decoupling, early, prizes, ratios, results, roles, spec, transfer
from lthlab.errors import nearest
from lthlab.prizes import Judged
from lthlab.spec import Config, Panel
from lthlab.store import Store

POINTS, NUMBER = "points", ""
"""Units of tables: percentage points, or a number without one."""


@dataclass(frozen=True)
class Source:
    """A study with its results.

    Attributes
    ----------
    config : Config
        The study.
    frame : DataFrame
        Its tidy frame, from `lthlab.results.load`.
    store : Store
        Where its results are.
    """

    config: Config
    frame: pd.DataFrame
    store: Store

    @cached_property
    def panels(self) -> dict[str, Panel]:
        """Panels by the names that the column `panel` has for them."""
        return dict(zip(roles.panel_names(self.config.panels), self.config.panels, strict=True))

    @cached_property
    def judged(self) -> list[Judged]:
        """What tickets win in its panels."""
        return prizes.judge(self.config.verdicts, self.frame)

    @cached_property
    def split(self) -> dict[Any, list[tuple[str, pd.DataFrame]]]:
        """Tables split into panels, as they were asked for once (`lthlab.predicates`)."""
        return {}

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        return {}

    def table(self, name: str) -> pd.DataFrame:
        """Make a table of `TABLES`, with `value` in its unit.

        Raises
        ------
        LookupError
            If there is no table of that name.
        """
        if name not in TABLES:
            raise LookupError(f"table '{name}' is not known; {nearest(name, TABLES)}")
        if name not in self._tables:
            make, unit = TABLES[name]
            rows = make(self)
            scale = 100 if unit == POINTS else 1
            self._tables[name] = rows.assign(value=scale * pd.to_numeric(rows["value"])) if len(rows) else rows
        return self._tables[name]


def load(store: Store, studies: Iterable[str | Config] | None = None) -> list[Source]:
    """Load studies as sources.

    Parameters
    ----------
    store : Store
        Where they are.
    studies : iterable of str or Config, optional
        Names of studies, as they were run last, or studies as they are; all of the store by default.

    Raises
    ------
    LookupError
        If there is no such study.
    """
    found = []
    for study in store.studies() if studies is None else studies:
        frame = results.load(store, study)
        if isinstance(study, str):
            noted = store.study(study)
            study = spec.resolved(noted["document"], noted["sets"])
        found.append(Source(study, frame, store))
    return found


# --- tables -------------------------------------------------------------------------------------------------------


def _stepped(rows: pd.DataFrame) -> pd.DataFrame:
    """Note when weights were ranked, as a share of the training: 1 for its best epoch, NaN without masks."""
    if rows.empty:
        return rows.assign(step=np.nan)
    share = results.step_epochs(rows) / rows["find_epochs"]
    return rows.assign(step=share.where(rows["prune_at"].isna() | share.notna(), 1.0))


def _trained(source: Source) -> pd.DataFrame:
    """Trainings on the data that tickets were found on."""
    rows = source.frame
    return _stepped(rows[(rows["what"] == "train") & (rows["ticket"] != "search") & (rows["source"] == rows["target"])])


def _ppr(source: Source) -> pd.DataFrame:
    return _stepped(_without_recipe(source.frame[source.frame["what"] == "ppr"]))


def _without_recipe(rows: pd.DataFrame) -> pd.DataFrame:
    """Leave out the recipe that trains, but for its rate, where it is no choice of the study's."""
    return rows.drop(columns=[name for name in map(str, rows) if name[:5] == "eval_" and name != "eval_lr"])


def _layers(source: Source) -> pd.DataFrame:
    """Pruned share of each layer; masks do not depend on how tickets are trained."""
    rows = results.layers(source.store, source.frame)
    if rows.empty:
        return rows
    rows = rows.drop(columns=[name for name in map(str, rows) if name.startswith("eval_")])
    rows = pd.concat([_of_one_method(own) for _, own in rows.groupby("panel", sort=False)])
    masks = source.frame[(source.frame["what"] == "mask") & (source.frame["ticket"] == "search")]
    asked = masks.groupby(["panel", "method"])["sparsity"].max().rename("asked")
    whole = rows.groupby(["panel", "method"])["sparsity"].transform("max")
    rows = rows[whole >= rows.join(asked, on=["panel", "method"])["asked"]]  # of a chain that is not done, none
    rows = rows.drop_duplicates(["key", "layer"])
    last = rows.groupby("key")["number"].transform("max")
    return _stepped(rows).assign(depth=(rows["number"] - 1) / (last - 1).where(last > 1))


def _of_one_method(rows: pd.DataFrame) -> pd.DataFrame:
    """Choose masks of IMP, or of OMP where there are none."""
    return ratios.alike(rows, "IMP" if (rows["method"] == "IMP").any() else "OMP", latest=False)


def _to_even(source: Source) -> pd.DataFrame:
    rows = _layers(source)
    return ratios.to_even(rows) if len(rows) else rows


def _moving(source: Source) -> pd.DataFrame:
    """How far each layer's pruned share is from the one at the end of the training."""
    rows = _layers(source)
    rows = ratios.by_step(rows) if len(rows) else rows
    return rows.assign(value=rows["change"].abs()) if len(rows) else rows


def _indicator(source: Source) -> pd.DataFrame:
    return _stepped(correlations.usual(correlations.rows(source.frame)))


def _hamming(source: Source) -> pd.DataFrame:
    """Distances of masks from the last one, by the step of the other, over what independent masks would differ in."""
    rows = results.measured(source.store, source.frame[source.frame["what"] == "hamming"])
    if rows.empty or "second_epoch" not in rows:
        return rows.iloc[:0]
    last = rows["second_epoch"] == rows.groupby("key")["second_epoch"].transform("max")
    rows = rows[last]
    return rows.assign(step=rows["first_epoch"] / rows["find_epochs"], value=rows["value"] / rows["random"])


def _spread(source: Source) -> pd.DataFrame:
    """Change of each layer's spread of weights over what weight decay predicts, after the last milestone."""
    rows = results.measured(source.store, source.frame[source.frame["what"] == "weight_std"])
    rows = early.spreads(rows) if len(rows) else rows
    if rows.empty:
        return rows
    per_epoch = -(-rows["train_size"] // rows["eval_batch_size"])
    milestones = rows["eval_milestones"].map(str)
    last = pd.Series([_last_epoch(item, n) for item, n in zip(milestones, per_epoch, strict=True)], rows.index)
    rows = rows[(rows["since_epoch"] >= last) & rows["ratio"].notna()]
    return rows.assign(value=rows["ratio"])


def _last_epoch(milestones: str, per_epoch: int) -> float:
    """Epoch of the last milestone in a text of their list; infinite without any."""
    steps = [word.strip("' ") for word in milestones.strip("[]()").split(",")]
    epochs = [float(step[:-2]) / (per_epoch if step.endswith("it") else 1) for step in steps if step]
    return max(epochs, default=np.inf)


def _memorization(source: Source) -> pd.DataFrame:
    rows = source.frame
    rows = rows[(rows["what"] == "training_accuracy") & (rows["ticket"] == "memorization")]
    return _stepped(_without_recipe(rows))


def _transferred(reference: str) -> Callable[[Source], pd.DataFrame]:
    def make(source: Source) -> pd.DataFrame:
        rows = transfer.differences(transfer.rows(source.frame), reference)
        moved = rows[rows["found_on"] != rows["trained_on"]]
        pairs = list(zip(moved["found_on"], moved["trained_on"], strict=True))
        words = [f"{found} to {trained}" for found, trained in pairs]
        return moved.assign(across=[_across(*pair) for pair in pairs], view="", data=words)

    return make


def _across(found: str, trained: str) -> str:
    """What a ticket is moved between: 'data', optimizers as 'sgd to adam', or 'recipes' that differ otherwise."""
    data, optimizers = (
        [match[1] if (match := re.search(pattern, text)) else "" for text in (found, trained)]
        for pattern in (
            r"^(.*?)(?:, (?:optimizer|lr|epochs|batch size|weight decay|momentum) .*)?$",
            r"optimizer (\w+)",
        )
    )
    return "data" if data[0] != data[1] else " to ".join(optimizers) if optimizers[0] != optimizers[1] else "recipes"


def _of(what: str) -> Callable[[Source], pd.DataFrame]:
    return lambda source: _stepped(source.frame[source.frame["what"] == what])


def _gains(source: Source) -> pd.DataFrame:
    """Best of all cells minus best coupled one, chosen on validation images: cells with means and intervals."""
    rows = source.frame
    done = rows[(rows["what"] == "train") & (rows["ticket"] != "search") & (rows["status"] == "done")]
    found = decoupling.envelopes(rows) if done["validation"].notna().all() else done.iloc[:0]
    if found.empty:
        return found.assign(value=[])
    rows = decoupling.gains(found)
    rows = rows[~rows["same"]].assign(value=rows["mean"])
    return rows.assign(**{name: 100 * rows[name] for name in ("mean", "low", "high")})


def _shares(source: Source) -> pd.DataFrame:
    """Share of a difference between masks that follows the counts per layer: cells with means and intervals."""
    found = decoupling.swaps(source.frame)
    if found.empty:
        return found.assign(value=[])
    rows = decoupling.effects(found)
    rows = rows[(rows["effect"] == "share") & rows["mean"].notna()]
    return rows.assign(value=rows["mean"])


TABLES: Mapping[str, tuple[Callable[[Source], pd.DataFrame], str]] = {
    "trained": (_trained, POINTS),
    "ppr": (_ppr, POINTS),
    "layers": (_layers, POINTS),
    "to_even": (_to_even, NUMBER),
    "moving": (_moving, POINTS),
    "indicator": (_indicator, NUMBER),
    "hamming": (_hamming, NUMBER),
    "spread": (_spread, NUMBER),
    "memorization": (_memorization, POINTS),
    "transfer random": (_transferred("random"), POINTS),
    "transfer own": (_transferred("own"), POINTS),
    "sharpness": (_of("sharpness"), NUMBER),
    "gains": (_gains, POINTS),
    "shares": (_shares, NUMBER),
}
"""Tables by name, each with the unit of its values."""
