"""What studies take, one by one and together: `lthlab plan`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lthlab import catalog, estimates, stages, tickets
from lthlab.estimates import Forecast
from lthlab.roles import Labelled
from lthlab.spec import Config
from lthlab.stages import Settings
from lthlab.store import Store
from lthlab.values import Train, ancestors

COUNTS = ("left", "epochs", "hours", "bytes")
"""What is less for several studies together than in the sum, beside trainings."""


@dataclass(frozen=True)
class Bill:
    """What a study takes.

    Attributes
    ----------
    config : Config
        The study.
    labelled : list of Labelled
        Its expansion.
    forecast : Forecast
        What is to come.
    notebooks : dict of str to str
        As `lthlab.estimates.forecast` takes them; empty where there is no folder of notebooks.
    executed : set of str
        Likewise.
    """

    config: Config
    labelled: list[Labelled]
    forecast: Forecast
    notebooks: dict[str, str]
    executed: set[str]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """As `lthlab.stages.by_stage`."""
        return stages.by_stage(self.config, self.labelled, self.forecast)

    @property
    def executions(self) -> int:
        """How many notebooks there are in all."""
        return sum(row["notebooks"] for row in self.rows)

    @property
    def absent(self) -> list[str]:
        """What is to be said of data sets that are not installed."""
        panels = self.config.panels
        return catalog.missing(data.name for panel in panels for data in (panel.data, *(to for to, _ in panel.targets)))

    def facts(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        whole: dict[str, Any] = {"study": self.config.name, "notebooks": self.executions, **self.forecast.facts()}
        return whole | {"stages": self.rows, "absent": self.absent}


@dataclass(frozen=True)
class Together:
    """What several studies take in one store.

    Attributes
    ----------
    forecast : Forecast
        Of all of them, stage by stage; what several ask for is counted once.
    common : dict of str to int
        By study: how many of its trainings others of them ask for too.
    several : int
        How many trainings more than one of them asks for.
    less : dict of str to float
        By name in `COUNTS`, and of `trainings`: how much less that is than the sum over the studies.
    """

    forecast: Forecast
    common: dict[str, int]
    several: int
    less: dict[str, float]

    def facts(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        shared = {"trainings": self.several, "by_study": self.common, "less": self.less}
        return {"device": self.forecast.device, **self.forecast.whole.facts(), "in_common": shared}


def bill(config: Config, store: Store, settings: Settings) -> Bill:
    """Say what a study takes.

    Raises
    ------
    InputError
        As of `lthlab.stages.run`.
    """
    labelled = tickets.expand(config)
    notebooks, executed = stages.executions(config, labelled, store, settings)
    forecast = estimates.forecast(labelled, store, settings.device, settings.slots or 1, notebooks, executed)
    return Bill(config, labelled, forecast, notebooks, executed)


def together(bills: Sequence[Bill], store: Store, settings: Settings) -> Together:
    """Say what several studies of different names take together."""
    labelled: list[Labelled] = []
    notebooks: dict[str, str] = {}
    executed: set[str] = set()
    trains: dict[str, list[Train]] = {}
    for each in bills:
        name = each.config.name
        for item in each.labelled:  # configurations of different studies may have one name
            there = f"{item.configuration} of {name}"
            labelled.append(replace(item, role=item.role | {"configuration": there}))
        notebooks |= {f"{piece} of {name}": notebook for piece, notebook in each.notebooks.items()}
        executed |= {f"{piece} of {name}" for piece in each.executed}
        trains[name] = [v for v in ancestors(item.value for item in each.labelled) if isinstance(v, Train)]
    forecast = estimates.forecast(labelled, store, settings.device, settings.slots or 1, notebooks, executed)
    users = Counter(train for own in trains.values() for train in own)
    common = {name: sum(users[train] > 1 for train in own) for name, own in trains.items()}
    less = {count: sum(_sum(each.forecast, count) for each in bills) - _sum(forecast, count) for count in COUNTS}
    less["trainings"] = sum(map(len, trains.values())) - len(users)
    return Together(forecast, common, sum(count > 1 for count in users.values()), less)


def _sum(forecast: Forecast, count: str) -> float:
    """Add up what configurations take, without what commands and slots make of it."""
    return sum(getattr(work, count) for work in forecast.configurations)


# --- as text --------------------------------------------------------------------------------------------------


def of_one(bill: Bill) -> list[str]:
    """Write the bill of a study, stage by stage."""
    forecast, rows = bill.forecast, bill.rows
    lines = [f"{bill.config.name}, on {forecast.device}:"]
    lines += [f"{'':17}notebooks trainings shared    done     epochs     time     disk"]
    whole = {"stage": "in all", "notebooks": bill.executions} | vars(forecast.whole)
    for row in [*rows, whole]:
        lines += [
            f"{row['stage']:17}{row['notebooks']:9,} {row['trainings']:9,} {row['shared']:6,} {row['done']:7,} "
            f"{row['epochs']:10,} {duration(row['hours']):>8} {size(row['bytes']):>8}"
        ]
    return lines + _remarks(forecast, bill.absent)


def of_several(bills: Sequence[Bill], found: Together) -> list[str]:
    """Write the bills of several studies, a line for each, and that of all together."""
    names = [bill.config.name for bill in bills]
    width = max(map(len, [*names, "together"])) + 1
    lines = [f"{len(bills)} studies, on {found.forecast.device}:"]
    lines += [f"{'':{width}}notebooks trainings in common    done     epochs       time      disk"]
    works = [*(bill.forecast.whole for bill in bills), found.forecast.whole]
    counts = [bill.executions for bill in bills]
    common = [*(found.common[name] for name in names), found.several]
    for name, notebooks, several, work in zip([*names, "together"], [*counts, sum(counts)], common, works, strict=True):
        lines += [
            f"{name:{width}}{notebooks:9,} {work.trainings:9,} {several:9,} {work.done:7,} {work.epochs:10,} "
            f"{duration(work.hours):>10} {size(work.bytes):>9}"
        ]
    less = found.less
    words = f"{less['trainings']:,} trainings, {less['epochs']:,} epochs and {duration(less['hours'])}"
    lines += [f"in common: trainings that others of these studies ask for too; together that is {words} less"]
    absent = dict.fromkeys(text for bill in bills for text in bill.absent)
    return lines + _remarks(found.forecast, list(absent))


def _remarks(forecast: Forecast, absent: Sequence[str]) -> list[str]:
    lines = []
    if forecast.whole.guessed:
        lines += ["the time is partly guessed: some of these networks were not trained here yet"]
    lines += absent
    if forecast.whole.blocked:
        count = forecast.whole.blocked
        lines += [f"blocked: {count} trainings, since what they need diverged, failed or is stale"]
    return lines


def duration(hours: float) -> str:
    """Write a duration in its largest unit."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


def size(count: int) -> str:
    """Write a number of bytes."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
