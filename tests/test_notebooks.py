"""Notebooks as committed, executed on a tiny study and published; and the code of the README."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import helpers
import papermill
import pytest
import test_pages
from matplotlib import pyplot
from ruamel.yaml import YAML

from lthlab import data, datasets, lab, losses, nets, pages, parts, results, sections, spec, store, transfer

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMPUTE = ("find_tickets", "evaluate_tickets")
REPORTS = (
    "winning_tickets", "weight_correlation", "hyperparameter_decoupling", "layerwise_pruning", "ticket_transfer",
    "early_tickets",
)  # fmt: skip
COMPARISON = "paper_comparison"
OTHERS = ("explore", "findings", COMPARISON)
"""Notebooks that no study of the repository's gallery names."""
OWN, TRANSFER, EARLY, LANDSCAPE = "own_network", "ticket_transfer", "early_tickets", "loss_landscape"
STUDIES = {OWN: "own", "hyperparameter_decoupling": "decoupling", TRANSFER: "transfer", EARLY: "early"}
STUDIES |= {LANDSCAPE: "landscape"}
"""The studies of notebooks that are not about the demo."""
PARAMETERS = """parameters = '{"study": "%s", "configuration": null, "device": "auto"}'"""
README = (ROOT / "README.md").read_text(encoding="utf-8")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

