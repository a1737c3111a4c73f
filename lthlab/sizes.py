"""How many parameters a network has, how many a ticket keeps, and the narrow dense network of that size.

All follows from the widths of a network's stages: channels of convolutions, and units of hidden layers.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lthlab.datasets import DataFacts, facts_of
from lthlab.errors import InputError, nearest
from lthlab.parts import NETS, POLICIES, WITHOUT_BATCHNORM, Data, Level, Net, Recipe, Sparsity, pruned_count

TOLERANCE = 0.02
"""Share of its target that a narrow network may lack; a larger gap deserves a warning."""

_Widths = Sequence[Any] | NDArray[Any]
_Shape = tuple[int, int, int]
_AROUND = {2: 171, 3: 24}  # by number of stages; up to 2,000 channels, what is further off is less even than rounding
_SMALL, _LARGE = 16, 3 * 10**7  # pixels of a side; products for an image, of which two threads have enough
_MOST = 7**6  # combinations of widths that are tried where there are more stages
STEMS = {"cifar": (3, 1, False), "tiny_imagenet": (3, 2, False), "imagenet": (7, 2, True)}
"""What images meet first in ResNets: size of the kernel, stride, and whether pooling follows."""
_LEFT_OUT: dict[str, frozenset[str]] = {
    "all": frozenset(),
    "all_but_head": frozenset({"head"}),
    "first_last_dense": frozenset({"first", "head"}),
    "first_last_depthwise_dense": frozenset({"first", "head", "depthwise"}),
    "ma_resnet20": frozenset({"first", "head"}),
    "ma_resnet32": frozenset({"first", "head", "shortcut"}),
}


@dataclass(frozen=True)
class Size:
    """Size of a network.

    Attributes
    ----------
    widths : tuple of int
        Channels of the stages, then units of the hidden layers.
    parameters, prunable : int
        Number of all parameters, and of those that a policy lets be pruned.
    target : int
        Number of parameters that it should have, and has at the most.
    gap : float
        Share of the target that it lacks, in [0, 1); above `TOLERANCE` where no network comes nearer.
    """

    widths: tuple[int, ...]
    parameters: int
    prunable: int
    target: int
    gap: float


def own_widths(net: Net) -> tuple[int, ...] | None:
    """Widths of a network's stages; None for a registered network, which has none that are known."""
    if net.name not in _ARCHITECTURES:
        return None
    unit = net.width if "width" in NETS[net.name] else 1
    return tuple(unit * factor for factor in _ARCHITECTURES[net.name].widths)


def text(widths: Sequence[int]) -> str:
    """Write widths as '7-14-26'."""
    return "-".join(map(str, widths))


def stages(net: Net) -> tuple[int, ...]:
    """Number of blocks, or of convolutions that are no blocks, in each stage of a network."""
    return _ARCHITECTURES[net.name].stages


def check(net: Net, data: Data | DataFacts | str) -> None:
    """Check that images are large enough for a network.

    Raises
    ------
    InputError
        If they have one pixel, or none, before they are halved for the last time.
    """
    if net.name not in _ARCHITECTURES:
        return
    (_, height, width), _ = seen(data)
    halvings = _halvings(net)
    least = 2**halvings if _ARCHITECTURES[net.name].pools else 2 ** (halvings - 1) + 1 if halvings else 1
    if min(height, width) < least:
        stem = f" with stem '{net.stem}'" if "stem" in NETS[net.name] else ""
        raise InputError(
            f"'{net.name}'{stem} halves images {halvings} times, and those of {height}×{width} pixels are too small "
            f"for that; allowed: at least {least}×{least} pixels"
        )


def check_batch(net: Net, data: Data, recipe: Recipe) -> None:
    """Check that BatchNorm has more than one number of each channel to normalise by.

    Raises
    ------
    InputError
        If a batch is of one image, for one process, and maps of a network shrink to one place.
    """
    smallest = data.smallest_batch(recipe.batch_size) // recipe.processes
    known = net.name in _ARCHITECTURES and net.name not in WITHOUT_BATCHNORM
    if known and smallest == 1 and any(k.places == 1 for k in _layers(net, _known(net), *seen(data))):
        raise InputError(
            f"the last batch of an epoch has one image, of which the last maps of '{net.name}' have one place, and "
            "BatchNorm needs more than one number; allowed: other numbers of images or batch sizes"
        )


def products(net: Net, data: Data | DataFacts | str, widths: Sequence[int] | None = None) -> int:
    """Count the products of weights and numbers when one image goes through a network.

    Parameters
    ----------
    net, widths
        As in `count`, which raises too.
    data : Data, DataFacts or str
        Data set, or the facts of one.
    """
    own = _known(net)
    layers = _layers(net, own if widths is None else widths, *seen(data))
    return int(sum(times * weights * (places or 1) for _, times, weights, _, places in layers))


