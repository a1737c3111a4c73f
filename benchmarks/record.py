"""Rows of results: one per figure, made from repeated measurements, kept in one JSON file."""

import json
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lthlab import provenance

Row = dict[str, Any]
FIELDS = ("name", "value", "unit", "n", "spread", "machine", "date")
"""Fields of a row: `value` is the median of `n` measurements, `spread` has their 'min' and 'max'; a value of null says
that the memory did not suffice."""


def machine(threads: int, gpu: str | None = None) -> str:
    """Put this machine into words: processor or GPU, cores, version of torch and its number of threads."""
    facts = provenance.machine()
    cores = f"{facts['cores']} cores" if facts["cores"] != 1 else "1 core"
    computes = ([gpu] if gpu else []) + [str(facts["processor"]), cores]
    return ", ".join([*computes, f"torch {provenance.versions()['torch']}", f"{threads} thread{'s' * (threads != 1)}"])


def row(name: str, unit: str, measured: Sequence[float], place: str) -> Row:
    """Make the row of a figure.

    Parameters
    ----------
    name, unit : str
        As in the catalogue.
    measured : sequence of float
        Every single measurement; none if the memory did not suffice.
    place : str
        What `machine` says.
    """
    return {
        "name": name,
        "value": _short(statistics.median(measured)) if measured else None,
        "unit": unit,
        "n": len(measured),
        "spread": {"min": _short(min(measured)), "max": _short(max(measured))} if measured else None,
        "machine": place,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Divide measurements of the same rounds."""
    return [above / below for above, below in zip(numerator, denominator, strict=True)]


def read(path: Path) -> dict[str, Row]:
    """Read rows by name; a file that is not there has none.

    Raises
    ------
    ValueError
        If the file holds anything but rows.
    """
    if not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a {type(rows).__name__}; allowed: a list of rows")
    for number, found in enumerate(rows):
        if not isinstance(found, dict) or tuple(found) != FIELDS:
            raise ValueError(f"{path}: entry {number} has other fields than {', '.join(FIELDS)}")
    return {found["name"]: found for found in rows}


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows, one to a line, ordered by name; the file is replaced as a whole."""
    lines = [json.dumps(found, ensure_ascii=False) for found in sorted(rows, key=lambda found: found["name"])]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.aside")
    aside.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    os.replace(aside, path)


def _short(number: float) -> float:
    return float(f"{number:.4g}")
