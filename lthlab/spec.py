"""Studies: a YAML file read into a checked configuration, with every error located."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ValidationError,
)

from lthlab import parts, probes, pruning, sizes, trees
from lthlab.errors import InputError, nearest
from lthlab.parts import Data, Level, Net, Recipe, Sparsity
from lthlab.sections import OF_PANEL, STAGES, Curve, Measures, Protocol, Study, Tickets, Verdicts
from lthlab.trees import Place, Problem, StudyError, Tree
from lthlab.wording import explain, fielded, shown


@dataclass(frozen=True)
class Panel:
    """One network on one data set, with what is asked of it.

    Attributes
    ----------
    net, data : Net, Data
        Network and data set.
    replicates : int
        Number of replicates, numbered from 0.
    recipes : tuple of (Recipe, Recipe)
        Pairs of the recipe that finds masks and the one that evaluates tickets.
    levels : tuple of Level
        Levels of the ladder.
    sparsities : tuple of str
        Further sparsities.
    at : tuple of str
        Steps at which trainings are ranked.
    counted : dict of Recipe to dict of str to Recipe
        By finding recipe: the recipes whose masks say how many weights of each layer are pruned, by what differs.
    gradual : tuple of Curve
        Schedules of gradual pruning.
    targets : tuple of (Data, dict of Recipe to tuple of Recipe)
        Data sets that tickets are transferred to, each with its recipes by evaluating recipe.
    tickets, protocol, measures : Tickets, Protocol, Measures
        What is asked for and how.
    """

    net: Net
    data: Data
    replicates: int
    recipes: tuple[tuple[Recipe, Recipe], ...]
    levels: tuple[Level, ...]
    sparsities: tuple[Sparsity, ...]
    at: tuple[str, ...]
    counted: dict[Recipe, dict[str, Recipe]]
    gradual: tuple[Curve, ...]
    targets: tuple[tuple[Data, dict[Recipe, tuple[Recipe, ...]]], ...]
    tickets: Tickets
    protocol: Protocol
    measures: Measures


MINI = "_mini"
"""What the name of a study ends in that is read in its small form."""


@dataclass(frozen=True)
class Config:
    """A study, checked.

    Attributes
    ----------
    name, title : str
        Name of the study and one line for readers.
    panels : tuple of Panel
        Networks and data sets.
    stages : tuple of str
        Those of `STAGES` that are asked for.
    panel_by : tuple of str
        Axes by which panels are cut into configurations, such as 'eval.lr'.
    reports : tuple of str
        Names of report notebooks.
    verdicts : Verdicts
        How verdicts are reached.
    document : dict
        The study as plain JSON, with presets and settings of the command line in their places.
    sets : tuple of str
        Settings of the command line.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    stages: tuple[str, ...]
    panel_by: tuple[str, ...]
    reports: tuple[str, ...]
    verdicts: Verdicts
    document: dict[str, Any]
    sets: tuple[str, ...] = ()

    @property
    def of_filters(self) -> bool:
        """Whether whole filters are pruned, so that masks of one sparsity keep unequal numbers of weights."""
        return any(panel.protocol.granularity == "filter" for panel in self.panels)

    @property
    def named(self) -> list[str]:
        """The study's name and option on the command line, as in ['demo', '--mini']."""
        return words(self.name)


def words(name: str) -> list[str]:
    """What the command line is told of a study by the name that its results have: name, and `--mini` for small ones."""
    return [name.removesuffix(MINI), *(["--mini"] if name.endswith(MINI) else [])]


def read(path: str | Path, sets: Sequence[str] = (), mini: bool = False) -> Config:
    """Read a study.

    Parameters
    ----------
    path : str or Path
        YAML 1.2 file; presets are in the folder `presets` beside it, or in `params/presets` here or in a folder above.
    sets : sequence of str, optional
        Fields set in place of the file's, such as 'find.lr=0.1,0.3'.
    mini : bool, optional
        Whether the study is read in its small form: with its section `mini` laid over it, under the settings.

    Returns
    -------
    Config

    Raises
    ------
    StudyError
        With everything that is wrong: file, line, column, field, value, what is allowed and the nearest match.
    """
    return parse(trees.read(path), str(path), sets, mini)


