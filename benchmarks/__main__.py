"""Measure, keep the rows, and write docs/performance.md: `python -m benchmarks [NAME]`, or `make bench NAME=…`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import growth
from benchmarks.catalogue import choose
from benchmarks.page import page
from benchmarks.record import Row, read, write
from benchmarks.worker import Worker
from lthlab.errors import InputError
from lthlab.kernels import SPIN

ROOT = Path(__file__).resolve().parent.parent


class Report:
    """Rows and the page that shows them.

    Parameters
    ----------
    folder : Path, optional
        Where all files go; by default rows stay with the benchmarks, page and picture with the documentation.
    """

    def __init__(self, folder: Path | None) -> None:
        self.results = (folder or ROOT / "benchmarks") / "results.json"
        self.docs = folder or ROOT / "docs"
        self.rows = read(self.results)

    def add(self, found: Row) -> None:
        """Put a row in place of the one of its name."""
        self.rows[found["name"]] = found
        write(self.results, self.rows.values())
        value = "out of memory" if found["value"] is None else f"{found['value']} {found['unit']}"
        print(f"{found['name']}: {value}, n = {found['n']}, spread {found['spread']}", flush=True)

    def show(self) -> None:
        """Write page and picture."""
        self.docs.mkdir(parents=True, exist_ok=True)
        rows = read(self.results)
        if any(name.startswith("growth_") for name in rows):
            growth.draw(rows, self.docs / "growth.svg")
        (self.docs / "performance.md").write_text(page(rows), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 for a name that is not known, 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a benchmark, or how names of figures begin (default: all)"
    )
    parser.add_argument(
        "--take", type=Path, metavar="FILE", help="measure nothing; take rows from another machine's file"
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="write to another folder")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works; needs --to")
    options = parser.parse_args(arguments)
    if options.quick and options.to is None:
        parser.error("--quick: its figures say nothing and must not replace real ones; give --to FOLDER")
    report = Report(options.to)
    try:
        if options.take is not None:
            if not options.take.is_file():
                raise InputError(f"--take {options.take}: no such file")
            for found in read(options.take).values():
                report.add(found)
            report.show()
            return 0
        chosen = choose(options.name)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    failed = []
    for benchmark, names in chosen.items():
        try:
            with Worker("worker:rows", SPIN, benchmark=benchmark, chosen=names, quick=options.quick) as worker:
                while found := worker():
                    report.add(found)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failed.append(benchmark)
        finally:
            report.show()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
