"""Reading states and masks, and deriving masks from them."""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import torch

from lthlab import counts, filters, masks, nets
from lthlab.layers import Weights
from lthlab.masks import Mask
from lthlab.runs import MASK, Run
from lthlab.store import Store, tensor_bytes
from lthlab.values import At, Fresh, Graft, Magnitude, MaskOf, Permuted, Train, Value
from lthlab.values import Mask as MaskValue

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
    found = as_tensors(_run(at, store).read(at.step))
    return {name: found[name] for name in nets.build(at.run.net, at.run.data).state_dict()}


def _run(at: At, store: Store) -> Run:
    run = Run(at.run, store)
    if run.stale:
        raise LookupError(f"{at.run!r} is stale: {run.stale}; remove {store.root / at.run.key} to train it anew")
    return run


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

    One of filters covers, beside the prunable weights, biases, BatchNorm and the head's inputs.

    Raises
    ------
    LookupError
        If it has not been computed.
    """
    if not value.stored:
        return None
    return masks.unpack(store.read_tensors(value.key, "mask.safetensors"))


def mask_at(at: At, store: Store) -> Mask | None:
    """Read the mask that a training has at a step, after any pruning there; None for the dense mask.

    Raises
    ------
    LookupError
        If the mask of the training has not been computed, or if it prunes on its way and its state at this step is
        not kept; `compute([at], store)` obtains it.
    """
    if at.run.pruning is None:
        return mask(at.run.mask, store)
    return masks.unpack(_run(at, store).read(f"{at.step}{MASK}"))


def as_tensors(arrays: Mapping[str, Any]) -> Weights:
    """Turn what the store reads into tensors."""
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


def derive(value: MaskValue, store: Store) -> Derived:
    """Compute a mask from what the store holds.

    One that its inputs do not allow is a result too, whose record says why.
    """
    try:
        return _mask(value, store)
    except ValueError as error:
        return {}, {"kind": "mask", "failed": str(error)}


def _mask(value: MaskValue, store: Store) -> Derived:
    found = mask_at(value.moments[0], store) if isinstance(value, MaskOf) else _made(value, store)
    assert found is not None
    prunable = {name: found[name] for name in counts.layers(value)}
    layers = {name: int(kept.count_nonzero()) for name, kept in prunable.items()}
    record = {
        "kind": "mask",
        "kept": sum(layers.values()),
        "total": sum(kept.numel() for kept in prunable.values()),
        "layers": layers,
        "collapsed": masks.collapsed(prunable),
    }
    if value.of_filters:
        left = filters.left(found, filters.of(*counts.made_for(value)))
        record["filters"] = {n: {"kept": int(kept.count_nonzero()), "total": len(kept)} for n, kept in left.items()}
    return {"mask.safetensors": tensor_bytes(masks.pack(found))}, record


def _made(value: Value, store: Store) -> Mask:
    return _permuted(value, store) if isinstance(value, Permuted) else _magnitude(value, store)


def _permuted(value: Permuted, store: Store) -> Mask:
    source = mask(value.mask, store)
    assert source is not None
    if not value.of_filters:
        return masks.permuted(source, value.scope, value.seed)
    left = filters.left(source, filters.of(*counts.made_for(value)))
    return filters.cover(masks.permuted(left, value.scope, value.seed), *counts.made_for(value))


def _magnitude(value: Value, store: Store) -> Mask:
    assert isinstance(value, Magnitude)
    layers, everything = counts.layers(value), state(value.of, store)
    if value.of_filters:
        assert value.sparsity is not None
        found = filters.norms(everything, filters.of(*counts.made_for(value)), value.norm)
        return filters.cover(filters.largest(found, value.sparsity, value.scope), *counts.made_for(value))
    weights = {name: everything[name] for name in layers}
    previous = _only(layers, mask_at(value.of, store))
    if value.layer_counts_of is not None:
        imposed = _only(layers, mask(value.layer_counts_of, store))
        assert imposed is not None
        return masks.per_layer(weights, masks.pruned_per_layer(imposed), previous)
    if value.scope == "layer":
        return masks.per_layer(weights, counts.shares(value.sparsity, layers), previous)
    return masks.magnitude(weights, counts.together(value), previous, masks.floors(value.floor, layers))


def _only(names: Container[str], found: Mask | None) -> Mask | None:
    """What a mask says of prunable weights; one of filters covers more."""
    return None if found is None else {name: kept for name, kept in found.items() if name in names}
