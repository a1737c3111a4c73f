"""Lanes: steps captured in graphs, where what is captured is not computed, and the rows of parameters."""

import threading
import time
from contextlib import contextmanager, nullcontext

import helpers
import pytest
import torch

from lthlab import replicas
from lthlab.engine import Training
from lthlab.lanes import Lane
from lthlab.parts import Data

DATA = Data(name="digits", train_size=150, val_size=30, augment="crop_flip")


class Stream:
    """A stream that only tells for whom it waited."""

    def __init__(self, device=None):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)


class Graph:
    """A captured step: the same step again."""

    def __init__(self):
        self.again = None

    def pool(self):
        return self

    def replay(self):
        self.again()


@pytest.fixture
def captured(monkeypatch):
    """Lanes of the CPU take steps as on a GPU: returns the sizes of the steps that are captured, by lane."""
    sizes, current, computed = {}, Stream(), Lane._step

    @contextmanager
    def graph(target, pool, stream, mode):
        lane = next(lane for lane in sizes if lane.stream is stream)
        assert (pool is None) == (not lane._graphs)
        state = [lane.weights, lane.gradient, *lane.moments, lane.loss_sum, lane.correct_sum, lane._place]
        state += lane.network.buffers()
        before = [tensor.clone() for tensor in state]
        yield
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(old)
        size = lane.last
        target.again = lambda: computed(lane, size)
        sizes[lane].append(size)

    def step(self, size):
        self.last = size
        computed(self, size)

    begin = Lane.__init__

    def with_stream(self, *arguments):
        begin(self, *arguments)
        self.stream = Stream()
        sizes[self] = []

    monkeypatch.setattr(Lane, "__init__", with_stream)
    monkeypatch.setattr(Lane, "_step", step)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    return sizes


def jobs(net, **fields):
    values = [helpers.train(net, DATA, r, epochs=4, lr=0.01 * (1 + r), **fields) for r in range(3)]
    masks = [helpers.half_mask(net, DATA, 0), None, helpers.half_mask(net, DATA, 2)]
    return [helpers.job(value, mask, {"1ep", "7it", "4ep"}) for value, mask in zip(values, masks, strict=True)]


def outcome(training):
    states = [(training.group.state(number), training.carry(number)) for number in range(3)]
    snapshots = [item for progress in training.progress for item in progress.snapshots.values()]
    return [*(part for pair in states for part in pair), *snapshots], [p.metrics for p in training.progress]


@pytest.mark.parametrize(
    "fields",
    [{}, {"optimizer": "adam"}, {"optimizer": "adamw"}, {"nesterov": True, "mixup": 0.4, "label_smoothing": 0.1}],
    ids=str,
)
@pytest.mark.parametrize("form", ["stacked", "sequential"])
@pytest.mark.parametrize("net", [helpers.LENET, helpers.narrow(4)], ids=["lenet", "resnet"])
def test_captured_steps_are_those_that_are_computed_at_once(net, form, fields, request):
    dataset = helpers.load(DATA)
    expected, metrics = outcome(helpers.run(jobs(net, **fields), dataset, form=form))
    sizes = request.getfixturevalue("captured")
    training = helpers.run(jobs(net, **fields), dataset, form=form)
    found, others = outcome(training)
    assert metrics == others and all(map(helpers.equal, expected, found))
    assert {tuple(found) for found in sizes.values()} == {(64, 150 - 2 * 64)}
    assert len(sizes) == len(training.group.lanes)


@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize("net", [helpers.LENET, helpers.narrow(4)], ids=["lenet", "resnet"])
def test_captured_steps_find_the_images_that_are_streamed(net, start, request):
    data = Data(name="digits", train_size=150, augment="resized_crop_flip")
    values = [helpers.job(helpers.train(net, data, r, epochs=4)) for r in range(3)]
    dataset, found = helpers.load(data), []
    for fixture in (None, "captured"):
        sizes = request.getfixturevalue(fixture) if fixture else None
        training = Training(values, dataset, form="sequential")
        training.advance(start)
        training = Training.restore(values, dataset, *training.checkpoint(), form="sequential")
        while training.iteration < 12:
            training.advance(12)
        found.append(outcome(training))
    assert found[0][1] == found[1][1] and all(map(helpers.equal, found[0][0], found[1][0]))
    assert sum(map(len, sizes.values())) >= 3


def test_a_group_that_begins_within_an_epoch_captures_its_steps_alike(captured):
    dataset, net = helpers.load(DATA), helpers.LENET
    training = Training(jobs(net), dataset)
    training.advance(5)
    tensors, plain = training.checkpoint()
    again = Training.restore(jobs(net), dataset, tensors, plain)
    for group in (training, again):
        while group.iteration < 12:
            group.advance(12)
    assert all(map(helpers.equal, outcome(training)[0], outcome(again)[0]))


def test_a_new_mask_is_captured_anew(captured):
    dataset, net = helpers.load(DATA), helpers.LENET
    value = helpers.train(net, DATA, 0, epochs=4)
    training = Training([helpers.job(value)], dataset)
    training.advance(3)
    training.advance(6)
    assert captured[training.group.lanes[0]] == [64]
    training.prune(0, helpers.half_mask(net, DATA, 1))
    training.advance(9)
    assert captured[training.group.lanes[0]] == [64, 64, 22]
    assert not training.group.revived(0)


def test_lanes_wait_for_what_was_before_and_are_waited_for(captured):
    training = Training(jobs(helpers.narrow(4)), helpers.load(DATA), form="sequential")
    current = torch.cuda.current_stream(None)
    training.advance(0)
    before = len(current.waited)
    training.advance(3)
    assert current.waited[before : before + 3] == [lane.stream for lane in training.group.lanes]
    assert all(lane.stream.waited and set(lane.stream.waited) == {current} for lane in training.group.lanes)


