"""From values to results: look in the store first, then group what is missing and train it."""

import hashlib
import json
import logging
import os
import platform
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

import lthlab
from lthlab import data, nets, plan, tickets
from lthlab.derive import as_tensors, derive, mask, refuse_impossible, state
from lthlab.engine import Job, Training, digest, shape_of
from lthlab.masks import Mask
from lthlab.nets import Weights
from lthlab.parts import Data, InputError, nearest
from lthlab.replicas import capacity
from lthlab.runs import Run, origins, staleness
from lthlab.spec import Config
from lthlab.store import Damaged, Store, tensor_bytes
from lthlab.values import At, Fresh, Train, Value, ancestors, canonical
from lthlab.values import Mask as MaskValue

log = logging.getLogger(__name__)

CHECKPOINT = 1
"""Format of checkpoints; one of another format is not continued."""


class Watcher(Protocol):
    """What `compute` tells of its progress."""

    def begin(self, trainings: int, done: int, shared: int, epochs: int) -> None:
        """Work is known: trainings in all, those done, roles that share one, and epochs left."""

    def advance(self, epochs: int, trainings: int) -> None:
        """So many epochs and whole trainings more are done."""


@dataclass
class Summary:
    """What a call of `compute` did.

    Attributes
    ----------
    trainings, trained, shared : int
        Distinct trainings asked for; those trained now; further roles that share one of them.
    diverged, blocked, stale : list of Value
        Trainings whose loss ceased to be finite; values that need one of those; trainings whose kept bits could
        not be repeated, and what stands on them.
    seconds : float
        Wall time.
    """

    trainings: int = 0
    trained: int = 0
    shared: int = 0
    diverged: list[Value] = field(default_factory=list)
    blocked: list[Value] = field(default_factory=list)
    stale: list[Value] = field(default_factory=list)
    seconds: float = 0.0


def device_named(name: str) -> torch.device:
    """Find a device; 'auto' is the first GPU, or the CPU where there is none.

    Raises
    ------
    InputError
        If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    allowed = ["auto", "cpu", *["cuda"] * torch.cuda.is_available()]
    allowed += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if name not in allowed:
        raise InputError(f"device '{name}' is not here; {nearest(name, allowed)}")
    return torch.device(name)


def compute(
    asked: Iterable[Value],
    store: Store,
    device: str = "auto",
    checkpoint_seconds: float = 60.0,
    watcher: Watcher | None = None,
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
        'auto', 'cpu', 'cuda' or 'cuda:1'.
    checkpoint_seconds : float, optional
        Time between checkpoints of a group in training.
    watcher : Watcher, optional
        Told of the progress.

    Returns
    -------
    Summary

    Raises
    ------
    InputError
        Before anything is computed, if this version cannot compute a value or there is no such device.
    StoreError
        If the store cannot be written.
    """
    asked = list(asked)
    place = _prepare(asked, store, device)
    return _compute(asked, store, place, checkpoint_seconds, watcher)


def compute_study(
    config: Config, store: Store, device: str = "auto", checkpoint_seconds: float = 60.0, watcher: Watcher | None = None
) -> Summary:
    """Compute all values of a study and note their roles in the store; arguments and errors as of `compute`."""
    labelled = tickets.expand(config)
    asked = [item.value for item in labelled]
    place = _prepare(asked, store, device)
    roles = [{"key": item.value.key, **item.role} for item in labelled]
    store.write_study(config.name, {"title": config.title, "roles": roles})
    return _compute(asked, store, place, checkpoint_seconds, watcher)


def _compute(
    asked: list[Value], store: Store, place: torch.device, checkpoint_seconds: float, watcher: Watcher | None
) -> Summary:
    began = time.monotonic()
    for _ in range(1000):
        computation = _Computation(asked, store, place, checkpoint_seconds, watcher)
        try:
            computation.run()
        except Damaged as damage:
            log.warning("%s: computed again", damage)
            _drop(store, damage)
            continue
        computation.summary.seconds = time.monotonic() - began
        return computation.summary
    raise RuntimeError("results are damaged as fast as they are computed")