def stacked(net: Net, data: Data | DataFacts | str, widths: Sequence[int] | None = None) -> bool:
    """Whether groups of a network are stacked on CPUs; see `lthlab.replicas.form_of`.

    Parameters
    ----------
    net, data, widths
        As in `products`.
    """
    shape, classes = seen(data)
    layers = _layers(net, _known(net) if widths is None else widths, shape, classes)
    maps = [kind.places for kind in layers if kind.places is not None]
    return not maps or (stackable(shape, maps) and products(net, data, widths) <= _LARGE)


def stackable(shape: tuple[int, int, int], maps: Iterable[int]) -> bool:
    """Whether convolutions may be stacked on CPUs, by the images' shape and the numbers of places of their maps."""
    return max(shape[1:]) <= _SMALL and not any(places % 4 for places in maps)


def left_out(net: Net, policy: str) -> frozenset[str]:
    """Roles of the layers that a policy does not prune; see `lthlab.nets.prunable`.

    Returns
    -------
    frozenset of str
        Of 'first', 'shortcut', 'depthwise' and 'head'.

    Raises
    ------
    InputError
        If the policy is not known, or is one of ResNets and the network is none.
    """
    if policy not in POLICIES:
        raise InputError(f"policy '{policy}' is not known; {nearest(policy, POLICIES)}")
    if policy.startswith("ma_resnet") and not net.name.startswith("resnet"):
        raise InputError(f"policy '{policy}' is for ResNets, not for '{net.name}'")
    return _LEFT_OUT[policy]


def covers_head(policy: str) -> bool:
    """Tell whether a policy prunes weights of the last layer."""
    return "head" not in _LEFT_OUT[policy]


def check_transfer(net: Net, source: Data, target: Data) -> None:
    """Check that a network is the same on two data sets but for its last layer (Morcos et al. 2019, section 3.3).

    Raises
    ------
    InputError
        If it is not, with the fields of the data sets that would bring them together. A registered network is not
        checked here.
    """
    if own_widths(net) is None or _body(net, source) == _body(net, target):
        return
    pairs = zip(_body(net, source), _body(net, target), strict=True)
    number, (there, here) = next((n, pair) for n, pair in enumerate(pairs, start=1) if pair[0] != pair[1])
    found = f"layer {number} of '{net.name}' has {there} weights on '{source.name}' and would need {here}"
    raise InputError(f"{found}; {remedy(source, target, functools.partial(_body, net))}")


def remedy(source: Data, target: Data, body: Callable[[Data], object]) -> str:
    """Say which fields of two data sets bring a network on them together.

    Parameters
    ----------
    source, target : Data
        The data sets.
    body : callable
        What has to be equal, of a data set: the shapes of all but the last layer.
    """
    channels = max(data.facts.shape[0] for data in (source, target))
    size = max(side for data in (source, target) for side in data.facts.shape[1:])
    for fields in ({"channels": channels}, {"size": size}, {"channels": channels, "size": size}):
        with suppress(ValueError):  # a set whose images cannot be brought to it
            both = [Data(**data.model_dump() | fields) for data in (source, target)]
            if body(both[0]) == body(both[1]):
                needed = [
                    f"data '{old.name}' with {field}: {value}"
                    for old, new in zip((source, target), both, strict=True)
                    for field, value in fields.items()
                    if getattr(old, field) != getattr(new, field)
                ]
                return f"allowed: {', '.join(needed)}"
    return "no field of data brings them together"


def _body(net: Net, data: Data) -> tuple[int, ...]:
    """Weights of every layer but the last."""
    layers = _layers(net, _known(net), *seen(data))
    return tuple(kind.weights for kind in layers if kind.role != "head" for _ in range(kind.times))


def count(
    net: Net, data: Data | DataFacts | str, widths: Sequence[int] | None = None, prunable: str = "all_but_head"
) -> Size:
    """Count the parameters of a network.

    Parameters
    ----------
    net : Net
        The network.
    data : Data, DataFacts or str
        Data set, whose images and classes it fits.
    widths : sequence of int, optional
        Widths of its stages, if not its own.
    prunable : str, optional
        Prunable set, one of `lthlab.parts.POLICIES`.

    Returns
    -------
    Size
        Exact; the target is its own number of parameters.

    Raises
    ------
    InputError
        For a registered network, or a policy that does not fit the network.
    """
    own = _known(net)
    return _count(net, *seen(data), own if widths is None else tuple(widths), prunable)