def test_lanes_are_waited_for_after_an_interrupt_too(captured):
    training = Training(jobs(helpers.narrow(4)), helpers.load(DATA), form="sequential")
    training.group.lanes[1].step = interrupt
    waited = torch.cuda.current_stream(None).waited
    training.advance(0)
    before = len(waited)
    with pytest.raises(KeyboardInterrupt):
        training.advance(3)
    assert waited[before:] == [lane.stream for lane in training.group.lanes]


def interrupt(size):
    raise KeyboardInterrupt


def test_no_lane_is_at_work_after_an_error_in_another():
    worked, before = [], torch.get_num_threads()
    with replicas.threads(3):
        training = Training(jobs(helpers.LENET), helpers.load(DATA))
        first, *others = training.group.lanes
        first.step = interrupt
        for lane in others:
            lane.step = lambda size: worked.append(time.sleep(0.05))
        with pytest.raises(KeyboardInterrupt):
            training.advance(3)
        assert len(others) == 2 and len(worked) == 2 * 3
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before


class Counting:
    """A lane that only counts its steps, and does something in each."""

    def __init__(self, act):
        self.act, self.taken = act, 0

    def step(self, size):
        self.taken += 1
        self.act(self.taken)


def walk(course, first, second):
    """Let a lane that leads and another take the steps of a course, each in a thread of its own."""
    other = threading.Thread(target=course.walk, args=([second], False))
    other.start()
    course.walk([first], leads=True)
    other.join()
    assert first.taken == second.taken


def test_lanes_do_not_wait_for_each_other():
    event = threading.Event()
    first, second = Counting(lambda taken: taken == 9 and event.set()), Counting(lambda taken: event.wait(10))
    course = replicas.Course([1] * 9, lambda size: False)
    walk(course, first, second)
    assert event.is_set() and first.taken == 9


def test_lanes_that_are_behind_catch_up_after_a_stop():
    event, asked = threading.Event(), []
    course = replicas.Course([1, 2, 3, 4, 5], lambda size: asked.append(size) or len(asked) == 1)

    def ahead(taken):
        if taken == 3:
            event.set()
            while course._end == 5:
                time.sleep(0.001)

    walk(course, Counting(lambda taken: event.wait(10)), Counting(ahead))
    assert asked == [1, 2, 3]


def test_threads_end_with_their_group():
    before = set(threading.enumerate())
    with replicas.threads(3):
        training = helpers.run(jobs(helpers.LENET), helpers.load(DATA))
        own = set(threading.enumerate()) - before
        assert len(own) == 2
        del training
    for thread in own:
        thread.join(5)
        assert not thread.is_alive()


# --- how a group is cut ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "form", "batch", "count", "threads"),
    [
        (helpers.LENET, "stacked", 64, 1, 1),
        (helpers.LENET, "sequential", 64, 2, 1),
        (helpers.LENET, "stacked", 1000, 1, None),
        (helpers.LENET, "stacked", 1000, 2, 1),
        (helpers.narrow(4), "stacked", 64, 1, 1),
        (helpers.narrow(4), "sequential", 64, 2, None),
    ],
)
def test_threads_within_a_lane(net, form, batch, count, threads):
    whole = Data(name="digits")
    values = [helpers.train(net, whole, r, batch_size=batch) for r in range(count)]
    states = [helpers.job(value).state for value in values]
    with replicas.threads(2):
        group = replicas.Group(values, states, helpers.load(whole), torch.device("cpu"), form)
    assert group.thread_count == threads


@pytest.mark.parametrize(
    ("net", "form", "threads", "count", "sizes"),
    [
        (helpers.LENET, "stacked", 2, 5, [3, 2]),
        (helpers.LENET, "stacked", 2, 1, [1]),
        (helpers.LENET, "stacked", 16, 2, [1, 1]),
        (helpers.narrow(4), "stacked", 1, 5, [5]),
        (helpers.narrow(4), "stacked", 2, 5, [3, 2]),
        (helpers.narrow(4), "stacked", 2, 3, [2, 1]),
        (helpers.narrow(4), "stacked", 2, 2, [2]),
        (helpers.narrow(4), "stacked", 2, 1, [1]),
        (helpers.narrow(4), "stacked", 16, 24, [6, 6, 6, 6]),
        (helpers.narrow(4), "sequential", 2, 3, [1, 1, 1]),
        (helpers.LENET, "sequential", 2, 2, [1, 1]),
    ],
)
def test_lanes_of_a_group(net, form, threads, count, sizes):
    values = [helpers.train(net, DATA, r) for r in range(count)]
    states = [helpers.job(value).state for value in values]
    with replicas.threads(threads):
        group = replicas.Group(values, states, helpers.load(DATA), torch.device("cpu"), form)
    assert [lane.replicas for lane in group.lanes] == sizes
    twins = form == "stacked" and net != helpers.LENET
    assert [lane.slots for lane in group.lanes] == [max(size, 2 if twins else 1) for size in sizes]
    for number, state in enumerate(states):
        assert helpers.equal(group.state(number), state)


def test_every_parameter_of_every_replica_begins_at_a_whole_line_of_the_cache():
    values = [helpers.train(helpers.narrow(3), DATA, r) for r in range(3)]
    group = replicas.Group(values, [helpers.job(v).state for v in values], helpers.load(DATA), torch.device("cpu"))
    (lane,) = group.lanes
    for name, parameter in lane.network.named_parameters():
        first = lane.view(lane.weights, name)
        assert parameter.data_ptr() == first.data_ptr()
        assert all((first[slot].data_ptr() - lane.weights.data_ptr()) % 64 == 0 for slot in range(3))