def parse(text: str, name: str = "<study>", sets: Sequence[str] = (), mini: bool = False) -> Config:
    """Read a study from text; `name` stands for the file in errors. Raises as `read` does."""
    tree, problems = trees.load(text, name)
    beside = Path(name).parent / "presets"
    presets = {
        path.stem: path
        for folder in (trees.folder_above("params/presets"), beside)
        if folder
        for path in sorted(folder.glob("*.yaml"))
    }
    written = tree.plain if isinstance(tree.plain, dict) else {}
    if str(written.get("name")).endswith(MINI):
        problems.append(tree.problem(("name",), f"{shown(written['name'])}: only --mini makes names that end so"))
    if mini and "mini" not in written:
        raise StudyError([*problems, tree.problem(("mini",), "missing; --mini needs it")])
    config, wrong = _config(tree, presets, sets, mini)
    if "mini" in written and not mini:
        _, small = _config(tree, presets, (), mini=True)
        wrong += [
            item if item.field.startswith("mini") else replace(item, message=f"in the mini form: {item.message}")
            for item in small
            if item not in wrong
        ]
    return _sound(config, problems + wrong)


def resolved(document: Mapping[str, Any], sets: Sequence[str] = ()) -> Config:
    """Make a configuration of the document of another one; `sets` is noted, not applied. Raises as `read` does."""
    return replace(_sound(*_config(Tree(dict(document)), {}, ())), sets=tuple(sets))


def _sound(config: Config | None, problems: list[Problem]) -> Config:
    if config is None or problems:
        raise StudyError(sorted(set(problems)))
    return config


def _config(
    tree: Tree, presets: Mapping[str, Path], sets: Sequence[str], mini: bool = False
) -> tuple[Config | None, list[Problem]]:
    """Make a configuration, or none, and say what is wrong."""
    problems: list[Problem] = []
    branches = _branches(tree, presets, trees.settings(sets), mini, problems)
    studies: list[Study] = []
    panels: list[Panel] = []
    for branch in branches:
        study, wrong, doubtful = _checked(branch.plain)
        if study is not None:
            recipes, unfit = _recipes(study)
            panel, unlike = _panel(study, recipes)
            checks = _cross_checks(study, panel, "net" not in doubtful)
            wrong += [item for item in (*unfit, *unlike, *checks) if item[0][0] not in doubtful]
            studies.append(study)
            panels.append(panel)
        problems += [branch.problem(place, message) for place, message in wrong]
    if problems or not studies:
        return None, problems
    whole = studies[0]
    documents = [{name: value for name, value in branch.plain.items() if name in OF_PANEL} for branch in branches]
    above = {name: value for name, value in branches[0].plain.items() if name not in OF_PANEL}
    config = Config(
        name=whole.name,
        title=whole.title or whole.name,
        panels=tuple(panels),
        stages=tuple(stage for stage in STAGES if stage in whole.stages),
        panel_by=tuple(dict.fromkeys(whole.panel_by)),
        reports=tuple(dict.fromkeys(whole.reports)),
        verdicts=whole.verdicts,
        document=above | (documents[0] if len(documents) == 1 else {"panels": documents}),
        sets=tuple(sets),
    )
    return config, []


