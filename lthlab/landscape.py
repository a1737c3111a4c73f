"""Planes through a network's weights, random or along its training, and what is found on them (Li et al. 2018).

Everything here is a function of state dicts, and of a function that gives loss and accuracy of many states, such as
`lthlab.scores.Scorer`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from lthlab import masks
from lthlab.draws import Stream
from lthlab.layers import Weights
from lthlab.masks import Mask

_T = TypeVar("_T")
Row = dict[str, Any]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of what a state holds beside parameters: what BatchNorm has seen."""
MARGIN = 0.25
"""Share of a path's extent by which a plane reaches beyond it on every side."""
_FIRST_DIRECTION = 1  # draw 0 chooses images
_TRIES = 200
_COSINE = 1e-10
_FLAT = 1e-12  # share of squared distances; below it, a second direction is rounding


class Score(NamedTuple):
    """Mean loss and accuracy of a state."""

    loss: float
    accuracy: float


class Evaluate(Protocol):
    """Finds the scores of states that are made when they are needed, many at a time."""

    def __call__(self, make: Callable[[_T], Weights], places: Sequence[_T], /) -> list[Score]:
        """Make the state of every place and score it."""


class Place(NamedTuple):
    """A point of a plane, and the distance of a state from it."""

    x: float
    y: float
    residual: float


# --- directions -----------------------------------------------------------------------------------------------


def moved(state: Mapping[str, Tensor], parameters: str = "weights") -> list[str]:
    """Name what directions change.

    Parameters
    ----------
    state : mapping of str to Tensor
        State dict of a network.
    parameters : {'weights', 'all'}, optional
        Weights of convolutions and linear layers, or also biases and BatchNorm's γ and β; never BatchNorm's
        statistics.

    Raises
    ------
    ValueError
        For other `parameters`.
    """
    if parameters not in ("weights", "all"):
        raise ValueError(f"parameters of a direction: {parameters!r}; allowed: 'weights', 'all'")
    own = [name for name in state if not name.endswith(STATISTICS)]
    return own if parameters == "all" else [name for name in own if state[name].dim() > 1]


def remaining(state: Mapping[str, Tensor], mask: Mask | None, names: Iterable[str]) -> Weights:
    """Take some tensors of a state in fp64, with zeros where a mask prunes.

    Raises
    ------
    ValueError
        If a layer of the mask is not in the state, has another shape, or the mask keeps nothing.
    """
    if mask is not None:
        masks.same_layers("mask", mask, {name: state[name] for name in mask if name in state})
        if not masks.kept(mask):
            raise ValueError(f"the mask keeps none of {sum(m.numel() for m in mask.values())} weights; allowed: some")
    return _masked({name: state[name].detach().double() for name in names}, mask)


def _masked(tensors: Weights, mask: Mask | None) -> Weights:
    kept = mask or {}
    return {name: tensor * kept[name].to(tensor.device) if name in kept else tensor for name, tensor in tensors.items()}


