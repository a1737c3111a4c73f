"""Reading states and masks, and deriving masks and measures from them."""

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from lthlab import masks, nets, sizes
from lthlab.errors import InputError
from lthlab.layers import Weights
from lthlab.masks import Mask
from lthlab.parts import Data, Net, pruned_count
from lthlab.runs import Run
from lthlab.store import Store, tensor_bytes
from lthlab.values import At, Fresh, Graft, Magnitude, Measure, Narrow, Permuted, Train, Value, plain
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


def initial(train: Train, store: Store) -> Weights:
    """Make the state that a training begins with, before anything is pruned.

    Returns
    -------
    dict of str to Tensor
        As of `state`.

    Raises
    ------
    LookupError
        If the state that it begins from is not kept.
    """
    init, net, data = train.init, train.net, train.data
    if isinstance(init, Fresh):
        return nets.fresh(net, data, init.replicate, init.draw)
    if isinstance(init, Graft):
        found = nets.grafted(net, data, state(init.body, store), init.head.replicate, init.head.draw)
    else:
        found = state(init, store)
    return nets.build(net, data).reset_batchnorm(found) if train.batchnorm == "reset" else found


def mask(value: MaskValue, store: Store) -> Mask | None:
    """Read a mask; None for the dense mask.

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

    So it does if weights or a mask of another data set do not fit a training's network there.

    Parameters
    ----------
    wanted : iterable of Value
        Values, inputs first.
    """
    counts: dict[Value, int] = {}
    wanted = list(wanted)
    problems = list(_unfit(wanted)) or list(_foreign(wanted))
    for value in wanted if not problems else ():
        if not isinstance(value, Magnitude) or value.sparsity is None or value.scope == "layer":
            continue
        run = value.of.run
        counted, total = _sizes(run.net, run.data, value.prunable, value.denominator)
        counts[value] = pruned_count(value.sparsity, counted)
        least = counts.get(run.mask, 0)
        if not least <= counts[value] <= total:
            problems.append(
                f"{value!r} prunes {counts[value]} of {total} prunable weights; allowed: {least} to {total}"
            )
    if problems:
        raise InputError("\n".join(problems))


def _unfit(wanted: Iterable[Value]) -> Iterator[str]:
    trained = [(value.net, value.data, value.recipe) for value in wanted if isinstance(value, Train)]
    for net, data, recipe in dict.fromkeys(trained):
        try:
            sizes.check(plain(net), data)
            sizes.check_batch(plain(net), data, recipe)
            nets.widths(net, data)
        except InputError as error:
            yield f"{net!r}: {error}"


def _foreign(wanted: Iterable[Value]) -> Iterator[str]:
    """Say what trainings take from other data sets that does not fit the network on their own."""
    taken: dict[tuple[str, Net | Narrow, Data, Data, bool], Train] = {}
    for train in wanted:
        if isinstance(train, Train):
            graft, source = isinstance(train.init, Graft), train.mask.source
            body = train.init.body if isinstance(train.init, Graft) else train.init
            if isinstance(body, At):
                taken.setdefault(("weights", train.net, body.run.data, train.data, not graft), train)
            if source is not None:
                taken.setdefault(("mask", train.net, source.data, train.data, train.mask.on_head), train)
    for (what, net, source_data, target, head), train in taken.items():
        if misfit := _misfit(net, source_data, target, head):
            yield f"{train!r}: {what} of {plain(net).name} on '{source_data.name}' on '{target.name}': {misfit}"


def _misfit(net: Net | Narrow, source: Data, target: Data, head: bool) -> str:
    """Say what of a network differs between two data sets, and what would bring it together; empty if nothing does."""
    if (source.facts.shape, source.facts.classes) == (target.facts.shape, target.facts.classes):
        return ""
    there, here = (nets.shapes(net, data, head) for data in (source, target))
    name = next((name for name in there if there[name] != here[name]), None)
    if name is None:
        return ""
    found = f"'{name}' has the shape {tuple(there[name])} and would need {tuple(here[name])}"
    if nets.shapes(net, source, False) == nets.shapes(net, target, False):
        return f"{found}; allowed: a graft, which draws the head anew, under a mask that does not cover it"
    return f"{found}; {sizes.remedy(source, target, functools.partial(nets.shapes, net, head=False))}"


@functools.cache
def _sizes(net: Net | Narrow, data: Data, policy: str, denominator: str) -> tuple[int, int]:
    """Count the weights that a sparsity is a share of, and those that can be pruned."""
    total = sum(shape.numel() for shape in nets.prunable(net, data, policy).values())
    whole = sum(parameter.numel() for parameter in nets.build(net, data).parameters())
    return (whole if denominator == "all" else total), total


def _mask(value: Value, store: Store) -> Derived:
    found = _permuted(value, store) if isinstance(value, Permuted) else _magnitude(value, store)
    layers = {name: int(kept.count_nonzero()) for name, kept in found.items()}
    record = {
        "kind": "mask",
        "kept": sum(layers.values()),
        "total": sum(kept.numel() for kept in found.values()),
        "layers": layers,
        "collapsed": masks.collapsed(found),
    }
    return {"mask.safetensors": tensor_bytes(masks.pack(found))}, record


def _permuted(value: Permuted, store: Store) -> Mask:
    source = mask(value.mask, store)
    assert source is not None
    return masks.permuted(source, value.scope, value.seed)


def _magnitude(value: Value, store: Store) -> Mask:
    assert isinstance(value, Magnitude)
    run = value.of.run
    names = nets.prunable(run.net, run.data, value.prunable)
    everything = state(value.of, store)
    weights = {name: everything[name] for name in names}
    previous = mask(run.mask, store)
    if previous is not None:
        previous = {name: previous[name] for name in names}
    if value.layer_counts_of is not None:
        imposed = mask(value.layer_counts_of, store)
        assert imposed is not None
        return masks.per_layer(weights, masks.pruned_per_layer(imposed), previous)
    assert value.sparsity is not None
    if value.scope == "layer":
        counts = {name: pruned_count(value.sparsity, w.numel()) for name, w in weights.items()}
        return masks.per_layer(weights, counts, previous)
    counted, _ = _sizes(run.net, run.data, value.prunable, value.denominator)
    return masks.magnitude(weights, pruned_count(value.sparsity, counted), previous)


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
    left = [mask(value.mask or at.run.mask, store) for at in (first, second)]
    whole = {name: torch.ones(shape, dtype=torch.bool) for name, shape in names.items()}
    pair = (left[0] or whole, left[1] or whole)
    return correlation_indicator(theta, theta_prime, float(settings["p"]), pair)
