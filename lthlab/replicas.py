"""How a group of replicas of one shape executes on a device.

Two forms give the same numbers. *Stacked* runs replicas in one set of kernels, and pays where a single network leaves
the machine idle. *Sequential* has a set of kernels for each replica: one after the other on a CPU, on streams of their
own on a GPU. Which is used follows from network, image size and device alone.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Barrier, Lock
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lthlab import nets, sizes
from lthlab.data import Dataset
from lthlab.lanes import DTYPES, Lane, Source, evaluation_batch
from lthlab.layers import Conv2d, Weights
from lthlab.masks import Mask
from lthlab.parts import Data, Net
from lthlab.streams import sources_of
from lthlab.values import Narrow, Train, plain

_LITTLE = 1 << 24  # products in a batch of a fully connected network, for which a second thread does not pay
_MOST_LANES = 4  # threads of one interpreter that still do not wait for each other much
APART = 16
"""Steps of a course at the most: by fewer than these, one lane may be ahead of another."""
_T = TypeVar("_T")


def form_of(net: Net | Narrow, data: Data, device: torch.device | str = "cpu") -> str:
    """Choose how a group executes.

    On CPUs small convolutions are stacked: those of images up to 16×16 pixels whose maps all have a multiple of four
    places, with up to 3 · 10⁷ products for an image. With odd numbers of places, such as one, the bits of a replica may
    depend on how many there are; depthwise convolutions of such networks end with a map of one place.

    Returns
    -------
    str
        'stacked' for fully connected networks, and on CPUs for small convolutions too; else 'sequential'. Where
        algorithms are to be deterministic, a GPU computes every replica by itself.
    """
    maps = _maps(net, data)
    if torch.device(device).type != "cpu":
        return "sequential" if maps or torch.are_deterministic_algorithms_enabled() else "stacked"
    whole, widths = plain(net), nets.widths(net, data)
    small = sizes.stackable(data.facts.shape, maps) if widths is None else sizes.stacked(whole, data, widths)
    return "stacked" if small or not maps else "sequential"


@functools.cache
def _maps(net: Net | Narrow, data: Data) -> list[int]:
    """Numbers of places of the maps that a network's convolutions give."""
    network, found = nets.build(net, data, device="meta"), list[int]()
    for _, layer in network.layers():
        if isinstance(layer, Conv2d):
            layer.register_forward_hook(lambda layer, images, maps: found.append(maps.shape[2:].numel()))
    network(torch.zeros(2, *data.facts.shape, device="meta"))
    return found


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


def single_threads(count: int) -> ThreadPoolExecutor:
    """Start threads that compute on one core each; what torch counts in one does not reach other threads."""
    pool, together = ThreadPoolExecutor(count, initializer=_alone), Barrier(count + 1)
    with threads(1):
        for _ in range(count):
            pool.submit(together.wait)
        together.wait()
    return pool


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

    def walk(self, lanes: Sequence["Lane | Group"], leads: bool) -> None:
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
    sources : dict of str to Source
        Images of 'train', 'val' and 'test', as far as there are any.
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
        self.sources = sources_of(dataset, trains, self.dtype, device)
        source = self.sources["train"]
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
        self._pool = single_threads(len(self.lanes) - 1) if several else None

    def _sizes(self, least: int) -> list[int]:
        """Cut the replicas into lanes; of a stacked group on a CPU, into lanes of at least so many slots."""
        if self.form in ("sequential", "parallel"):
            return [1] * self.replicas
        if self.device.type != "cpu":
            return [self.replicas]
        lanes = min(torch.get_num_threads(), _MOST_LANES, -(-self.replicas // least))
        return [self.replicas // lanes + (number < self.replicas % lanes) for number in range(lanes)]

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

    def step(self, size: int) -> None:
        """Train every replica on its next `size` images, within `running`."""
        self.sources["train"].feed(size, [lane.stream for lane in self.lanes if lane.stream is not None])
        self._each(lambda lane: lane.step(size))

    def take(self, course: Course) -> None:
        """Train every replica on its next batches, within `running`.

        Lanes with threads meet only at the end, unless images are streamed: the next ones replace those of a step.
        """
        if self._pool is None or self.sources["train"].given:
            course.walk([self], leads=True)
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
        self, source: Source, stop: Callable[[], bool] | None = None, batch: int | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Compute mean loss and accuracy of every replica in evaluation mode.

        Parameters
        ----------
        source : Source
            Images and labels.
        stop : callable, optional
            Asked between batches: whether to give up.
        batch : int, optional
            Number of images at a time, by default as of `lthlab.lanes.evaluation_batch`.

        Returns
        -------
        loss, accuracy : Tensor
            [replica], fp64; accuracy in [0, 1]. None if it was stopped.
        """
        loss = torch.zeros(self.replicas, dtype=torch.float64, device=self.device)
        correct = torch.zeros(self.replicas, dtype=torch.int64, device=self.device)
        count = 0
        for images, labels in source.batches(batch or evaluation_batch(source.images.shape[1:])):
            if count and stop is not None and stop():
                return None
            with self.running():
                found = self._each(operator.methodcaller("evaluate", images, labels))
            loss += torch.cat([losses for losses, _ in found]).double() * len(labels)
            correct += torch.cat([right for _, right in found])
            count += len(labels)
        return loss.cpu() / count, correct.cpu().double() / count

    def state(self, replica: int) -> Weights:
        """Copy the state of one replica, on the CPU, with ordinary names and shapes."""
        lane, slot = self.at(replica)
        return lane.state(slot)


def _alone() -> None:
    torch.set_num_threads(1)
