"""Measuring: from analyses as values to tables, a part at a time where they take long."""

import json
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

import torch

from lthlab import data, masks, nets
from lthlab.analyses import Measure
from lthlab.derive import Derived, mask, mask_at, state
from lthlab.lanes import evaluation_batch
from lthlab.layers import Weights
from lthlab.masks import Mask
from lthlab.store import Store
from lthlab.values import At
from lthlab.values import Mask as MaskValue
from lthlab.weights import correlation_indicator, pooled, shrinkage, spread


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
    read = [mask(value.mask, store) if value.mask else mask_at(at, store) for at in (first, second)]
    whole = {name: torch.ones(shape, dtype=torch.bool) for name, shape in names.items()}
    pair = (_only(names, read[0] or whole), _only(names, read[1] or whole))
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
    dataset = data.load(at.run.data, store.root / "data")
    right = _right(at, state(at, store), dataset, device)
    yield outcome([], right / len(dataset.train_y), images=len(dataset.train_y))


@torch.no_grad()
def _right(at: At, weights: Weights, dataset: data.Dataset, device: torch.device) -> int:
    """Count the training images that a network classifies as they are labelled."""
    network = nets.build(at.run.net, at.run.data).to(device).eval()
    network.load([weights])
    batch, right = evaluation_batch(at.run.data.facts.shape), 0
    for begin in range(0, len(dataset.train_y), batch):
        images, labels = (part[begin : begin + batch].to(device) for part in (dataset.train_x, dataset.train_y))
        right += int((network(data.normalise(images, dataset, torch.float32)).argmax(-1) == labels).sum())
    return right


_MEASURES: Mapping[str, Callable[[Measure, Store, torch.device], Iterator[Derived]]] = {
    "correlation_indicator": _correlation,
    "weight_std": _weight_std,
    "hamming": _hamming,
    "training_accuracy": _training_accuracy,
}