def _panel(study: Study, recipes: list[tuple[Recipe, Recipe]]) -> tuple[Panel, list[tuple[Place, str]]]:
    """Make a panel, and say what is wrong with the recipes that differ from those of the study."""
    wrong: dict[tuple[Place, str], None] = {}
    counts, rules = study.prune.layer_counts, study.protocol
    place: Place = ("prune", "layer_counts")
    counted: dict[Recipe, dict[str, Recipe]] = {}
    for find in dict.fromkeys(find for find, _ in recipes):
        found = {} if counts is None else dict(_overridden(find, _axes(counts), study.net, study.data, place, wrong))
        counted[find] = {text: recipe for text, recipe in found.items() if recipe != find}
    targets = []
    for number, target in enumerate(study.targets):
        axes, place = {} if target.eval is None else _axes(target.eval), ("targets", number, "eval")
        trained = {
            evaluate: tuple(r for _, r in _overridden(evaluate, axes, study.net, target.data, place, wrong))
            for _, evaluate in recipes
        }
        targets.append((target.data, trained))
    panel = Panel(
        net=study.net,
        data=study.data,
        replicates=study.replicates,
        recipes=tuple(recipes),
        levels=tuple(Level(k, study.prune.rate) for k in sorted(set(study.prune.levels))),
        sparsities=tuple(dict.fromkeys(parts.decimal_text(s) for s in study.prune.sparsities)),
        at=tuple(dict.fromkeys(study.prune.at)) or (rules.masks_from,),
        counted=counted,
        gradual=tuple(study.prune.gradual),
        targets=tuple(targets),
        tickets=study.tickets,
        protocol=rules,
        measures=study.measures,
    )
    return panel, list(wrong)


def _branches(
    tree: Tree,
    presets: Mapping[str, Path],
    sets: Sequence[tuple[tuple[str, ...], Tree]],
    mini: bool,
    problems: list[Problem],
) -> list[Tree]:
    """Make one tree per panel: presets, the study, the panel, the mini form and settings laid over each other."""
    if not isinstance(tree.plain, dict):
        return [tree]
    problems += [
        value.problem((), f"cannot be set; allowed: fields such as find.lr, {', '.join(OF_PANEL)}")
        for (first, *_), value in sets
        if first in _NOT_SET
    ]
    sets = [(place, value) for place, value in sets if place[0] not in _NOT_SET]
    found = []
    for merged in (_small if mini else _whole)(tree, presets, problems):
        merged.spots[()] = tree.spots[()]
        for place, value in sets:
            if place in (("net",), ("data",)):
                merged = merged.merged(trees.nested(place, value).named("net", "data"))
        for branch in (branch for some in _options(merged, "net") for branch in _options(some, "data")):
            for place, value in sets:
                if place not in (("net",), ("data",)):
                    branch = branch.merged(trees.nested(place, value))
                    branch.spots[()] = tree.spots[()]
            found.append(_small_name(branch) if mini else branch)
    return found


_NOT_SET = ("panels", "presets", "mini")
_OF_MINI = [name for name in Study.model_fields if name not in ("name", "presets", "mini")]


def _panels(
    tree: Tree, entries: Tree, presets: Mapping[str, Path], problems: list[Problem]
) -> Iterator[tuple[Tree, Tree]]:
    """Yield, of each of the panels in `entries`, what the study says over its presets, and what the panel says."""
    for entry in _entries(entries, problems):
        names = [item for part in (tree, entry) if "presets" in part.plain for item in _listed(part.at("presets"))]
        study = tree.with_branch("presets", Tree.of(names, tree.spots[()]))
        base = _preset(study, presets, problems).without("panels", "presets", "mini")
        yield base.named("net", "data"), entry.without("presets").named("net", "data")


def _whole(tree: Tree, presets: Mapping[str, Path], problems: list[Problem]) -> list[Tree]:
    """Lay what a study says of each of its panels over what it says of all."""
    return [base.merged(entry) for base, entry in _panels(tree, tree, presets, problems)]


