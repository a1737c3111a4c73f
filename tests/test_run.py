"""From a study to results by the command line: `lthlab run` as a process, with notebooks as small as they can be."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import helpers
import nbformat
import psutil
import pytest
import sets

from lthlab import batch, cli, install, results, sections, watch
from lthlab.kernels import cores
from lthlab.runs import in_training
from lthlab.store import Store

ROOT = Path(__file__).parent.parent
STUDY = """\
name: tiny
net: lenet_300_100
data: {name: digits, train_size: 200}
find: {epochs: 2, batch_size: 64, lr: [0.05, 0.1]}
prune: {levels: 1}
tickets: {LT: , RR: }
panel_by: find.lr
reports: counts
"""
NAMES = [f"{stage}.lenet_300_100.digits.find_lr-{lr}" for stage in sections.STAGES for lr in (0.05, 0.1)]
PARAMETERS = """parameters = '{"study": "demo", "configuration": null, "device": "auto"}'"""
OPEN = "from lthlab import lab, progress, results, studies\nstudy = studies.open(parameters)"
COMPUTE = """\
summary = lab.compute_study(
    study.config, study.store, study.device, configuration=study.configuration, watcher=progress.Bar()
)"""
COUNT = "results.count_statuses(results.load(study.store, study.config.name))"


def notebook(path, *cells):
    first = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    cells = [first, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a folder with a study and notebooks."""
    place = tmp_path / "odd {name} $HOME"
    place.mkdir()
    monkeypatch.chdir(place)
    prepare(place)
    return place


def prepare(place, study=STUDY):
    (place / "notebooks").mkdir()
    for stage in sections.STAGES:
        notebook(place / "notebooks" / f"{stage}.ipynb", OPEN, COMPUTE)
    notebook(place / "notebooks" / "counts.ipynb", OPEN, COUNT)
    (place / "tiny.yaml").write_text(study)
    helpers.store(place / "runs")


def start(*arguments, place=None, **options):
    """Start a command; it is the first of a process group of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "lthlab", *arguments]
    return subprocess.Popen(command, env=environment, cwd=place, start_new_session=True, **streams, **options)


def lthlab_command(*arguments, place=None):
    """Run a command; returns exit code, stdout and stderr."""
    process = start(*arguments, place=place)
    try:
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert "Traceback" not in out + err
    return process.returncode, out, err


def results_of(root):
    """Every file of the results of a store, without what tells when and where it was computed."""
    found = helpers.bits(root)
    return {name: content for name, content in found.items() if len(name.partition("/")[0]) == 32}


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """The results of the study, computed without notebooks and without a stop."""
    place = tmp_path_factory.mktemp("computed")
    prepare(place)
    code, _, err = lthlab_command("compute", "tiny.yaml", "--device", "cpu", place=place)
    assert code == 0, err
    return results_of(place / "runs")


# --- sets of one's own ---------------------------------------------------------------------------------------


def test_kernels_have_the_sets_that_the_command_has(folder, monkeypatch):
    """A set that a module registers, of the images of one that is installed, reaches the notebooks."""
    monkeypatch.setenv("LTHLAB_DATA", "home")
    images = sets.class_folders(folder / "images", sets.sets_of((1, 8, 8), 2, 80, 20), ("a", "b"))
    facts = install.import_set("installed", images)
    (folder / "own").mkdir()
    (folder / "own" / "mine.py").write_text(
        "from lthlab import catalog, data\nfrom lthlab.parts import DataFacts\n"
        f"data.register('mine', {facts!r})(lambda: catalog.installed('installed').contents)\n"
    )
    study = STUDY.replace("{name: digits, train_size: 200}", "mine").replace("[0.05, 0.1]", "0.05")
    (folder / "tiny.yaml").write_text(study.replace("panel_by: find.lr\nreports: counts", "stages: find_tickets"))
    code, out, err = lthlab_command("run", "tiny.yaml", "--device", "cpu", "--with", "own/mine.py", place=folder)
    assert (code, "1 notebook executed" in out) == (0, True), err
    frame = results.load(Store("runs"), "tiny")
    done = frame[frame["configuration"].str.startswith("find_tickets")]
    assert set(done["status"]) == {"done"} and set(done["data"]) == {"mine"}


# --- one good run ---------------------------------------------------------------------------------------------


LOOK_S = 1.0
AT_WORK = 0.06
"""Share of a core from which a thread counts as one that works; others wait, and wake up now and then."""
HARD_WORK = """\
import time, numpy, torch
many, square, began = torch.rand(1_000_000), numpy.ones((700, 700)), time.monotonic()
while time.monotonic() < began + 2.5:
    many.sin_()
