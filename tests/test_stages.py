"""Studies as notebook jobs: which there are, what they wait for, what is refused, and what is done already."""

import json
from dataclasses import replace
from pathlib import Path

import helpers
import nbformat
import pytest

from lthlab import jobs, lab, sections, spec, studies, tickets
from lthlab.errors import InputError
from lthlab.jobs import JobError
from lthlab.stages import Settings, as_jobs, finished, run

STUDY = """\
name: tiny
net: lenet_300_100
data: {name: digits, train_size: 128}
find: {epochs: 1, batch_size: 64, lr: [0.05, 0.1]}
prune: {levels: 1}
tickets: {LT: , RR: }
panel_by: find.lr
reports: [counts]
"""
NAMES = [f"{stage}.lenet_300_100.digits.find_lr-{lr}" for stage in sections.STAGES for lr in (0.05, 0.1)]
PARAMETERS = """parameters = '{"study": "demo", "configuration": null, "device": "auto"}'"""


@pytest.fixture
def folder(tmp_path):
    """A folder with notebooks."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in (*sections.STAGES, "counts"):
        cell = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / f"{name}.ipynb")
    return folder


def planned(folder, text=STUDY, sets=(), **settings):
    config = spec.parse(text, sets=sets)
    pieces = studies.configurations(tickets.expand(config))
    store = helpers.Store(folder.parent / "runs")
    return config, pieces, store, as_jobs(config, pieces, store, Settings(notebooks=folder, **settings))


def test_jobs_of_a_study(folder):
    config, _, store, found = planned(folder, cores=3, cell_timeout_s=60.0, device="cpu")
    assert [job.name for job in found] == [*NAMES, "counts"]
    assert [job.notebook.stem for job in found] == [*(name.partition(".")[0] for name in NAMES), "counts"]
    assert [job.depends_on for job in found] == [(), (), (NAMES[0],), (NAMES[1],), tuple(NAMES)]
    assert {job.output for job in found} == {store.root / "notebooks" / "tiny" / f"{job.name}.ipynb" for job in found}
    assert {(job.cores, job.cell_timeout_s) for job in found} == {(3, 60.0)}
    texts = [json.loads(text) for text in jobs.check(found).values()]
    assert [text["configuration"] for text in texts] == [*NAMES, None]
    assert all(spec.resolved(text["study"]) == config and text["device"] == "cpu" for text in texts)
    assert {"sets"} & texts[0].keys() == set()


def test_settings_of_the_command_line_travel_with_the_study(folder):
    config, *_, found = planned(folder, sets=["find.lr=0.3"])
    told = json.loads(jobs.check(found)[found[0].name])
    assert (told["sets"], told["study"]["find"]["lr"]) == (["find.lr=0.3"], 0.3)
    assert spec.resolved(told["study"], told["sets"]) == config
    assert [job.name for job in found][0].endswith("find_lr-0.3")


def test_what_kernels_are_told_by_their_environment(folder, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("LTHLAB_DATA", "sets")
    *_, store, found = planned(folder)
    always = {"LTHLAB_RUNS": str(store.root), "LTHLAB_DATA": str(Path.cwd() / "sets")}
    assert found[0].environment == always | {"GOMP_SPINCOUNT": "1000"}
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert planned(folder)[3][0].environment == always
    environment = planned(folder, deterministic=True)[3][0].environment
    assert environment == always | {"LTHLAB_DETERMINISTIC": "1"}
    monkeypatch.setenv("LTHLAB_WITH", "mine.py")
    assert planned(folder)[3][0].environment == always | {"LTHLAB_WITH": "mine.py"}


def test_a_configuration_waits_for_all_that_it_is_made_from(folder):
    text = STUDY.replace("lr: [0.05, 0.1]}", "lr: 0.05}\neval: {lr: [0.05, 0.1]}")
    text = text.replace("panel_by: find.lr", "panel_by: [eval.lr, replicate]\nreplicates: 2")
    *_, found = planned(folder, text)
    waits = {job.name.removeprefix("evaluate_tickets.lenet_300_100.digits."): job.depends_on for job in found[:-1]}
    finds = [f"find_tickets.lenet_300_100.digits.replicate-{number}" for number in (0, 1)]
    assert waits == {finds[0]: (), finds[1]: ()} | {
        f"eval_lr-{lr}.replicate-{number}": (finds[number],) for lr in (0.05, 0.1) for number in (0, 1)
    }


def test_only_some(folder):
    *_, found = planned(folder, only=(NAMES[3], "counts"))
    assert [(job.name, job.depends_on) for job in found] == [(NAMES[3], ()), ("counts", (NAMES[3],))]
    *_, found = planned(folder, only=("evaluate_tickets",))
    assert [(job.name, job.depends_on) for job in found] == [(name, ()) for name in NAMES[2:]]
    with pytest.raises(InputError, match=r"--only count: not in the study; allowed: .*; did you mean 'counts'\?"):
        planned(folder, only=("count",))


def test_a_stage_that_is_not_asked_for_has_no_jobs(folder):
    (folder / "evaluate_tickets.ipynb").unlink()
    *_, found = planned(folder, STUDY + "stages: find_tickets\n")
    assert [job.name for job in found] == [*NAMES[:2], "counts"]


def test_masks_that_cannot_be_are_refused_before_any_notebook_is_executed(folder):
    text = STUDY.replace("levels: 1", "sparsities: [0.1, 0.999]") + "protocol: {granularity: filter}\n"
    config = spec.parse(text.replace("LT: , RR: ", "LT: {methods: OMP}"))
    store = helpers.Store(folder.parent / "runs")
    with pytest.raises(InputError, match=r"prunes 400 of 400 filters; allowed: 0 to 398"):
        run(config, store, Settings(notebooks=folder))
    assert not store.keys() and not store.studies()


def test_missing_notebooks_are_named_before_anything_begins(folder):
    (folder / "counts.ipynb").rename(folder / "count.ipynb")
    (folder / "find_tickets.ipynb").unlink()
    with pytest.raises(InputError) as caught:
        planned(folder)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"notebook 'find_tickets' is not in {folder}; allowed: count, evaluate_tickets; did you")
    assert second.endswith("did you mean 'count'?")
    with pytest.raises(InputError, match="--notebooks .*none: no such folder"):
        planned(folder / "none")


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cpu:0", "cuda:0; import os", "cuda:0,", "cpu,gpu"])
def test_devices_that_there_are_nowhere(folder, device):
    with pytest.raises(InputError, match="device '.*' is not known; allowed: auto, cpu, cuda"):
        planned(folder, device=device)


# --- done already ---------------------------------------------------------------------------------------------


def execute(job, text):
    """Put an executed notebook where the job's output goes."""
    notebook = nbformat.read(job.notebook, as_version=4)
    cell = nbformat.v4.new_code_cell(f"# Parameters\nparameters = {text!r}\n", metadata={"tags": [jobs.INJECTED]})
    notebook.cells.insert(1, cell)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, job.output)


