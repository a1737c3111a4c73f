"""The papers' experiments as values, and a study's configuration as a list of labelled values."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lthlab import sizes
from lthlab.parts import Data, Level, Net, Recipe, Sparsity, sparsity_fraction
from lthlab.sections import STAGES
from lthlab.spec import Config, Panel
from lthlab.values import At, Fresh, Magnitude, Mask, Measure, Narrow, Permuted, Train, Value


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
    masks_from : str
        Step whose weights are ranked.
    """

    net: Net
    data: Data
    replicate: int
    prunable: str = "all_but_head"
    scope: str = "global"
    denominator: str = "prunable"
    batchnorm: str = "rewound"
    masks_from: str = "last"

    def magnitude(self, of: At, sparsity: Sparsity) -> Magnitude:
        """Mask of the largest weights under this protocol."""
        return Magnitude(of, sparsity, self.prunable, self.scope, self.denominator)


def dense(protocol: Protocol, recipe: Recipe) -> Train:
    """Pretrain f(x; θ_0) (Ma 2.1)."""
    return Train(protocol.net, protocol.data, recipe, Fresh(protocol.replicate), protocol.replicate)


def omp(protocol: Protocol, recipe: Recipe, sparsity: Sparsity) -> Magnitude:
    """One-shot magnitude pruning, OMP(θ_T, s) (Ma Table 1)."""
    return protocol.magnitude(At(dense(protocol, recipe), protocol.masks_from), sparsity)


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
        mask = protocol.magnitude(At(run, protocol.masks_from), Level(k, rate))
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


def small(protocol: Protocol, recipe: Recipe, sparsity: Sparsity) -> Train:
    """Train a small dense network of the size of a ticket (SDT, Ma 2.1)."""
    net = Narrow(protocol.net, sparsity, protocol.prunable, protocol.denominator)
    return Train(net, protocol.data, recipe, Fresh(protocol.replicate), protocol.replicate)


ROLE = (
    "what", "ticket", "method", "level", "rate", "sparsity", "rewind", "replicate", "search_epochs", "widths",
    "parameters",
)  # fmt: skip
"""Columns of a role beside those of the panel and the recipes."""


@dataclass(frozen=True)
class Labelled:
    """A value in the role that it plays in a study.

    Attributes
    ----------
    value : Train, Mask or Measure
        What is computed.
    role : dict
        Plain values by column of the tidy frame: configuration, panel, network, width, data, view, train_size, report,
        what ('train', 'mask' or a measure's name), ticket ('dense', 'search', 'LT', 'RR', 'WR', 'SDT' or 'RT'), method,
        level, rate, sparsity, rewind, replicate, search_epochs, widths, parameters, find_*, eval_*.
    """

    value: Value
    role: dict[str, Any]

    @property
    def configuration(self) -> str:
        """Name of the configuration that it belongs to."""
        name: str = self.role["configuration"]
        return name

    @property
    def stage(self) -> str:
        """Stage of its configuration."""
        return self.configuration.partition(".")[0]

    @property
    def row(self) -> dict[str, Any]:
        """Its row in a study's table: key and role."""
        return {"key": self.value.key, **self.role}


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
    for panel, name in zip(config.panels, _panel_names(config.panels), strict=True):
        for find, evaluate in panel.recipes:
            for replicate in range(panel.replicates):
                for item in _Expansion(config, panel, name, find, evaluate, replicate).items():
                    found.setdefault(tuple(map(str, item.role.values())), item)
    return list(found.values())


def _panel_names(panels: Sequence[Panel]) -> list[str]:
    """Name panels by network and data set, numbered where these are the same."""
    names: list[str] = []
    for panel in panels:
        name = f"{panel.net.name}.{panel.data.name}"
        again = sum(other == name or other.startswith(f"{name}.") for other in names)
        names.append(f"{name}.{again + 1}" if again else name)
    return names


