"""One training on several devices of a machine: the processes, how they start, share a step, and end.

The process that asks, a notebook's kernel or a command, leads: it trains on the first device, and tells a process of
its own for each other device what to do. They know nothing of the store, the schedule or the end; they have a lane of
the same network, and take the same steps with it, each on its own part of the images. Gradients are averaged while
they are computed (torch's DistributedDataParallel).
"""

import contextlib
import dataclasses
import importlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lthlab import forms, layers, nets
from lthlab.data import Dataset
from lthlab.datasets import DATASETS, DataFacts, facts_of
from lthlab.devices import settings
from lthlab.errors import InputError
from lthlab.kernels import SPIN, THREAD_VARIABLES, WITH_PARENT, last_line, temporary
from lthlab.lanes import DTYPES, Lane, Mixing, Source
from lthlab.layers import Weights
from lthlab.masks import Mask
from lthlab.values import Dense, Fresh, Train, plain

PATIENCE = timedelta(minutes=5)
"""How long a process waits for the others."""
START_S = 120.0
"""Seconds within which a process imports torch and finds its device."""
_TICK_S = 0.05
_LEAVE_S = 5.0  # in which a process that was told to end does so
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# Running statistics are given away before an evaluation, not at every step; the option has two names.
_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers": False
}
# Nothing leaves the machine; and a process whose fellow has died is told so here, rather than ended by a watchdog.
_QUIET = {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK, "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}


class ProcessEnded(ChildProcessError):
    """A process that took part in a training has ended; what was in a checkpoint is not lost."""


def refuse(trains: Iterable[Train], places: Sequence[torch.device]) -> None:
    """Raise InputError if trainings cannot be divided among devices."""
    count = len(places)
    if count == 1:
        return
    wrong: dict[str, None] = {}
    for train in trains:
        smallest, processes = train.data.smallest_batch(train.recipe.batch_size), train.recipe.processes
        if processes > 1 and processes % count:
            allowed = ", ".join(str(n) for n in range(1, processes + 1) if processes % n == 0)
            wrong[f"its BatchNorm has {processes} processes; allowed: {allowed} devices ({train!r})"] = None
        if smallest < count:
            wrong[f"the last batch of an epoch has {smallest} images; allowed: 1 to {smallest} ({train!r})"] = None
        name = plain(train.net).name
        if nets.module_of(name) == "__main__":
            wrong[f"network '{name}' is registered in this process alone; allowed: networks of a module"] = None
    if wrong:
        raise InputError("\n".join(f"{count} devices cannot share a training: {reason}" for reason in wrong))


# --- what all processes do together ---------------------------------------------------------------------------


@dataclasses.dataclass
class Member:
    """One process of a team.

    Attributes
    ----------
    rank, size : int
        Number of the process, 0 for the one that leads, and of all.
    device : torch.device
        Where it computes.
    """

    rank: int
    size: int
    device: torch.device

    def tell(self, *words: Any) -> None:
        """Say to the others what is done next, if this process leads."""

    def confirm(self) -> None:
        """Make sure that what was computed so far is whole, if this process leads."""

    def part(self, count: int, processes: int) -> slice:
        """Find this process's part of `count` images that are divided evenly among `processes` of a recipe."""
        each, (least, more) = processes // self.size, divmod(count, processes)
        first, last = (number * least + min(number, more) for number in (self.rank * each, (self.rank + 1) * each))
        return slice(first, last)

    def join(self, folder: Path) -> None:
        """Meet the others; there is one team in a process at a time."""
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        store = dist.FileStore(str(folder / "rendezvous"), self.size)
        bound = self.device if self.device.type == "cuda" else None
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE, device_id=bound
        )

    def give(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Give tensors of the CPU to all others, which call this with None and get them."""
        described = [[name, list(t.shape), str(t.dtype)[6:]] for name, t in (tensors or {}).items()]
        words = torch.frombuffer(bytearray(json.dumps(described).encode()), dtype=torch.uint8)
        length = torch.tensor([len(words)])
        dist.broadcast(length, 0)
        if tensors is None:
            words = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(words, 0)
        found = {}
        for name, shape, kind in json.loads(words.numpy().tobytes()):
            tensor = torch.empty(shape, dtype=getattr(torch, kind)) if tensors is None else tensors[name].contiguous()
            found[name] = tensor
            dist.broadcast(tensor, 0)
        return found


class SharedLane(Lane):
    """A lane of one replica whose steps several processes take together.

    Of each step's images, every process has its part (see `lthlab.parts.Recipe`), and all have the same weights.
    Methods that the process calls that leads are called in the others too.

    Parameters
    ----------
    member : Member
        This process.
    train : Train
        What is trained.
    state : dict of str to Tensor
        State to begin with, which counts in the process that leads.
    source : Source
        Images and labels.
    """

    def __init__(self, member: Member, train: Train, state: Weights, source: Source) -> None:
        super().__init__([train], [state], source, member.device, 1)
        self.member = member
        if self.stream is not None:
            self.stream = torch.cuda.current_stream(self.device)  # the steps of one lane are in one order anyway
        own, size = train.recipe.processes, member.size
        self.processes = size if own == 1 else own
        self.network.normalise_by(layers.synchronised if own == 1 else layers.in_parts(own // size))
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        index = [member.device.index] if member.device.type == "cuda" else None
        self.model = DistributedDataParallel(self.network, device_ids=index, **_OWN_BUFFERS)
        self._alike = self._settled = False
        self._size = 0

    def prune(self, slot: int, mask: Mask) -> None:
        """As of `Lane`, in the process that leads."""
        super().prune(slot, mask)
        self._alike = False

    def begin(self, step: int, **inputs: Tensor) -> None:
        """As of `Lane`; the others get the inputs of the one that leads."""
        self.member.tell("begin", step)
        super().begin(step, **self.member.give(inputs or None))

    def step(self, size: int) -> None:
        """As of `Lane`."""
        self._share()
        self.member.tell("step", size)
        for tensor in self.source.given:
            dist.broadcast(tensor, 0)
        self._settled, self._size = False, size
        self._step(size)

    def _share(self) -> None:
        if not self._alike:
            self.member.tell("share", self.pruned is not None)
            self.share(self.pruned is not None)

    def share(self, pruned: bool) -> None:
        """Give the weights, the optimizer's buffers and what is pruned to the others."""
        if pruned and self.pruned is None:
            self.pruned = torch.zeros_like(self.weights, dtype=torch.bool)
        masks = [] if self.pruned is None else [self.pruned.view(torch.uint8)]
        for tensor in (self.weights, *self.moments, *self.network.buffers(), *masks):
            dist.broadcast(tensor, 0)
        self._alike = True

    def backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As of `Lane`, with the gradient of the mean loss over all processes' images."""
        if not self.network.training:
            self.network.train()
        losses, correct = self._loss(images, labels, self.recipe.label_smoothing)
        self.gradient.zero_()
        (losses.sum() * (labels.shape[1] * self.member.size / self._size)).backward()  # the mean is over processes
        return losses.detach(), correct

    def _batch(self, chosen: Tensor, moves: Tensor | None, mixing: Mixing | None) -> tuple[Tensor, Tensor]:
        part = self.member.part(chosen.shape[1], self.processes)
        if mixing is None:
            return super()._batch(chosen[:, part], None if moves is None else moves[:, part], None)
        images, labels = super()._batch(chosen, moves, mixing)  # partners may be in the other parts
        return images[:, part], labels[:, part]

    def settle(self) -> None:
        """Sum loss and correctly classified images over the processes, in the one that leads."""
        if self._settled:
            return
        self.member.tell("settle")
        for tensor in (self.loss_sum, self.correct_sum):
            dist.all_reduce(tensor)
            if self.member.rank:
                tensor.zero_()
        self.member.confirm()
        self._settled = True

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As of `Lane`, each process with a part of the images and the running statistics of the first."""
        self._share()
        self.member.tell("evaluate", list(images.shape), str(images.dtype)[6:])
        images, labels = images.contiguous(), labels.contiguous()
        for tensor in (*self.network.buffers(), images, labels):
            dist.broadcast(tensor, 0)
        part = self.member.part(len(labels), self.member.size)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        if part.start < part.stop:
            losses, correct = super().evaluate(images[part], labels[part])
            sums[0], sums[1] = losses[0].double() * (part.stop - part.start), correct[0]
        dist.all_reduce(sums)
        return sums[:1] / len(labels), sums[1:].long()


# --- the process that leads -----------------------------------------------------------------------------------


class Team(Member):
    """The processes of one machine that train together; this one leads.

    The others are started when the first lane is asked for, and end with the context. They end too when this process
    does, however it does. An interrupt from the keyboard reaches this one alone.

    Parameters
    ----------
    devices : sequence of torch.device
        One for each process, the first for this one: GPUs, or the CPU as often as there are to be processes, which
        then divide the threads.

    Raises
    ------
    ProcessEnded
        At the end of the context, if one of the others has ended before; with its number, device, and the last line
        that it wrote.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        super().__init__(0, len(devices), devices[0])
        self.devices = list(devices)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.folder: Path | None = None
        self._dataset: Dataset | None = None
        self._shapes: list[torch.Size] = []
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None
        self._threads, self._joined = 0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.folder is None:
            return
        ended = self._ended(_LEAVE_S if isinstance(error, RuntimeError) else 0.0)
        self._end(orderly=error is None and not ended)
        if ended and isinstance(error, RuntimeError | ValueError):  # what torch says where a fellow is missing
            raise ProcessEnded(ended) from error

    def lane(self, train: Train, state: Weights, source: Source) -> SharedLane:
        """Make a lane in every process; one that was made before can no longer be used."""
        if self.folder is None:
            self._start()
        if (module := nets.module_of(plain(train.net).name)) is not None:
            self.tell("module", module)
        dataset, shapes = source.dataset, [tensor.shape for tensor in source.given]
        if dataset is not self._dataset or shapes != self._shapes:
            facts = {name: getattr(dataset, name) for name in ("name", "fingerprint", "classes", "mean", "std")}
            self.tell("data", facts, dataclasses.asdict(facts_of(dataset.name)), bool(source.given))
            images, labels = source.given or (dataset.train_x, dataset.train_y)
            self.give({"train_x": images.cpu(), "train_y": labels.cpu()})
            self._dataset, self._shapes = dataset, shapes
        alike: dict[str, Any] = {"init": Fresh(0), "mask": Dense(), "schedule": "restart", "pruning": None}
        form = dataclasses.replace(train, **alike).form()
        self.tell("lane", form)
        return SharedLane(self, train, state, source)

    def tell(self, *words: Any) -> None:
        self._check()
        try:
            for process in self.processes:
                assert process.stdin is not None
                process.stdin.write(json.dumps(words).encode() + b"\n")
                process.stdin.flush()
        except BrokenPipeError as error:
            raise ProcessEnded(self._ended(_LEAVE_S)) from error

    def confirm(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._check()

    def _check(self) -> None:
        if ended := self._ended():
            raise ProcessEnded(ended)

    # --- start and end --------------------------------------------------------------------------------------

    def _start(self) -> None:
        if dist.is_initialized():
            raise InputError("this process has a process group of torch.distributed already; allowed: none, for a team")
        self._threads = torch.get_num_threads()
        self.folder = temporary()
        share = max(1, self._threads // self.size)
        environment = {
            **os.environ,
            **SPIN,
            **_QUIET,
            **dict.fromkeys(THREAD_VARIABLES, str(share)),
            "JPY_PARENT_PID": str(os.getpid()),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        script = WITH_PARENT + "from lthlab.parallel import follow\nfollow()\n"
        for rank, device in enumerate(self.devices[1:], start=1):
            place = {"rank": rank, "size": self.size, "device": str(device), "folder": str(self.folder)}
            place["deterministic"] = torch.are_deterministic_algorithms_enabled()
            with self._log(rank).open("wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", script, json.dumps(place)],
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=log,
                        env=environment,
                        start_new_session=True,
                    )
                )
        torch.set_num_threads(share)
        ready, deadline = [self.folder / f"ready{rank}" for rank in range(1, self.size)], time.monotonic() + START_S
        while not all(path.exists() for path in ready):
            self._check()
            if time.monotonic() > deadline:
                raise ProcessEnded(f"of {self.size - 1} processes, not all were ready within {START_S:.0f} s")
            time.sleep(_TICK_S)
        with _environment(_QUIET):
            self.join(self.folder)
            self._joined = True
            dist.all_reduce(torch.zeros(1, device=self.device))
        if self.device.type == "cuda":
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        """Free this process from kernels that wait for one that has ended."""
        while not self._closing.wait(_TICK_S):
            if self._ended():
                dist.distributed_c10d._abort_process_group()
                return

    def _log(self, rank: int) -> Path:
        assert self.folder is not None
        return self.folder / f"process{rank}.log"

    def _ended(self, wait_s: float = 0.0) -> str:
        """Say which of the others has ended, and how; empty if none has, within some time."""
        deadline = time.monotonic() + wait_s
        while True:
            for rank, process in enumerate(self.processes, start=1):
                if (code := process.poll()) is not None:
                    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                    said = last_line(self._log(rank).read_text(errors="replace"))
                    text = f"process {rank} of {self.size}, on {self.devices[rank]}, ended {how}"
                    return f"{text}: {said}" if said else text
            if time.monotonic() >= deadline:
                return ""
            time.sleep(_TICK_S)

    def _end(self, orderly: bool) -> None:
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
        for process in self.processes:
            if not orderly:
                process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # type: ignore[union-attr]
        if self._joined and dist.is_initialized():
            if not orderly and self.device.type == "cuda":
                dist.distributed_c10d._abort_process_group()
            else:
                dist.destroy_process_group()
        for process in self.processes:
            try:
                process.wait(_LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        torch.set_num_threads(self._threads)
        assert self.folder is not None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.processes, self.folder, self._dataset, self._watcher = [], None, None, None
        self._closing.clear()
        self._joined = False


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- the others -----------------------------------------------------------------------------------------------


class _Follower(Member):
    """A process that does what it is told on its standard input, line by line, until that ends."""

    dataset: Dataset
    lane: SharedLane

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        super().__init__(rank, size, device)
        self.told: dict[str, DataFacts] = {}  # data sets that no module has registered here

    def obey(self, words: Sequence[Any]) -> None:
        """Do what is said: the name of a method of this class, or of the lane, and its arguments."""
        name, *arguments = words
        own: dict[str, Callable[..., None]] = {"module": self._module, "data": self._data}
        own |= {"lane": self._lane, "evaluate": self._evaluate}
        (own[name] if name in own else getattr(self.lane, name))(*arguments)

    def _module(self, name: str) -> None:
        for told in self.told:
            del DATASETS[told]  # the module may register it
        importlib.import_module(name)
        DATASETS.update(self.told)

    def _data(self, facts: Mapping[str, Any], described: Mapping[str, Any], given: bool) -> None:
        if facts["name"] not in DATASETS:
            self.told[facts["name"]] = DataFacts.read(described)
        DATASETS[facts["name"]] = DataFacts.read(described)
        tensors = self.give(None)
        tensors |= {f"{part}_{axis}": tensors[f"train_{axis}"][:0] for part in ("val", "test") for axis in "xy"}
        scale = {name: tuple(facts[name]) for name in ("mean", "std")}
        self.dataset, self.given = Dataset(**{**facts, **scale, **tensors}), given

    def _lane(self, form: Mapping[str, Any]) -> None:
        train: Any = forms.parse(form, dict[str, Any]().__getitem__)
        dataset, dtype = self.dataset, DTYPES[train.recipe.precision]
        source = Source(dataset, dataset.train_x, dataset.train_y, dtype, self.device, train.data.augment, self.given)
        self.lane = SharedLane(self, train, nets.build(train.net, train.data).state(0), source)

    def _evaluate(self, shape: Sequence[int], kind: str) -> None:
        images = torch.empty(shape, dtype=getattr(torch, kind), device=self.device)
        self.lane.evaluate(images, torch.empty(shape[0], dtype=torch.int64, device=self.device))


def follow() -> None:
    """Be one of the processes that are led; the argument says which, on what device, and where to meet."""
    code = 1
    try:
        _follow(**json.loads(sys.argv[1]))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # what is left are threads of the process group, which do not end well by themselves


def _follow(rank: int, size: int, device: str, folder: str, deterministic: bool) -> None:
    member = _Follower(rank, size, torch.device(device))
    torch.set_num_threads(int(os.environ[THREAD_VARIABLES[0]]))
    with settings(member.device, deterministic):
        if member.device.type == "cuda":
            torch.cuda.set_device(member.device)
        greeting = torch.zeros(1, device=member.device)
        Path(folder, f"ready{rank}").touch()
        member.join(Path(folder))
        dist.all_reduce(greeting)
        for line in sys.stdin.buffer:
            member.obey(json.loads(line))
        dist.destroy_process_group()
