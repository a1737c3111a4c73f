"""Notebooks as committed, executed on a tiny study and published; and the code of the README."""

import ast
import json
import re
from pathlib import Path

import papermill
import pytest
import test_pages
from matplotlib import pyplot

from lthlab import lab, pages, results, spec, store

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = 'study = "../params/demo.yaml"\nruns = "../runs"'
README = (ROOT / "README.md").read_text(encoding="utf-8")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return [cell | {"source": "".join(cell["source"])} for cell in content["cells"] if cell["cell_type"] == kind]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def problems(path: Path) -> list[str]:
    """What a notebook must not be as it is committed."""
    content = json.loads(path.read_text(encoding="utf-8"))
    code, text = cells(path, "code"), cells(path, "markdown")
    found = []
    if content["metadata"]["kernelspec"]["name"] != "python3":
        found.append("kernel is not python3")
    if not 8 <= len(code) + len(text) <= 16:
        found.append(f"{len(code) + len(text)} cells")
    if len(text) < 0.35 * len(code + text):
        found.append(f"{len(text)} cells of text")
    parameters = [cell["source"] for cell in code if "parameters" in tags(cell)]
    if parameters != [PARAMETERS]:
        found.append(f"parameters are {parameters}")
    if [tags(cell) for cell in code].count(["checks"]) != 1 or tags(code[-1]) != ["checks"]:
        found.append("checks are not the last cell")
    for number, cell in enumerate(code):
        if cell["outputs"] or cell["execution_count"] is not None:
            found.append(f"cell {number} has outputs or a count")
        if not 1 <= len(cell["source"].splitlines()) <= 5:
            found.append(f"cell {number} has {len(cell['source'].splitlines())} lines")
        if "parameters" not in tags(cell) and re.search(r"""["'][.~]*/""", cell["source"]):
            found.append(f"cell {number} has a path")
        for node in ast.walk(ast.parse(cell["source"])):
            if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef | ast.For | ast.While | ast.comprehension):
                found.append(f"cell {number} has logic: {type(node).__name__}")
            if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", None) != "lthlab":
                found.append(f"cell {number} imports more than lthlab")
    return found


