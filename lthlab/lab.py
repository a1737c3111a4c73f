"""From values to results: look in the store first, then group what is missing and train it."""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from lthlab import catalog, data, devices, feasible, parallel, plan, studies, tickets
from lthlab.analyses import Measure
from lthlab.derive import derive
from lthlab.errors import InputError
from lthlab.measures import measure
from lthlab.nodes import canonical
from lthlab.runs import Outlook, Run, epochs, origins
from lthlab.spec import Config
from lthlab.store import Claim, Damaged, Store
from lthlab.trainer import Trainer, Watcher, origin
from lthlab.values import Mask, Train, Value, ancestors

log = logging.getLogger(__name__)


@dataclass
class Summary:
    """What a call of `compute` did.

    Attributes
    ----------
    trainings, trained, shared : int
        Distinct trainings asked for; those trained now; further roles that share one of them.
    diverged, failed, blocked, stale : list of Value
        Trainings whose loss ceased to be finite; masks and measures that their inputs do not allow, as is
        recorded; values that need one of those; trainings whose kept bits could not be repeated, and what stands
        on them.
    seconds : float
        Wall time.
    """

    trainings: int = 0
    trained: int = 0
    shared: int = 0
    diverged: list[Value] = field(default_factory=list)
    failed: list[Value] = field(default_factory=list)
    blocked: list[Value] = field(default_factory=list)
    stale: list[Value] = field(default_factory=list)
    seconds: float = 0.0


class Stopped(Exception):
    """The watcher asked to stop; the same call goes on from where this one was.

    Attributes
    ----------
    left, epochs : int
        Trainings, and epochs of trainings, that are left.
    summary : Summary
        What was done.
    """

    def __init__(self, left: int, epochs: int, summary: Summary) -> None:
        super().__init__(left, epochs, summary)
        self.left, self.epochs, self.summary = left, epochs, summary

    def __str__(self) -> str:
        return f"stopped with {self.left} trainings and {self.epochs} epochs left; the same call goes on from there"


def compute(
    asked: Iterable[Value],
    store: Store,
    device: str = "auto",
    checkpoint_seconds: float = 60.0,
    watcher: Watcher | None = None,
    deterministic: bool | None = None,
) -> Summary:
    """Compute values, with all that they are made from, as far as the store does not have them.

    Parameters
    ----------
    asked : iterable of Value
        Trainings, masks, measures, or states of trainings (`At`), which are then kept. A value that is asked
        for more than once is computed once.
    store : Store
        Where results are and go.
    device : str, optional
        'auto', 'cpu', 'cuda' or 'cuda:1'; or several with commas, as 'cuda:0,cuda:1', which then share each training
        (see `lthlab.parallel`): for networks that one GPU takes long for.
    checkpoint_seconds : float, optional
        Time between checkpoints of a group in training.
    watcher : Watcher, optional
        Told of the progress, and asked after every step whether to stop.
    deterministic : bool, optional
        Whether a GPU has to give the same bits every time, whatever else is trained beside; a CPU does anyhow. By
        default what the environment variable LTHLAB_DETERMINISTIC says, 1 or 0, and no without it.

    Returns
    -------
    Summary

    Raises
    ------
    InputError
        Before anything is computed, if this version cannot compute a value, a data set that trainings need is not
        installed (see `lthlab.catalog`), there is no such device, devices cannot
        share a training, or it is too late in this process to be deterministic (see `lthlab.devices.settings`). Later,
        if a single training does not fit into the device's memory, or a group does not that has trained already;
        nothing is lost.
    ProcessEnded
        If one of the processes of several devices has ended; the same call goes on from the last checkpoint.
    StoreError
        If the store cannot be written.
    Stopped
        If the watcher asked to stop. What was trained is in a checkpoint, and the same call goes on from there.
    """
    asked = list(asked)
    places = devices.devices_named(device)
    with devices.settings(places[0], _deterministic(deterministic)):
        _prepare(asked, store, places)
        return _compute(asked, store, places, checkpoint_seconds, watcher)


def compute_study(
    config: Config,
    store: Store,
    device: str = "auto",
    checkpoint_seconds: float = 60.0,
    watcher: Watcher | None = None,
    configuration: str | None = None,
    deterministic: bool | None = None,
) -> Summary:
    """Compute the values of a study and note the roles of all of them in the store.

    Parameters
    ----------
    config : Config
        The study.
    store, device, checkpoint_seconds, watcher, deterministic
        As of `compute`, which also says what is returned and raised.
    configuration : str, optional
        Compute only what has a role in this configuration, such as 'find_tickets.lenet_300_100.digits', or in
        those of a stage, such as 'find_tickets'; all by default.

    Raises
    ------
    InputError
        Also if the study has no such configuration.
    """
    labelled = tickets.expand(config)
    everything = [item.value for item in labelled]
    asked = [item.value for item in studies.select(labelled, configuration)]
    places = devices.devices_named(device)
    with devices.settings(places[0], _deterministic(deterministic)):
        _prepare(everything, store, places)
        studies.note(config, labelled, store)
        return _compute(asked, store, places, checkpoint_seconds, watcher, everything)


