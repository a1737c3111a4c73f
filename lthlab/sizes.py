"""How many parameters a network has, how many a ticket keeps, and the narrow dense network of that size.

All follows from the widths of a network's stages: the channels of a ResNet's three stages, or the units of LeNet's
two hidden layers.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lthlab.parts import NETS, POLICIES, Data, InputError, Level, Net, Sparsity, facts_of, nearest, pruned_count

TOLERANCE = 0.02
"""Share of its target that a narrow network may lack; a larger gap deserves a warning."""

_Widths = Sequence[Any] | NDArray[Any]
_RESNETS = frozenset(name for name in NETS if name.startswith("resnet"))
_AROUND = {2: 171, 3: 24}  # by number of stages; up to 2,000 channels, what is further off is less even than rounding
_LEFT_OUT: dict[str, frozenset[str]] = {
    "all": frozenset(),
    "all_but_head": frozenset({"head"}),
    "first_last_dense": frozenset({"first", "head"}),
    "ma_resnet20": frozenset({"first", "head"}),
    "ma_resnet32": frozenset({"first", "head", "shortcut"}),
}


@dataclass(frozen=True)
class Size:
    """Size of a network.

    Attributes
    ----------
    widths : tuple of int
        Channels of the stages of a ResNet, or units of the hidden layers of LeNet.
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
    if net.name in _RESNETS:
        return (net.width, 2 * net.width, 4 * net.width)
    return (300, 100) if net.name == "lenet_300_100" else None


def text(widths: Sequence[int]) -> str:
    """Write widths as '7-14-26'."""
    return "-".join(map(str, widths))


def blocks(net: Net) -> int:
    """Number n of blocks in each of the three stages of a ResNet of 6n+2 layers (He et al. 2016, section 4.2)."""
    return (int(net.name.removeprefix("resnet")) - 2) // 6


def left_out(net: Net, policy: str) -> frozenset[str]:
    """Roles of the layers that a policy does not prune: 'first', 'shortcut', 'head'; see `lthlab.nets.prunable`.

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


def count(net: Net, data: Data | str, widths: Sequence[int] | None = None, prunable: str = "all_but_head") -> Size:
    """Count the parameters of a network.

    Parameters
    ----------
    net : Net
        The network.
    data : Data or str
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
    return _count(net, *_facts(data), own if widths is None else tuple(widths), prunable)


def ticket_parameters(
    net: Net,
    data: Data | str,
    sparsity: Sparsity,
    prunable: str = "all_but_head",
    denominator: str = "prunable",
    scope: str = "global",
) -> int | None:
    """Count the parameters that a ticket keeps, prunable and not prunable together.

    Parameters
    ----------
    net, data : Net, Data or str
        As in `count`.
    sparsity : Level or str
        Share that is pruned.
    prunable, denominator, scope : str, optional
        As in `lthlab.values.Magnitude`.

    Returns
    -------
    int or None
        Exact; None for a registered network.

    Raises
    ------
    InputError
        If it prunes more than is prunable, or the policy does not fit the network.
    """
    return _kept(net, *_facts(data), sparsity, prunable, denominator, scope) if own_widths(net) else None