def _small(tree: Tree, presets: Mapping[str, Path], problems: list[Problem]) -> list[Tree]:
    """Lay the section `mini` over a study: over each of its panels, or with panels of its own in place of these."""
    over = tree.at("mini")
    if not isinstance(over.plain, dict):
        problems.append(over.problem((), f"{shown(over.plain)} is not allowed; allowed: a mapping"))
        return _whole(tree, presets, problems)
    own = _known(over, _OF_MINI, "mini", problems)
    over = own.without("panels").named("net", "data")
    if "panels" in own.plain:
        pairs = list(_panels(tree, own, presets, problems))
        found, layers = [base for base, _ in pairs], [[over, entry] for _, entry in pairs]
    else:
        found = _whole(tree, presets, problems)
        layers = [[over] for _ in found]
    idle: dict[Problem, bool] = {}
    for number, some in enumerate(layers):
        for layer in some:
            for place in layer.nulls():
                message = "null takes away what the study has, and there is nothing; to ask for it, write {}"
                problem = layer.problem(place, message)
                idle[problem] = idle.get(problem, True) and not found[number].has(place)
            found[number] = found[number].merged(layer, removing=True)
    problems += [problem for problem, in_vain in idle.items() if in_vain]
    return found


def _small_name(branch: Tree) -> Tree:
    """Mark name and title as those of the mini form."""
    for field, mark in (("name", MINI), ("title", " (mini)")):
        if isinstance(branch.plain.get(field), str):
            marked = Tree(branch.plain[field] + mark, {(): branch.at(field).spots[()]})
            branch = branch.with_branch(field, marked)
    return branch


def _options(tree: Tree, name: str) -> Iterator[Tree]:
    """List trees in which a field that may be a list has one of its values."""
    several = isinstance(tree.plain.get(name), list) and tree.plain[name]
    for item in _items(tree.at(name)) if several else ():
        yield tree.with_branch(name, item).named(name)
    if not several:
        yield tree


def _listed(tree: Tree) -> list[Tree]:
    """List what may be written as one thing or as a list."""
    return _items(tree) if isinstance(tree.plain, list) else [tree]


def _items(tree: Tree) -> list[Tree]:
    return [tree.at(number) for number in range(len(tree.plain))]


def _entries(tree: Tree, problems: list[Problem]) -> Iterator[Tree]:
    """List what a study says of each of its panels."""
    entries = tree.plain.get("panels", [{}])
    given = isinstance(entries, list) and len(entries) > 0
    if not given:
        problems.append(tree.problem(("panels",), f"{shown(entries)} is not allowed; allowed: one panel or more"))
    for number, entry in enumerate(entries if given else [{}]):
        if isinstance(entry, dict):
            branch = tree.at("panels", number) if given and "panels" in tree.plain else Tree({})
            yield _known(branch, (*OF_PANEL, "presets"), "a panel", problems)
        else:
            message = f"{shown(entry)} is not allowed; allowed: a mapping"
            problems.append(tree.problem(("panels", number), message))


def _preset(tree: Tree, presets: Mapping[str, Path], problems: list[Problem]) -> Tree:
    """Lay a study over the presets that it names."""
    below = Tree({})
    for number, name in enumerate(tree.plain["presets"]):
        if not isinstance(name, str) or name not in presets:
            allowed = nearest(name, presets) if presets else "there are none beside the study nor in params/presets"
            message = f"preset {shown(name)} is not known; {allowed}"
            problems.append(tree.problem(("presets", number), message))
            continue
        path = presets[name]
        preset, doubled = trees.load(trees.read(path), str(path))
        problems += doubled
        if isinstance(preset.plain, dict):
            below = below.merged(_known(preset, (*OF_PANEL, "verdicts"), "a preset", problems).named("net", "data"))
        else:
            problems.append(preset.problem((), "not a mapping; allowed: sections of a study"))
    found = below.merged(tree.named("net", "data"))
    for name in ("net", "data"):
        if name in below.plain and isinstance(tree.plain.get(name), list):
            items = [below.merged(tree.with_branch(name, item).named(name)).at(name) for item in _items(tree.at(name))]
            found = found.with_branch(name, Tree.of(items, tree.spots[name,]))
    found.spots[()] = tree.spots[()]
    return found


