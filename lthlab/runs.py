"""What the store holds of trainings, and what is left to do."""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lthlab import plan
from lthlab.plan import Need
from lthlab.store import Damaged, Part, Store
from lthlab.values import At, Mask, Train, Value, ancestors

MASK = ".mask"
"""Ends the name under which the mask of a state is kept, where a training prunes on its way."""


class Run:
    """What the store holds of one training.

    Parameters
    ----------
    train : Train
        The training.
    store : Store
        Where to look.

    Attributes
    ----------
    parts : list
        Committed parts, in order.
    reached : int
        Iteration up to which it has been trained; `train.start` where nothing is there.
    diverged : int or None
        Epoch in which its loss or a weight ceased to be finite.
    stale : str or None
        Why its bits could not be repeated.
    """

    def __init__(self, train: Train, store: Store) -> None:
        self.train, self.store = train, store
        self.parts = store.parts(train.key)
        records = [part.record for part in self.parts]
        trained = [record for record in records if record["kind"] == "train"]
        self.reached: int = max((record["until"] for record in trained), default=train.start)
        self.diverged: int | None = next((r["diverged"] for r in trained if r["diverged"] is not None), None)
        self.stale = staleness(store, records)

    @property
    def complete(self) -> bool:
        """Whether it has come to its end, or to the point where it diverged."""
        return bool(self.parts) and (self.reached >= self.train.end or self.diverged is not None)

    def has(self, step: str) -> bool:
        """Whether the state at a canonical step is kept, or for 'best_…' will not change any more."""
        settled = self.complete and self.diverged is None
        return step in self._kept() and (settled or not step.startswith("best"))

    def lacks(self, need: Need) -> bool:
        """Whether anything of what is asked for is missing and can still be had."""
        if self.stale:
            return False
        if not self.parts:
            return True
        if self.diverged is not None:
            return bool(self._passed(need))
        return self.reached < need.until or not all(self.has(step) for step in need.keep)

    def yields(self, step: str) -> bool:
        """Whether a training that diverged comes to a canonical step before it does."""
        if self.diverged is None:
            return True
        sound = max((self.diverged - 1) * self.train.steps_per_epoch, self.train.start)
        return not step.startswith("best") and self.train.iteration(step) <= sound

    def _passed(self, need: Need) -> list[str]:
        """List the steps that were passed and not kept."""
        absent = [step for step in need.keep if not self.has(step) and self.yields(step)]
        return [step for step in absent if self._iteration(step) <= self.reached] if self.parts else []

    def span(self, need: Need) -> tuple[int, int]:
        """Choose from which iteration to train to which.

        Normally from where it stopped to what is asked for. If a state is asked for that was passed but not
        kept, from the last stop before it to the next kept state behind it, which shows whether the bits agree.
        """
        steps = self._passed(need)
        if not steps:
            return self.reached, need.until
        passed = [self._iteration(step) for step in steps]
        stops = [part.record["until"] for part in self.parts if "carry.safetensors" in part.files]
        first = 0 if any(step.startswith("best") for step in steps) else min(passed)
        start = max((stop for stop in stops if stop <= first), default=self.train.start)
        kept = (step for step in self._kept() if not step.endswith(MASK) and not step.startswith("best"))
        known = {self.train.iteration(step) for step in kept}
        known |= {part.record["until"] for part in self.parts if part.record["kind"] == "train"}
        return start, min(at for at in known if at >= max(passed))

    def _iteration(self, step: str) -> int:
        return self.train.end if step.startswith("best") else self.train.iteration(step)

    def _kept(self) -> set[str]:
        suffix = ".safetensors"
        names = {name for part in self.parts for name in part.files if name.endswith(suffix)}
        return {name.removesuffix(suffix) for name in names} - {"carry", "state"}

    def carried(self, iteration: int) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """Read the state and the optimizer's buffers where an earlier part stopped; None at the beginning."""
        for part in self.parts:
            if part.record.get("until") == iteration and "carry.safetensors" in part.files:
                names = ("state.safetensors", "carry.safetensors")
                first, second = (self.store.read_tensors(self.train.key, name, part.number) for name in names)
                return first, second
        return None

    def read(self, step: str) -> Mapping[str, Any]:
        """Read the state at a canonical step, or with `MASK` behind it the packed mask there, as NumPy arrays.

        Raises
        ------
        LookupError
            If it is not kept.
        """
        if not self.has(step):
            raise LookupError(f"{self.train!r}: the state at {step} is not kept in {self.store.root}")
        return self.store.read_tensors(self.train.key, f"{step}.safetensors")

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics: one row per epoch so far."""
        return read_metrics(self.store, self.train.key, self.parts)

    def differs(
        self, metrics: list[dict[str, Any]], until: int, final: str | None, states: Mapping[str, bytes]
    ) -> str | None:
        """Compare a repeated training with what is kept of it; says what differs, None if nothing does.

        Parameters
        ----------
        metrics : list of dict
            Rows by epoch.
        until : int
            Iteration to which it was repeated.
        final : str or None
            Digest of the state there; None if it diverged.
        states : mapping of str to bytes
            States by canonical step, and their masks, as they would be stored.
        """
        known = {row["epoch"]: row for row in self.metrics()}
        for row in metrics:
            if known.get(row["epoch"], row) != row:
                return f"metrics of epoch {row['epoch']} came out differently when trained again"
        for part in self.parts:
            if part.record.get("until") == until and part.record["digest"] != final:
                return f"weights at {self.train.step_text(until)} came out differently when trained again"
        for step in states.keys() & self._kept():
            if self.store.read(self.train.key, f"{step}.safetensors") != states[step]:
                return f"weights at {step} came out differently when trained again"
        return None


class _Seen(Store):
    """A store as it is now: its folder is listed once, and each manifest read once; damaged parts are left out."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.root, store.files)
        self._keys = set(self._entries(self.root))
        self._found: dict[str, list[Part]] = {}

    def has(self, key: str) -> bool:
        return bool(self.parts(key))

    def parts(self, key: str) -> list[Part]:
        if key not in self._keys:
            return []
        if key not in self._found:
            try:
                self._found[key] = super().parts(key)
            except Damaged:
                self._found[key] = []
        return self._found[key]


