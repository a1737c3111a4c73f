"""A study as notebook jobs: one for each configuration and each report, executed unless it is done already."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lthlab import catalog, estimates, jobs, studies, tickets, watch
from lthlab.datasets import HOME, data_home
from lthlab.errors import InputError, nearest
from lthlab.estimates import Forecast
from lthlab.jobs import Job, Outcome
from lthlab.kernels import GRACE_S, SPIN
from lthlab.parts import device_names
from lthlab.roles import Labelled
from lthlab.runs import Outlook
from lthlab.spec import Config
from lthlab.store import Claim, Damaged, Store, StoreError
from lthlab.studies import Configuration
from lthlab.values import Train, Value, ancestors


@dataclass(frozen=True)
class Settings:
    """How notebooks are executed.

    Attributes
    ----------
    notebooks : Path
        Folder of the notebooks of stages and reports.
    device : str
        As `lthlab.lab.compute` takes it.
    deterministic : bool
        Whether notebooks compute so; else as their environment says.
    slots, cluster, stall_after_s
        As of `lthlab.batch.execute`.
    cores, cell_timeout_s
        As of `lthlab.jobs.Job`.
    deadline : float or None
        Time of `time.monotonic` at which all is stopped.
    grace_s : float
        As of `lthlab.batch.execute`.
    only : tuple of str
        Names of the configurations, stages and reports to execute; all if empty.
    """

    notebooks: Path = Path("notebooks")
    device: str = "auto"
    deterministic: bool = False
    slots: int | None = None
    cluster: str | None = None
    cores: int = 1
    deadline: float | None = None
    grace_s: float = GRACE_S
    cell_timeout_s: float | None = None
    stall_after_s: float | None = None
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ran:
    """How the notebooks of a study ended.

    Attributes
    ----------
    outcomes : list of Outcome
        Of those that were executed, or would have been.
    finished : list of str
        Names of those that were done before.
    stopped : str
        'Ctrl-C', 'SIGTERM' or 'time', if one of these stopped them; else empty.
    values : dict of str to int
        Number of values by their statuses in `lthlab.results`.
    rest : list of str
        Names of the other configurations and reports of the study that are not executed as they are now.
    """

    outcomes: list[Outcome]
    finished: list[str]
    stopped: str
    values: dict[str, int]
    rest: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Outcome]:
        """Those with an error, or without an end."""
        return [outcome for outcome in self.outcomes if outcome.status in ("failed", "died", "hung")]


def run(config: Config, store: Store, settings: Settings) -> Ran:
    """Execute the notebooks of a study, as far as they are not done; arguments are checked before anything begins.

    A compute notebook is done if the store has all values of its configuration, or knows why they cannot be had,
    and it was executed as it is now with the same parameters. Reports are always executed.

    Raises
    ------
    InputError
        If the study, its notebooks or the settings are not sound, or trainings need a data set that is not installed.
    StoreError
        If the store cannot be written.
    OSError
        If the scheduler of a cluster cannot be reached.
    """
    labelled = tickets.expand(config)
    pieces = studies.configurations(labelled)
    planned = as_jobs(config, pieces, store, settings)
    texts = jobs.check(planned)
    from lthlab import batch, feasible, results

    store.check_writable()
    done = finished(planned, texts, pieces, store)
    asked = {job.name for job in planned} - done
    wanted = [item.value for piece in pieces if piece.name in asked for item in piece.labelled]
    catalog.refuse_missing(train.data.name for train in Outlook(wanted, store).left())
    feasible.refuse_impossible(ancestors(item.value for item in labelled))
    studies.note(config, labelled, store)
    board = watch.Board(config.name, store, [job.name for job in planned], done)
    waiting = [_without(job, done) for job in planned if job.name not in done]
    stopped: list[str] = []
    claims: dict[str, Claim | None] = {}
    alone: dict[str, int] = {}
    notebooks = {job.name: job.notebook.stem for job in planned}

    def tell(event: jobs.Event) -> None:
        if event.what == "stopping":
            stopped.append(event.text)
        elif event.what == "started":
            alone.clear()
            if not claims and settings.cluster is None:
                alone[event.name] = len(store.timings())
            claims[event.name] = store.claim(watch.mark(config.name, event.name))
        elif event.outcome is not None and event.name in claims:
            if claim := claims.pop(event.name):
                claim.release()
            if event.name in alone and event.outcome.status == "done":
                estimates.note_notebook(store, notebooks[event.name], event.outcome.seconds, alone[event.name])
        view.tell(event)

    try:
        with watch.shown(board, sys.stderr) as view:
            outcomes = batch.execute(
                waiting,
                slots=settings.slots,
                cluster=settings.cluster,
                stall_after_s=settings.stall_after_s,
                on_event=tell,
                deadline=settings.deadline,
                grace_s=settings.grace_s,
                tick=view.tick,
            )
    except OSError as error:
        if settings.cluster is None or isinstance(error, StoreError):
            raise
        raise InputError(f"--cluster {settings.cluster}: {error}") from error
    finally:
        for claim in filter(None, claims.values()):
            claim.release()
    reason = {"SIGINT": "Ctrl-C", "deadline": "time"}.get("".join(stopped), "".join(stopped))
    keys = {item.value.key for piece in pieces if piece.name in board.states for item in piece.labelled}
    counts = Counter(results.statuses(store, keys).values())
    values = {status: counts[status] for status in results.STATUSES}
    others = as_jobs(config, pieces, store, replace(settings, only=())) if settings.only else []
    others = [job for job in others if job.name not in notebooks]
    texts = jobs.check([replace(job, depends_on=()) for job in others])
    rest = [job.name for job in others if not jobs.up_to_date(job, texts[job.name])]
    return Ran(outcomes, sorted(done), reason, values, rest)


def standing(name: str, store: Store, config: Config | None = None) -> dict[str, Any]:
    """Say how far a study is.

    Parameters
    ----------
    name : str
        Name of the study.
    store : Store
        Where its results are.
    config : Config, optional
        The study as it is now, to be compared with its table of roles in the store.

    Returns
    -------
    dict
        study; counts of values by status; `listed`, those that are odd; `at_work`, names of the configurations and
        reports that somebody computes or executes now; `failed`, notebooks whose last execution failed, with cell,
        error and the settings that they had; `never_run`; `more` and `fewer`, values that the study has now and
        those that it had and has no more.
    """
    from lthlab import results

    known = name in store.studies()
    now = None if config is None else {item.value.key for item in tickets.expand(config)}
    facts: dict[str, Any] = {"study": name, "listed": [], "at_work": [], "failed": []}
    if not known:
        counts = dict.fromkeys(results.STATUSES, 0)
        if config is not None:
            counts["missing"] = len(tickets.expand(config))
        return facts | {"counts": counts, "never_run": True, "more": 0, "fewer": 0}
    frame = results.load(store, name)
    odd = frame[frame["status"].isin(["failed", "diverged", "blocked", "stale"])]
    columns = ["what", "ticket", "method", "level", "replicate", "find_lr", "eval_lr", "status", "note", "key"]
    then, sets = set(frame["key"]), list(store.study(name)["sets"])
    failures = jobs.failures(folder(name, store)).items()
    facts |= {
        "counts": results.count_statuses(frame),
        "listed": json.loads(odd[columns].to_json(orient="records")),
        "at_work": watch.at_work(name, store),
        "failed": [{"name": each, "cell": cell, "error": error, "sets": sets} for each, (cell, error) in failures],
    }
    more, fewer = (0, 0) if now is None else (len(now - then), len(then - now))
    return facts | {"never_run": False, "more": more, "fewer": fewer}


def folder(study: str, store: Store) -> Path:
    """Where the executed notebooks of a study are."""
    return store.root / "notebooks" / study


def as_jobs(config: Config, pieces: Sequence[Configuration], store: Store, settings: Settings) -> list[Job]:
    """Make the jobs of a study, stage by stage, the reports last.

    A configuration waits for those of earlier stages whose values it is made from, a report for all of them.

    Parameters
    ----------
    config : Config
        The study.
    pieces : sequence of Configuration
        Its configurations.
    store : Store
        Where results go, and executed notebooks to.
    settings : Settings
        How they are executed.

    Raises
    ------
    InputError
        If a notebook is missing, or a name or the device not known.
    """
    _refuse(config, pieces, settings)
    told = {"study": config.document, "device": settings.device} | ({"sets": list(config.sets)} if config.sets else {})
    environment = {studies.STORE: str(store.root)} | {n: v for n, v in SPIN.items() if n not in os.environ}
    environment |= {studies.DETERMINISTIC: "1"} if settings.deterministic else {}
    environment |= {HOME: str(data_home())} | ({studies.WITH: named} if (named := os.environ.get(studies.WITH)) else {})
    owners: dict[Value, set[str]] = {}
    made: dict[str, Job] = {}

    def add(name: str, notebook: str, configuration: str | None, before: Iterable[str]) -> None:
        if not settings.only or {name, notebook}.intersection(settings.only):
            made[name] = Job(
                name=name,
                notebook=settings.notebooks / f"{notebook}.ipynb",
                output=folder(config.name, store) / f"{name}.ipynb",
                parameters=told | {"configuration": configuration},
                cores=settings.cores,
                cell_timeout_s=settings.cell_timeout_s,
                depends_on=tuple(other for other in dict.fromkeys(before) if other in made),
                environment=environment,
            )

    for stage in config.stages:
        own = [piece for piece in pieces if piece.stage == stage]
        for piece in own:
            needed = ancestors(item.value for item in piece.labelled)
            add(piece.name, stage, piece.name, [name for value in needed for name in owners.get(value, ())])
        for piece in own:
            for item in piece.labelled:
                owners.setdefault(item.value, set()).add(piece.name)
    for report in config.reports:
        add(report, report, None, [piece.name for piece in pieces])
    return list(made.values())


def _without(job: Job, done: set[str]) -> Job:
    return replace(job, depends_on=tuple(name for name in job.depends_on if name not in done))


def _refuse(config: Config, pieces: Sequence[Configuration], settings: Settings) -> None:
    """Refuse what is not known or not there; names every notebook that is missing."""
    problems = []
    if not settings.notebooks.is_dir():
        raise InputError(f"--notebooks {settings.notebooks}: no such folder")
    there = sorted(path.stem for path in settings.notebooks.glob("*.ipynb"))
    for name in [*config.stages, *config.reports]:
        if name not in there:
            problems.append(f"notebook '{name}' is not in {settings.notebooks}; {nearest(name, there)}")
    names = [*config.stages, *(piece.name for piece in pieces), *config.reports]
    problems += [
        f"--only {name}: not in the study; {nearest(name, names)}" for name in settings.only if name not in names
    ]
    try:
        device_names(settings.device)
    except InputError as error:
        problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))


def executions(
    config: Config, labelled: Sequence[Labelled], store: Store, settings: Settings
) -> tuple[dict[str, str], set[str]]:
    """Say which notebooks are executed for what, as `lthlab.estimates.forecast` takes it; none without their folder.

    Raises
    ------
    InputError
        As of `run`.
    """
    if not settings.notebooks.is_dir():
        return {}, set()
    planned = as_jobs(config, studies.configurations(labelled), store, settings)
    texts = jobs.check(planned)
    executed = {job.name for job in planned if jobs.up_to_date(job, texts[job.name])}
    return {job.name: job.notebook.stem for job in planned}, executed


def ahead(config: Config, labelled: Sequence[Labelled], store: Store, settings: Settings) -> Forecast:
    """Say what executing the notebooks of a study will take; without a folder of notebooks, what its trainings take.

    Raises
    ------
    InputError
        As of `run`.
    """
    notebooks, executed = executions(config, labelled, store, settings)
    return estimates.forecast(labelled, store, settings.device, settings.slots or 1, notebooks, executed)


def by_stage(config: Config, labelled: Sequence[Labelled], forecast: Forecast) -> list[dict[str, Any]]:
    """Say what each stage of a study takes, reports last.

    Returns
    -------
    list of dict
        stage, notebooks, trainings that no earlier stage has, shared roles, done trainings, epochs left, hours,
        bytes.
    """
    rows: list[dict[str, Any]] = []
    known: set[Value] = set()
    used: set[Value] = set()
    works = {work.name: work for work in forecast.configurations}
    for stage in config.stages:
        pieces = studies.configurations(item for item in labelled if item.stage == stage)
        values = [item.value for piece in pieces for item in piece.labelled]
        own = {value for value in ancestors(values) if isinstance(value, Train)} - known
        uses = [value for value in values if isinstance(value, Train)]
        counts = {
            "stage": stage,
            "notebooks": len(pieces),
            "trainings": len(own),
            "shared": len(uses) - len(set(uses) - used),
            "done": len(own - forecast.blocked) - sum(works[piece.name].left for piece in pieces),
        }
        sums = {
            name: sum(getattr(works[piece.name], name) for piece in pieces) for name in ("epochs", "hours", "bytes")
        }
        rows.append(counts | sums)
        known |= own
        used |= set(uses)
    if config.reports:
        nothing = dict.fromkeys(("trainings", "shared", "done", "epochs", "hours", "bytes"), 0)
        own_row = {"stage": watch.REPORTS, "notebooks": len(config.reports)}
        rows.append(own_row | nothing | {"hours": forecast.reports})
    return rows


def finished(
    planned: Sequence[Job], texts: Mapping[str, str], pieces: Sequence[Configuration], store: Store
) -> set[str]:
    """Name the compute notebooks that need not be executed again.

    Parameters
    ----------
    planned : sequence of Job
        Jobs of a study.
    texts : mapping of str to str
        Their parameters, as `lthlab.jobs.check` words them.
    pieces : sequence of Configuration
        Its configurations.
    store : Store
        Where their results are.
    """
    current = {job.name for job in planned if jobs.up_to_date(job, texts[job.name])}
    sound: set[Value] = set()
    outlook = Outlook([item.value for piece in pieces for item in piece.labelled], store)
    return {
        piece.name
        for piece in pieces
        if piece.name in current and _settled([item.value for item in piece.labelled], outlook, sound)
    }


def _settled(asked: Sequence[Value], outlook: Outlook, sound: set[Value]) -> bool:
    """Whether nothing of what is asked for can be computed any more, and all that there is of it is sound.

    Values that were found sound are added to `sound`.
    """
    try:
        for value in ancestors(asked):
            if outlook.runnable(value):
                there = not outlook.missing(value) if isinstance(value, Train) else outlook.settled(value)
                if not there or (value not in sound and outlook.store.verify(value.key)):
                    return False
                sound.add(value)
    except Damaged:
        return False
    return True
