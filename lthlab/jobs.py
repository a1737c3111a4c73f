"""Notebook jobs and their outcomes: what is to be executed, checked before anything runs, and how it ended."""

import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lthlab.errors import InputError, nearest

PARAMETERS = "parameters"
INJECTED = "injected-parameters"
"""Tags of the cell that holds the defaults, and of the one that papermill puts below it."""
UNNAMED = frozenset({"sets"})
"""Parameters that every notebook takes though its cell has no defaults of them."""

Status = Literal["done", "failed", "died", "hung", "skipped", "stopped"]


class JobError(InputError):
    """Jobs that cannot be executed; the message has a line for each problem."""


@dataclass(frozen=True)
class Job:
    """One execution of a notebook.

    Parameters
    ----------
    name : str
        Letters, digits, '.', '_' and '-', beginning with a letter or digit; at most 100 characters.
    notebook : Path
        The notebook to execute, in its own folder. Exactly one of its cells has the tag `parameters`; the cell
        says ``parameters = "{…}"``, a JSON object with the names and defaults of all parameters.
    output : Path
        Where the executed notebook goes, ending in '.ipynb'.
    parameters : mapping, optional
        Plain JSON values by name. They reach the notebook together with the defaults as one JSON string in the
        name `parameters`.
    cores : int, optional
        Number of cores of the slot: the threads that numerical libraries in the kernel start.
    cell_timeout_s : float, optional
        Seconds that a cell may take, rounded up to whole seconds; no limit by default.
    depends_on : tuple of str, optional
        Names of the jobs that must be done before.
    environment : mapping of str to str, optional
        Environment variables of the kernel beside those that it inherits.
    """

    name: str
    notebook: Path
    output: Path
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cores: int = 1
    cell_timeout_s: float | None = None
    depends_on: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """What the kernel wrote past the notebook, and the error."""
        return self.output.with_suffix(".log")

    @property
    def failure(self) -> Path:
        """Where the executed notebook goes if it fails; the output of an earlier run stays."""
        return self.output.with_suffix(".failed.ipynb")


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes
    ----------
    name : str
        Of the job.
    status : str
        'done'; 'failed': an error in a cell, or a cell that took too long; 'died': the kernel or its worker ended
        without an error, for example for lack of memory; 'hung': no sign of life, twice; 'skipped': a job it
        depends on is not done; 'stopped': by a signal or the deadline.
    seconds : float
        Wall time of the last attempt.
    cell : int or None
        Number of the cell where it ended, from 1, as in the notebook before its execution.
    line : int or None
        Line in that cell, from 1, where the error says so.
    source : str
        That line's text, or the cell's first line of code.
    error : str
        Type of the error.
    message : str
        Last line of the error.
    log : Path or None
        The job's log; None if the job never began.
    output : Path or None
        The executed notebook, with its error if it has one; None if there is none.
    """

    name: str
    status: Status
    seconds: float = 0.0
    cell: int | None = None
    line: int | None = None
    source: str = ""
    error: str = ""
    message: str = ""
    log: Path | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Event:
    """What happens to a job while jobs are executed.

    Attributes
    ----------
    what : str
        'started', 'retried', 'ended', or 'stopping', which concerns all jobs.
    name : str
        Of the job; empty if it concerns all.
    text : str
        Why it is retried or stopped.
    outcome : Outcome or None
        If the job ended.
    """

    what: Literal["started", "retried", "ended", "stopping"]
    name: str = ""
    text: str = ""
    outcome: Outcome | None = None


@dataclass(frozen=True)
class FailureGroup:
    """Jobs that ended for one cause.

    Attributes
    ----------
    cause : str
        Status, type and last line of the error, with numbers and paths left out.
    outcomes : tuple of Outcome
        Of these jobs.
    commands : tuple of str
        The command that runs each of them again.
    """

    cause: str
    outcomes: tuple[Outcome, ...]
    commands: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.outcomes)} {'job' if len(self.outcomes) == 1 else 'jobs'}: {self.cause}"]
        for outcome, command in zip(self.outcomes, self.commands, strict=True):
            place = f"cell {outcome.cell}" + (f", line {outcome.line}" if outcome.line else "")
            where = f" ({place}: {outcome.source})" if outcome.cell else ""
            lines += [f"  {outcome.name}{where}", f"    {_one_line(outcome)}"]
            lines += [f"    log: {outcome.log}"] * (outcome.log is not None)
            lines += [f"    executed: {outcome.output}"] * (outcome.output is not None)
            lines += [f"    again: {command}"]
        return "\n".join(lines)


def group_failures(outcomes: Iterable[Outcome], command: Callable[[str], str]) -> list[FailureGroup]:
    """Group the jobs that failed, died or hung by cause, the most frequent cause first.

    Parameters
    ----------
    outcomes : iterable of Outcome
        Of all jobs; those that are done, skipped or stopped are left out.
    command : callable
        From the name of a job to the command that runs it again.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.status in ("failed", "died", "hung"):
            groups.setdefault(_cause(outcome), []).append(outcome)
    return [
        FailureGroup(cause, tuple(group), tuple(command(outcome.name) for outcome in group))
        for cause, group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]


