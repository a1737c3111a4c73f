"""Experiments as values: frozen descriptions of trainings, masks and measures, each with a key.

A value is a node of a graph. Its *form* holds its own fields that are not at their defaults and the keys of
the values it is made from; its *key* is the hash of that form. Two values are equal when their keys are.
Nothing here computes: `lthlab.lab` turns values into results.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar

from lthlab.errors import nearest
from lthlab.parts import (
    POLICIES,
    Data,
    Level,
    Net,
    Part,
    Recipe,
    Sparsity,
    decimal_text,
    duration,
    iterations,
    plain_decimal,
    sparsity_fraction,
    step,
    step_text,
)
from lthlab.sizes import covers_head

KINDS: dict[str, type["Value"]] = {}

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical(form: Mapping[str, Any]) -> str:
    """Write a form as text: JSON with sorted names and no white space."""
    return _JSON.encode(form)


def key_of(text: str) -> str:
    """Hash canonical text to a key of 32 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, eq=False, repr=False)
class Value:
    """A node of the graph of experiments. Equality, hash and text go by key."""

    revision: ClassVar[int] = 1
    stored: ClassVar[bool] = False
    key: str = dataclasses.field(init=False, default="")

    def __init_subclass__(cls) -> None:
        KINDS[cls.__name__] = cls

    def __post_init__(self) -> None:
        self._check()
        object.__setattr__(self, "key", key_of(canonical(self.form())))

    def _check(self) -> None:
        """Refuse what makes no sense and bring equal things to one form."""

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def form(self) -> dict[str, Any]:
        """Return the description: fields not at their defaults, with the keys of stored inputs."""
        form: dict[str, Any] = {"kind": type(self).__name__}
        if self.revision != 1:
            form["revision"] = self.revision
        for name, default in _fields(type(self)):
            value = getattr(self, name)
            if value is not default and value != default:
                form[name] = _encode(value)
        return form

    @functools.cached_property
    def inputs(self) -> tuple["Value", ...]:
        """Stored values that this one is made from, nearest first."""
        found: dict[Value, None] = {}
        for name, _ in _fields(type(self)):
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Value):
                    found.update(dict.fromkeys((item,) if item.stored else item.inputs))
        return tuple(found)

    @functools.cached_property
    def moments(self) -> tuple["At", ...]:
        """States of trainings that this value is directly made from."""
        found: list[At] = []
        for name, _ in _fields(type(self)):
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                item = item.body if isinstance(item, Graft) else item
                found += [item] if isinstance(item, At) else []
        return tuple(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key})"


_FIELDS: dict[type, tuple[tuple[str, Any], ...]] = {}


def _fields(kind: type[Value]) -> tuple[tuple[str, Any], ...]:
    """Names and defaults of the fields that describe a value, found once."""
    if kind not in _FIELDS:
        _FIELDS[kind] = tuple((field.name, field.default) for field in dataclasses.fields(kind) if field.name != "key")
    return _FIELDS[kind]


def _encode(value: object) -> Any:
    if isinstance(value, Value):
        return value.key if value.stored else value.form()
    if isinstance(value, Part):
        return value.form()
    if isinstance(value, Level):
        return {"level": value.k} if value.rate == "0.2" else {"level": value.k, "rate": value.rate}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value


