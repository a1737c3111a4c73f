"""Groups on a GPU: seconds per epoch and replica, memory, and a profile of one step, written as they are measured.

Run as `python -m benchmarks.gpu --minutes 9`; started again, it goes on. Needs lthlab beside it, and of other packages
only torch, numpy, pandas, safetensors, pydantic and ruamel.yaml.
"""

import argparse
import itertools
import math
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import ours
from benchmarks.catalogue import FORMS, GPU_NETS, LARGE, PRECISIONS, gpu_name, group_sizes
from benchmarks.record import Row, machine, read, row, write
from lthlab import devices
from lthlab.engine import Training
from lthlab.errors import InputError, nearest
from lthlab.parts import NETS, Data, Net

RESULTS = Path("build", "benchmarks", "gpu.json")
TRAINED, TESTED = 6400, 1280
"""Images of a measured epoch: so many whole batches of 64 and of 128, and a test set in proportion."""
_ORDER = (8, 16, 1, 32, 4, 2)
_EPOCHS, _LIMIT_S = 9, 10.0
_PROFILED_STEPS = 4
_START_S = 30.0
"""What a group may take, if none took longer yet."""
MEASURED = ("seconds_per_epoch", "peak_mebibytes")
PROFILED = {
    "kernels": "per step",
    "launches": "per step",
    "microseconds": "µs per step",
    "busy_share": "of that time",
    "gap_microseconds": "µs per kernel",
}
"""What is told of a profile, with units: kernels of a step; calls that start kernels or graphs; from the start of the
first kernel to the end of the last; the share of that with a kernel running; the rest by kernel."""


@dataclass(frozen=True)
class Group:
    """What is measured at once.

    Attributes
    ----------
    net : str
        Name of the network.
    replicas, batch : int
        Size of the group, and of its batches.
    precision, form : str
        As in recipes, and as `lthlab.replicas` names it.
    """

    net: str
    replicas: int
    batch: int
    precision: str
    form: str

    def figure(self, what: str) -> str:
        """Name a figure of the group."""
        return gpu_name(self.net, what, self.replicas, self.batch, self.precision, self.form)


def groups(nets: Sequence[str], quick: bool = False) -> list[Group]:
    """List what is measured, the most telling first: bf16, one by one, small batches, groups of 8 and 16."""
    if quick:
        return [Group(net, size, 16, "bf16", form) for net in nets for size in (1, 2) for form in FORMS]
    found = [
        Group(net, size, batch, precision, form)
        for net in nets
        for batch, precision, form, size in itertools.product(GPU_NETS[net], PRECISIONS, FORMS, group_sizes(net))
    ]

    def rank(group: Group) -> tuple[int, ...]:
        rare = [group.batch != 64, group.precision != "bf16", group.form != "sequential"]
        return sum(rare), nets.index(group.net), *rare, _ORDER.index(group.replicas)

    return sorted(found, key=rank)


