"""The command line: parse and forward."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import lthlab
from lthlab import spec
from lthlab.parts import InputError, nearest
from lthlab.store import Damaged, Store, StoreError

SCHEMA = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        0; 1 if results came out stale; 2 for bad input; 130 after Ctrl-C. A training that diverged is a result.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except (InputError, StoreError, Damaged) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lthlab", description="A laboratory for the lottery ticket hypothesis.")
    parser.add_argument("--version", action="version", version=f"lthlab {lthlab.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("compute", _compute, "compute all values of a study, without notebooks"),
        ("status", _status, "say what is done, missing, diverged or stale"),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.set_defaults(run=run)
        command.add_argument(
            "study",
            nargs="?" if name == "status" else None,
            help="a study's YAML file" + (" or name; all studies by default" if name == "status" else ""),
        )
        command.add_argument("--runs", default="runs", metavar="FOLDER", help="the store (default: runs)")
        command.add_argument("--json", action="store_true", help="print JSON")
        if name == "compute":
            command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    return parser


def _compute(options: argparse.Namespace) -> int:
    config = spec.read(options.study)
    # Threads that wait for each other at full speed starve one another where other programs run too. A short spin
    # costs nothing where they do not. It counts only if it is set before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from lthlab import lab
    from lthlab.progress import Bar

    summary = lab.compute_study(config, Store(options.runs), options.device, watcher=Bar())
    facts = vars(summary) | {
        name: [value.key for value in getattr(summary, name)] for name in ("diverged", "failed", "blocked", "stale")
    }
    if options.json:
        _print_json({"study": config.name, **facts})
    else:
        print(
            f"{config.name}: {summary.trainings} trainings, {summary.trained} of them now, "
            f"{summary.shared} more shared, in {summary.seconds:.1f} s"
        )
        for name in ("diverged", "failed", "blocked", "stale"):
            if facts[name]:
                print(f"{name}: {len(facts[name])}; `lthlab status {options.study}` lists them")
    return 1 if summary.stale else 0


def _status(options: argparse.Namespace) -> int:
    from lthlab import results

    store = Store(options.runs)
    names = store.studies()
    if options.study is not None:
        names = [_name(options.study, names, store)]
    studies: list[dict[str, Any]] = []
    for name in names:
        frame = results.load(store, name)
        odd = frame[frame["status"].isin(["failed", "diverged", "blocked", "stale"])]
        columns = ["what", "ticket", "method", "level", "replicate", "find_lr", "eval_lr", "status", "note", "key"]
        listed = json.loads(odd[columns].to_json(orient="records"))
        studies.append({"study": name, "counts": results.count_statuses(frame), "listed": listed})
    running = [json.loads(lines[-1]) for lines in store.progress().values() if lines]
    if options.json:
        _print_json({"studies": studies, "running": running})
        return 0
    for study in studies:
        print(f"{study['study']}: " + ", ".join(f"{n} {status}" for status, n in study["counts"].items() if n))
        for row in study["listed"]:
            role = [f"{name} {row[name]}" for name in ("level", "replicate", "eval_lr") if row[name] is not None]
            words = [row["ticket"], row["method"] or "", *role]
            print(f"  {row['status']}: {row['what']} {' '.join(filter(None, words))}: {row['note']} ({row['key']})")
    for group in running:
        print(f"in training: {len(group['runs'])} replicas, step {group['iteration']} of {group['end']}")
    if not studies:
        print(f"no studies in {options.runs}")
    return 0


def _name(study: str, names: list[str], store: Store) -> str:
    name = spec.read(study).name if study.endswith((".yaml", ".yml")) else study
    if name not in names:
        raise InputError(f"study '{name}' is not in {store.root}; {nearest(name, names)}")
    return name


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps({"schema": SCHEMA, **content}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