def _index(value: object, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{name} {value!r} is not allowed; allowed: whole numbers from 0 to 2**63 - 1")


def _choice(value: object, allowed: tuple[str, ...], name: str) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is not allowed; {nearest(value, allowed)}")


def _sparsity(value: object) -> Sparsity:
    return value if isinstance(value, Level) else decimal_text(value)


@dataclass(frozen=True, eq=False, repr=False)
class Fresh(Value):
    """Weights drawn from a network's initial distribution.

    Parameters
    ----------
    replicate : int
        Replicate, from 0.
    draw : int, optional
        0 is θ_0, 1 the independent reinitialisation θ'_0 (Ma Table 1).
    """

    replicate: int
    draw: int = 0

    def _check(self) -> None:
        _index(self.replicate, "replicate")
        _index(self.draw, "draw")


@dataclass(frozen=True, eq=False, repr=False)
class At(Value):
    """θ_t: the whole state of a training after a step, BatchNorm statistics included.

    Parameters
    ----------
    run : Train
        The training.
    step : str
        '8ep', '500it', 'last', 'best_val' or 'best_test'. Steps of a training that resumes at t count on the
        schedule's clock, from t. 'last' and '160ep' of 160 epochs are the same value.

    Raises
    ------
    ValueError
        If the step lies outside the training.
    """

    run: "Train"
    step: str

    def _check(self) -> None:
        self._set(step=self.run.canonical_step(self.step))


@dataclass(frozen=True, eq=False, repr=False)
class Graft(Value):
    """Weights of a trained body under a freshly drawn head (Morcos 3.3).

    Parameters
    ----------
    body : At
        Where all but the head comes from, BatchNorm's running statistics included.
    head : Fresh
        Draw of the last layer's weights and biases, for the classes of the target data: those that the whole network
        would have there.
    """

    body: At
    head: Fresh


class Mask(Value):
    """Which of a network's prunable weights survive."""

    @property
    def source(self) -> "Train | None":
        """Training whose network and data the mask is for; None where it fits any."""
        raise NotImplementedError

    @property
    def net(self) -> "Net | Narrow | None":
        """Network that the mask is for; None where it fits any."""
        return self.source.net if self.source else None

    @property
    def policy(self) -> str | None:
        """Prunable set that the mask covers; None where it covers none."""
        raise NotImplementedError

    @property
    def on_head(self) -> bool:
        """Whether it covers weights of the last layer."""
        return self.policy is not None and covers_head(self.policy)


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Mask):
    """No weight is pruned."""

    @property
    def source(self) -> None:
        return None

    @property
    def policy(self) -> None:
        return None


@dataclass(frozen=True, eq=False, repr=False)
class Magnitude(Mask):
    """Keep the weights of largest magnitude; what the ranked training's own mask had pruned stays pruned.

    Fields that have no effect are set to their defaults: `scope` and `denominator` with `layer_counts_of`,
    `denominator` within layers, `norm` of single weights.

    Parameters
    ----------
    of : At
        Weights that are ranked.
    sparsity : Level, float or str, optional
        Share of weights pruned in all, counted from the original number. Absent with `layer_counts_of`.
    prunable : str, optional
        Named set of prunable weights, one of `POLICIES`.
    scope : {'global', 'layer'}, optional
        Rank over all layers together or prune the same share of every layer.
    denominator : {'prunable', 'all'}, optional
        What the sparsity is a share of: the prunable weights or all parameters.
    layer_counts_of : Mask, optional
        Prune as many weights of each layer as this mask does (Lan Fig. 7).
    granularity : {'weight', 'filter'}, optional
        What is pruned; 'filter' removes whole filters by their `norm` (Lan Fig. 5).
    norm : {'l1', 'l2'}, optional
        Norm of a filter.

    Raises
    ------
    ValueError
        For a sparsity outside [0, 1), or one given together with `layer_counts_of`.
    """

    stored: ClassVar[bool] = True
    of: At
    sparsity: Sparsity | None = None
    prunable: str = "all_but_head"
    scope: str = "global"
    denominator: str = "prunable"
    layer_counts_of: Mask | None = None
    granularity: str = "weight"
    norm: str = "l1"

    def _check(self) -> None:
        if (self.sparsity is None) == (self.layer_counts_of is None):
            raise ValueError("Magnitude takes either a sparsity or layer_counts_of")
        if self.sparsity is not None:
            self._set(sparsity=_sparsity(self.sparsity))
        _choice(self.prunable, POLICIES, "prunable")
        _choice(self.scope, ("global", "layer"), "scope")
        _choice(self.denominator, ("prunable", "all"), "denominator")
        _choice(self.granularity, ("weight", "filter"), "granularity")
        _choice(self.norm, ("l1", "l2"), "norm")
        for what, mask in (("ranked training's mask", self.of.run.mask), ("layer_counts_of", self.layer_counts_of)):
            if mask is not None and mask.policy != self.prunable and (mask.stored or what == "layer_counts_of"):
                raise ValueError(
                    f"prunable '{self.prunable}' under a {what} that covers '{mask.policy}'; allowed: the same"
                )
        if self.layer_counts_of is not None:
            self._set(scope="global", denominator="prunable")
        if self.scope == "layer":
            self._set(denominator="prunable")
        if self.granularity == "weight":
            self._set(norm="l1")

    @property
    def source(self) -> "Train":
        return self.of.run

    @property
    def policy(self) -> str:
        return self.prunable

    @property
    def on_head(self) -> bool:
        return super().on_head or self.granularity == "filter"