while time.monotonic() < began + 5:
    square @ square"""


def working_threads(process, before):
    """Count the threads of a process and its children that were at work since the last look."""
    now = {}
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            now |= {(each.pid, thread.id): thread.user_time + thread.system_time for thread in each.threads()}
    working = sum(spent - before.get(thread, spent) > AT_WORK * LOOK_S for thread, spent in now.items())
    before.clear()
    before.update(now)
    return working


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run: what was planned, exit code, output, numbers of busy threads while it ran, and the folder."""
    place = tmp_path_factory.mktemp("odd {name} $HOME")
    prepare(place)
    notebook(place / "notebooks" / "counts.ipynb", OPEN, HARD_WORK, COUNT)
    code, out, err = lthlab_command("plan", "tiny.yaml", "--json", place=place)
    assert code == 0, err
    planned = json.loads(out)
    process = start("run", "tiny.yaml", "--device", "cpu", "--json", place=place)
    seen, busy = {}, []
    while process.poll() is None:
        busy.append(working_threads(psutil.Process(process.pid), seen))
        time.sleep(LOOK_S)
    out, err = process.communicate()
    return planned, process.returncode, out, err, busy, place


def test_all_notebooks_are_executed(ran):
    _, code, out, err, _, place = ran
    assert code == 0, err
    found = json.loads(out)
    assert (found["schema"], found["study"], found["stopped"], found["failures"]) == (1, "tiny", "", [])
    assert [(each["name"], each["status"]) for each in found["notebooks"]] == [(n, "done") for n in [*NAMES, "counts"]]
    assert found["counts"] == {"done": 5, "skipped": 0, "stopped": 0, "failed": 0, "before": 0}
    executed = place / "runs" / "notebooks" / "tiny"
    assert sorted(path.stem for path in executed.glob("*.ipynb")) == sorted([*NAMES, "counts"])
    shown = nbformat.read(executed / "counts.ipynb", as_version=4).cells[-1].outputs[0].data["text/plain"]
    assert "'done': 14,\n 'missing': 0," in shown
    assert {status: n for status, n in found["values"].items() if n} == {"done": len(Store(place / "runs").keys())}


def test_a_run_gives_what_compute_gives(ran, computed):
    assert results_of(ran[-1] / "runs") == computed


def test_a_plan_says_what_a_run_then_does(ran):
    planned, _, out, *_, place = ran
    trained = 0
    for path in (place / "runs").glob("*/0/manifest.json"):
        trained += json.loads(path.read_bytes())["record"]["kind"] == "train"
    assert planned["trainings"] == trained
    assert planned["done"] == 0
    roles = Store(place / "runs").study("tiny")["roles"]
    trainings = [role["key"] for role in roles if role["what"] == "train"]
    assert planned["shared"] == len(trainings) - len(set(trainings))
    assert planned["notebooks"] == 5


def test_no_more_threads_work_than_there_are_cores(ran):
    busy = ran[4]
    assert max(busy) >= 1
    assert max(busy) <= cores() + 2


def test_what_notebooks_took_beyond_their_trainings_is_noted_and_planned(ran):
    place = ran[-1]
    noted = [json.loads(line) for line in Store(place / "runs").timings() if '"notebook"' in line]
    assert [line["notebook"] for line in noted[:5]] == [name.partition(".")[0] for name in [*NAMES, "counts"]]
    assert noted[4]["seconds"] > 5  # of hard work
    code, out, _ = lthlab_command("plan", "tiny.yaml", "--json", "--device", "cpu", place=place)
    stages = json.loads(out)["stages"]
    assert [row["hours"] > 0 for row in stages] == [False, False, True]


def test_what_is_left_of_the_study_is_said(tmp_path):
    prepare(tmp_path)
    sets = "--set find.epochs=1"
    arguments = ["run", "tiny.yaml", "--device", "cpu", "--only", "find_tickets", *sets.split()]
    code, out, err = lthlab_command(*arguments, place=tmp_path)
    assert code == 0, err
    assert out.splitlines()[2] == (
        f"left of the study: 3 notebooks ({NAMES[2]}, {NAMES[3]}, counts); to execute them: "
        f"lthlab run tiny.yaml {sets} --device cpu"
    )


def test_plain_lines_tell_what_happens(ran):
    lines = [line.partition(" ")[2] for line in ran[3].splitlines()]
    for name in (*NAMES, "counts"):
        assert f"{name} started" in lines
        assert any(line.startswith(f"{name} done after 0:00:") for line in lines)


