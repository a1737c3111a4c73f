"""docs/capabilities.md: every row names tests that exist, run everywhere and stand for few rows."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "capabilities.md").read_text(encoding="utf-8")
NUMBERS = {
    "D": range(1, 11), "M": range(1, 11), "T": range(1, 9), "P": range(1, 11), "K": range(1, 10), "B": range(1, 6),
    "H": range(1, 5), "A": range(1, 13), "V": range(1, 7), "X": range(1, 5), "R": range(1, 6),
}  # fmt: skip
ROWS = [f"{letter}{number}" for letter, numbers in NUMBERS.items() for number in numbers]
SHOWN = {*(name for name in ROWS if name[0] in "PKBHAVX"), "M9", "T8"}
"""Rows that name the notebook that shows them."""
MOST = 3
"""Rows that one test may stand for."""
_LEFT_OUT = re.compile(r"\b(skip|skipif|skipunless|xfail|importorskip|gpu)\b", re.IGNORECASE)


def rows(page: str) -> dict[str, list[str]]:
    """Tests of each row, in the order of the page."""
    found: dict[str, list[str]] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"[A-Z]\d+", cells[0]):
            assert cells[0] not in found, f"row {cells[0]} stands twice"
            found[cells[0]] = re.findall(r"`(tests/\w+\.py::\w+)`", cells[2])
    return found


@cache
def functions(path: Path) -> dict[str, str]:
    """Source of every test function of a file, with its decorators and what marks the whole file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    marks = [
        node for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node.targets[0])
    ]
    whole = "\n".join(ast.unparse(node) for node in marks)
    tests = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
    return {node.name: f"{whole}\n{ast.unparse(node)}" for node in tests}


def notebooks(page: str) -> dict[str, list[str]]:
    """Notebooks of each row."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    return {cells[0]: re.findall(r"`(notebooks/\w+\.ipynb)`", cells[-1]) for cells in lines}


def problems(page: str) -> list[str]:
    """What the page must not say."""
    told, shown = rows(page), notebooks(page)
    found = [f"{name} is missing" for name in ROWS if name not in told]
    found += [f"{name} names no test" for name, tests in told.items() if not tests]
    for name, tests in told.items():
        for test in tests:
            file, _, function = test.partition("::")
            source = functions(ROOT / file).get(function) if (ROOT / file).exists() else None
            if source is None:
                found.append(f"{name}: {test} does not exist")
            elif _LEFT_OUT.search(source):
                found.append(f"{name}: {test} may be left out")
    found += [f"{name} names no notebook" for name in told if name in SHOWN and not shown[name]]
    found += [
        f"{name}: {book} does not exist"
        for name, books in shown.items()
        for book in books
        if not (ROOT / book).exists()
    ]
    counts = Counter(test for tests in told.values() for test in set(tests))
    return found + [f"{test} stands for {count} rows" for test, count in counts.items() if count > MOST]


def test_every_row_names_tests_that_exist_and_run():
    assert problems(PAGE) == []


@pytest.mark.parametrize(
    "row, problem",
    [
        ("| Z1 | x | `tests/test_none.py::test_x` |", "Z1: tests/test_none.py::test_x does not exist"),
        ("| Z1 | x | `tests/test_capabilities.py::test_x` |", "Z1: tests/test_capabilities.py::test_x does not exist"),
        ("| Z1 | x | nothing |", "Z1 names no test"),
        (
            "| Z1 | x | `tests/test_draws.py::{first}` | `notebooks/none.ipynb` |",
            "Z1: notebooks/none.ipynb does not exist",
        ),
        (
            "| Z1 | x | `tests/test_devices.py::test_a_group_that_does_not_fit_into_a_gpu_is_halved` |",
            "Z1: tests/test_devices.py::test_a_group_that_does_not_fit_into_a_gpu_is_halved may be left out",
        ),
        (
            "\n".join(f"| Z{n} | x | `tests/test_draws.py::{{first}}` |" for n in range(4)),
            "tests/test_draws.py::{first} stands for 4 rows",
        ),
    ],
)
def test_what_is_wrong_with_the_page_is_found(row, problem):
    first = next(iter(functions(ROOT / "tests" / "test_draws.py")))
    assert problem.format(first=first) in problems(f"{PAGE}\n{row.format(first=first)}\n")


def test_a_row_without_its_notebook_is_found():
    assert "K9 names no notebook" in problems(re.sub(r"(?m)^(\| K9 .*)\| `notebooks.*$", r"\1|", PAGE))


def test_a_row_that_is_missing_is_found():
    assert "D1 is missing" in problems(re.sub(r"(?m)^\| D1 .*$", "", PAGE))
