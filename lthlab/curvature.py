"""How sharp a minimum is, and what lies between two states: numbers without a scale of their own.

Like `lthlab.landscape`, functions of state dicts and of a function that scores states.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lthlab import masks
from lthlab.draws import Stream
from lthlab.landscape import Evaluate, Row, direction, moved, remaining
from lthlab.layers import Weights
from lthlab.masks import Mask

Product = Callable[[Tensor], Tensor]
Losses = Sequence[Callable[[Weights], Tensor]]
_START = 1 << 20  # draw of the vector that power iteration begins with, beyond those of directions


@dataclass(frozen=True, eq=False)
class Sharpness:
    """What `sharpness` returns.

    Attributes
    ----------
    value : float
        Mean increase of the loss.
    error : float or None
        Its standard error over directions; None of one direction.
    rows : list of dict
        direction, sign and value, the increase there.
    """

    value: float
    error: float | None
    rows: list[Row]


def sharpness(
    centre: Weights,
    mask: Mask | None,
    evaluate: Evaluate,
    radius: float = 0.1,
    directions: int = 10,
    seed: int = 0,
) -> Sharpness:
    """Measure by how much the loss rises at a distance that is a share of each filter's norm.

    Parameters
    ----------
    centre : dict of str to Tensor
        State of a network.
    mask : Mask or None
        What remains; None of a dense network.
    evaluate : Evaluate
        Finds losses.
    radius : float, optional
        Share of the norm of each filter's remaining weights; above 0.
    directions : int, optional
        Number of random directions, each gone both ways; at least 1.
    seed : int, optional
        As in `lthlab.landscape.direction`.

    Returns
    -------
    Sharpness

    Raises
    ------
    ValueError
        For a radius or number out of range, or as `lthlab.landscape.direction`.

    Notes
    -----
    Directions are those of Li et al. 2018. Scaling a layer, and dividing the next one or BatchNorm's γ by as much,
    changes neither the network nor this number.
    """
    if not 0 < radius < math.inf:
        raise ValueError(f"radius of the sharpness: {radius}; allowed: numbers above 0")
    if directions < 1:
        raise ValueError(f"directions of the sharpness: {directions}; allowed: 1 or more")
    (here,) = evaluate(lambda state: state, [centre])
    rows: list[Row] = []
    for number in range(directions):
        along = direction(centre, mask, seed, number)
        steps = [(along, sign * radius) for sign in (1, -1)]
        scores = evaluate(lambda step: _beside(centre, *step), steps)
        rows += [
            {"direction": number, "sign": sign, "value": score.loss - here.loss}
            for sign, score in zip((1, -1), scores, strict=True)
        ]
    means = [(rows[i]["value"] + rows[i + 1]["value"]) / 2 for i in range(0, len(rows), 2)]
    error = statistics.stdev(means) / math.sqrt(directions) if directions > 1 else None
    return Sharpness(statistics.fmean(means), error, rows)


def _beside(centre: Weights, along: Mapping[str, Tensor], distance: float) -> Weights:
    moved = {name: torch.add(centre[name].double(), step, alpha=distance) for name, step in along.items()}
    return centre | {name: tensor.to(centre[name].dtype) for name, tensor in moved.items()}


# --- the Hessian ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Eigenvalue:
    """What `top_eigenvalue` returns.

    Attributes
    ----------
    value : float
        Rayleigh quotient λ of the last vector v: the largest eigenvalue is not below it.
    error : float
        Norm of Hv - λv: some eigenvalue is no farther from λ.
    converged : bool
        Whether the error is within the tolerance.
    vector : Tensor
        v, of length 1.
    rows : list of dict
        iteration, value and error.
    """

    value: float
    error: float
    converged: bool
    vector: Tensor
    rows: list[Row]


def top_eigenvalue(product: Product, start: Tensor, tolerance: float = 1e-3, iterations: int = 100) -> Eigenvalue:
    """Find the algebraically largest eigenvalue of a symmetric matrix that is known by its products with vectors.

    Parameters
    ----------
    product : callable
        Multiplies a vector by the matrix.
    start : Tensor
        Vector to begin with, [n], not zero.
    tolerance : float, optional
        Of the error, as a share of the value's magnitude.
    iterations : int, optional
        Products at the most; at least 1.

    Returns
    -------
    Eigenvalue

    Raises
    ------
    ValueError
        For a tolerance or number out of range, or a start that is zero.

    Notes
    -----
    Power iteration that takes at each step the best vector in the span of the current one, its residual and the step
    before (Knyazev 2001, LOBPCG for one vector). It needs one product a step as power iteration does, but no shift
    where the eigenvalue of largest magnitude is negative, and far fewer steps.
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance of the eigenvalue: {tolerance}; allowed: numbers above 0")
    if iterations < 1:
        raise ValueError(f"iterations of the eigenvalue: {iterations}; allowed: 1 or more")
    if not start.norm() > 0:
        raise ValueError("the vector that the eigenvalue is sought from has no extent; allowed: some that is not zero")
    vector = start / start.norm()
    image, before, rows = product(vector), list[tuple[Tensor, Tensor]](), list[Row]()
    while True:
        value, residual, error = _quotient(vector, image)
        if error <= tolerance * abs(value):  # the image is a sum of others, whose rounding adds up
            image = product(vector)
            value, residual, error = _quotient(vector, image)
        converged = error <= tolerance * abs(value)
        rows.append({"iteration": len(rows) + 1, "value": value, "error": error})
        if converged or len(rows) == iterations or not math.isfinite(error):
            return Eigenvalue(value, error, converged, vector, rows)
        residual = residual - (vector @ residual) * vector
        residual = residual / residual.norm()
        basis = _orthonormal([(vector, image), (residual, product(residual)), *before])
        vectors, images = (torch.stack(each) for each in zip(*basis, strict=True))
        small = (vectors @ images.T).double()
        best = torch.linalg.eigh((small + small.T) / 2).eigenvectors[:, -1].to(vector)
        others = best.clone()
        others[0] = 0
        before = [(others @ vectors, others @ images)]
        vector, image = best @ vectors, best @ images
        vector, image = vector / vector.norm(), image / vector.norm()