def test_a_second_run_computes_nothing(ran):
    place = ran[-1]
    before = results_of(place / "runs")
    times = {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*.ipynb")}
    code, out, err = lthlab_command("run", "tiny.yaml", "--device", "cpu", place=place)
    assert code == 0, err
    assert out.startswith("tiny: 1 notebook executed, 4 done before, in 0:00:")
    assert out.splitlines()[1:] == [
        "executed notebooks: runs/notebooks/tiny",
        "pages of the reports: lthlab publish tiny.yaml",
    ]
    changed = {path.stem for path, at in times.items() if path.stat().st_mtime_ns != at}
    assert changed == {"counts"}
    assert results_of(place / "runs") == before
    code, out, _ = lthlab_command("plan", "tiny.yaml", "--json", place=place)
    again = json.loads(out)
    assert (again["done"], again["epochs"]) == (again["trainings"], 0)


# --- what goes wrong ------------------------------------------------------------------------------------------


def test_failures_among_good_ones(folder):
    study = STUDY.replace("lr: [0.05, 0.1]", "lr: [0.05, 0.1, 0.2]") + "stages: evaluate_tickets\n"
    (folder / "tiny.yaml").write_text(study)
    broken = "assert not study.configuration.endswith('0.1'), f'no {study.configuration}'\nimport os"
    deadly = "if study.configuration.endswith('0.05'):\n    os.kill(os.getpid(), 9)"
    notebook(folder / "notebooks" / "evaluate_tickets.ipynb", OPEN, broken, deadly, COMPUTE)
    options = ["--device", "cpu", "--set", "find.epochs=1"]
    code, out, err = lthlab_command("run", "tiny.yaml", *options)
    assert code == 1, err
    assert "find: {epochs: 1}" in err
    executed = folder / "runs" / "notebooks" / "tiny"
    first, *lines = out.splitlines()
    assert first.startswith("tiny: 1 notebook executed, 0 done before, 2 failed, 1 skipped, in 0:00:")
    again = "lthlab run tiny.yaml --only NAME --set find.epochs=1 --device cpu"
    assert lines == [
        "1 job: died: the kernel was ended by SIGKILL (out of memory?)",
        f"  {NAMES[2]} (cell 4: if study.configuration.endswith('0.05'):)",
        "    the kernel was ended by SIGKILL (out of memory?)",
        f"    log: {executed / NAMES[2]}.log",
        f"    executed: {executed / NAMES[2]}.failed.ipynb",
        f"    again: {again.replace('NAME', NAMES[2])}",
        f"1 job: failed: AssertionError: no {NAMES[3].replace('lenet_300_100', 'lenet_N_N').replace('0.1', 'N')}",
        f"  {NAMES[3]} (cell 3, line 1: {broken.splitlines()[0]})",
        f"    AssertionError: no {NAMES[3]}",
        f"    log: {executed / NAMES[3]}.log",
        f"    executed: {executed / NAMES[3]}.failed.ipynb",
        f"    again: {again.replace('NAME', NAMES[3])}",
    ]
    assert (executed / f"{NAMES[3]}.failed.ipynb").exists()
    assert sorted(path.name for path in executed.glob("*0.2.ipynb")) == [NAMES[3].replace("0.1", "0.2") + ".ipynb"]
    notebook(folder / "notebooks" / "evaluate_tickets.ipynb", OPEN, COMPUTE)
    code, out, err = lthlab_command(*shlex.split(lines[-1].partition("again: lthlab ")[2]))
    assert code == 0, err
    assert out.startswith("tiny: 1 notebook executed, 0 done before, in 0:00:")
    assert not (executed / f"{NAMES[3]}.failed.ipynb").exists()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(("command", "number"), [("run", signal.SIGTERM), ("compute", signal.SIGINT)])
def test_a_signal_in_the_middle_then_the_same_command(folder, command, number):
    (folder / "tiny.yaml").write_text(STUDY.replace("epochs: 2", "epochs: 300"))
    arguments = ("tiny.yaml", "--device", "cpu", "--only", NAMES[0])
    process = start(command, *arguments)
    store = Store("runs")
    try:
        wait_for(lambda: [group for group in in_training(store) if group.epoch >= 2])
        assert watch.at_work("tiny", store) == [NAMES[0]]
        children = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert time.monotonic() - began < 20
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert out.splitlines()[1].startswith(f"stopped ({'SIGTERM' if command == 'run' else 'Ctrl-C'}): ")
    assert psutil.wait_procs(children, timeout=20)[1] == []  # the last ones end when they notice that this one has
    assert watch.at_work("tiny", store) == []
    assert list(Path("runs/.work").glob("*.checkpoint"))
    code, _, err = lthlab_command(command, *arguments)
    assert code == 0, err
    assert lthlab_command("compute", *arguments, "--runs", "whole")[0] == 0
    assert results_of(Path("runs")) == results_of(Path("whole"))


@pytest.mark.parametrize(("command", "limit"), [("run", 9), ("run", 2), ("compute", 6)])
def test_time_that_is_up_is_no_failure(folder, command, limit):
    (folder / "tiny.yaml").write_text(STUDY.replace("epochs: 2", "epochs: 100000"))
    began = time.monotonic()
    code, out, err = lthlab_command(command, "tiny.yaml", "--device", "cpu", "--for", f"{limit}s", "--json")
    assert code == 0, err
    assert limit / 3 < time.monotonic() - began < limit + 2
    found = json.loads(out)
    assert found["stopped"] == "time"
    assert (found["left"]["trainings"], 500_000 < found["left"]["epochs"] <= 600_000) == (6, True)
    assert found["left"]["hours"] > 0
    stops = [json.loads(line) for line in Store("runs").timings() if "stop" in line]
    assert [line["stop"] for line in stops] == [command]


def test_two_runs_side_by_side(folder, computed):
    both = [
        start("run", "tiny.yaml", "--device", "cpu", "--set", "panel_by=[]", "--set", "reports=[]") for _ in range(2)
    ]
    for process in both:
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
    assert results_of(folder / "runs") == computed
    store = Store("runs")
    problems = [problem for key in store.keys() for problem in store.verify(key)]  # noqa: SIM118
    assert problems == []
    assert not list((folder / "runs" / ".work").iterdir())


# --- refused before anything begins ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "tiny.yaml", "--only", "count"], "did you mean 'counts'?"),
        (["run", "tiny.yaml", "--notebooks", "none"], "--notebooks none: no such folder"),
        (["run", "tiny.yaml", "--device", "tpu"], "device 'tpu' is not known"),
        (["run", "tiny.yaml", "--set", "reports=cuonts"], "notebook 'cuonts' is not in notebooks; allowed: counts, "),
        (
            ["run", "tiny.yaml", "--set", "data={name: digits, part: a, classes: [0, 0]}"],
            "0 is given more than once; allowed: each class once",
        ),
        (["run", "tiny.yaml", "--cluster", "tcp://127.0.0.1:1"], "--cluster tcp://127.0.0.1:1: "),
        (["publish", "tiny.yaml"], "counts.ipynb: is not there; to make it: lthlab run tiny.yaml\n"),
        (["publish", "tiny.yaml", "--set", "reports=[]"], "study tiny has no reports"),
        (["plan", "tiny"], "study 'tiny' is not in params"),
        (["plan", "tiny.yaml", "--set", "reports=cuonts"], "notebook 'cuonts' is not in notebooks; allowed: counts, "),
        (["plan", "tiny.yaml", "--device", "gpu"], "device 'gpu' is not known; allowed: auto, cpu, cuda"),
        (["plan", "tiny.yaml", "--notebooks", "none"], "--notebooks none: no such folder"),
    ],
)
def test_bad_input(folder, capsys, monkeypatch, arguments, words):
    before = sorted(folder.rglob("*"))
    assert batch.CONNECT_S <= 10
    monkeypatch.setattr(batch, "CONNECT_S", 0.2)
    began = time.monotonic()
    assert cli.main(arguments) == 2
    assert time.monotonic() - began < 8
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert [path for path in sorted(folder.rglob("*")) if path not in before and ".ipynb" in path.name] == []


# --- without the packages of notebooks ------------------------------------------------------------------------

BLOCKED = """
import sys

class Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in set({blocked!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked)
from lthlab.cli import main
sys.exit(main({arguments!r}))
"""


def test_computing_without_the_packages_of_notebooks(folder, computed):
    blocked = ["jupyter", "jupyter_client", "IPython", "ipykernel", "nbformat", "nbclient", "nbconvert", "papermill",
               "dask", "distributed", "seaborn", "matplotlib", "sklearn", "scipy", "rich", "shtab", "ipywidgets",
               "latex2mathml"]  # fmt: skip

    def without(*arguments):
        script = BLOCKED.format(blocked=blocked, arguments=list(arguments))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        return done

    done = without("compute", "tiny.yaml", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert results_of(folder / "runs") == computed
    for arguments in (["plan", "tiny.yaml"], ["status"], ["status", "tiny", "--watch"], ["doctor"]):
        done = without(*arguments)
        assert done.returncode == 0, done.stderr
    for command in (["run", "tiny.yaml"], ["completion", "bash"]):
        done = without(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert "`lthlab doctor` says what to install" in done.stderr