class Outlook:
    """What the store has of values and of all that they are made from, and what is left to do.

    Parameters
    ----------
    asked : iterable of Value
        As in `lthlab.lab.compute`.
    store : Store
        Where to look.
    study : iterable of Value, optional
        What else will be asked for later: how far a training goes and what is kept of it follow from all.

    Attributes
    ----------
    values : list of Value
        All that is asked for and stored, inputs first.
    needs : dict of Train to Need
        How far each training among them is to go.
    dead : dict of Value to str
        What was found out to be of no use or impossible, with the reason: 'stale' or 'blocked'.
    """

    def __init__(self, asked: Iterable[Value], store: Store, study: Iterable[Value] = ()) -> None:
        asked = list(asked)
        self.store = store
        self.values = ancestors(asked)
        everything = [*asked, *study]
        self._needs = plan.needs(everything)
        self.needs = {value: self._needs[value] for value in self.values if isinstance(value, Train)}
        self._users: dict[tuple[Train, str], list[Value | None]] = {}
        for value in everything:
            if isinstance(value, At):
                self._users.setdefault((value.run, value.step), []).append(None)
        for value in ancestors(everything):
            for at in value.moments:
                self._users.setdefault((at.run, at.step), []).append(value)
        self.dead: dict[Value, str] = {}
        self._runs: dict[Train, Run] | None = None

    def runnable(self, value: Value) -> bool:
        """Whether the inputs of a value allow it; one whose inputs diverged or are stale is noted in `dead`."""
        if value in self.dead:
            return False
        for at in value.moments:
            run = self._run(at.run)
            if run.stale or at.run in self.dead:
                self.bury(value, "stale" if run.stale else self.dead[at.run])
            elif not run.yields(at.step):
                self.bury(value, "blocked")
        for item in value.inputs:
            if item in self.dead:
                self.bury(value, self.dead[item])
            elif isinstance(item, Mask) and self.failed(item):
                self.bury(value, "blocked")
        if staleness(self.store, self._records(value)):
            self.bury(value, "stale")
        return value not in self.dead

    def bury(self, value: Value, why: str) -> None:
        """Note that a value is 'stale' or 'blocked'; the first reason stays."""
        self.dead.setdefault(value, why)

    def failed(self, value: Value) -> bool:
        """Whether a mask or measure is recorded as one that its inputs do not allow."""
        return any("failed" in record for record in self._records(value))

    def settled(self, value: Value) -> bool:
        """Whether a mask or measure is there in whole, or recorded as impossible."""
        return whole(self._records(value))

    def missing(self, train: Train) -> bool:
        """Whether the store lacks anything that is still needed of a training."""
        run = self._run(train)
        return run.lacks(self._needs[train]) and run.lacks(self.wanted(train))

    def span(self, train: Train) -> tuple[int, int]:
        """From which iteration to train to which."""
        return self._run(train).span(self.wanted(train))

    def wanted(self, train: Train) -> Need:
        """What is still needed of a training: of its states those that were asked for, or that something is made from.

        What is made already, and stored, needs them no more.
        """
        need = self._needs[train]
        return Need(need.until, frozenset(step for step in need.keep if self._used(train, step)))

    def _used(self, train: Train, step: str) -> bool:
        return any(
            user is None or (self.missing(user) if isinstance(user, Train) else not self.settled(user))
            for user in self._users[train, step]
        )

    def now(self) -> "Outlook":
        """Return an outlook on the store as it is now, in which nothing changes and nothing is read twice."""
        look = copy.copy(self)
        look.store, look._runs = _Seen(self.store), {}
        return look

    def left(self) -> dict[Train, tuple[int, int]]:
        """Find what is left of each training that lacks something and can be trained.

        Returns
        -------
        dict of Train to tuple of int
            Iterations from which and to which. What the checkpoint of its group has is done. Results that are
            damaged are missing.
        """
        look = self if self._runs is not None else self.now()
        possible = {value for value in self.values if look.runnable(value)}
        spans = {train: look.span(train) for train in self.needs if train in possible and look.missing(train)}
        starts = {train: start for train, (start, _) in spans.items()}
        known = {train.key: train for train in self.needs}
        for group, checkpoint in self.store.checkpoints().items():
            members = [known[key] for key in checkpoint.members if key in known]
            parts = {spans[train] for train in members if train in spans}
            if len(members) == len(checkpoint.members) and len(parts) == 1:
                (span,) = parts
                if self.group(members, span) == group:
                    starts |= {train: checkpoint.iteration for train in members if train in spans}
        return {train: (start, spans[train][1]) for train, start in starts.items()}

    def group(self, members: Sequence[Train], span: tuple[int, int]) -> str:
        """Name a group of trainings by who is in it and what is asked of them; of the form of a key."""
        keep = [[train.key, sorted(self.needs[train].keep)] for train in members]
        return hashlib.sha256(json.dumps([*span, keep]).encode()).hexdigest()[:32]

    def _run(self, train: Train) -> Run:
        if self._runs is None:
            return Run(train, self.store)
        if train not in self._runs:
            self._runs[train] = Run(train, self.store)
        return self._runs[train]

    def _records(self, value: Value) -> list[dict[str, Any]]:
        return [part.record for part in self.store.parts(value.key)]


