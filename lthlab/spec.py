"""Studies: a YAML file read into a checked configuration, with every error located."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    create_model,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from lthlab import parts
from lthlab.parts import POLICIES, Count, Data, InputError, Level, Net, Part, Recipe, Sparsity, nearest

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a study.

    Attributes
    ----------
    file : str
        File as it was named.
    line, column : int
        Place of the field or value, counted from 1.
    field : str
        Dotted name, such as 'find.lr'.
    message : str
        What is wrong, the value, what is allowed and the nearest match.
    """

    file: str
    line: int
    column: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.field}: {self.message}".replace(": : ", ": ")


class StudyError(InputError):
    """A study that cannot be read; `problems` lists all that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _as_lists(value: object) -> object:
    return value if isinstance(value, list) and value and isinstance(value[0], list) else [value]


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _blank(value: object) -> object:
    """Let a name with nothing behind it ask for what it names, with its defaults."""
    return {} if value is None else value


def _grid(model: type[Part]) -> type[BaseModel]:
    """Make a model of which every field is a list of what `model` takes; a single value is a list of one."""
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        several = name in ("milestones", "betas")
        item: Any = info.annotation
        for constraint in info.metadata:
            item = Annotated[item, constraint]
        wrapped = Annotated[list[item], BeforeValidator(_as_lists if several else _as_list), Field(min_length=1)]
        fields[name] = (wrapped | None, None)
    return create_model(f"{model.__name__}Grid", __config__=ConfigDict(extra="forbid", frozen=True), **fields)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Method = Literal["IMP", "OMP"]


class Ticket(_Model):
    """Which masks a kind of ticket is evaluated on."""

    methods: Annotated[list[Method], BeforeValidator(_as_list), Field(min_length=1)] = ["IMP", "OMP"]


class Rewound(Ticket):
    """A ticket whose weights are rewound to an early step of the dense training."""

    rewind: parts.Duration


class Tickets(_Model):
    """Tickets to evaluate, by their names in Ma."""

    LT: Annotated[Ticket | None, BeforeValidator(_blank)] = None
    RR: Annotated[Ticket | None, BeforeValidator(_blank)] = None
    WR: Annotated[Rewound | None, BeforeValidator(_blank)] = None


class Prune(_Model):
    """How masks are found.

    Parameters
    ----------
    levels : list of int
        Levels of the ladder at which tickets are evaluated.
    sparsities : list of float
        Further sparsities, for one-shot masks only.
    rate : float
        Share of the remaining weights that goes at every level.
    """

    levels: Annotated[list[Annotated[Count, Field(le=parts.MAX_LEVEL)]], BeforeValidator(_as_list)] = []
    sparsities: Annotated[list[parts.Share], BeforeValidator(_as_list)] = []
    rate: Annotated[float, Strict(), Field(gt=0, lt=1, allow_inf_nan=False)] = 0.2


class Protocol(_Model):
    """On what the papers differ, or are silent.

    Parameters
    ----------
    prunable : str
        Prunable set, one of `lthlab.parts.POLICIES`.
    scope : {'global', 'layer'}
        Ranking over all layers together or within each.
    denominator : {'prunable', 'all'}
        What a sparsity is a share of.
    schedule : {'resume', 'restart'}
        After rewinding to t: train the rest of the schedule (Ma appendix B) or all of it (Sooner).
    rewound_masks : {'rewound', 'initial'}
        Chain that gives rewound tickets their masks: one that rewinds to the same step, or to θ_0.
    batchnorm : {'rewound', 'reset'}
        Whether BatchNorm's running statistics are rewound with the weights or start afresh.
    report : {'last', 'best_val', 'best_test'}
        Epoch whose accuracy counts.
    """

    prunable: str = "all_but_head"
    scope: Literal["global", "layer"] = "global"
    denominator: Literal["prunable", "all"] = "prunable"
    schedule: Literal["resume", "restart"] = "resume"
    rewound_masks: Literal["rewound", "initial"] = "rewound"
    batchnorm: Literal["rewound", "reset"] = "rewound"
    report: Literal["last", "best_val", "best_test"] = "last"

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.prunable not in POLICIES:
            raise ValueError(f"prunable: policy '{self.prunable}' is not known; {nearest(self.prunable, POLICIES)}")
        return self


class Correlation(_Model):
    """The correlation indicator R_p between weights before and after training (Ma appendix G).

    Parameters
    ----------
    p : float
        Share of each layer's weights that counts as large, in (0, 1].
    of : list of str
        Which trainings; by default dense ones and those of LT and RR, as far as the study has them.
    partner : {'own', 'dense'}
        What a ticket's initial weights are compared with: its own trained weights, or those of the dense training
        that its mask was found with, under that mask. Ma's section 3.1 has both.
    """

    p: Annotated[float, Strict(), Field(gt=0, le=1, allow_inf_nan=False)] = 0.1
    of: Annotated[list[Literal["dense", "LT", "RR", "WR"]], BeforeValidator(_as_list)] = ["dense", "LT", "RR"]
    partner: Literal["own", "dense"] = "own"


class Measures(_Model):
    """Analyses of the trained weights."""

    correlation_indicator: Annotated[Correlation | None, BeforeValidator(_blank)] = None


class _Study(_Model):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    title: str = ""
    net: Annotated[Net, BeforeValidator(_named)]
    data: Annotated[Data, BeforeValidator(_named)]
    replicates: Annotated[Count, Field(le=10_000)] = 1
    find: _grid(Recipe)  # type: ignore[valid-type]
    eval: _grid(Recipe) | None = None  # type: ignore[valid-type]
    prune: Prune = Prune()
    tickets: Tickets = Tickets()
    protocol: Protocol = Protocol()
    measures: Measures = Measures()


@dataclass(frozen=True)
class Config:
    """A study, checked.

    Attributes
    ----------
    name, title : str
        Name of the study and one line for readers.
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
    tickets, protocol, measures : Tickets, Protocol, Measures
        What is asked for and how.
    """

    name: str
    title: str
    net: Net
    data: Data
    replicates: int
    recipes: tuple[tuple[Recipe, Recipe], ...]
    levels: tuple[Level, ...]
    sparsities: tuple[Sparsity, ...]
    tickets: Tickets
    protocol: Protocol
    measures: Measures


def read(path: str | Path) -> Config:
    """Read a study.

    Parameters
    ----------
    path : str or Path
        YAML 1.2 file.

    Returns
    -------
    Config

    Raises
    ------
    StudyError
        With everything that is wrong: file, line, column, field, value, what is allowed and the nearest match.
    """
    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError([Problem(name, 1, 1, "", f"cannot be read: {error}")]) from error
    return parse(text, name)


def parse(text: str, name: str = "<study>") -> Config:
    """Read a study from text; `name` stands for the file in errors. Raises as `read` does."""
    tree, places, problems = _load(text, name)

    def locate(place: Place, message: str) -> Problem:
        known = next(place[:end] for end in range(len(place), -1, -1) if place[:end] in places)
        line, column = places[known]
        beyond = [item for item in place[len(known) :] if isinstance(item, str)]
        field = ".".join(str(item) for item in (*known, *beyond))
        return Problem(name, line, column, field, message)

    study, wrong, doubtful = _checked(tree)
    recipes: list[tuple[Recipe, Recipe]] = []
    if study is not None:
        recipes, unfit = _recipes(study)
        wrong += [item for item in (*unfit, *_cross_checks(study, recipes)) if item[0][0] not in doubtful]
    problems += [locate(place, message) for place, message in wrong]
    if problems or study is None:
        raise StudyError(sorted(problems, key=lambda problem: (problem.line, problem.column, problem.field)))
    return Config(
        name=study.name,
        title=study.title or study.name,
        net=study.net,
        data=study.data,
        replicates=study.replicates,
        recipes=tuple(recipes),
        levels=tuple(Level(k, study.prune.rate) for k in sorted(set(study.prune.levels))),
        sparsities=tuple(dict.fromkeys(parts.decimal_text(s) for s in study.prune.sparsities)),
        tickets=study.tickets,
        protocol=study.protocol,
        measures=study.measures,
    )


def _checked(tree: Any) -> tuple[_Study | None, list[tuple[Place, str]], set[str | int]]:
    """Check the fields; where some are wrong, the other sections are still returned, to be compared.

    The last of what is returned are the sections of which nothing more can be said.
    """
    try:
        return _Study.model_validate(tree), [], set()
    except ValidationError as error:
        wrong = [problem for item in error.errors() for problem in _explain(item)]
    doubtful = {place[0] for place, _ in wrong if place}
    if not isinstance(tree, dict) or not doubtful:
        return None, wrong, doubtful
    rest = {name: section for name, section in tree.items() if name not in doubtful}
    if doubtful - set(_Study.model_fields):
        doubtful |= {"prune", "measures"}
    if "tickets" in doubtful:
        doubtful |= {"measures"}
    try:
        return _Study.model_validate({"name": "unnamed"} | rest), wrong, doubtful
    except ValidationError:
        return None, wrong, doubtful


def _recipes(study: _Study) -> tuple[list[tuple[Recipe, Recipe]], list[tuple[Place, str]]]:
    """Pair finding with evaluating recipes: equal ones, or every one with every override of `eval`."""
    override = {} if study.eval is None else _axes(study.eval)
    pairs: dict[tuple[Recipe, Recipe], None] = {}
    wrong: dict[tuple[Place, str], None] = {}

    def recipe(fields: Mapping[str, Any], section: str) -> Recipe | None:
        try:
            found = Recipe(**fields)
            found.aligned(study.data.steps_per_epoch(found.batch_size))
            return found
        except ValidationError as error:
            problems = [problem for item in error.errors() for problem in _explain(item)]
        except ValueError as error:
            problems = _fielded((), str(error))
        wrong.update(dict.fromkeys(((section, *place), message) for place, message in problems))
        return None

    for finding in _product(_axes(study.find)):
        find = recipe(finding, "find")
        for evaluating in _product(override) if find is not None else ():
            evaluate = recipe(finding | evaluating, "eval") if evaluating else find
            if find is not None and evaluate is not None:
                pairs[find, evaluate] = None
    return list(pairs), list(wrong)


def _axes(grid: BaseModel) -> dict[str, list[Any]]:
    return {name: choices for name, choices in grid if choices is not None}


def _product(axes: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(axes, choice, strict=True)) for choice in itertools.product(*axes.values()))


def _cross_checks(study: _Study, recipes: list[tuple[Recipe, Recipe]]) -> Iterator[tuple[Place, str]]:
    images = study.data.images
    for section in ("find", "eval"):
        for size in getattr(getattr(study, section), "batch_size", None) or ():
            if size > images:
                yield (
                    (section, "batch_size"),
                    f"{size} is larger than the training set; allowed: 1 to {images}",
                )
    if study.tickets.WR is not None:
        rewind = study.tickets.WR.rewind
        problems = {_rewind_problem(study, rewind, find, evaluate): None for find, evaluate in recipes}
        yield from ((("tickets", "WR", "rewind"), f"{rewind} {problem}") for problem in problems if problem)
    asked = {name: ticket.methods for name, ticket in study.tickets if ticket is not None}
    lacking = [name for name, methods in asked.items() if "IMP" in methods or not study.prune.sparsities]
    if lacking and not study.prune.levels:
        yield ("prune", "levels"), f"missing; masks of {', '.join(lacking)} need levels, such as [4, 8]"
    measure = study.measures.correlation_indicator
    for number, ticket in enumerate(measure.of if measure and "of" in measure.model_fields_set else ()):
        if ticket != "dense" and ticket not in asked:
            place = ("measures", "correlation_indicator", "of", number)
            yield place, f"'{ticket}' is not among the study's tickets; {nearest(ticket, ['dense', *asked])}"
    if study.protocol.report == "best_val" and not study.data.val_size:
        yield ("protocol", "report"), "best_val needs validation images; set data.val_size above 0"
    if study.protocol.prunable.startswith("ma_resnet") and not study.net.name.startswith("resnet"):
        yield (
            ("protocol", "prunable"),
            f"'{study.protocol.prunable}' is for ResNets, not for '{study.net.name}'",
        )


def _rewind_problem(study: _Study, rewind: str, find: Recipe, evaluate: Recipe) -> str | None:
    """Say why tickets cannot be rewound to a step; None if they can."""
    steps, steps_after = (study.data.steps_per_epoch(recipe.batch_size) for recipe in (find, evaluate))
    at = parts.iterations(rewind, steps)
    if at >= find.epochs * steps:
        return f"is not before the end; allowed: below {find.epochs}ep, {find.epochs * steps}it"
    if study.protocol.schedule == "restart":
        return None
    if at % steps and steps != steps_after:
        return f"lies within an epoch, and epochs of find and eval differ in length, {steps} and {steps_after} steps"
    if parts.iterations(parts.step_text(at, steps), steps_after) >= evaluate.epochs * steps_after:
        return f"leaves nothing of the {evaluate.epochs} epochs of eval; allowed: below {evaluate.epochs}ep"
    return None


# --- located errors -------------------------------------------------------------------------------------------

_WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "one value or more",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
}
_BOUNDS = {"greater_than": "above {gt:g}", "greater_than_equal": "{ge:g} or more", "less_than": "below {lt:g}"}
_FIELD = re.compile(r"([a-z_]+): (.*)")


def _explain(error: Any) -> list[tuple[Place, str]]:
    """Word one of pydantic's errors: where, what, what is allowed, the nearest match."""
    if error["type"] == "value_error":
        return _fielded(tuple(error["loc"]), str(error["ctx"]["error"]))
    return [_worded(error)]


