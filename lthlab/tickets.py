"""The papers' experiments as values, and a study's configuration as a list of labelled values."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lthlab import probes, pruning, roles, sizes
from lthlab.parts import NETS, Data, Level, Net, Recipe, Sparsity, sparsity_fraction
from lthlab.roles import Labelled
from lthlab.sections import STAGES
from lthlab.spec import Config, Panel
from lthlab.values import (
    At,
    Explicit,
    Fresh,
    Gradual,
    Graft,
    Magnitude,
    Mask,
    MaskOf,
    Narrow,
    Permuted,
    Train,
    Value,
)


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
    granularity, norm, floor : str
        As in `lthlab.values.Magnitude`.
    """

    net: Net
    data: Data
    replicate: int
    prunable: str = "all_but_head"
    scope: str = "global"
    denominator: str = "prunable"
    batchnorm: str = "rewound"
    masks_from: str = "last"
    granularity: str = "weight"
    norm: str = "l1"
    floor: str | None = None

    def magnitude(self, of: At, sparsity: Sparsity, counts: Mask | None = None) -> Magnitude:
        """Mask of the largest weights under this protocol; with `counts`, of as many per layer as that mask keeps."""
        if counts is not None:
            return Magnitude(of, prunable=self.prunable, layer_counts_of=counts)
        rules = (self.prunable, self.scope, self.denominator)
        return Magnitude(of, sparsity, *rules, None, self.granularity, self.norm, self.floor)


def dense(protocol: Protocol, recipe: Recipe) -> Train:
    """Pretrain f(x; θ_0) (Ma 2.1)."""
    return Train(protocol.net, protocol.data, recipe, Fresh(protocol.replicate), protocol.replicate)


def omp(protocol: Protocol, recipe: Recipe, sparsity: Sparsity, counts: Mask | None = None) -> Magnitude:
    """One-shot magnitude pruning, OMP(θ_T, s) (Ma Table 1); with `counts`, to that mask's layer counts (Lan Fig. 7)."""
    return protocol.magnitude(At(dense(protocol, recipe), protocol.masks_from), sparsity, counts)


def gmp(protocol: Protocol, recipe: Recipe, pruning: Gradual | Explicit) -> MaskOf:
    """Gradual magnitude pruning: the mask when a training has been pruned on its way (Sooner eq. 6)."""
    replicate = protocol.replicate
    run = Train(protocol.net, protocol.data, recipe, Fresh(replicate), replicate, pruning=pruning)
    return MaskOf(run, pruning.end if isinstance(pruning, Gradual) else pruning.points[-1][0])


