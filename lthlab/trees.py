"""YAML as plain trees whose every part knows where it stands; trees merged, and fields set from the command line."""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from lthlab.errors import InputError

Place = tuple[str | int, ...]


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong with a study.

    Attributes
    ----------
    file : str
        File as it was named, or the option of the command line.
    line, column : int
        Place of the field or value, counted from 1; 0 on the command line.
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
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(filter(None, (where, self.field, self.message)))


class StudyError(InputError):
    """A study that cannot be read; `problems` lists all that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True)
class Spot:
    """Where a part of a tree was written: file, line and column from 1, and the field's name there."""

    file: str
    line: int
    column: int
    field: str

    def problem(self, message: str, beyond: Iterable[str] = ()) -> Problem:
        """Say what is wrong here, or with fields below that nobody wrote."""
        return Problem(self.file, self.line, self.column, ".".join(filter(None, (self.field, *beyond))), message)


@dataclass
class Tree:
    """Plain values, and the spot of each.

    Attributes
    ----------
    plain : object
        Nested dicts, lists and scalars.
    spots : dict
        By place; the root is always there.
    """

    plain: Any
    spots: dict[Place, Spot] = field(default_factory=lambda: {(): Spot("<study>", 1, 1, "")})

    def problem(self, place: Place, message: str) -> Problem:
        """Say what is wrong with a place, at the nearest spot that is known."""
        known = next(place[:end] for end in range(len(place), -1, -1) if place[:end] in self.spots)
        return self.spots[known].problem(message, [item for item in place[len(known) :] if isinstance(item, str)])

    @classmethod
    def of(cls, items: "Sequence[Tree]", spot: Spot) -> "Tree":
        """Make a list of trees."""
        below = {(number, *at): spot for number, item in enumerate(items) for at, spot in item.spots.items()}
        return cls([item.plain for item in items], {(): spot} | below)

    def at(self, *place: str | int) -> "Tree":
        """Take out a branch, which keeps its spots."""
        plain = self.plain
        for item in place:
            plain = plain[item]
        spots = {there[len(place) :]: spot for there, spot in self.spots.items() if there[: len(place)] == place}
        known = next(place[:end] for end in range(len(place), -1, -1) if place[:end] in self.spots)
        return Tree(plain, {(): self.spots[known]} | spots)

    def with_branch(self, name: str, branch: "Tree") -> "Tree":
        """Put a branch in place of what a mapping has under a name."""
        spots = {place: spot for place, spot in self.spots.items() if place[:1] != (name,)}
        spots |= {(name, *place): spot for place, spot in branch.spots.items()}
        return Tree(self.plain | {name: branch.plain}, spots)

    def without(self, *names: str) -> "Tree":
        """Leave out fields of a mapping."""
        plain = {name: value for name, value in self.plain.items() if name not in names}
        return Tree(
            plain, {place: spot for place, spot in self.spots.items() if place[:1] not in [(n,) for n in names]}
        )

    def merged(self, over: "Tree", removing: bool = False) -> "Tree":
        """Lay another tree over this one: mappings field by field, all else as a whole.

        Of mappings within them that have names, one of another name replaces what is below it.

        Parameters
        ----------
        over : Tree
            What lies above.
        removing : bool, optional
            Whether a null takes away what is below it.
        """
        if not isinstance(self.plain, dict) or not isinstance(over.plain, dict):
            return Tree({}, over.spots).merged(over, removing) if removing and isinstance(over.plain, dict) else over
        found = Tree(dict(self.plain), self.spots | {(): over.spots[()]})
        for name, value in over.plain.items():
            if removing and value is None:
                found = found.without(name)
                continue
            branch = over.at(name)
            kept = name in self.plain and not self.at(name)._named_otherwise(branch)
            below = self.at(name) if kept else Tree(None, branch.spots)
            found = found.with_branch(name, below.merged(branch, removing))
        return found

    def nulls(self) -> Iterator[Place]:
        """List the places within mappings at which nothing is written."""
        for name, value in self.plain.items():
            if value is None:
                yield (name,)
            elif isinstance(value, dict):
                yield from ((name, *place) for place in self.at(name).nulls())

    def has(self, place: Place) -> bool:
        """Tell whether mappings within one another lead to a place."""
        plain = self.plain
        for name in place:
            if not isinstance(plain, dict) or name not in plain:
                return False
            plain = plain[name]
        return True

    def _named_otherwise(self, over: "Tree") -> bool:
        names = [tree.plain["name"] for tree in (self, over) if isinstance(tree.plain, dict) and "name" in tree.plain]
        return len(names) == 2 and names[0] != names[1]

    def named(self, *names: str) -> "Tree":
        """Write fields that are a mere name as mappings with a name."""
        found = self
        for name in names:
            if isinstance(self.plain, dict) and isinstance(self.plain.get(name), str):
                spot = self.spots[name,]
                inner = replace(spot, field=f"{spot.field}.name")
                found = found.with_branch(name, Tree({"name": self.plain[name]}, {(): spot, ("name",): inner}))
        return found


