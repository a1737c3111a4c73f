"""Masks: which weights of a network survive, from magnitudes by exact counts or by permutation."""

import functools
import itertools
import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from lthlab import packing
from lthlab.draws import Stream
from lthlab.errors import nearest
from lthlab.parts import pruned_count

Mask = dict[str, torch.Tensor]
"""A bool tensor for every prunable weight tensor, in network order; True = kept."""

_PIECE = 1 << 15  # weights at a time on a CPU: they stay in the cache, and torch takes one thread for so few
_BITS = 11  # of a rank, counted a pass
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def magnitude(
    weights: Mapping[str, torch.Tensor],
    pruned: int,
    previous: Mask | None = None,
    floor: Mapping[str, int] | None = None,
) -> Mask:
    """Prune the weights smallest in magnitude, ranked over all layers together.

    Weights of equal magnitude go by position, the first one first, so exactly `pruned` go.

    Parameters
    ----------
    weights : mapping of str to tensor
        The prunable weights in network order, float32 or float64, any shapes, on one device.
    pruned : int
        Number of weights to be pruned in all, those of `previous` included: 0 … number of weights.
    previous : Mask, optional
        What it had pruned stays pruned and counts first.
    floor : mapping of str to int, optional
        Number of weights that each layer keeps at least: its largest, whatever their rank among all.

    Returns
    -------
    Mask
        Nested in `previous`, on the device of `weights`.

    Raises
    ------
    ValueError
        If `pruned` is less than what `previous` had pruned or more than there are weights, a weight
        is NaN, names or shapes of `previous` differ from those of `weights`, or a layer, or the whole, cannot keep
        what `floor` asks for.
    TypeError
        If weights are neither float32 nor float64: lower precision makes ties of what differed.

    Notes
    -----
    Han et al. 2015; within iterative pruning Frankle and Carbin 2019.
    """
    everything, total = ("all layers together", tuple(weights)), _size(weights)
    if floor is None:
        return _prune(weights, [(*everything, pruned)], previous)
    spared, left = _floored(weights, previous, floor), total - sum(floor.values())
    least = 0 if previous is None else total - kept(previous)
    if not least <= pruned <= left:
        raise ValueError(f"to prune in all layers together: {pruned}; allowed with these floors is {least} … {left}")
    others = {name: ~layer for name, layer in spared.items()}
    if previous is not None:
        others = {name: layer & previous[name].to(layer.device) for name, layer in others.items()}
    mask = _prune(weights, [(*everything, pruned + total - left)], others)
    return {name: layer | spared[name] for name, layer in mask.items()}


def _floored(weights: Mapping[str, torch.Tensor], previous: Mask | None, floor: Mapping[str, int]) -> Mask:
    """Mark the weights that `floor` spares."""
    _same_names("floor", floor, weights)
    if previous is not None:
        same_layers("previous", previous, weights)
    for name, layer in (weights if previous is None else previous).items():
        has = layer.numel() if previous is None else int(layer.count_nonzero())
        if not 0 <= floor[name] <= has:
            raise ValueError(f"floor of layer {name!r} is {floor[name]}; allowed: 0 to {has}, the weights that it has")
    return per_layer(weights, {name: layer.numel() - floor[name] for name, layer in weights.items()}, previous)


def floors(share: str | None, sizes: Mapping[str, int]) -> dict[str, int] | None:
    """Count the weights that each layer keeps at least: a share, half up, but not less than one; None without it."""
    return {name: max(1, pruned_count(share, size)) for name, size in sizes.items()} if share else None


def per_layer(weights: Mapping[str, torch.Tensor], pruned: Mapping[str, int], previous: Mask | None = None) -> Mask:
    """Prune the weights smallest in magnitude within each layer.

    Parameters
    ----------
    weights, previous
        As in `magnitude`.
    pruned : mapping of str to int
        Number of weights to be pruned in each layer, those of `previous` included.

    Returns
    -------
    Mask
        Nested in `previous`.

    Raises
    ------
    ValueError, TypeError
        As in `magnitude`, and if `pruned` does not name exactly the layers of `weights`.
    """
    _same_names("pruned", pruned, weights)
    return _prune(weights, [(f"layer {name!r}", (name,), pruned[name]) for name in weights], previous)


def permuted(mask: Mask, scope: str, seed: int) -> Mask:
    """Place the kept weights of `mask` at random.

    Equal seeds permute positions alike, so masks that are nested stay nested.

    Parameters
    ----------
    mask : Mask
        The mask to permute.
    scope : {"layer", "global"}
        Whether each layer keeps its number of weights or only the whole network does.
    seed : int
        At least 0.

    Returns
    -------
    Mask
        On the device of `mask`.

    Raises
    ------
    ValueError
        If `scope` is neither of the two.
    """
    stream = Stream(seed, "permutation")
    if scope == "layer":
        return {name: _shuffled(layer.flatten(), stream).view(layer.shape) for name, layer in mask.items()}
    if scope == "global":
        return _like(_shuffled(_flat(mask), stream), mask)
    raise ValueError(f"scope of a permutation is {scope!r}: allowed are 'layer' and 'global'")


