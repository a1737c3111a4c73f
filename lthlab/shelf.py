"""What `lthlab data`, `lthlab ticket` and `lthlab results` do and say."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lthlab import catalog, install
from lthlab.datasets import DataFacts, data_home
from lthlab.store import Store

Result = tuple[dict[str, Any], int]
"""What is printed as JSON, and the exit code."""


def _list(options: argparse.Namespace) -> Result:
    rows = catalog.listed()
    if not options.json:
        print(f"data home: {data_home()}")
        print(f"{'':15}    images classes       shape   decoded  installed  {'fingerprint':32}  terms")
        for row in rows:
            facts = f"{'':41}"
            if row["shape"] is not None:
                shape = "×".join(map(str, row["shape"]))
                images = f"{row['train'] + row['test']:10,} {row['classes']:7,}"
                facts = f"{images} {shape:>11} {row['bytes'] / 1e6:7,.0f} MB"
            print(
                f"{row['name']:15}{facts}  {row['installed']:10} {row['fingerprint'] or '':32}  {row['terms']}".rstrip()
            )
    return {"home": str(data_home()), "sets": rows}, 0


def _fetch(options: argparse.Namespace) -> Result:
    if catalog.is_installed(options.name) and not catalog.missing([options.name]):
        if not options.json:
            print(f"{options.name} is installed already; `lthlab data verify {options.name}` checks it")
        return {"name": options.name, "installed": "before"}, 0
    return _installed(options, install.fetch(options.name, _quiet if options.json else print))


def _import(options: argparse.Namespace) -> Result:
    return _installed(options, install.import_set(options.name, Path(options.folder), options.size))


def _installed(options: argparse.Namespace, facts: DataFacts) -> Result:
    if not options.json:
        print(
            f"{options.name}: {facts.train:,} training and {facts.test:,} test images of {facts.classes} classes, "
            f"fingerprint {facts.fingerprint}, installed in {data_home()}"
        )
    return {"name": options.name, "facts": dataclasses.asdict(facts)}, 0


def _verify(options: argparse.Namespace) -> Result:
    wrong = install.verify(options.name)
    if not options.json:
        print("\n".join(wrong) if wrong else f"{options.name}: what is installed is whole")
    return {"name": options.name, "wrong": wrong}, 1 if wrong else 0


def _export(options: argparse.Namespace) -> Result:
    from lthlab import portable

    path, ticket = Path(options.file), portable.ticket(options.key, Store(options.runs))
    written = portable.write(path, ticket)
    if not options.json:
        print(f"{path}{'' if written else ' is there already'}: {ticket.facts}")
    return {"file": str(path), "written": written, "facts": ticket.facts.model_dump(mode="json")}, 0


def _take(options: argparse.Namespace) -> Result:
    from lthlab import portable

    ticket, copy = portable.take(Path(options.file), Store(options.runs))
    if not options.json:
        print(f"{options.file} is whole: {ticket.facts}\ncopied to {copy}, which `lthlab.portable.read` reads")
    return {"file": options.file, "copy": str(copy), "facts": ticket.facts.model_dump(mode="json")}, 0


def _carry(options: argparse.Namespace) -> Result:
    from lthlab import compact

    store, folder = Store(options.runs), Path(options.folder)
    written = options.action == "export"
    done = compact.export(options.study, store, folder) if written else compact.take(folder, store)
    if not options.json:
        states = f", {done.states} states that later parts start from" if done.states else ""
        groups = f", {done.checkpoints} groups in training" if done.checkpoints else ""
        where = f"written to {folder}" if written else f"put into {store.root}"
        words = f"{done.values} values, {done.parts} parts{states}{groups}"
        print(f"{done.study}: {words}, {where} ({done.bytes / 1e6:.2f} MB)")
    return dataclasses.asdict(done), 0


def _quiet(text: str) -> None:
    pass


ACTIONS: Mapping[str, Callable[[argparse.Namespace], Result]] = {
    "data list": _list,
    "data fetch": _fetch,
    "data import": _import,
    "data verify": _verify,
    "ticket export": _export,
    "ticket import": _take,
    "results export": _carry,
    "results import": _carry,
}
"""What each action does."""
