"""How a study's masks are found: schedules of gradual pruning as values, and what does not go together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from lthlab import parts, sizes, values
from lthlab.parts import Recipe, Sparsity
from lthlab.sections import Curve, Protocol, Study
from lthlab.trees import Place


def schedule(curve: Curve, sparsity: Sparsity, rules: Protocol) -> values.Gradual | values.Explicit:
    """Make the schedule of a training that is pruned on its way.

    Parameters
    ----------
    curve : Curve
        As a study says it.
    sparsity : Level or str
        Sparsity at the end of a curve; a list has its own.
    rules : Protocol
        What is prunable, and how it is ranked.

    Raises
    ------
    ValueError
        If the sparsity is below the initial one.
    """
    if curve.points is not None:
        points = tuple((at, parts.decimal_text(share)) for at, share in curve.points)
        return values.Explicit(points, rules.prunable, rules.scope, rules.floor_text)
    assert curve.start is not None and curve.end is not None
    initial = parts.decimal_text(curve.initial)
    return values.Gradual(
        curve.start,
        curve.end,
        curve.every,
        sparsity,
        initial,
        curve.shape,
        rules.prunable,
        rules.scope,
        rules.floor_text,
    )


def words(curve: Curve) -> str:
    """Name a schedule, as in 'cubic 2ep to 8ep every 1ep' or '0.4 at 4ep, 0.8 at 8ep'."""
    if curve.points is not None:
        return ", ".join(f"{share:.15g} at {at}" for at, share in curve.points)
    initial = f" from {curve.initial:.15g}" if curve.initial else ""
    return f"{curve.shape} {curve.start} to {curve.end} every {curve.every}{initial}"


def reaches(curve: Curve, asked: Sequence[Sparsity]) -> Sequence[Sparsity]:
    """List the sparsities that a schedule ends with: those that are asked for, or that of its list."""
    return asked if curve.points is None else [parts.decimal_text(share) for _, share in curve.points[-1:]]


def stops(run: values.Train, sparsity: Sparsity) -> Sequence[tuple[str, Sparsity]]:
    """List steps at which a training that is pruned on its way is looked at: all of a list, the end of a curve."""
    assert run.pruning is not None
    return run.pruning.points if isinstance(run.pruning, values.Explicit) else [(run.pruning.end, sparsity)]


def problems(
    study: Study,
    recipes: Sequence[tuple[Recipe, Recipe]],
    counted: Iterable[Recipe],
    asked: Mapping[str, Sequence[str]],
) -> Iterator[tuple[Place, str]]:
    """Say what does not go together in how masks are found and what is trained under them.

    Parameters
    ----------
    study : Study
        The study.
    recipes : sequence of (Recipe, Recipe)
        Finding and evaluating recipes.
    counted : iterable of Recipe
        Recipes of the masks whose counts per layer are imposed.
    asked : mapping of str to sequence of str
        Methods of the masks of each ticket.
    """
    yield from _steps(study, recipes)
    yield from _counted(study, counted)
    yield from _sparsities(study, asked)
    yield from _schedules(study, recipes)
    if study.protocol.floor and study.protocol.scope == "layer":
        yield ("protocol", "floor"), f"{study.protocol.floor:g} with scope 'layer'; allowed with: global"
    yield from _targets(study)
    if study.protocol.granularity == "filter":
        yield from _filters(study, asked)
    yield from _shares(study, asked)


def _shares(study: Study, asked: Mapping[str, Sequence[str]]) -> Iterator[tuple[Place, str]]:
    """Say which masks cannot prune a share of all parameters."""
    rules, random = study.protocol, study.tickets.RT
    gradual = [name for name, methods in asked.items() if "GMP" in methods]
    others = [f"{', '.join(gradual)} by GMP"] if gradual else []
    others += ["RT of scope 'even'"] if random is not None and "even" in random.scope else []
    if rules.denominator == "all" and rules.scope == "global" and others:
        yield ("protocol", "denominator"), f"'all' with {' and '.join(others)}; allowed: prunable"


def _counted(study: Study, counted: Iterable[Recipe]) -> Iterator[tuple[Place, str]]:
    """Check the steps of the trainings whose masks say how many weights of each layer are pruned."""
    rules, rewound = study.protocol, study.tickets.WR
    chain = rewound is not None and "IMP" in rewound.methods and rules.rewound_masks == "rewound"
    for recipe in dict.fromkeys(counted):
        for at in study.prune.at:
            if problem := late(study, at, recipe):
                yield ("prune", "layer_counts"), f"{at} of prune.at is after the end of its trainings; {problem}"
        for rewind in rewound.rewind if rewound is not None and chain else ():
            if problem := _rewind_problem(study, rewind, rules.schedule, recipe, recipe):
                yield ("prune", "layer_counts"), f"{rewind} of tickets.WR.rewind {problem}"


def _steps(study: Study, recipes: Sequence[tuple[Recipe, Recipe]]) -> Iterator[tuple[Place, str]]:
    """Check the steps at which trainings are ranked, and those that weights come from."""
    rules, data, tickets = study.protocol, study.data, study.tickets
    if study.prune.at and "masks_from" in rules.model_fields_set:
        yield ("prune", "at"), f"together with protocol.masks_from '{rules.masks_from}'; allowed: one of the two"
    ranked: dict[Place, str] = {("prune", "at", number): at for number, at in enumerate(study.prune.at)}
    for place, at in (ranked or {("protocol", "masks_from"): rules.masks_from}).items():
        if at == "best_val" and not data.val_size:
            yield place, "best_val needs validation images; set data.val_size above 0"
        for find in _of(recipes, 0):
            if problem := late(study, at, find):
                yield place, f"{at} is after the end; {problem}"
    rewinds: list[tuple[Place, str, str]] = []
    if tickets.WR is not None:
        rewinds += [(("tickets", "WR", "rewind"), step, rules.schedule) for step in tickets.WR.rewind]
    if tickets.RT is not None:
        steps_of = [weights for weights in tickets.RT.weights if weights[0].isdigit()]
        rewinds += [(("tickets", "RT", "weights"), step, "restart") for step in steps_of]
    for place, rewind, how in rewinds:
        found = {_rewind_problem(study, rewind, how, find, evaluate): None for find, evaluate in recipes}
        yield from ((place, f"{rewind} {problem}") for problem in found if problem)


def late(study: Study, at: str, recipe: Recipe) -> str | None:
    """Say which steps are allowed where one is after the end of a recipe's trainings; None if it is not."""
    steps = study.data.steps_per_epoch(recipe.batch_size)
    end = recipe.epochs * steps
    late = at[0].isdigit() and parts.iterations(at, steps) > end
    return f"allowed: up to {recipe.epochs}ep, {end}it" if late else None