def kept(mask: Mask) -> int:
    """Count the weights that `mask` keeps."""
    return sum(int(layer.count_nonzero()) for layer in mask.values())


def pruned_per_layer(mask: Mask) -> dict[str, int]:
    """Count the weights that `mask` prunes in each layer."""
    return {name: layer.numel() - int(layer.count_nonzero()) for name, layer in mask.items()}


def collapsed(mask: Mask) -> list[str]:
    """Names of the layers of which `mask` keeps nothing."""
    return [name for name, layer in mask.items() if not layer.any()]


def nested(inner: Mask, outer: Mask) -> bool:
    """Whether `outer` keeps all that `inner` keeps.

    Raises
    ------
    ValueError
        If names or shapes differ.
    """
    same_layers("inner", inner, outer)
    return all(bool((outer[name] | ~inner[name]).all()) for name in inner)


def hamming(a: Mask, b: Mask) -> float:
    """Fraction of the prunable positions at which `a` and `b` differ, in [0, 1] (Sooner, Fig. 3).

    Random masks of density d differ in 2d(1 - d) on average, any in at most 2d.

    Raises
    ------
    ValueError
        If names or shapes differ.
    """
    same_layers("a", a, b)
    return sum(int((a[name] ^ b[name]).count_nonzero()) for name in a) / _size(a)


def distances(named: Mapping[str, Mask]) -> list[dict[str, str | float]]:
    """Compare every mask with every later one (Sooner, Fig. 3).

    Parameters
    ----------
    named : mapping of str to Mask
        Masks of one network by name, two or more, in order.

    Returns
    -------
    list of dict
        One row per pair: first and second (names); value (`hamming`); random, its expectation for independent masks of
        the same two densities, d₁(1 - d₂) + d₂(1 - d₁); maximum, the most that these densities allow; overlap, the
        share of the kept weights that both keep, 1 - value / (d₁ + d₂), NaN where neither keeps any.

    Raises
    ------
    ValueError
        If there are fewer than two masks, or names or shapes differ.
    """
    if len(named) < 2:
        raise ValueError(f"masks to compare: {len(named)}; allowed: two or more")
    densities = {name: kept(mask) / _size(mask) for name, mask in named.items()}
    rows: list[dict[str, str | float]] = []
    for first, second in itertools.combinations(named, 2):
        (a, b), value = (densities[first], densities[second]), hamming(named[first], named[second])
        rows.append({
            "first": first, "second": second, "value": value, "random": a * (1 - b) + b * (1 - a),
            "maximum": min(a + b, 2 - a - b), "overlap": 1 - value / (a + b) if a + b else math.nan,
        })  # fmt: skip
    return rows


def pack(mask: Mask) -> dict[str, NDArray[np.generic]]:
    """Write a mask as arrays that safetensors can hold; see `lthlab.packing.pack`."""
    return packing.pack({name: layer.cpu().numpy() for name, layer in mask.items()})


def unpack(arrays: Mapping[str, NDArray[np.generic]]) -> Mask:
    """Read back what `pack` wrote, whatever the order of the arrays; raises as `lthlab.packing.unpack`."""
    return {name: torch.from_numpy(layer) for name, layer in packing.unpack(arrays).items()}


