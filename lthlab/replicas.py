"""How a group of replicas of one shape executes on a device.

Two forms give the same numbers. *Stacked* runs replicas in one set of kernels, and pays where a single network leaves
the machine idle. *Sequential* has a set of kernels for each replica: one after the other on a CPU, on streams of their
own on a GPU. Which is used follows from network, image size and device alone.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Barrier, Lock
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lthlab import nets
from lthlab.data import Dataset
from lthlab.lanes import DTYPES, Lane, Source
from lthlab.masks import Mask
from lthlab.nets import Weights
from lthlab.parts import Data, Net
from lthlab.values import Narrow, Train

_LITTLE = 1 << 24  # products in a batch of a fully connected network, for which a second thread does not pay
_MOST_LANES = 4  # threads of one interpreter that still do not wait for each other much
APART = 16
"""Steps of a course at the most: by fewer than these, one lane may be ahead of another."""
_T = TypeVar("_T")


def form_of(net: Net | Narrow, data: Data, device: torch.device | str = "cpu") -> str:
    """Choose how a group executes.

    Returns
    -------
    str
        'stacked' for fully connected networks, and on CPUs for small images too; else 'sequential'. Where
        algorithms are to be deterministic, a GPU computes every replica by itself.
    """
    on_cpu = torch.device(device).type == "cpu"
    if not nets.convolutional(nets.build(net, data)):
        return "stacked" if on_cpu or not torch.are_deterministic_algorithms_enabled() else "sequential"
    return "stacked" if on_cpu and max(data.facts.shape[1:]) <= 16 else "sequential"


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use `count` threads within; None leaves the number as it is."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Team(Protocol):
    """Processes that train one replica together, such as `lthlab.parallel.Team`."""

    def lane(self, train: Train, state: Weights, source: Source) -> Lane:
        """Make a lane whose steps they share."""


class Course:
    """The next steps of a group, which lanes take without waiting for each other.

    Parameters
    ----------
    sizes : sequence of int
        Images of each step.
    after : callable
        Called with its size after every step of the lanes that lead: whether to end the course. Lanes that are behind
        then still take the steps that another has begun.
    """

    def __init__(self, sizes: Sequence[int], after: Callable[[int], bool]) -> None:
        self.sizes, self.after = sizes, after
        self._begun, self._end, self._lock = 0, len(sizes), Lock()

    def walk(self, lanes: Sequence[Lane], leads: bool) -> None:
        """Take all steps with some of the lanes; one walk of a course leads."""
        for number, size in enumerate(self.sizes):
            with self._lock:
                if number == self._end:
                    return
                self._begun = max(self._begun, number + 1)
            for lane in lanes:
                lane.step(size)
            if leads and self.after(size):
                with self._lock:
                    self._end = self._begun


class Group:
    """Replicas of one network that train together, in lanes.

    A stacked group on a CPU has a lane for each thread, up to four; one of convolutions has two replicas at least in
    each: a grouped convolution splits sums among threads by the number of groups, and one replica alone would be
    computed by other kernels, so bits would depend on the group. On a GPU a stacked group is one lane. A sequential
    group has a lane for each replica; on a CPU they take their steps one after the other. A lane that computes alone
    uses all threads, unless it is of a small fully connected network, which is faster on one.

    Parameters
    ----------
    trains : sequence of Train
        What the replicas train, of one shape.
    states : sequence of dict of str to Tensor
        Initial state of each replica, ordinary shapes.
    dataset : Dataset
        Images and labels.
    device : torch.device
        Where the replicas live.
    form : {'stacked', 'sequential'}, optional
        Override of `form_of`.
    team : Team, optional
        Processes that share the steps of a single replica; its form is 'parallel'.

    Attributes
    ----------
    lanes : list of Lane
        In the order of the replicas.
    dtype : torch.dtype
        Of weights and images.
    """

    def __init__(
        self,
        trains: Sequence[Train],
        states: Sequence[Weights],
        dataset: Dataset,
        device: torch.device,
        form: str | None = None,
        team: Team | None = None,
    ) -> None:
        first = trains[0]
        if team is not None and len(trains) > 1:
            raise ValueError(f"{len(trains)} replicas for a team; allowed: 1")
        self.form = "parallel" if team else form or form_of(first.net, first.data, device)
        self.replicas, self.device, self.dtype = len(trains), device, DTYPES[first.recipe.precision]
        network = nets.build(first.net, first.data, device="meta")
        convolutional = nets.convolutional(network)
        grouped = self.form == "stacked" and convolutional
        source = Source(dataset, first.data.augment, self.dtype, device)
        self.lanes: list[Lane] = []
        self._where: list[tuple[int, int]] = []
        begin = 0
        for size in self._sizes(2 if grouped else 1):
            part = slice(begin, begin + size)
            self._where += [(len(self.lanes), slot) for slot in range(size)]
            slots = max(size, 2) if grouped else size
            if team is None:
                self.lanes.append(Lane(trains[part], states[part], source, device, slots))
            else:
                self.lanes.append(team.lane(trains[0], states[0], source))
            begin += size
        several = self.form == "stacked" and len(self.lanes) > 1
        work = sum(parameter.numel() for parameter in network.parameters()) * first.recipe.batch_size
        single = several or grouped or (not convolutional and work <= _LITTLE)
        self.thread_count = 1 if single and device.type == "cpu" and team is None else None
        self._pool = self._threads_of_lanes() if several else None

    def _sizes(self, least: int) -> list[int]:
        """Cut the replicas into lanes; of a stacked group on a CPU, into lanes of at least so many slots."""
        if self.form in ("sequential", "parallel"):
            return [1] * self.replicas
        if self.device.type != "cpu":
            return [self.replicas]
        lanes = min(torch.get_num_threads(), _MOST_LANES, -(-self.replicas // least))
        return [self.replicas // lanes + (number < self.replicas % lanes) for number in range(lanes)]

    def _threads_of_lanes(self) -> ThreadPoolExecutor:
        """Start a thread for each lane but the first; what torch counts in one does not reach other threads."""
        count = len(self.lanes) - 1
        pool, together = ThreadPoolExecutor(count, initializer=_alone), Barrier(count + 1)
        with threads(1):
            for _ in range(count):
                pool.submit(together.wait)
            together.wait()
        return pool

    def _each(self, act: Callable[[Lane], _T]) -> list[_T]:
        """Do something with every lane, at once where that is of use; no lane is at work any more after an error."""
        if self._pool is None:
            return [act(lane) for lane in self.lanes]
        others = [self._pool.submit(act, lane) for lane in self.lanes[1:]]
        try:
            first = act(self.lanes[0])
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]

    def at(self, replica: int) -> tuple[Lane, int]:
        """Find the lane of a replica and its slot there."""
        lane, slot = self._where[replica]
        return self.lanes[lane], slot

    @contextmanager
    def running(self) -> Iterator[None]:
        """Set the number of threads within; on a GPU, put the work of the lanes between what is before and after."""
        with threads(self.thread_count):  # between its kernels, more threads cost more than they save
            self._order(lambda own, current: own.wait_stream(current))
            try:
                yield
            finally:  # after an interrupt too: memory that is let go of is used again while a lane still writes to it
                self._order(lambda own, current: current.wait_stream(own))
            for lane in self.lanes:
                lane.settle()

    def _order(self, act: Callable[[torch.cuda.Stream, torch.cuda.Stream], None]) -> None:
        for lane in self.lanes:
            if lane.stream is not None:
                act(lane.stream, torch.cuda.current_stream(self.device))

    def begin(self, step: int, **inputs: Tensor) -> None:
        """Prepare the steps of an epoch, as `Lane.begin`, with a row of inputs for each replica."""
        at = 0
        for lane in self.lanes:
            rows = slice(at, at + lane.replicas) if lane.slots == lane.replicas else [at] * lane.slots
            lane.begin(step, **{name: t[:, :, rows] if name == "rates" else t[rows] for name, t in inputs.items()})
            at += lane.replicas

    def take(self, course: Course) -> None:
        """Train every replica on its next batches, within `running`; lanes with threads meet only at the end."""
        if self._pool is None:
            course.walk(self.lanes, leads=True)
        else:
            self._each(lambda lane: course.walk([lane], leads=lane is self.lanes[0]))

    def prune(self, replica: int, mask: Mask) -> None:
        """Clear a replica's weights outside a mask, and the optimizer's buffers of them, and keep them so."""
        lane, slot = self.at(replica)
        lane.prune(slot, mask)

    def revived(self, replica: int) -> list[str]:
        """Name the parameters of a replica of which a pruned weight is not zero."""
        lane, slot = self.at(replica)
        return lane.revived(slot)

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return the sums of loss and of correctly classified images, [replica]."""
        pairs = [(lane.loss_sum[: lane.replicas], lane.correct_sum[: lane.replicas]) for lane in self.lanes]
        return torch.cat([loss for loss, _ in pairs]), torch.cat([correct for _, correct in pairs])

    def finite(self) -> list[bool]:
        """Tell of every replica whether its loss and weights are finite."""
        found = [lane.loss_sum.isfinite() & lane.weights.isfinite().all(1) for lane in self.lanes]
        return torch.cat([f[: lane.replicas] for f, lane in zip(found, self.lanes, strict=True)]).tolist()

    def evaluate(
        self, images: Tensor, labels: Tensor, stop: Callable[[], bool] | None = None, batch: int = 1000
    ) -> tuple[Tensor, Tensor] | None:
        """Compute mean loss and accuracy of every replica in evaluation mode.

        Parameters
        ----------
        images : Tensor
            [image, channel, y, x].
        labels : Tensor
            [image], int64.
        stop : callable, optional
            Asked between batches: whether to give up.
        batch : int, optional
            Number of images at a time.

        Returns
        -------
        loss, accuracy : Tensor
            [replica], fp64; accuracy in [0, 1]. None if it was stopped.
        """
        loss = torch.zeros(self.replicas, dtype=torch.float64, device=self.device)
        correct = torch.zeros(self.replicas, dtype=torch.int64, device=self.device)
        for first in range(0, len(labels), batch):
            if first and stop is not None and stop():
                return None
            part, truth = images[first : first + batch], labels[first : first + batch]
            with self.running():
                found = self._each(operator.methodcaller("evaluate", part, truth))
            loss += torch.cat([losses for losses, _ in found]).double() * len(truth)
            correct += torch.cat([right for _, right in found])
        return loss.cpu() / len(labels), correct.cpu().double() / len(labels)

    def state(self, replica: int) -> Weights:
        """Copy the state of one replica, on the CPU, with ordinary names and shapes."""
        lane, slot = self.at(replica)
        return lane.state(slot)


def _alone() -> None:
    torch.set_num_threads(1)