def normalised(direction: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Weights:
    """Give every filter of a direction the norm of the filter's weights (Li et al. 2018, section 4).

    A filter is what makes one channel or unit: an entry of the first dimension. A tensor of one dimension, such as
    biases, is taken as one filter. Where the direction is zero it stays so.

    Parameters
    ----------
    direction, weights : mapping of str to Tensor
        Of equal names and shapes, both zero where weights are pruned.
    """
    found = {}
    for name, tensor in direction.items():
        rows, own = (t.flatten(1) if t.dim() > 1 else t[None] for t in (tensor, weights[name]))
        norms = rows.norm(dim=1)
        scale = torch.where(norms > 0, own.norm(dim=1) / norms, 0)
        found[name] = (rows * scale[:, None]).view(tensor.shape)
    return found


def direction(
    centre: Mapping[str, Tensor], mask: Mask | None, seed: int, number: int = 0, parameters: str = "weights"
) -> Weights:
    """Draw a random direction, zero where weights are pruned, filter by filter as long as the weights that remain.

    Parameters
    ----------
    centre : mapping of str to Tensor
        State from which it leads.
    mask : Mask or None
        What remains; None of a dense network.
    seed, number : int
        Replicate, and which of its directions, from 0. Equal ones are made of the same numbers whatever the mask.
    parameters : {'weights', 'all'}, optional
        As in `moved`.

    Returns
    -------
    dict of str to Tensor
        fp64, on the device of `centre`.

    Raises
    ------
    ValueError
        As `moved` and `remaining`.
    """
    names = moved(centre, parameters)
    weights = remaining(centre, mask, names)
    stream, drawn = Stream(seed, "landscape", draw=_FIRST_DIRECTION + number), {}
    for name in moved(centre, "all"):
        numbers = torch.from_numpy(stream.normal(centre[name].numel())).view(centre[name].shape)
        if name in weights:
            drawn[name] = numbers.to(centre[name].device)
    return normalised(_masked(drawn, mask), weights)


def dot(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Sum the products of the numbers of two states or directions of equal names."""
    return sum(torch.dot(tensor.flatten(), second[name].flatten()).item() for name, tensor in first.items())


def _combined(first: Mapping[str, Tensor], share: float, second: Mapping[str, Tensor]) -> Weights:
    return {name: torch.add(tensor, second[name], alpha=share) for name, tensor in first.items()}


# --- planes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane through a state.

    Attributes
    ----------
    centre : dict of str to Tensor
        State dict at the origin.
    first, second : dict of str to Tensor
        Directions, fp64 and orthogonal, of what `moved` names; zero where weights are pruned.
    explained : tuple of float or None
        Of a path: the shares of its squared distances from the centre that lie along either direction.
    """

    centre: Weights
    first: Weights
    second: Weights
    explained: tuple[float, float] | None = None

    def at(self, place: tuple[float, float]) -> Weights:
        """Make the state at a point; what no direction moves, BatchNorm's statistics too, is the centre's."""
        x, y = place
        return self.centre | {
            name: torch.add(self.centre[name].double(), tensor, alpha=x)
            .add_(self.second[name], alpha=y)
            .to(self.centre[name].dtype)
            for name, tensor in self.first.items()
        }

    def place(self, state: Mapping[str, Tensor]) -> Place:
        """Project a state by least squares; the residual is the norm of what is left, over all parameters.

        Raises
        ------
        ValueError
            If names or shapes are not those of the centre.
        """
        masks.same_layers("state", state, self.centre)
        left = {name: state[name].double() - self.centre[name].double() for name in moved(self.centre, "all")}
        inside = {name: left[name] for name in self.first}
        pair = (self.first, self.second)
        products = np.array([[dot(a, b) for b in pair] for a in pair])
        x, y = np.linalg.lstsq(products, np.array([dot(a, inside) for a in pair]), rcond=None)[0].tolist()
        left |= _combined(_combined(inside, -x, self.first), -y, self.second)
        return Place(x, y, math.sqrt(dot(left, left)))


def random_plane(centre: Weights, mask: Mask | None, seed: int, parameters: str = "weights") -> Plane:
    """Choose a plane at random: two directions as of `direction`, orthogonal to each other.

    Parameters
    ----------
    centre, mask, seed, parameters
        As of `direction`.

    Returns
    -------
    Plane
        Both directions are as long as the centre's weights, filter by filter.

    Raises
    ------
    ValueError
        As `direction`, or if so few weights are left that no two directions have filters of these norms and are
        orthogonal.

    Notes
    -----
    Li et al. 2018, section 4, leave directions as they are drawn, which in many dimensions are nearly orthogonal. Here
    they are made so, in turn with the norms of the filters, since few weights of a sparse network are left.
    """
    first = direction(centre, mask, seed, 0, parameters)
    second = direction(centre, mask, seed, 1, parameters)
    weights = remaining(centre, mask, first)
    squared = dot(first, first)
    if not squared > 0:
        raise ValueError("the plane has no extent: all weights that remain are zero; allowed: some that are not")
    for _ in range(_TRIES):
        cosine = dot(first, second) / squared
        if abs(cosine) <= _COSINE:
            return Plane(centre, first, second)
        second = normalised(_combined(second, -cosine, first), weights)
    left = sum(int(tensor.count_nonzero()) for tensor in weights.values())
    raise ValueError(f"{left} weights are left, too few for two orthogonal directions; allowed: several in a filter")


def path_plane(snapshots: Sequence[Weights], mask: Mask | None, parameters: str = "weights") -> Plane:
    """Find the plane through the last state of a training that is nearest to the states before it.

    Parameters
    ----------
    snapshots : sequence of dict of str to Tensor
        States of the training, the last one the centre.
    mask : Mask or None
        What remains; what it prunes does not count.
    parameters : {'weights', 'all'}, optional
        As in `moved`.

    Returns
    -------
    Plane
        Directions are orthonormal, that of the largest share first; their signs are such that the state farthest along
        each lies at a positive place.

    Raises
    ------
    ValueError
        For fewer than three snapshots, names or shapes that differ, a mask as in `remaining`, or if all snapshots lie
        on a line, or at one point.

    Notes
    -----
    Li et al. 2018, section 7.2: principal components of θ_i − θ_T. They are taken about θ_T, where the plane has its
    origin, and not about the mean of the differences.
    """
    *others, centre = snapshots
    if len(snapshots) < 3:
        raise ValueError(f"{len(snapshots)} snapshots do not span a plane; allowed: three or more")
    for number, state in enumerate(others, start=1):
        masks.same_layers(f"snapshot {number}", state, centre)
    names = moved(centre, parameters)
    origin, states = remaining(centre, mask, names), [remaining(state, mask, names) for state in others]
    rows = {name: torch.stack([(s[name] - origin[name]).flatten() for s in states]) for name in names}
    products = sum((row @ row.T for row in rows.values()), torch.zeros(()))
    squares, vectors = (tensor.cpu() for tensor in torch.linalg.eigh(products))
    second, first = squares[-2:].tolist()
    if not second > _FLAT * first:
        shape = "on a line" if first > 0 else "at one point"
        raise ValueError(f"the plane has no extent: all {len(snapshots)} snapshots lie {shape}; allowed: others")
    along: list[Weights] = []
    for vector in (vectors[:, -1], vectors[:, -2]):
        signed = vector * vector[vector.abs().argmax()].sign()
        found = {name: (signed.to(row) @ row).view(centre[name].shape) for name, row in rows.items()}
        for other in along:
            found = _combined(found, -dot(other, found), other)
        length = math.sqrt(dot(found, found))
        along.append({name: tensor / length for name, tensor in found.items()})
    whole = squares.clamp(min=0).sum().item()
    return Plane(centre, along[0], along[1], (first / whole, second / whole))


def square(span: float, points: int) -> tuple[list[float], list[float]]:
    """Divide [-span, span] into equal steps along both axes.

    Raises
    ------
    ValueError
        For a span that is not above 0, or fewer than two points.
    """
    if not 0 < span < math.inf:
        raise ValueError(f"span of a plane: {span}; allowed: numbers above 0")
    return _steps(-span, span, points), _steps(-span, span, points)


def around(places: Sequence[Place], points: int) -> tuple[list[float], list[float]]:
    """Divide both axes so that they reach beyond a path and the origin by `MARGIN` of its extent.

    Raises
    ------
    ValueError
        For fewer than two points.
    """
    axes = []
    for values in ([place.x for place in places], [place.y for place in places]):
        low, high = min(*values, 0.0), max(*values, 0.0)
        axes.append(_steps(low - MARGIN * (high - low), high + MARGIN * (high - low), points))
    return axes[0], axes[1]


def _steps(low: float, high: float, points: int) -> list[float]:
    if points < 2:
        raise ValueError(f"points along an axis: {points}; allowed: 2 or more")
    return np.linspace(low, high, points).tolist()


# --- what is found on them ------------------------------------------------------------------------------------


def surface(
    plane: Plane, axes: tuple[Sequence[float], Sequence[float]], cells: Iterable[int], evaluate: Evaluate
) -> list[Row]:
    """Find loss and accuracy at points of a grid.

    Parameters
    ----------
    plane : Plane
        Where.
    axes : pair of sequence of float
        Places along either direction, as of `square` or `around`.
    cells : iterable of int
        Which points, numbered from 0 along the first axis, then the second.
    evaluate : Evaluate
        Finds the scores.

    Returns
    -------
    list of dict
        i, j, x, y, loss, accuracy.
    """
    places = [(cell % len(axes[0]), cell // len(axes[0])) for cell in cells]
    points = [(axes[0][i], axes[1][j]) for i, j in places]
    scores = evaluate(plane.at, points)
    return [
        {"i": i, "j": j, "x": x, "y": y, **score._asdict()}
        for (i, j), (x, y), score in zip(places, points, scores, strict=True)
    ]


def path(plane: Plane, snapshots: Sequence[Weights], evaluate: Evaluate) -> list[Row]:
    """Find where states lie on a plane, their own loss and that of the plane there.

    Returns
    -------
    list of dict
        x, y, loss and accuracy of the state itself, plane_loss, residual.
    """
    places = [plane.place(state) for state in snapshots]
    own = evaluate(lambda number: snapshots[number], range(len(snapshots)))
    on_plane = evaluate(plane.at, [(place.x, place.y) for place in places])
    return [
        {"x": p.x, "y": p.y, **score._asdict(), "plane_loss": there.loss, "residual": p.residual}
        for p, score, there in zip(places, own, on_plane, strict=True)
    ]