def same_layers(what: str, given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Refuse `given` unless its names and shapes are those of `expected`.

    Parameters
    ----------
    what : str
        What `given` is called in the error.
    given, expected : mapping of str to tensor
        Masks or weights; their order is free.

    Raises
    ------
    ValueError
        With the name, what is allowed and the nearest match.
    """
    _same_names(what, given, expected)
    for name, tensor in given.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}: allowed is {tuple(expected[name].shape)}"
            raise ValueError(f"{what} has layer {name!r} of shape {shapes}")


def _prune(
    weights: Mapping[str, torch.Tensor],
    groups: Iterable[tuple[str, tuple[str, ...], int]],
    previous: Mask | None,
) -> Mask:
    if previous is not None:
        same_layers("previous", previous, weights)
    for name, weight in weights.items():
        if weight.dtype not in _INTEGERS:
            raise TypeError(f"weights of layer {name!r} are {weight.dtype}: allowed are float32 and float64")
    _refuse_nan(weights)
    mask: Mask = {}
    for place, names, count in groups:
        layers = {name: weights[name] for name in names}
        pieces = _pieces(layers.values())
        gone: list[torch.Tensor] | list[None] = [None] * len(pieces)
        least = 0
        if previous is not None:
            gone = [~piece for piece in _pieces(previous[name].to(weights[name].device) for name in names)]
            least = sum(int(piece.count_nonzero()) for piece in gone)
        if not least <= count <= _size(layers):
            already = f" ({least} are pruned already)" if least else ""
            raise ValueError(f"to prune in {place}: {count}; allowed is {least} … {_size(layers)}{already}")
        mask |= _like(_without_smallest(pieces, gone, count - least), layers)
    return mask


def _refuse_nan(weights: Mapping[str, torch.Tensor]) -> None:
    largest = [piece.amax() for piece in _pieces(weights.values()) if len(piece)]
    if largest and torch.stack(largest).isnan().any():
        name = next(name for name, weight in weights.items() if weight.isnan().any())
        raise ValueError(f"weights of layer {name!r} hold NaN, which has no rank")


def _pieces(layers: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Flatten `layers` of one type, in order, cut into what suits the device: a GPU has them all in one."""
    flat = [layer.detach().flatten() for layer in layers]
    if any(layer.device.type != "cpu" for layer in flat):
        return [torch.cat(flat)]
    return [piece for layer in flat for piece in layer.split(_PIECE)]


def _without_smallest(weights: list[torch.Tensor], gone: list[torch.Tensor] | list[None], count: int) -> torch.Tensor:
    """Mark [n] all of `weights` but those `gone` and the `count` smallest of the others; ties go by position.

    The rank of a weight is the bits of its magnitude: of floats that are not negative they have the same order.
    That of the last one that goes is found by counting, 11 bits a pass. Unlike partition and sort, its time does
    not depend on how many weights are equal, as zeros are.
    """
    dtype = functools.reduce(torch.promote_types, {piece.dtype for piece in weights})
    bits = [piece.to(dtype).view(_INTEGERS[dtype]) for piece in weights]
    most = torch.iinfo(_INTEGERS[dtype]).max
    last, left = 0, count
    for top in range(most.bit_length(), 0, -_BITS):
        shift = max(top - _BITS, 0)
        counts = [_count(piece & most, off, last, shift) for piece, off in zip(bits, gone, strict=True)]
        total = functools.reduce(torch.add, counts)
        below = total.cumsum(0)
        found = torch.searchsorted(below, left)
        digit, before = torch.stack([found, below[found] - total[found]]).tolist()
        last |= digit << shift
        left -= before
    ties = torch.stack([bins[digit] for bins in counts])
    going = left - ties.cumsum(0) + ties  # those of a piece and of the pieces after it
    marked = torch.empty(sum(map(len, bits)), dtype=torch.bool, device=bits[0].device)
    parts = marked.split([len(piece) for piece in bits])
    for piece, off, part, tied, first in zip(bits, gone, parts, ties.tolist(), going.tolist(), strict=True):
        _mark(part, piece & most, off, last, tied, first)
    return marked


def _count(ranks: torch.Tensor, gone: torch.Tensor | None, last: int, shift: int) -> torch.Tensor:
    """Count the digits at `shift` of the ranks that agree with `last` above it; the last bin holds the others."""
    bins = 1 << _BITS
    if last:
        ranks.bitwise_xor_(last)
    if shift:
        ranks.bitwise_right_shift_(shift)
    ranks.clamp_(max=bins)
    if gone is not None:
        ranks.add_(gone, alpha=bins).clamp_(max=bins)
    return torch.bincount(ranks, minlength=bins + 1)


def _mark(
    marked: torch.Tensor, ranks: torch.Tensor, gone: torch.Tensor | None, last: int, ties: int, going: int
) -> None:
    """Mark what is above `last`, and of the `ties` at `last` those after the first `going`; not what is gone."""
    above = torch.gt if going > 0 else torch.ge
    above(ranks, last, out=marked)
    if gone is not None:
        torch.gt(marked, gone, out=marked)
    if 0 < going < ties:
        tied = ranks == last if gone is None else (ranks == last) > gone
        marked |= tied & (tied.cumsum(0) > going)


def _shuffled(flat: torch.Tensor, stream: Stream) -> torch.Tensor:
    return flat[torch.from_numpy(stream.permutation(len(flat))).to(flat.device)]


def _size(layers: Mapping[str, torch.Tensor]) -> int:
    return sum(layer.numel() for layer in layers.values())


def _flat(layers: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([layer.detach().flatten() for layer in layers.values()])


def _like(flat: torch.Tensor, layers: Mapping[str, torch.Tensor]) -> Mask:
    parts = torch.split(flat, [layer.numel() for layer in layers.values()])
    return {n: part.view(layer.shape) for (n, layer), part in zip(layers.items(), parts, strict=True)}


def _same_names(what: str, given: Mapping[str, object], expected: Mapping[str, object]) -> None:
    for name in given:
        if name not in expected:
            raise ValueError(f"{what} names a layer {name!r}; {nearest(name, expected)}")
    missing = [name for name in expected if name not in given]
    if missing:
        raise ValueError(f"{what} lacks the layers {', '.join(missing)}")