def _worded(error: Any) -> tuple[Place, str]:
    place, kind, context = tuple(error["loc"]), error["type"], error.get("ctx", {})
    value = _shown(error["input"])
    if kind == "extra_forbidden":
        model = _model_at(place[:-1])
        return place, f"unknown field; {nearest(place[-1], model.model_fields if model else ())}"
    if kind == "missing":
        return place, "missing"
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", context["expected"])
        return place, f"{value} is not allowed; {nearest(error['input'], options)}"
    if kind in _BOUNDS or kind == "less_than_equal":
        bound = _BOUNDS.get(kind, "{le:.10g} or less").format(**context)
        return place, f"{value} is not allowed; allowed: {bound}"
    if kind in _WORDS:
        return place, f"{value} is not allowed; allowed: {_WORDS[kind]}"
    return place, f"{value} is not allowed: {error['msg']}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fielded(place: Place, message: str) -> list[tuple[Place, str]]:
    """Split lines of the form 'field: message'."""
    lines = [(_FIELD.fullmatch(line), line) for line in message.split("\n")]
    return [((*place, inner[1]), inner[2]) if inner else (place, line) for inner, line in lines]


def _model_at(place: Place) -> type[BaseModel] | None:
    """Find the model that the fields at a place belong to."""
    model: type[BaseModel] | None = _Study
    for item in place:
        info = model.model_fields.get(str(item)) if model else None
        if info is None:
            return None
        options = [info.annotation, *getattr(info.annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return model


def _load(text: str, name: str) -> tuple[Any, dict[Place, tuple[int, int]], list[Problem]]:
    """Read YAML as plain values, note where each stands and what YAML allows but a study does not."""
    reader = YAML(typ="safe", pure=True)
    problems: list[Problem] = []

    def refuse(mark: Any, place: Place, message: str) -> None:
        problems.append(Problem(name, mark.line + 1, mark.column + 1, ".".join(map(str, place)), message))

    depth = 0
    try:
        for event in reader.parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > 20:
                refuse(event.start_mark, (), "nested too deep for a study")
                break
            if isinstance(event, AliasEvent):
                refuse(event.start_mark, (), f"alias *{event.anchor}: not allowed; write the value out")
            elif getattr(event, "ctag", None):
                refuse(event.start_mark, (), f"tag {event.ctag}: not allowed; write plain values")
        if problems:
            raise StudyError(problems)
        root = reader.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise StudyError([Problem(name, line, column, "", f"not valid YAML: {error.problem}")]) from error
    except YAMLError as error:
        before = text[: getattr(error, "position", 0)]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"not valid YAML: {getattr(error, 'reason', error)}"
        raise StudyError([Problem(name, line, column, "", message)]) from error
    places: dict[Place, tuple[int, int]] = {(): (1, 1)}

    def plain(node: Any, place: Place) -> Any:
        if isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                places[(*place, index)] = (item.start_mark.line + 1, item.start_mark.column + 1)
            return [plain(item, (*place, index)) for index, item in enumerate(node.value)]
        if isinstance(node, MappingNode):
            found: dict[str, Any] = {}
            for key, item in node.value:
                here = (*place, str(key.value))
                if not isinstance(key, ScalarNode):
                    refuse(key.start_mark, place, "the name of a field must be text")
                elif key.value in found:
                    refuse(key.start_mark, here, f"given twice, first in line {places[here][0]}")
                else:
                    places[here] = (key.start_mark.line + 1, key.start_mark.column + 1)
                    found[key.value] = plain(item, here)
            return found
        if node is None or node.tag.rpartition(":")[2] not in ("int", "float", "bool", "null"):
            return node and node.value
        try:
            return reader.constructor.construct_object(node)
        except ValueError:
            return node.value

    return plain(root, ()), places, problems