def ticket_parameters(
    net: Net,
    data: Data | str,
    sparsity: Sparsity,
    prunable: str = "all_but_head",
    denominator: str = "prunable",
    scope: str = "global",
    floor: str | None = None,
) -> int | None:
    """Count the parameters that a ticket keeps, prunable and not prunable together.

    Parameters
    ----------
    net, data : Net, Data or str
        As in `count`.
    sparsity : Level or str
        Share that is pruned.
    prunable, denominator, scope, floor : str, optional
        As in `lthlab.values.Magnitude`.

    Returns
    -------
    int or None
        Exact; None for a registered network.

    Raises
    ------
    InputError
        If it prunes more than is prunable, or than the floor leaves, or the policy does not fit the network.
    """
    return _kept(net, *seen(data), sparsity, prunable, denominator, scope, floor) if own_widths(net) else None


def narrow(
    net: Net,
    data: Data | DataFacts | str,
    level: Sparsity,
    prunable: str = "all_but_head",
    denominator: str = "prunable",
) -> Size:
    """Narrow a network to the size of a ticket: same depth, smaller widths (SDT, Ma section 2.1).

    Candidates have no stage wider than the original's, no stage that widens where the original narrows or the
    other way round, and at most as many parameters as the ticket keeps. Of those that lack at most 2 % of them, it
    is the one nearest to the original's proportions, where the largest of w_i / W_i exceeds the smallest by the
    least factor; those with a stage of one channel come last, for they say little about the network. Where none
    comes that near, it is the one with the most parameters. Ties go to more parameters.

    Parameters
    ----------
    net, data : Net, Data or str
        As in `count`.
    level : Level or str
        Sparsity of the ticket.
    prunable, denominator : str, optional
        As in `lthlab.values.Magnitude`, ranked over all layers together. A ticket that is pruned to the same share
        in every layer keeps as many, but for half a weight of rounding per layer.

    Returns
    -------
    Size
        Its target is what the ticket keeps.

    Raises
    ------
    InputError
        If not even one channel in every stage is narrow enough, or as of `ticket_parameters` and `count`.
    """
    _known(net)
    return _narrow(net, *seen(data), level, prunable, denominator)


def seen(data: Data | DataFacts | str) -> tuple[tuple[int, int, int], int]:
    """Shape (channels, height, width) of the images of a data set as a network sees them, and number of its classes."""
    facts = facts_of(data) if isinstance(data, str) else data.facts if isinstance(data, Data) else data
    return facts.shape, facts.classes


def _known(net: Net) -> tuple[int, ...]:
    own = own_widths(net)
    if own is None:
        allowed = ", ".join(sorted(_ARCHITECTURES))
        raise InputError(f"the widths of network '{net.name}' are not known, nor its narrow forms; allowed: {allowed}")
    return own


def _named(sparsity: Sparsity) -> str:
    return f"level {sparsity.k}" if isinstance(sparsity, Level) else f"sparsity {sparsity}"