STUDY = """
name: demo
title: Tickets, tiny
net: [lenet_300_100, {name: resnet8, width: 4}]
data: digits
replicates: 2
find: {epochs: 2, batch_size: 128, lr: [0.05, 0.2]}
prune: {levels: [1, 2]}
tickets:
  LT: {methods: [IMP, OMP]}
  RR: {methods: [IMP, OMP]}
  WR: {methods: [IMP], rewind: 1ep}
  SDT: {}
  RT: {methods: [IMP]}
measures: {correlation_indicator: {p: [0.1, 0.3], partner: [own, dense, trained, permuted], at: [1ep, last]}}
reports: [winning_tickets, weight_correlation, layerwise_pruning]
verdicts: {epochs: 2, min_sparsity: 0.3}
"""
DECOUPLING = """
name: decoupling
title: Found with one, trained with another
net: lenet_300_100
data: {name: digits, train_size: 120, val_size: 60}
replicates: 2
find: {epochs: 2, batch_size: 60, lr: [0.05, 0.3]}
eval: {lr: [0.05, 0.3]}
prune: {levels: [1, 3], at: [1ep, last], layer_counts: {lr: 0.05}}
tickets: {LT: {methods: OMP}, RT: {methods: OMP, scope: global}}
reports: [hyperparameter_decoupling]
"""
HALVES = """
name: transfer
net: lenet_300_100
data: {name: digits, classes: [0, 1, 2, 3, 4], train_size: 60}
replicates: 2
find: {epochs: 2, batch_size: 20, lr: 0.05}
prune: {levels: [1, 2]}
protocol: {schedule: restart}
tickets:
  WR: {methods: IMP, rewind: 1ep}
  RR: {methods: IMP}
  RT: {methods: IMP, scope: global, weights: fresh}
panels:
  - targets:
      - {data: {name: digits, classes: [5, 6, 7, 8, 9], train_size: 60}}
      - {data: {name: digits, classes: [0, 1, 2, 3, 4], train_size: 60}, eval: {optimizer: adam, lr: 0.002}}
  - data: {classes: [5, 6, 7, 8, 9]}
    targets: {data: {name: digits, classes: [0, 1, 2, 3, 4], train_size: 60}}
reports: [ticket_transfer]
"""
SOONER = """
name: early
net: lenet_300_100
data: {name: digits, train_size: 60, val_size: 60}
replicates: 2
find: {epochs: 6, batch_size: 30, lr: 0.1, weight_decay: 0.01}
prune: {sparsities: [0.5, 0.8], at: [1ep, 2ep, 3ep, 4ep, 5ep, 6ep], gradual: [{points: [[2ep, 0.4], [4ep, 0.6]]}]}
protocol: {schedule: restart}
tickets: {LT: {methods: OMP}, WR: {methods: OMP, rewind: 2ep}, LRR: {methods: OMP}, PPR: {lr: [0.1, 0.01]}}
measures: {weight_std: {at: [0ep, 3ep, 6ep]}, hamming: , memorization: {train_sizes: [30, 60], epochs: 2}}
reports: [early_tickets]
"""
SURFACES = """
name: landscape
net: [{name: resnet8, width: 4}, {name: resnet8, width: 4, shortcut: none}]
data: {name: digits, train_size: 80}
replicates: 2
find: {epochs: 2, batch_size: 40, lr: [0.05, 0.2]}
prune: {levels: [2]}
tickets: {LT: {methods: [IMP, OMP]}}
measures:
  loss_surface: {of: [dense, LT], points: 5, images: 40, snapshots: 3}
  sharpness: {of: [dense, LT], images: 40, directions: 2}
  hessian_eigenvalue: {of: [dense, LT], images: 40}
  loss_barrier: {of: [dense, LT], at: 1ep, images: 40, points: 3}
reports: [loss_landscape]
"""


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
    if left := set(content["metadata"]) - {"kernelspec", "language_info"}:
        found.append(f"metadata {', '.join(left)}")
    if not 8 <= len(code) + len(text) <= 20:
        found.append(f"{len(code) + len(text)} cells")
    if len(text) < len(code + text) / 3:
        found.append(f"{len(text)} cells of text")
    if not any("$" in cell["source"] for cell in text):
        found.append("no formula")
    inline = re.sub(r"\$\$.*?\$\$", "", "\n".join(cell["source"] for cell in text), flags=re.DOTALL)
    for formula in re.findall(r"\$(.+?)\$", inline):
        signs = re.sub(r"[\\{}_^\s]", "", re.sub(r"\\(?!max)[A-Za-z]+", "x", formula))
        if len(signs) > 24:  # wider than a column on a telephone, and a formula in a line is never broken
            found.append(f"formula too long for its line: {formula}")
    parameters = [cell["source"] for cell in code if "parameters" in tags(cell)]
    if parameters != [PARAMETERS % STUDIES.get(path.stem, "demo")]:
        found.append(f"parameters are {parameters}")
    if [tags(cell) for cell in code].count(["checks"]) != 1 or tags(code[-1]) != ["checks"]:
        found.append("checks are not the last cell")
    for number, cell in enumerate(code):
        if cell["outputs"] or cell["execution_count"] is not None:
            found.append(f"cell {number} has outputs or a count")
        if not 1 <= len(cell["source"].splitlines()) <= 5:
            found.append(f"cell {number} has {len(cell['source'].splitlines())} lines")
        if re.search(r"""["'][.~]*/""", cell["source"]):
            found.append(f"cell {number} has a path")
        for node in ast.walk(ast.parse(cell["source"])):
            if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef | ast.For | ast.While | ast.comprehension):
                found.append(f"cell {number} has logic: {type(node).__name__}")
            imported = isinstance(node, ast.Import | ast.ImportFrom) and ast.unparse(node)
            if imported and not imported.startswith("from lthlab ") and (path.stem, imported) != (OWN, "import own"):
                found.append(f"cell {number} imports more than lthlab")
    return found


def test_the_notebooks_are_those_that_studies_name():
    assert {path.stem for path in NOTEBOOKS} == {*COMPUTE, *REPORTS, *OTHERS, *STUDIES}
    assert COMPUTE == sections.STAGES


@each
def test_notebooks_are_committed_without_outputs_and_short(path):
    assert problems(path) == []


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ('"outputs": []', '"outputs": [{}]', "has outputs"),
        ('"execution_count": null', '"execution_count": 3', "or a count"),
        ('"parameters"', '"parameter"', "parameters are []"),
        ('\\"auto\\"', '\\"cpu\\"', "parameters are ["),
        ('"checks"', '"check"', "checks are not the last cell"),
        ('"name": "python3"', '"name": "mine"', "kernel"),
        ("$X$", "$" + " + ".join(["a_{XY}"] * 8) + "$", "formula too long for its line: a_{XY} + a"),
        ('"kernelspec": {', '"widgets": {}, "kernelspec": {', "metadata widgets"),
        ("$", "", "no formula"),
        ("prizes.finding(judged)", "import torch", "imports more"),
        ("prizes.finding(judged)", "[prizes.finding(j) for j in judged]", "logic: comprehension"),
        ("prizes.finding(judged)", "prizes.finding('../x')", "has a path"),
        ('"prizes.finding(judged)"', '"a\\nb\\nc\\nd\\ne\\nf"', "6 lines"),
    ],
)
def test_what_is_wrong_with_a_notebook_is_found(old, new, problem, tmp_path):
    text = (ROOT / "notebooks" / "winning_tickets.ipynb").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "wrong.ipynb"
    path.write_text(text.replace(old, new))
    assert any(problem in found for found in problems(path))


