"""How many weights masks prune and keep, counted before they are made."""

import functools
from collections.abc import Mapping
from fractions import Fraction

from lthlab import gradual, nets
from lthlab.gradual import TOGETHER, Counts
from lthlab.parts import Data, Net, Sparsity, pruned_count
from lthlab.values import At, Magnitude, Mask, MaskOf, Narrow, Permuted


def made_for(mask: Mask) -> tuple[Net | Narrow, Data, str]:
    """Network, data and prunable set of a mask that is not dense."""
    assert mask.source is not None and mask.policy is not None
    return mask.source.net, mask.source.data, mask.policy


def layers(mask: Mask) -> Counts:
    """Count the prunable weights of each layer that a mask is for."""
    return gradual.layers(*made_for(mask))


@functools.cache
def _parameters(net: Net | Narrow, data: Data) -> int:
    return sum(parameter.numel() for parameter in nets.build(net, data).parameters())


def together(mask: Magnitude) -> int:
    """Count what a mask prunes that is ranked over all layers together."""
    assert mask.sparsity is not None
    net, data, _ = made_for(mask)
    counted = _parameters(net, data) if mask.denominator == "all" else sum(layers(mask).values())
    return pruned_count(mask.sparsity, counted)


def shares(sparsity: Sparsity | Fraction | None, sizes: Mapping[str, int]) -> Counts:
    """Count the same share of every layer, half up."""
    assert sparsity is not None
    return {name: pruned_count(sparsity, size) for name, size in sizes.items()}


def pruned(mask: Mask) -> Counts | None:
    """Count what a mask prunes.

    Returns
    -------
    dict of str to int
        By layer, or of all layers under the name `lthlab.gradual.TOGETHER`, as far as is known before the mask is made;
        empty for the dense mask. None if it is not known.
    """
    if isinstance(mask, MaskOf):
        return pruned_at(mask.moments[0])
    if isinstance(mask, Permuted):
        found = pruned(mask.mask)
        return found if found is None or mask.scope == "layer" else {TOGETHER: sum(found.values())}
    if not isinstance(mask, Magnitude):
        return {}
    if mask.layer_counts_of is not None:
        return pruned(mask.layer_counts_of)
    if mask.of_filters:
        return None
    return shares(mask.sparsity, layers(mask)) if mask.scope == "layer" else {TOGETHER: together(mask)}


def pruned_at(at: At) -> Counts | None:
    """Count what a training has pruned at a step, as `pruned` does."""
    if at.run.pruning is None:
        return pruned(at.run.mask)
    if at.step.startswith("best"):
        return None
    steps = gradual.sparsities(at.run).items()
    past = [share for step, share in steps if step <= at.run.iteration(at.step)]
    return gradual.counts(at.run, past[-1]) if past else pruned(at.run.mask)