def whole(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the parts of a mask or measure are all there; each but the last says what is left."""
    return bool(records) and not records[-1].get("left")


def epochs(left: Mapping[Train, tuple[int, int]]) -> int:
    """Count the epochs that are left, begun ones included."""
    steps = [(train.steps_per_epoch, *span) for train, span in left.items()]
    return sum(-(-until // step) - start // step for step, start, until in steps)


@dataclass(frozen=True)
class InTraining:
    """A group of trainings on its way, as its last line of progress tells.

    Attributes
    ----------
    group : str
        Name of the group.
    pid : int
        Process that trains it.
    iteration, end : int
        Iteration reached, and where this group is trained to.
    epoch, epochs : int
        Whole epochs reached, and epochs in all.
    seconds_left : float or None
        Estimate from the iterations since this process began; None where there are none yet.
    silent : float
        Seconds since the last sign of life, which comes about every second; after long silence the process hangs.
    runs : dict of str to dict
        By key of a training: `loss` and `accuracy` (in [0, 1]) of its last epoch on training and test images, the
        epoch in which it `diverged`, or nothing before its first evaluation.
    """

    group: str
    pid: int
    iteration: int
    end: int
    epoch: int
    epochs: int
    seconds_left: float | None
    silent: float
    runs: dict[str, dict[str, float]]


def in_training(store: Store) -> list[InTraining]:
    """List the groups that somebody trains now.

    A line of progress is JSON with `time` (seconds since 1970), `pid`, `iteration`, `end`, `epoch`, `epochs` and
    `runs`. One is appended when a process begins, after every epoch, and every ten seconds within one.
    """
    found = []
    for group, lines in store.progress().items():
        silent, told = store.claim_age(group), list(_told(lines))
        if silent is None or not told:
            continue
        last = told[-1]
        began = next(line for line in told if line["pid"] == last["pid"])
        steps, seconds = last["iteration"] - began["iteration"], last["time"] - began["time"]
        left = (last["end"] - last["iteration"]) * seconds / steps if steps > 0 else None
        fields = {name: last[name] for name in ("pid", "iteration", "end", "epoch", "epochs", "runs")}
        found.append(InTraining(group, seconds_left=left, silent=silent, **fields))
    return found


def _told(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Read lines of progress; what a power cut has spoilt is passed over."""
    for line in lines:
        with suppress(ValueError):
            yield json.loads(line)


def read_metrics(store: Store, key: str, parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Read a training's metrics: one row per epoch, over all of its parts."""
    rows: dict[int, dict[str, Any]] = {}
    for part in parts:
        if "metrics.jsonl" in part.files:
            lines = store.read(key, "metrics.jsonl", part.number).decode().splitlines()
            rows |= {row["epoch"]: row for row in map(json.loads, lines)}
    return [rows[epoch] for epoch in sorted(rows)]


def origins(value: Value, store: Store) -> dict[str, str]:
    """List the stored files that a value is made from, as 'key/name', with their checksums."""
    names = [(at.run.key, f"{at.step}.safetensors") for at in value.moments]
    names += [(at.run.key, f"{at.step}{MASK}.safetensors") for at in value.moments if at.run.pruning is not None]
    names += [(item.key, "mask.safetensors") for item in value.inputs if isinstance(item, Mask)]
    found = {f"{key}/{name}": _checksum(store, key, name) for key, name in names}
    return {path: checksum for path, checksum in found.items() if checksum is not None}


def staleness(store: Store, records: Iterable[Mapping[str, Any]]) -> str | None:
    """Say why a result must not be used: its bits, or those it was made from, came out differently later."""
    for record in records:
        if record["kind"] == "stale":
            return str(record["reason"])
        for path, checksum in record.get("inputs", {}).items():
            if _checksum(store, *path.split("/")) not in (None, checksum):
                return f"made from {path}, which has since been computed again with other bits"
    return None


def _checksum(store: Store, key: str, name: str) -> str | None:
    try:
        parts = store.parts(key)
    except Damaged:  # what it was cannot be told until it is computed again
        return None
    return next((str(part.files[name]["blake2b"]) for part in reversed(parts) if name in part.files), None)