def _prepare(asked: Iterable[Value], store: Store, device: str) -> torch.device:
    """Refuse what cannot be computed or stored, then store the descriptions of everything."""
    everything = ancestors(asked)
    plan.refuse_unsupported(everything)
    refuse_impossible(everything)
    place = device_named(device)
    store.check_writable()
    for value in everything:
        store.describe(canonical(value.form()))
    return place


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
        self, asked: list[Value], store: Store, device: torch.device, seconds: float, watcher: Watcher | None
    ) -> None:
        self.store, self.device, self.seconds, self.watcher = store, device, seconds, watcher
        self.values = ancestors(asked)
        self.needs = plan.needs(asked)
        self.depths = plan.depths(self.values)
        self.families = plan.families(self.values)
        self.summary = Summary()
        uses = [value for value in asked if isinstance(value, Train)]
        self.summary.shared = len(uses) - len(set(uses))
        self.summary.trainings = len(self.needs)
        self.dead: dict[Value, str] = {}
        self._datasets: dict[Data, data.Dataset] = {}
        self._mask_cache: dict[str, Mask | None] = {}

    def run(self) -> None:
        damaged = next((problem for value in self.values for problem in self._problems(value)), None)
        if damaged is not None:
            raise damaged
        self._tell()
        for depth in range(max(self.depths.values(), default=-1) + 1):
            wave = [value for value in self.values if self.depths[value] == depth]
            self._mask_cache.clear()
            for value in wave:
                if not isinstance(value, Train) and self._runnable(value) and not self.store.has(value.key):
                    self._derive(value)
            self._train_all([value for value in wave if isinstance(value, Train)])
        finished = [g for g, members in self.store.checkpoints().items() if self._finished(members)]
        self.store.sweep(keep=set(self.store.checkpoints()) - set(finished))

    def _problems(self, value: Value) -> list[Damaged]:
        return [p for p in self.store.verify(value.key) if p.part is not None]

    def _finished(self, members: Sequence[str]) -> bool:
        known = {train.key: train for train in self.needs}
        return all(key in known and not self._missing(known[key]) for key in members)

    def _tell(self) -> None:
        if self.watcher is None:
            return
        left = [train for train in self.needs if self._missing(train)]
        epochs = 0
        for train in left:
            start, until = self._span(train)
            epochs += -(-(until - start) // train.steps_per_epoch)
        total = len(self.needs)
        self.watcher.begin(total, total - len(left), self.summary.shared, epochs)

    # --- what can be had ------------------------------------------------------------------------------------

    def _runnable(self, value: Value) -> bool:
        """Whether all inputs are there; notes values whose inputs diverged or are stale."""
        if value in self.dead:
            return False
        for at in value.moments:
            run = Run(at.run, self.store)
            if run.stale or at.run in self.dead:
                self._bury(value, "stale" if run.stale else self.dead[at.run])
            elif not run.yields(at.step):
                self._bury(value, "blocked")
        for item in value.inputs:
            if item in self.dead:
                self._bury(value, self.dead[item])
            elif isinstance(item, MaskValue) and any("failed" in record for record in self._records(item)):
                self._bury(value, "blocked")
        if staleness(self.store, self._records(value)):
            self._bury(value, "stale")
        return value not in self.dead

    def _records(self, value: Value) -> list[dict[str, Any]]:
        return [part.record for part in self.store.parts(value.key)] if self.store.has(value.key) else []

    def _bury(self, value: Value, why: str) -> None:
        if value not in self.dead:
            self.dead[value] = why
            (self.summary.stale if why == "stale" else self.summary.blocked).append(value)

    def _missing(self, train: Train) -> bool:
        return Run(train, self.store).lacks(self.needs[train])

    # --- masks and measures ---------------------------------------------------------------------------------

    def _derive(self, value: Value) -> None:
        claim = None
        while claim is None and not self.store.has(value.key):
            claim = self.store.claim(value.key)
            if claim is None:
                time.sleep(0.2)
        if claim is None:
            return
        with claim:
            if not self.store.has(value.key):
                inputs = origins(value, self.store)
                files, record = derive(value, self.store)
                self.store.commit(value.key, 0, files | _provenance(device="cpu"), record | {"inputs": inputs})

    def _read_mask(self, value: MaskValue) -> Mask | None:
        if value.key not in self._mask_cache:
            self._mask_cache[value.key] = mask(value, self.store)
        return self._mask_cache[value.key]

    # --- trainings ------------------------------------------------------------------------------------------

    def _train_all(self, wave: list[Train]) -> None:
        while True:
            pending = [train for train in wave if self._runnable(train) and self._missing(train)]
            if not pending:
                break
            progressed = False
            for group in [*self._interrupted(pending), *self._groups(wave, pending)]:
                members = [train for train in group if self._missing(train)]
                if members:
                    progressed |= self._train_claimed(members, group)
            if not progressed:
                time.sleep(0.5)
        for train in wave:
            run = Run(train, self.store)
            if run.stale:
                self._bury(train, "stale")
            elif run.diverged is not None:
                self.summary.diverged.append(train)

    def _interrupted(self, pending: list[Train]) -> Iterator[list[Train]]:
        """Groups that have a checkpoint, with the members that they had."""
        known = {train.key: train for train in pending}
        for keys in self.store.checkpoints().values():
            members = [known[key] for key in keys if key in known]
            if len(members) == len(keys) and len({(shape_of(train), self._span(train)) for train in members}) == 1:
                yield members

    def _span(self, train: Train) -> tuple[int, int]:
        return Run(train, self.store).span(self.needs[train])

    def _groups(self, wave: list[Train], pending: list[Train]) -> Iterator[list[Train]]:
        """Cut what is to be trained into groups: like with like, whole families where they fit.

        On a CPU, bits do not depend on the group, so only what is missing counts. Elsewhere the group follows
        from all that the plan asks for, and what is there already is trained beside what is not.
        """
        candidates = pending if self.device.type == "cpu" else [train for train in wave if self._runnable(train)]
        kinds: dict[object, dict[str, list[Train]]] = defaultdict(lambda: defaultdict(list))
        for train in candidates:
            shape = (shape_of(train), self._span(train) if self.device.type == "cpu" else self.needs[train].until)
            kinds[shape][self.families[train]].append(train)
        for families in kinds.values():
            first = next(iter(families.values()))[0]
            limit = capacity(first.net, first.data)
            group: list[Train] = []
            for family in families.values():
                if len(group) + len(family) > limit and group:
                    yield group
                    group = []
                group = group + family
                while len(group) > limit:
                    yield group[:limit]
                    group = group[limit:]
            if group:
                yield group

    def _train_claimed(self, members: list[Train], group: list[Train]) -> bool:
        claims = {train: claim for train in members if (claim := self.store.claim(train.key))}
        try:
            mine = [train for train in claims if self._missing(train)]
            if mine:
                span = self._span(mine[0])
                mine = [train for train in mine if self._span(train) == span]
                beside = [] if self.device.type == "cpu" or span[0] != mine[0].start else group
                self._train([t for t in group if t in mine or (t in beside and not self._missing(t))], set(mine), span)
                for train in mine:
                    if self._missing(train) and self._span(train) == span:
                        raise RuntimeError(f"{train!r} was trained from step {span[0]} to {span[1]} to no avail")
            return bool(claims)
        finally:
            for claim in claims.values():
                claim.release()

    def _train(self, members: list[Train], wanted: set[Train], span: tuple[int, int]) -> None:
        began = time.monotonic()
        before = {train: Run(train, self.store) for train in members}
        start, until = span
        training, group = self._start(members, before, start, until)
        with self.store.claim(group) or nullcontext():  # else a sweep elsewhere takes the progress file
            self._advance(members, wanted, training, until, group)
            seconds = time.monotonic() - began
            for number, train in enumerate(members):
                if train in wanted:
                    self._commit(train, before[train], training, number, start, seconds)
            self.store.remove_checkpoint(group)
            self.store.remove_progress(group)
        self.summary.trained += len(wanted)
        if self.watcher is not None:
            self.watcher.advance(0, len(wanted))

    def _advance(self, members: list[Train], wanted: set[Train], training: Training, until: int, group: str) -> None:
        training.advance(training.iteration)
        saved = time.monotonic()
        while training.iteration < until and training.alive:
            at = training.iteration
            training.advance(until)
            ended = training.iteration % training.steps_per_epoch == 0
            if self.watcher is not None and training.iteration > at and ended:
                self.watcher.advance(len(wanted), 0)
            self._note(group, members, training)
            if time.monotonic() - saved >= self.seconds and training.iteration < until:
                self._checkpoint(group, members, training)
                saved = time.monotonic()

    def _start(self, members: list[Train], before: Mapping[Train, Run], start: int, until: int) -> tuple[Training, str]:
        keep = [self.needs[train].keep for train in members]
        text = json.dumps([start, until, [[t.key, sorted(k)] for t, k in zip(members, keep, strict=True)]])
        group = hashlib.sha256(text.encode()).hexdigest()[:32]
        dataset = self._dataset(members[0].data)
        if saved := self._saved(group):
            plain, tensors = saved
            jobs = [Job(t, {}, self._read_mask(t.mask), k) for t, k in zip(members, keep, strict=True)]
            return Training.restore(jobs, dataset, tensors, plain, self.device), group
        jobs = []
        for train, kept in zip(members, keep, strict=True):
            carried = before[train].carried(start)
            states = as_tensors(carried[0]) if carried else self._initial(train)
            carry = as_tensors(carried[1]) if carried else None
            jobs.append(Job(train, states, self._read_mask(train.mask), kept, carry))
        return Training(jobs, dataset, self.device, start), group

    def _saved(self, group: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Read the checkpoint of a group; one that is damaged is named and the group trained from the start."""
        if group not in self.store.checkpoints():
            return None
        try:
            plain, tensors = _unpack(self.store.read_checkpoint(group))
            if plain["format"] == CHECKPOINT:
                return plain, tensors
            reason = f"checkpoint {group} has format {plain['format']}, this version reads {CHECKPOINT}"
        except Damaged as damage:
            reason = str(damage)
        log.warning("%s: not used", reason)
        self.store.remove_checkpoint(group)
        return None

    def _initial(self, train: Train) -> Weights:
        if isinstance(train.init, Fresh):
            return nets.fresh(train.net, train.data, train.init.replicate, train.init.draw)
        assert isinstance(train.init, At)
        found = state(train.init, self.store)
        if train.batchnorm == "reset":
            found = nets.build(train.net, train.data).reset_batchnorm(found)
        return found

    def _dataset(self, wanted: Data) -> data.Dataset:
        if wanted not in self._datasets:
            cache = self.store.root / "data"
            self._datasets[wanted] = data.load(
                wanted.name, cache, train_size=wanted.train_size, val_size=wanted.val_size
            )
        return self._datasets[wanted]

    def _note(self, group: str, members: list[Train], training: Training) -> None:
        rows = {t.key: p.metrics[-1] for t, p in zip(members, training.progress, strict=True) if p.metrics}
        line = {"iteration": training.iteration, "end": members[0].end, "pid": os.getpid(), "runs": rows}
        self.store.append_progress(group, json.dumps(line))

    def _checkpoint(self, group: str, members: list[Train], training: Training) -> None:
        tensors, plain = training.checkpoint()
        payload = _pack(tensors, plain | {"format": CHECKPOINT})
        self.store.write_checkpoint(group, payload, [train.key for train in members])

    def _commit(self, train: Train, before: Run, training: Training, number: int, start: int, seconds: float) -> None:
        progress, need = training.progress[number], self.needs[train]
        final, until = training.group.state(number), training.iteration
        if progress.diverged is not None:
            until = progress.diverged * train.steps_per_epoch  # however long the others of its group went on
        record: dict[str, Any] = {
            "kind": "train",
            "from": start,
            "until": until,
            "end": train.end,
            "keep": sorted(need.keep),
            "diverged": progress.diverged,
            "digest": digest(final) if progress.diverged is None else None,
            "inputs": origins(train, self.store),
        }
        states = {step: tensor_bytes(_arrays(s)) for step, s in progress.snapshots.items()}
        files = {f"{step}.safetensors": content for step, content in states.items() if not before.has(step)}
        if before.reached > start:
            if progress.diverged is None:
                states[train.step_text(until)] = tensor_bytes(_arrays(final))
            different = before.differs(progress.metrics, until, record["digest"], states)
            if different:
                record = {"kind": "stale", "reason": different}
                files = {}
        else:
            files["metrics.jsonl"] = "".join(json.dumps(row) + "\n" for row in progress.metrics).encode()
            if progress.diverged is None and train.start < until < train.end:
                files["carry.safetensors"] = tensor_bytes(_arrays(training.carry(number)))
                files["state.safetensors"] = tensor_bytes(_arrays(final))
        form = {"form": training.group.form, "replicas": training.group.replicas, "slot": number}
        origin = _provenance(device=str(self.device), seconds=seconds, **form)
        self.store.commit(train.key, len(before.parts), files | origin, record)


def _arrays(tensors: Weights) -> dict[str, Any]:
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}


def _pack(tensors: Weights, plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain).encode() + b"\n" + tensor_bytes(_arrays(tensors))


def _unpack(payload: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    line, _, rest = payload.partition(b"\n")
    return json.loads(line), as_tensors(safetensors.numpy.load(rest))


def _provenance(**fields: object) -> dict[str, bytes]:
    facts = {
        "lthlab": lthlab.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return {"provenance.json": json.dumps(facts | fields, indent=1).encode()}
