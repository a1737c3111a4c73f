"""Reading states and masks, and deriving masks and measures from them."""

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from lthlab import filters, masks, nets, sizes
from lthlab.errors import InputError
from lthlab.layers import Weights
from lthlab.masks import Mask
from lthlab.parts import Data, Net, pruned_count
from lthlab.runs import Run
from lthlab.store import Store, tensor_bytes
from lthlab.values import At, Magnitude, Measure, Narrow, Permuted, Train, Value, plain
from lthlab.values import Mask as MaskValue
from lthlab.weights import CorrelationIndicator, correlation_indicator

Derived = tuple[dict[str, bytes], dict[str, Any]]
"""Files of a result, and its record."""


def state(at: At, store: Store) -> Weights:
    """Read a state of a training.

    Returns
    -------
    dict of str to Tensor
        State dict of the ordinary network, in its order, pruned weights zero.

    Raises
    ------
    LookupError
        If the state is not kept; `compute([at], store)` obtains it.
    """
    run = Run(at.run, store)
    if run.stale:
        raise LookupError(f"{at.run!r} is stale: {run.stale}; remove {store.root / at.run.key} to train it anew")
    found = as_tensors(run.read(at.step))
    return {name: found[name] for name in nets.build(at.run.net, at.run.data).state_dict()}


def mask(value: MaskValue, store: Store) -> Mask | None:
    """Read a mask; None for the dense mask.

    One of filters covers, beside the prunable weights, biases, BatchNorm and the head's inputs.

    Raises
    ------
    LookupError
        If it has not been computed.
    """
    if not value.stored:
        return None
    return masks.unpack(store.read_tensors(value.key, "mask.safetensors"))


def as_tensors(arrays: Mapping[str, Any]) -> Weights:
    """Turn what the store reads into tensors."""
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


def derive(value: Value, store: Store) -> Derived:
    """Compute a mask or a measure from what the store holds.

    One that its inputs do not allow is a result too, whose record says why.
    """
    try:
        return _measure(value, store) if isinstance(value, Measure) else _mask(value, store)
    except ValueError as error:
        return {}, {"kind": "measure" if isinstance(value, Measure) else "mask", "failed": str(error)}


def refuse_impossible(wanted: Iterable[Value]) -> None:
    """Raise InputError if a network cannot be as narrow, or a mask prunes too many weights or revives some.

    Parameters
    ----------
    wanted : iterable of Value
        Values, inputs first.
    """
    known: dict[Value, dict[str, int]] = {}
    wanted = list(wanted)
    problems = list(_unfit(wanted))
    for value in wanted if not problems else ():
        if isinstance(value, Magnitude):
            problems += _unfit_filters(value) if value.of_filters else _unfit_counts(value, known)
    if problems:
        raise InputError("\n".join(problems))


_ALL = "all layers"


def _unfit_counts(value: Magnitude, known: dict[Value, dict[str, int]]) -> Iterator[str]:
    """Say where a mask cannot prune as many weights as it should, as far as the numbers are known beforehand.

    They are noted in `known`: those of layers where the mask has them by itself, else that of all layers together.
    """
    run, layers = value.of.run, _layers(*_made_for(value))
    if value.layer_counts_of is not None:
        counts = known.get(value.layer_counts_of, {})
    elif value.scope == "layer":
        counts = _shares(value, layers)
    else:
        counts = {_ALL: _pruned(value)}
    before = known.get(run.mask, {})
    if not counts:
        return
    known[value] = counts
    if before and before.keys() != counts.keys():
        counts, before = ({_ALL: sum(numbers.values())} for numbers in (counts, before))
    total, spared = sum(layers.values()), sum(_floor(value, layers).values())
    for place, count in counts.items():
        least, of = before.get(place, 0), layers.get(place, total)
        most = of - spared
        if not least <= count <= most:
            where = f" of '{place}'" if place in layers else ""
            yield f"{value!r} prunes {count} of {of} prunable weights{where}; allowed: {least} to {most}"


def _unfit_filters(value: Magnitude) -> Iterator[str]:
    try:
        found = _filter_counts(*_made_for(value))
    except InputError as error:
        yield f"{value!r}: {error}"
        return
    assert value.sparsity is not None
    total = sum(found.values())
    count, most = pruned_count(value.sparsity, total), total - len(found)
    if value.scope == "global" and count > most:
        yield f"{value!r} prunes {count} of {total} filters; allowed: 0 to {most}, which leaves one in each layer"


def _unfit(wanted: Iterable[Value]) -> Iterator[str]:
    trained = [(value.net, value.data, value.recipe) for value in wanted if isinstance(value, Train)]
    for net, data, recipe in dict.fromkeys(trained):
        try:
            sizes.check(plain(net), data)
            sizes.check_batch(plain(net), data, recipe)
            nets.widths(net, data)
        except InputError as error:
            yield f"{net!r}: {error}"


@functools.cache
def _layers(net: Net | Narrow, data: Data, policy: str) -> dict[str, int]:
    """Count the weights of each layer that can be pruned."""
    return {name: shape.numel() for name, shape in nets.prunable(net, data, policy).items()}


