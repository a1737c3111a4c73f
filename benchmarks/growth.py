"""Time and peak memory against replicas, levels and data, each point in processes of its own, and their picture."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import studies
from benchmarks.catalogue import GROWTH
from benchmarks.record import Row, machine, row
from benchmarks.rounds import interleave
from benchmarks.worker import Worker
from lthlab.kernels import SPIN

_COLOUR = "#0072b2"
_TITLES = {"replicas": "replicates of a study", "levels": "levels of IMP", "images": "training images"}
_QUANTITIES = {"seconds": "wall time in s", "mebibytes": "peak memory in MiB"}


def images() -> Callable[[int, int], dict[str, Any]]:
    """For a process that trains a group once, on so many images."""
    import torch

    from benchmarks import ours
    from lthlab import devices
    from lthlab.parts import Net

    def once(number: int, epochs: int) -> dict[str, Any]:
        described = ours.describe("synthetic_28", train_size=number)
        dataset = ours.synthetic(described)
        began = time.perf_counter()
        with devices.settings(torch.device("cpu")):
            training = ours.training(Net(name="lenet_300_100"), described, dataset, range(4))
            ours.seconds(training, epochs * described.steps_per_epoch(64))
        return {
            "command_seconds": time.perf_counter() - began,
            "mebibytes": studies.peak_mebibytes(),
            "threads": torch.get_num_threads(),
        }

    return once


def measure(chosen: list[str], quick: bool = False) -> Iterator[Row]:
    """Yield the rows of this benchmark that are chosen."""
    for axis, (numbers, _) in GROWTH.items():
        names = {n: [name for name in chosen if name.startswith(f"growth_{axis}_{n}_")] for n in numbers}
        points = {str(number): partial(_point, axis, number, quick) for number in numbers if names[number]}
        measured = interleave(points, 1 if quick else 3, warm=0)
        for number, answers in measured.items():
            for name in names[int(number)]:
                what, unit = ("command_seconds", "s") if name.endswith("_seconds") else ("mebibytes", "MiB")
                yield row(name, unit, [answer[what] for answer in answers], machine(answers[0]["threads"]))


def _point(axis: str, number: int, quick: bool) -> dict[str, Any]:
    if axis == "images":
        with Worker("growth:images", SPIN) as worker:
            return worker(number=128 if quick else number, epochs=1 if quick else 2)
    replicates, levels = (number, 4) if axis == "replicas" else (4, number)
    study = studies.imp(replicates, 1, 1, [0.05]) if quick else studies.imp(replicates, levels, 5, [0.05])
    with Worker("studies:compute") as worker:
        return worker(study=study)


def draw(rows: Mapping[str, Row], path: Path) -> None:
    """Draw all that is measured of growth as an SVG: medians, with bars from the least to the largest."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots(len(_QUANTITIES), len(GROWTH), sharex="col")
    for column, (axis, (numbers, _)) in enumerate(GROWTH.items()):
        for line, (quantity, label) in enumerate(_QUANTITIES.items()):
            ax = axes[line, column]
            names = {number: f"growth_{axis}_{number}_{quantity}" for number in numbers}
            points = [(number, rows[name]) for number, name in names.items() if name in rows]
            values = [point["value"] for _, point in points]
            below = [point["value"] - point["spread"]["min"] for _, point in points]
            above = [point["spread"]["max"] - point["value"] for _, point in points]
            ax.errorbar(
                [number for number, _ in points], values, [below, above], color=_COLOUR, marker="o", ms=4, capsize=3
            )
            ax.set_xlim(0, 1.05 * max(numbers))
            ax.set_ylim(0, 1.1 * max((point["spread"]["max"] for _, point in points), default=1))
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            ax.grid(alpha=0.3)
            ax.spines[["top", "right"]].set_visible(False)
            if line == len(_QUANTITIES) - 1:
                ax.set_xlabel(_TITLES[axis])
            if column == 0:
                ax.set_ylabel(label)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "lthlab", "svg.fonttype": "path"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