def narrow(
    net: Net, data: Data | str, level: Sparsity, prunable: str = "all_but_head", denominator: str = "prunable"
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
    return _narrow(net, *_facts(data), level, prunable, denominator)


def _facts(data: Data | str) -> tuple[tuple[int, int, int], int]:
    facts = facts_of(data) if isinstance(data, str) else data.facts
    return facts.shape, facts.classes


def _known(net: Net) -> tuple[int, ...]:
    own = own_widths(net)
    if own is None:
        allowed = ", ".join(sorted(_RESNETS | {"lenet_300_100"}))
        raise InputError(f"the widths of network '{net.name}' are not known, nor its narrow forms; allowed: {allowed}")
    return own


def _named(sparsity: Sparsity) -> str:
    return f"level {sparsity.k}" if isinstance(sparsity, Level) else f"sparsity {sparsity}"


# --- counting -------------------------------------------------------------------------------------------------


def _layers(
    net: Net, widths: _Widths, shape: tuple[int, int, int], classes: int
) -> Iterator[tuple[str, int, Any, Any]]:
    """List kinds of layers: role, how many there are, and of each the weights and other parameters.

    Widths are numbers, or arrays of numbers for many networks at once.
    """
    inputs = math.prod(shape) if net.name not in _RESNETS else 9 * shape[0]
    if net.name not in _RESNETS:
        yield "first", 1, inputs * widths[0], widths[0]
        yield "body", 1, widths[0] * widths[1], widths[1]
    else:
        yield "first", 1, inputs * widths[0], 2 * widths[0]
        for number, width in enumerate(widths):
            before = widths[max(0, number - 1)]
            yield "body", 1, 9 * before * width, 2 * width
            yield "body", 2 * blocks(net) - 1, 9 * width * width, 2 * width
            if number and net.shortcut == "B":
                yield "shortcut", 1, before * width, 2 * width
    yield "head", 1, widths[-1] * classes, classes


def _total(net: Net, widths: _Widths, shape: tuple[int, int, int], classes: int) -> Any:
    return sum(times * (weights + others) for _, times, weights, others in _layers(net, widths, shape, classes))


@functools.lru_cache(maxsize=4096)
def _count(net: Net, shape: tuple[int, int, int], classes: int, widths: tuple[int, ...], policy: str) -> Size:
    without = left_out(net, policy)
    layers = _layers(net, widths, shape, classes)
    prunable = sum(times * weights for role, times, weights, _ in layers if role not in without)
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
) -> int:
    whole = _count(net, shape, classes, _known(net), policy)
    if scope == "layer":
        without = left_out(net, policy)
        layers = _layers(net, whole.widths, shape, classes)
        pruned = sum(n * pruned_count(sparsity, weights) for role, n, weights, _ in layers if role not in without)
    else:
        pruned = pruned_count(sparsity, whole.parameters if denominator == "all" else whole.prunable)
    if pruned > whole.prunable:
        what = f"{_named(sparsity)} of '{net.name}' prunes {pruned} of {whole.prunable} prunable weights"
        raise InputError(f"{what}; allowed: 0 to {whole.prunable}")
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
    even = [int(width) for width in _even(net, own, shape, classes, target)]
    near = _AROUND[len(own)]
    axes = [np.arange(max(1, w - near), min(most, w + near) + 1) for w, most in zip(even, own, strict=True)]
    widths = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
    widths = widths[:, (np.diff(widths, axis=0) * np.sign(np.diff(own))[:, None] >= 0).all(0)]
    parameters = _total(net, widths, shape, classes)
    fits = (parameters <= target) & (target - parameters <= TOLERANCE * target)
    chosen = fits if fits.any() else parameters == parameters[parameters <= target].max()
    best = _nearest(widths[:, chosen], parameters[chosen], own)
    found = _count(net, shape, classes, tuple(best.tolist()), policy)
    return replace(found, target=target, gap=(target - found.parameters) / target)


def _even(net: Net, own: Sequence[int], shape: tuple[int, int, int], classes: int, target: int) -> list[float]:
    """Scale all stages alike, to widths that need not be whole, as far as the target allows."""
    low, high = 0.0, 1.0
    for _ in range(60):
        scale = (low + high) / 2
        fits = _total(net, [scale * width for width in own], shape, classes) <= target
        low, high = (scale, high) if fits else (low, scale)
    return [low * width for width in own]


def _nearest(widths: NDArray[np.int64], parameters: NDArray[np.int64], own: Sequence[int]) -> NDArray[np.int64]:
    """Pick the column of widths [stage, network] that is nearest to the proportions of `own`."""
    share = widths / np.array(own)[:, None]
    factor = np.round(share.max(0) / share.min(0), 12)  # factors that are equal may differ in the last bit
    single = ((widths == 1) & (np.array(own) > 1)[:, None]).any(0)
    return widths[:, np.lexsort([-parameters, factor, single])[0]]
