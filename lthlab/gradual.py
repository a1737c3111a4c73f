"""Pruning on the way: how many weights a training prunes at which step, and the mask that it has since then."""

import functools
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from lthlab import masks, nets
from lthlab.masks import Mask
from lthlab.parts import Data, Net, iterations, pruned_count, sparsity_fraction
from lthlab.values import Explicit, Narrow, Train

Counts = dict[str, int]
"""Number of weights by layer; of all layers together under the name `TOGETHER`."""
TOGETHER = "all layers together"


def sparsities(train: Train) -> dict[int, Fraction]:
    """Find how a training prunes on its way.

    Returns
    -------
    dict of int to Fraction
        Exact sparsity from a step on, by iteration on the schedule's clock, in their order: along the curve
        s_f + (s_i - s_f) (1 - (t - t_0) / (t_n - t_0))^3 of Zhu and Gupta 2017 (Sooner eq. 6), or its linear form, at
        t_0, after every interval, and at t_n.
    """
    pruning = train.pruning
    if isinstance(pruning, Explicit):
        return {train.iteration(at): sparsity_fraction(sparsity) for at, sparsity in pruning.points}
    assert pruning is not None
    start, end = train.iteration(pruning.start), train.iteration(pruning.end)
    first, last = sparsity_fraction(pruning.initial), sparsity_fraction(pruning.sparsity)
    power = {"cubic": 3, "linear": 1}[pruning.shape]
    steps = [*range(start, end, iterations(pruning.every, train.steps_per_epoch)), end]
    return {at: last + (first - last) * Fraction(end - at, end - start) ** power for at in steps}


@functools.cache
def layers(net: Net | Narrow, data: Data, policy: str) -> Counts:
    """Count the prunable weights of each layer of a network."""
    return {name: shape.numel() for name, shape in nets.prunable(net, data, policy).items()}


def counts(train: Train, sparsity: Fraction) -> Counts:
    """Count the weights that a training has pruned once it has pruned to a sparsity, half up.

    Returns
    -------
    Counts
        By layer if it prunes within layers, else of all together.
    """
    assert train.pruning is not None
    sizes = layers(train.net, train.data, train.pruning.prunable)
    if train.pruning.scope == "global":
        sizes = {TOGETHER: sum(sizes.values())}
    return {name: pruned_count(sparsity, size) for name, size in sizes.items()}


def floors(train: Train) -> Counts | None:
    """Count the weights that each layer keeps at least; None without a floor."""
    assert train.pruning is not None
    return masks.floors(train.pruning.floor, layers(train.net, train.data, train.pruning.prunable))


class Pruner:
    """The mask of a training that prunes on its way.

    Parameters
    ----------
    train : Train
        The training.
    mask : Mask, optional
        What its weights are under at the beginning, or where an earlier part of it stopped.

    Attributes
    ----------
    steps : dict of int to Fraction
        Sparsity from a step on, by iteration on the schedule's clock.
    mask : Mask
        What it keeps now.
    """

    def __init__(self, train: Train, mask: Mask | None = None) -> None:
        assert train.pruning is not None
        shapes = nets.prunable(train.net, train.data, train.pruning.prunable)
        self.train, self.steps = train, sparsities(train)
        self.mask = mask or {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}

    def prune(self, iteration: int, weights: Mapping[str, Tensor]) -> None:
        """Shrink the mask to what is due at a step.

        Parameters
        ----------
        iteration : int
            One of `steps`.
        weights : mapping of str to Tensor
            Weights of the layers of the mask as they are now, fp32 or fp64, not NaN.
        """
        goal, current = counts(self.train, self.steps[iteration]), {name: weights[name] for name in self.mask}
        if TOGETHER in goal:
            floor = floors(self.train)
            if floor is not None:  # what the training's own mask has pruned already stays pruned
                floor = {name: min(least, int(self.mask[name].count_nonzero())) for name, least in floor.items()}
            self.mask = masks.magnitude(current, goal[TOGETHER], self.mask, floor)
        else:
            self.mask = masks.per_layer(current, goal, self.mask)
