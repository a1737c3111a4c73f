"""The one training loop: schedules, optimizers, masks, snapshots and checkpoints of a group of replicas."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lthlab import masks
from lthlab.data import Dataset, mixup_draws, moves, order
from lthlab.gradual import Pruner
from lthlab.layers import Weights
from lthlab.masks import Mask
from lthlab.plan import shape_of
from lthlab.replicas import APART, Course, Group, Team
from lthlab.values import Train

Metrics = list[dict[str, Any]]
_MASK = "mask."  # begins the names of what is carried of a mask


def digest(state: Weights) -> str:
    """Hash a state bit for bit."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        total.update(name.encode())
        total.update(state[name].contiguous().numpy().tobytes())
    return total.hexdigest()


@dataclass(frozen=True)
class Job:
    """One replica's work.

    Attributes
    ----------
    train : Train
        What to train.
    state : dict of str to Tensor
        State to begin with, at `train.start` or where `carry` was taken; pruned weights are cleared.
    mask : Mask or None
        What stays pruned from the beginning.
    keep : frozenset of str
        Canonical steps whose states are kept.
    carry : mapping, optional
        What an earlier part of the same training left beside its state: optimizer buffers, sums, and the mask where
        it prunes on its way.
    """

    train: Train
    state: Weights
    mask: Mask | None = None
    keep: frozenset[str] = frozenset()
    carry: Mapping[str, Tensor] | None = None


@dataclass
class Progress:
    """What a replica has yielded so far.

    Attributes
    ----------
    metrics : list of dict
        One entry per epoch, the state before the first step included.
    snapshots : dict of str to dict of str to Tensor
        Kept states by step.
    masks : dict of str to dict of str to Tensor
        The masks of these states, as of `lthlab.masks.pack`, where the training prunes on its way.
    diverged : int or None
        Epoch in which the loss or a weight was no longer finite.
    best : dict of str to float
        Highest accuracy so far on 'val' and 'test'.
    """

    metrics: Metrics = field(default_factory=list)
    snapshots: dict[str, Weights] = field(default_factory=dict)
    masks: dict[str, Weights] = field(default_factory=dict)
    diverged: int | None = None
    best: dict[str, float] = field(default_factory=dict)