class _Expansion:
    """What a study asks for of one panel, pair of recipes and replicate."""

    def __init__(self, config: Config, panel: Panel, name: str, find: Recipe, evaluate: Recipe, replicate: int) -> None:
        rules = panel.protocol
        self.stages, self.panel, self.rules, self.find, self.evaluate = config.stages, panel, rules, find, evaluate
        self.protocol = Protocol(
            panel.net,
            panel.data,
            replicate,
            rules.prunable,
            rules.scope,
            rules.denominator,
            rules.batchnorm,
            rules.masks_from,
        )
        self.trunk = dense(self.protocol, find)
        self.sparsities = (*panel.levels, *panel.sparsities)
        self.roles: dict[str, dict[str, Any]] = {
            stage: {
                "configuration": _configuration(stage, name, config.panel_by, find, evaluate, replicate),
                "panel": name,
                "network": panel.net.name,
                "width": panel.net.width,
                "data": panel.data.name,
                "view": panel.data.view,
                "train_size": panel.data.images,
                "report": rules.report,
                **dict.fromkeys(ROLE),
                "replicate": replicate,
            }
            for stage in STAGES
        }
        self.chains: dict[tuple[str, str], list[tuple[Train, Magnitude]]] = {}
        self.columns = {recipe: _columns("find", find) | _columns("eval", recipe) for recipe in (find, evaluate)}

    def items(self) -> Iterator[Labelled]:
        """List labelled values, those of the stages that are asked for."""
        for stage, item in self._items():
            if stage in self.stages:
                yield item

    def _items(self) -> Iterator[tuple[str, Labelled]]:
        finding, evaluating = STAGES
        yield from self._trained(finding, self.trunk, "dense", self.find, None, search_epochs=0)
        if self.evaluate != self.find:
            value = dense(self.protocol, self.evaluate)
            yield from self._trained(evaluating, value, "dense", self.evaluate, None, search_epochs=0)
        for ticket, options in self.panel.tickets:
            if ticket == "SDT" and options is not None:
                for sparsity in self.sparsities:
                    value = small(self.protocol, self.evaluate, sparsity)
                    yield from self._trained(evaluating, value, ticket, self.evaluate, sparsity, search_epochs=0)
            for method in getattr(options, "methods", ()):
                yield from self._on_masks(ticket, options, method)

    def _on_masks(self, ticket: str, options: Any, method: str) -> Iterator[tuple[str, Labelled]]:
        finding, evaluating = STAGES
        step = getattr(options, "rewind", "0ep")
        schedule = self.rules.schedule if ticket == "WR" else "restart"
        chain = step if ticket == "WR" and self.rules.rewound_masks == "rewound" else "0ep"
        for sparsity, mask, search_epochs in self._masks(method, chain, schedule):
            fields: dict[str, Any] = {"method": method, "rewind": chain if method == "IMP" else None}
            run = mask.of.run
            if isinstance(run.mask, Magnitude):
                searched = {"search_epochs": search_epochs - _epochs(run), **fields}
                yield finding, self._label(finding, run, "train", "search", self.find, run.mask.sparsity, **searched)
            fields["search_epochs"] = search_epochs
            yield finding, self._label(finding, mask, "mask", "search", self.find, sparsity, **fields)
            if sparsity not in self.sparsities:
                continue
            under: Mask = mask
            if ticket == "RT":
                under = Permuted(mask, options.scope, self.protocol.replicate)
                yield evaluating, self._label(evaluating, under, "mask", ticket, self.evaluate, sparsity, **fields)
            if ticket == "RR" or getattr(options, "weights", None) == "fresh":
                fields["rewind"] = None
                leaf = reinitialised(self.protocol, self.evaluate, under)
            else:
                fields["rewind"] = step
                leaf = rewound(self.protocol, self.evaluate, self.trunk, under, step, schedule)
            yield from self._trained(evaluating, leaf, ticket, self.evaluate, sparsity, **fields)

    def _trained(
        self, stage: str, value: Train, ticket: str, recipe: Recipe, sparsity: Sparsity | None, **fields: Any
    ) -> Iterator[tuple[str, Labelled]]:
        """Label a training, and what is measured of it."""
        yield stage, self._label(stage, value, "train", ticket, recipe, sparsity, **fields)
        measure = self.panel.measures.correlation_indicator
        if measure is not None and ticket in measure.of:
            other = measure.partner == "dense" and ticket != "dense"
            ends = (At(value, value.step_text(value.start)), At(self.trunk if other else value, "last"))
            settings = (("p", repr(measure.p)), ("prunable", self.rules.prunable))
            indicator = Measure("correlation_indicator", ends, settings, value.mask if other else None)
            yield stage, self._label(stage, indicator, "correlation_indicator", ticket, recipe, sparsity, **fields)

    def _label(
        self, stage: str, value: Value, what: str, ticket: str, recipe: Recipe, sparsity: Sparsity | None, **fields: Any
    ) -> Labelled:
        role = self.roles[stage] | {"what": what, "ticket": ticket} | fields
        role["level"] = sparsity.k if isinstance(sparsity, Level) else 0 if sparsity is None else None
        role["sparsity"] = float(sparsity_fraction(sparsity or "0"))
        role["rate"] = float(sparsity.rate) if isinstance(sparsity, Level) else None
        role["widths"], role["parameters"] = self._size(ticket, sparsity or "0")
        return Labelled(value, role | self.columns[recipe])

    def _size(self, ticket: str, sparsity: Sparsity) -> tuple[str | None, int | None]:
        """Widths of a network's stages and its parameters that are not pruned; None for a network of one's own."""
        net, data, rules = self.panel.net, self.panel.data, self.rules
        if ticket == "SDT":
            size = sizes.narrow(net, data, sparsity, rules.prunable, rules.denominator)
            return sizes.text(size.widths), size.parameters
        widths = sizes.own_widths(net)
        kept = sizes.ticket_parameters(net, data, sparsity, rules.prunable, rules.denominator, rules.scope)
        return sizes.text(widths) if widths else None, kept

    def _masks(self, method: str, chain: str, schedule: str) -> Iterator[tuple[Sparsity, Magnitude, int]]:
        """List masks of a method, each with the epochs that finding it takes (Ma section 1)."""
        if method == "OMP":
            for sparsity in self.sparsities:
                yield sparsity, omp(self.protocol, self.find, sparsity), self.find.epochs
        elif self.panel.levels:
            last, spent = self.panel.levels[-1], 0
            if (chain, schedule) not in self.chains:
                self.chains[chain, schedule] = imp(self.protocol, self.find, last.k, last.rate, chain, schedule)
            for k, (run, mask) in enumerate(self.chains[chain, schedule], start=1):
                spent += _epochs(run)
                yield Level(k, last.rate), mask, spent


def _epochs(run: Train) -> int:
    return run.recipe.epochs - run.start // run.steps_per_epoch


def _columns(side: str, recipe: Recipe) -> dict[str, Any]:
    return {f"{side}_{name}": value for name, value in recipe.model_dump(mode="json").items()}


def _configuration(stage: str, panel: str, axes: Sequence[str], find: Recipe, evaluate: Recipe, replicate: int) -> str:
    """Name a configuration: stage, panel, and the values of the axes that matter to the stage."""
    words = [stage, panel]
    for axis in axes:
        side, _, field = axis.partition(".")
        if side == "replicate":
            words.append(f"replicate-{replicate}")
        elif side == "find" or stage != STAGES[0]:
            value = getattr(find if side == "find" else evaluate, field)
            words.append(re.sub(r"[^A-Za-z0-9._]+", "-", f"{side}_{field} {value}").strip("-"))
    name = ".".join(words)
    return name if len(name) <= 90 else f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