def read(path: str | Path) -> str:
    """Read a file of text.

    Raises
    ------
    StudyError
        If it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError([Problem(str(path), 1, 1, "", f"cannot be read: {error}")]) from error


def folder_above(name: str) -> Path | None:
    """Find a folder by name in the working folder or the nearest one above it."""
    here = Path.cwd()
    return next((up / name for up in (here, *here.parents) if (up / name).is_dir()), None)


def load(text: str, name: str, root: str = "") -> tuple[Tree, list[Problem]]:
    """Read YAML 1.2 as plain values.

    Parameters
    ----------
    text : str
        YAML.
    name : str
        File as it is named in problems.
    root : str, optional
        Name of the whole in problems.

    Returns
    -------
    Tree
        Scalars are text, numbers, booleans or None.
    list of Problem
        What YAML allows and a study does not, such as a field given twice.

    Raises
    ------
    StudyError
        If it is not valid YAML, has tags or aliases, or is nested too deep.
    """
    reader = YAML(typ="safe", pure=True)
    problems: list[Problem] = []

    def spot(mark: Any, place: Place) -> Spot:
        return Spot(name, mark.line + 1, mark.column + 1, ".".join(map(str, filter(str, (root, *place)))))

    depth = 0
    try:
        for event in reader.parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            here = spot(event.start_mark, ())
            if depth > 20:
                problems.append(here.problem("nested too deep for a study"))
                break
            if isinstance(event, AliasEvent):
                problems.append(here.problem(f"alias *{event.anchor}: not allowed; write the value out"))
            elif getattr(event, "ctag", None):
                problems.append(here.problem(f"tag {event.ctag}: not allowed; write plain values"))
        if problems:
            raise StudyError(problems)
        node = reader.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise StudyError([Problem(name, line, column, root, f"not valid YAML: {error.problem}")]) from error
    except YAMLError as error:
        before = text[: getattr(error, "position", 0)]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"not valid YAML: {getattr(error, 'reason', error)}"
        raise StudyError([Problem(name, line, column, root, message)]) from error
    spots: dict[Place, Spot] = {(): Spot(name, 1, 1, root)}

    def plain(node: Any, place: Place) -> Any:
        if isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                spots[(*place, index)] = spot(item.start_mark, (*place, index))
            return [plain(item, (*place, index)) for index, item in enumerate(node.value)]
        if isinstance(node, MappingNode):
            return dict(fields(node, place))
        if node is None or node.tag.rpartition(":")[2] not in ("int", "float", "bool", "null"):
            return node and node.value
        try:
            return reader.constructor.construct_object(node)
        except ValueError:
            return node.value

    def fields(node: Any, place: Place) -> Iterator[tuple[str, Any]]:
        for key, item in node.value:
            here = (*place, str(key.value))
            if not isinstance(key, ScalarNode):
                problems.append(spot(key.start_mark, place).problem("the name of a field must be text"))
            elif here in spots:
                message = f"given twice, first in line {spots[here].line}"
                problems.append(spot(key.start_mark, here).problem(message))
            else:
                spots[here] = spot(key.start_mark, here)
                yield key.value, plain(item, here)

    return Tree(plain(node, ()), spots), problems


# --- fields set from the command line -------------------------------------------------------------------------

_SET = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)=(.*)", re.DOTALL)


def settings(sets: Sequence[str]) -> list[tuple[tuple[str, ...], Tree]]:
    """Read texts such as 'find.lr=0.1,0.3': several values are a list.

    Returns
    -------
    list of (place, Tree)
        What is set, in order.

    Raises
    ------
    StudyError
        If a text is not of the form field=value[,value…].
    """
    found, problems = [], []
    for text in sets:
        match, option = _SET.fullmatch(text), f"--set {text}"
        if not match or not match[2].strip():
            message = "not understood; allowed: field=value[,value…], such as find.lr=0.1,0.3"
            problems.append(Problem(option, 0, 0, "", message))
            continue
        try:
            tree, doubled = load(f"[{match[2]}\n]", option, match[1])
        except StudyError as error:
            problems += [Problem(option, 0, 0, match[1], problem.message) for problem in error.problems]
            continue
        if not isinstance(tree.plain, list):
            problems.append(Problem(option, 0, 0, match[1], "not understood; allowed: a value, or several with commas"))
            continue
        problems += doubled
        tree = tree if len(tree.plain) != 1 else tree.at(0)
        spot = Spot(option, 0, 0, match[1])
        found.append((tuple(match[1].split(".")), Tree(tree.plain, dict.fromkeys(tree.spots, spot))))
    if problems:
        raise StudyError(problems)
    return found


def nested(place: Sequence[str], tree: Tree) -> Tree:
    """Wrap a tree into mappings, from the innermost name of a place outwards."""
    for depth in range(len(place) - 1, -1, -1):
        spot = replace(tree.spots[()], field=".".join(place[:depth]))
        tree = Tree({place[depth]: tree.plain}, {(): spot} | {(place[depth], *at): s for at, s in tree.spots.items()})
    return tree


def as_yaml(sets: Sequence[str]) -> str:
    """Write what texts such as 'find.lr=0.1,0.3' set as the YAML that says the same.

    Raises
    ------
    StudyError
        As `settings` does.
    """
    whole: Mapping[str, Any] = {}
    for place, tree in settings(sets):
        whole = Tree(whole).merged(nested(place, tree)).plain
    return dump(whole)


def dump(plain: Any) -> str:
    """Write plain values as YAML, lists within lines."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = None
    out = io.StringIO()
    writer.dump(plain, out)
    return out.getvalue()
