"""Loss surfaces of ResNet-20 on digits, whole."""

import time
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.record import Row, machine, row
from benchmarks.rounds import interleave
from lthlab import data, devices, landscape, nets
from lthlab.parts import Data, Net
from lthlab.scores import Scorer, images_of

NET, DIGITS, IMAGES = Net(name="resnet20"), Data(name="digits"), 500


def measure(chosen: list[str], quick: bool = False) -> Iterator[Row]:
    """Yield the rows of this benchmark that are chosen."""
    dataset = data.load(DIGITS, None)
    images = images_of(dataset, DIGITS, "train", IMAGES)
    plane = landscape.random_plane(nets.fresh(NET, DIGITS, 0), None, 0)

    def seconds(scorer: Scorer, points: int) -> float:
        began = time.perf_counter()
        landscape.surface(plane, landscape.square(1.0, points), range(points**2), scorer)
        return time.perf_counter() - began

    with devices.settings(torch.device("cpu")):
        sides = {}
        for name in chosen:
            _, points, batchnorm, _ = name.split("_")
            scorer = Scorer(NET, DIGITS, dataset, *images, batchnorm)
            sides[name] = partial(seconds, scorer, 3 if quick else int(points))
        measured = interleave(sides, 2 if quick else 3)
    for name, values in measured.items():
        yield row(name, "s", values, machine(torch.get_num_threads()))
