"""Groups of replicas, against the same trainings one by one."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from benchmarks import ours, plain
from benchmarks.record import Row, machine, ratios, row
from benchmarks.rounds import interleave
from lthlab import devices
from lthlab.parts import Net

_LENET, _RESNET20, _RESNET8 = (Net(name=name) for name in ("lenet_300_100", "resnet20", "resnet8"))
CONFIGURATIONS = {
    "lenet_group16_vs_sequential": (_LENET, "digits", 16, 105),
    "lenet_group16_vs_plain_loop": (_LENET, "digits", 16, 105),
    "resnet20_digits_group8_vs_sequential": (_RESNET20, "digits", 8, 10),
    "resnet8_width8_digits_group9_vs_sequential": (Net(name="resnet8", width=8), "digits", 9, 21),
    "resnet8_16_group8_vs_sequential": (_RESNET8, "synthetic_16", 8, 4),
    "resnet20_32_group2_vs_sequential": (_RESNET20, "synthetic_32", 2, 5),
    "resnet18_width8_16_group8_vs_sequential": (Net(name="resnet18", width=8), "synthetic_16", 8, 4),
    "resnet18_32_group2_vs_sequential": (Net(name="resnet18"), "synthetic_32", 2, 1),
    "vgg16_16_group2_vs_sequential": (Net(name="vgg16"), "synthetic_16", 2, 2),
    "vgg16_32_group2_vs_sequential": (Net(name="vgg16"), "synthetic_32", 2, 1),
    "mobilenet_v1_16_group2_vs_sequential": (Net(name="mobilenet_v1"), "synthetic_16", 2, 4),
    "mobilenet_v1_32_group2_vs_sequential": (Net(name="mobilenet_v1"), "synthetic_32", 2, 2),
    "conv4_digits_group8_vs_sequential": (Net(name="conv4"), "digits", 8, 5),
    "conv6_16_group4_vs_sequential": (Net(name="conv6"), "synthetic_16", 4, 3),
    "lenet_28_group16_vs_sequential": (_LENET, "synthetic_28", 16, 20),
    "lenet_32_group16_vs_sequential": (_LENET, "synthetic_32", 16, 10),
}
"""Network, data, number of replicas, and steps of a turn, by figure."""
BATCH = 64


def measure(chosen: list[str], quick: bool = False) -> Iterator[Row]:
    """Yield the rows of this benchmark that are chosen."""
    for name in chosen:
        net, data, replicas, steps = CONFIGURATIONS[name]
        replicas, steps, rounds = (2, 1, 2) if quick else (replicas, steps, 7)
        if data == "digits":
            described, dataset = ours.digits()
        else:
            described = ours.describe(data, train_size=None if data == "synthetic_32" else 20 * BATCH)
            dataset = ours.synthetic(described)
        with devices.settings(torch.device("cpu")):
            group = ours.training(net, described, dataset, range(replicas), BATCH)
            alone: list[Callable[[], float]]
            if name.endswith("plain_loop"):
                loops = [plain.bare_loop(net, described.facts, dataset, BATCH) for _ in range(replicas)]
                alone = [partial(plain.seconds, loop, steps) for loop in loops]
            else:
                ones = (range(number, number + 1) for number in range(replicas))
                trainings = [ours.training(net, described, dataset, one, BATCH, form="sequential") for one in ones]
                alone = [partial(ours.seconds, training, steps) for training in trainings]
            sides = {"one by one": partial(_one_by_one, alone), "together": partial(ours.seconds, group, steps)}
            measured = interleave(sides, rounds)
        yield row(name, "times", ratios(measured["one by one"], measured["together"]), machine(torch.get_num_threads()))


def _one_by_one(alone: Sequence[Callable[[], float]]) -> float:
    return sum(act() for act in alone)