def _known(tree: Tree, allowed: Sequence[str], what: str, problems: list[Problem]) -> Tree:
    """Leave out sections that have no place in a panel or a preset, and say so."""
    wrong = [name for name in tree.plain if name not in allowed]
    for name in wrong:
        message = f"not for {what}" if name in Study.model_fields else "unknown field"
        problems.append(tree.problem((name,), f"{message}; {nearest(name, allowed)}"))
    return tree.without(*wrong)


def _checked(tree: Any) -> tuple[Study | None, list[tuple[Place, str]], set[str | int]]:
    """Check the fields; where some are wrong, the other sections are still returned, to be compared.

    The last of what is returned are the sections of which nothing more can be said.
    """
    try:
        return Study.model_validate(tree), [], set()
    except ValidationError as error:
        wrong = [problem for item in error.errors() for problem in explain(item, Study)]
    doubtful = {place[0] for place, _ in wrong if place}
    if not isinstance(tree, dict) or not doubtful:
        return None, wrong, doubtful
    rest = {name: section for name, section in tree.items() if name not in doubtful}
    if doubtful - set(Study.model_fields):
        doubtful |= {"prune", "measures"}
    if "tickets" in doubtful:
        doubtful |= {"measures"}
    try:
        return Study.model_validate({"name": "unnamed", "net": "lenet_300_100"} | rest), wrong, doubtful
    except ValidationError:
        return None, wrong, doubtful


def _recipes(study: Study) -> tuple[list[tuple[Recipe, Recipe]], list[tuple[Place, str]]]:
    """Pair finding with evaluating recipes: equal ones, or every one with every override of `eval`."""
    override = {} if study.eval is None else _axes(study.eval)
    pairs: dict[tuple[Recipe, Recipe], None] = {}
    wrong: dict[tuple[Place, str], None] = {}
    for finding in _product(_axes(study.find)):
        find = _recipe(finding, study.net, study.data, ("find",), wrong)
        for evaluating in _product(override) if find is not None else ():
            fields = finding | evaluating
            evaluate = _recipe(fields, study.net, study.data, ("eval",), wrong) if evaluating else find
            if find is not None and evaluate is not None:
                pairs[find, evaluate] = None
    return list(pairs), list(wrong)


def _recipe(
    fields: Mapping[str, Any], net: Net, data: Data, place: Place, wrong: dict[tuple[Place, str], None]
) -> Recipe | None:
    """Make a recipe, or note what is wrong with it."""
    try:
        found = Recipe(**fields)
        if found.batch_size > data.images:
            raise ValueError(
                f"batch_size: {found.batch_size} is larger than the training set; allowed: 1 to {data.images}"
            )
        found = found.divided(net, data)
        found.aligned(data.steps_per_epoch(found.batch_size))
        return found
    except ValidationError as error:
        problems = [problem for item in error.errors() for problem in explain(item, Study)]
    except ValueError as error:
        problems = fielded((), str(error))
    wrong.update(dict.fromkeys(((*place, *below), message) for below, message in problems))
    return None


def _overridden(
    recipe: Recipe,
    axes: Mapping[str, list[Any]],
    net: Net,
    data: Data,
    place: Place,
    wrong: dict[tuple[Place, str], None],
) -> Iterator[tuple[str, Recipe]]:
    """Yield a recipe with each combination of other fields, and say in which these are."""
    own = recipe.model_dump()
    for fields in _product(axes):
        found = _recipe(own | fields, net, data, place, wrong)
        if found is not None:
            yield fields_text(fields), found


def fields_text(fields: Mapping[str, Any]) -> str:
    """Write fields of a recipe, as in 'lr 0.05, batch size 64'."""
    texts = {name: f"{value:.15g}" if isinstance(value, float) else str(value) for name, value in fields.items()}
    return ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in texts.items())


