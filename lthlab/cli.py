"""The command line: parse, forward, and say what came of it."""

import argparse
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lthlab
from lthlab import plan, spec, studies, tickets, trees
from lthlab.jobs import Outcome, clock, group_failures
from lthlab.kernels import GRACE_S, SPIN, cores
from lthlab.parts import InputError, nearest
from lthlab.store import Damaged, Store
from lthlab.values import ancestors

SCHEMA = 1
SIGNALS = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
CLOSING_S = 1.5
"""Cells are interrupted so many seconds before the time of `--for` is up."""
SILENT_S = 300.0
"""After so many seconds without a sign of life, which comes about every second, a training seems to hang."""

_STUDY_FILES = {"bash": "_lthlab_studies", "zsh": "_files -g '*.yaml'", "tcsh": "f:*.yaml"}
_PREAMBLE = {"bash": "_lthlab_studies() { compgen -d -S / -- $1; compgen -f -X '!*.yaml' -- $1; }"}
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
    except (InputError, OSError, Damaged) as error:
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

    ahead = command("plan", _plan, "say what a study takes: notebooks, trainings, epochs, hours, disk")
    run = command("run", _run, "execute the notebooks of a study, as far as they are not done")
    compute = command("compute", _compute, "compute the values of a study, without notebooks")
    status = command("status", _status, "say what is done, in training, missing, diverged or stale")
    publish = command("publish", _publish, "make pages of the executed reports of a study")
    doctor = command("doctor", _doctor, "look for what stands in the way of computing, and say what to do about it")
    for made in (ahead, run, compute, status, publish):
        may: dict[str, Any] = {"nargs": "?"} if made is status else {}
        text = "YAML file of a study, or its name" + "; all studies by default" * (made is status)
        study = made.add_argument("study", help=text, **may)
        study.complete = _STUDY_FILES  # type: ignore[attr-defined]
    for made in (ahead, run, compute, publish):
        text = "set a field in place of the study's, as find.lr=0.1,0.3; may be repeated"
        made.add_argument("--set", action="append", default=[], dest="sets", metavar="FIELD=VALUE[,VALUE]", help=text)
    for made in (ahead, run, compute, status, publish, doctor):
        folder = made.add_argument("--runs", default="runs", metavar="FOLDER", help="the store (default: runs)")
        folder.complete = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}  # type: ignore[attr-defined]
    for made in (ahead, run, compute):
        made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    for made in (run, compute):
        text = "stop in time with everything saved, as 30s, 9min or 2h"
        made.add_argument("--for", type=_seconds, dest="limit", metavar="TIME", help=text)
    compute.add_argument("--only", metavar="NAME", help="only this configuration or stage")
    text = "only this configuration, stage or report; may be repeated"
    run.add_argument("--only", action="append", default=[], metavar="NAME", help=text)
    run.add_argument("--slots", type=_count, metavar="N", help="notebooks at a time (default: 1; of a cluster: all)")
    ahead.add_argument("--slots", type=_count, default=1, metavar="N", help="notebooks at a time (default: 1)")
    run.add_argument("--cores", type=_count, metavar="N", help="cores of a slot (default: those here, shared by slots)")
    run.add_argument("--cluster", type=_address, metavar="tcp://…", help="address of a running Dask scheduler")
    run.add_argument("--cell-timeout", type=_seconds, metavar="TIME", help="most time of a cell (default: none)")
    text = "try a notebook once more that gave no sign of life for so long (default: 1h)"
    run.add_argument("--stall-after", type=_seconds, default=3600.0, metavar="TIME", help=text)
    run.add_argument("--notebooks", default="notebooks", metavar="FOLDER", help="their folder (default: notebooks)")
    publish.add_argument("--to", metavar="FOLDER", help="folder of the pages (default: reports/NAME OF THE STUDY)")
    for made in (ahead, run, compute, publish, doctor):
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


def _plan(options: argparse.Namespace) -> int:
    from lthlab import estimates, stages

    config = _read(options)
    labelled = tickets.expand(config)
    plan.refuse_unsupported(ancestors(item.value for item in labelled))
    forecast = estimates.forecast(labelled, Store(options.runs), options.device, options.slots)
    rows = stages.by_stage(config, labelled, forecast)
    whole = {"stage": "in all"} | {"notebooks": sum(row["notebooks"] for row in rows)} | vars(forecast.whole)
    if options.json:
        _print_json({"study": config.name, "notebooks": whole["notebooks"], **forecast.facts(), "stages": rows})
        return 0
    print(f"{config.name}, on {forecast.device}:")
    print(f"{'':17}notebooks trainings shared    done     epochs     time     disk")
    for row in [*rows, whole]:
        print(
            f"{row['stage']:17}{row['notebooks']:9,} {row['trainings']:9,} {row['shared']:6,} {row['done']:7,} "
            f"{row['epochs']:10,} {_time(row['hours']):>8} {_size(row['bytes']):>8}"
        )
    if forecast.whole.guessed:
        print("the time is partly guessed: some of these networks were not trained here yet")
    if forecast.whole.blocked:
        print(f"blocked: {forecast.whole.blocked} trainings, since what they need diverged, failed or is stale")
    return 0


