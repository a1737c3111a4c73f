"""Notebook jobs: what is refused, how jobs end, what is kept, and that nothing outlives its parent.

Jobs that fail in ways that do not disturb each other are executed together, once.
"""

import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import distributed
import nbformat
import psutil
import pytest

from lthlab import batch, kernels
from lthlab.batch import execute
from lthlab.jobs import Job, JobError, Outcome, check, group_failures, up_to_date

ODD = {"text": "'\"\\ \n\t{} %s ${HOME} </script> \u202e é \x00", "list": [1, -2.5, None, True, {"a b": []}]}
HOLD_LOCK = "import re\nre.match('(a+)+$', 'a' * 60 + 'b')"  # never gives the interpreter's lock back
DEAF = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + HOLD_LOCK
WAIT = "import time\nwhile True:\n    time.sleep(0.05)"


@pytest.fixture(scope="module", autouse=True)
def own_temporary_folder(tmp_path_factory):
    """Let what is left there be told from what other processes leave."""
    tmp_path_factory.getbasetemp()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("TMPDIR", folder)
        yield


def note(name, value):
    """Code that writes a value to a file in the notebook's folder."""
    return f"from pathlib import Path\nPath({name!r}).write_text(str({value}))"


def notebook(path, *cells, defaults=None, parameters=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    source = parameters if parameters is not None else f"parameters = {json.dumps(defaults or {})!r}"
    first = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    text = nbformat.v4.new_markdown_cell("# A notebook")
    nbformat.write(nbformat.v4.new_notebook(cells=[text, first, *map(nbformat.v4.new_code_cell, cells)]), path)
    return path


def job(folder, name, *cells, parameters=None, defaults=None, **keywords):
    path = notebook(folder / "notebooks" / f"{name}.ipynb", *cells, defaults=defaults or parameters)
    return Job(name, path, folder / "out" / f"{name}.ipynb", parameters or {}, **keywords)


def gone(pid, seconds=15.0):
    """Whether a process ends in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def read_when_there(path, seconds=40.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path.name} was not written within {seconds} s")


# --- refused before anything runs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"parameters": {"lrr": 1}},
            "job 'a': parameter 'lrr': the notebook has none of this name; allowed: lr, net; did",
        ),
        ({"parameters": {"a=0; import os": 1}}, "job 'a': parameter 'a=0; import os': not an identifier"),
        ({"parameters": {"lr\nimport os": 1}}, r"parameter 'lr\nimport os': not an identifier"),
        ({"parameters": {3: 1}}, "parameter 3: not an identifier"),
        ({"parameters": {"lr": (1, 2)}}, "parameter 'lr': (1, 2); allowed: plain JSON values"),
        ({"parameters": {"lr": [1, {"x": float("nan")}]}}, "parameter 'lr', item 1, 'x': nan; allowed"),
        ({"parameters": {"lr": {1: 2}}}, "parameter 'lr', key 1: not a string"),
        ({"name": "a/b"}, "job 'a/b': name; allowed"),
        ({"name": ".."}, "job '..': name; allowed"),
        ({"depends_on": ("b",)}, "depends_on: 'b' is no job; allowed: a"),
        ({"depends_on": ("a",)}, "depends_on: jobs that wait for each other: a"),
        ({"cores": 0}, "cores: 0; allowed: 1 and more"),
        ({"cell_timeout_s": 0}, "cell_timeout_s: 0; allowed: above 0"),
        ({"environment": {"A": "\0"}}, r"environment: 'A'='\x00' cannot be set"),
        ({"environment": {"A=B": ""}}, "environment: 'A=B'='' cannot be set"),
        ({"output": Path("a.txt")}, "output: a.txt; allowed: names that end in '.ipynb'"),
        ({"output": Path("a.failed.ipynb")}, "but not in '.failed.ipynb'"),
        ({"notebook": Path("none.ipynb")}, "notebook none.ipynb: cannot be read"),
    ],
)
def test_unsound_jobs_are_refused(tmp_path, change, says):
    sound = Job("a", notebook(tmp_path / "a.ipynb", defaults={"lr": 0.1, "net": "x"}), tmp_path / "out" / "a.ipynb")
    assert json.loads(check([sound])["a"]) == {"lr": 0.1, "net": "x"}
    with pytest.raises(JobError) as caught:
        execute([replace(sound, **change)])
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "source", ["", "lr = 0.1", "parameters = {}", "parameters = '[]'", "parameters = '{'", "a = parameters = '{}'",
               "parameters = '{}'\nlr = 1", "parameters = str(1)", "parameters = '{\"a b\": 1}'", "parameters ="]
)  # fmt: skip
def test_a_parameters_cell_holds_one_json_object(tmp_path, source):
    path = notebook(tmp_path / "a.ipynb", parameters=source)
    with pytest.raises(JobError, match="its cell 'parameters' is not parameters = "):
        check([Job("a", path, tmp_path / "b.ipynb")])


def test_all_problems_are_reported_at_once(tmp_path):
    path = notebook(tmp_path / "a.ipynb", defaults={"lr": 0.1})
    jobs = [Job(name, path, tmp_path / "b.ipynb", {"x": 1}) for name in "aab"]
    with pytest.raises(JobError) as caught:
        check(jobs)
    assert len(str(caught.value).splitlines()) == 5
    assert "name 'a': of more than one job" in str(caught.value)
    nbformat.write(nbformat.v4.new_notebook(), path)
    with pytest.raises(JobError, match="0 cells have the tag 'parameters'; needed: one"):
        check([Job("a", path, tmp_path / "b.ipynb")])


def test_a_batch_that_is_stopped_at_the_latest_ends_within_20_seconds():
    grace = inspect.signature(execute).parameters["grace_s"].default
    assert grace + kernels.INTERRUPT_S + batch.ABANDON_S + batch.CLOSE_S + 2 * kernels.TICK_S <= 19


def test_an_output_is_up_to_date_with_the_same_code_and_parameters(tmp_path):
    path = notebook(tmp_path / "a.ipynb", "1", defaults={"lr": 0.1, "text": ""})
    asked = Job("a", path, tmp_path / "out.ipynb", {"text": "'\"\\ é\n"})
    text = check([asked])["a"]
    assert not up_to_date(asked, text)
    executed = nbformat.read(path, as_version=4)
    executed.cells[2].outputs = [nbformat.v4.new_output("stream", text="1")]
    executed.cells.insert(2, nbformat.v4.new_code_cell(f"# Parameters\nparameters = {text!r}\n"))
    executed.cells[2].metadata.tags = ["injected-parameters"]
    nbformat.write(executed, asked.output)
    assert up_to_date(asked, text)
    assert not up_to_date(asked, text.replace("0.1", "0.2"))
    for index, source in enumerate(["# Another text", "parameters = '{}'", "2"]):
        changed = nbformat.read(path, as_version=4)
        changed.cells[index].source = source
        nbformat.write(changed, path)
        assert up_to_date(asked, text) == (index == 0)
        executed.cells[index + (index > 1)].source = source
        nbformat.write(executed, asked.output)
        assert up_to_date(asked, text)
    for broken in ("", "{}", '{"cells": [1]}', '{"cells": []}'):
        asked.output.write_text(broken)
        assert not up_to_date(asked, text)


# --- many jobs on two slots of this machine -------------------------------------------------------------------

FACTS = """
import json, os
import numpy, threadpoolctl
numpy.ones((64, 64)) @ numpy.ones((64, 64))
names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"]
facts = {
    "threads": sorted({os.environ[name] for name in names}),
    "pools": [pool["num_threads"] for pool in threadpoolctl.threadpool_info()],
    "names": sorted(os.environ),
    "history": get_ipython().history_manager.enabled,
    "ipython": os.environ["IPYTHONDIR"],
    "folder": os.getcwd(),
    "odd": os.environ.get("ODD"),
    "got": json.loads(parameters),
}
"""
MEET = """
import time
from pathlib import Path
Path("OWN").touch()
end = time.monotonic() + 30
while not Path("OTHER").exists():
    assert time.monotonic() < end, "the other job did not run beside this one"
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Outcomes by name, events, listening addresses, the folder, what is left, and the environment before and after."""
    folder = tmp_path_factory.mktemp("odd {name}")
    jobs = [
        job(folder, "left", MEET.replace("OWN", "l").replace("OTHER", "r")),
        job(folder, "right", MEET.replace("OWN", "r").replace("OTHER", "l")),
        job(
            folder, "facts", FACTS, note("facts", "json.dumps(facts)"), parameters=ODD, defaults=ODD | {"more": 1},
            environment={"ODD": "'\"\n ${HOME} é", "OMP_NUM_THREADS": "7"},
        ),
        job(folder, "failing", "x = 1", "# why\n\ndef f(x):\n    raise ValueError(f'no {x}')\nf(12.5)"),
        job(folder, "failing2", "raise ValueError('no 7')"),
        job(folder, "child", "1", depends_on=("left", "failing")),
        job(folder, "grandchild", "1", depends_on=("child",)),
        job(folder, "killed", note("killed", "__import__('os').getpid()"), "import os\nos.kill(os.getpid(), 9)"),
        job(folder, "left_early", "import sys\nsys.exit(0)", "1"),
        job(folder, "slow", WAIT, cell_timeout_s=0.6),
        job(folder, "halted", "class Stopped(Exception):\n    pass\nraise Stopped('3 trainings left')", "1"),
        job(folder, "hung", note("hung", "1"), HOLD_LOCK),
        job(folder, "poison", "import os\nos.kill(os.getppid(), 9)\n" + HOLD_LOCK),
        job(
            folder, "unlucky", "import os\nfrom pathlib import Path\nonce = Path('once')\nif not once.exists():\n"
            "    once.write_text(str(os.getpid()))\n    os.kill(os.getppid(), 9)\n    import time\n    time.sleep(60)"
        ),
        job(folder, "core2", FACTS, note("facts2", "json.dumps(facts)"), cores=2, depends_on=("left", "right")),
        job(folder, "last", "1", depends_on=("facts",)),
    ]  # fmt: skip
    events, listening, ticks = [], set(), []

    def on_event(event):
        events.append(event)
        own = {process.pid for process in psutil.Process().children(recursive=True)} | {os.getpid()}
        connections = [each for each in psutil.net_connections("inet") if each.pid in own]
        listening.update(each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN)

    before, environment = set(Path(kernels.tempfile.gettempdir()).glob("lthlab-*")), set(os.environ)
    outcomes = execute(
        jobs,
        slots=2,
        stall_after_s=2.0,
        alive=lambda job: job.name if job.name == "hung" else time.monotonic(),
        on_event=on_event,
        tick=lambda: ticks.append(threading.get_ident()),
    )
    assert [outcome.name for outcome in outcomes] == [job.name for job in jobs]
    assert len(ticks) > 10 and set(ticks) == {threading.get_ident()}
    left = set(Path(kernels.tempfile.gettempdir()).glob("lthlab-*")) - before
    return (
        {outcome.name: outcome for outcome in outcomes},
        events,
        listening,
        folder,
        left,
        environment,
        set(os.environ),
    )


def test_jobs_run_side_by_side_and_good_ones_are_done(ran):
    outcomes, events, _, folder, *_ = ran
    good = {name for name, outcome in outcomes.items() if outcome.status == "done"}
    assert good == {"left", "right", "facts", "core2", "last", "unlucky"}
    for name in good:
        outcome = outcomes[name]
        assert outcome.output == folder / "out" / f"{name}.ipynb"
        executed = nbformat.read(outcome.output, as_version=4)
        nbformat.validate(executed)
        assert executed.cells[-1].execution_count
        assert str(folder.parent) not in json.dumps(executed.metadata)
        assert executed.metadata.papermill["input_path"] == f"{name}.ipynb"
        assert (outcome.cell, outcome.error, outcome.message) == (None, "", "")
        assert 0 < outcome.seconds < 90
    ended = [event.name for event in events if event.what == "ended"]
    assert sorted(ended) == sorted(outcomes)
    assert ended.index("last") > ended.index("facts")


def test_parameters_arrive_as_they_were_given(ran):
    facts = json.loads((ran[3] / "notebooks" / "facts").read_text())
    assert facts["got"] == ODD | {"more": 1}
    executed = nbformat.read(ran[0]["facts"].output, as_version=4)
    (injected,) = [cell for cell in executed.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert [line.split(" = ")[0] for line in injected.source.splitlines() if line[0] != "#"] == ["parameters"]


@pytest.mark.parametrize(("name", "cores"), [("facts", 1), ("facts2", 2)])
def test_a_slot_owns_its_cores(ran, name, cores):
    facts = json.loads((ran[3] / "notebooks" / name).read_text())
    assert facts["threads"] == [str(cores)]
    assert facts["pools"] and max(facts["pools"]) <= cores


def test_the_environment_is_that_of_the_calling_process(ran):
    *_, before, after = ran
    names = json.loads((ran[3] / "notebooks" / "facts").read_text())["names"]
    assert json.loads((ran[3] / "notebooks" / "facts").read_text())["odd"] == "'\"\n ${HOME} é"
    assert json.loads((ran[3] / "notebooks" / "facts2").read_text())["odd"] is None
    for set_by_dask in ("MALLOC_TRIM_THRESHOLD_", "PYTHONHASHSEED"):
        assert (set_by_dask in names) == (set_by_dask in before)
    assert after == before


def test_kernels_keep_no_history_and_work_in_their_notebooks_folder(ran):
    facts = json.loads((ran[3] / "notebooks" / "facts").read_text())
    assert facts["history"] is False
    assert facts["folder"] == str(ran[3] / "notebooks")
    assert not Path(facts["ipython"]).exists()


def test_an_error_names_its_cell_line_and_last_line_and_keeps_the_notebook(ran):
    failing = ran[0]["failing"]
    assert (failing.status, failing.cell, failing.line) == ("failed", 4, 4)
    assert failing.source == "raise ValueError(f'no {x}')"
    assert (failing.error, failing.message) == ("ValueError", "no 12.5")
    assert failing.output == ran[3] / "out" / "failing.failed.ipynb"
    assert "no 12.5" in json.dumps(nbformat.read(failing.output, as_version=4))
    assert not (ran[3] / "out" / "failing.ipynb").exists()
    log = failing.log.read_text()
    assert "ValueError: no 12.5" in log and "\x1b" not in log
    assert "without encryption" not in "".join(outcome.log.read_text() for outcome in ran[0].values() if outcome.log)


def test_a_cell_that_says_that_it_was_stopped_is_no_failure(ran):
    halted = ran[0]["halted"]
    assert (halted.status, halted.cell, halted.error) == ("stopped", 3, "")
    assert halted.message == "3 trainings left"
    assert halted.output is None


def test_what_depends_on_a_failed_job_is_skipped(ran):
    assert ran[0]["child"] == Outcome("child", "skipped", message="needs 'failing', which is failed")
    assert ran[0]["grandchild"].message == "needs 'child', which is skipped"
    assert not {"child", "grandchild"} & {event.name for event in ran[1] if event.what == "started"}


def test_a_killed_kernel_is_told_from_an_error(ran):
    killed = ran[0]["killed"]
    assert (killed.status, killed.cell, killed.error) == ("died", 4, "")
    assert killed.message == "the kernel was ended by SIGKILL (out of memory?)"
    assert killed.output.exists()


def test_a_cell_that_takes_too_long_ends(ran):
    slow = ran[0]["slow"]
    assert (slow.status, slow.cell, slow.error) == ("failed", 3, "CellTimeoutError")
    assert slow.message.startswith("A cell timed out while it was being executed, after 1 seconds.")


def test_leaving_a_notebook_early_is_no_success(ran):
    assert (ran[0]["left_early"].status, ran[0]["left_early"].error) == ("failed", "SystemExit")


def test_a_job_without_a_sign_of_life_is_tried_once_more(ran):
    hung = ran[0]["hung"]
    assert (hung.status, hung.cell, hung.source) == ("hung", 4, "import re")
    assert [event.what for event in ran[1] if event.name == "hung"] == ["started", "retried", "ended"]
    assert hung.output.exists()


def test_lost_workers_count_only_against_the_job_they_ran(ran):
    outcomes, events, *_ = ran
    retried = [event.name for event in events if event.what == "retried"]
    assert sorted(retried) == ["hung", "poison", "poison", "unlucky"]
    poison = outcomes["poison"]
    assert (poison.status, poison.cell, poison.source) == ("died", 3, "import os")
    assert poison.message == "the worker ended"
    assert poison.output.exists()


def test_a_kernel_ends_with_its_worker(ran):
    assert gone(int((ran[3] / "notebooks" / "once").read_text()), seconds=0.5)


def test_only_the_loopback_interface_is_listened_on(ran):
    assert ran[2] == {"127.0.0.1"}


def test_nothing_is_left_but_notebooks_and_logs(ran):
    outcomes, _, _, folder, left, *_ = ran
    names = {outcome.output.name for outcome in outcomes.values() if outcome.output}
    logs = {f"{name}.log" for name, outcome in outcomes.items() if outcome.status != "skipped"}
    assert {path.name for path in (folder / "out").iterdir()} == names | logs
    assert left == set()


def test_failures_are_grouped_by_cause(ran):
    groups = group_failures(ran[0].values(), lambda name: f"lthlab run x.yaml --only {name}")
    assert [outcome.name for outcome in groups[0].outcomes] == ["failing", "failing2"]
    assert groups[0].cause == "failed: ValueError: no N"
    text = str(groups[0]).splitlines()
    assert text[:3] == [
        "2 jobs: failed: ValueError: no N",
        "  failing (cell 4, line 4: raise ValueError(f'no {x}'))",
        "    ValueError: no 12.5",
    ]
    assert text[3] == f"    log: {ran[3] / 'out' / 'failing.log'}"
    assert text[4] == f"    executed: {ran[3] / 'out' / 'failing.failed.ipynb'}"
    assert text[5] == "    again: lthlab run x.yaml --only failing"
    listed = {outcome.name for group in groups for outcome in group.outcomes}
    assert listed == {"failing", "failing2", "killed", "slow", "left_early", "hung", "poison"}


def test_numbers_and_paths_do_not_make_another_cause():
    messages = ["no '/a/b.txt' after 3.5 s in ~/x", "no '/srv/c' after 12 s in /q/r"]
    outcomes = [Outcome(str(n), "failed", error="OSError", message=text) for n, text in enumerate(messages)]
    (group,) = group_failures([*outcomes, Outcome("x", "done"), Outcome("y", "skipped")], str)
    assert group.cause == "failed: OSError: no 'PATH' after N s in PATH"
    assert len(group_failures([*outcomes, Outcome("z", "died", error="OSError", message=messages[0])], str)) == 2


def test_a_worker_that_does_not_answer_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "STUCK_S", 0.5)
    monkeypatch.setattr(batch, "HANGS", 1)
    freeze = note("froze", "os.getpid()") + "\nos.kill(os.getppid(), 19)\n" + WAIT
    frozen = job(tmp_path, "frozen", "import os, signal\nassert signal.SIGSTOP == 19\n" + freeze)
    outcomes = execute([frozen, job(tmp_path, "next", "1")], stall_after_s=1.5)
    assert [outcome.status for outcome in outcomes] == ["hung", "done"]
    assert outcomes[0].cell == 3 and outcomes[0].output.exists()
    assert gone(int((tmp_path / "notebooks" / "froze").read_text()), 1)


# --- a scheduler that runs already ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel_folders():
    """Where the kernels of the scheduler's worker put their folders, and nobody else; a short name, for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture(scope="module")
def cluster(kernel_folders):
    """Address of a scheduler with one worker process of eight threads."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=8, processes=True, dashboard_address=None, silence_logs=50
    ) as local:
        yield local.scheduler_address


def test_eight_kernels_start_at_once_on_an_existing_scheduler(tmp_path, cluster, kernel_folders):
    code = "import os, time\n" + note("{}", "os.getcwd() + os.environ['OMP_NUM_THREADS'] + parameters")
    code += "\n" + note("place", "os.environ['IPYTHONDIR']")
    jobs = [job(tmp_path / f"f{n}", f"j{n}", code.replace("{}", f"j{n}"), parameters={"n": n}) for n in range(8)]
    outcomes = execute(jobs, cluster=cluster)
    assert [outcome.status for outcome in outcomes] == ["done"] * 8
    assert list(kernel_folders.glob("lthlab-*")) == []
    for n in range(8):
        place = tmp_path / f"f{n}" / "notebooks"
        assert Path((place / "place").read_text()).parent.parent == kernel_folders
        assert (place / f"j{n}").read_text() == f'{place}1{{"n": {n}}}'
    assert sorted(path.name for path in (tmp_path / "f0" / "out").iterdir()) == ["j0.ipynb", "j0.log"]


def test_the_last_good_output_survives_a_failing_rerun(tmp_path, cluster):
    before = job(tmp_path, "a", "print('first')")
    (done,) = execute([before], cluster=cluster)
    good = done.output.read_bytes()
    (failed,) = execute([job(tmp_path, "a", "raise KeyError('second')")], cluster=cluster)
    assert (failed.status, failed.message) == ("failed", "'second'")
    assert before.output.read_bytes() == good
    assert before.failure.exists()
    (again,) = execute([job(tmp_path, "a", "print('third')")], cluster=cluster)
    assert again.status == "done" and b"third" in before.output.read_bytes()
    assert not before.failure.exists()


def test_the_deadline_stops_at_the_end_of_a_cell(tmp_path, cluster):
    polite = "import os, time\n" + note("began", 1) + "\nwhile not os.path.exists(os.environ['LTHLAB_STOP']):\n"
    jobs = [
        job(tmp_path, "polite", polite + "    time.sleep(0.05)\n" + note("saved", 1), note("next", 1)),
        job(tmp_path, "broken", polite + "    time.sleep(0.05)\n1 / 0"),
        job(tmp_path, "late", "1"),
    ]
    began = time.monotonic()
    outcomes = execute(jobs, slots=2, cluster=cluster, deadline=began + 5)
    assert time.monotonic() - began < 10
    assert [(outcome.status, outcome.message) for outcome in outcomes] == [
        ("stopped", "stopped"),
        ("failed", "division by zero"),
        ("stopped", "deadline"),
    ]
    notebooks = tmp_path / "notebooks"
    assert (notebooks / "saved").exists() == (notebooks / "began").exists()
    assert not (notebooks / "next").exists()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"polite.log", "broken.log", "broken.failed.ipynb"}


def test_kernels_end_with_a_batch_that_ends_by_an_error(tmp_path, cluster):
    began = tmp_path / "notebooks" / "began"

    def broken(job):
        if began.exists():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        execute([job(tmp_path, "a", note("began", "__import__('os').getpid()"), WAIT)], None, cluster, 60, broken)
    assert gone(int(began.read_text()))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.log"}


def test_a_worker_that_is_gone_before_the_job_begins_costs_nothing(tmp_path, cluster, monkeypatch):
    real, answers = distributed.Client.nthreads, [{"tcp://127.0.0.1:9": 1}] * 4
    monkeypatch.setattr(batch, "STUCK_S", 0.3)
    monkeypatch.setattr(distributed.Client, "nthreads", lambda self: answers.pop() if answers else real(self))
    events = []
    (outcome,) = execute([job(tmp_path, "a", "1")], cluster=cluster, on_event=events.append)
    assert outcome.status == "done"
    assert [event.what for event in events] == ["started", "retried", "ended"]


def test_slots_are_at_least_one(tmp_path):
    with pytest.raises(ValueError, match="slots: 0; allowed: 1 and more"):
        execute([job(tmp_path, "a", "1")], slots=0)
    assert execute([]) == []


# --- signals to a real process --------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from lthlab.batch import execute
from lthlab.jobs import Job

folder = Path({folder!r})
if __name__ == "__main__":
    files = {{name: name + ".ipynb" for name in {names!r}}}
    jobs = [Job(name, folder / "notebooks" / file, folder / "out" / file) for name, file in files.items()]
    for outcome in execute(jobs, slots={slots}, grace_s={grace}):
        print(outcome.name, outcome.status)
"""


@pytest.fixture
def start(tmp_path, tmp_path_factory):
    """Start a process that executes notebooks, each of which notes its kernel's number before its last cell."""
    started = []
    temporary = tmp_path_factory.mktemp("t")

    def start(grace, slots, **cells):
        for name, cell in cells.items():
            job(tmp_path, name, "import os\n" + note(name, "os.getpid()"), cell)
        root = str(Path(batch.__file__).parent.parent)
        script = tmp_path / "script.py"
        script.write_text(
            SCRIPT.format(root=root, folder=str(tmp_path), names=list(cells), slots=slots, grace=grace),
            encoding="utf-8",
        )
        process = subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
        started.append(process)
        pids = [int(read_when_there(tmp_path / "notebooks" / name)) for name in list(cells)[:slots]]
        workers = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        time.sleep(0.3)
        return process, pids + workers

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_sigterm_lets_cells_save_then_interrupts_then_kills(tmp_path, start):
    polite = "import time\nwhile not os.path.exists(os.environ['LTHLAB_STOP']):\n    time.sleep(0.05)\n" + note(
        "saved", 1
    )
    rude = f"try:\n    {WAIT}".replace("\nwhile", "\n    while").replace("\n    time", "\n        time")
    rude += "\nexcept KeyboardInterrupt:\n    " + note("interrupted", 1).replace("\n", "\n    ") + "\n    raise"
    process, pids = start(2.0, 3, polite=polite, rude=rude, deaf=DEAF, late="1")
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert time.monotonic() - began < 2.0 + 6
    assert out.split() == ["polite", "done", "rude", "stopped", "deaf", "stopped", "late", "stopped"]
    assert process.returncode == 0
    names = {path.name for path in (tmp_path / "notebooks").iterdir() if not path.suffix}
    assert names == {"polite", "rude", "deaf", "saved", "interrupted"}
    assert all(gone(pid, 1) for pid in pids)


def test_a_second_signal_to_the_whole_group_ends_at_once(tmp_path, start):
    process, pids = start(14.0, 1, rude="try:\n    time\nexcept NameError:\n    pass\n" + WAIT, late="1")
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1.0)
    assert psutil.pid_exists(pids[0]), "the worker or the kernel took the signal for itself"
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert out.split() == ["rude", "stopped", "late", "stopped"]
    assert all(gone(pid, 1) for pid in pids)


def test_nothing_outlives_a_killed_process(tmp_path, start):
    process, pids = start(14.0, 1, busy=HOLD_LOCK)
    process.kill()
    assert all(gone(pid) for pid in pids)