def _axes(grid: BaseModel) -> dict[str, list[Any]]:
    return {name: choices for name, choices in grid if choices is not None}


def _product(axes: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(axes, choice, strict=True)) for choice in itertools.product(*axes.values()))


def _cross_checks(study: Study, panel: Panel, net: bool) -> Iterator[tuple[Place, str]]:
    """Compare sections; those that go by the network only if it is known."""
    recipes = list(panel.recipes)
    asked = {name: getattr(ticket, "methods", ()) for name, ticket in study.tickets if ticket is not None}
    if study.tickets.GMP is not None:
        asked["GMP"] = ["GMP"]
    counted = [recipe for found in panel.counted.values() for recipe in found.values()]
    yield from pruning.problems(study, recipes, counted, asked)
    sparse = list(_too_sparse(study)) if asked else []
    yield from sparse
    if study.tickets.SDT is not None and not sparse:
        yield from ((("tickets", "SDT"), problem) for problem in _too_narrow(study))
    yield from probes.problems(study, recipes, asked)
    if study.protocol.report == "best_val":
        if not study.data.val_size:
            yield ("protocol", "report"), "best_val needs validation images; set data.val_size above 0"
        for number, target in enumerate(study.targets):
            if not target.data.val_size:
                problem = "protocol.report best_val needs validation images; set val_size above 0"
                yield ("targets", number, "data"), problem
    optimizers = {recipe.optimizer for pair in recipes for recipe in pair}
    for section in ("find", "eval"):
        betas = getattr(getattr(study, section), "betas", None)
        if betas and optimizers == {"sgd"}:
            yield (section, "betas"), f"{list(betas[0])} with optimizer 'sgd' alone; allowed with: adam, adamw"
    if net:
        yield from _unfit(study, panel)


def _unfit(study: Study, panel: Panel) -> Iterator[tuple[Place, str]]:
    """Say what does not fit the network: images, those of targets, prunable set, batches."""
    net, data, policy = study.net, study.data, study.protocol.prunable
    checks: list[tuple[Place, Callable[[], object]]] = [
        (("net",), partial(sizes.check, net, data)),
        (("protocol", "prunable"), partial(sizes.left_out, net, policy)),
    ]
    for section, side in (("find", 0), ("eval", 1)):
        recipes = {pair[side] for pair in panel.recipes if getattr(study, section) is not None}
        checks += [((section, "batch_size"), partial(sizes.check_batch, net, data, recipe)) for recipe in recipes]
    for number, (target, trained) in enumerate(panel.targets):
        place: Place = ("targets", number, "data")
        checks.append((place, partial(sizes.check, net, target)))
        checks.append((place, partial(sizes.check_transfer, net, data, target)))
        recipes = set().union(*trained.values())
        checks += [((*place[:2], "eval"), partial(sizes.check_batch, net, target, recipe)) for recipe in recipes]
    found: dict[tuple[Place, str], None] = {}
    for place, check in checks:
        try:
            check()
        except InputError as error:
            found[place, str(error)] = None
    yield from found


def _too_sparse(study: Study) -> Iterator[tuple[Place, str]]:
    """Say which sparsities prune more than is prunable, or than floors leave."""
    rules = study.protocol
    if (rules.denominator == "prunable" and not rules.floor) or rules.granularity == "filter":
        return
    counting = (rules.prunable, rules.denominator, rules.scope, rules.floor_text)
    for place, sparsity in study.prune.asked.items():
        try:
            sizes.ticket_parameters(study.net, study.data, sparsity, *counting)
        except InputError as error:
            yield ("prune", *place), str(error)


def _too_narrow(study: Study) -> Iterator[str]:
    """Say at which sparsities there is no small dense network."""
    rules = study.protocol
    for sparsity in study.prune.asked.values():
        try:
            sizes.narrow(study.net, study.data, sparsity, rules.prunable, rules.denominator)
        except InputError as error:
            yield str(error)
