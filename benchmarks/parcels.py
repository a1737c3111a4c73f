"""Real runs, one study after the other, in pieces as long as there is time, each ending as exported results.

Run as `python -m benchmarks.parcels --minutes 9`; started again, here or on another machine that has the exported
results, it goes on. It needs what `lthlab compute` needs, no notebooks, and the data sets installed. `--list` shows
what is left, cut into parcels of 20 minutes by measured speed, or by a guess where none was measured.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lthlab import results, spec
from lthlab.spec import Config
from lthlab.store import Store

SEEDS = "replicates=3"
STUDIES = (
    *((name, ()) for name in ("dense", "omp", "imp", "table4", "early", "lan", "landscape")),
    *((name, (SEEDS,)) for name in ("imp", "table4", "early", "lan")),
    ("halves", ()),
)
"""Names in params/real, behind cifar10_, with settings, in the order in which they are run: first with one seed."""
FOLDER, DATA = Path("params", "real"), Path("reports", "data")
PARCEL_S = 1200.0
_EXPORT_S = 15.0
"""What is left of the time for exporting."""
_LEAST_S = 20.0
"""With less time a study is not begun."""


def command(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run a command; returns its exit status and what it says as JSON."""
    words = [sys.executable, "-m", "lthlab", *arguments, "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    return done.returncode, json.loads(done.stdout)


def complete(config: Config, store: Store) -> bool:
    """Whether a store has all of a study, or knows that it cannot be had."""
    return config.name in store.studies() and "missing" not in set(results.load(store, config)["status"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute until all is done or the time is up; 1 if results failed or are stale."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parcels", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="stop in time for this (default: 9)")
    parser.add_argument("--device", default="auto", help="as of lthlab compute (default: auto)")
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="the store (default: runs)")
    parser.add_argument("--studies", type=Path, default=FOLDER, metavar="FOLDER", help=f"(default: {FOLDER})")
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER", help=f"exported results (default: {DATA})")
    parser.add_argument("--list", action="store_true", help="show what is left, and compute nothing")
    options = parser.parse_args(arguments)
    ends, store, wrong, parcels = time.monotonic() + 60 * options.minutes, ["--runs", options.runs], 0, 0
    found = [(f"cifar10_{name}", sets) for name, sets in STUDIES]
    found = [(name, sets) for name, sets in found if (options.studies / f"{name}.yaml").exists()]
    for name in dict.fromkeys(name for name, _ in found):
        if (options.data / name).is_dir():
            command("results", "import", str(options.data / name), *store)
    for name, sets in found:
        path = options.studies / f"{name}.yaml"
        said = " ".join((name, *sets))
        if complete(spec.read(path, sets), Store(options.runs)):
            print(f"{said}: done", flush=True)
            continue
        study = [
            str(path),
            *(word for setting in sets for word in ("--set", setting)),
            *store,
            "--device",
            options.device,
        ]
        _, ahead = command("plan", *study)
        seconds = 3600 * ahead["hours"]
        count = max(1, -(-int(seconds) // int(PARCEL_S)))
        spans = f"parcels {parcels + 1} to {parcels + count}"
        parcels += count
        print(f"{said}: {ahead['epochs']:,} epochs left, about {seconds:,.0f} s, {spans}", flush=True)
        left = ends - time.monotonic() - _EXPORT_S
        if options.list or left < _LEAST_S:
            continue
        began = time.monotonic()
        code, done = command("compute", *study, "--for", f"{left:.0f}s")
        seconds, rest = time.monotonic() - began, done["left"]["epochs"] if done["left"] else 0
        wrong |= code
        print(f"{said}: {ahead['epochs'] - rest:,} epochs in {seconds:,.0f} s, {rest:,} left", flush=True)
        _, written = command("results", "export", name, str(options.data / name), *store)
        print(f"{said}: exported, {written['bytes'] / 1e6:.2f} MB", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