@each
def test_notebooks_are_committed_without_outputs_and_short(path):
    assert problems(path) == []


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ('"outputs": []', '"outputs": [{}]', "has outputs"),
        ('"execution_count": null', '"execution_count": 3', "or a count"),
        ('"parameters"', '"parameter"', "parameters are []"),
        ('"checks"', '"check"', "checks are not the last cell"),
        ('"name": "python3"', '"name": "mine"', "kernel"),
        ("reports.finding(frame)", "import torch", "imports more"),
        ("reports.finding(frame)", "[reports.finding(f) for f in frame]", "logic: comprehension"),
        ("reports.finding(frame)", "reports.finding('../x')", "has a path"),
        ('"reports.finding(frame)"', '"a\\nb\\nc\\nd\\ne\\nf"', "6 lines"),
    ],
)
def test_what_is_wrong_with_a_notebook_is_found(old, new, problem, tmp_path):
    text = (ROOT / "notebooks" / "find_and_evaluate.ipynb").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "wrong.ipynb"
    path.write_text(text.replace(old, new))
    assert any(problem in found for found in problems(path))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with the demo's study made tiny, and all notebooks executed on it."""
    folder = tmp_path_factory.mktemp("tiny")
    text = (ROOT / "params" / "demo.yaml").read_text(encoding="utf-8")
    for old, new in (("replicates: 6", "replicates: 2"), ("epochs: 20", "epochs: 2"), ("[4, 8, 12, 16]", "[1, 2]")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    for name in ("params", "notebooks"):
        (folder / name).mkdir()
    (folder / "params" / "demo.yaml").write_text(text)
    for path in NOTEBOOKS:
        papermill.execute_notebook(
            path,
            folder / path.name,
            parameters={"study": "../params/demo.yaml", "runs": "../runs"},
            cwd=folder / "notebooks",
            progress_bar=False,
        )
    return folder


@each
def test_notebooks_run_and_become_pages(path, tiny):
    page = pages.publish(tiny / path.name, tiny / "reports" / "demo" / "index.html").read_text(encoding="utf-8")
    elements = test_pages.Elements(page)
    assert len(elements.of("h1")) == 1 and len(page) < 5_000_000
    assert all(image["alt"] or image["role"] == "presentation" for image in elements.of("img"))
    assert str(tiny) not in page and "Traceback" not in page and "shared:" not in elements.text


def test_the_demo_page_shows_what_the_store_holds(tiny):
    page = pages.publish(tiny / "find_and_evaluate.ipynb", tiny / "page.html").read_text(encoding="utf-8")
    elements = test_pages.Elements(page)
    frame = results.load(tiny / "runs", "demo")
    config = spec.read(tiny / "params" / "demo.yaml")
    assert set(frame["status"]) == {"done"} and frame["replicate"].nunique() == config.replicates == 2
    by = ["find_lr", "eval_lr", "method", "level"]
    pairs = results.differences(frame, "LT", "RR", by)
    cell = pairs[(pairs["method"] == "IMP") & (pairs["level"] == 2) & (pairs["eval_lr"] == 0.01)]
    finding = next(line for line in page.splitlines() if 'class="finding"' in line)
    assert f"{100 * cell['value'].mean():+.1f} [".replace("-", "−") in finding
    assert "At level 2, where 64 %" in finding and "n = 2 replicates" in finding
    assert len(elements.of("figure")) == 4 and page.count("n = 2 replicates") > 8
    downloads = [link["download"] for link in elements.of("a") if "download" in link]
    assert downloads == [
        "accuracy_by_sparsity.csv", "accuracy_by_lr.csv", "difference_by_sparsity.csv", "correlation_by_lr.csv",
    ]  # fmt: skip
    trainings = frame[frame["what"] == "train"]["key"]
    assert f"{trainings.nunique()}, and {len(trainings) - trainings.nunique()} more roles" in elements.text
    assert "lthlab compute params/demo.yaml" in elements.text and config.data.facts.fingerprint in elements.text


def test_a_second_run_trains_nothing(tiny):
    def stamps():
        folders = [tiny / "runs" / key for key in results.load(tiny / "runs", "demo")["key"].unique()]
        return {file: file.stat().st_mtime_ns for folder in folders for file in folder.rglob("*")}

    before = stamps()
    summary = lab.compute_study(spec.read(tiny / "params" / "demo.yaml"), store.Store(tiny / "runs"), "cpu")
    assert summary.trained == 0 and summary.trainings > 0 and stamps() == before


def test_a_check_that_fails_stops_the_page(tiny, tmp_path):
    content = json.loads((ROOT / "notebooks" / "find_and_evaluate.ipynb").read_text(encoding="utf-8"))
    setup = next(cell for cell in content["cells"] if cell["id"] == "setup")
    setup["source"] = "".join(setup["source"]) + '\nframe = frame[frame["replicate"] > 0]'
    path = tmp_path / "wrong.ipynb"
    path.write_text(json.dumps(content))
    with pytest.raises(papermill.PapermillExecutionError, match="a role is missing"):
        papermill.execute_notebook(path, tiny / "wrong.ipynb", cwd=tiny / "notebooks", progress_bar=False)
    with pytest.raises(pages.PageError, match="AssertionError: a role is missing"):
        pages.publish(tiny / "wrong.ipynb", tiny / "wrong.html")


def test_the_code_of_the_readme_runs(tiny, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 2
    monkeypatch.chdir(tiny)
    names: dict = {}
    for block in blocks:
        exec(compile(block.replace("epochs=20", "epochs=2"), "README.md", "exec"), names)
    assert 0 < names["accuracy"]["LT"] <= 1 and 0 < names["accuracy"]["RR"] <= 1
    assert {"n", "mean", "low", "high"} <= set(names["summary"])
    pyplot.close(names["ax"].figure)


def test_the_study_in_the_readme_is_read():
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    config = spec.parse(block)
    assert config.replicates == 6 and len(config.recipes) == 3


def test_the_readme_lists_every_module_and_column(tiny):
    modules = {path.stem for path in (ROOT / "lthlab").glob("*.py")} - {"__init__", "__main__"}
    assert {name for name in modules if f"`{name}`" not in README} == set()
    columns = {re.sub("^(find|eval)_.*", r"\1_*", name) for name in results.load(tiny / "runs", "demo")}
    assert {name for name in columns if f"`{name}`" not in README} == set()