@each
def test_the_hook_brings_a_notebook_that_jupyterlab_saved_back_to_what_is_committed(path, tmp_path):
    content = json.loads(path.read_text(encoding="utf-8"))
    content["metadata"]["language_info"] |= {
        "codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py", "mimetype": "text/x-python",
        "nbconvert_exporter": "python", "pygments_lexer": "ipython3", "version": "3.11.7",
    }  # fmt: skip
    content["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    for number, cell in enumerate(cell for cell in content["cells"] if cell["cell_type"] == "code"):
        output = {"output_type": "stream", "name": "stdout", "text": ["7\n"]}
        cell |= {"execution_count": number, "outputs": [output]}
    saved = tmp_path / path.name
    saved.write_text(json.dumps(content))
    hooks = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    (entry,) = [hook["entry"] for hook in hooks if hook["id"] == "nbstripout"]
    program, *arguments = shlex.split(entry)
    subprocess.run([Path(sys.executable).with_name(Path(program).name), *arguments, saved], check=True)
    assert saved.read_bytes() == path.read_bytes()


def copied(folder: Path) -> Path:
    """Make a folder of the notebooks, tiny studies, and a store with the digits and what no notebook computes."""
    for name in ("params", "notebooks", "runs"):
        (folder / name).mkdir()
    (folder / "params" / "demo.yaml").write_text(STUDY)
    (folder / "params" / "decoupling.yaml").write_text(DECOUPLING)
    own = (ROOT / "params" / "own.yaml").read_text(encoding="utf-8")
    (folder / "params" / "own.yaml").write_text(own.replace("epochs: 6", "epochs: 1").replace("[4, 8]", "[1, 2]"))
    for path in [*NOTEBOOKS, ROOT / "notebooks" / "own.py"]:
        (folder / "notebooks" / path.name).write_bytes(path.read_bytes())
    (folder / "params" / "transfer.yaml").write_text(HALVES)
    (folder / "params" / "early.yaml").write_text(SOONER)
    store = helpers.store(folder / "runs")
    (folder / "params" / "landscape.yaml").write_text(SURFACES)
    for study in (DECOUPLING, HALVES, SURFACES, SOONER):
        lab.compute_study(spec.parse(study), store, "cpu")
    return folder


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A folder in which nbval ran all notebooks, and what it said."""
    folder = copied(tmp_path_factory.mktemp("tiny"))
    (folder / "pytest.ini").write_text("[pytest]\n")
    paths = [folder / "notebooks" / f"{name}.ipynb" for name in (*COMPUTE, *REPORTS, *OTHERS, *STUDIES)]
    environment = {name: value for name, value in os.environ.items() if name != "LTHLAB_RUNS"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "--nbval-lax", "-p", "no:cacheprovider", *paths],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    return folder, done


@pytest.fixture(scope="module")
def tiny(tested):
    return tested[0]


def test_notebooks_run_from_top_to_bottom(tested):
    _, done = tested
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    for path in NOTEBOOKS:
        assert len(re.findall(rf"^PASSED .*{path.stem}\.ipynb", done.stdout, re.MULTILINE)) == len(cells(path, "code"))


@pytest.fixture(scope="module")
def published(tiny):
    """Pages of the reports, by name."""
    pages_ = {}
    for name in (*REPORTS, TRANSFER, LANDSCAPE, COMPARISON):
        executed = tiny / f"{name}.ipynb"
        papermill.execute_notebook(
            tiny / "notebooks" / f"{name}.ipynb", executed, cwd=tiny / "notebooks", progress_bar=False
        )
        pages_[name] = pages.publish(executed, tiny / "reports" / f"{name}.html").read_text(encoding="utf-8")
    return pages_


@pytest.mark.parametrize("name", REPORTS)
def test_reports_become_pages(name, published, tiny):
    page = published[name]
    elements = test_pages.Elements(page)
    assert len(elements.of("h1")) == 1 and len(page) < 5_000_000
    images = [image for image in elements.of("img") if image.get("role") != "presentation"]
    assert len(images) >= 8 and all("n = 2 replicates" in image["alt"] for image in images)
    assert all("lenet_300_100" in i["alt"] or "resnet8 (width 4)" in i["alt"] for i in images)
    assert str(tiny) not in page and "Traceback" not in page and "nan" not in re.sub("<[^>]+>", " ", page)
    assert "$" not in elements.text and "math" in {tag for tag, _ in elements.found}


def test_the_page_beside_the_papers_says_what_was_asked_and_where(published, tiny):
    page = published[COMPARISON]
    elements = test_pages.Elements(page)
    assert len(elements.of("h1")) == 1 and str(tiny) not in page and "Traceback" not in page
    plain = re.sub("<[^>]+>", " ", page)
    assert "nan" not in plain and "No dense network of the papers" in plain and "not on cifar10" in plain
    assert "The Sooner The Better: 218 numbers" in plain and "counted, no training needed" in plain


def test_the_page_of_winning_tickets_shows_what_the_store_holds(published, tiny):
    page = published["winning_tickets"]
    elements = test_pages.Elements(page)
    frame = results.load(tiny / "runs", "demo")
    config = spec.read(tiny / "params" / "demo.yaml")
    redundancy = "Largest sparsity at which LT" in page
    assert set(frame["status"]) == {"done"} and len(elements.of("figure")) == 8 + redundancy
    for panel, rows in results.panels(frame):
        pairs = results.differences(rows, "LT", "RR", ["method", "level", "eval_lr"])
        cells_ = results.summarise(pairs[(pairs["method"] == "IMP") & (pairs["level"] == 2)], ["eval_lr"])
        said = f"{panel}, level 2 (64 % of the prunable weights left): LT minus RR on IMP masks"
        seen = ((cells_["low"] > 0) | (cells_["high"] < 0)).sum()
        counted = f"we saw a difference at {seen} of 2" if seen else "we did not see a difference at any of 2"
        assert f"{said} (in points, paired, 95 % t interval, n = 2 replicates): {counted} learning rates" in page
    assert "level 2 (64 % of the weights)" in page and "SDT" in page and "RT on permuted IMP masks" in page
    downloads = {link["download"] for link in elements.of("a") if "download" in link}
    names = ("accuracy_by_sparsity", "accuracy_by_lr", "difference_by_sparsity", "verdicts_LT", "verdicts_WR")
    names += ("accuracy_by_cost",)
    panels = ("lenet_300_100_on_digits", "resnet8_width_4_on_digits")
    files = {"costs.csv", "table_3.csv", "guideline.csv"}
    assert downloads == files | {f"{name}_{panel}.csv" for name in names for panel in panels}
    trainings = frame[frame["what"] == "train"]["key"]
    assert f"{trainings.nunique()}, and {len(trainings) - trainings.nunique()} more roles" in elements.text
    assert "lthlab run params/demo.yaml" in elements.text
    assert config.panels[0].data.facts.fingerprint in elements.text
    assert all(widths in elements.text for widths in results.sizes(frame)["widths"])


def test_the_page_of_ticket_transfer_shows_what_the_store_holds(published, tiny):
    page = published[TRANSFER]
    elements = test_pages.Elements(page)
    rows = transfer.rows(results.load(tiny / "runs", "transfer"))
    assert set(rows["status"]) == {"done"} and rows["trained_on"].nunique() == 3
    images = [image["alt"] for image in elements.of("img") if image.get("role") != "presentation"]
    assert all("n = 2 replicates" in alt for alt in images)
    drawn = {place: sum(f"trained on {place}" in alt for alt in images) for place in rows["trained_on"].unique()}
    assert drawn == {place: 3 if place.endswith("adam") else 4 for place in drawn}  # nothing was found with Adam
    downloads = [link["download"] for link in elements.of("a") if "download" in link]
    assert downloads.count("accuracy_by_source_lenet_300_100.csv") == 1
    for cell in transfer.matrix(rows[(rows["level"] == 2) & (rows["ticket"] == "WR")]).itertuples():
        assert f"{100 * cell.mean:.1f} [{100 * cell.low:.1f}, {100 * cell.high:.1f}], n = 2" in elements.text
    assert "cuts through a layer" in elements.text and "transferred tickets: of" in elements.text
    assert "$" not in elements.text and "nan" not in re.sub("<[^>]+>", " ", page) and str(tiny) not in page


def test_the_page_of_loss_landscapes_shows_what_the_store_holds(published, tiny):
    page = published[LANDSCAPE]
    elements = test_pages.Elements(page)
    frame = results.load(tiny / "runs", "landscape")
    assert set(frame["status"]) == {"done"} and len(page) < 5_000_000
    images = [image["alt"] for image in elements.of("img") if image.get("role") != "presentation"]
    assert sum("Contours of the loss over a plane" in alt for alt in images) in (12 + 12, 12 + 6 + 12)
    assert sum("Line chart of loss against share of the way" in alt for alt in images) == 3 * 4
    stored = store.Store(tiny / "runs")
    paths = results.measured(stored, frame[frame["what"] == "loss_surface"], "path.jsonl")
    ends = losses.ends(paths)
    assert len(ends) == 24 and (ends[["x", "y", "residual"]] == 0).all(axis=None)
    sharp = frame[(frame["what"] == "sharpness") & (frame["ticket"] == "dense") & (frame["eval_lr"] == 0.2)]
    for _, own in sharp.groupby("shortcut"):
        assert f"{own['value'].mean():.3g} [" in elements.text
    contrasts = losses.contrasts(frame)
    assert len(contrasts) == 3 * (4 + 6 + 6) and f"All {len(contrasts)} differences" in elements.text
    assert "BatchNorm computed anew at each point" in elements.text and "40 training images" in elements.text
    assert "$" not in elements.text and "nan" not in re.sub("<[^>]+>", " ", page) and str(tiny) not in page


def test_a_second_run_trains_nothing(tiny):
    def stamps():
        folders = [tiny / "runs" / key for key in results.load(tiny / "runs", "demo")["key"].unique()]
        return {file: file.stat().st_mtime_ns for folder in folders for file in folder.rglob("*")}

    before = stamps()
    summary = lab.compute_study(spec.read(tiny / "params" / "demo.yaml"), store.Store(tiny / "runs"), "cpu")
    assert summary.trained == 0 and summary.trainings > 0 and stamps() == before


@pytest.fixture
def forgotten():
    """What a test registers is forgotten after it."""
    kept = (parts.NETS, nets._BUILDERS, datasets.DATASETS, data._sources)
    before = [dict(table) for table in kept]
    yield
    for table, names in zip(kept, before, strict=True):
        table.clear()
        table.update(names)
    sys.modules.pop("own", None)


LOST = "frame = frame.drop(index=frame.index[-1])"
MOVED = "frame = frame.assign(replicate=frame['replicate'].where(frame.index != frame.index[-1], 0))"


@pytest.mark.parametrize(
    "name, fault, message",
    [
        *((path.stem, LOST, "a role is missing") for path in NOTEBOOKS if path.stem != "findings"),
        *((path.stem, MOVED, "a replicate is missing") for path in NOTEBOOKS if path.stem != "findings"),
        ("findings", "found.small.pop()", "a study is missing"),
        ("findings", "found.claims.drop(index=found.claims.index[-1], inplace=True)", "asked at one scale only"),
        (COMPARISON, "numbers['n'] = 99", "more replicates than there are"),
        (COMPARISON, "claims = claims.assign(low=9e9)", "outside its interval"),
        ("hyperparameter_decoupling", "trained.loc[trained.index[0], 'value'] = 2.0", "no accuracy"),
        (
            "find_tickets",
            "frame.loc[frame['method'] == 'OMP', 'kept'] += 1",
            "keep different counts",
        ),
        ("find_tickets", "results.revived = lambda *_: frame.assign(value=1)", "masks of a chain are not nested"),
        ("evaluate_tickets", "frame.loc[frame['ticket'] == 'RR', 'kept'] += 1", "keep different counts"),
        ("evaluate_tickets", "whole.loc[whole['ticket'] == 'SDT', 'parameters'] *= 2", "larger than its ticket"),
        ("winning_tickets", "trained.loc[trained.index[0], 'value'] = 2.0", "no accuracy"),
        ("winning_tickets", "trained.loc[trained.index[0], 'value'] = None", "no accuracy"),
        (TRANSFER, "trained.loc[trained['ticket'] == 'RT', 'kept'] += 1", "keep different counts"),
        (TRANSFER, "trained.loc[trained.index[0], 'value'] = 2.0", "outside 0 to 1"),
        (OWN, "own.FACTS = None", "another study"),
        (OWN, "trained.loc[trained.index[0], 'value'] = 2.0", "no accuracy"),
        ("layerwise_pruning", "bought.loc[bought.index[0], 'value'] = 2.0", "no accuracy"),
        ("layerwise_pruning", "counted = counted + 1", "layers do not add up"),
        (EARLY, "distances['value'] = 0.9", "differ in more than they can"),
        (EARLY, "signals['end'] = 5.0", "later than the end"),
        (EARLY, "said = said.assign(step=5.5)", "advice on a step without a mask"),
        ("weight_correlation", "indicator.loc[indicator.index[0], 'value'] = 1.5", "outside 0 to 1"),
        ("weight_correlation", "whole = whole + 0.1", "layers do not add up"),
        (LANDSCAPE, "paths['residual'] += 1", "does not end at the origin"),
        (LANDSCAPE, "paths['plane_loss'] += 1", "another loss at its origin"),
        (LANDSCAPE, "measured = measured.assign(value=-1.0)", "a barrier below zero"),
    ],
)
def test_checks_notice_what_is_unsound(name, fault, message, tiny, forgotten, monkeypatch):
    """Run a notebook's cells here, then its checks after a fault."""
    monkeypatch.chdir(tiny / "notebooks")
    monkeypatch.syspath_prepend(tiny / "notebooks")
    monkeypatch.setattr(results, "revived", results.revived)
    names: dict = {}
    *rest, checks = [cell["source"] for cell in cells(tiny / "notebooks" / f"{name}.ipynb", "code")]
    for source in rest:
        statements = [node for node in ast.parse(source).body if not isinstance(node, ast.Expr)]  # what is not shown
        exec(compile(ast.Module(statements, []), name, "exec"), names)
    exec(checks, names)
    names |= {
        given: names[given].copy() for given in ("frame", "whole", "trained", "indicator", "bought") if given in names
    }
    exec(fault, names)
    with pytest.raises(AssertionError, match=message):
        exec(checks, names)


def test_a_check_that_fails_stops_the_page(tiny):
    content = json.loads((ROOT / "notebooks" / "weight_correlation.ipynb").read_text(encoding="utf-8"))
    setup = next(cell for cell in content["cells"] if cell["id"] == "setup")
    setup["source"] = "".join(setup["source"]) + '\nframe = frame[frame["replicate"] > 0]'
    path = tiny / "notebooks" / "wrong.ipynb"
    path.write_text(json.dumps(content))
    with pytest.raises(papermill.PapermillExecutionError, match="a role is missing"):
        papermill.execute_notebook(path, tiny / "wrong.ipynb", cwd=tiny / "notebooks", progress_bar=False)
    with pytest.raises(pages.PageError, match="AssertionError: a role is missing"):
        pages.publish(tiny / "wrong.ipynb", tiny / "wrong.html")


def test_the_code_of_the_readme_runs(tiny, forgotten, monkeypatch):
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
    (panel,) = spec.parse(block).panels
    assert panel.replicates == 6 and len(panel.recipes) == 3


def test_the_readme_lists_every_module_and_column(tiny):
    modules = {path.stem for path in (ROOT / "lthlab").glob("*.py")} - {"__init__", "__main__"}
    assert {name for name in modules if f"`{name}`" not in README} == set()
    columns = {re.sub("^(find|eval)_.*", r"\1_*", name) for name in results.load(tiny / "runs", "demo")}
    assert {name for name in columns if f"`{name}`" not in README} == set()
