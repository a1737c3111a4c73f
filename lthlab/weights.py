"""Analyses of weights: how far the large ones of a network are large in another, and how widely they spread."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import pandas as pd
import torch

from lthlab import masks
from lthlab.masks import Mask
from lthlab.parts import Recipe


@dataclass(frozen=True, eq=False)
class CorrelationIndicator:
    """What `correlation_indicator` returns.

    Attributes
    ----------
    value : float
        R_p, in [0, 1]; 1 where the same weights are largest in both networks.
    chance : float
        Its expectation for independent networks: p up to rounding in small layers.
    z : float
        Standard deviations between value and chance if the overlap of each layer is hypergeometric;
        NaN where it cannot vary, as for p = 1.
    layers : DataFrame
        One row per layer that has weights left, in network order: layer, n (weights left),
        k (how many count as large), overlap (large in both), value and chance (NaN where k is 0).
    dropped : tuple of str
        Layers of which no weight is left: they count nothing.
    """

    value: float
    chance: float
    z: float
    layers: pd.DataFrame
    dropped: tuple[str, ...] = ()


def correlation_indicator(
    theta: Mapping[str, torch.Tensor],
    theta_prime: Mapping[str, torch.Tensor],
    p: float,
    mask: Mask | tuple[Mask, Mask] | None = None,
) -> CorrelationIndicator:
    """Measure the overlap of the largest weights of two networks (R_p).

    In a layer with n weights left, the k = p·n (rounded half up) largest in magnitude count as large.
    R_p is the number of weights that are large in both networks, over all layers, divided by that of
    those large in one. Weights of equal magnitude go by position in both networks, which counts as
    overlap: leave out tensors that are constant, as biases and BatchNorm are at the start.

    Parameters
    ----------
    theta, theta_prime : mapping of str to tensor
        The prunable weights of either network: the same names and shapes, float32 or float64.
    p : float
        Fraction of a layer that counts as large, in (0, 1].
    mask : Mask or pair of Mask, optional
        The weights left, for both networks or for one each. What is pruned does not enter.

    Returns
    -------
    CorrelationIndicator

    Raises
    ------
    ValueError
        If `p` is out of range or so small that no layer has a large weight, names or shapes differ,
        the two masks differ, the mask keeps nothing, or a weight that is left is NaN.
    TypeError
        If weights are neither float32 nor float64, or a mask is not of type bool.

    Notes
    -----
    Ma et al. 2021, appendix G, equation (1), where the divisor is p times the number of weights left.
    Here it is the sum of the k, which is the same but for rounding and makes R_p of equal weights 1.
    The measure does not see signs. A mask chosen by the magnitudes of one of the two networks biases it.
    """
    if not 0 < p <= 1:
        raise ValueError(f"p of the correlation indicator is {p}: allowed is 0 < p <= 1")
    masks.same_layers("theta_prime", theta_prime, theta)
    if mask is not None:
        mask = _agreed(mask, theta)
        theta, theta_prime = _left(theta, mask), _left(theta_prime, mask)
    n = {name: weight.numel() for name, weight in theta.items() if weight.numel()}
    k = {name: int((Decimal(str(p)) * size).to_integral_value(ROUND_HALF_UP)) for name, size in n.items()}
    total = sum(k.values())
    if not total:
        most = max(n.values(), default=0)
        what = f"the largest layer has {most} weight{'s' * (most > 1)} left" if n else "no weight is left"
        raise ValueError(f"no weight is large at p = {p}: {what}")
    small = {name: n[name] - k[name] for name in n}
    large = _large("theta", {name: theta[name] for name in n}, small)
    large_prime = _large("theta_prime", {name: theta_prime[name].to(theta[name].device) for name in n}, small)
    overlap = {name: masks.kept({name: large[name] & large_prime[name]}) for name in n}
    expected = sum(k[name] ** 2 / n[name] for name in n)
    variance = sum(k[m] ** 2 * (n[m] - k[m]) ** 2 / (n[m] ** 2 * (n[m] - 1)) for m in n if n[m] > 1)
    z = (sum(overlap.values()) - expected) / math.sqrt(variance) if variance else math.nan
    layers = pd.DataFrame({"layer": list(n), "n": n.values(), "k": k.values(), "overlap": overlap.values()})
    layers["value"] = layers["overlap"] / layers["k"].where(layers["k"] > 0)
    layers["chance"] = (layers["k"] / layers["n"]).where(layers["k"] > 0)
    dropped = tuple(name for name in theta if name not in n)
    return CorrelationIndicator(sum(overlap.values()) / total, expected / total, z, layers, dropped)


def spread(theta: Mapping[str, torch.Tensor], mask: Mask | None = None) -> pd.DataFrame:
    """Measure how widely the weights of each layer spread (W_std of Sooner, Fig. 2a).

    Parameters
    ----------
    theta : mapping of str to tensor
        The prunable weights in network order.
    mask : Mask, optional
        The weights left. What is pruned does not enter.

    Returns
    -------
    DataFrame
        One row per layer: layer, number (from 1), n (weights left), mean, and value, their standard deviation (divided
        by n); NaN where nothing is left.

    Raises
    ------
    ValueError
        If names or shapes of `mask` differ from those of `theta`.
    """
    if mask is not None:
        masks.same_layers("mask", mask, theta)
        theta = _left(theta, mask)
    rows = []
    for number, (name, weight) in enumerate(theta.items(), start=1):
        every = weight.detach().double()
        mean, value = every.mean().item(), every.std(correction=0).item() if every.numel() else math.nan
        rows.append({"layer": name, "number": number, "n": every.numel(), "mean": mean, "value": value})
    return pd.DataFrame(rows)


def pooled(layers: pd.DataFrame) -> float:
    """Standard deviation of the weights of all layers together.

    Parameters
    ----------
    layers : DataFrame
        What `spread` returns.

    Returns
    -------
    float
        At least 0; NaN where nothing is left.
    """
    own = layers[layers["n"] > 0]
    if own.empty:
        return math.nan
    share = own["n"] / own["n"].sum()
    mean = (share * own["mean"]).sum()
    return math.sqrt((share * (own["value"] ** 2 + (own["mean"] - mean) ** 2)).sum())


def shrinkage(recipe: Recipe, begin: int, end: int, steps_per_epoch: int) -> float | None:
    """Say by what factor weights that decay, and their spread, change where gradients are low.

    Parameters
    ----------
    recipe : Recipe
        How they are trained.
    begin, end : int
        Steps done on the schedule's clock, begin <= end.
    steps_per_epoch : int
        Length of an epoch.

    Returns
    -------
    float or None
        1 - λ/(1 - m)·Σ η over the steps between, of weight decay λ and momentum m; None for Adam and AdamW, whose
        steps do not follow it.

    Notes
    -----
    Sooner, equation (5), with the rate η of each step instead of n·η. It holds with Nesterov's momentum too. It takes
    the velocity to be λw/(1 - m) already: after a start without velocity weights lag behind, by ηλm/(1 - m)² at most.
    It is the first order of an exponential.
    """
    if recipe.optimizer != "sgd":
        return None
    rates = sum(recipe.rate(iteration, steps_per_epoch) for iteration in range(begin, end))
    return 1 - rates * recipe.weight_decay / (1 - recipe.momentum)


def _agreed(mask: Mask | tuple[Mask, Mask], theta: Mapping[str, torch.Tensor]) -> Mask:
    first, second = mask if isinstance(mask, tuple) else (mask, mask)
    for one in (first, second):
        masks.same_layers("mask", one, theta)
        for name, layer in one.items():
            if layer.dtype != torch.bool:
                raise TypeError(f"mask has layer {name!r} of {layer.dtype}: allowed is torch.bool")
    if second is not first and (differ := masks.hamming(second, first)):
        raise ValueError(f"the two masks differ in {differ:.3g} of all positions: allowed are equal masks")
    return first


def _left(theta: Mapping[str, torch.Tensor], mask: Mask) -> dict[str, torch.Tensor]:
    return {name: weight[mask[name].to(weight.device)] for name, weight in theta.items()}


def _large(what: str, weights: Mapping[str, torch.Tensor], small: Mapping[str, int]) -> Mask:
    """Mark the weights that count as large; errors say of which network."""
    try:
        return masks.per_layer(weights, small)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}: {error}") from error