@functools.cache
def _parameters(net: Net | Narrow, data: Data) -> int:
    return sum(parameter.numel() for parameter in nets.build(net, data).parameters())


@functools.cache
def _filter_counts(net: Net | Narrow, data: Data, policy: str) -> dict[str, int]:
    return filters.counts(filters.of(net, data, policy), net, data)


def _pruned(value: Magnitude) -> int:
    """Count what a mask that is ranked over all layers together prunes."""
    assert value.sparsity is not None
    whole = value.denominator == "all"
    counted = _parameters(value.source.net, value.source.data) if whole else sum(_layers(*_made_for(value)).values())
    return pruned_count(value.sparsity, counted)


def _shares(value: Magnitude, layers: Mapping[str, int]) -> dict[str, int]:
    """Count what a mask prunes of each layer that has a share of its own."""
    assert value.sparsity is not None
    return {name: pruned_count(value.sparsity, size) for name, size in layers.items()}


def _floor(value: Magnitude, layers: Mapping[str, int]) -> dict[str, int]:
    """Count the weights that each layer keeps at least; empty without a floor."""
    return {name: max(1, pruned_count(value.floor, size)) for name, size in layers.items()} if value.floor else {}


def _made_for(mask: MaskValue) -> tuple[Net | Narrow, Data, str]:
    """Network, data and prunable set of a mask that is not dense."""
    assert mask.source is not None and mask.policy is not None
    return mask.source.net, mask.source.data, mask.policy


def _mask(value: Value, store: Store) -> Derived:
    assert isinstance(value, MaskValue)
    found = _permuted(value, store) if isinstance(value, Permuted) else _magnitude(value, store)
    prunable = {name: found[name] for name in _layers(*_made_for(value))}
    layers = {name: int(kept.count_nonzero()) for name, kept in prunable.items()}
    record = {
        "kind": "mask",
        "kept": sum(layers.values()),
        "total": sum(kept.numel() for kept in prunable.values()),
        "layers": layers,
        "collapsed": masks.collapsed(prunable),
    }
    if value.of_filters:
        left = filters.left(found, filters.of(*_made_for(value)))
        record["filters"] = {n: {"kept": int(kept.count_nonzero()), "total": len(kept)} for n, kept in left.items()}
    return {"mask.safetensors": tensor_bytes(masks.pack(found))}, record


def _permuted(value: Permuted, store: Store) -> Mask:
    source = mask(value.mask, store)
    assert source is not None
    if not value.of_filters:
        return masks.permuted(source, value.scope, value.seed)
    left = filters.left(source, filters.of(*_made_for(value)))
    return filters.cover(masks.permuted(left, value.scope, value.seed), *_made_for(value))


def _magnitude(value: Value, store: Store) -> Mask:
    assert isinstance(value, Magnitude)
    layers, everything = _layers(*_made_for(value)), state(value.of, store)
    if value.of_filters:
        assert value.sparsity is not None
        found = filters.norms(everything, filters.of(*_made_for(value)), value.norm)
        return filters.cover(filters.largest(found, value.sparsity, value.scope), *_made_for(value))
    weights = {name: everything[name] for name in layers}
    previous = _of_weights(value.of.run.mask, store)
    if value.layer_counts_of is not None:
        imposed = _of_weights(value.layer_counts_of, store)
        assert imposed is not None
        return masks.per_layer(weights, masks.pruned_per_layer(imposed), previous)
    if value.scope == "layer":
        return masks.per_layer(weights, _shares(value, layers), previous)
    return masks.magnitude(weights, _pruned(value), previous, _floor(value, layers) or None)


def _measure(value: Measure, store: Store) -> Derived:
    found = _correlation(value, store)
    rows = json.loads(found.layers.to_json(orient="records"))
    frame = "".join(json.dumps(row) + "\n" for row in rows).encode()
    z = None if math.isnan(found.z) else found.z
    return {"frame.jsonl": frame}, {
        "kind": "measure",
        "value": found.value,
        "chance": found.chance,
        "z": z,
    }


def _correlation(value: Measure, store: Store) -> CorrelationIndicator:
    settings = dict(value.settings)
    first, second = (at for at in value.of if isinstance(at, At))
    names = nets.prunable(first.run.net, first.run.data, settings["prunable"])
    theta, theta_prime = ({n: w for n, w in state(at, store).items() if n in names} for at in (first, second))
    left = [_of_weights(value.mask or at.run.mask, store) for at in (first, second)]
    whole = {name: torch.ones(shape, dtype=torch.bool) for name, shape in names.items()}
    pair = (left[0] or whole, left[1] or whole)
    return correlation_indicator(theta, theta_prime, float(settings["p"]), pair)


def _of_weights(value: MaskValue, store: Store) -> Mask | None:
    """Read what a mask says of prunable weights."""
    found = mask(value, store)
    return None if found is None else {name: found[name] for name in _layers(*_made_for(value))}
