"""Training one group of a store's trainings: started or continued, watched, checkpointed and committed."""

import json
import logging
import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import safetensors.numpy
import torch
from torch import Tensor

from lthlab import data, devices, estimates, masks, provenance, values
from lthlab.derive import as_tensors, initial, mask
from lthlab.engine import Job, Training, digest
from lthlab.errors import InputError
from lthlab.layers import Weights
from lthlab.masks import Mask
from lthlab.parallel import Team
from lthlab.parts import Data
from lthlab.runs import MASK, Outlook, Run, origins
from lthlab.store import Claim, Damaged, Store, tensor_bytes
from lthlab.values import Mask as MaskValue
from lthlab.values import Train

log = logging.getLogger(__name__)

CHECKPOINT = 3
"""Format of checkpoints; one of another format is not continued."""
SIGN_S = 1.0
"""Seconds between signs of life."""
NOTE_S = 10.0
"""Seconds between lines of progress within an epoch."""


class Watcher(Protocol):
    """What `lthlab.lab.compute` tells of its progress, and asks whether to stop."""

    def begin(self, trainings: int, done: int, shared: int, epochs: int) -> None:
        """Work is known: trainings in all, those done, roles that share one, and epochs left."""

    def advance(self, epochs: int, trainings: int) -> None:
        """So many epochs and whole trainings more are done."""

    def stop(self) -> bool:
        """Whether to stop as soon as nothing is lost by it; asked after every step, so it must be quick."""


class Trainer:
    """Trains groups, one at a time.

    Parameters
    ----------
    store : Store
        Where results, checkpoints and progress go.
    device : torch.device
        Where to compute.
    outlook : Outlook
        What is asked of each training.
    seconds : float
        Time between checkpoints.
    watcher : Watcher or None
        Told of the progress.
    team : Team, optional
        Processes that share the steps of every training that is not in a group.
    """

    def __init__(
        self,
        store: Store,
        device: torch.device,
        outlook: Outlook,
        seconds: float,
        watcher: Watcher | None,
        team: Team | None = None,
    ) -> None:
        self.store, self.device, self.outlook, self.team = store, device, outlook, team
        self.seconds, self.watcher = seconds, watcher
        self._datasets: dict[Data, data.Dataset] = {}
        self._masks: dict[str, Mask | None] = {}

    def train(
        self, members: Sequence[Train], wanted: Mapping[Train, Claim], span: tuple[int, int]
    ) -> list[list[Train]] | None:
        """Train a group and commit what is wanted of it.

        A group that does not fit into the device's memory, and has no checkpoint yet, is halved. Each half gets a
        checkpoint that says so at once: whoever goes on later has the same groups.

        Parameters
        ----------
        members : sequence of Train
            The group, of one shape.
        wanted : mapping of Train to Claim
            Those of them that are committed, with the claims to them.
        span : tuple of int
            Iterations from which and to which.

        Returns
        -------
        list of list of Train, or None
            Empty if all is committed; else the halves that are to be trained in its place, those that nothing is
            wanted of left out. None if the watcher asked to stop, then a checkpoint has what was trained.

        Raises
        ------
        InputError
            If the group does not fit into the device's memory and cannot be halved: it is a single training, or has
            a checkpoint.
        """
        name = self.outlook.group(members, span)
        claim = self.store.claim(name)
        with claim or nullcontext():  # else a sweep elsewhere takes the progress file
            group = _Group(self, name, members, [*wanted.values(), *([claim] if claim else [])], span)
            ended = group.train(len(wanted))
            halves = group.halve(wanted) if ended == "no memory" else []
            if ended == "whole":
                sizes = [group.commit(train) for train in wanted]
                group.time(sum(sizes) / len(sizes))
            if ended != "stopped":
                self.store.remove_checkpoint(name)
            self.store.remove_progress(name)
        if ended == "whole" and self.watcher is not None:
            self.watcher.advance(0, len(wanted))
        return None if ended == "stopped" else halves

    def forget(self) -> None:
        """Let go of the masks that were read."""
        self._masks.clear()

    def dataset(self, wanted: Data) -> data.Dataset:
        """Load a data set once."""
        if wanted not in self._datasets:
            self._datasets[wanted] = data.load(wanted, self.store.root / "data")
        return self._datasets[wanted]

    def mask(self, value: MaskValue) -> Mask | None:
        """Read a mask once."""
        if value.key not in self._masks:
            self._masks[value.key] = mask(value, self.store)
        return self._masks[value.key]