def _deterministic(asked: bool | None) -> bool:
    told = os.environ.get(studies.DETERMINISTIC) or "0"
    if asked is None and told not in ("0", "1"):
        raise InputError(f"{studies.DETERMINISTIC} is '{told}'; allowed: 0, 1")
    return told == "1" if asked is None else asked


def _compute(
    asked: list[Value],
    store: Store,
    places: Sequence[torch.device],
    seconds: float,
    watcher: Watcher | None,
    study: Sequence[Value] = (),
) -> Summary:
    began = time.monotonic()
    with parallel.Team(places) if len(places) > 1 else nullcontext() as team:
        for _ in range(1000):
            look = Outlook(asked, store, study)
            try:
                return _Computation(asked, look, places[0], seconds, watcher, began, team).run()
            except Damaged as damage:
                log.warning("%s: computed again", damage)
                _drop(store, damage)
    raise RuntimeError("results are damaged as fast as they are computed")


def _prepare(asked: Iterable[Value], store: Store, places: Sequence[torch.device]) -> None:
    """Refuse what cannot be computed or stored, then store the descriptions of everything."""
    everything = ancestors(asked)
    trains = [value for value in everything if isinstance(value, Train)]
    for name in sorted({train.data.name for train in trains if train.data.facts.fingerprint is None}):
        data.load(name, None)  # refuses: not installed, or not registered with its facts, which the error tells
    feasible.refuse_impossible(everything)
    parallel.refuse(trains, places)
    store.check_writable()
    for value in everything:
        store.describe(canonical(value.form()))


def _drop(store: Store, damage: Damaged) -> None:
    if damage.key is None:
        raise damage
    claim = None
    while claim is None:
        claim = store.claim(damage.key)
        if claim is None:
            time.sleep(0.2)
    with claim:
        problems = store.verify(damage.key)
        if problems:
            store.discard(damage.key, min((p.part for p in problems if p.part is not None), default=0))


# --- one pass over everything that is asked for ---------------------------------------------------------------


