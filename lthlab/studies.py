"""A study in pieces: where its file is, its configurations, and what a notebook works on."""

import importlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lthlab import sections, spec, tickets, trees
from lthlab.errors import InputError, nearest
from lthlab.roles import Labelled
from lthlab.spec import Config
from lthlab.store import Store

FOLDER = "params"
STORE = "LTHLAB_RUNS"
"""Variable of the environment that names the store of notebooks."""
DETERMINISTIC = "LTHLAB_DETERMINISTIC"
"""Variable of the environment that says whether computing is deterministic, 1 or 0."""
WITH = "LTHLAB_WITH"
"""Variable of the environment that names modules with networks and data sets of one's own, as PATH names folders."""
DEFAULTS: dict[str, Any] = {"study": "demo", "configuration": None, "device": "auto"}
"""What the notebooks are told."""


@dataclass(frozen=True)
class Configuration:
    """What one execution of a compute notebook computes.

    Attributes
    ----------
    name, stage : str
        Its name, and the notebook.
    labelled : tuple of Labelled
        Values and roles.
    """

    name: str
    stage: str
    labelled: tuple[Labelled, ...]


def configurations(labelled: Iterable[Labelled]) -> list[Configuration]:
    """Cut an expanded study into configurations, stage by stage.

    Parameters
    ----------
    labelled : iterable of Labelled
        From `lthlab.tickets.expand`.
    """
    found: dict[str, list[Labelled]] = {}
    for item in labelled:
        found.setdefault(item.configuration, []).append(item)
    pieces = [Configuration(name, items[0].stage, tuple(items)) for name, items in found.items()]
    return sorted(pieces, key=lambda piece: sections.STAGES.index(piece.stage))


def select(labelled: Iterable[Labelled], configuration: str | None) -> list[Labelled]:
    """Choose what belongs to a configuration or a stage; everything if None.

    Raises
    ------
    InputError
        If there is no such configuration.
    """
    labelled = list(labelled)
    if configuration is None:
        return labelled
    chosen = [item for item in labelled if configuration in (item.configuration, item.stage)]
    if not chosen:
        names = {name for item in labelled for name in (item.configuration, item.stage)}
        raise InputError(f"configuration '{configuration}' is not in the study; {nearest(configuration, names)}")
    return chosen


def note(config: Config, labelled: Iterable[Labelled], store: Store) -> None:
    """Store the table of a study: title, document, settings of the command line, reports, and roles with keys."""
    roles = [item.row for item in labelled]
    table = {"title": config.title, "document": config.document, "sets": config.sets, "reports": config.reports}
    store.write_study(config.name, table | {"roles": roles})


def find(study: str | Path) -> Path:
    """Find a study's file.

    Parameters
    ----------
    study : str or Path
        A YAML file, or the name of one in the folder `params` here or in a folder above.

    Raises
    ------
    InputError
        If there is none.
    """
    text = str(study)
    if text.endswith((".yaml", ".yml")):
        if not Path(text).is_file():
            raise InputError(f"study {text}: no such file; {nearest(Path(text).stem, _names(Path(text).parent))}")
        return Path(text)
    folder = _params()
    path = folder / f"{text}.yaml"
    if text not in _names(folder):
        raise InputError(f"study '{text}' is not in {os.path.relpath(folder)}; {nearest(text, _names(folder))}")
    return path


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _params() -> Path:
    return trees.folder_above(FOLDER) or Path.cwd() / FOLDER


def import_modules(names: Sequence[str] = ()) -> None:
    """Import modules that register networks and data sets of one's own, here and in the processes that follow.

    Parameters
    ----------
    names : sequence of str
        Python files, or names of installed modules, which the variable LTHLAB_WITH is set to; if there are none, what
        it names already.

    Raises
    ------
    InputError
        If there is no such file or module, it fails, or Python has another module of its name.
    """
    if names:
        full = (str(Path(name).absolute()) if name.endswith(".py") else name for name in names)
        os.environ[WITH] = os.pathsep.join(full)
    for name in filter(None, os.environ.get(WITH, "").split(os.pathsep)):
        path = Path(name) if name.endswith(".py") else None
        if path is not None and not path.is_file():
            raise InputError(f"--with {name}: no such file")
        if path is not None and str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        try:
            module = importlib.import_module(name if path is None else path.stem)
        except Exception as error:
            raise InputError(f"--with {name}: {type(error).__name__}: {error}") from error
        if path is not None and Path(module.__file__ or "").resolve() != path.resolve():
            raise InputError(f"--with {name}: module '{path.stem}' is {module.__file__}; allowed: another name")


@dataclass(frozen=True)
class Opened:
    """What a notebook works on.

    Attributes
    ----------
    config : Config
        The study.
    store : Store
        Where its results are.
    configuration : str or None
        Configuration or stage to compute; all if None.
    device : str
        As `lthlab.lab.compute` takes it.
    """

    config: Config
    store: Store
    configuration: str | None
    device: str


def open(parameters: str) -> Opened:
    """Open the study that a notebook's parameters name.

    Parameters
    ----------
    parameters : str
        JSON object with 'study', a name, a file, or the document of a `lthlab.spec.Config`; 'configuration', a
        configuration, a stage or null; 'device'; and, where `lthlab run` wrote it, 'sets'.

    Returns
    -------
    Opened
        Its store is the folder that the variable LTHLAB_RUNS names, or `runs` beside the folder `params`.

    Raises
    ------
    InputError
        If a parameter, the study or the configuration is not known, the study is wrong, or a module that the
        variable LTHLAB_WITH names cannot be imported.
    """
    import_modules()
    given = json.loads(parameters)
    allowed = [*DEFAULTS, "sets"]
    if unknown := [name for name in given if name not in allowed]:
        raise InputError(f"parameter '{unknown[0]}' is not known; {nearest(unknown[0], allowed)}")
    told = DEFAULTS | given
    if isinstance(told["study"], Mapping):
        config, root = spec.resolved(told["study"], told.get("sets", ())), _params().parent
    else:
        path = find(told["study"])
        config = spec.read(path)
        root = path.resolve().parent
        root = root.parent if root.name == FOLDER else root
    select(tickets.expand(config), told["configuration"])
    return Opened(config, Store(os.environ.get(STORE) or root / "runs"), told["configuration"], told["device"])
