"""The arguments of the command line: which there are, how they are refused, and how shells complete them."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

import lthlab
from lthlab import sections
from lthlab.catalog import KNOWN
from lthlab.errors import InputError, nearest
from lthlab.parts import Part
from lthlab.wording import explain

_P = TypeVar("_P", bound=Part)

_STUDY_FILES = {"bash": "_lthlab_studies", "zsh": "_files -g '*.yaml'", "tcsh": "f:*.yaml"}
_FOLDERS = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}
_MODULES = {"bash": "_shtab_compgen_files", "zsh": "_files -g '*.py'", "tcsh": "f:*.py"}
_TICKETS = {"bash": "_shtab_compgen_files", "zsh": "_files -g '*.safetensors'", "tcsh": "f:*.safetensors"}
_SETS = {"bash": "_lthlab_sets", "zsh": f"({' '.join(sorted(KNOWN))})", "tcsh": ""}
_DEVICES = {"bash": "_lthlab_devices", "zsh": "(auto cpu cuda)", "tcsh": ""}
_NAMES = {"bash": "_lthlab_stages", "zsh": f"({' '.join(sections.STAGES)})", "tcsh": ""}
PREAMBLE = {
    "bash": f"""
_lthlab_studies() {{
  local path names=""
  for path in params/*.yaml; do path="${{path##*/}}"; names="$names ${{path%.yaml}}"; done
  compgen -W "${{names//\\*/}}" -- "$1"; compgen -d -S / -- "$1"; compgen -f -X '!*.yaml' -- "$1"
}}
_lthlab_sets() {{ compgen -W "{" ".join(sorted(KNOWN))}" -- "$1"; }}
_lthlab_devices() {{ compgen -W "auto cpu cuda" -- "$1"; }}
_lthlab_stages() {{ compgen -W "{" ".join(sections.STAGES)}" -- "$1"; }}"""
}
STALL_S = 3600.0
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


class Parser(argparse.ArgumentParser):
    """Names the nearest match to what it does not know."""

    def error(self, message: str) -> NoReturn:
        if match := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            message += _meant(match[1], {name: name for name in re.findall(r"[\w-]+", match[2])})
        super().error(message)

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse a command line, by default that of this process; ends the process if it is wrong."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            options.parser._refuse(unknown)
        return options

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        known = {text[2:]: text for text in self._option_string_actions if text.startswith("--")}
        if "set" in known:
            known = {name: f"--set {name}=…" for name in sections.Study.model_fields} | known
        words = [text + _meant(text.partition("=")[0].removeprefix("--"), known) for text in unknown]
        self.error(f"unrecognized arguments: {' '.join(words)}")


def _meant(text: str, known: Mapping[str, str]) -> str:
    question = nearest(text, known).partition("; did you mean '")[2]
    return f" (did you mean '{known[question[:-2]]}'?)" if question else ""


def parser(runs: Mapping[str, Callable[[argparse.Namespace], int]]) -> Parser:
    """Make the parser of the command line.

    Parameters
    ----------
    runs : mapping of str to callable
        What each command does with its options; it comes to the options as `run`.
    """
    whole = Parser(prog="lthlab", description="A laboratory for the lottery ticket hypothesis.")
    whole.add_argument("--version", action="version", version=f"lthlab {lthlab.__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.set_defaults(run=runs[name], parser=made, command=name)
        return made

    ahead = command("plan", "say what a study takes: notebooks, trainings, epochs, hours, disk")
    run = command("run", "execute the notebooks of a study, as far as they are not done")
    compute = command("compute", "compute the values of a study, without notebooks")
    status = command("status", "say what is done, in training, missing, diverged or stale")
    publish = command("publish", "make pages of the executed reports of a study")
    compare = command("compare", "compare a study with what the papers print and claim, as far as it is done")
    doctor = command("doctor", "look for what stands in the way of computing, and say what to do about it")
    for made in (ahead, run, compute, status, publish, compare):
        may: dict[str, Any] = {"nargs": "?"} if made is status else {}
        text = "YAML file of a study, or its name" + "; all studies by default" * (made is status)
        if made is ahead:
            may, text = {"nargs": "+", "metavar": "study"}, f"{text}; several are planned one by one and together"
        study = made.add_argument("studies" if made is ahead else "study", help=text, **may)
        study.complete = _STUDY_FILES  # type: ignore[attr-defined]
        made.add_argument("--mini", action="store_true", help="the study's small form, as its section `mini` says")
    for made in (ahead, run, compute, status, publish, compare, doctor):
        text = "file or module that registers networks or data sets of one's own; may be repeated"
        own = made.add_argument("--with", action="append", default=[], dest="modules", metavar="MODULE", help=text)
        own.complete = _MODULES  # type: ignore[attr-defined]
    for made in (ahead, run, compute, publish, compare):
        text = "set a field in place of the study's, as find.lr=0.1,0.3; may be repeated"
        made.add_argument("--set", action="append", default=[], dest="sets", metavar="FIELD=VALUE[,VALUE]", help=text)
    for made in (ahead, run, compute, status, publish, compare, doctor):
        _store(made)
    for made in (ahead, run, compute):
        text = "auto, cpu, cuda or cuda:1; cuda:0,cuda:1 share each training (default: auto)"
        device = made.add_argument("--device", default="auto", help=text)
        device.complete = _DEVICES  # type: ignore[attr-defined]
    for made in (run, compute):
        text = "stop in time with everything saved, as 30s, 9min or 2h"
        made.add_argument("--for", type=seconds, dest="limit", metavar="TIME", help=text)
        text = "give the same bits every time on a GPU too, though slower"
        made.add_argument("--deterministic", action="store_true", help=text)
    one = compute.add_argument("--only", metavar="NAME", help="only this configuration or stage")
    text = "only this configuration, stage or report; may be repeated"
    some = run.add_argument("--only", action="append", default=[], metavar="NAME", help=text)
    one.complete = some.complete = _NAMES  # type: ignore[attr-defined]
    run.add_argument("--slots", type=_count, metavar="N", help="notebooks at a time (default: 1; of a cluster: all)")
    ahead.add_argument("--slots", type=_count, default=1, metavar="N", help="notebooks at a time (default: 1)")
    run.add_argument("--cores", type=_count, metavar="N", help="cores of a slot (default: those here, shared by slots)")
    run.add_argument("--cluster", type=_address, metavar="tcp://…", help="address of a running Dask scheduler")
    run.add_argument("--cell-timeout", type=seconds, metavar="TIME", help="most time of a cell (default: none)")
    text = "try a notebook once more that gave no sign of life for so long (default: 1h)"
    run.add_argument("--stall-after", type=seconds, default=STALL_S, metavar="TIME", help=text)
    for made in (ahead, run):
        text = "their folder (default: notebooks)"
        folder = made.add_argument("--notebooks", default="notebooks", metavar="FOLDER", help=text)
        folder.complete = _FOLDERS  # type: ignore[attr-defined]
    text = "folder of the pages (default: reports/NAME OF THE STUDY)"
    publish.add_argument("--to", metavar="FOLDER", help=text).complete = _FOLDERS  # type: ignore[attr-defined]
    for made in (ahead, run, compute, publish, compare, doctor):
        made.add_argument("--json", action="store_true", help="print JSON")
    text = "list what is not yet run too, not only how much it is"
    compare.add_argument("--all", action="store_true", help=text)
    forms = status.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print JSON")
    forms.add_argument("--watch", action="store_true", help="show a study until all is done, or until Ctrl-C")
    text = "show a network's layers, their sizes and what is prunable, and nothing else"
    doctor.add_argument("--net", metavar="NAME[,FIELD=VALUE…]", help=text)
    doctor.add_argument("--data", default="digits", metavar="NAME", help="data set that it fits (default: digits)")
    text = "prunable set (default: all_but_head)"
    doctor.add_argument("--prunable", default="all_but_head", metavar="POLICY", help=text)
    _data(command("data", "list, fetch, import or verify data sets"))
    _ticket(command("ticket", "write a ticket to a file of its own that plain torch loads, or check one"))
    _results(command("results", "write the results of a study to a few small files, or put such files into a store"))
    completion = command("completion", "print the completion of a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return whole


def _store(parser: argparse.ArgumentParser) -> None:
    folder = parser.add_argument("--runs", default="runs", metavar="FOLDER", help="the store (default: runs)")
    folder.complete = _FOLDERS  # type: ignore[attr-defined]


def _actions(parser: argparse.ArgumentParser, texts: Mapping[str, str]) -> dict[str, argparse.ArgumentParser]:
    """Add what a command can do, each with the option `--json`."""
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    made = {}
    for name, text in texts.items():
        made[name] = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made[name].set_defaults(parser=made[name])
        made[name].add_argument("--json", action="store_true", help="print JSON")
    return made


def _data(parser: argparse.ArgumentParser) -> None:
    made = _actions(
        parser,
        {
            "list": "list all data sets, and which are installed",
            "fetch": "download a known data set and install it",
            "import": "install a data set from a folder: its official files, or class folders of images",
            "verify": "check an installed data set",
        },
    )
    for name, each in made.items():
        if name != "list":
            each.add_argument("name", help="name of the set").complete = _SETS  # type: ignore[attr-defined]
    text = "has train/<class>/ and test/<class>/ or val/<class>/, or what official archives hold"
    made["import"].add_argument("folder", help=text).complete = _FOLDERS  # type: ignore[attr-defined]
    text = "height and width that images of a set of one's own are brought to"
    made["import"].add_argument("--size", type=_count, metavar="N", help=text)


def _ticket(parser: argparse.ArgumentParser) -> None:
    made = _actions(
        parser,
        {
            "export": "write mask, weights and description of a ticket to one safetensors file",
            "import": "check such a file, and copy it into the store",
        },
    )
    text = "key, or its beginning, of a training under a mask, or of a mask; `lthlab.results.load` lists keys"
    made["export"].add_argument("key", metavar="KEY", help=text)
    for name, text in (("export", "file to write; one with other content is not replaced"), ("import", "file to read")):
        file = made[name].add_argument("file", metavar="FILE", help=text)
        file.complete = _TICKETS  # type: ignore[attr-defined]
        text = "file or module that registers networks or data sets of one's own; may be repeated"
        own = made[name].add_argument(
            "--with", action="append", default=[], dest="modules", metavar="MODULE", help=text
        )
        own.complete = _MODULES  # type: ignore[attr-defined]
        _store(made[name])


def _results(parser: argparse.ArgumentParser) -> None:
    made = _actions(
        parser,
        {
            "export": "write the results of a study, finished or not, to a folder",
            "import": "put the results in such a folder into the store; a later run continues them",
        },
    )
    made["export"].add_argument(
        "study", metavar="STUDY", help="name of a study in the store; `lthlab status` lists them"
    )
    for each in made.values():
        text = "folder of the files, as reports/data/NAME OF THE STUDY"
        each.add_argument("folder", metavar="FOLDER", help=text).complete = _FOLDERS  # type: ignore[attr-defined]
        _store(each)


def part(kind: type[_P], text: str, option: str) -> _P:
    """Read a name, and fields behind it, such as 'resnet20,width=32'.

    Parameters
    ----------
    kind : type
        What is read: a network, or a data set.
    text : str
        As on the command line.
    option : str
        The option, for the error.

    Raises
    ------
    InputError
        If the name or a field is not known.
    """
    name, *others = text.split(",")
    fields: dict[str, Any] = {"name": name}
    for other in others:
        field, _, value = other.partition("=")
        fields[field] = int(value) if value.isdecimal() else {"true": True, "false": False}.get(value, value)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        found = (problem for each in error.errors() for problem in explain(each, kind))
        raise InputError(
            "\n".join(f"{option} {'.'.join(map(str, place))}: {words}" for place, words in found)
        ) from error


def seconds(text: str) -> float:
    """Read a time, such as '30s', '9min' or '2h', in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h)", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; allowed: a number and s, min or h, as 30s or 9min")
    return float(match[1]) * _UNITS[match[2]]


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: 1 and more")
    return int(text)


def _address(text: str) -> str:
    if not re.fullmatch(r"(tcp|tls)://[^\s/]+:\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; allowed: as tcp://127.0.0.1:8786")
    return text