@dataclass(frozen=True, eq=False, repr=False)
class Permuted(Mask):
    """A mask with its positions permuted at random, over prunable weights only (Morcos 3.1, A.1).

    Parameters
    ----------
    mask : Mask
        Mask to permute.
    scope : {'layer', 'global'}, optional
        Keep each layer's count, or only the total.
    seed : int, optional
        Which permutation.
    """

    stored: ClassVar[bool] = True
    mask: Mask
    scope: str = "layer"
    seed: int = 0

    def _check(self) -> None:
        _choice(self.scope, ("layer", "global"), "scope")
        _index(self.seed, "seed")
        if not self.mask.stored:
            raise ValueError("a dense mask has nothing to permute")

    @property
    def source(self) -> "Train | None":
        return self.mask.source

    @property
    def policy(self) -> str | None:
        return self.mask.policy

    @property
    def on_head(self) -> bool:
        return self.mask.on_head


@dataclass(frozen=True, eq=False, repr=False)
class MaskOf(Mask):
    """The mask that a training which prunes on its way has at a step, after any pruning there.

    Raises
    ------
    ValueError
        If the training does not prune, or the step lies outside it.
    """

    stored: ClassVar[bool] = True
    run: "Train"
    step: str = "last"

    def _check(self) -> None:
        if self.run.pruning is None:
            raise ValueError(f"{self.run!r} does not prune on its way; its mask is {self.run.mask!r}")
        self._set(step=self.run.canonical_step(self.step))

    @property
    def source(self) -> "Train":
        return self.run

    @property
    def policy(self) -> str | None:
        return self.run.pruning.prunable if self.run.pruning else self.run.mask.policy


@dataclass(frozen=True, eq=False, repr=False)
class Narrow(Value):
    """The network narrowed until it has no more parameters than its ticket keeps (SDT, Ma 2.1).

    Parameters
    ----------
    net : Net
        Network to narrow.
    level : Level, float or str
        Sparsity of the ticket that it stands against.
    prunable : str, optional
        Prunable set that the sparsity is counted on.
    denominator : {'prunable', 'all'}, optional
        As in `Magnitude`.

    Notes
    -----
    Its widths follow from the data too; `lthlab.sizes.narrow` finds them.
    """

    net: Net
    level: Sparsity
    prunable: str = "all_but_head"
    denominator: str = "prunable"

    def _check(self) -> None:
        self._set(level=_sparsity(self.level))
        _choice(self.prunable, POLICIES, "prunable")
        _choice(self.denominator, ("prunable", "all"), "denominator")


def plain(net: Net | Narrow) -> Net:
    """Return the network that a narrow one is made from, or the network itself."""
    return net.net if isinstance(net, Narrow) else net


@dataclass(frozen=True, eq=False, repr=False)
class Gradual(Value):
    """Prune on the way along a curve (Zhu and Gupta; Sooner eq. 6).

    Parameters
    ----------
    start, end, every : str
        First and last step at which weights are pruned, and the interval.
    sparsity, initial : Level, float or str
        Sparsity at the end and before the start.
    shape : {'cubic', 'linear'}, optional
        Form of the curve.
    prunable, scope : str, optional
        As in `Magnitude`.

    Raises
    ------
    ValueError
        If the sparsity falls, or a training is too short for the curve.
    """

    start: str
    end: str
    every: str
    sparsity: Sparsity
    initial: Sparsity = "0"
    shape: str = "cubic"
    prunable: str = "all_but_head"
    scope: str = "global"

    def _check(self) -> None:
        for name in ("start", "end", "every"):
            duration(getattr(self, name))
        if iterations(self.every, 1) == 0:
            raise ValueError(f"every {self.every!r} is not allowed; allowed: '1it' or more")
        self._set(sparsity=_sparsity(self.sparsity), initial=_sparsity(self.initial))
        if sparsity_fraction(self.initial) > sparsity_fraction(self.sparsity):
            raise ValueError(f"sparsity {self.sparsity!r} is below the initial one, {self.initial!r}")
        _choice(self.shape, ("cubic", "linear"), "shape")
        _choice(self.prunable, POLICIES, "prunable")
        _choice(self.scope, ("global", "layer"), "scope")

    def aligned(self, train: "Train") -> "Gradual":
        """Bring the steps to the one form that they have in keys of a training."""
        start, end = train.canonical_step(self.start), train.canonical_step(self.end)
        if train.iteration(start) >= train.iteration(end):
            raise ValueError(f"pruning from {self.start} to {self.end}: the end is not behind the start")
        every = step_text(iterations(self.every, train.steps_per_epoch), train.steps_per_epoch)
        return dataclasses.replace(self, start=start, end=end, every=every)


