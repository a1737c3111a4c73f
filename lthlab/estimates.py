"""What computing a study will take: trainings, hours and disk space, from past trainings of this machine."""

import dataclasses
import functools
import json
import math
import os
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from lthlab import plan, provenance, sizes, studies, tickets
from lthlab.analyses import Measure
from lthlab.datasets import DataFacts, data_sets, facts_of
from lthlab.parts import NETS, Count, Data, Net, Positive, device_names
from lthlab.roles import Labelled
from lthlab.runs import Outlook, epochs
from lthlab.spec import Config
from lthlab.store import Store
from lthlab.values import Mask, Narrow, Train, Value, ancestors

LATEST = 9
"""Past groups that an estimate is the median of."""

_GPUS = Path("/proc/driver/nvidia/gpus")

# Guesses. Operations per second of a core, and seconds per step of a replica in a stack; operations per second of a
# GPU, and seconds per step of a replica there, as measured in groups of 8 of ResNet-20 on an H100.
_CORE, _STACKED = 2e10, 2e-4
_GPU = {"fp32": (1.1e13, 5e-4), "bf16": (3.1e13, 2e-4)}
_UNKNOWN = 10**7  # weights used per image by a network of one's own
_FORWARD = 3  # evaluations of an image that take as long as a training step's share of it
_POINT_BYTES = 110
_NOTEBOOK, _COMMAND = 5.0, 2.0  # seconds of a notebook beyond its trainings; of the command that executes notebooks
_STOP = {"run": 5.0, "compute": 1.0}  # seconds
_STATE_BYTES, _VALUE_BYTES, _EPOCH_BYTES = 1500, 2500, 200


