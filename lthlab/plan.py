"""What computing values takes, before anything is computed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lthlab.errors import InputError
from lthlab.values import (
    At,
    Explicit,
    Gradual,
    Magnitude,
    MaskOf,
    Train,
    Value,
    ancestors,
    canonical,
    key_of,
)


@dataclass(frozen=True)
class Need:
    """How far a training is asked for.

    Attributes
    ----------
    until : int
        Last iteration.
    keep : frozenset of str
        Canonical steps whose states are kept.
    """

    until: int
    keep: frozenset[str]


def needs(asked: Iterable[Value]) -> dict[Train, Need]:
    """Unite what all values ask of each training.

    Parameters
    ----------
    asked : iterable of Value
        A `Train` is asked to its end; of those that others are made from, only as far as they need.

    Returns
    -------
    dict of Train to Need
        Inputs first.
    """
    asked = list(asked)
    everything = ancestors(asked)
    until: dict[Train, int] = {value: value.start for value in everything if isinstance(value, Train)}
    keep: dict[Train, set[str]] = {train: set() for train in until}
    for value in asked:
        if isinstance(value, Train):
            until[value] = value.end
    states = [item for item in asked if isinstance(item, At)]
    for at in [*states, *(at for value in everything for at in value.moments)]:
        keep[at.run].add(at.step)
        reached = at.run.end if at.step.startswith("best") else at.run.iteration(at.step)
        until[at.run] = max(until[at.run], reached)
    for value in everything:
        if isinstance(value, MaskOf):
            until[value.run] = max(until[value.run], value.run.iteration(value.step))
    return {train: Need(until[train], frozenset(keep[train])) for train in until}


def refuse_unsupported(wanted: Iterable[Value]) -> None:
    """Raise InputError naming all that this version describes but does not compute."""
    refused: dict[str, list[Value]] = {}
    for value in wanted:
        reasons = []
        if isinstance(value, Train):
            reasons += ["pruning during a training"] * isinstance(value.pruning, Gradual | Explicit)
        reasons += ["the mask of a training that prunes"] * isinstance(value, MaskOf)
        reasons += ["pruning of filters"] * (isinstance(value, Magnitude) and value.granularity == "filter")
        for reason in reasons:
            refused.setdefault(reason, []).append(value)
    if refused:
        found = (f"{reason} ({len(values)} values, such as {values[0]!r})" for reason, values in refused.items())
        raise InputError("\n".join(f"this version does not compute {text}" for text in found))


def depths(ordered: Iterable[Value]) -> dict[Value, int]:
    """Count the trainings that lie on the longest way below each value."""
    found: dict[Value, int] = {}
    for value in ordered:
        found[value] = max((found[item] + isinstance(item, Train) for item in value.inputs), default=0)
    return found


_VARIED = frozenset({"replicate", "order", "seed", "lr", "weight_decay", "momentum"})


def families(ordered: Iterable[Value]) -> dict[Value, str]:
    """Hash each value without what distinguishes replicates and rates: a family trains together."""
    found: dict[Value, str] = {}
    keys: dict[str, str] = {}

    def strip(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {name: strip(part) for name, part in item.items() if name not in _VARIED}
        if isinstance(item, list):
            return [strip(part) for part in item]
        return keys.get(item, item) if isinstance(item, str) else item

    for value in ordered:
        found[value] = keys[value.key] = key_of(canonical(strip(value.form())))
    return found


def shape_of(train: Train) -> tuple[object, ...]:
    """What trainings must agree in to form a group."""
    recipe = train.recipe
    return (
        train.net,
        train.data,
        recipe.batch_size,
        recipe.optimizer,
        recipe.nesterov,
        recipe.betas,
        recipe.decay_on,
        recipe.label_smoothing,
        recipe.mixup,
        recipe.precision,
        recipe.batchnorm,
        recipe.processes,
        train.start,
        train.end,
    )


def groups(
    trains: Iterable[Train],
    kind: Callable[[Train], object],
    families: Mapping[Value, str],
    capacity: Callable[[Train], int],
) -> Iterator[list[Train]]:
    """Cut trainings into groups that train together: like with like, whole families where they fit.

    Parameters
    ----------
    trains : iterable of Train
        What is to be trained.
    kind : callable
        What members of a group agree in.
    families : mapping of Value to str
        As found by `families`.
    capacity : callable
        Largest group that a training can be in.
    """
    kinds: dict[object, dict[str, list[Train]]] = {}
    for train in trains:
        kinds.setdefault(kind(train), {}).setdefault(families[train], []).append(train)
    for found in kinds.values():
        limit = capacity(next(iter(found.values()))[0])
        group: list[Train] = []
        for family in found.values():
            if len(group) + len(family) > limit and group:
                yield group
                group = []
            group = group + family
            while len(group) > limit:
                yield group[:limit]
                group = group[limit:]
        if group:
            yield group