def failures(folder: Path) -> dict[str, tuple[int | None, str]]:
    """Find the jobs whose last execution failed.

    Parameters
    ----------
    folder : Path
        Where their outputs are.

    Returns
    -------
    dict
        From the name of a job to the number of the cell that failed, from 1 as in the notebook before its execution
        and None if no cell tells of an error, and type and last line of the error.
    """
    found = {}
    for path in sorted(folder.glob("*.failed.ipynb")):
        name = path.name.removesuffix(".failed.ipynb")
        done = path.with_name(f"{name}.ipynb")
        if not done.exists() or done.stat().st_mtime < path.stat().st_mtime:
            found[name] = _first_error(path)
    return found


def _first_error(notebook: Path) -> tuple[int | None, str]:
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        own = [cell for cell in cells if INJECTED not in cell.get("metadata", {}).get("tags", [])]
        code = ((number, cell) for number, cell in enumerate(own, start=1) if cell["cell_type"] == "code")
        for number, output in ((number, output) for number, cell in code for output in cell["outputs"]):
            if output["output_type"] == "error" and output.get("ename"):
                return number, f"{output['ename']}: {output['evalue']}".strip().splitlines()[-1]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    return None, ""


def clock(seconds: float) -> str:
    """Write a duration as 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _one_line(outcome: Outcome) -> str:
    return ": ".join(filter(None, [outcome.error, outcome.message])) or outcome.status


def _cause(outcome: Outcome) -> str:
    text = re.sub(r"(?<![\w.])~?(?:/[^\s/:'\",;()]+)+/?", "PATH", outcome.message)
    text = re.sub(r"0x[0-9a-f]+|(?<![A-Za-z])\d+(?:\.\d+)?(?:e[+-]?\d+)?", "N", text)
    return f"{outcome.status}: {': '.join(filter(None, [outcome.error, text])) or 'no reason known'}"


# --- checks before anything runs ------------------------------------------------------------------------------


def check(jobs: Sequence[Job]) -> dict[str, str]:
    """Check jobs, and word the parameters of each as a JSON object.

    Returns
    -------
    dict
        From the name of a job to the JSON text, the notebook's defaults included.

    Raises
    ------
    JobError
        With all problems of all jobs.
    """
    problems: list[str] = []
    defaults: dict[Path, dict[str, Any] | str] = {}
    texts = {}
    for job in jobs:
        if job.notebook not in defaults:
            defaults[job.notebook] = _defaults(job.notebook)
        known = defaults[job.notebook]
        found = _problems(job, jobs)
        if isinstance(known, str):
            found.append(known)
        else:
            found += _parameter_problems(job.parameters, known)
        problems += [f"job {job.name!r}: {problem}" for problem in found]
        if not found and isinstance(known, dict):
            texts[job.name] = json.dumps({**known, **job.parameters}, allow_nan=False)
    for label, given in (("name", [job.name for job in jobs]), ("output", [str(job.output) for job in jobs])):
        problems += [f"{label} {twice!r}: of more than one job" for twice in _repeated(given)]
    if not problems:
        problems += _cycles(jobs)
    if problems:
        raise JobError("\n".join(problems))
    return texts


def up_to_date(job: Job, text: str) -> bool:
    """Tell whether a job's output has the code that its notebook has now, and was executed with these parameters.

    Parameters
    ----------
    job : Job
        The job.
    text : str
        Its parameters as `check` words them.
    """
    try:
        now, then = _code(job.notebook), _code(job.output)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    given = [_assigned(source) for source, tags in then if INJECTED in tags]
    unchanged = [source for source, _ in now] == [source for source, tags in then if INJECTED not in tags]
    return unchanged and given == [json.loads(text)]


def _problems(job: Job, jobs: Sequence[Job]) -> list[str]:
    found = []
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", job.name):
        found.append("name; allowed: up to 100 letters, digits, '.', '_', '-', the first a letter or digit")
    if job.output.suffix != ".ipynb" or job.output.name.endswith(".failed.ipynb"):
        found.append(f"output: {job.output}; allowed: names that end in '.ipynb', but not in '.failed.ipynb'")
    if job.output.resolve() == job.notebook.resolve():
        found.append(f"output: {job.output} is the notebook itself")
    if job.cores < 1:
        found.append(f"cores: {job.cores}; allowed: 1 and more")
    if job.cell_timeout_s is not None and not 0 < job.cell_timeout_s < math.inf:
        found.append(f"cell_timeout_s: {job.cell_timeout_s}; allowed: above 0, or None")
    odd = {n: v for n, v in job.environment.items() if not re.fullmatch(r"[A-Za-z_]\w*", n) or "\0" in v}
    found += [f"environment: {name!r}={value!r} cannot be set" for name, value in odd.items()]
    names = {other.name for other in jobs}
    found += [f"depends_on: '{name}' is no job; {nearest(name, names)}" for name in job.depends_on if name not in names]
    return found


def _parameter_problems(parameters: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in parameters.items():
        if not isinstance(name, str) or not name.isidentifier():
            found.append(f"parameter {name!r}: not an identifier; {nearest(name, known)}")
        elif name not in known and name not in UNNAMED:
            found.append(f"parameter '{name}': the notebook has none of this name; {nearest(name, known)}")
        else:
            found += _not_plain(value, f"parameter '{name}'")
    return found


def _not_plain(value: object, place: str) -> list[str]:
    if isinstance(value, list):
        return [problem for n, item in enumerate(value) for problem in _not_plain(item, f"{place}, item {n}")]
    if isinstance(value, dict):
        keys = [f"{place}, key {key!r}: not a string" for key in value if not isinstance(key, str)]
        return keys + [problem for key, item in value.items() for problem in _not_plain(item, f"{place}, {key!r}")]
    plain = value is None or type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value))
    return [] if plain else [f"{place}: {value!r}; allowed: plain JSON values"]


def _defaults(notebook: Path) -> dict[str, Any] | str:
    """Read the parameters and their defaults from a notebook, or say what is wrong with it."""
    try:
        tagged = [source for source, tags in _code(notebook) if PARAMETERS in tags]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"notebook {notebook}: cannot be read ({error})"
    if len(tagged) != 1:
        return f"notebook {notebook}: {len(tagged)} cells have the tag '{PARAMETERS}'; needed: one"
    defaults = _assigned(tagged[0])
    if defaults is None or not all(name.isidentifier() for name in defaults):
        return f"notebook {notebook}: its cell '{PARAMETERS}' is not {PARAMETERS} = '{{…}}' with a JSON object"
    return defaults


def _code(notebook: Path) -> list[tuple[str, list[str]]]:
    """Source and tags of every cell of code."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), cell.get("metadata", {}).get("tags", [])) for cell in code]


def _assigned(source: str) -> dict[str, Any] | None:
    """The object in a cell that assigns JSON to the name `parameters` and does nothing else."""
    try:
        match ast.parse(source).body:
            case [ast.Assign(targets=[ast.Name(id=name)], value=value)] if name == PARAMETERS:
                found = json.loads(ast.literal_eval(value))
                return found if isinstance(found, dict) else None
    except (SyntaxError, ValueError, TypeError):
        pass
    return None


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _cycles(jobs: Sequence[Job]) -> list[str]:
    left = {job.name: set(job.depends_on) for job in jobs}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    return [f"depends_on: jobs that wait for each other: {', '.join(left)}"] if left else []