@dataclass(frozen=True)
class Work:
    """What a configuration, or a whole study, takes.

    Attributes
    ----------
    name : str
        Name of the configuration; empty for the whole.
    trainings, shared : int
        Distinct trainings that it needs, and further roles that share one of them.
    done, blocked : int
        Trainings of which nothing is missing; those that cannot be had, since something diverged or is stale.
    left, epochs : int
        Trainings that it will train, and their epochs. What an earlier configuration trains is left there only.
    hours : float
        Time of these trainings, and of all else that its notebook does, if that is executed.
    bytes : int
        Size of the results that it will write.
    guessed : bool
        Whether some of the time is not from past trainings of the same shape on this machine.
    """

    name: str
    trainings: int
    shared: int
    done: int
    blocked: int
    left: int
    epochs: int
    hours: float
    bytes: int
    guessed: bool

    def facts(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Forecast:
    """What computing will take.

    Attributes
    ----------
    device : str
        Model of the GPU, or 'cpu'.
    whole : Work
        All configurations together; `hours` until the last of them is done.
    configurations : tuple of Work
        In the order in which they run.
    blocked : frozenset of Train
        Trainings that cannot be had.
    reports : float
        Hours of the report notebooks.
    """

    device: str
    whole: Work
    configurations: tuple[Work, ...]
    blocked: frozenset[Train] = frozenset()
    reports: float = 0.0

    def facts(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        pieces = [work.facts() for work in self.configurations]
        return {"device": self.device, **self.whole.facts(), "configurations": pieces}


def forecast(
    study: Config | Iterable[Labelled],
    store: Store,
    device: str = "auto",
    slots: int = 1,
    notebooks: Mapping[str, str] | None = None,
    executed: Collection[str] = (),
) -> Forecast:
    """Say what computing a study will take, without torch.

    Hours are those of groups, cut as `lthlab.lab` cuts them, configuration by configuration: a group of R replicas
    takes R times its steps times the seconds per step and replica that groups took before, with the same network,
    widths, data set, batch size and precision, on the same device, processor and number of cores. Taken is the
    median over the latest groups of the size nearest to R. Start and commits are part of that time; masks and
    measures of weights are not. Measures of losses take a third of a training step of one replica for as many images.
    On a GPU, whose memory cannot be told without torch, groups are taken to be as large as they
    are where it suffices: 32.

    Where there are none, it is a guess: six operations for each weight of each image and each place where the weight
    is used, at 20 billion operations per second and core, or 11,000 billion on a GPU (31,000 in bf16), and a fixed
    time per step. If groups of other shapes ran on this machine, guesses are corrected by the median of how wrong they
    were there.

    Parameters
    ----------
    study : Config or iterable of Labelled
        A study, or its expansion.
    store : Store
        Where results and past timings are.
    device : str, optional
        As of `lthlab.lab.compute`; for 'auto', the first GPU that the system lists.
    slots : int, optional
        Configurations of a stage that run at a time, each as fast as one alone.
    notebooks : mapping of str to str, optional
        From the names of configurations and reports to the notebooks that are executed for them. To the hours is
        added what such a notebook took beyond its trainings, the median over the latest ones on this machine, of
        any notebook if that one was not executed yet; before the first a guess of 5 seconds; and 2 for the command.
    executed : collection of str, optional
        Configurations whose notebooks are executed already, and are once more only if trainings are left.

    Returns
    -------
    Forecast
    """
    labelled = tickets.expand(study) if isinstance(study, Config) else list(study)
    look = Outlook([item.value for item in labelled], store).now()
    left = look.left()
    rates = _Rates(store, device_name(device))
    depths = plan.depths(look.values)
    planned: set[Value] = set()
    pieces, stages = [], []
    beyond = {name: _beyond(store, name) / 3600 for name in set((notebooks or {}).values())}
    rest = {name: beyond[notebook] for name, notebook in (notebooks or {}).items()}
    for configuration in studies.configurations(labelled):
        asked = [item.value for item in configuration.labelled]
        values = ancestors(asked)
        counts = _counts(asked, values, look, left)
        new = [value for value in values if value not in planned]
        planned.update(new)
        piece = _work(configuration.name, counts, new, look, left, depths, rates)
        if piece.name in rest and (piece.left or piece.name not in executed):
            piece = dataclasses.replace(piece, hours=piece.hours + rest[piece.name])
        pieces.append(piece)
        stages.append(configuration.stage)
    hours = sum(
        _makespan([piece.hours for piece, own in zip(pieces, stages, strict=True) if own == stage], slots)
        for stage in dict.fromkeys(stages)
    )
    reports = [spent for name, spent in rest.items() if name not in {piece.name for piece in pieces}]
    if reports:
        hours += _makespan(reports, slots)
    if rest:
        hours += _COMMAND / 3600
    counts = _counts([item.value for item in labelled], look.values, look, left)
    size, guessed = sum(piece.bytes for piece in pieces), any(piece.guessed for piece in pieces)
    whole = Work("", *counts, len(left), epochs(left), hours, size, guessed)
    blocked = frozenset(value for value in look.dead if isinstance(value, Train))
    return Forecast(rates.device, whole, tuple(pieces), blocked, sum(reports))


def record(store: Store, train: Train, replicas: int, steps: int, seconds: float, run: Mapping[str, Any]) -> None:
    """Note how long a group took.

    Parameters
    ----------
    store : Store
        Where to.
    train : Train
        One of its trainings.
    replicas, steps : int
        Size of the group, and steps that it was trained.
    seconds : float
        Wall time.
    run : mapping
        `device`, as by `device_name`; `threads`, `form`; `bytes` of the results of one training.
    """
    line = {
        **_shape(train)._asdict(),
        "images": train.data.images,
        **provenance.machine(),
        **run,
        "replicas": replicas,
        "epochs": round(steps / train.steps_per_epoch, 3),
        "steps": steps,
        "seconds": round(seconds, 4),
    }
    store.append_timing(json.dumps(line))


def note_notebook(store: Store, notebook: str, seconds: float, before: int) -> None:
    """Note how long a notebook took beyond the trainings whose timings were noted since.

    Parameters
    ----------
    store : Store
        Where timings are.
    notebook : str
        Its name.
    seconds : float
        Wall time of its execution.
    before : int
        Number of timings when it began.
    """
    trained = 0.0
    for text in store.timings()[before:]:
        with suppress(ValidationError):
            trained += _Line.model_validate_json(text).seconds
    if seconds > trained:
        line = {"notebook": notebook, **provenance.machine(), "seconds": round(seconds - trained, 3)}
        store.append_timing(json.dumps(line))


def note_stop(store: Store, command: str, seconds: float) -> None:
    """Note how long a command took from the wish to stop to its end."""
    store.append_timing(json.dumps({"stop": command, **provenance.machine(), "seconds": round(seconds, 3)}))


def margin(store: Store, command: str, limit: float) -> float:
    """Say how long before the end of its time a command must begin to stop.

    Parameters
    ----------
    store : Store
        Where past stops are noted.
    command : str
        'run' or 'compute'.
    limit : float
        Seconds that it may take in all.

    Returns
    -------
    float
        Seconds: one for the process to begin and end; and one and a half times the longest of the latest stops on
        this machine, since a stop that was cut short tells no more than the time it had; before the first, a
        fiftieth of the limit, but at least 5 with notebooks or 1 without, at most 15. Never more than half of the
        limit.
    """
    past = _past(store, _Stop, {"stop": command})[-LATEST:]
    guess = min(max(_STOP[command], limit / 50), 15.0)
    return min(1.0 + (1.5 * max(past) if past else guess), limit / 2)


def device_name(device: str) -> str:
    """Name the GPU that a device stands for, as far as the system tells without torch; else 'cpu' or the device.

    Raises
    ------
    InputError
        If no device has such a name.
    """
    models = []
    if os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        for path in sorted(_GPUS.glob("*/information")):
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            models.append(fields.get("Model", "").strip())

    def model(name: str) -> str:
        if name == "auto":
            return models[0] if models and not provenance.versions().get("torch", "").endswith("+cpu") else "cpu"
        number = int(name.partition(":")[2] or 0)
        return models[number] if name != "cpu" and number < len(models) else name

    return ",".join(map(model, device_names(device)))


# --- a configuration ------------------------------------------------------------------------------------------

_Left = Mapping[Train, tuple[int, int]]


def _counts(asked: Sequence[Value], values: Sequence[Value], look: Outlook, left: _Left) -> tuple[int, int, int, int]:
    """Trainings, shared, done and blocked, as `lthlab.lab.compute` counts them."""
    trains = [value for value in values if isinstance(value, Train)]
    uses = [value for value in asked if isinstance(value, Train)]
    blocked = sum(train in look.dead for train in trains)
    unfinished = sum(train in left for train in trains)
    return len(trains), len(uses) - len(set(uses)), len(trains) - blocked - unfinished, blocked


def _work(
    name: str,
    counts: tuple[int, int, int, int],
    values: Sequence[Value],
    look: Outlook,
    left: _Left,
    depths: Mapping[Value, int],
    rates: "_Rates",
) -> Work:
    """Forecast a configuration, of which `values` are those that no earlier one computes."""
    own = {value: left[value] for value in values if isinstance(value, Train) and value in left}

    def kind(train: Train) -> object:
        return depths[train], plan.shape_of(train), own[train]

    def limit(train: Train) -> int:
        return 1 if "," in rates.device else _shape(train).capacity(rates.device == "cpu")

    seconds, guessed = 0.0, False
    for group in plan.groups(own, kind, dict.fromkeys(own, ""), limit):
        start, until = own[group[0]]
        rate, measured = rates.of(_shape(group[0]), len(group))
        seconds += rate * len(group) * (until - start)
        guessed |= not measured
    size = sum(_train_bytes(train, len(look.needs[train].keep), span) for train, span in own.items())
    derived = [value for value in values if not isinstance(value, Train) and value not in look.dead]
    missing = [value for value in derived if not look.settled(value)]
    size += sum(map(_derived_bytes, missing))
    for value in missing:
        if isinstance(value, Measure) and value.evaluated:
            run = value.moments[0].run
            rate, measured = rates.of(_shape(run), 1)
            seconds += rate * value.evaluated / run.recipe.batch_size / _FORWARD
            guessed |= not measured
    return Work(name, *counts, len(own), epochs(own), seconds / 3600, size, guessed)


def _makespan(hours: Sequence[float], slots: int) -> float:
    """Time until all is done if each begins on the slot that is free first."""
    busy = [0.0] * max(1, min(slots, len(hours)))
    for duration in hours:
        first = busy.index(min(busy))
        busy[first] += duration
    return max(busy)


# --- shapes ---------------------------------------------------------------------------------------------------


class _Shape(NamedTuple):
    """What trainings that take equally long per step have in common.

    The network is its name, with the stem in brackets if it is not the network's own.
    """

    network: str
    widths: str | None
    data: str
    batch_size: int
    precision: str
    image: str

    @property
    def images(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = map(int, self.image.split("-"))
        return channels, height, width

    @property
    def stacked(self) -> bool:
        """Whether groups are stacked, by the rule of `lthlab.replicas`; for a network of one's own, nearly."""
        if self._net is None:
            return max(self.images[1:]) <= 16
        return sizes.stacked(self._net, self._facts, self._widths)

    @property
    def _facts(self) -> DataFacts:
        return replace(facts_of(self.data), shape=self.images)

    @property
    def _net(self) -> Net | None:
        """The network, as far as its size goes; None for one of one's own, and in lines that make no sense."""
        name, _, stem = self.network.removesuffix(")").partition(" (")
        with suppress(ValidationError):
            net = Net.model_validate({"name": name, **({"stem": stem} if stem else {})})
            if len(sizes.own_widths(net) or ()) == len(self._widths) > 0:
                return net
        return None

    @property
    def _widths(self) -> list[int]:
        return [int(width) for width in (self.widths or "").split("-") if width]

    def capacity(self, on_cpu: bool) -> int:
        """Largest group, by the rule of `lthlab.devices`; on a GPU that of one with plenty of memory."""
        return 32 if not on_cpu else 24 if self.stacked else 8

    def guess(self, on_cpu: bool) -> float:
        """Guess the seconds per step and replica; see `forecast`."""
        used = _UNKNOWN if self._net is None else sizes.products(self._net, self._facts, self._widths)
        operations = 6 * used * self.batch_size
        if on_cpu:
            return operations / (_CORE * int(provenance.machine()["cores"])) + _STACKED
        speed, alone = _GPU.get(self.precision, _GPU["fp32"])
        return operations / speed + (_STACKED if self.stacked else alone)


def _shape(train: Train) -> _Shape:
    net, widths = _network(train.net, train.data)
    text = None if widths is None else sizes.text(widths)
    own = f"{net.name} ({net.stem})" if net.stem != NETS[net.name].get("stem", net.stem) else net.name
    image = sizes.text(train.data.facts.shape)
    return _Shape(own, text, train.data.name, train.recipe.batch_size, train.recipe.precision, image)


@functools.cache
def _network(net: Net | Narrow, data: Data) -> tuple[Net, tuple[int, ...] | None]:
    """Network and widths of its stages; None for a network of one's own."""
    if isinstance(net, Narrow):
        return net.net, sizes.narrow(net.net, data, net.level, net.prunable, net.denominator).widths
    return net, sizes.own_widths(net)


@functools.cache
def _parameters(net: Net | Narrow, data: Data) -> int:
    whole, widths = _network(net, data)
    return 0 if widths is None else sizes.count(whole, data, widths).parameters


def _train_bytes(train: Train, kept: int, span: tuple[int, int]) -> int:
    state = _parameters(train.net, train.data) * (8 if train.recipe.precision == "fp64" else 4) + _STATE_BYTES
    if train.pruning is not None:
        state += _parameters(train.net, train.data) // 8 + _STATE_BYTES
    rows = -(-(span[1] - span[0]) // train.steps_per_epoch) + 1
    return kept * state + rows * _EPOCH_BYTES + _VALUE_BYTES


def _derived_bytes(value: Value) -> int:
    if isinstance(value, Measure) and value.name == "loss_surface":
        return int(value.setting["points"]) ** 2 * _POINT_BYTES + _VALUE_BYTES
    if not isinstance(value, Mask) or value.net is None:
        return _VALUE_BYTES
    run = next(at.run for item in reversed(ancestors([value])) for at in item.moments)
    return _parameters(run.net, run.data) // 8 + _VALUE_BYTES


# --- past trainings -------------------------------------------------------------------------------------------


class _Line(BaseModel):
    """A line of timings, as far as it is read."""

    network: str
    widths: Annotated[str, Field(pattern="^[0-9]+(-[0-9]+)*$")] | None
    data: str
    batch_size: Count
    precision: str
    image: Annotated[str, Field(pattern="^[0-9]+-[0-9]+-[0-9]+$")] = ""
    processor: str
    cores: Count
    device: str
    replicas: Count
    steps: Count
    seconds: Positive


class _Notebook(BaseModel):
    """A line of timings that tells what a notebook took beyond its trainings."""

    notebook: str
    processor: str
    cores: Count
    seconds: Positive


class _Stop(BaseModel):
    """A line of timings that tells how long stopping took."""

    stop: str
    processor: str
    cores: Count
    seconds: Positive


def _past(store: Store, form: type[BaseModel], facts: Mapping[str, Any]) -> list[float]:
    """Seconds of the lines of a form that have these facts and are of this machine."""
    found = []
    asked = {**provenance.machine(), **facts}.items()
    for text in store.timings():
        with suppress(ValidationError):  # half a line, or of another form
            line = form.model_validate_json(text).model_dump()
            if line.items() >= asked:
                found.append(line["seconds"])
    return found


def _beyond(store: Store, notebook: str) -> float:
    """Seconds that a notebook takes beyond its trainings."""
    past = _past(store, _Notebook, {"notebook": notebook}) or _past(store, _Notebook, {})
    return statistics.median(past[-LATEST:]) if past else _NOTEBOOK


class _Rates:
    """Seconds per step and replica, from the timings of this machine."""

    def __init__(self, store: Store, device: str) -> None:
        self.device = device
        self._past: dict[_Shape, dict[int, list[float]]] = {}
        self._known: dict[tuple[_Shape, int], tuple[float, bool]] = {}
        here, known = {**provenance.machine(), "device": device}, data_sets()
        for text in store.timings():
            with suppress(ValidationError):  # half a line, or of another version
                line = _Line.model_validate_json(text)
                if line.data in known and line.model_dump().items() >= here.items():
                    whole = sizes.text(facts_of(line.data).shape)  # lines of earlier versions do not say
                    shape = _Shape(**line.model_dump(include=set(_Shape._fields)) | {"image": line.image or whole})
                    rate = line.seconds / (line.steps * line.replicas)
                    self._past.setdefault(shape, {}).setdefault(line.replicas, []).append(rate)
        found = [self._measured(shape, size) / self._guess(shape) for shape in self._past for size in self._past[shape]]
        self._correction = statistics.median(found) if found else 1.0

    def of(self, shape: _Shape, replicas: int) -> tuple[float, bool]:
        """Seconds per step and replica of a group, and whether they were measured."""
        if (shape, replicas) not in self._known:
            measured = shape in self._past
            rate = self._measured(shape, replicas) if measured else self._correction * self._guess(shape)
            self._known[shape, replicas] = rate, measured
        return self._known[shape, replicas]

    def _guess(self, shape: _Shape) -> float:
        return shape.guess(self.device.startswith("cpu"))

    def _measured(self, shape: _Shape, replicas: int) -> float:
        past = self._past[shape]
        return statistics.median(past[min(past, key=lambda size: abs(math.log(size / replicas)))][-LATEST:])