class _Group:
    """A group on its way: from the store or its checkpoint to the commits of its members, or to its halves."""

    training: Training

    def __init__(
        self, trainer: Trainer, name: str, members: Sequence[Train], claims: Sequence[Claim], span: tuple[int, int]
    ) -> None:
        self.trainer, self.store, self.name = trainer, trainer.store, name
        self.members, self.claims, self.span = members, claims, span
        self.before = {train: Run(train, trainer.store) for train in members}
        self.began = self.signed = self.noted = time.monotonic()
        self.spent = 0.0
        self.team = trainer.team if len(members) == 1 else None
        self.devices = [trainer.device] if self.team is None else self.team.devices
        self.first = span[0]
        self.saved = False
        self.halved_from: int | None = None

    @property
    def seconds(self) -> float:
        """Time that the group has taken, also in processes before this one."""
        return self.spent + time.monotonic() - self.began

    # --- start ----------------------------------------------------------------------------------------------

    def _begun(self) -> Training:
        jobs = []
        for train in self.members:
            carried = self.before[train].carried(self.span[0])
            states = as_tensors(carried[0]) if carried else initial(train, self.store)
            carry = as_tensors(carried[1]) if carried else None
            jobs.append(Job(train, states, self.trainer.mask(train.mask), self._keep(train), carry))
        dataset = self.trainer.dataset(jobs[0].train.data)
        return Training(jobs, dataset, self.trainer.device, self.span[0], team=self.team)

    def _saved(self) -> Training | None:
        """Go on from the checkpoint; one that is damaged is named and the group trained from the start."""
        if self.name not in self.store.checkpoints():
            return None
        try:
            plain, tensors = _unpack(self.store.read_checkpoint(self.name))
            if plain["format"] == CHECKPOINT:
                self.halved_from = plain.get("halved_from")
                if "iteration" not in plain:
                    return None
                self.spent, self.saved = plain["seconds"], True
                jobs = [Job(t, {}, self.trainer.mask(t.mask), self._keep(t)) for t in self.members]
                dataset = self.trainer.dataset(jobs[0].train.data)
                return Training.restore(jobs, dataset, tensors, plain, self.trainer.device, team=self.team)
            reason = f"checkpoint {self.name} has format {plain['format']}, this version reads {CHECKPOINT}"
        except Damaged as damage:
            reason = str(damage)
        log.warning("%s: not used", reason)
        self.store.remove_checkpoint(self.name)
        return None

    def _keep(self, train: Train) -> frozenset[str]:
        return self.trainer.outlook.needs[train].keep

    # --- training -------------------------------------------------------------------------------------------

    def train(self, wanted: int) -> str:
        """Train to the end; says whether the group is 'whole' now, 'stopped', or the device has 'no memory' for it.

        If the watcher asked to stop, a checkpoint is written, unless the group has not moved since its last one or
        its start.
        """
        try:
            return "whole" if self._advance(wanted) else "stopped"
        except RuntimeError as error:
            if not devices.lacked_memory(error):
                raise
        return "no memory"

    def _advance(self, wanted: int) -> bool:
        self.training = self._saved() or self._begun()
        self.first = self.training.iteration
        training, until, watcher = self.training, self.span[1], self.trainer.watcher
        saved, at_saved = time.monotonic(), training.iteration
        training.advance(training.iteration, self._sign)
        self._note()
        while training.alive and (training.iteration < until or training.pending):
            if self._sign():
                if training.iteration > at_saved:
                    self._checkpoint()
                return False
            if time.monotonic() - saved >= self.trainer.seconds and training.iteration > at_saved:
                self._checkpoint()
                saved, at_saved = time.monotonic(), training.iteration
            before = training.iteration
            training.advance(until, self._sign)
            ended = training.iteration == until or training.iteration % training.steps_per_epoch == 0
            if watcher is not None and training.iteration > before and ended:
                watcher.advance(wanted, 0)
            self._note()
        return True

    def _sign(self) -> bool:
        """Give a sign of life now and then; says whether the watcher asks to stop."""
        now = time.monotonic()
        if now - self.signed >= SIGN_S:
            self.signed = now
            for claim in self.claims:
                claim.touch()
        if now - self.noted >= NOTE_S:
            self._note()
        return self.trainer.watcher is not None and self.trainer.watcher.stop()

    def _note(self) -> None:
        """Append a line of progress, of the form that `lthlab.runs.in_training` reads."""
        self.noted = time.monotonic()
        training, steps = self.training, self.training.steps_per_epoch
        line = {
            "time": round(time.time(), 2),
            "pid": os.getpid(),
            "iteration": training.iteration,
            "end": self.span[1],
            "epoch": training.iteration // steps,
            "epochs": -(-self.span[1] // steps),
            "runs": {t.key: _latest(p.metrics) for t, p in zip(self.members, training.progress, strict=True)},
        }
        self.store.append_progress(self.name, json.dumps(line))

    def _checkpoint(self) -> None:
        tensors, plain = self.training.checkpoint()
        self._write(self.name, self.members, tensors, plain | {"seconds": self.seconds}, self.training.iteration)
        self.saved = True

    def _write(
        self, name: str, members: Sequence[Train], tensors: Weights, plain: Mapping[str, Any], iteration: int
    ) -> None:
        halved = {} if self.halved_from is None else {"halved_from": self.halved_from}
        payload = _pack(tensors, {"format": CHECKPOINT, **halved, **plain})
        self.store.write_checkpoint(name, payload, [train.key for train in members], iteration)

    def halve(self, wanted: Collection[Train]) -> list[list[Train]]:
        """Write the checkpoints of the halves that something is wanted of; they have nothing in them yet."""
        first, device, size = self.members[0], self.trainer.device, len(self.members)
        net, recipe = values.plain(first.net), first.recipe
        what = f"{net.name} on {first.data.name}, batch size {recipe.batch_size}, {recipe.precision}"
        where = f"the memory of {device} ({devices.memory(device) / 1e9:.1f} GB)"
        if self.saved:
            raise InputError(
                f"a group of {size} ({what}) does not fit into {where} any more; its checkpoint is kept. Make room on "
                "the device and give the same command again, or have the group begin anew by removing "
                f"{self.store.root / '.work' / self.name}.checkpoint"
            )
        if size == 1:
            raise InputError(
                f"a single training ({what}) does not fit into {where}; it needs a smaller batch_size, "
                "precision: bf16, or a device with more memory that is free"
            )
        self.halved_from = self.halved_from or size
        halves = [list(self.members[: -(size // 2)]), list(self.members[-(size // 2) :])]
        parts = " and ".join(str(len(half)) for half in halves)
        log.warning("a group of %d (%s) does not fit into %s; it trains as %s instead", size, what, where, parts)
        halves = [half for half in halves if any(train in wanted for train in half)]
        for half in halves:
            self._write(self.trainer.outlook.group(half, self.span), half, {}, {}, self.span[0])
        return halves

    # --- end ------------------------------------------------------------------------------------------------

    def commit(self, train: Train) -> int:
        """Commit what the group has trained of one of its members; returns the number of bytes."""
        number, before, training, start = self.members.index(train), self.before[train], self.training, self.span[0]
        progress = training.progress[number]
        final, until = training.group.state(number), training.iteration
        if progress.diverged is not None:
            until = progress.diverged * train.steps_per_epoch  # however long the others of its group went on
        record: dict[str, Any] = {
            "kind": "train",
            "from": start,
            "until": until,
            "end": train.end,
            "keep": sorted(self._keep(train)),
            "diverged": progress.diverged,
            "digest": digest(final) if progress.diverged is None else None,
            "inputs": origins(train, self.store),
        }
        under = training.mask(number)
        if train.pruning is not None and under is not None:
            record["mask"] = {"kept": masks.kept(under), "collapsed": masks.collapsed(under)}
        kept = progress.snapshots | {f"{step}{MASK}": packed for step, packed in progress.masks.items()}
        states = {step: tensor_bytes(_arrays(s)) for step, s in kept.items()}
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
        if self.halved_from is not None:
            form["halved_from"] = self.halved_from
        if self.trainer.device.type == "cuda":
            form["gpu"] = self._device_name
        repeats = devices.repeats(self.trainer.device)
        files |= origin(device=",".join(map(str, self.devices)), deterministic=repeats, seconds=self.seconds, **form)
        self.store.commit(train.key, len(before.parts), files, record)
        return sum(map(len, files.values()))

    @property
    def _device_name(self) -> str:
        """Models of the GPUs that it trains on, or 'cpu'."""
        return ",".join(torch.cuda.get_device_name(d) if d.type == "cuda" else str(d) for d in self.devices)

    def time(self, size: float) -> None:
        """Note how long this process took, for forecasts."""
        group = self.training.group
        seconds = time.monotonic() - self.began
        run = {
            "device": self._device_name,
            "threads": torch.get_num_threads(),
            "form": group.form,
            "bytes": round(size),
        }
        steps = self.training.iteration - self.first
        estimates.record(self.store, self.members[0], len(self.members), steps, seconds, run)


def _latest(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Loss and accuracy of the last epoch: of training images and test images."""
    row = metrics[-1] if metrics else {}
    if "diverged" in row:
        return {"diverged": row["epoch"]}
    loss, accuracy = row.get("train_loss", row.get("test_loss")), row.get("test_accuracy")
    return {} if accuracy is None else {"loss": float(f"{loss:.4g}"), "accuracy": round(accuracy, 5)}


def _arrays(tensors: Weights) -> dict[str, Any]:
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}


def _pack(tensors: Weights, plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain).encode() + b"\n" + tensor_bytes(_arrays(tensors))


def _unpack(payload: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    line, _, rest = payload.partition(b"\n")
    return json.loads(line), as_tensors(safetensors.numpy.load(rest))


def origin(**fields: object) -> dict[str, bytes]:
    """Write the file that says where and with what a result was computed."""
    facts = {
        **provenance.code(),
        **provenance.versions(),
        "processor": provenance.machine()["processor"],
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return {"provenance.json": json.dumps(facts | fields, indent=1).encode()}