def _of(recipes: Sequence[tuple[Recipe, Recipe]], side: int) -> list[Recipe]:
    return list(dict.fromkeys(pair[side] for pair in recipes))


def _rewind_problem(study: Study, rewind: str, how: str, find: Recipe, evaluate: Recipe) -> str | None:
    """Say why weights cannot come from a step; None if they can."""
    steps, steps_after = (study.data.steps_per_epoch(recipe.batch_size) for recipe in (find, evaluate))
    at, end = parts.iterations(rewind, steps), find.epochs * steps
    if how == "restart":
        problem = late(study, rewind, find)
        return problem and f"is after the end; {problem}"
    if at >= end:
        return f"is not before the end; allowed: below {find.epochs}ep, {end}it"
    if at % steps and steps != steps_after:
        return f"lies within an epoch, and epochs of find and eval differ in length, {steps} and {steps_after} steps"
    if parts.iterations(parts.step_text(at, steps), steps_after) >= evaluate.epochs * steps_after:
        return f"leaves nothing of the {evaluate.epochs} epochs of eval; allowed: below {evaluate.epochs}ep"
    chain = study.tickets.WR is not None and "IMP" in study.tickets.WR.methods
    for ranked in study.prune.at if chain and study.protocol.rewound_masks == "rewound" else ():
        if ranked[0].isdigit() and parts.iterations(ranked, steps) <= at:
            return f"is not before {ranked}, where rounds that resume there are ranked (prune.at)"
    return None


def _sparsities(study: Study, asked: Mapping[str, Sequence[str]]) -> Iterator[tuple[Place, str]]:
    """Check that there is what masks are to be pruned to, and how."""
    prune = study.prune
    own = bool(prune.gradual) and all(curve.points is not None for curve in prune.gradual)
    needs = {"IMP": bool(prune.levels), "OMP": bool(prune.levels or prune.sparsities)}
    needs["GMP"] = own or needs["OMP"] or not prune.gradual
    lacking = [name for name, methods in asked.items() if not all(needs[method] for method in methods)]
    if not prune.levels and not prune.sparsities:
        lacking = [name for name, methods in asked.items() if not methods or name in lacking]
    if lacking:
        yield ("prune", "levels"), f"missing; masks of {', '.join(lacking)} need levels, such as [4, 8]"
    gradual = [name for name, methods in asked.items() if "GMP" in methods]
    if gradual and not prune.gradual:
        example = "such as {start: 2ep, end: 8ep}"
        yield ("prune", "gradual"), f"missing; masks of {', '.join(gradual)} by GMP need a schedule, {example}"


def _schedules(study: Study, recipes: Sequence[tuple[Recipe, Recipe]]) -> Iterator[tuple[Place, str]]:
    """Check that gradual pruning lies within the trainings and only takes away."""
    sparsities = list(study.prune.asked.values())
    for number, curve in enumerate(study.prune.gradual):
        found: dict[str, None] = {}
        for find in _of(recipes, 0):
            for sparsity in reaches(curve, sparsities):
                try:
                    pruned = schedule(curve, sparsity, study.protocol)
                    values.Train(study.net, study.data, find, values.Fresh(0), 0, pruning=pruned)
                except ValueError as error:
                    found[str(error)] = None
        yield from ((("prune", "gradual", number), problem) for problem in found)


def _targets(study: Study) -> Iterator[tuple[Place, str]]:
    """Say which masks cannot be transferred: those of the head, which is new on another data set."""
    policy = study.protocol.prunable
    if sizes.covers_head(policy) and any(target.data != study.data for target in study.targets):
        allowed = ", ".join(name for name in parts.POLICIES if not sizes.covers_head(name))
        yield ("protocol", "prunable"), f"'{policy}' covers the head, which is new on targets; allowed: {allowed}"


def _filters(study: Study, asked: Mapping[str, Sequence[str]]) -> Iterator[tuple[Place, str]]:
    """Say what whole filters cannot be: they are pruned in one shot, and stay on their data set."""
    for name, methods in asked.items():
        if others := [method for method in methods if method != "OMP"]:
            yield ("tickets", name, "methods"), f"{', '.join(others)} with granularity 'filter'; allowed: OMP"
    for place, given in (
        (("prune", "layer_counts"), study.prune.layer_counts is not None),
        (("protocol", "floor"), study.protocol.floor is not None),
        (("targets",), bool(study.targets)),
        (("tickets", "RT", "scope"), study.tickets.RT is not None and set(study.tickets.RT.scope) != {"layer"}),
    ):
        if given:
            other = ", scope 'layer'" if place[-1] == "scope" else ""
            yield place, f"not with protocol.granularity 'filter'; allowed with: weight{other}"