@pytest.fixture
def done(folder):
    """A study that is computed and executed."""
    config, pieces, store, found = planned(folder, device="cpu")
    store = helpers.store(store.root)
    lab.compute_study(config, store, "cpu")
    texts = jobs.check(found)
    for job in found:
        execute(job, texts[job.name])
    return found, texts, pieces, store


def test_what_is_computed_and_executed_is_done(done):
    assert finished(*done) == set(NAMES)


def test_what_is_not_executed_or_changed_is_not_done(done, folder):
    found, texts, pieces, store = done
    found[0].output.unlink()
    execute(found[1], texts[NAMES[1]].replace("cpu", "cuda"))
    assert finished(*done) == set(NAMES[2:])
    notebook = nbformat.read(folder / "evaluate_tickets.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("1"))
    nbformat.write(notebook, folder / "evaluate_tickets.ipynb")
    assert finished(*done) == set()


def test_what_is_missing_or_damaged_is_not_done(done):
    found, texts, pieces, store = done
    store.discard(pieces[0].labelled[1].value.key)  # a mask, which a configuration of the next stage is made from too
    assert finished(*done) == {NAMES[1], NAMES[3]}
    [path] = (store.root / pieces[3].labelled[0].value.key).rglob("metrics.jsonl")
    helpers.flip(path)
    assert finished(*done) == {NAMES[1]}


def test_what_a_diverged_training_blocks_is_done(folder):
    config, pieces, store, found = planned(folder, STUDY.replace("0.1]", "1.0e+6]").replace("epochs: 1", "epochs: 2"))
    store = helpers.store(store.root)
    summary = lab.compute_study(config, store, "cpu")
    assert summary.diverged and summary.blocked
    texts = jobs.check(found)
    for job in found:
        execute(job, texts[job.name])
    assert finished(found, texts, pieces, store) == {piece.name for piece in pieces}


def test_jobs_refuse_what_no_notebook_takes(folder):
    *_, found = planned(folder)
    with pytest.raises(JobError, match="parameter 'stdy'"):
        jobs.check([replace(found[0], parameters={"stdy": 1})])
    path = Path(found[0].notebook)
    path.write_text(path.read_text().replace("configuration", "config"))
    with pytest.raises(JobError, match="parameter 'configuration': the notebook has none of this name"):
        jobs.check(found)