class Training:
    """A group of trainings of one shape, advanced together.

    Parameters
    ----------
    jobs : sequence of Job
        Trainings that agree in network, data, batch size, optimizer, precision and steps.
    dataset : Dataset
        Images and labels.
    device : str or torch.device, optional
        Where to compute.
    start : int, optional
        Iteration to begin with; `Train.start` by default.
    form : {'stacked', 'sequential'}, optional
        Override of the rule in `lthlab.replicas`.
    team : Team, optional
        Processes that share the steps of a single training.

    Raises
    ------
    ValueError
        If the jobs do not agree.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        dataset: Dataset,
        device: str | torch.device = "cpu",
        start: int | None = None,
        form: str | None = None,
        team: Team | None = None,
    ) -> None:
        if len({shape_of(job.train) for job in jobs}) != 1:
            raise ValueError("trainings of unlike shapes cannot form a group")
        first = jobs[0].train
        self.jobs, self.recipe, self.dataset, self.data = list(jobs), first.recipe, dataset, first.data
        self.steps_per_epoch = first.steps_per_epoch
        self.iteration = first.start if start is None else start
        self.device = torch.device(device)
        trains, states = [job.train for job in jobs], [job.state for job in jobs]
        self.group = Group(trains, states, dataset, self.device, form, team)
        self.progress = [Progress() for _ in jobs]
        self.held_out = {name: source for name, source in self.group.sources.items() if name != "train"}
        self.seen = self.updates = 0
        self._recipes = list({job.train.recipe: None for job in jobs})
        self._recipe_of = [self._recipes.index(job.train.recipe) for job in jobs]
        self._drawn_epoch = -1
        carries = [job.carry for job in jobs if job.carry is not None]
        if carries:
            self._resume(carries)
        self._pruners: dict[int, Pruner] = {}
        for number, job in enumerate(jobs):
            mask = job.mask
            if job.train.pruning is not None:
                self._pruners[number] = Pruner(job.train, mask if job.carry is None else _unpacked(job.carry))
                mask = self._pruners[number].mask
            if mask:
                self.prune(number, mask)
        if not carries:
            self._prune()

    # --- one step -------------------------------------------------------------------------------------------

    def advance(self, until: int, stop: Callable[[], bool] | None = None) -> None:
        """Train to the next end of an epoch, but not beyond iteration `until`.

        The first call records the state at the start too, even if `until` lies there.

        Parameters
        ----------
        until : int
            Last iteration.
        stop : callable, optional
            Asked after every step, of the lane that leads if several compute at once, and between the batches of an
            evaluation: whether to return as soon as a checkpoint can be taken. A later call goes on from there.
        """
        if self.pending and not self._evaluate(stop):
            return
        self._keep()
        if self.iteration >= until:
            return
        epoch = self.iteration // self.steps_per_epoch
        until = min(until, (epoch + 1) * self.steps_per_epoch)
        kept = {job.train.iteration(step) for job in self.jobs for step in job.keep if not step.startswith("best")}
        stops = {at for pruner in self._pruners.values() for at in pruner.steps if self.iteration < at < until}
        stops |= {at for at in kept if self.iteration < at < until}
        if epoch != self._drawn_epoch:
            self._draw(epoch)
        stopped = False
        while self.iteration < until and not stopped:
            end = min([until, *(at for at in stops if at > self.iteration)])
            with self.group.running():
                while self.iteration < end and not stopped:
                    stopped = self._steps(end, stop)
            self._prune()
            if self.iteration in kept and self.iteration < until:
                self._check_finite(epoch + 1)
                self._keep()
        if self.iteration < until:
            return
        self._check_finite(epoch + 1)
        if not self.pending or self._evaluate(stop):
            self._keep()

    @property
    def pending(self) -> bool:
        """Whether an epoch has ended, or the training begins, and the state there has not been evaluated."""
        begins = self.updates == 0 and not self.progress[0].metrics
        return self.iteration % self.steps_per_epoch == 0 and (begins or self.seen > 0)

    def prune(self, number: int, mask: Mask) -> None:
        """Keep a replica's weights outside a mask at zero from here on.

        Clears them and the optimizer's buffers of them; what is pruned already stays so.
        """
        self.group.prune(number, mask)

    @property
    def alive(self) -> bool:
        """Whether any replica has not diverged."""
        return any(item.diverged is None for item in self.progress)

    def _prune(self) -> None:
        """Prune the replicas that do so at this step of theirs, unless they have diverged."""
        due = [number for number, pruner in self._pruners.items() if self.iteration in pruner.steps]
        if due:
            self._check_finite(-(-self.iteration // self.steps_per_epoch))
        for number in due:
            if self.progress[number].diverged is None:
                (lane, slot), pruner = self.group.at(number), self._pruners[number]
                pruner.prune(self.iteration, {name: lane.view(lane.weights, name)[slot] for name in pruner.mask})
                self.prune(number, pruner.mask)

    def _steps(self, end: int, stop: Callable[[], bool] | None) -> bool:
        """Take the next steps within an epoch, up to iteration `end`; says whether they were stopped."""
        stopped = False

        def after(size: int) -> bool:
            nonlocal stopped
            self.seen += size
            self.updates += 1
            self.iteration += 1
            stopped = stopped or (stop is not None and stop())
            return stopped

        batch, count = self.recipe.batch_size, len(self.dataset.train_y)
        numbers = range(self.iteration, min(end, self.iteration + APART))
        sizes = [min(batch, count - number % self.steps_per_epoch * batch) for number in numbers]
        self.group.take(Course(sizes, after))
        return stopped

    def _draw(self, epoch: int) -> None:
        """Draw the order, the augmentation and the mixing of an epoch; replicas of one replicate share them."""
        self._drawn_epoch, count = epoch, len(self.dataset.train_y)
        replicates = [job.train.order for job in self.jobs]
        orders = {r: order(count, r, epoch) for r in dict.fromkeys(replicates)}
        drawn = {r: moves(self.data.augment, count, r, epoch) for r in orders}
        step = self.iteration % self.steps_per_epoch
        places = self.group.sources["train"].begin(orders, epoch, step)
        inputs = {"order": torch.stack([places[r] for r in replicates]), "rates": self._rates(epoch)}
        moved = [each for r in replicates if (each := drawn[r]) is not None]
        if moved:
            inputs["moves"] = torch.stack(moved)
        if self.recipe.mixup:
            mixed = {r: mixup_draws(count, self.recipe.batch_size, self.recipe.mixup, r, epoch) for r in orders}
            rows = zip(*(mixed[r] for r in replicates), strict=True)
            inputs["partners"], inputs["shares"] = (torch.stack(each) for each in rows)
        self.group.begin(step, **inputs)

    def _rates(self, epoch: int) -> Tensor:
        """What the optimizer needs at the steps of an epoch, [step, term, replica, 1]; see `Lane.begin`."""
        first, table = epoch * self.steps_per_epoch, []
        for iteration in range(first, first + self.steps_per_epoch):
            rates = [recipe.rate(iteration, self.steps_per_epoch) for recipe in self._recipes]
            terms = [rates]
            if self.recipe.optimizer != "sgd":
                updates = max(1, self.updates + 1 + iteration - self.iteration)  # those before now are not used
                beta1, beta2 = self.recipe.betas
                steps = [rate / (1 - beta1**updates) for rate in rates]
                terms = [steps, [math.sqrt(1 - beta2**updates)] * len(rates), rates]
            table.append(terms)
        return torch.tensor(table, dtype=self.group.dtype)[:, :, self._recipe_of, None]

    # --- what is recorded -----------------------------------------------------------------------------------

    def _check_finite(self, epoch: int) -> None:
        for progress, whole in zip(self.progress, self.group.finite(), strict=True):
            if progress.diverged is None and not whole:
                progress.diverged = epoch
                progress.metrics.append({"epoch": epoch, "diverged": True})

    def _evaluate(self, stop: Callable[[], bool] | None) -> bool:
        """Append a row of metrics; False, with nothing changed, if it was stopped."""
        epoch = self.iteration // self.steps_per_epoch
        held_out = {}
        for name, source in self.held_out.items():
            found = self.group.evaluate(source, stop)
            if found is None:
                return False
            held_out[name] = found
        loss_sum, correct_sum = (sums.tolist() for sums in self.group.sums())
        for number, (job, progress) in enumerate(zip(self.jobs, self.progress, strict=True)):
            if progress.diverged is not None:
                continue
            row: dict[str, Any] = {"epoch": epoch, "iteration": self.iteration}
            if self.seen:
                row["lr"] = job.train.recipe.rate(self.iteration - 1, self.steps_per_epoch)
                row["train_loss"] = loss_sum[number] / self.seen
                row["train_accuracy"] = correct_sum[number] / self.seen
            for name, (loss, accuracy) in held_out.items():
                row[f"{name}_loss"], row[f"{name}_accuracy"] = loss[number].item(), accuracy[number].item()
            if not all(math.isfinite(value) for value in row.values()):
                progress.diverged = epoch
                progress.metrics.append({"epoch": epoch, "diverged": True})
                continue
            progress.metrics.append(row)
            for name in held_out if self.seen else ():
                if row[f"{name}_accuracy"] > progress.best.get(name, -1.0):
                    progress.best[name] = row[f"{name}_accuracy"]
                    if f"best_{name}" in job.keep:
                        self._snapshot(number, f"best_{name}")
        for lane in self.group.lanes:
            lane.loss_sum.zero_()
            lane.correct_sum.zero_()
        self.seen = 0
        return True

    def _keep(self) -> None:
        for number, (job, progress) in enumerate(zip(self.jobs, self.progress, strict=True)):
            step = job.train.step_text(self.iteration)
            if step in job.keep and step not in progress.snapshots and progress.diverged is None:
                self._snapshot(number, step)

    def _snapshot(self, number: int, step: str) -> None:
        revived, progress = self.group.revived(number), self.progress[number]
        if revived:
            raise RuntimeError(f"pruned weights of {self.jobs[number].train!r} are not zero in {', '.join(revived)}")
        progress.snapshots[step] = self.group.state(number)
        if number in self._pruners:
            progress.masks[step] = _packed(self._pruners[number].mask)

    # --- carrying on ----------------------------------------------------------------------------------------

    def carry(self, number: int) -> Weights:
        """Return what a later part of a replica's training needs beside its state."""
        lane, slot = self.group.at(number)
        best = self.progress[number].best
        sums = [lane.loss_sum[slot].item(), best.get("val", -1.0), best.get("test", -1.0)]
        counts = [self.updates, self.seen, int(lane.correct_sum[slot].item())]
        kept = {"memory_format": torch.contiguous_format}
        mask = _packed(self._pruners[number].mask) if number in self._pruners else {}
        return {
            **{name: moment.cpu().clone(**kept) for name, moment in lane.carried(slot)},
            "sums": torch.tensor(sums, dtype=torch.float64),
            "counts": torch.tensor(counts, dtype=torch.int64),
            **{f"{_MASK}{name}": part for name, part in mask.items()},
        }

    def _resume(self, carries: Sequence[Mapping[str, Tensor]]) -> None:
        self.updates, self.seen = (int(number) for number in carries[0]["counts"][:2])
        for number, carry in enumerate(carries):
            lane, slot = self.group.at(number)
            for place in lane.places(slot):
                for name, moment in lane.carried(place):
                    moment.copy_(carry[name])
            lane.loss_sum[slot], lane.correct_sum[slot] = carry["sums"][0], carry["counts"][2]
            best = {"val": carry["sums"][1].item(), "test": carry["sums"][2].item()}
            self.progress[number].best = {name: value for name, value in best.items() if value >= 0}

    def checkpoint(self) -> tuple[Weights, dict[str, Any]]:
        """Return all that is needed to continue: tensors by name, and plain data.

        Returns
        -------
        tensors : dict of str to Tensor
            States, carried buffers, and snapshots with their masks, of all replicas.
        plain : dict
            Iteration and what the replicas have yielded.
        """
        tensors: Weights = {}
        for number, progress in enumerate(self.progress):
            parts = {"state": self.group.state(number), "carry": self.carry(number)}
            parts |= {f"snapshot:{step}": state for step, state in progress.snapshots.items()}
            parts |= {f"mask:{step}": mask for step, mask in progress.masks.items()}
            for part, items in parts.items():
                tensors |= {f"{number}/{part}/{name}": tensor for name, tensor in items.items()}
        rows = [{"metrics": p.metrics, "diverged": p.diverged} for p in self.progress]
        return tensors, {"iteration": self.iteration, "progress": rows}

    @classmethod
    def restore(
        cls,
        jobs: Sequence[Job],
        dataset: Dataset,
        tensors: Mapping[str, Tensor],
        plain: Mapping[str, Any],
        device: str | torch.device = "cpu",
        form: str | None = None,
        team: Team | None = None,
    ) -> "Training":
        """Rebuild a group from what `checkpoint` returned; `jobs` need no states of their own."""
        parts: list[dict[str, Weights]] = [{} for _ in jobs]
        for path, tensor in tensors.items():
            number, part, name = path.split("/", 2)
            parts[int(number)].setdefault(part, {})[name] = tensor
        again = [
            Job(job.train, part["state"], job.mask, job.keep, part["carry"])
            for job, part in zip(jobs, parts, strict=True)
        ]
        training = cls(again, dataset, device, plain["iteration"], form, team)
        for progress, row, items in zip(training.progress, plain["progress"], parts, strict=True):
            progress.metrics, progress.diverged = list(row["metrics"]), row["diverged"]
            for name, item in items.items():
                kind, _, step = name.partition(":")
                if step:
                    (progress.masks if kind == "mask" else progress.snapshots)[step] = item
        return training


def _packed(mask: Mask) -> Weights:
    return {name: torch.from_numpy(array) for name, array in masks.pack(mask).items()}


def _unpacked(carry: Mapping[str, Tensor]) -> Mask:
    packed = {name.removeprefix(_MASK): part.numpy() for name, part in carry.items() if name.startswith(_MASK)}
    return masks.unpack(packed)