class _Computation:
    def __init__(
        self,
        asked: list[Value],
        look: Outlook,
        device: torch.device,
        seconds: float,
        watcher: Watcher | None,
        began: float,
        team: parallel.Team | None = None,
    ) -> None:
        self.store, self.outlook, self.values, self.needs = look.store, look, look.values, look.needs
        self.device, self.watcher, self.began = device, watcher, began
        self.trainer = Trainer(self.store, device, look, seconds, watcher, team)
        self.depths = plan.depths(self.values)
        self.families = plan.families(self.values)
        uses = [value for value in asked if isinstance(value, Train)]
        self.trainings, self.shared = len(self.needs), len(uses) - len(set(uses))
        self.trained = 0

    def run(self) -> Summary:
        for value in self.values:
            self._pause()
            for problem in self.store.verify(value.key):
                if problem.part is not None:
                    raise problem
        self._tell()
        catalog.refuse_missing(train.data.name for train in self.outlook.left())
        for depth in range(max(self.depths.values(), default=-1) + 1):
            wave = [value for value in self.values if self.depths[value] == depth]
            self.trainer.forget()
            for value in wave:
                if not isinstance(value, Train) and self.outlook.runnable(value) and not self.outlook.settled(value):
                    self._derive(value)
            self._train_all([value for value in wave if isinstance(value, Train)])
        finished = [g for g, checkpoint in self.store.checkpoints().items() if self._finished(checkpoint.members)]
        self.store.sweep(keep=set(self.store.checkpoints()) - set(finished))
        return self._summary()

    def _summary(self) -> Summary:
        """What was done so far, and what was found."""
        dead = self.outlook.dead
        return Summary(
            self.trainings,
            self.trained,
            self.shared,
            [train for train in self.needs if train not in dead and Run(train, self.store).diverged is not None],
            [v for v in self.values if v not in dead and not isinstance(v, Train) and self.outlook.failed(v)],
            [value for value, why in dead.items() if why == "blocked"],
            [value for value, why in dead.items() if why == "stale"],
            time.monotonic() - self.began,
        )

    def _finished(self, members: Sequence[str]) -> bool:
        known = {train.key: train for train in self.needs}
        return all(key in known and not self.outlook.missing(known[key]) for key in members)

    def _tell(self) -> None:
        if self.watcher is not None:
            left = self.outlook.left()
            self.watcher.begin(self.trainings, self.trainings - len(left), self.shared, epochs(left))

    def _pause(self, seconds: float = 0.0) -> None:
        """Wait, unless the watcher asks to stop."""
        if self.watcher is not None and self.watcher.stop():
            raise self._stopped()
        time.sleep(seconds)

    def _stopped(self) -> Stopped:
        left = self.outlook.left()
        return Stopped(len(left), epochs(left), self._summary())

    # --- masks and measures ---------------------------------------------------------------------------------

    def _derive(self, value: Value) -> None:
        self._pause()
        claim = None
        while claim is None and not self.outlook.settled(value):
            claim = self.store.claim(value.key)
            if claim is None:
                self._pause(0.2)
        if claim is None:
            return
        with claim:
            if self.outlook.settled(value):
                return
            inputs, device = {"inputs": origins(value, self.store)}, "cpu"
            if isinstance(value, Measure):
                parts, device = measure(value, self.store, self.device), str(self.device)
            else:
                assert isinstance(value, Mask)
                parts = iter([derive(value, self.store)])
            for number, (files, record) in enumerate(parts, start=len(self.store.parts(value.key))):
                self.store.commit(value.key, number, files | origin(device=device), record | inputs)
                claim.touch()
                if record.get("left"):
                    self._pause()

    # --- trainings ------------------------------------------------------------------------------------------

    def _train_all(self, wave: list[Train]) -> None:
        while True:
            pending = [train for train in wave if self.outlook.runnable(train) and self.outlook.missing(train)]
            if not pending:
                break
            progressed = False
            candidates = pending if devices.repeats(self.device) else [t for t in wave if self.outlook.runnable(t)]
            for group in [*self._interrupted(candidates), *self._groups(candidates)]:
                members = [train for train in group if self.outlook.missing(train)]
                if members:
                    self._pause()
                    progressed |= self._train_claimed(members, group)
            if not progressed:
                self._pause(0.5)
        for train in wave:
            if Run(train, self.store).stale:
                self.outlook.bury(train, "stale")

    def _interrupted(self, candidates: list[Train]) -> Iterator[list[Train]]:
        """Groups that have a checkpoint, with the members that they had."""
        known, look = {train.key: train for train in candidates}, self.outlook
        for checkpoint in self.store.checkpoints().values():
            members = [known[key] for key in checkpoint.members if key in known]
            kinds = {(plan.shape_of(train), look.span(train)) for train in members if look.missing(train)}
            if len(members) == len(checkpoint.members) and len(kinds) == 1:
                yield members

    def _groups(self, candidates: list[Train]) -> Iterator[list[Train]]:
        """Cut what is to be trained into groups.

        Where bits do not depend on the group, only what is missing is a candidate. Elsewhere the group follows from
        all that the plan asks for, and what is there already is trained beside what is not.
        """
        alone, look = devices.repeats(self.device), self.outlook

        def kind(train: Train) -> object:
            return plan.shape_of(train), look.span(train) if alone else self.needs[train].until

        def limit(train: Train) -> int:
            return devices.capacity(train, self.device) if self.trainer.team is None else 1

        return plan.groups(candidates, kind, self.families, limit)

    def _train_claimed(self, members: list[Train], group: list[Train]) -> bool:
        claims = {train: claim for train in members if (claim := self.store.claim(train.key))}
        look = self.outlook
        try:
            mine = [train for train in claims if look.missing(train)]
            if mine:
                span = look.span(mine[0])
                wanted = {train: claims[train] for train in mine if look.span(train) == span}
                beside = [] if devices.repeats(self.device) or span[0] != mine[0].start else group
                self._train([t for t in group if t in wanted or (t in beside and not look.missing(t))], wanted, span)
            return bool(claims)
        finally:
            for claim in claims.values():
                claim.release()

    def _train(self, group: list[Train], wanted: Mapping[Train, Claim], span: tuple[int, int]) -> None:
        """Train a group, or its halves if it does not fit into the device's memory."""
        own = {train: wanted[train] for train in group if train in wanted}
        halves = self.trainer.train(group, own, span)
        if halves is None:
            raise self._stopped()
        if halves:
            devices.free_memory()
            self._tell()
            for half in halves:
                self._train(half, wanted, span)
            return
        self.trained += len(own)
        for train in own:
            if self.outlook.missing(train) and self.outlook.span(train) == span:
                raise RuntimeError(f"{train!r} was trained from step {span[0]} to {span[1]} to no avail")