def imp(
    protocol: Protocol,
    recipe: Recipe,
    levels: int,
    rate: str = "0.2",
    rewind: str | None = "0ep",
    schedule: str = "restart",
    tuning: Recipe | None = None,
    counts: Sequence[Mask] = (),
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
        Step of the dense training that every round goes back to. None trains the weights that were ranked on, which is
        learning rate rewinding (Renda et al. 2020).
    schedule : {'restart', 'resume'}, optional
        As in `lthlab.values.Train`.
    tuning : Recipe, optional
        Recipe of all rounds but the first, of fine-tuning. These are ranked at their end.
    counts : sequence of Mask, optional
        For each level, a mask of which every layer's count is imposed (Lan Fig. 7).

    Returns
    -------
    list of (Train, Magnitude)
        For each level from 1: the training whose weights are ranked, and the mask.
    """
    trunk = dense(protocol, recipe)
    rounds, run, ranked = [], trunk, At(trunk, protocol.masks_from)
    for k in range(1, levels + 1):
        mask = protocol.magnitude(ranked, Level(k, rate), counts[k - 1] if counts else None)
        rounds.append((run, mask))
        if rewind is None:
            run = continued(protocol, tuning or recipe, ranked, mask)
        else:
            run = rewound(protocol, tuning or recipe, trunk, mask, rewind, schedule)
        ranked = At(run, "last" if tuning else protocol.masks_from)
    return rounds


def rewound(protocol: Protocol, recipe: Recipe, trunk: Train, mask: Mask, step: str, schedule: str) -> Train:
    """Train θ_t ⊙ m: the lottery ticket for t = 0, weight rewinding for later t (Ma 2.1, appendix B)."""
    return _under(protocol, recipe, At(trunk, step), mask, schedule)


def continued(protocol: Protocol, recipe: Recipe, ranked: At, mask: Mask) -> Train:
    """Train the weights that were ranked on: learning rate rewinding, or fine-tuning (Renda et al. 2020, section 2)."""
    return _under(protocol, recipe, ranked, mask)


def reinitialised(protocol: Protocol, recipe: Recipe, mask: Mask) -> Train:
    """Train θ'_0 ⊙ m: random reinitialisation under a ticket's mask (RR, Ma 2.1)."""
    return _under(protocol, recipe, Fresh(protocol.replicate, draw=1), mask)


def _under(protocol: Protocol, recipe: Recipe, weights: At | Fresh, mask: Mask, schedule: str = "restart") -> Train:
    """Train weights under a mask; what comes from other data gets a fresh head (Morcos 3.3)."""
    init: Fresh | At | Graft = weights
    if isinstance(weights, At) and weights.run.data != protocol.data:
        init = Graft(weights, Fresh(protocol.replicate))
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


def even(protocol: Protocol, trunk: Train, sparsity: Sparsity) -> Permuted:
    """Random mask with the same share of every layer (Morcos A.1); of the trunk it takes the shapes only."""
    shares = Magnitude(At(trunk, "0ep"), sparsity, protocol.prunable, "layer")
    return Permuted(shares, "layer", protocol.replicate)


def small(protocol: Protocol, recipe: Recipe, sparsity: Sparsity) -> Train:
    """Train a small dense network of the size of a ticket (SDT, Ma 2.1)."""
    net = Narrow(protocol.net, sparsity, protocol.prunable, protocol.denominator)
    return Train(net, protocol.data, recipe, Fresh(protocol.replicate), protocol.replicate)


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
    for panel, name in zip(config.panels, roles.panel_names(config.panels), strict=True):
        for find, evaluate in panel.recipes:
            for replicate in range(panel.replicates):
                for item in _Expansion(config, panel, name, find, evaluate, replicate).items():
                    found.setdefault(tuple(map(str, item.role.values())), item)
    return list(found.values())


@dataclass(frozen=True)
class _Site:
    """Where tickets are trained: on the data that they are found on, or on a target."""

    protocol: Protocol
    recipe: Recipe
    transferred: bool = False

    @functools.cached_property
    def columns(self) -> dict[str, Any]:
        """What of it is in a role."""
        return {"target": self.protocol.data.text, **roles.recipe_columns("eval", self.recipe)}


class _Found(NamedTuple):
    """A mask, and how it was found.

    Attributes
    ----------
    mask, sparsity : Magnitude or MaskOf, Sparsity
        The mask, and what it prunes to.
    trunk, ranked : Train, At
        The training that weights are rewound to, and the weights that were ranked.
    first, epochs : int
        Epochs of the first round, and of the whole search (Ma section 1).
    columns : dict
        What of it is in the role.
    """

    mask: Magnitude | MaskOf
    sparsity: Sparsity
    trunk: Train
    ranked: At
    first: int
    epochs: int
    columns: dict[str, Any]


class _Rounds(NamedTuple):
    """How the rounds of iterative pruning go on, as in `imp`; fine-tuning by its epochs and learning rate."""

    rewind: str | None = "0ep"
    schedule: str = "restart"
    tuning: tuple[int, float | None] | None = None


class _Expansion:
    """What a study asks for of one panel, pair of recipes and replicate."""

    def __init__(self, config: Config, panel: Panel, name: str, find: Recipe, evaluate: Recipe, replicate: int) -> None:
        rules = panel.protocol
        self.stages, self.panel, self.rules, self.find, self.evaluate = config.stages, panel, rules, find, evaluate
        shared = rules.model_dump(include={"prunable", "scope", "denominator", "batchnorm", "granularity", "norm"})
        self.protocol = Protocol(panel.net, panel.data, replicate, **shared, floor=rules.floor_text)
        self.trunk = dense(self.protocol, find)
        self.at = {self.trunk.canonical_step(at): at for at in panel.at}
        self.sparsities = (*panel.levels, *panel.sparsities)
        further = max(panel.sparsities, key=sparsity_fraction, default=None)
        self.sparsest = panel.levels[-1] if panel.levels else further
        self.roles: dict[str, dict[str, Any]] = {
            stage: {
                "configuration": roles.configuration(stage, name, config.panel_by, find, evaluate, replicate),
                "panel": name,
                "network": panel.net.name,
                "width": panel.net.width,
                "shortcut": panel.net.shortcut if "shortcut" in NETS[panel.net.name] else None,
                "data": panel.data.name,
                "view": panel.data.view,
                "train_size": panel.data.images,
                "report": rules.report,
                "ranking": rules.scope if rules.granularity == "weight" else f"filters, {rules.scope}",
                **dict.fromkeys(roles.ROLE),
                "replicate": replicate,
                "source": panel.data.text,
            }
            for stage in STAGES
        }
        self.chains: dict[tuple[str, _Rounds, Recipe, Recipe | None], list[tuple[Train, Magnitude]]] = {}
        self.found: dict[tuple[str, tuple[_Rounds, ...]], list[_Found]] = {}
        self.found_with = roles.recipe_columns("find", find)
        self.own = _Site(self.protocol, find)

    def items(self) -> Iterator[Labelled]:
        """List labelled values, those of the stages that are asked for."""
        for stage, item in self._items():
            if stage in self.stages:
                yield item

    def _items(self) -> Iterator[tuple[str, Labelled]]:
        finding, evaluating = STAGES
        coupled = self.evaluate == self.find
        if coupled or self._to_the_end():
            yield from self._trained(self.own, self.trunk, "dense", None, stage=finding)
        if self.panel.tickets.GMP is not None:
            for found in self._masks("GMP"):
                columns = found.columns | {"rewind": "0ep"}
                yield from self._trained(self.own, found.trunk, "GMP", found.sparsity, stage=finding, **columns)
        sites = [_Site(self.protocol, self.evaluate)]
        for data, recipes in self.panel.targets:
            there = replace(self.protocol, data=data)
            sites += [_Site(there, recipe, data != self.protocol.data) for recipe in recipes[self.evaluate]]
        for site in sites:
            if not (coupled and site is sites[0]):
                yield from self._trained(site, dense(site.protocol, site.recipe), "dense", None)
            for ticket, options in self.panel.tickets:
                if ticket == "SDT" and options is not None and not site.transferred:
                    for sparsity in self.sparsities:
                        value = small(site.protocol, site.recipe, sparsity)
                        yield from self._trained(site, value, ticket, sparsity)
                for method in getattr(options, "methods", ()):
                    rounds = self._rounds(ticket, options) if method == "IMP" else []
                    for found in self._masks(method, tuple(rounds)):
                        if site is sites[0]:
                            yield from self._searched(found)
                        elif ticket == "PPR":
                            continue
                        if found.sparsity in self.sparsities or method == "GMP":
                            yield from self._under(site, ticket, options, found)

        yield from self._masks_measured()

    def _masks_measured(self) -> Iterator[tuple[str, Labelled]]:
        """Label distances of one-shot masks, and random labels learnt under masks."""
        measures, stage = self.panel.measures, STAGES[0]
        wanted = measures.hamming is not None or measures.memorization is not None
        one_shot = [found for found in (self._masks("OMP") if wanted else ()) if not found.columns["layer_counts"]]
        for found in one_shot:
            yield from self._searched(found)
        for sparsity in self.sparsities if measures.hamming is not None else ():
            ranked = {found.ranked: found.mask for found in one_shot if found.sparsity == sparsity}
            fixed = sorted((at for at in ranked if at.step[0].isdigit()), key=lambda at: at.run.iteration(at.step))
            asked = probes.distances([ranked[at] for at in fixed])
            columns = {"ticket": "search", "method": "OMP", **asked.columns}
            yield stage, self._label(stage, self.own, asked.value, sparsity=sparsity, **columns)
        if measures.memorization is None:
            return
        gradual = [(found.trunk, found.sparsity, found.columns["pruning"]) for found in self._masks("GMP")]
        masks = [(found.ranked, found.mask, found.sparsity) for found in one_shot]
        for learner in probes.learners(self.trunk, masks, gradual, self.protocol.magnitude):
            for asked in probes.memorized(measures.memorization, learner, self.protocol.replicate):
                columns = {"ticket": "memorization", **learner.columns, **asked.columns}
                yield stage, self._label(stage, self.own, asked.value, sparsity=learner.sparsity, **columns)

    def _to_the_end(self) -> bool:
        """Whether a mask is of the trained weights, or there is none."""
        whole = {self.trunk.step_text(self.trunk.end), "best_val", "best_test"}
        methods = {method for _, options in self.panel.tickets for method in getattr(options, "methods", ())}
        return bool(whole & self.at.keys()) or not methods & {"IMP", "OMP"}

    def _rounds(self, ticket: str, options: Any) -> list[_Rounds]:
        """Say how rounds of iterative pruning go on where a ticket's masks come from."""
        if ticket == "LRR":
            return [_Rounds(None)]
        if ticket == "FT":
            return [_Rounds(None, tuning=(options.epochs, options.lr))]
        late = self.panel.tickets.WR
        rewinds = late.rewind if late is not None and "IMP" in late.methods else []
        alone = self.panel.tickets.LT is None and len(rewinds) == 1
        if self.rules.rewound_masks == "rewound" and (ticket == "WR" or (ticket in ("RR", "RT") and alone)):
            return [_Rounds(step, self.rules.schedule) for step in rewinds]
        return [_Rounds()]

    def _searched(self, found: _Found) -> Iterator[tuple[str, Labelled]]:
        """Label a mask, and the training that was ranked for it if that went to its end."""
        finding, site, run, columns = STAGES[0], self.own, found.ranked.run, found.columns
        level, ends = found.sparsity, (run.canonical_step("last"), "best_val", "best_test")
        if isinstance(run.mask, Magnitude) and isinstance(level, Level) and found.ranked.step in ends:
            spent = {"search_epochs": found.epochs - _epochs(run), "train_epochs": _epochs(run)}
            below = Level(level.k - 1, level.rate)
            yield finding, self._label(finding, site, run, "train", "search", below, **columns | spent)
        spent = {"search_epochs": found.epochs}
        yield finding, self._label(finding, site, found.mask, "mask", "search", found.sparsity, **columns | spent)

    def _under(self, site: _Site, ticket: str, options: Any, found: _Found) -> Iterator[tuple[str, Labelled]]:
        """Label what is trained under a mask."""
        if ticket == "RT":
            for scope in options.scope:
                yield from self._random(site, scope, options.weights, found)
            return
        protocol, recipe = site.protocol, site.recipe
        columns = found.columns | {"search_epochs": found.epochs}
        if ticket == "PPR":
            for lr in options.lr:
                there = _Site(self.protocol, self.find.tuning(options.epochs, self.trunk.steps_per_epoch, lr))
                value = continued(self.protocol, there.recipe, found.ranked, found.mask)
                more = columns | {"rewind": roles.RANKED}
                yield from self._trained(there, value, ticket, found.sparsity, what="ppr", **more)
            return
        if ticket in ("LRR", "FT"):
            (how,) = self._rounds(ticket, options)
            value = continued(protocol, _tuned(recipe, protocol.data, how) or recipe, found.ranked, found.mask)
            yield from self._trained(site, value, ticket, found.sparsity, **columns | {"rewind": roles.RANKED})
        elif ticket == "RR":
            value = reinitialised(protocol, recipe, found.mask)
            yield from self._trained(site, value, ticket, found.sparsity, **columns | {"rewind": None})
        else:
            schedule = self.rules.schedule if ticket == "WR" and not site.transferred else "restart"
            steps = options.rewind if ticket == "WR" else ["0ep"]
            if ticket == "WR" and found.columns["method"] == "IMP" and self.rules.rewound_masks == "rewound":
                steps = [found.columns["rewind"]]
            for step in steps:
                value = rewound(protocol, recipe, found.trunk, found.mask, step, schedule)
                more = {"rewind": step, "search_epochs": self._reached(found, step)}
                yield from self._trained(site, value, ticket, found.sparsity, **columns | more)

    def _random(self, site: _Site, scope: str, sources: Sequence[str], found: _Found) -> Iterator[tuple[str, Labelled]]:
        """Label random tickets and their masks; only a permutation within layers needs the search."""
        columns = found.columns | {"scope": scope, "search_epochs": found.epochs, "rewind": None}
        mask: Permuted
        if scope == "even":
            mask = even(self.protocol, self.trunk, found.sparsity)
            columns |= dict.fromkeys(("method", "prune_at", "pruning", "layer_counts"))
        else:
            mask = Permuted(found.mask, scope, self.protocol.replicate)
        if scope != "layer":
            columns["search_epochs"] = 0
        stage = STAGES[1]
        yield stage, self._label(stage, site, mask, "mask", "RT", found.sparsity, **columns)
        for source in sources:
            if source == "fresh":
                value = reinitialised(site.protocol, site.recipe, mask)
                yield from self._trained(site, value, "RT", found.sparsity, **columns)
                continue
            step = "0ep" if source == "initial" else source
            value = rewound(site.protocol, site.recipe, self.trunk, mask, step, "restart")
            spent = self._reached(found, step) if scope == "layer" else _epochs(self.trunk, step)
            more = {"rewind": step, "search_epochs": spent}
            yield from self._trained(site, value, "RT", found.sparsity, **columns | more)

    def _reached(self, found: _Found, step: str) -> int:
        """Count the epochs of a search whose first training also has to come to a step that weights are taken from."""
        return found.epochs + max(0, _epochs(found.trunk, step) - found.first)

    def _trained(
        self,
        site: _Site,
        value: Train,
        ticket: str,
        sparsity: Sparsity | None,
        stage: str = STAGES[1],
        what: str = "train",
        **columns: Any,
    ) -> Iterator[tuple[str, Labelled]]:
        """Label a training, and what is measured of it."""
        schedule = "fine-tune" if ticket == "FT" else value.schedule
        columns = {"search_epochs": 0} | columns | {"schedule": schedule, "train_epochs": _epochs(value)}
        yield stage, self._label(stage, site, value, what, ticket, sparsity, **columns)
        if site.transferred or what != "train":
            return
        method = columns.get("method")
        rules = self.rules.prunable
        trained = probes.Trained(value, self.trunk, ticket, method, sparsity, self.protocol.replicate, rules)
        for asked in probes.of_training(self.panel.measures, trained, self._sparsest()):
            yield (
                stage,
                self._label(stage, site, asked.value, ticket=ticket, sparsity=sparsity, **columns | asked.columns),
            )

    def _sparsest(self) -> Sparsity | None:
        """The last level, or where there is none the largest sparsity."""
        if self.panel.levels:
            return self.panel.levels[-1]
        return max(self.panel.sparsities, key=sparsity_fraction, default=None)

    def _label(
        self, stage: str, site: _Site, value: Value, what: str, ticket: str, sparsity: Sparsity | None, **columns: Any
    ) -> Labelled:
        role = self.roles[stage] | {"what": what, "ticket": ticket} | columns
        role["level"] = sparsity.k if isinstance(sparsity, Level) else 0 if sparsity is None else None
        role["sparsity"] = float(sparsity_fraction(sparsity or "0"))
        role["rate"] = float(sparsity.rate) if isinstance(sparsity, Level) else None
        role["widths"], role["parameters"] = self._size(ticket, sparsity or "0", site.protocol.data)
        return Labelled(value, role | self.found_with | site.columns)

    def _size(self, ticket: str, sparsity: Sparsity, data: Data) -> tuple[str | None, int | None]:
        """Widths of a network's stages and its parameters that are not pruned; None where these are not known."""
        net, rules = self.panel.net, self.rules
        if ticket == "SDT":
            size = sizes.narrow(net, data, sparsity, rules.prunable, rules.denominator)
            return sizes.text(size.widths), size.parameters
        widths = sizes.own_widths(net)
        if rules.granularity == "filter" and sparsity != "0":
            return sizes.text(widths) if widths else None, None
        kept = sizes.ticket_parameters(net, data, sparsity, rules.prunable, rules.denominator, rules.scope)
        return sizes.text(widths) if widths else None, kept

    # --- masks ------------------------------------------------------------------------------------------------

    def _masks(self, method: str, rounds: tuple[_Rounds, ...] = ()) -> list[_Found]:
        """List the masks of a method, each list once."""
        if (method, rounds) not in self.found:
            self.found[method, rounds] = list(self._gradual() if method == "GMP" else self._ranked(method, rounds))
        return self.found[method, rounds]

    def _ranked(self, method: str, rounds: tuple[_Rounds, ...]) -> Iterator[_Found]:
        """List masks of weights ranked at every step, with their own counts per layer and with others'."""
        for at, of_any in self.at.items():
            protocol = replace(self.protocol, masks_from=of_any)
            for counts, counted in [(None, None), *self.panel.counted[self.find].items()]:
                columns = {"method": method, "prune_at": at, "layer_counts": counts}
                if method == "OMP":
                    yield from self._one_shot(protocol, counted, columns)
                else:
                    for how in rounds if self.panel.levels else ():
                        yield from self._iterative(protocol, counted, how, columns)

    def _one_shot(self, protocol: Protocol, counted: Recipe | None, columns: dict[str, Any]) -> Iterator[_Found]:
        for sparsity in self.sparsities:
            other = None if counted is None else omp(protocol, counted, sparsity)
            mask = omp(protocol, self.find, sparsity, other)
            first = _epochs(self.trunk, mask.of.step)
            spent = first + (0 if other is None else _epochs(other.of.run, other.of.step))
            yield _Found(mask, sparsity, self.trunk, mask.of, first, spent, columns | {"rewind": None})

    def _iterative(
        self, protocol: Protocol, counted: Recipe | None, how: _Rounds, columns: dict[str, Any]
    ) -> Iterator[_Found]:
        chains = [self._chain(protocol, how, self.find, counted)]
        chains += [self._chain(protocol, how, counted)] if counted is not None else []
        schedule = "fine-tune" if how.tuning else how.schedule
        columns = columns | {"rewind": roles.RANKED if how.rewind is None else how.rewind, "schedule": schedule}
        last, spent = self.panel.levels[-1], 0
        first = _epochs(self.trunk, chains[0][0][1].of.step)
        for k, steps in enumerate(zip(*chains, strict=True), start=1):
            spent += sum(_epochs(run, mask.of.step) for run, mask in steps)
            mask = steps[0][1]
            yield _Found(mask, Level(k, last.rate), self.trunk, mask.of, first, spent, columns)

    def _chain(
        self, protocol: Protocol, how: _Rounds, recipe: Recipe, counted: Recipe | None = None
    ) -> list[tuple[Train, Magnitude]]:
        key = (protocol.masks_from, how, recipe, counted)
        if key not in self.chains:
            counts = [] if counted is None else [mask for _, mask in self._chain(protocol, how, counted)]
            last = self.panel.levels[-1]
            tuning = _tuned(recipe, protocol.data, how)
            self.chains[key] = imp(protocol, recipe, last.k, last.rate, how.rewind, how.schedule, tuning, counts)
        return self.chains[key]

    def _gradual(self) -> Iterator[_Found]:
        for curve in self.panel.gradual:
            for sparsity in pruning.reaches(curve, self.sparsities):
                mask = gmp(self.protocol, self.find, pruning.schedule(curve, sparsity, self.rules))
                spent = _epochs(mask.run, mask.step)
                columns = {"method": "GMP", "prune_at": mask.step, "pruning": pruning.words(curve), "rewind": None}
                yield _Found(mask, sparsity, mask.run, At(mask.run, mask.step), spent, spent, columns)


def _tuned(recipe: Recipe, data: Data, how: _Rounds) -> Recipe | None:
    """Make the recipe that rounds are fine-tuned by; None if they are not."""
    if how.tuning is None:
        return None
    epochs, lr = how.tuning
    return recipe.tuning(epochs, data.steps_per_epoch(recipe.batch_size), lr)


def _epochs(run: Train, step: str = "last") -> int:
    """Count the epochs of a training up to a step, begun ones included."""
    reached = run.end if step.startswith("best") else run.iteration(step)
    return -(-(reached - run.start) // run.steps_per_epoch)
