"""Masks of exact counts, whatever the share of zeros or ties."""

import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.catalogue import CASES, SIZES
from benchmarks.record import Row, machine, row
from benchmarks.rounds import interleave
from lthlab import devices, masks

LAYERS = 20
RATE, ZEROS = 0.2, 0.8


def weights(case: str, count: int) -> tuple[dict[str, Tensor], masks.Mask | None, int]:
    """Make weights, the mask before, and the number to be pruned in all."""
    generator = torch.Generator().manual_seed(0)
    layers = {f"layer{number}": torch.randn(count // LAYERS, generator=generator) for number in range(LAYERS)}
    if case == "ties":
        return {name: layer.bfloat16().float() for name, layer in layers.items()}, None, int(RATE * count)
    if case == "gaussian":
        return layers, None, int(RATE * count)
    before = {name: torch.rand(len(layer), generator=generator) >= ZEROS for name, layer in layers.items()}
    layers = {name: layer * before[name] for name, layer in layers.items()}
    gone = sum(masks.pruned_per_layer(before).values())
    return layers, before if case == "masked" else None, gone + int(RATE * (count - gone))


def measure(chosen: list[str], quick: bool = False) -> Iterator[Row]:
    """Yield the rows of this benchmark that are chosen."""
    for size, count in SIZES.items():
        names = {case: f"threshold_{size}_{case}_seconds" for case in CASES}
        worst = f"threshold_{size}_seconds"
        wanted = [case for case in CASES if worst in chosen or names[case] in chosen]
        if not wanted:
            continue
        made = {case: weights(case, count // 1000 if quick else count) for case in wanted}
        repeats = 20 if size == "270k" and not quick else 1

        def seconds(case: str, made: dict = made, repeats: int = repeats) -> float:
            layers, before, pruned = made[case]
            began = time.perf_counter()
            for _ in range(repeats):
                masks.magnitude(layers, pruned, before)
            return (time.perf_counter() - began) / repeats

        with devices.settings(torch.device("cpu")):
            sides = {case: lambda case=case: seconds(case) for case in wanted}
            measured = interleave(sides, 2 if quick else 5)
        place = machine(torch.get_num_threads())
        for case in wanted:
            yield row(names[case], "s", measured[case], place)
        if worst in chosen:
            yield row(worst, "s", max(measured.values(), key=statistics.median), place)
