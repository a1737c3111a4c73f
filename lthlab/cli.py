"""The command line: parse, forward, and say what came of it."""

import argparse
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lthlab
from lthlab import spec, studies
from lthlab.parts import InputError, nearest
from lthlab.store import Damaged, Store, StoreError

SCHEMA = 1
SILENT_S = 300.0
"""After so many seconds without a sign of life, which comes about every second, a training seems to hang."""

_STUDY_FILES = {"bash": "_lthlab_studies", "zsh": "_files -g '*.yaml'", "tcsh": "f:*.yaml"}
_PREAMBLE = {"bash": "_lthlab_studies() { compgen -d -S / -- $1; compgen -f -X '!*.yaml' -- $1; }", "zsh": "", "tcsh": ""}
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


class _Terminated(BaseException):
    """SIGTERM, where nothing else takes it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        0, also if the time of `--for` was up; 1 if notebooks failed, results came out stale or failed, or `doctor`
        found a problem; 2 for bad input; 130 after Ctrl-C and 143 after SIGTERM. A training that diverged is a
        result.
    """
    options = _parser().parse_args(arguments)
    options.began = time.monotonic()

    def end(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # signals belong to the main thread
        before = None
    try:
        code: int = options.run(options)
        return code
    except (InputError, StoreError, Damaged) as error:
        print(error, file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lthlab"):
            raise
        print(f"the package '{error.name}' is missing; `lthlab doctor` says what to install", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, _Terminated) as stop:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 128 + (signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


# --- arguments ------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lthlab", description="A laboratory for the lottery ticket hypothesis.")
    parser.add_argument("--version", action="version", version=f"lthlab {lthlab.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.set_defaults(run=run)
        return made

    plan = command("plan", _plan, "say what a study takes: notebooks, trainings, epochs, hours, disk")
    run = command("run", _run, "execute the notebooks of a study, as far as they are not done")
    compute = command("compute", _compute, "compute the values of a study, without notebooks")
    status = command("status", _status, "say what is done, in training, missing, diverged or stale")
    publish = command("publish", _publish, "make pages of the executed reports of a study")
    doctor = command("doctor", _doctor, "look for what stands in the way of computing, and say what to do about it")
    for made in (plan, run, compute, status, publish):
        may = {"nargs": "?"} if made is status else {}
        text = "YAML file of a study, or its name" + "; all studies by default" * (made is status)
        study = made.add_argument("study", help=text, **may)
        study.complete = _STUDY_FILES  # type: ignore[attr-defined]
    for made in (plan, run, compute, publish):
        text = "set a field in place of the study's, as find.lr=0.1,0.3; may be repeated"
        made.add_argument("--set", action="append", default=[], dest="sets", metavar="FIELD=VALUE[,VALUE]", help=text)
    for made in (plan, run, compute, status, publish, doctor):
        folder = made.add_argument("--runs", default="runs", metavar="FOLDER", help="the store (default: runs)")
        folder.complete = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}  # type: ignore[attr-defined]
    for made in (plan, run, compute):
        made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    for made in (run, compute):
        text = "stop in time with everything saved, as 30s, 9min or 2h"
        made.add_argument("--for", type=_seconds, dest="limit", metavar="TIME", help=text)
    compute.add_argument("--only", metavar="NAME", help="only this configuration or stage")
    text = "only this configuration or report; may be repeated"
    run.add_argument("--only", action="append", default=[], metavar="NAME", help=text)
    run.add_argument("--slots", type=_count, metavar="N", help="notebooks at a time (default: 1; of a cluster: all)")
    run.add_argument("--cores", type=_count, metavar="N", help="cores of a slot (default: those here, shared by slots)")
    run.add_argument("--cluster", type=_address, metavar="tcp://…", help="address of a running Dask scheduler")
    run.add_argument("--cell-timeout", type=_seconds, metavar="TIME", help="most time of a cell (default: none)")
    text = "try a notebook once more that gave no sign of life for so long (default: 1h)"
    run.add_argument("--stall-after", type=_seconds, default=3600.0, metavar="TIME", help=text)
    run.add_argument("--notebooks", default="notebooks", metavar="FOLDER", help="their folder (default: notebooks)")
    publish.add_argument("--to", metavar="FOLDER", help="folder of the pages (default: reports/NAME OF THE STUDY)")
    for made in (plan, run, compute, publish, doctor):
        made.add_argument("--json", action="store_true", help="print JSON")
    forms = status.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print JSON")
    forms.add_argument("--watch", action="store_true", help="show a study until all is done, or until Ctrl-C")
    completion = command("completion", _completion, "print the completion of a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser


def _seconds(text: str) -> float:
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


def _read(options: argparse.Namespace) -> spec.Config:
    """Read the study that is asked for; what the command line sets is shown as YAML."""
    config = spec.read(studies.find(options.study), options.sets)
    if config.sets:
        print(trees.as_yaml(config.sets), end="", file=sys.stderr)
    return config


# --- commands -------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    from lthlab import jobs, stages

    config, store = _read(options), Store(options.runs)
    shared = 1 if options.cluster else max(1, cores() // (options.slots or 1))
    settings = stages.Settings(
        notebooks=Path(options.notebooks),
        device=options.device,
        slots=options.slots,
        cluster=options.cluster,
        cores=options.cores or shared,
        deadline=None if options.limit is None else options.began + options.limit,
        cell_timeout_s=options.cell_timeout,
        stall_after_s=options.stall_after,
        only=tuple(options.only),
    )
    ran = stages.run(config, store, settings)
    groups = jobs.group_failures(ran.outcomes, lambda name: _again(options, name))
    counts = {name: sum(outcome.status == name for outcome in ran.outcomes) for name in ("done", "skipped", "stopped")}
    counts |= {"failed": len(ran.failed), "before": len(ran.finished)}
    left = _left(config, store) if ran.stopped else None
    seconds = time.monotonic() - options.began
    if options.json:
        facts: dict[str, Any] = {"study": config.name, "counts": counts, "values": ran.values, "stopped": ran.stopped}
        facts |= {"notebooks": [_plain(outcome) for outcome in ran.outcomes], "before": ran.finished, "left": left}
        facts["failures"] = [
            {"cause": group.cause, "notebooks": [outcome.name for outcome in group.outcomes], "again": group.commands}
            for group in groups
        ]
        _print_json(facts | {"seconds": seconds})
    else:
        words = [f"{counts[name]} {name}" for name in ("failed", "skipped", "stopped") if counts[name]]
        words = [f"{counts['done']} notebooks executed", f"{counts['before']} done before", *words]
        print(f"{config.name}: {', '.join(words)}, in {clock(seconds)}")
        for group in groups:
            print(group)
        _print_odd(ran.values, options.study)
        _print_left(ran.stopped, left)
    if ran.stopped.startswith("SIG"):
        return 128 + signal.Signals[ran.stopped]
    return 1 if ran.failed or ran.values["stale"] or ran.values["failed"] else 0


def _again(options: argparse.Namespace, name: str) -> str:
    """The command that executes one notebook again."""
    words = ["lthlab", "run", options.study, "--only", name]
    for text in options.sets:
        words += ["--set", text]
    for field, usual in (("runs", "runs"), ("notebooks", "notebooks"), ("device", "auto"), ("cluster", None)):
        if getattr(options, field) != usual:
            words += [f"--{field}", getattr(options, field)]
    return shlex.join(words)


def _compute(options: argparse.Namespace) -> int:
    config = _read(options)
    # It counts only if it is set before torch is imported.
    for name, value in SPIN.items():
        os.environ.setdefault(name, value)
    from lthlab import lab
    from lthlab.progress import Bar, stopping

    store = Store(options.runs)
    limit = None if options.limit is None else options.began + options.limit - time.monotonic()
    with stopping(limit) as wish:
        try:
            summary = lab.compute_study(
                config, store, options.device, watcher=Bar(wish), configuration=options.only
            )
        except lab.Stopped as stop:
            summary = stop.summary
    left = _left(config, store) if wish.reason else None
    lists = ("diverged", "failed", "blocked", "stale")
    facts = vars(summary) | {name: [value.key for value in getattr(summary, name)] for name in lists}
    if options.json:
        _print_json({"study": config.name, **facts, "stopped": wish.reason or "", "left": left})
    else:
        print(
            f"{config.name}: {summary.trainings} trainings, {summary.trained} of them now, "
            f"{summary.shared} more shared, in {summary.seconds:.1f} s"
        )
        _print_odd({name: len(facts[name]) for name in lists}, options.study)
        _print_left(wish.reason, left)
    ...