def _left(config: spec.Config, options: argparse.Namespace) -> dict[str, Any]:
    """What is left of a study that was stopped."""
    from lthlab import estimates

    work = estimates.forecast(config, Store(options.runs), options.device).whole
    return {"trainings": work.left, "epochs": work.epochs, "hours": work.hours, "guessed": work.guessed}


def _print_left(reason: str, left: dict[str, Any] | None) -> None:
    if left is not None:
        about = f"about {_time(left['hours'])}{' (guessed)' * left['guessed']}"
        words = f"{left['trainings']:,} trainings, {left['epochs']:,} epochs, {about} left"
        print(f"stopped ({reason}): {words}; the same command goes on from here")


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _deadline(options: argparse.Namespace, store: Store, command: str) -> float | None:
    """When to stop, by `time.monotonic`, so that all has ended when the time of `--for` is up."""
    from lthlab import estimates

    return options.limit and options.began + options.limit - estimates.margin(store, command, options.limit)


def _note_stop(store: Store, command: str, reason: str | None, deadline: float | None) -> None:
    """Note how long it took to stop when the time was up."""
    from lthlab import estimates

    if reason == "time" and deadline is not None:
        estimates.note_stop(store, command, time.monotonic() - deadline)


def _run(options: argparse.Namespace) -> int:
    from lthlab import stages

    config, store = _read(options), Store(options.runs)
    deadline = _deadline(options, store, "run")
    grace = GRACE_S
    if deadline is not None:
        grace = min(grace, max(0.0, options.began + options.limit - deadline - CLOSING_S))
    shared = 1 if options.cluster else max(1, cores() // (options.slots or 1))
    settings = stages.Settings(
        notebooks=Path(options.notebooks),
        device=options.device,
        slots=options.slots,
        cluster=options.cluster,
        cores=options.cores or shared,
        deadline=deadline,
        cell_timeout_s=options.cell_timeout,
        stall_after_s=options.stall_after,
        only=tuple(options.only),
        grace_s=grace,
    )
    ran = stages.run(config, store, settings)
    groups = group_failures(ran.outcomes, lambda name: _command(options, "run", config.sets, "--only", name))
    counts = {name: sum(outcome.status == name for outcome in ran.outcomes) for name in ("done", "skipped", "stopped")}
    counts |= {"failed": len(ran.failed), "before": len(ran.finished)}
    left = _left(config, options) if ran.stopped else None
    _note_stop(store, "run", ran.stopped, deadline)
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
        words = [f"{counts['done']} notebook{'s' * (counts['done'] != 1)} executed", f"{counts['before']} done before"]
        words += [f"{counts[name]} {name}" for name in ("failed", "skipped", "stopped") if counts[name]]
        print(f"{config.name}: {', '.join(words)}, in {clock(seconds)}")
        for group in groups:
            print(group)
        _print_odd(ran.values, options.study)
        _print_left(ran.stopped, left)
    if ran.stopped in SIGNALS:
        return 128 + SIGNALS[ran.stopped]
    wrong = ran.failed or ran.values["stale"] or ran.values["failed"]
    return 1 if wrong or (not ran.stopped and len(ran.outcomes) > counts["done"]) else 0


def _command(options: argparse.Namespace, verb: str, sets: Sequence[str], *more: str) -> str:
    """The command that executes or publishes notebooks of a study, with other options as they are."""
    words = ["lthlab", verb, options.study, *more]
    for text in sets:
        words += ["--set", text]
    own = {"run": (("notebooks", "notebooks"), ("device", "auto"), ("cluster", None)), "publish": (("to", None),)}
    for field, usual in (("runs", "runs"), *own.get(verb, ())):
        if getattr(options, field, usual) != usual:
            words += [f"--{field}", getattr(options, field)]
    return shlex.join(words)


def _compute(options: argparse.Namespace) -> int:
    config = _read(options)
    os.environ |= {name: value for name, value in SPIN.items() if name not in os.environ}
    from lthlab import lab
    from lthlab.progress import Bar, stopping

    store = Store(options.runs)
    deadline = _deadline(options, store, "compute")
    with stopping(None if deadline is None else deadline - time.monotonic()) as wish:
        try:
            summary = lab.compute_study(config, store, options.device, watcher=Bar(wish), configuration=options.only)
        except lab.Stopped as stop:
            summary = stop.summary
    left = _left(config, options) if wish.reason else None
    _note_stop(store, "compute", wish.reason, deadline)
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
        _print_left(wish.reason or "", left)
    if wish.reason in SIGNALS:
        return 128 + SIGNALS[wish.reason]
    return 1 if summary.stale or summary.failed else 0


def _status(options: argparse.Namespace) -> int:
    from lthlab import stages
    from lthlab.runs import in_training

    store = Store(options.runs)
    if options.runs != "runs" and not store.root.is_dir():
        raise InputError(f"--runs {options.runs}: there is no store")
    configs = {name: None for name in store.studies()} if options.study is None else _asked(options.study, store)
    if options.watch:
        return _watch([name for name in configs if name in store.studies()], store)
    found = [stages.standing(name, store, config) for name, config in configs.items()]
    running = [vars(group) for group in in_training(store)]
    if options.json:
        _print_json({"studies": found, "running": running})
        return 0
    for study in found:
        _print_standing(study, options)
    for group in running:
        text = f"in training: {len(group['runs'])} replicas, epoch {group['epoch']} of {group['epochs']}"
        silent = f"; no sign of life for {clock(group['silent'])}, process {group['pid']} may hang"
        print(text + silent * (group["silent"] > SILENT_S))
    if not found:
        print(f"no studies in {options.runs}")
    return 0


def _asked(study: str, store: Store) -> dict[str, spec.Config | None]:
    """The study that is asked for by name or file, as its file says now, with the settings that it was run with."""
    config = name = None
    try:
        config = spec.read(studies.find(study))
        name = config.name
        if name in store.studies():
            config = spec.read(studies.find(study), store.study(name)["sets"])
    except InputError as error:
        if study not in store.studies():
            if study.endswith((".yaml", ".yml")) or not store.studies():
                raise
            inside = f"study '{study}' is not in {store.root}; {nearest(study, store.studies())}"
            raise InputError(f"{error}\n{inside}") from error
    return {name or study: config}


def _print_standing(study: Mapping[str, Any], options: argparse.Namespace) -> None:
    never = "; never run" * study["never_run"]
    print(f"{study['study']}: " + ", ".join(f"{n} {status}" for status, n in study["counts"].items() if n) + never)
    for row in study["listed"]:
        role = [f"{name} {row[name]}" for name in ("level", "replicate", "eval_lr") if row[name] is not None]
        words = [row["ticket"], row["method"] or "", *role]
        print(f"  {row['status']}: {row['what']} {' '.join(filter(None, words))}: {row['note']} ({row['key']})")
    if study["more"] or study["fewer"]:
        print(
            f"  the study has changed since: {study['more']} values more, {study['fewer']} fewer; `lthlab run` notes it"
        )
    for each in study["failed"]:
        named = argparse.Namespace(**vars(options) | {"study": options.study or study["study"]})
        again = _command(named, "run", each["sets"], "--only", each["name"])
        cell = f" in cell {each['cell']}" if each["cell"] else ""
        print(f"  failed notebook: {each['name']}{cell}: {each['error']}; again: {again}")
    for name in study["at_work"]:
        print(f"  at work: {name}")


def _watch(names: Sequence[str], store: Store) -> int:
    from lthlab import stages, watch

    if len(names) != 1:
        raise InputError(f"--watch needs one study; {nearest('', names)}")
    try:
        watch.follow(watch.Board(names[0], store), stages.folder(names[0], store), sys.stdout)
    except KeyboardInterrupt:
        return 130
    return 0


def _publish(options: argparse.Namespace) -> int:
    from lthlab import pages, stages

    config, store = _read(options), Store(options.runs)
    folder = Path(options.to or f"reports/{config.name}")
    try:
        made = pages.publish_study(config, stages.folder(config.name, store), folder, partial(_command, options))
    except pages.PageError as error:
        raise InputError(str(error)) from error
    if options.json:
        _print_json({"study": config.name, "pages": [str(path) for path in made]})
    else:
        print(f"{config.name}: {len(made) - 1} pages and their index, {made[-1]}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from lthlab import doctor

    found = []
    for finding in doctor.examine(Store(options.runs)):
        found.append(finding)
        if not options.json:
            print(f"{finding.state:8} {finding.what:23} {finding.text}", flush=True)
            if finding.remedy:
                print(f"{'':32} {finding.remedy}")
    if options.json:
        _print_json({"findings": [vars(finding) for finding in found]})
    return 1 if any(finding.state == "problem" for finding in found) else 0


def _completion(options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(_parser(), shell=options.shell, preamble=_PREAMBLE.get(options.shell, "")))
    return 0


# --- what is printed ------------------------------------------------------------------------------------------


def _plain(outcome: Outcome) -> dict[str, Any]:
    facts = vars(outcome)
    return facts | {name: None if facts[name] is None else str(facts[name]) for name in ("log", "output")}


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps({"schema": SCHEMA, **content}, indent=1))


def _print_odd(counts: Mapping[str, int], study: str) -> None:
    for name in ("diverged", "failed", "blocked", "stale"):
        if counts[name]:
            print(f"{name}: {counts[name]}; `lthlab status {shlex.quote(study)}` lists them")
