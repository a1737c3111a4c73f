"""The overlap of the largest weights of two networks of the size of ResNet-50."""

import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.catalogue import CORRELATED
from benchmarks.record import Row, machine, row
from benchmarks.rounds import interleave
from lthlab import devices, nets
from lthlab.masks import Mask
from lthlab.parts import Net
from lthlab.weights import correlation_indicator

WORST = "correlation_25m_seconds"
SETTINGS = {"dense": (0.1, 1.0), "masked": (0.1, 0.168), "pruned_once": (0.1, 0.8), "half": (0.5, 1.0)}
"""p and the share of the weights that is left."""


def weights(quick: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Make weights of every layer, and others that are correlated with them."""
    generator = torch.Generator().manual_seed(0)
    shapes = nets.prunable(Net(name="resnet8" if quick else "resnet50"), "imagenet", "all")
    theta = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    noise = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return theta, {name: weight + noise[name] for name, weight in theta.items()}


def measure(chosen: list[str], quick: bool = False) -> Iterator[Row]:
    """Yield the rows of this benchmark that are chosen."""
    names = {case: f"correlation_25m_{case}_seconds" for case in CORRELATED}
    wanted = [case for case in CORRELATED if WORST in chosen or names[case] in chosen]
    pair = weights(quick)
    generator = torch.Generator().manual_seed(1)

    def left(share: float) -> Mask:
        return {name: torch.rand(weight.shape, generator=generator) < share for name, weight in pair[0].items()}

    shares = {case: None if SETTINGS[case][1] == 1 else left(SETTINGS[case][1]) for case in wanted}

    def seconds(case: str) -> float:
        began = time.perf_counter()
        correlation_indicator(*pair, SETTINGS[case][0], shares[case])
        return time.perf_counter() - began

    with devices.settings(torch.device("cpu")):
        sides = {case: lambda case=case: seconds(case) for case in wanted}
        measured = interleave(sides, 2 if quick else 9)
    place = machine(torch.get_num_threads())
    for case in wanted:
        if names[case] in chosen:
            yield row(names[case], "s", measured[case], place)
    if WORST in chosen:
        yield row(WORST, "s", max(measured.values(), key=statistics.median), place)
