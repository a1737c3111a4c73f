"""One replica by the engine, against a bare loop over tensors in the same process."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks import ours, plain
from benchmarks.record import Row, machine, ratios, row
from benchmarks.rounds import interleave
from lthlab import devices
from lthlab.parts import Net
from lthlab.replicas import threads


def measure(chosen: list[str], quick: bool = False) -> Iterator[Row]:
    """Yield the rows of this benchmark that are chosen."""
    rounds = 2 if quick else 9
    for name in chosen:
        lenet = "lenet" in name
        if lenet:
            batch, steps = 64, 21 if quick else 315  # whole epochs
            described, dataset = ours.digits()
        else:
            batch, steps = (16, 1) if quick else (128, 10)
            described = ours.describe("synthetic_32")
            dataset = ours.synthetic(described)
        dataset = replace(dataset, test_x=dataset.test_x[:0], test_y=dataset.test_y[:0])
        net = Net(name="lenet_300_100" if lenet else "resnet20")
        count = 1 if name.endswith("one_thread") else torch.get_num_threads()
        with devices.settings(torch.device("cpu")), threads(count):
            training = ours.training(net, described, dataset, range(1), batch)
            loop = plain.bare_loop(net, described.facts, dataset, batch)
            sides = {"bare": partial(plain.seconds, loop, steps), "engine": partial(ours.seconds, training, steps)}
            measured = interleave(sides, rounds)
        yield row(name, "times", ratios(measured["bare"], measured["engine"]), machine(count))