class Bench:
    """Measures groups on a device and keeps the rows.

    Parameters
    ----------
    device : torch.device
        Where to measure.
    path : Path
        File of rows; those that it has are not measured again.
    quick : bool
        Whether to take tiny images, so that all of it takes seconds.
    """

    def __init__(self, device: torch.device, path: Path, quick: bool) -> None:
        self.device, self.path, self.quick = device, path, quick
        self.rows = read(path)
        name = None
        if device.type == "cuda":
            facts = torch.cuda.get_device_properties(device)
            name = f"{facts.name} with {facts.total_memory / 2**30:.0f} GiB"
        self.machine = machine(torch.get_num_threads(), name)

    def keep(self, found: Row) -> None:
        """Add a row to the file."""
        self.rows[found["name"]] = found
        write(self.path, self.rows.values())
        value = "out of memory" if found["value"] is None else f"{found['value']} {found['unit']}"
        print(f"{found['name']}: {value}", flush=True)

    def measure(self, group: Group) -> None:
        """Measure a group's time and memory; that the memory did not suffice is a result too."""
        epochs: list[float] = []
        peak: list[float] = []
        devices.free_memory()
        try:
            epochs, peak = self._epochs(group)
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or devices.lacked_memory(error)):
                raise
        self.keep(row(group.figure("peak_mebibytes"), "MiB", peak, self.machine))
        self.keep(row(group.figure("seconds_per_epoch"), "s", epochs, self.machine))

    def _epochs(self, group: Group) -> tuple[list[float], list[float]]:
        """Seconds of whole epochs by replica, and the memory that was held."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        training = self._training(group, self._images(group, TRAINED), TESTED)
        steps, images = training.steps_per_epoch, training.data.images
        found: list[float] = []
        ours.seconds(training, steps)
        began = time.monotonic()
        most = 1 if self.quick else _EPOCHS
        while not found or time.monotonic() - began < (_LIMIT_S if len(found) < most else 0.0):
            seconds = ours.seconds(training, steps)
            found.append(seconds / group.replicas * training.data.facts.train / images)
        if on_gpu:
            return found, [torch.cuda.max_memory_reserved(self.device) / 2**20]
        return found, [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]

    def _images(self, group: Group, number: int) -> Data:
        small = group.net.startswith("lenet") or (self.quick and group.net not in LARGE)
        name, augment = ("digits", "none") if small else ("synthetic_32", "crop_flip")
        most = 4 * group.batch if self.quick else ours.describe(name).images
        return ours.describe(name, train_size=min(number, most), augment=augment)

    def _training(self, group: Group, described: Data, test: int, start: int | None = None) -> Training:
        narrow = self.quick and "width" in NETS[group.net]
        net = Net(name=group.net, width=4) if narrow else Net(name=group.net)
        test = min(test, described.facts.test)
        dataset = ours.synthetic(described, 20 if self.quick else test)
        return ours.training(
            net,
            described,
            dataset,
            range(group.replicas),
            group.batch,
            group.precision,
            group.form,
            str(self.device),
            start,
        )

    def look_closer(self, best: Group) -> None:
        """Profile steps of a group, and time a whole epoch of it."""
        devices.free_memory()
        everything = self._images(best, sys.maxsize)
        steps = everything.steps_per_epoch(best.batch)
        training = self._training(best, everything, everything.facts.test, start=max(0, steps - 4 * _PROFILED_STEPS))
        ours.seconds(training, 2 * _PROFILED_STEPS)
        table = self.path.with_name(f"gpu_{best.net}_batch{best.batch}_profile.txt")
        for what, number in profile(training, table).items():
            self.keep(row(best.figure(f"step_{what}"), PROFILED[what], [number], self.machine))
        ours.seconds(training, -training.iteration % steps)
        whole = [ours.seconds(training, steps) / best.replicas]
        self.keep(row(best.figure("seconds_per_whole_epoch"), "s", whole, self.machine))

    def run(self, wanted: Sequence[Group], minutes: float) -> int | None:
        """Measure groups, and look closer at the fastest ones.

        Returns
        -------
        int or None
            Number of groups that failed for another reason than memory; None if the time was up.
        """
        began, longest, failed = time.monotonic(), 0.0, 0
        sizes = list(dict.fromkeys((group.net, group.batch) for group in wanted))
        first = [size for size in sizes if size[1] == sizes[0][1]]
        most = sum(len(group_sizes(net)) for net, _ in first)
        telling = [group for group in wanted if (group.net, group.batch) in first][:most]
        others = [group for group in wanted if group not in telling]
        turns: list[Group | tuple[str, int]] = [*telling, *first, *others, *sizes]
        turns = [turn for turn in turns if isinstance(turn, Group) or turn[0] not in LARGE]
        for turn in turns:
            due = self._due(turn)
            if due is None:
                continue
            act, seconds = due
            before = time.monotonic()
            if before - began + max(longest, _START_S) + seconds > 60 * minutes:
                print("the time is up; the same command goes on from here", flush=True)
                return None
            try:
                act()
            except Exception:  # the others are still worth the machine's time
                traceback.print_exc()
                failed += 1
            longest = max(longest, time.monotonic() - before - seconds)
        return failed

    def _due(self, turn: Group | tuple[str, int]) -> tuple[Callable[[], None], float] | None:
        """What a turn has to do, and the seconds of a whole epoch in it; None if it is done."""
        if isinstance(turn, Group):
            done = {turn.figure(what) for what in MEASURED} <= self.rows.keys()
            return None if done else (partial(self.measure, turn), 0.0)
        fastest = self._fastest(*turn)
        if fastest is None or fastest[0].figure("seconds_per_whole_epoch") in self.rows:
            return None
        return partial(self.look_closer, fastest[0]), fastest[1]

    def _fastest(self, net: str, batch: int) -> tuple[Group, float] | None:
        """Find the fastest group of a network and batch size, and seconds of its epochs, all replicas together."""
        alike = (group for group in groups([net], self.quick) if group.batch == batch)
        done = {g: found for g in alike if (found := self.rows.get(g.figure("seconds_per_epoch"), {}).get("value"))}
        best = min(done, key=lambda group: done[group], default=None)
        return None if best is None else (best, best.replicas * done[best])


def profile(training: Training, table: Path) -> dict[str, float]:
    """Profile some steps; the operations that take longest are written to `table`.

    Returns
    -------
    dict of str to float
        The quantities of `PROFILED`; on a CPU, of its operations.
    """
    on_gpu = training.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_gpu
    with torch.profiler.profile(activities=activities) as profiler:
        ours.seconds(training, _PROFILED_STEPS)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table.write_text(profiler.key_averages().table(sort_by=key, row_limit=30), encoding="utf-8")
    events = list(profiler.events())
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    spans = [e.time_range for e in events if e.device_type == kind and not e.is_user_annotation]
    kernels = [(span.start, span.end) for span in spans]
    launches = [e for e in events if "Launch" in e.name and e.device_type != torch.autograd.DeviceType.CUDA]
    span = max(end for _, end in kernels) - min(begin for begin, _ in kernels)
    rest = span - busy(kernels)
    return {
        "kernels": len(kernels) / _PROFILED_STEPS,
        "launches": len(launches) / _PROFILED_STEPS,
        "microseconds": span / _PROFILED_STEPS,
        "busy_share": 1 - rest / span,
        "gap_microseconds": rest / len(kernels),
    }


def busy(spans: Iterable[tuple[float, float]]) -> float:
    """Add up the time in which at least one of some spans, each from begin to end, goes on."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure until all is done or the time is up; 1 if a group failed but for lack of memory, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="stop in time for this (default: 9)")
    parser.add_argument("--device", default="cuda", help="such as cuda:1, or cpu to try it out (default: cuda)")
    parser.add_argument("--networks", default=",".join(GPU_NETS), help="names, separated by commas")
    parser.add_argument("--only", default="", metavar="NAME", help="only figures whose names begin so")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"file of rows (default: {RESULTS})")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    options = parser.parse_args(arguments)
    try:
        device, nets = devices.device_named(options.device), options.networks.split(",")
        for net in nets:
            if net not in GPU_NETS:
                raise InputError(f"--networks: '{net}' is not measured; {nearest(net, GPU_NETS)}")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    bench = Bench(device, options.results, options.quick)
    print(bench.machine, flush=True)
    wanted = [g for g in groups(nets, options.quick) if g.figure("seconds_per_epoch").startswith(options.only)]
    if not wanted:
        print(f"--only {options.only}: no figure of {options.networks} begins so", file=sys.stderr)
        return 2
    with devices.settings(device):
        return 1 if bench.run(wanted, options.minutes) else 0


def measure(chosen: list[str], quick: bool = False) -> Iterator[Row]:
    """Yield the rows of this benchmark that are chosen, as far as 9 minutes allow; none without a GPU."""
    if not torch.cuda.is_available():
        print("gpu: not measured, there is no CUDA device here", file=sys.stderr)
        return
    device = torch.device("cuda")
    path = RESULTS.with_name("gpu-quick.json") if quick else RESULTS
    bench = Bench(device, path, quick)
    wanted = [g for g in groups(list(GPU_NETS), quick) if {g.figure(what) for what in MEASURED} & {*chosen}]
    with devices.settings(device):
        complete = bench.run(wanted, 9.0) is not None
    yield from bench.rows.values()
    if complete:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
