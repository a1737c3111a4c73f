"""Measuring: from analyses as values to tables, a part at a time where they take long."""

import functools
import json
import math
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lthlab import curvature, data, landscape, masks, nets
from lthlab.analyses import Measure
from lthlab.derive import Derived, mask, mask_at, state
from lthlab.landscape import Plane
from lthlab.lanes import DTYPES
from lthlab.layers import Weights
from lthlab.masks import Mask
from lthlab.parts import Data
from lthlab.scores import Scorer, images_of
from lthlab.store import Store
from lthlab.values import At
from lthlab.values import Mask as MaskValue
from lthlab.weights import correlation_indicator, pooled, shrinkage, spread

PART_S = 5.0
"""Seconds between parts of a surface, that is, between moments at which it can be stopped."""


def measure(value: Measure, store: Store, device: torch.device) -> Iterator[Derived]:
    """Compute what the store lacks of a measure.

    Parameters
    ----------
    value : Measure
        The measure. What it is of is in the store.
    store : Store
        Where inputs and earlier parts are.
    device : torch.device
        Where networks are evaluated.

    Yields
    ------
    files, record
        Of the next part. `frame.jsonl` has rows, JSON by line. The record has value, chance and error, None where
        there is none, and `left`, what is left to do, if it is not whole. One that its inputs do not allow is a result
        too, whose record says why.
    """
    try:
        yield from _MEASURES[value.name](value, store, device)
    except ValueError as error:
        yield {}, {"kind": "measure", "failed": str(error)}


def outcome(rows: Iterable[Mapping[str, Any]], value: float | None, **record: Any) -> Derived:
    """Write rows and a record as a part; numbers that are not finite are None.

    Parameters
    ----------
    rows : iterable of mapping
        Rows of the table.
    value : float or None
        What the tidy frame shows.
    **record
        chance, error, and whatever else is noted.
    """
    noted = {"value": value, "chance": None, "error": None} | record
    files = {"frame.jsonl": "".join(json.dumps(_finite(row)) + "\n" for row in rows).encode()}
    return files, {"kind": "measure", **_finite(noted)}


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}


def states(value: Measure) -> tuple[At, ...]:
    """What a measure of states is of."""
    return tuple(item for item in value.of if isinstance(item, At))


# --- weights and masks ------------------------------------------------------------------------------------------


def _correlation(value: Measure, store: Store, device: torch.device) -> Iterator[Derived]:
    first, second = states(value)
    names = nets.prunable(first.run.net, first.run.data, value.setting["prunable"])
    theta, theta_prime = (_only(names, state(at, store)) for at in (first, second))
    whole = {name: torch.ones(shape, dtype=torch.bool) for name, shape in names.items()}
    own = [_only(names, mask_at(at, store) or whole) for at in (first, second)]
    pair = (own[0], own[1])
    if value.mask is not None:
        given = _only(names, mask(value.mask, store) or whole)
        pair = (given, given)
        for at, left in zip((first, second), own, strict=True):
            if not masks.nested(given, left):
                raise ValueError(f"the mask keeps weights that {at!r} has pruned; allowed: masks within its own")
    found = correlation_indicator(theta, theta_prime, float(value.setting["p"]), pair)
    yield outcome(_records(found.layers), found.value, chance=found.chance, z=found.z)


def _weight_std(value: Measure, store: Store, device: torch.device) -> Iterator[Derived]:
    rows: list[dict[str, Any]] = []
    before: At | None = None
    last: dict[str, float] = {}
    for at in states(value):
        run, reached = at.run, at.run.iteration(at.step)
        names = nets.prunable(run.net, run.data, value.setting["prunable"])
        left = mask_at(at, store)
        layers = spread(_only(names, state(at, store)), None if left is None else _only(names, left))
        factor = None
        if before is not None:
            factor = shrinkage(run.recipe, run.iteration(before.step), reached, run.steps_per_epoch)
        for row in _records(layers):
            predicted = None if factor is None else last[row["layer"]] * factor
            rows.append({"step": at.step, "epoch": reached / run.steps_per_epoch, **row, "predicted": predicted})
        last, before = dict(zip(layers["layer"], layers["value"], strict=True)), at
    yield outcome(rows, pooled(layers))


def _hamming(value: Measure, store: Store, device: torch.device) -> Iterator[Derived]:
    named: dict[str, Mask] = {}
    epochs: dict[str, float] = {}
    for item in value.of:
        assert isinstance(item, MaskValue)
        at, found = item.moments[0], mask(item, store)
        assert found is not None
        names = store.parts(item.key)[0].record["layers"]
        named[at.step] = _only(names, found)
        epochs[at.step] = at.run.iteration(at.step) / at.run.steps_per_epoch
    rows = [
        {**row, "first_epoch": epochs[str(row["first"])], "second_epoch": epochs[str(row["second"])]}
        for row in masks.distances(named)
    ]
    first, *_, last = named
    ends = next(row for row in rows if (row["first"], row["second"]) == (first, last))
    yield outcome(rows, float(ends["value"]), chance=ends["random"])


