"""Experiments as values: frozen descriptions of trainings and masks, each with a key.

A value is a node of a graph. Its *form* holds its own fields that are not at their defaults and the keys of
the values it is made from; its *key* is the hash of that form. Two values are equal when their keys are.
Nothing here computes: `lthlab.lab` turns values into results.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from lthlab.nodes import Value, choice, index
from lthlab.parts import (
    POLICIES,
    Data,
    Level,
    Net,
    Recipe,
    Sparsity,
    decimal_text,
    duration,
    iterations,
    sparsity_fraction,
    step,
    step_text,
)
from lthlab.sizes import covers_head


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
        index(self.replicate, "replicate")
        index(self.draw, "draw")


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

    @property
    def moment(self) -> "At":
        return self


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

    @property
    def moment(self) -> At:
        return self.body


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
        return self.of_filters or (self.policy is not None and covers_head(self.policy))

    @property
    def of_filters(self) -> bool:
        """Whether whole filters are pruned, with all that goes with them."""
        return False

    def fits(self, data: Data) -> bool:
        """Whether the network has the same shapes for these images and classes."""
        own = (self.source.data if self.source else data).facts
        return (own.shape, own.classes) == (data.facts.shape, data.facts.classes)


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

    Fields that have no effect are set to their defaults: `scope`, `denominator` and `floor` with `layer_counts_of`,
    `denominator` within layers and of filters, `norm` of single weights.

    Parameters
    ----------
    of : At
        Weights that are ranked.
    sparsity : Level, float or str, optional
        Share of weights, or of filters, pruned in all, counted from the original number. Absent with
        `layer_counts_of`.
    prunable : str, optional
        Named set of prunable weights, one of `POLICIES`.
    scope : {'global', 'layer'}, optional
        Rank over all layers together or prune the same share of every layer.
    denominator : {'prunable', 'all'}, optional
        What the sparsity is a share of: the prunable weights or all parameters.
    layer_counts_of : Mask, optional
        Prune as many weights of each layer as this mask does (Lan Fig. 7): one of the same network, for images of
        the same shape and as many classes.
    granularity : {'weight', 'filter'}, optional
        What is pruned; 'filter' removes whole filters by their `norm`, in one shot (Lan Fig. 5), with all that
        goes with them: see `lthlab.filters`.
    norm : {'l1', 'l2'}, optional
        Norm of a filter (Li et al. 2017).
    floor : float or str, optional
        Share of each layer's weights, in [0, 1), that it keeps at least, rounded half up, but one weight or more; as
        many weights go in all as without it. Only of single weights that are ranked over all layers together.

    Raises
    ------
    ValueError
        For a sparsity or floor outside [0, 1), fields that do not go together, filters under a mask or weights under
        a mask of filters, or a `layer_counts_of` of other shapes.
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
    floor: str | None = None

    def _check(self) -> None:
        if (self.sparsity is None) == (self.layer_counts_of is None):
            raise ValueError("Magnitude takes either a sparsity or layer_counts_of")
        if self.sparsity is not None:
            self._set(sparsity=_sparsity(self.sparsity))
        choice(self.prunable, POLICIES, "prunable")
        choice(self.scope, ("global", "layer"), "scope")
        choice(self.denominator, ("prunable", "all"), "denominator")
        choice(self.granularity, ("weight", "filter"), "granularity")
        choice(self.norm, ("l1", "l2"), "norm")
        covered: dict[str, str | None] = {"ranked training's mask": self.of.run.policy or self.prunable}
        if self.layer_counts_of is not None:
            covered["layer_counts_of"] = self.layer_counts_of.policy
        for what, policy in covered.items():
            if policy != self.prunable:
                raise ValueError(f"prunable '{self.prunable}' under a {what} that covers '{policy}'; allowed: the same")
        if self.granularity == "filter":
            self._check_filters()
        elif self.of.run.mask.of_filters:
            raise ValueError(f"{self.of.run!r} is under a mask of filters, under which single weights are not pruned")
        else:
            self._set(norm="l1")
        if self.layer_counts_of is not None:
            self._set(scope="global", denominator="prunable", floor=None)
            if self.layer_counts_of.net != self.net or not self.layer_counts_of.fits(self.source.data):
                raise ValueError(
                    f"layer_counts_of {self.layer_counts_of!r} has other layers than {self.of.run!r}; allowed: masks "
                    "of the same network, for images of the same shape and as many classes"
                )
        if self.scope == "layer":
            self._set(denominator="prunable")
        if self.floor is not None:
            floor = decimal_text(self.floor, "floor")
            self._set(floor=None if floor == "0" else floor)
        if self.floor is not None and (self.scope, self.granularity) != ("global", "weight"):
            raise ValueError(
                f"floor {self.floor} with scope '{self.scope}' and granularity '{self.granularity}'; allowed: "
                "scope 'global' and granularity 'weight'"
            )

    def _check_filters(self) -> None:
        run = self.of.run
        if self.layer_counts_of is not None:
            raise ValueError("granularity 'filter' takes no layer_counts_of; allowed: a sparsity")
        if run.mask.stored or run.pruning is not None:
            raise ValueError(
                f"filters are pruned in one shot, and {run!r} is pruned already; allowed: a dense training"
            )
        self._set(denominator="prunable")

    @property
    def source(self) -> "Train":
        return self.of.run

    @property
    def policy(self) -> str:
        return self.prunable

    @property
    def of_filters(self) -> bool:
        return self.granularity == "filter"


@dataclass(frozen=True, eq=False, repr=False)
class Permuted(Mask):
    """A mask with its positions permuted at random, over prunable weights only (Morcos 3.1, A.1).

    Parameters
    ----------
    mask : Mask
        Mask to permute; of a mask of filters, whole filters are.
    scope : {'layer', 'global'}, optional
        Keep each layer's count, or only the total.
    seed : int, optional
        Which permutation.

    Raises
    ------
    ValueError
        For a dense mask, or filters over all layers together.
    """

    stored: ClassVar[bool] = True
    mask: Mask
    scope: str = "layer"
    seed: int = 0

    def _check(self) -> None:
        choice(self.scope, ("layer", "global"), "scope")
        index(self.seed, "seed")
        if not self.mask.stored:
            raise ValueError("a dense mask has nothing to permute")
        if self.of_filters and self.scope == "global":
            raise ValueError("scope 'global' of a mask of filters is not allowed; allowed: 'layer'")

    @property
    def source(self) -> "Train | None":
        return self.mask.source

    @property
    def policy(self) -> str | None:
        return self.mask.policy

    @property
    def of_filters(self) -> bool:
        return self.mask.of_filters


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
        return self.run.policy

    @functools.cached_property
    def moments(self) -> tuple[At, ...]:
        """The state that the mask belongs to: it is kept with it."""
        return (At(self.run, self.step),)


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
        choice(self.prunable, POLICIES, "prunable")
        choice(self.denominator, ("prunable", "all"), "denominator")


def plain(net: Net | Narrow) -> Net:
    """Return the network that a narrow one is made from, or the network itself."""
    return net.net if isinstance(net, Narrow) else net


def _named(sparsity: Sparsity) -> str:
    return f"of level {sparsity.k}" if isinstance(sparsity, Level) else sparsity


def _check_layers(pruning: "Gradual | Explicit", last: Sparsity) -> None:
    """Check what a training that prunes to a sparsity does with layers."""
    choice(pruning.prunable, POLICIES, "prunable")
    choice(pruning.scope, ("global", "layer"), "scope")
    floor, kept = decimal_text(pruning.floor or 0, "floor"), 1 - sparsity_fraction(last)
    if Fraction(floor) > kept:
        raise ValueError(f"floor {pruning.floor!r} is more than is kept in all; allowed: 0 to {float(kept):.6g}")
    if floor != "0" and pruning.scope == "layer":
        raise ValueError(f"floor {pruning.floor!r} with scope 'layer'; allowed: scope 'global'")
    pruning._set(floor=None if floor == "0" else floor)


@dataclass(frozen=True, eq=False, repr=False)
class Gradual(Value):
    """Prune on the way along a curve (Zhu and Gupta 2017; Sooner eq. 6).

    The smallest of the weights as they are then go. They are pruned at `start`, then after every interval, and at
    `end`, where the sparsity is exact whether or not the intervals divide the window.

    Parameters
    ----------
    start, end, every : str
        First and last step at which weights are pruned, and the interval.
    sparsity, initial : Level, float or str
        Sparsity at the end and at the start, shares of the original number of prunable weights. What the training's
        own mask has pruned counts.
    shape : {'cubic', 'linear'}, optional
        Form of the curve.
    prunable, scope : str, optional
        As in `Magnitude`.
    floor : float or str, optional
        Share of each layer's weights, in [0, 1), that it keeps at the least; for the scope 'global'.

    Raises
    ------
    ValueError
        If the sparsity falls, a floor is more than is kept, or the curve lies outside a training.
    """

    start: str
    end: str
    every: str
    sparsity: Sparsity
    initial: Sparsity = "0"
    shape: str = "cubic"
    prunable: str = "all_but_head"
    scope: str = "global"
    floor: str | None = None

    def _check(self) -> None:
        for name in ("start", "end", "every"):
            duration(getattr(self, name))
        if iterations(self.every, 1) == 0:
            raise ValueError(f"every {self.every!r} is not allowed; allowed: '1it' or more")
        self._set(sparsity=_sparsity(self.sparsity), initial=_sparsity(self.initial))
        if sparsity_fraction(self.initial) > sparsity_fraction(self.sparsity):
            raise ValueError(f"sparsity {_named(self.sparsity)} is below the initial one, {_named(self.initial)}")
        choice(self.shape, ("cubic", "linear"), "shape")
        _check_layers(self, self.sparsity)

    def aligned(self, train: "Train") -> "Gradual":
        """Bring the steps to the one form that they have in keys of a training."""
        first, last = train.iteration(self.start, "pruning start"), train.iteration(self.end, "pruning end")
        if first >= last:
            raise ValueError(f"pruning from {self.start} to {self.end}: the end is not behind the start")
        every = step_text(iterations(self.every, train.steps_per_epoch), train.steps_per_epoch)
        return dataclasses.replace(self, start=train.step_text(first), end=train.step_text(last), every=every)


@dataclass(frozen=True, eq=False, repr=False)
class Explicit(Value):
    """Prune on the way at listed steps to listed sparsities (Sooner Table 1).

    Parameters
    ----------
    points : tuple of (str, Level, float or str)
        Steps, rising, each with the sparsity that holds from there on, not falling.
    prunable, scope, floor
        As in `Gradual`.

    Raises
    ------
    ValueError
        If the sparsities fall, a floor is more than is kept, or the steps do not rise or lie outside a training.
    """

    points: tuple[tuple[str, Sparsity], ...]
    prunable: str = "all_but_head"
    scope: str = "global"
    floor: str | None = None

    def _check(self) -> None:
        self._set(points=tuple((duration(at), _sparsity(s)) for at, s in self.points))
        if not self.points:
            raise ValueError("points () are not allowed; allowed: one (step, sparsity) or more")
        for (_, before), (at, sparsity) in itertools.pairwise(self.points):
            if sparsity_fraction(sparsity) < sparsity_fraction(before):
                raise ValueError(f"points: sparsity {sparsity!r} at {at} falls; allowed: {before!r} or more")
        _check_layers(self, self.points[-1][1])

    def aligned(self, train: "Train") -> "Explicit":
        """Bring the steps to the one form that they have in keys of a training."""
        counts = [train.iteration(at, "pruning point") for at, _ in self.points]
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
        Pruning during the training. At a step at which it prunes, a state is that after pruning.

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
        index(self.order, "order")
        choice(self.schedule, ("restart", "resume"), "schedule")
        choice(self.batchnorm, ("rewound", "reset"), "batchnorm")
        if self.mask.net not in (None, self.net):
            raise ValueError(f"mask {self.mask!r} is for another network than {self.net!r}")
        source = self.init.body if isinstance(self.init, Graft) else self.init
        if isinstance(source, At) and source.run.net != self.net:
            raise ValueError(f"weights of {source.run!r} are for another network than {self.net!r}")
        if isinstance(self.init, Graft) and self.mask.on_head:
            allowed = "masks of weights, of a prunable set without the head, such as 'all_but_head'"
            raise ValueError(f"mask {self.mask!r} covers the head, which a graft draws anew; allowed: {allowed}")
        if self.mask.of_filters and not self.mask.fits(self.data):
            raise ValueError(
                f"mask {self.mask!r} of filters covers what they feed, for images of another shape or other classes"
            )
        if self.mask.of_filters and self.pruning is not None:
            raise ValueError(f"pruning on the way under {self.mask!r}, a mask of filters; allowed: a mask of weights")
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

    @functools.cached_property
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

    @property
    def policy(self) -> str | None:
        """Prunable set that its mask covers, on its way too; None if it prunes nothing."""
        return self.pruning.prunable if self.pruning else self.mask.policy

    def iteration(self, at: str, name: str = "step") -> int:
        """Convert a step other than 'best_…' to iterations on the schedule's clock; an error calls it `name`.

        Raises
        ------
        ValueError
            If the step lies before the start or after the end of this training.
        """
        count = self.end if step(at) == "last" else iterations(duration(at), self.steps_per_epoch)
        if not self.start <= count <= self.end:
            allowed = f"{self.step_text(self.start)} to {self.step_text(self.end)}"
            raise ValueError(f"{name} {at} is outside the training; allowed: {allowed}")
        return count

    def step_text(self, iteration: int) -> str:
        """Name an iteration: in epochs where it ends one."""
        return step_text(iteration, self.steps_per_epoch)

    def canonical_step(self, at: str) -> str:
        """Bring a step to the one name that it has in keys."""
        if step(at) == "best_val" and not self.data.val_size:
            raise ValueError("step best_val needs validation images; set val_size of the data above 0")
        return at if at.startswith("best") else self.step_text(self.iteration(at))


def ancestors(values: Iterable[Value]) -> list[Value]:
    """List stored values and all that they are made from, each once, inputs first."""
    done: dict[str, Value] = {}
    stack: list[tuple[Value, bool]] = [(value, False) for value in reversed(list(values))]
    while stack:
        value, expanded = stack.pop()
        if value.key in done:
            continue
        if expanded and value.stored:
            done[value.key] = value
        elif not expanded:
            stack.append((value, True))
            stack.extend((item, False) for item in reversed(value.inputs))
    return list(done.values())
