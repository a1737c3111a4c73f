"""What a study measures of its trainings and masks: analyses as values, and what does not go together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lthlab import parts, pruning
from lthlab.analyses import Measure
from lthlab.errors import nearest
from lthlab.parts import Data, Level, Recipe, Sparsity
from lthlab.sections import Barrier, Correlation, Eigenvalue, Measures, Memorization, Sharpness, Study, Surface
from lthlab.trees import Place
from lthlab.values import At, Dense, Mask, MaskOf, Permuted, Train

OTHER_ORDER = 10_000
"""Added to a replicate's number for a second order of its images; no replicate has such a number."""
LANDSCAPE = ("loss_surface", "sharpness", "hessian_eigenvalue", "loss_barrier")
"""Measures of the loss about trained weights."""
_DISTURBING = {"mixup": 0.0, "label_smoothing": 0.0}


class Asked(NamedTuple):
    """A measure that a study asks for.

    Attributes
    ----------
    value : Measure
        What is computed.
    columns : dict
        What its role says beside that of what is measured; `what` is its name.
    """

    value: Measure
    columns: dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A training that is measured, and what it is in the study.

    Attributes
    ----------
    value, trunk : Train
        The training, and the dense one of its masks.
    ticket : str
        What it is: 'dense' or a kind of ticket.
    method : str or None
        How its mask was found.
    sparsity : Level, str or None
        Of its mask.
    replicate : int
        Its replicate.
    prunable : str
        Set of prunable weights.
    """

    value: Train
    trunk: Train
    ticket: str
    method: str | None
    sparsity: Sparsity | None
    replicate: int
    prunable: str

    @property
    def whole(self) -> At | None:
        """The state of the dense training that it begins with, before anything is pruned; None with fresh weights."""
        init = self.value.init
        if isinstance(init, At):
            return init
        return At(self.trunk, "0ep") if init == self.trunk.init else None

    def at(self, step: str) -> At | None:
        """Its state at a step; None before it begins."""
        early = step[0].isdigit() and parts.iterations(step, self.value.steps_per_epoch) < self.value.start
        return None if early else At(self.value, step)

    @property
    def ends(self) -> tuple[At, At]:
        """Its first and its last state."""
        return At(self.value, self.value.step_text(self.value.start)), At(self.value, "last")


def of_training(measures: Measures, trained: Trained, sparsest: Sparsity | None) -> Iterator[Asked]:
    """List what is measured of a training.

    Parameters
    ----------
    measures : Measures
        What a study asks for.
    trained : Trained
        The training.
    sparsest : Level, str or None
        Sparsity at which tickets are measured where the study does not say at which.
    """
    if measures.correlation_indicator is not None and trained.ticket in measures.correlation_indicator.of:
        yield from _correlations(measures.correlation_indicator, trained)
    if measures.weight_std is not None and trained.ticket == "dense":
        run = trained.value
        steps = measures.weight_std.at or [f"{epoch}ep" for epoch in range(run.recipe.epochs + 1)]
        states = tuple(dict.fromkeys(At(run, step) for step in sorted(steps, key=run.iteration)))
        yield _asked("weight_std", states, {"prunable": trained.prunable})
    for name in LANDSCAPE:
        options = getattr(measures, name)
        if options is not None and _chosen(options, trained, sparsest):
            yield from _landscape(name, options, trained)


def distances(masks: Sequence[Mask]) -> Asked:
    """Measure the distances between masks."""
    return _asked("hamming", masks, {})


class Learner(NamedTuple):
    """What learns random labels.

    Attributes
    ----------
    state : At
        Weights that it begins with.
    mask : Mask
        What stays pruned.
    sparsity : Level, str or None
        Of the mask.
    columns : dict
        Method of the mask, prune_at, pruning.
    """

    state: At
    mask: Mask
    sparsity: Sparsity | None
    columns: dict[str, Any]


def learners(
    trunk: Train,
    masks: Sequence[tuple[At, Mask, Sparsity]],
    gradual: Sequence[tuple[Train, Sparsity, str]],
    magnitude: Callable[[At, Sparsity], Mask],
) -> Iterator[Learner]:
    """List the networks that learn random labels: dense, under one-shot masks, and under gradual beside one-shot ones.

    Parameters
    ----------
    trunk : Train
        The dense training.
    masks : sequence of (At, Mask, Sparsity)
        One-shot masks, with the weights that they were ranked on.
    gradual : sequence of (Train, Sparsity, str)
        Trainings that are pruned on their way, where to, and the words for how.
    magnitude : callable
        Makes a one-shot mask.
    """
    yield Learner(At(trunk, "last"), Dense(), None, {})
    for state, mask, sparsity in masks:
        yield Learner(state, mask, sparsity, {"method": "OMP", "prune_at": state.step})
    for run, goal, words in gradual:
        for step, sparsity in pruning.stops(run, goal):
            state, columns = At(trunk, step), {"method": "OMP", "prune_at": step}
            yield Learner(state, magnitude(state, sparsity), sparsity, columns)
            columns |= {"method": "GMP", "pruning": words}
            yield Learner(At(run, step), MaskOf(run, step), sparsity, columns)


def memorized(options: Memorization, learner: Learner, replicate: int) -> Iterator[Asked]:
    """Measure how many random labels a network learns, for every number of images (Sooner Fig. 5).

    Parameters
    ----------
    options : Memorization
        As a study says it.
    learner : Learner
        The network.
    replicate : int
        Gives labels and order.
    """
    run, recipe = learner.state.run, learning(options, learner.state.run.recipe)
    for size in options.train_sizes:
        data = random_labels(run.data, size, replicate)
        value = Train(run.net, data, recipe, learner.state, replicate, learner.mask)
        yield _asked("training_accuracy", [At(value, "last")], {}, images=size)


def learning(options: Memorization, find: Recipe) -> Recipe:
    """Make the recipe that random labels are learnt with: the finding one at a constant rate."""
    return Recipe(**find.tuning(options.epochs, 1, options.lr or find.lr).model_dump() | _DISTURBING)


def random_labels(data: Data, size: int, seed: int) -> Data:
    """Take so many images with random labels, as they are."""
    fields = {"train_size": size, "val_size": 0, "random_labels": seed, "label_noise": None, "augment": "none"}
    return Data(**data.model_dump() | fields)


def _asked(
    name: str, of: Sequence[Any], settings: Mapping[str, Any], mask: Mask | None = None, **columns: Any
) -> Asked:
    return Asked(Measure(name, tuple(of), tuple(settings.items()), mask), {"what": name, **columns})


def _correlations(options: Correlation, trained: Trained) -> Iterator[Asked]:
    """Compare weights in all ways that are asked for (Ma appendix G, section 3.1, Fig. 6)."""
    mask = trained.value.mask
    for reading in options.partner if mask.stored else ["own"]:
        under = None if reading == "own" else mask
        if reading == "permuted":
            under = Permuted(mask, "layer", trained.replicate)
        for pair in dict.fromkeys(_pairs(reading, options.at, trained)):
            for p in options.p:
                settings = {"p": p, "prunable": trained.prunable}
                columns = {"reading": reading, "p": p, "measured_at": pair[1].step}
                yield _asked("correlation_indicator", pair, settings, under, **columns)


def _pairs(reading: str, steps: Sequence[str], trained: Trained) -> Iterator[tuple[At, At]]:
    """List the states that a reading compares."""
    first, last = trained.ends
    if reading == "trained":
        yield last, At(trained.trunk, "last")
        return
    begun = trained.whole if reading == "permuted" else first
    for step in steps:
        second = trained.at(step) if reading == "own" else At(trained.trunk, step)
        if begun is not None and second is not None:
            yield begun, second


def _chosen(options: Any, trained: Trained, sparsest: Sparsity | None) -> bool:
    """Whether an analysis of trained networks is asked for of a training."""
    if trained.ticket not in options.of or trained.replicate >= (options.replicates or trained.replicate + 1):
        return False
    if trained.ticket == "dense":
        return True
    level = trained.sparsity.k if isinstance(trained.sparsity, Level) else None
    at = level in options.levels if options.levels else trained.sparsity == sparsest
    return at and trained.method in (*options.methods, None)


def _landscape(name: str, options: Surface | Sharpness | Eigenvalue | Barrier, trained: Trained) -> Iterator[Asked]:
    run, data = trained.value, trained.value.data
    there = data.images if options.split == "train" else data.facts.test
    fields = options.model_dump(exclude={"of", "methods", "levels", "replicates", "planes", "snapshots", "at"})
    settings = fields | {"images": min(options.images, there)}
    end = At(run, "last")
    if isinstance(options, Surface):
        for plane in options.planes:
            states = _trajectory(run, options.snapshots) if plane == "pca" else [end]
            drawn = {"seed": trained.replicate} if plane == "random" else {}
            yield _asked(name, states, settings | {"plane": plane} | drawn, reading=plane)
    elif isinstance(options, Barrier):
        yield _asked(name, trained.ends, settings, reading="ends")
        for step, pair in _orders(options.at, trained):
            yield _asked(name, [At(train, "last") for train in pair], settings, reading="orders", measured_at=step)
    else:
        drawn = {"seed": trained.replicate} if isinstance(options, Sharpness) else {}
        yield _asked(name, [end], settings | drawn)


def _trajectory(run: Train, count: int) -> list[At]:
    """States of a training, spread evenly, at whole epochs where there are as many."""
    length = run.end - run.start
    unit = run.steps_per_epoch if length // run.steps_per_epoch >= count - 1 else 1
    places = [run.start + round(number * length / unit / (count - 1)) * unit for number in range(count - 1)]
    return [At(run, run.step_text(place)) for place in dict.fromkeys([*places, run.end])]


def _orders(steps: Sequence[str], trained: Trained) -> Iterator[tuple[str, tuple[Train, Train]]]:
    """Pair trainings that differ in the order of images, and name where they begin (Frankle et al. 2020)."""
    run, other = trained.value, trained.replicate + OTHER_ORDER
    if trained.ticket != "dense":
        if steps:
            yield trained.ends[0].step, (run, replace(run, order=other))
        return
    for step in dict.fromkeys(map(run.canonical_step, steps)):
        begun = replace(run, init=At(run, step), schedule="resume") if run.iteration(step) else run
        yield step, (begun, replace(begun, order=other))


# --- what does not go together ---------------------------------------------------------------------------------


def problems(
    study: Study, recipes: Sequence[tuple[Recipe, Recipe]], asked: Mapping[str, Sequence[str]]
) -> Iterator[tuple[Place, str]]:
    """Say what a study cannot measure.

    Parameters
    ----------
    study : Study
        The study.
    recipes : sequence of (Recipe, Recipe)
        Finding and evaluating recipes.
    asked : mapping of str to sequence of str
        Methods of the masks of each ticket.
    """
    measures = study.measures
    for name in ("correlation_indicator", *LANDSCAPE):
        options = getattr(measures, name)
        if options is not None:
            yield from _tickets(name, options, study, asked)
    if measures.correlation_indicator is not None:
        yield from _control(measures.correlation_indicator, asked)
    trainings = list(dict.fromkeys(recipe for pair in recipes for recipe in pair))
    for name in ("correlation_indicator", "weight_std", "loss_barrier"):
        for number, step in enumerate(getattr(getattr(measures, name), "at", ())):
            place = ("measures", name, "at", number)
            yield from dict.fromkeys(
                (place, text) for recipe in trainings for text in _beyond(study, name, step, recipe)
            )
    if measures.hamming is not None:
        steps = [_ranked(study, find) for find, _ in recipes]
        if min(map(len, steps)) < 2 or not study.prune.asked:
            have = f"{min(map(len, steps))} in prune.at, and {len(study.prune.asked)} sparsities"
            yield ("measures", "hamming"), f"steps known beforehand: {have}; allowed: two or more, and prune.levels"
    if measures.memorization is not None:
        yield from _memorization(study, measures.memorization, [find for find, _ in recipes])


def _ranked(study: Study, find: Recipe) -> set[int]:
    """Iterations at which one-shot masks are ranked, as far as they are known beforehand."""
    steps = study.data.steps_per_epoch(find.batch_size)
    named = {"last": f"{find.epochs}ep"}
    return {parts.iterations(named.get(at, at), steps) for at in study.prune.at if not at.startswith("best")}


def _beyond(study: Study, name: str, step: str, recipe: Recipe) -> Iterator[str]:
    if step == "best_val" and not study.data.val_size:
        yield "best_val needs validation images; set data.val_size above 0"
    elif problem := pruning.late(study, step, recipe):
        yield f"{step} is after the end; {problem}"
    elif name == "loss_barrier":
        steps = study.data.steps_per_epoch(recipe.batch_size)
        if parts.iterations(step, steps) == recipe.epochs * steps:
            yield f"{step} is the end; allowed: below {recipe.epochs}ep"


def _tickets(name: str, options: Any, study: Study, asked: Mapping[str, Sequence[str]]) -> Iterator[tuple[Place, str]]:
    """Check which trainings, methods and levels an analysis is of; those by default are as far as there are any."""
    given = options.model_fields_set
    for number, ticket in enumerate(options.of if "of" in given else ()):
        if ticket != "dense" and ticket not in asked:
            place = ("measures", name, "of", number)
            yield place, f"'{ticket}' is not among the study's tickets; {nearest(ticket, ['dense', *asked])}"
    methods = {method for ticket in options.of for method in asked.get(ticket, ())}
    for number, method in enumerate(options.methods if "methods" in given else ()):
        if method not in methods:
            words = f"'{method}' finds no mask of {', '.join(options.of)}"
            yield ("measures", name, "methods", number), f"{words}; {nearest(method, methods)}"
    for number, level in enumerate(options.levels if "levels" in given else ()):
        if level not in study.prune.levels:
            allowed = ", ".join(map(str, study.prune.levels)) or "none, for prune.levels is empty"
            yield ("measures", name, "levels", number), f"{level} is not among prune.levels; allowed: {allowed}"


def _control(options: Correlation, asked: Mapping[str, Sequence[str]]) -> Iterator[tuple[Place, str]]:
    measured = {ticket for ticket in options.of if ticket in asked}
    if "permuted" in options.partner and measured == {"RR"}:
        place = ("measures", "correlation_indicator", "partner", options.partner.index("permuted"))
        words = "no dense training begins with the weights of RR"
        yield place, f"'permuted' needs other tickets, for {words}; allowed with: LT, WR in of"


def _memorization(study: Study, options: Memorization, finding: Sequence[Recipe]) -> Iterator[tuple[Place, str]]:
    least = max(recipe.batch_size for recipe in finding)
    most = study.data.facts.train
    for number, size in enumerate(options.train_sizes):
        if not least <= size <= most:
            place = ("measures", "memorization", "train_sizes", number)
            yield place, f"{size} images; allowed: {least}, the batch size, to {most}"
    if not study.prune.asked and not any(curve.points for curve in study.prune.gradual):
        yield (
            ("measures", "memorization"),
            "no masks; allowed with: prune.levels, prune.sparsities or lists in prune.gradual",
        )