def _quotient(vector: Tensor, image: Tensor) -> tuple[float, Tensor, float]:
    """Rayleigh quotient of a vector of length 1, what its image has beside it, and the norm of that."""
    value = float(vector @ image)
    residual = image - value * vector
    return value, residual, float(residual.norm())


def _orthonormal(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Make vectors orthonormal, with their images; those that depend on others go."""
    found: list[tuple[Tensor, Tensor]] = []
    for vector, image in pairs:
        whole = vector.norm()
        for _ in range(2):
            for known, of_known in found:
                share = known @ vector
                vector, image = vector - share * known, image - share * of_known
        length = vector.norm()
        if length > 1e-4 * whole:
            found.append((vector / length, image / length))
    return found


def hessian(losses: Losses, state: Weights, mask: Mask | None = None) -> tuple[Product, Tensor]:
    """Multiply by the Hessian of the loss with respect to the weights that are not pruned.

    Parameters
    ----------
    losses : sequence of callable
        Functions of a state whose sum is the loss, as of `lthlab.scores.Scorer.losses`.
    state : dict of str to Tensor
        Where.
    mask : Mask or None, optional
        What remains; None of a dense network.

    Returns
    -------
    product : callable
        Multiplies a vector [n], of the n weights of convolutions and linear layers that remain, by the Hessian.
    start : Tensor
        A random vector of that size, the same whenever it is asked for.

    Raises
    ------
    ValueError
        As `lthlab.landscape.remaining`.
    """
    names = moved(state)
    remaining(state, mask, names)
    kept = {name: torch.ones_like(state[name], dtype=torch.bool) for name in names}
    kept |= {name: layer.to(state[name].device) for name, layer in (mask or {}).items() if name in kept}
    weights = {name: state[name].detach().clone().requires_grad_() for name in names}
    whole = {name: tensor.detach() for name, tensor in state.items()} | weights

    def product(vector: Tensor) -> Tensor:
        along = _spread(vector, kept)
        total = torch.zeros_like(vector)
        with torch.enable_grad():
            for loss in losses:
                slopes = torch.autograd.grad(loss(whole), list(weights.values()), create_graph=True)
                slope = sum((s * along[n]).sum() for n, s in zip(names, slopes, strict=True))
                assert isinstance(slope, Tensor)
                turned = torch.autograd.grad(slope, list(weights.values()), allow_unused=True, materialize_grads=True)
                total += torch.cat([t[kept[n]] for n, t in zip(names, turned, strict=True)])
        return total

    size = sum(int(layer.count_nonzero()) for layer in kept.values())
    first = next(iter(weights.values()))
    return product, torch.from_numpy(Stream(0, "landscape", draw=_START).normal(size)).to(first)


def _spread(vector: Tensor, kept: Mask) -> Weights:
    found, at = {}, 0
    for name, layer in kept.items():
        size = int(layer.count_nonzero())
        found[name] = torch.zeros(layer.shape, dtype=vector.dtype, device=vector.device)
        found[name][layer] = vector[at : at + size]
        at += size
    return found


# --- between two states ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Barrier:
    """What `barrier` returns.

    Attributes
    ----------
    loss, accuracy : float
        By how much the loss rises above, and the accuracy falls below, what lies on a straight line between the ends,
        at the most; at least 0.
    rows : list of dict
        fraction, loss, accuracy.
    """

    loss: float
    accuracy: float
    rows: list[Row]


def barrier(first: Weights, last: Weights, evaluate: Evaluate, points: int = 11) -> Barrier:
    """Walk from one state to another in a straight line (Frankle et al. 2020, section 2).

    Parameters
    ----------
    first, last : dict of str to Tensor
        State dicts of one network.
    evaluate : Evaluate
        Finds loss and accuracy.
    points : int, optional
        Number of points, the ends among them; at least 3.

    Returns
    -------
    Barrier

    Raises
    ------
    ValueError
        If names or shapes differ, or for too few points.

    Notes
    -----
    All numbers of the states lie between those of the ends, BatchNorm's statistics too; those seldom suit the weights
    there, so a barrier may be one of these statistics unless `evaluate` computes them anew (Jordan et al. 2023).
    """
    masks.same_layers("last", last, first)
    if points < 3:
        raise ValueError(f"points between two states: {points}; allowed: 3 or more")
    fractions = [number / (points - 1) for number in range(points)]
    scores = evaluate(lambda fraction: dict(_between(first, last, fraction)), fractions)
    rows = [{"fraction": f, **score._asdict()} for f, score in zip(fractions, scores, strict=True)]
    start, end = rows[0], rows[-1]

    def above(row: Row, name: str) -> float:
        return float(row[name] - (1 - row["fraction"]) * start[name] - row["fraction"] * end[name])

    loss, accuracy = [above(row, "loss") for row in rows], [-above(row, "accuracy") for row in rows]
    return Barrier(_most(loss), _most(accuracy), rows)


def _between(first: Weights, last: Weights, fraction: float) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in first.items():
        if fraction in (0, 1) or not tensor.is_floating_point():
            yield name, tensor if fraction < 1 else last[name]
        else:
            yield name, tensor.double().lerp(last[name].double(), fraction).to(tensor.dtype)


def _most(values: Sequence[float]) -> float:
    """The largest value, at least 0; where some are not numbers, neither is it."""
    return math.nan if any(math.isnan(value) for value in values) else max(*values, 0.0)