def _records(frame: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return rows


def _only(names: Container[str], found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is said of prunable weights; masks of filters cover more."""
    return {name: tensor for name, tensor in found.items() if name in names}


# --- networks on images -----------------------------------------------------------------------------------------


def _training_accuracy(value: Measure, store: Store, device: torch.device) -> Iterator[Derived]:
    (at,) = states(value)
    score = _scorer(value, store, device)(lambda at: _on(device, at, store), [at])[0]
    yield outcome([], score.accuracy, images=at.run.data.images)


def _scorer(value: Measure, store: Store, device: torch.device) -> Scorer:
    """Make what scores states of a measure's network on its images."""
    run, setting = states(value)[-1].run, value.setting
    dataset = _dataset(run.data, run.data.facts.fingerprint, store.root / "data")
    count = int(setting.get("images", run.data.images))
    images, labels = images_of(dataset, run.data, setting.get("split", "train"), count)
    batchnorm = setting.get("batchnorm", "fixed")
    return Scorer(run.net, run.data, dataset, images, labels, batchnorm, device, DTYPES[run.recipe.precision])


@functools.lru_cache(maxsize=2)
def _dataset(described: Data, fingerprint: str | None, cache: Path) -> data.Dataset:
    """Load a data set, which many measures in turn are of."""
    return data.load(described, cache)


def _on(device: torch.device, at: At, store: Store) -> Weights:
    return {name: tensor.to(device) for name, tensor in state(at, store).items()}


def _said(value: Measure, *names: str) -> dict[str, Any]:
    """What the table of a measure says of its settings."""
    known = value.setting
    return {name: known[name] for name in names if name in known} | {"images": int(known["images"])}


def _loss_surface(value: Measure, store: Store, device: torch.device) -> Iterator[Derived]:
    *_, end = ats = states(value)
    setting, points, left = value.setting, int(value.setting["points"]), mask_at(end, store)
    snapshots = [_on(device, at, store) for at in ats]
    parameters, path = setting["parameters"], setting["plane"] == "pca"
    if path:
        plane = landscape.path_plane(snapshots, left, parameters)
        axes = landscape.around([plane.place(state) for state in snapshots], points)
    else:
        plane = landscape.random_plane(snapshots[-1], left, int(setting["seed"]), parameters)
        axes = landscape.square(float(setting["span"]), points)
    known = store.parts(value.key)
    done = {
        row["i"] + points * row["j"]
        for part in known
        for row in map(json.loads, store.read(value.key, "frame.jsonl", part.number).splitlines())
    }
    scorer = _scorer(value, store, device)
    missing = [cell for cell in range(points**2) if cell not in done]
    files: dict[str, bytes] = {}
    if known:
        record = dict(known[0].record)
    else:
        files["path.jsonl"], record = _about(value, plane, snapshots, scorer)
    while missing:
        began, rows = time.monotonic(), list[dict[str, Any]]()
        while missing and (not rows or time.monotonic() - began < PART_S):
            rows += landscape.surface(plane, axes, missing[:points], scorer)
            missing = missing[points:]
        found, record = outcome(rows, **record | {"left": len(missing)})
        yield files | found, record
        files = {}


def _about(value: Measure, plane: Plane, snapshots: list[Weights], scorer: Scorer) -> tuple[bytes, dict[str, Any]]:
    """Find the path of a training on a plane, and say of the plane what its table says."""
    steps = [{"step": at.step, "epoch": at.run.iteration(at.step) / at.run.steps_per_epoch} for at in states(value)]
    rows = landscape.path(plane, snapshots, scorer)
    files, _ = outcome([step | row for step, row in zip(steps, rows, strict=True)], None)
    first, second = plane.explained or (None, None)
    said = _said(value, "plane", "batchnorm", "split", "parameters")
    points = int(value.setting["points"])
    record = {"value": rows[-1]["loss"], "explained_1": first, "explained_2": second, "points": points, **said}
    return files["frame.jsonl"], record


def _sharpness(value: Measure, store: Store, device: torch.device) -> Iterator[Derived]:
    (at,), setting = states(value), value.setting
    found = curvature.sharpness(
        _on(device, at, store),
        mask_at(at, store),
        _scorer(value, store, device),
        float(setting["radius"]),
        int(setting["directions"]),
        int(setting["seed"]),
    )
    said = _said(value, "batchnorm", "split") | {"radius": float(setting["radius"])}
    yield outcome(found.rows, found.value, error=found.error, **said)


def _hessian_eigenvalue(value: Measure, store: Store, device: torch.device) -> Iterator[Derived]:
    (at,), setting = states(value), value.setting
    losses = _scorer(value, store, device).losses()
    product, start = curvature.hessian(losses, _on(device, at, store), mask_at(at, store))
    found = curvature.top_eigenvalue(product, start, float(setting["tolerance"]), int(setting["iterations"]))
    said = _said(value, "split") | {"converged": found.converged, "iterations": len(found.rows)}
    yield outcome(found.rows, found.value, error=found.error, **said)


def _loss_barrier(value: Measure, store: Store, device: torch.device) -> Iterator[Derived]:
    first, last = (_on(device, at, store) for at in states(value))
    found = curvature.barrier(first, last, _scorer(value, store, device), int(value.setting["points"]))
    yield outcome(found.rows, found.loss, accuracy_barrier=found.accuracy, **_said(value, "batchnorm", "split"))


_MEASURES: Mapping[str, Callable[[Measure, Store, torch.device], Iterator[Derived]]] = {
    "correlation_indicator": _correlation,
    "weight_std": _weight_std,
    "hamming": _hamming,
    "training_accuracy": _training_accuracy,
    "loss_surface": _loss_surface,
    "sharpness": _sharpness,
    "hessian_eigenvalue": _hessian_eigenvalue,
    "loss_barrier": _loss_barrier,
}
