"""The papers' experiments as values, and a study's configuration as a list of labelled values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lthlab.parts import Data, Level, Net, Recipe, Sparsity, sparsity_fraction
from lthlab.spec import Config
from lthlab.values import At, Fresh, Magnitude, Mask, Measure, Train, Value


@dataclass(frozen=True)
class Protocol:
    """What the trainings and masks of one chain share.

    Attributes
    ----------
    net, data : Net, Data
        Network and data set.
    replicate : int
        Replicate, which gives θ_0, order and augmentation.
    prunable, scope, denominator, batchnorm : str
        As in `lthlab.values.Magnitude` and `lthlab.values.Train`.
    """

    net: Net
    data: Data
    replicate: int
    prunable: str = "all_but_head"
    scope: str = "global"
    denominator: str = "prunable"
    batchnorm: str = "rewound"

    def magnitude(self, of: At, sparsity: Sparsity) -> Magnitude:
        """Mask of the largest weights under this protocol."""
        return Magnitude(of, sparsity, self.prunable, self.scope, self.denominator)


def dense(protocol: Protocol, recipe: Recipe) -> Train:
    """Pretrain f(x; θ_0) (Ma 2.1)."""
    return Train(protocol.net, protocol.data, recipe, Fresh(protocol.replicate), protocol.replicate)


def omp(protocol: Protocol, recipe: Recipe, sparsity: Sparsity) -> Magnitude:
    """One-shot magnitude pruning, OMP(θ_T, s) (Ma Table 1)."""
    return protocol.magnitude(At(dense(protocol, recipe), "last"), sparsity)


def imp(
    protocol: Protocol,
    recipe: Recipe,
    levels: int,
    rate: str = "0.2",
    rewind: str = "0ep",
    schedule: str = "restart",
) -> list[tuple[Train, Magnitude]]:
    """Iterative magnitude pruning, IMP(θ_T, s) (Ma Table 1).

    Parameters
    ----------
    protocol, recipe : Protocol, Recipe
        What is trained and how.
    levels : int
        Number of rounds.
    rate : str, optional
        Share of the remaining weights that each round prunes.
    rewind : str, optional
        Step of the dense training that every round goes back to.
    schedule : {'restart', 'resume'}, optional
        As in `lthlab.values.Train`.

    Returns
    -------
    list of (Train, Magnitude)
        For each level from 1: the training whose weights are ranked, and the mask.
    """
    trunk = dense(protocol, recipe)
    rounds, run = [], trunk
    for k in range(1, levels + 1):
        mask = protocol.magnitude(At(run, "last"), Level(k, rate))
        rounds.append((run, mask))
        run = rewound(protocol, recipe, trunk, mask, rewind, schedule)
    return rounds


def rewound(protocol: Protocol, recipe: Recipe, trunk: Train, mask: Mask, step: str, schedule: str) -> Train:
    """Train θ_t ⊙ m: the lottery ticket for t = 0, weight rewinding for later t (Ma 2.1, appendix B)."""
    init = At(trunk, step)
    return Train(
        protocol.net,
        protocol.data,
        recipe,
        init,
        protocol.replicate,
        mask,
        schedule,
        batchnorm=protocol.batchnorm,
    )


def reinitialised(protocol: Protocol, recipe: Recipe, mask: Mask) -> Train:
    """Train θ'_0 ⊙ m: random reinitialisation under a ticket's mask (RR, Ma 2.1)."""
    init = Fresh(protocol.replicate, draw=1)
    return Train(protocol.net, protocol.data, recipe, init, protocol.replicate, mask)


ROLE = ("what", "ticket", "method", "level", "rate", "sparsity", "rewind", "replicate", "search_epochs")
"""Columns of a role beside those of the recipes."""


@dataclass(frozen=True)
class Labelled:
    """A value in the role that it plays in a study.

    Attributes
    ----------
    value : Train, Mask or Measure
        What is computed.
    role : dict
        Plain values by column of the tidy frame: what ('train', 'mask' or a measure's name), ticket ('dense',
        'search', 'LT', 'RR' or 'WR'), method, level, sparsity, rewind, replicate, search_epochs, find_*, eval_*.
    """

    value: Value
    role: dict[str, Any]


def expand(config: Config) -> list[Labelled]:
    """List all values of a study with their roles.

    Parameters
    ----------
    config : Config
        A study.

    Returns
    -------
    list of Labelled
        No two have the same role; one value may have several.
    """
    found: dict[tuple[object, ...], Labelled] = {}
    for find, evaluate in config.recipes:
        for replicate in range(config.replicates):
            for item in _panel(config, find, evaluate, replicate):
                found.setdefault(tuple(map(str, item.role.values())), item)
    return list(found.values())


def _panel(config: Config, find: Recipe, evaluate: Recipe, replicate: int) -> Iterator[Labelled]:
    rules = config.protocol
    protocol = Protocol(
        config.net, config.data, replicate, rules.prunable, rules.scope, rules.denominator, rules.batchnorm
    )

    panel = {
        "network": config.net.name,
        "width": config.net.width,
        "data": config.data.name,
        "train_size": config.data.images,
        "report": rules.report,
    }

    def label(
        value: Value, what: str, ticket: str, recipe: Recipe, sparsity: Sparsity | None, **fields: Any
    ) -> Labelled:
        role = panel | dict.fromkeys(ROLE) | {"what": what, "ticket": ticket, "replicate": replicate} | fields
        role["level"] = sparsity.k if isinstance(sparsity, Level) else 0 if sparsity is None else None
        role["sparsity"] = float(sparsity_fraction(sparsity or "0"))
        role["rate"] = float(sparsity.rate) if isinstance(sparsity, Level) else None
        return Labelled(value, role | _columns("find", find) | _columns("eval", recipe))

    measure = config.measures.correlation_indicator

    def trained(
        value: Train, ticket: str, recipe: Recipe, sparsity: Sparsity | None, **fields: Any
    ) -> Iterator[Labelled]:
        yield label(value, "train", ticket, recipe, sparsity, **fields)
        if measure is not None and ticket in measure.of:
            other = measure.partner == "dense" and ticket != "dense"
            ends = (At(value, value.step_text(value.start)), At(trunk if other else value, "last"))
            settings = (("p", repr(measure.p)), ("prunable", rules.prunable))
            indicator = Measure("correlation_indicator", ends, settings, value.mask if other else None)
            yield label(indicator, "correlation_indicator", ticket, recipe, sparsity, **fields)

    trunk = dense(protocol, find)
    for recipe in dict.fromkeys((find, evaluate)):
        yield from trained(dense(protocol, recipe), "dense", recipe, None, search_epochs=0)
    for ticket, options in config.tickets:
        for method in options.methods if options is not None else ():
            step = getattr(options, "rewind", "0ep")
            schedule = rules.schedule if ticket == "WR" else "restart"
            chain = step if ticket == "WR" and rules.rewound_masks == "rewound" else "0ep"
            for sparsity, mask, search_epochs in _masks(config, protocol, find, method, chain, schedule):
                fields = {"method": method, "rewind": chain if method == "IMP" else None}
                run = mask.of.run
                if isinstance(run.mask, Magnitude):
                    spent = search_epochs - _epochs(run)
                    yield label(run, "train", "search", find, run.mask.sparsity, search_epochs=spent, **fields)
                yield label(mask, "mask", "search", find, sparsity, search_epochs=search_epochs, **fields)
                if sparsity not in (*config.levels, *config.sparsities):
                    continue
                if ticket == "RR":
                    fields["rewind"] = None
                    leaf = reinitialised(protocol, evaluate, mask)
                else:
                    fields["rewind"] = step
                    leaf = rewound(protocol, evaluate, trunk, mask, step, schedule)
                yield from trained(leaf, ticket, evaluate, sparsity, search_epochs=search_epochs, **fields)


def _masks(
    config: Config, protocol: Protocol, find: Recipe, method: str, chain: str, schedule: str
) -> Iterator[tuple[Sparsity, Magnitude, int]]:
    """List masks of a method, each with the epochs that finding it takes (Ma section 1)."""
    if method == "OMP":
        for sparsity in (*config.levels, *config.sparsities):
            yield sparsity, omp(protocol, find, sparsity), find.epochs
    elif config.levels:
        last, spent = config.levels[-1], 0
        for k, (run, mask) in enumerate(imp(protocol, find, last.k, last.rate, chain, schedule), start=1):
            spent += _epochs(run)
            yield Level(k, last.rate), mask, spent


def _epochs(run: Train) -> int:
    return run.recipe.epochs - run.start // run.steps_per_epoch


def _columns(side: str, recipe: Recipe) -> dict[str, Any]:
    return {f"{side}_{name}": value for name, value in recipe.model_dump(mode="json").items()}
