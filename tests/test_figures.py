"""docs/figures.md: every figure and table of the papers has a row, and what the rows name exists."""

import ast
import re
from pathlib import Path

import pytest

from lthlab import spec

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
PAPERS = {
    "Ma et al. 2021": [
        *(f"Fig. {n}" for n in range(1, 7)), "Fig. A.1", *(f"Fig. {part}.{n}" for part in "DF" for n in range(1, 15)),
        "Fig. G.1", *(f"Table {n}" for n in range(1, 5)), "Table E.1",
    ],
    "Lan et al.": [*(f"Fig. {n}" for n in range(1, 10)), *(f"Fig. A{n}" for n in range(1, 10))],
    "Morcos et al. 2019": [*(f"Fig. {n}" for n in range(1, 6)), "Fig. A1"],
    "The Sooner The Better": [*(f"Fig. {n}" for n in range(1, 7)), *(f"Table {n}" for n in range(1, 5))],
}  # fmt: skip
"""All figures and tables that text or captions at hand name."""
BEGINNINGS = {
    "Ma et al. 2021": "ma",
    "Lan et al.": "lan",
    "Morcos et al. 2019": "morcos",
    "The Sooner The Better": "sooner",
}


def rows(page):
    """Paper and cells of every row."""
    paper, found = "", []
    for line in page.splitlines():
        paper = line.removeprefix("## ") if line.startswith("## ") else paper
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0]:
            found.append((paper, cells))
    return found


def figures(text):
    """List what a row stands for: 'Figs. D.1 to D.3' for three."""
    several = re.fullmatch(r"Figs\. (\w+\.)(\d+) to \1(\d+)", text)
    if several is None:
        return [text]
    return [f"Fig. {several[1]}{n}" for n in range(int(several[2]), int(several[3]) + 1)]


def names(cell):
    return re.findall(r"`(\w+)`", cell)


def problems(page):
    told, found = rows(page), []
    for paper, expected in PAPERS.items():
        listed = [figure for name, cells in told if name == paper for figure in figures(cells[0])]
        found += [
            f"{paper}: {figure} stands {listed.count(figure)} times" for figure in expected if listed.count(figure) != 1
        ]
        found += [f"{paper} has no {figure}" for figure in listed if figure not in expected]
        beginning = BEGINNINGS[paper]
        studies = {study for name, cells in told if name == paper for study in names(cells[2])}
        there = {path.stem for path in (ROOT / "params").glob(f"{beginning}_*.yaml")}
        found += [f"{study} is in no row" for study in sorted(there - studies)]
        found += [f"params/{study}.yaml does not exist" for study in sorted(studies - there)]
    for _, (figure, _, studies, notebooks, page_cell, form) in told:
        reports = set()
        for study in names(studies):
            if (path := ROOT / "params" / f"{study}.yaml").exists():
                reports |= set(spec.read(path, mini=True).reports)
        found += [f"{figure}: {names(notebooks)} are not the reports {sorted(reports)}"] * (
            reports != set(names(notebooks))
        )
        links = re.findall(r"\]\(([^)]+)\)", f"{page_cell} {form}")
        found += [f"{figure}: {link} does not exist" for link in links if not (ROOT / "docs" / link).exists()]
        found += [f"{figure} has no page"] * bool(names(studies) and not links and page_cell != "mini")
        tests = re.findall(r"`(tests/\w+\.py)::(\w+)`", form)
        found += [f"{figure} has neither study nor test"] * (not names(studies) and not tests)
        found += [
            f"{figure}: {file}::{test} does not exist" for file, test in tests if test not in functions(ROOT / file)
        ]
    return found


def functions(path):
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_every_figure_has_a_row_and_all_that_is_named_exists():
    assert problems(PAGE) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("| Fig. A1 | random", "| Fig. A2 | random", "Morcos et al. 2019: Fig. A1 stands 0 times"),
        ("D.1 to D.14", "D.1 to D.13", "Ma et al. 2021: Fig. D.14 stands 0 times"),
        ("`sooner_fig3`", "`sooner_fig4`", "sooner_fig3 is in no row"),
        ("`sooner_fig3`", "`sooner_fig33`", "params/sooner_fig33.yaml does not exist"),
        ("| `morcos_a1` | `winning_tickets`", "| `morcos_a1` | `explore`", "Fig. A1: ['explore'] are not the reports"),
        ("gallery/transfer/", "gallery/transfers/", "transfers/ticket_transfer.html does not exist"),
        ("| mini | as in the paper, among", "| | as in the paper, among", "Fig. A1 has no page"),
        ("::test_jackpot", "::test_jackpots", "test_jackpots does not exist"),
        ("verdicts: `tests/test_verdicts.py::test_jackpot`", "verdicts", "Fig. 2 has neither study nor test"),
    ],
)
def test_what_is_wrong_with_the_page_is_noticed(old, new, problem):
    assert old in PAGE
    assert any(problem in said for said in problems(PAGE.replace(old, new)))