@dataclass(frozen=True, eq=False, repr=False)
class Explicit(Value):
    """Prune on the way at listed steps to listed sparsities (Sooner Table 1).

    Parameters
    ----------
    points : tuple of (str, Level, float or str)
        Steps, rising, each with the sparsity that holds from there on, not falling.
    prunable, scope : str, optional
        As in `Magnitude`.

    Raises
    ------
    ValueError
        If the sparsities fall, or the steps do not rise or lie outside a training.
    """

    points: tuple[tuple[str, Sparsity], ...]
    prunable: str = "all_but_head"
    scope: str = "global"

    def _check(self) -> None:
        self._set(points=tuple((duration(at), _sparsity(s)) for at, s in self.points))
        shares = [sparsity_fraction(s) for _, s in self.points]
        if not shares or shares != sorted(shares):
            raise ValueError("points: a list of (step, sparsity) whose sparsities do not fall")
        _choice(self.prunable, POLICIES, "prunable")
        _choice(self.scope, ("global", "layer"), "scope")

    def aligned(self, train: "Train") -> "Explicit":
        """Bring the steps to the one form that they have in keys of a training."""
        counts = [train.iteration(at) for at, _ in self.points]
        if counts != sorted(set(counts)):
            raise ValueError(f"points: the steps {', '.join(at for at, _ in self.points)} do not rise")
        points = tuple((train.step_text(n), s) for n, (_, s) in zip(counts, self.points, strict=True))
        return dataclasses.replace(self, points=points)


@dataclass(frozen=True, eq=False, repr=False)
class Train(Value):
    """Take these weights, under this mask, on this data, in this order, with this recipe; train.

    Fields that have no effect are set to their defaults: `schedule` at step 0, `batchnorm` with fresh weights.

    Parameters
    ----------
    net : Net or Narrow
        The network.
    data : Data
        What it is trained on.
    recipe : Recipe
        How; describes a whole schedule, of which as much is trained as is asked for.
    init : Fresh, At or Graft
        Where the weights come from.
    order : int
        Replicate whose order of batches and augmentation is used.
    mask : Mask, optional
        What stays pruned throughout.
    schedule : {'restart', 'resume'}, optional
        With weights of step t of another training: train the whole schedule (Sooner), or its rest from t
        (Ma appendix B).
    batchnorm : {'rewound', 'reset'}, optional
        BatchNorm's running statistics start from those of `init`, or from zero mean and unit variance.
    pruning : Gradual or Explicit, optional
        Pruning during the training.

    Raises
    ------
    ValueError
        If the parts do not fit each other.
    """

    stored: ClassVar[bool] = True
    net: Net | Narrow
    data: Data
    recipe: Recipe
    init: Fresh | At | Graft
    order: int
    mask: Mask = Dense()
    schedule: str = "restart"
    batchnorm: str = "rewound"
    pruning: Gradual | Explicit | None = None

    def _check(self) -> None:
        _index(self.order, "order")
        _choice(self.schedule, ("restart", "resume"), "schedule")
        _choice(self.batchnorm, ("rewound", "reset"), "batchnorm")
        if self.mask.net not in (None, self.net):
            raise ValueError(f"mask {self.mask!r} is for another network than {self.net!r}")
        source = self.init.body if isinstance(self.init, Graft) else self.init
        if isinstance(source, At) and source.run.net != self.net:
            raise ValueError(f"weights of {source.run!r} are for another network than {self.net!r}")
        if isinstance(self.init, Graft) and self.mask.on_head:
            allowed = "masks of weights, of a prunable set without the head, such as 'all_but_head'"
            raise ValueError(f"mask {self.mask!r} covers the head, which a graft draws anew; allowed: {allowed}")
        if self.pruning is not None and self.mask.policy not in (None, self.pruning.prunable):
            raise ValueError(f"pruning of '{self.pruning.prunable}' under a mask that covers '{self.mask.policy}'")
        if self.recipe.batch_size > self.data.images:
            raise ValueError(
                f"batch_size {self.recipe.batch_size} is larger than the {self.data.images} training images"
            )
        start = 0
        if self.schedule == "resume":
            if not isinstance(source, At) or source.step.startswith("best"):
                raise ValueError(f"schedule 'resume' needs weights of a fixed step of another training, not {source!r}")
            same_length = source.run.steps_per_epoch == self.steps_per_epoch
            if source.step.endswith("it") and not same_length:
                raise ValueError(f"schedule 'resume' at {source.step} between trainings whose epochs differ in length")
            start = iterations(source.step, self.steps_per_epoch)
            if start >= self.end:
                raise ValueError(f"schedule 'resume' at {source.step}: nothing is left of {self.recipe.epochs}ep")
        self._set(schedule="resume" if start else "restart", _start=start)
        self._set(recipe=self.recipe.aligned(self.steps_per_epoch).divided(plain(self.net), self.data))
        if isinstance(self.init, Fresh):
            self._set(batchnorm="rewound")
        if self.pruning is not None:
            self._set(pruning=self.pruning.aligned(self))

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of an epoch; the last may have a smaller batch."""
        return self.data.steps_per_epoch(self.recipe.batch_size)

    @property
    def start(self) -> int:
        """First iteration on the schedule's clock; above 0 where the schedule resumes."""
        return self.__dict__["_start"]

    @property
    def end(self) -> int:
        """Number of iterations of the whole schedule."""
        return self.recipe.epochs * self.steps_per_epoch

    def iteration(self, at: str) -> int:
        """Convert a step other than 'best_…' to iterations on the schedule's clock.

        Raises
        ------
        ValueError
            If the step lies before the start or after the end of this training.
        """
        count = self.end if step(at) == "last" else iterations(duration(at), self.steps_per_epoch)
        if not self.start <= count <= self.end:
            allowed = f"{self.step_text(self.start)} to {self.step_text(self.end)}"
            raise ValueError(f"step {at} is outside the training; allowed: {allowed}")
        return count

    def step_text(self, iteration: int) -> str:
        """Name an iteration: in epochs where it ends one."""
        return step_text(iteration, self.steps_per_epoch)

    def canonical_step(self, at: str) -> str:
        """Bring a step to the one name that it has in keys."""
        if step(at) == "best_val" and not self.data.val_size:
            raise ValueError("step best_val needs validation images; set val_size of the data above 0")
        return at if at.startswith("best") else self.step_text(self.iteration(at))