# --- architectures --------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """Layers of one kind: how many there are; of each, the weights, the other parameters, and the places of a map.

    Linear layers have no map. Weights and others are numbers, or arrays of numbers for many networks at once.
    """

    role: str
    times: int
    weights: Any
    others: Any
    places: int | None = None


_Layers = Callable[[Net, _Widths, _Shape, int], Iterator[_Kind]]


class _Architecture(NamedTuple):
    """Layers of a network; blocks by stage; widths, as multiples of `Net.width` where there is such a field.

    Images are halved in stages after the first: by pooling, or by a stride, which leaves a pixel of one pixel.
    """

    layers: _Layers
    stages: tuple[int, ...]
    widths: tuple[int, ...]
    pools: bool = False


def _lenet(net: Net, widths: _Widths, shape: _Shape, classes: int) -> Iterator[_Kind]:
    return _linear(math.prod(shape), widths, classes, first="first")


def _linear(inputs: Any, widths: _Widths, classes: int, first: str = "body") -> Iterator[_Kind]:
    """Fully connected layers, the last of which gives classes."""
    for number, width in enumerate(widths):
        yield _Kind("body" if number else first, 1, inputs * width, width)
        inputs = width
    yield _Kind("head", 1, inputs * classes, classes)


def _resnet(net: Net, widths: _Widths, shape: _Shape, classes: int) -> Iterator[_Kind]:
    size, stride, pooled = STEMS[net.stem]
    places = _places(shape, stride // 2)
    yield _Kind("first", 1, size**2 * shape[0] * widths[0], 2 * widths[0], places)
    inputs, halved = widths[0], stride // 2 + pooled
    expansion = 4 if net.name == "resnet50" else 1
    for number, (width, blocks) in enumerate(zip(widths, stages(net), strict=True)):
        before = _places(shape, halved)
        halved += number > 0
        places, outputs = _places(shape, halved), expansion * width
        if expansion == 1:
            yield _Kind("body", 1, 9 * inputs * width, 2 * width, places)
            yield _Kind("body", 2 * blocks - 1, 9 * width * width, 2 * width, places)
        else:
            yield _Kind("body", 1, inputs * width, 2 * width, before)
            yield _Kind("body", blocks, 9 * width * width, 2 * width, places)
            yield _Kind("body", blocks, width * outputs, 2 * outputs, places)
            yield _Kind("body", blocks - 1, outputs * width, 2 * width, places)
        if net.shortcut == "B" and (number or expansion > 1):
            yield _Kind("shortcut", 1, inputs * outputs, 2 * outputs, places)
        inputs = outputs
    yield from _linear(inputs, (), classes)


def _vgg(net: Net, widths: _Widths, shape: _Shape, classes: int) -> Iterator[_Kind]:
    yield from _convolutions(net, widths, shape, 2 + net.bias)
    yield from _linear(widths[-1], (), classes)


def _conv(net: Net, widths: _Widths, shape: _Shape, classes: int) -> Iterator[_Kind]:
    convolutions = len(stages(net))
    yield from _convolutions(net, widths[:convolutions], shape, 1)
    inputs = widths[convolutions - 1] * _places(shape, convolutions, pools=True)
    yield from _linear(inputs, widths[convolutions:], classes)


def _convolutions(net: Net, widths: _Widths, shape: _Shape, others: int) -> Iterator[_Kind]:
    """3×3 convolutions, pooled after each stage, with so many other parameters for each channel."""
    inputs: Any = shape[0]
    for number, (width, times) in enumerate(zip(widths, stages(net), strict=True)):
        places = _places(shape, number, pools=True)
        yield _Kind("body" if number else "first", 1, 9 * inputs * width, others * width, places)
        yield _Kind("body", times - 1, 9 * width * width, others * width, places)
        inputs = width


def _mobilenet(net: Net, widths: _Widths, shape: _Shape, classes: int) -> Iterator[_Kind]:
    halved = int(net.stem != "cifar")
    yield _Kind("first", 1, 9 * shape[0] * widths[0], 2 * widths[0], _places(shape, halved))
    for number, (width, blocks) in enumerate(zip(widths[1:], stages(net), strict=True)):
        inputs = widths[number]
        halved += number > 0
        places = _places(shape, halved)
        for times, channels in ((1, inputs), (blocks - 1, width)):
            yield _Kind("depthwise", times, 9 * channels, 2 * channels, places)
            yield _Kind("body", times, channels * width, 2 * width, places)
    yield from _linear(widths[-1], (), classes)


def _places(shape: _Shape, halvings: int, pools: bool = False) -> int:
    """Count the places of a map after so many halvings; a stride rounds up, pooling down."""
    _, height, width = shape
    return math.prod(side >> halvings if pools else -(-side >> halvings) for side in (height, width))


def _halvings(net: Net) -> int:
    found = len(_ARCHITECTURES[net.name].stages)
    if "stem" not in NETS[net.name]:
        return found if net.name.startswith("conv") else max(0, found - 1)
    pooled = net.name.startswith("resnet") and STEMS[net.stem][2]
    return found - 1 + (net.stem != "cifar") + pooled


_VGGS = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_RESNETS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
_ARCHITECTURES: dict[str, _Architecture] = {
    "lenet_300_100": _Architecture(_lenet, (), (300, 100)),
    **{
        f"resnet{6 * blocks + 2}": _Architecture(_resnet, (blocks,) * 3, (1, 2, 4))
        for blocks in (1, 2, 3, 4, 5, 7, 9, 18)
    },
    **{name: _Architecture(_resnet, blocks, (1, 2, 4, 8)) for name, blocks in _RESNETS.items()},
    **{name: _Architecture(_vgg, layers, (1, 2, 4, 8, 8), pools=True) for name, layers in _VGGS.items()},
    "mobilenet_v1": _Architecture(_mobilenet, (1, 2, 2, 6, 2), (1, 2, 4, 8, 16, 32)),
    **{
        f"conv{2 * stages}": _Architecture(_conv, (2,) * stages, (*(64, 128, 256)[:stages], 256, 256), pools=True)
        for stages in (1, 2, 3)
    },
}  # fmt: skip


# --- counting -------------------------------------------------------------------------------------------------


def _layers(net: Net, widths: _Widths, shape: _Shape, classes: int) -> Iterator[_Kind]:
    """List kinds of layers of a network of such widths."""
    return _ARCHITECTURES[net.name].layers(net, widths, shape, classes)


def _total(net: Net, widths: _Widths, shape: tuple[int, int, int], classes: int) -> Any:
    return sum(times * (weights + others) for _, times, weights, others, _ in _layers(net, widths, shape, classes))


@functools.lru_cache(maxsize=4096)
def _count(net: Net, shape: tuple[int, int, int], classes: int, widths: tuple[int, ...], policy: str) -> Size:
    without = left_out(net, policy)
    layers = _layers(net, widths, shape, classes)
    prunable = sum(times * weights for role, times, weights, _, _ in layers if role not in without)
    parameters = _total(net, widths, shape, classes)
    return Size(widths, parameters, prunable, parameters, 0.0)


@functools.lru_cache(maxsize=4096)
def _kept(
    net: Net,
    shape: tuple[int, int, int],
    classes: int,
    sparsity: Sparsity,
    policy: str,
    denominator: str,
    scope: str,
    floor: str | None = None,
) -> int:
    whole, without = _count(net, shape, classes, _known(net), policy), left_out(net, policy)
    layers = [kind for kind in _layers(net, _known(net), shape, classes) if kind.role not in without]
    most = whole.prunable
    if floor is not None:
        most -= sum(kind.times * max(1, pruned_count(floor, kind.weights)) for kind in layers)
    if scope == "layer":
        pruned = sum(kind.times * pruned_count(sparsity, kind.weights) for kind in layers)
    else:
        pruned = pruned_count(sparsity, whole.parameters if denominator == "all" else whole.prunable)
    if pruned > most:
        what = f"{_named(sparsity)} of '{net.name}' prunes {pruned} of {whole.prunable} prunable weights"
        raise InputError(f"{what}; allowed: 0 to {most}{' with its floor' if floor else ''}")
    return whole.parameters - pruned


# --- narrowing ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _narrow(
    net: Net, shape: tuple[int, int, int], classes: int, level: Sparsity, policy: str, denominator: str
) -> Size:
    own = _known(net)
    target = _kept(net, shape, classes, level, policy, denominator, "global")
    least = _total(net, [1] * len(own), shape, classes)
    if least > target:
        has = f"{text([1] * len(own))} has {least} parameters already"
        raise InputError(f"'{net.name}' has no narrow form of the {target} parameters at {_named(level)}; {has}")
    axes = _around([int(width) for width in _even(net, own, shape, classes, target)], own)
    widths = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
    widths = widths[:, (np.diff(widths, axis=0) * np.sign(np.diff(own))[:, None] >= 0).all(0)]
    parameters = _total(net, widths, shape, classes)
    fits = (parameters <= target) & (target - parameters <= TOLERANCE * target)
    chosen = fits if fits.any() else parameters == parameters[parameters <= target].max()
    best = _nearest(widths[:, chosen], parameters[chosen], own)
    found = _count(net, shape, classes, tuple(best.tolist()), policy)
    return replace(found, target=target, gap=(target - found.parameters) / target)


def _even(net: Net, own: Sequence[int], shape: tuple[int, int, int], classes: int, target: int) -> list[float]:
    """Scale all stages alike, to widths of one or more that need not be whole, as far as the target allows."""
    low, high = 0.0, 1.0
    for _ in range(60):
        scale = (low + high) / 2
        fits = _total(net, [max(1.0, scale * width) for width in own], shape, classes) <= target
        low, high = (scale, high) if fits else (low, scale)
    return [max(1.0, low * width) for width in own]


def _around(even: Sequence[int], own: Sequence[int]) -> list[NDArray[np.int64]]:
    """List the widths of each stage that are tried, around those of the even scaling."""
    for near in [_AROUND[len(own)]] if len(own) in _AROUND else range(_AROUND[3], 0, -1):
        axes = [np.arange(max(1, w - near), min(most, w + near) + 1) for w, most in zip(even, own, strict=True)]
        if len(own) in _AROUND or math.prod(map(len, axes)) <= _MOST:
            break
    return axes


def _nearest(widths: NDArray[np.int64], parameters: NDArray[np.int64], own: Sequence[int]) -> NDArray[np.int64]:
    """Pick the column of widths [stage, network] that is nearest to the proportions of `own`."""
    share = widths / np.array(own)[:, None]
    factor = np.round(share.max(0) / share.min(0), 12)  # factors that are equal may differ in the last bit
    single = ((widths == 1) & (np.array(own) > 1)[:, None]).any(0)
    return widths[:, np.lexsort([-parameters, factor, single])[0]]
