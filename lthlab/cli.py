"""The command line: parse, forward, and say what came of it."""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from lthlab import spec, studies, tickets, trees
from lthlab.arguments import PREAMBLE, STALL_S, parser, part
from lthlab.errors import InputError, nearest
from lthlab.jobs import Outcome, clock, group_failures
from lthlab.kernels import GRACE_S, SPIN, cores
from lthlab.parts import Data, Net
from lthlab.store import Damaged, Store

SCHEMA = 1
SIGNALS = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}
CLOSING_S = 1.5
"""Cells are interrupted so many seconds before the time of `--for` is up."""
SILENT_S = 300.0
"""After so many seconds without a sign of life, which comes about every second, a training seems to hang."""


class _Terminated(BaseException):
    """SIGTERM, where nothing else takes it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        0, also if the time of `--for` was up; 1 if notebooks failed, results came out stale or failed, or `doctor`
        found a problem; 2 for bad input; 130 after Ctrl-C, 143 after SIGTERM and 141 if nobody reads the output. A
        training that diverged is a result.
    """
    options = parser(RUNS).parse(arguments)
    options.began = time.monotonic()

    def end(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # signals belong to the main thread
        before = None
    try:
        studies.import_modules(getattr(options, "modules", ()))
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # nobody reads any more; what is left must not be written at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (InputError, OSError, Damaged) as error:
        print(_in_words(error), file=sys.stderr)
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


def _read(options: argparse.Namespace) -> spec.Config:
    """Read the study that is asked for; what the command line sets is shown as YAML."""
    config = spec.read(studies.find(options.study), options.sets, options.mini)
    _show_sets(config.sets)
    return config


def _show_sets(sets: Sequence[str]) -> None:
    if sets:
        print(trees.as_yaml(sets), end="", file=sys.stderr)


# --- commands -------------------------------------------------------------------------------------------------


def _plan(options: argparse.Namespace) -> int:
    from lthlab import bills, stages

    notebooks = Path(options.notebooks)
    if options.notebooks != "notebooks" and not notebooks.is_dir():
        raise InputError(f"--notebooks {notebooks}: no such folder")
    settings = stages.Settings(notebooks=notebooks, device=options.device, slots=options.slots)
    store, wrong = Store(options.runs), []
    found: dict[str, bills.Bill] = {}
    for study in dict.fromkeys(options.studies):
        try:
            config = spec.read(studies.find(study), options.sets, options.mini)
            if config.name in found:
                raise InputError(f"{study}: a study '{config.name}' is asked for already; allowed: one of each name")
            found[config.name] = bills.bill(config, store, settings)
        except InputError as error:
            wrong.append(str(error))
    if wrong and not found:
        raise InputError("\n".join(wrong))
    _show_sets(options.sets)
    asked = list(found.values())
    if len(asked) == 1:
        facts, lines = asked[0].facts(), bills.of_one(asked[0])
    else:
        whole = bills.together(asked, store, settings)
        facts = {"studies": [each.facts() for each in asked], "together": whole.facts()}
        lines = bills.of_several(asked, whole)
    if options.json:
        _print_json(facts)
    else:
        print("\n".join(lines))
    for text in wrong:
        print(text, file=sys.stderr)
    if wrong:
        print(f"left out: {len(wrong)} of {len(wrong) + len(asked)} studies, for these reasons", file=sys.stderr)
    return 2 if wrong else 0


def _left(config: spec.Config, options: argparse.Namespace) -> dict[str, Any]:
    """What is left of a study that was stopped, with its notebooks if they are to be executed."""
    from lthlab import estimates, stages

    if hasattr(options, "notebooks"):
        settings = stages.Settings(notebooks=Path(options.notebooks), device=options.device, slots=options.slots)
        work = stages.ahead(config, tickets.expand(config), Store(options.runs), settings).whole
    else:
        work = estimates.forecast(config, Store(options.runs), options.device).whole
    return {"trainings": work.left, "epochs": work.epochs, "hours": work.hours, "guessed": work.guessed}


def _print_left(reason: str, left: dict[str, Any] | None) -> None:
    from lthlab import bills

    if left is not None:
        about = f"about {bills.duration(left['hours'])}{' (guessed)' * left['guessed']}"
        words = f"{left['trainings']:,} trainings, {left['epochs']:,} epochs, {about} left"
        print(f"stopped ({reason}): {words}; the same command goes on from here")


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
    slots = options.slots or 1
    shared = 1 if options.cluster else max(1, cores() // slots)
    if not options.cluster and slots * (options.cores or shared) > cores():
        asked = f"{slots} of {options.cores or shared} cores each"
        raise InputError(f"--slots and --cores: {asked}; allowed: {cores()} cores in all, as many as there are here")
    settings = stages.Settings(
        notebooks=Path(options.notebooks),
        device=options.device,
        deterministic=options.deterministic,
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
        facts["rest"] = ran.rest
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
        _print_odd(ran.values, _command(options, "status", ()))
        _print_left(ran.stopped, left)
        if counts["done"] and not ran.failed:
            print(f"executed notebooks: {os.path.relpath(stages.folder(config.name, store))}")
        if ran.rest:
            names = ", ".join(ran.rest[:3]) + ", …" * (len(ran.rest) > 3)
            whole = _command(options, "run", config.sets)
            print(f"left of the study: {len(ran.rest)} notebooks ({names}); to execute them: {whole}")
        elif config.reports and len(ran.outcomes) == counts["done"]:
            print(f"pages of the reports: {_command(options, 'publish', config.sets)}")
    if ran.stopped in SIGNALS:
        return 128 + SIGNALS[ran.stopped]
    wrong = ran.failed or ran.values["stale"] or ran.values["failed"]
    return 1 if wrong or (not ran.stopped and len(ran.outcomes) > counts["done"]) else 0


def _command(options: argparse.Namespace, verb: str, sets: Sequence[str], *more: str) -> str:
    """The command that executes or publishes notebooks of a study, with other options as they are."""
    words = ["lthlab", verb, options.study, *(["--mini"] if options.mini else []), *more]
    for option, texts in (("--with", options.modules), ("--set", sets)):
        words += [word for text in texts for word in (option, text)]
    own: dict[str, tuple[tuple[str, object], ...]] = {
        "run": (
            ("notebooks", "notebooks"), ("device", "auto"), ("deterministic", False), ("cluster", None),
            ("slots", None), ("cores", None), ("cell_timeout", None), ("stall_after", STALL_S),
        ),
        "publish": (("to", None),),
    }  # fmt: skip
    for field, usual in (("runs", "runs"), *own.get(verb, ())):
        given = getattr(options, field, usual)
        if given != usual:
            words += [f"--{field.replace('_', '-')}"]
            words += [] if given is True else [f"{given:g}s" if isinstance(given, float) else str(given)]
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
            summary = lab.compute_study(
                config,
                store,
                options.device,
                watcher=Bar(wish),
                configuration=options.only,
                deterministic=options.deterministic or None,
            )
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
        _print_odd({name: len(facts[name]) for name in lists}, _command(options, "status", ()))
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
    if options.study is None and options.mini:
        raise InputError("--mini needs a study")
    configs = {name: None for name in store.studies()} if options.study is None else _asked(options, store)
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


def _asked(options: argparse.Namespace, store: Store) -> dict[str, spec.Config | None]:
    """The study that is asked for by name or file, as its file says now, with the settings that it was run with."""
    config = name = None
    study, mini = options.study, options.mini
    try:
        config = spec.read(studies.find(study), mini=mini)
        name = config.name
        if name in store.studies():
            config = spec.read(studies.find(study), store.study(name)["sets"], mini)
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
        name, *mini = spec.words(study["study"])
        file = name if options.study in (None, study["study"]) else options.study
        named = argparse.Namespace(**vars(options) | {"study": file, "mini": bool(mini)})
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


def _compare(options: argparse.Namespace) -> int:
    from lthlab import ledgers

    config = _read(options)
    numbers, told = ledgers.of(Store(options.runs), config)
    if options.json:
        _print_json({"study": config.name, "numbers": ledgers.plain(numbers), "claims": ledgers.plain(told)})
    else:
        print(ledgers.text(config.name, numbers, told, options.all))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from lthlab import doctor

    if options.net is not None:
        return _network(options)
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


def _shelf(options: argparse.Namespace) -> int:
    from lthlab import shelf

    facts, code = shelf.ACTIONS[f"{options.command} {options.action}"](options)
    if options.json:
        _print_json(facts)
    return code


def _network(options: argparse.Namespace) -> int:
    from lthlab import doctor

    net, data = part(Net, options.net, "--net"), part(Data, options.data, "--data")
    layers = doctor.network(net, data, options.prunable)
    parameters, prunable = (sum(getattr(layer, name) for layer in layers) for name in ("parameters", "prunable"))
    if options.json:
        facts = {"net": net.form(), "data": data.name, "policy": options.prunable, "layers": [vars(x) for x in layers]}
        _print_json(facts | {"parameters": parameters, "prunable": prunable})
        return 0
    rows = [("layer", "role", "shape", "parameters", "prunable")]
    rows += [
        (layer.name, layer.role, "×".join(map(str, layer.shape)), f"{layer.parameters:,}", f"{layer.prunable:,}")
        for layer in layers
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = (text.ljust(width) for text, width in zip(row[:3], widths[:3], strict=True))
        print(*left, *(text.rjust(width) for text, width in zip(row[3:], widths[3:], strict=True)), sep="  ")
    share = f"{100 * prunable / parameters:.3g} %"
    print(f"{parameters:,} parameters; policy '{options.prunable}' lets {prunable:,} of them be pruned, {share}")
    return 0


def _completion(options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(parser(RUNS), shell=options.shell, preamble=PREAMBLE.get(options.shell, "")))
    return 0


def _in_words(error: Exception) -> str:
    """What an error says, without the number that the operating system gives it."""
    if isinstance(error, OSError) and error.strerror and str(error).startswith("[Errno"):
        return ": ".join(str(text) for text in (error.filename, error.strerror.lower()) if text is not None)
    return str(error)


# --- what is printed ------------------------------------------------------------------------------------------


def _plain(outcome: Outcome) -> dict[str, Any]:
    facts = vars(outcome)
    return facts | {name: None if facts[name] is None else str(facts[name]) for name in ("log", "output")}


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps({"schema": SCHEMA, **content}, indent=1))


def _print_odd(counts: Mapping[str, int], command: str) -> None:
    for name in ("diverged", "failed", "blocked", "stale"):
        if counts[name]:
            print(f"{name}: {counts[name]}; `{command}` lists them")


RUNS: dict[str, Callable[[argparse.Namespace], int]] = {
    "plan": _plan,
    "run": _run,
    "compute": _compute,
    "status": _status,
    "publish": _publish,
    "compare": _compare,
    "data": _shelf,
    "ticket": _shelf,
    "results": _shelf,
    "doctor": _doctor,
    "completion": _completion,
}
"""What each command does."""