@dataclass(frozen=True, eq=False, repr=False)
class Measure(Value):
    """A named analysis of weights and masks.

    Parameters
    ----------
    name : str
        One of `MEASURES`.
    of : tuple of At or Mask
        What is measured, in the order that the analysis expects.
    settings : mapping or tuple of pairs, optional
        Settings by name, text or numbers; those not given have the values in `MEASURES`.
    mask : Mask, optional
        Restrict to the weights that this mask keeps, instead of the mask that the trainings have.

    Raises
    ------
    ValueError
        For an unknown measure or setting, or if `of` is not what the measure is about.
    """

    stored: ClassVar[bool] = True
    name: str
    of: tuple[Value, ...]
    settings: tuple[tuple[str, str], ...] = ()
    mask: Mask | None = None

    def _check(self) -> None:
        _choice(self.name, tuple(MEASURES), "measure")
        given, known = dict(self.settings), MEASURES[self.name]
        for name in given:
            _choice(name, tuple(known), "setting")
        settings = {name: _setting(value, name) for name, value in (known | given).items()}
        _choice(settings["prunable"], POLICIES, "prunable")
        if not re.fullmatch(r"0\.[0-9]+|1", settings["p"]):
            raise ValueError(f"p {settings['p']!r} is not allowed; allowed: numbers above 0 up to 1")
        self._set(of=tuple(self.of), settings=tuple(sorted(settings.items())))
        if len(self.of) != 2 or not all(isinstance(item, At) for item in self.of):
            raise ValueError(f"{self.name} is of two states of trainings, not of {self.of!r}")

    def form(self) -> dict[str, Any]:
        form = super().form()
        form["settings"] = [list(pair) for pair in self.settings if pair not in MEASURES[self.name].items()]
        return form if form["settings"] else {name: item for name, item in form.items() if name != "settings"}


MEASURES: dict[str, dict[str, str]] = {"correlation_indicator": {"p": "0.1", "prunable": "all_but_head"}}
"""Known measures, each with its settings and their defaults."""


def _setting(value: object, name: str) -> str:
    """Write a setting as text, equal numbers alike."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"setting {name} {value!r} is not allowed; allowed: text and numbers")
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return str(value)
    if not number.is_finite():
        raise ValueError(f"setting {name} {value!r} is not allowed; allowed: text and finite numbers")
    return plain_decimal(number)


def ancestors(values: Iterable[Value]) -> list[Value]:
    """List stored values and all that they are made from, each once, inputs first."""
    done: dict[Value, None] = {}
    stack: list[tuple[Value, bool]] = [(value, False) for value in reversed(list(values))]
    while stack:
        value, expanded = stack.pop()
        if value in done:
            continue
        if expanded and value.stored:
            done[value] = None
        elif not expanded:
            stack.append((value, True))
            stack.extend((item, False) for item in reversed(value.inputs))
    return list(done)
