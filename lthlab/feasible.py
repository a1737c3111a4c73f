"""What cannot be computed, found out before anything is: pruned counts, weights and masks of other data, filters."""

import functools
from collections.abc import Iterable, Iterator

from lthlab import counts, filters, gradual, masks, nets, sizes
from lthlab.errors import InputError
from lthlab.gradual import TOGETHER
from lthlab.parts import Data, Net, pruned_count
from lthlab.values import At, Graft, Magnitude, Narrow, Train, Value, plain


def refuse_impossible(wanted: Iterable[Value]) -> None:
    """Raise InputError naming all values that cannot be computed.

    These are networks that cannot be as narrow, pruning of too many weights or of fewer than are pruned already,
    filters of networks of which they are not known, and weights and masks of another data set that do not fit a
    training's network on its own.

    Parameters
    ----------
    wanted : iterable of Value
        Values, inputs first.
    """
    wanted = list(wanted)
    problems = list(_unfit(wanted)) or [*_growing(wanted), *_foreign(wanted)]
    for value in wanted if not problems else ():
        if isinstance(value, Magnitude):
            problems += _unfit_filters(value) if value.of_filters else _unfit_counts(value)
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


def _growing(wanted: Iterable[Value]) -> Iterator[str]:
    """Say which trainings begin to prune to less than their own mask has pruned, or might."""
    for train in wanted:
        if not isinstance(train, Train) or train.pruning is None:
            continue
        at, sparsity = next(iter(gradual.sparsities(train).items()))
        goal, already = gradual.counts(train, sparsity), counts.pruned(train.mask)
        by_layer = train.pruning.scope == "layer"
        what = f"pruning of {train!r} at {train.step_text(at)}"
        if already is None or (by_layer and already.keys() not in (set(), goal.keys())):
            allowed = "a mask within layers" if by_layer else "a mask of single weights, at a fixed step"
            yield f"{what} under {train.mask!r}, whose counts are not known beforehand; allowed: {allowed}, or none"
            continue
        if not by_layer:
            already = {name: sum(already.values()) for name in goal}
        if floors := gradual.floors(train):
            most = sum(gradual.layers(train.net, train.data, train.pruning.prunable).values()) - sum(floors.values())
            last = gradual.counts(train, [*gradual.sparsities(train).values()][-1])
            if most < last[TOGETHER]:
                yield f"{what}, in the end to {last[TOGETHER]} weights; allowed with its floor: up to {most}"
        for name, count in goal.items():
            if count < already.get(name, 0):
                yield f"{what} to {count} weights of {name}; allowed: {already[name]} or more, which its mask prunes"


def _unfit_counts(value: Magnitude) -> Iterator[str]:
    """Say where a mask cannot prune as many weights as it should, as far as the numbers are known beforehand."""
    layers, goal = counts.layers(value), counts.pruned(value)
    before = counts.pruned_at(value.of) or {}
    if goal is None:
        return
    if before and before.keys() != goal.keys():
        goal, before = ({TOGETHER: sum(numbers.values())} for numbers in (goal, before))
    total, spared = sum(layers.values()), sum((masks.floors(value.floor, layers) or {}).values())
    for place, count in goal.items():
        least, of = before.get(place, 0), layers.get(place, total)
        most = of - spared
        if not least <= count <= most:
            where = f" of '{place}'" if place in layers else ""
            yield f"{value!r} prunes {count} of {of} prunable weights{where}; allowed: {least} to {most}"


def _unfit_filters(value: Magnitude) -> Iterator[str]:
    try:
        found = _filter_counts(*counts.made_for(value))
    except InputError as error:
        yield f"{value!r}: {error}"
        return
    assert value.sparsity is not None
    total = sum(found.values())
    count, most = pruned_count(value.sparsity, total), total - len(found)
    if value.scope == "global" and count > most:
        yield f"{value!r} prunes {count} of {total} filters; allowed: 0 to {most}, which leaves one in each layer"


@functools.cache
def _filter_counts(net: Net | Narrow, data: Data, policy: str) -> dict[str, int]:
    return filters.counts(filters.of(net, data, policy), net, data)


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
