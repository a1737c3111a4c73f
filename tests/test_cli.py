"""The command line: exit codes, what goes to which stream, and that bad input leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lthlab
from lthlab import cli, lab, pages, results, runs, spec, stages, watch
from lthlab.arguments import seconds as seconds_of
from lthlab.runs import InTraining
from lthlab.store import Store
from lthlab.tickets import expand

torch.set_num_threads(1)  # The networks here are so small that a second thread only gets in the way.

STUDY = """\
name: tiny
net: lenet_300_100
data: {name: digits, train_size: 128}
find: {epochs: 1, batch_size: 64, lr: 0.05}
prune: {levels: 1}
tickets: {LT: }
"""
ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in an empty folder with a study."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(STUDY)
    return tmp_path


def contents(root):
    """Everything under a folder, with its bytes."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(Path(root).rglob("*"))}


def lthlab_command(capsys, *arguments):
    """Run a command in this process; returns exit code, stdout and stderr."""
    try:
        code = cli.main(list(arguments))
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- computing ------------------------------------------------------------------------------------------------


def test_compute_then_status(folder, capsys):
    code, out, err = lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu")
    assert code == 0
    assert out.startswith("tiny: 2 trainings, 2 of them now, 1 more shared, in ")
    assert len(out.splitlines()) == 1
    assert "Traceback" not in err
    assert results.count_statuses(results.load("runs"))["done"] == len(expand(spec.read("tiny.yaml")))
    for arguments in (["status"], ["status", "tiny"], ["status", "tiny.yaml"]):
        code, out, err = lthlab_command(capsys, *arguments)
        assert (code, out, err) == (0, "tiny: 5 done\n", "")


def test_a_second_compute_trains_nothing_and_changes_nothing(folder, capsys):
    lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu")
    before = contents("runs")
    began = time.perf_counter()
    code, out, _ = lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu", "--json")
    assert time.perf_counter() - began < 2
    assert code == 0
    assert (json.loads(out)["trainings"], json.loads(out)["trained"], json.loads(out)["shared"]) == (2, 0, 1)
    assert contents("runs") == before


def test_json(folder, capsys):
    code, out, _ = lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu", "--json", "--runs", "elsewhere")
    found = json.loads(out)
    assert code == 0
    assert (found["schema"], found["study"], found["trained"]) == (1, "tiny", 2)
    assert (found["diverged"], found["blocked"], found["stale"]) == ([], [], [])
    assert not Path("runs").exists()
    code, out, err = lthlab_command(capsys, "status", "--json", "--runs", "elsewhere")
    found = json.loads(out)
    assert (code, err, found["schema"], found["running"]) == (0, "", 1, [])
    [study] = found["studies"]
    assert study["study"] == "tiny"
    assert study["counts"] == dict.fromkeys(results.STATUSES, 0) | {"done": 5}
    assert study["listed"] == []


def test_what_diverged_is_listed(folder, capsys):
    Path("tiny.yaml").write_text(STUDY.replace("lr: 0.05", "lr: [0.05, 1e+6]").replace("epochs: 1", "epochs: 2"))
    code, out, _ = lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu")
    assert code == 0
    assert "diverged: 1; `lthlab status tiny.yaml` lists them" in out
    assert "blocked: 2;" in out
    code, out, err = lthlab_command(capsys, "status", "tiny.yaml")
    key = expand(spec.read("tiny.yaml"))[5].value.key
    assert (code, err) == (0, "")
    first, *listed = out.splitlines()
    assert first == "tiny: 5 done, 1 diverged, 4 blocked"
    assert (
        listed[0]
        == f"  diverged: train dense level 0 replicate 0 eval_lr 1000000.0: loss not finite in epoch 1 ({key})"
    )
    assert len(listed) == 5
    code, out, _ = lthlab_command(capsys, "status", "tiny.yaml", "--json")
    listed = json.loads(out)["studies"][0]["listed"]
    assert [row["status"] for row in listed] == ["diverged", "blocked", "blocked", "blocked", "blocked"]
    assert (listed[0]["key"], listed[0]["find_lr"], listed[0]["method"]) == (key, 1e6, None)


def test_status_of_an_empty_store(folder, capsys):
    assert lthlab_command(capsys, "status") == (0, "no studies in runs\n", "")
    code, out, _ = lthlab_command(capsys, "status", "--json")
    assert (code, json.loads(out)) == (0, {"schema": 1, "studies": [], "running": []})
    assert not Path("runs").exists()


def test_settings_are_shown_as_yaml_and_noted(folder, capsys):
    sets = ["--set", "find.lr=0.1,0.2", "--set", "title=Two"]
    code, out, err = lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu", *sets)
    assert code == 0
    assert out.startswith("tiny: 4 trainings, 4 of them now")
    assert err.startswith("find:\n  lr: [0.1, 0.2]\ntitle: Two\n")
    table = Store("runs").study("tiny")
    assert table["sets"] == ["find.lr=0.1,0.2", "title=Two"]
    assert (table["title"], table["document"]["find"]["lr"]) == ("Two", [0.1, 0.2])
    code, out, err = lthlab_command(capsys, "plan", "tiny.yaml", "--set", "find.lr=0.1,zero", "--set", "x")
    assert (code, out) == (2, "")
    assert "--set x: not understood; allowed: field=value[,value…], such as find.lr=0.1,0.3" in err


def test_one_configuration(folder, capsys):
    name = "find_tickets.lenet_300_100.digits"
    code, out, _ = lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu", "--only", name)
    assert (code, out.partition(",")[0]) == (0, "tiny: 1 trainings")
    assert results.count_statuses(results.load("runs"))["missing"] == 2
    code, out, err = lthlab_command(capsys, "compute", "tiny.yaml", "--only", "find_ticket")
    assert (code, out) == (2, "")
    assert "did you mean 'find_tickets'?" in err


@pytest.mark.parametrize(("name", "code"), [("stale", 1), ("failed", 1), ("diverged", 0), ("blocked", 0)])
def test_what_makes_computing_a_failure(folder, capsys, monkeypatch, name, code):
    value = expand(spec.read("tiny.yaml"))[0].value
    monkeypatch.setattr(lab, "compute_study", lambda *_, **__: lab.Summary(trainings=2, **{name: [value]}))
    found, out, _ = lthlab_command(capsys, "compute", "tiny.yaml")
    assert found == code
    assert out.splitlines()[1] == f"{name}: 1; `lthlab status tiny.yaml` lists them"
    found, out, _ = lthlab_command(capsys, "compute", "tiny.yaml", "--json")
    assert (found, json.loads(out)[name]) == (code, [value.key])


@pytest.mark.parametrize("flag", [[], ["--deterministic"]])
def test_deterministic(folder, capsys, monkeypatch, flag):
    """Without the flag, the environment decides."""
    asked = []
    monkeypatch.setattr(lab, "compute_study", lambda *_, **named: asked.append(named) or lab.Summary())
    assert lthlab_command(capsys, "compute", "tiny.yaml", *flag)[0] == 0
    assert asked[0]["deterministic"] is (True if flag else None)
    monkeypatch.setattr(stages, "run", lambda config, store, settings: asked.append(settings) or nothing)
    nothing = stages.Ran([], [], "", dict.fromkeys(results.STATUSES, 0))
    assert lthlab_command(capsys, "run", "tiny.yaml", *flag)[0] == 0
    assert asked[1].deterministic is bool(flag)


# --- plans ----------------------------------------------------------------------------------------------------


def test_a_plan(folder, capsys):
    code, out, err = lthlab_command(capsys, "plan", "tiny.yaml", "--set", "reports=counts", "--set", "find.lr=0.1,0.2")
    assert code == 0
    lines = out.splitlines()
    assert (lines[0], max(map(len, lines)) <= 80) == ("tiny, on cpu:", True)
    assert [line.split()[:7] for line in lines[2:6]] == [
        ["find_tickets", "1", "2", "0", "0", "2", "0"],
        ["evaluate_tickets", "1", "2", "2", "0", "2", "0"],
        ["reports", "1", "0", "0", "0", "0", "0"],
        ["in", "all", "3", "4", "2", "0", "4"],
    ]
    assert lines[6].startswith("the time is partly guessed")
    assert not Path("runs").exists()


def test_a_plan_as_json(folder, capsys):
    sets = ["--set", "prune.levels=1,2"]
    lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu", "--only", "find_tickets", *sets)
    code, out, _ = lthlab_command(capsys, "plan", "tiny.yaml", "--json", *sets)
    found = json.loads(out)
    assert (code, found["schema"], found["study"], found["device"]) == (0, 1, "tiny", "cpu")
    facts = {name: found[name] for name in ("notebooks", "trainings", "shared", "done", "left", "epochs", "guessed")}
    assert facts == dict(notebooks=2, trainings=4, shared=2, done=2, left=2, epochs=2, guessed=False)
    assert [(row["stage"], row["trainings"], row["done"], row["epochs"]) for row in found["stages"]] == [
        ("find_tickets", 2, 2, 0),
        ("evaluate_tickets", 2, 0, 2),
    ]
    assert sum(row["bytes"] for row in found["stages"]) == found["bytes"] > 0
    assert sum(row["shared"] for row in found["stages"]) == found["shared"]
    assert len(found["configurations"]) == 2


def test_a_plan_of_a_thousand_configurations_takes_two_seconds_and_no_torch(folder):
    text = STUDY.replace("lr: 0.05", f"lr: {[round(0.001 * n, 3) for n in range(1, 51)]}") + "replicates: 10\n"
    text = text.replace("levels: 1", "levels: [1, 2]").replace("{LT: }", "{LT: , RR: }")
    Path("many.yaml").write_text(text + "panel_by: [find.lr, replicate]\n")
    script = (
        "import sys, time, lthlab.cli as c; code = c.main(['plan', 'many.yaml'])\n"
        "assert not {'torch', 'pandas'} & sys.modules.keys(); print(time.process_time()); sys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    taken = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        *lines, seconds = done.stdout.splitlines()
        assert lines[4].split()[:7] == ["in", "all", "1,000", "3,500", "1,500", "0", "3,500"]
        taken.append(float(seconds))
    assert min(taken) < 2


# --- status ---------------------------------------------------------------------------------------------------


def test_status_tells_what_is_in_training_and_what_may_hang(folder, capsys, monkeypatch):
    group = InTraining("f" * 32, 7, 20, 40, 5, 10, 3.0, 0.5, {"a" * 32: {}, "b" * 32: {}})
    monkeypatch.setattr(runs, "in_training", lambda store: [group, replace(group, silent=4000.0)])
    code, out, _ = lthlab_command(capsys, "status")
    assert code == 0
    assert out.splitlines()[:2] == [
        "in training: 2 replicas, epoch 5 of 10",
        "in training: 2 replicas, epoch 5 of 10; no sign of life for 1:06:40, process 7 may hang",
    ]
    _, out, _ = lthlab_command(capsys, "status", "--json")
    assert [(each["epoch"], each["silent"]) for each in json.loads(out)["running"]] == [(5, 0.5), (5, 4000.0)]


def test_watching_what_is_done_already(folder, capsys):
    lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu")
    for arguments in (["tiny"], ["tiny.yaml"], []):
        code, out, _ = lthlab_command(capsys, "status", *arguments, "--watch")
        assert (code, out) == (0, "0:00:00 find_tickets: 1 done\n0:00:00 evaluate_tickets: 1 done\n")
    lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu", "--set", "name=other")
    code, out, err = lthlab_command(capsys, "status", "--watch")
    assert (code, out, err) == (2, "", "--watch needs one study; allowed: other, tiny\n")


def test_watching_ends_with_ctrl_c(folder, capsys, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu")
    monkeypatch.setattr(watch, "follow", stop)
    code, _, err = lthlab_command(capsys, "status", "tiny", "--watch")
    assert (code, err) == (130, "")


# --- pages and completion -------------------------------------------------------------------------------------


def test_publishing(folder, capsys, monkeypatch):
    asked = []

    def publish(config, notebooks, target, command):
        asked.append((config.reports, notebooks, target, command("run", config.sets), command("publish", ["a=b c"])))
        if len(asked) == 3:
            raise pages.PageError("no good")
        return [target / "counts.html", target / "index.html"]

    monkeypatch.setattr(pages, "publish_study", publish)
    arguments = ["publish", "tiny.yaml", "--set", "reports=counts", "--runs", "elsewhere"]
    code, out, _ = lthlab_command(capsys, *arguments)
    assert (code, out) == (0, "tiny: 1 pages and their index, reports/tiny/index.html\n")
    command = "lthlab run tiny.yaml --set reports=counts --runs elsewhere"
    other = "lthlab publish tiny.yaml --set 'a=b c' --runs elsewhere"
    assert asked == [(("counts",), folder / "elsewhere" / "notebooks" / "tiny", Path("reports/tiny"), command, other)]
    code, out, _ = lthlab_command(capsys, *arguments, "--to", "there", "--json")
    assert (code, json.loads(out)["pages"]) == (0, ["there/counts.html", "there/index.html"])
    assert lthlab_command(capsys, *arguments)[0::2] == (2, "{reports: counts}\nno good\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(folder, capsys, shell):
    code, out, _ = lthlab_command(capsys, "completion", shell)
    assert code == 0
    assert "--stall-after" in out or shell == "tcsh"
    assert "*.yaml" in out


def test_bash_completes_studies_and_options(folder, capsys):
    Path("completion.bash").write_text(lthlab_command(capsys, "completion", "bash")[1])
    Path("other.txt").touch()
    Path("folder").mkdir()
    Path("params").mkdir()
    Path("params/known.yaml").touch()
    ask = 'source completion.bash; COMP_WORDS=(lthlab {}); COMP_CWORD={}; _shtab_lthlab; echo "${{COMPREPLY[@]}}"'
    for words, found in {
        "run t": "tiny.yaml", "plan ''": "known folder/ params/ tiny.yaml", "ru": "run", "plan kn": "known",
        "compute tiny.yaml --dev": "--device", "plan tiny.yaml --device c": "cpu cuda",
        "run tiny.yaml --only e": "evaluate_tickets", "run tiny.yaml --notebooks f": "folder",
        "publish tiny.yaml --to f": "folder",
    }.items():  # fmt: skip
        command = ask.format(words, len(words.split()))
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert sorted(done.stdout.split()) == sorted(found.split()), done.stderr


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (("lr: 0.05", "lr: 0"), [], "tiny.yaml:4:35: find.lr: 0 is not allowed; allowed: above 0"),
        (("tickets: {LT", "tickets: {TL"), [], "tickets.TL: unknown field; allowed: FT, GMP, LRR, LT, PPR, RR, RT"),
        (("name: tiny", "nme: tiny"), [], "tiny.yaml:1:1: nme: unknown field"),
        (("net: lenet_300_100", "net: lenet"), [], "did you mean 'lenet_300_100'?"),
        (("levels: 1", "levels: 0"), [], "tiny.yaml:5:9: prune.levels: 0 is not allowed; allowed: 1 or more"),
        (("{LT: }", "{WR: {rewind: 1ep}}"), [], "tickets.WR.rewind: 1ep is not before the end; allowed: below 1ep"),
        (
            ("", ""),
            ["--set", "data={name: digits, size: 7}"],
            "7 is less than images of 'digits' have, 8 × 8",
        ),
        (("", ""), ["--device", "tpu"], "device 'tpu' is not here; allowed: auto, cpu"),
        (("", ""), ["--device", "cpu:7"], "device 'cpu:7' is not here; allowed: auto, cpu"),
        (("", ""), ["--device", "cuda:99"], "device 'cuda:99' is not here; allowed: auto, cpu"),
    ],
)
def test_bad_input_is_refused_and_leaves_the_store_as_it_was(folder, capsys, change, arguments, words, before):
    if before:
        lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu")
    store = contents("runs")
    Path("tiny.yaml").write_text(STUDY.replace(*change, 1))
    code, out, err = lthlab_command(capsys, "compute", "tiny.yaml", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err
    assert contents("runs") == store
    assert Path("runs").exists() == before


def test_all_problems_are_printed_line_by_line(folder, capsys):
    Path("tiny.yaml").write_text(STUDY.replace("lr: 0.05", "lr: [-1, x]").replace("levels: 1", "levels: 0"))
    code, out, err = lthlab_command(capsys, "compute", "tiny.yaml")
    assert (code, out) == (2, "")
    assert [line.partition(": ")[0] for line in err.splitlines()] == [
        "tiny.yaml:4:40",
        "tiny.yaml:4:44",
        "tiny.yaml:5:9",
    ]


@pytest.mark.parametrize(
    ("study", "says"),
    [
        ("tyny.yaml", "study tyny.yaml: no such file; allowed: bytes, tiny; did you mean 'tiny'?"),
        ("tiny", "study 'tiny' is not in params; allowed: "),
        (".", "study '.' is not in params; allowed: "),
        ("bytes.yaml", "bytes.yaml:1:1: cannot be read: "),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run", "compute", "publish"])
def test_a_study_that_cannot_be_read(folder, capsys, command, study, says):
    Path("bytes.yaml").write_bytes(b"name: \xff")
    code, out, err = lthlab_command(capsys, command, study)
    assert (code, out) == (2, "")
    assert err.startswith(says)
    assert not Path("runs").exists()


def test_a_study_is_found_by_its_name(folder, capsys):
    Path("params").mkdir()
    Path("tiny.yaml").rename("params/tiny.yaml")
    code, out, _ = lthlab_command(capsys, "compute", "tiny", "--device", "cpu")
    assert (code, out.startswith("tiny: 2 trainings, 2 of them now")) == (0, True)


def test_a_store_that_cannot_be_written(folder, capsys):
    Path("file").write_text("in the way")
    before = contents(".")
    for place in ("file", "file/runs", "file/a/b"):
        code, out, err = lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu", "--runs", place)
        assert (code, out) == (2, "")
        assert str(folder / "file") in err
        assert "Traceback" not in err
    assert contents(".") == before


def test_status_of_an_unknown_study(folder, capsys):
    lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu")
    code, out, err = lthlab_command(capsys, "status", "tyny")
    assert (code, out) == (2, "")
    assert err.splitlines()[0].startswith("study 'tyny' is not in params; ")
    assert err.splitlines()[1] == f"study 'tyny' is not in {folder / 'runs'}; allowed: tiny; did you mean 'tiny'?"
    code, out, err = lthlab_command(capsys, "status", "tiny", "--runs", "nowhere")
    assert (code, out, err) == (2, "", "--runs nowhere: there is no store\n")


def test_status_of_a_study_that_was_never_run(folder, capsys):
    assert lthlab_command(capsys, "status", "tiny.yaml") == (0, "tiny: 5 missing; never run\n", "")
    Path("params").mkdir()
    Path("tiny.yaml").rename("params/tiny.yaml")
    assert lthlab_command(capsys, "status", "tiny") == (0, "tiny: 5 missing; never run\n", "")
    assert not Path("runs").exists()


def test_status_of_a_study_that_has_changed_since(folder, capsys):
    lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu", "--set", "find.epochs=2")
    assert lthlab_command(capsys, "status", "tiny.yaml")[1] == "tiny: 5 done\n"
    Path("tiny.yaml").write_text(STUDY.replace("levels: 1", "levels: [1, 2]").replace("lr: 0.05", "lr: [0.06]"))
    _, out, _ = lthlab_command(capsys, "status", "tiny.yaml")
    now, then = ({item.value.key for item in expand(spec.parse(text, sets=["find.epochs=2"]))}
                 for text in (Path("tiny.yaml").read_text(), STUDY))  # fmt: skip
    assert out.splitlines()[1] == (
        f"  the study has changed since: {len(now - then)} values more, {len(then - now)} fewer; `lthlab run` notes it"
    )
    assert now - then and then - now


def test_status_names_failed_notebooks_and_what_is_at_work(folder, capsys):
    sets = ["--set", "find.epochs=2"]
    lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu", *sets)
    name, executed = "find_tickets.lenet_300_100.digits", Path("runs/notebooks/tiny")
    executed.mkdir(parents=True)
    injected = {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": "", "outputs": []}
    error = {"output_type": "error", "ename": "KeyError", "evalue": "'lr'", "traceback": []}
    bad = {"cell_type": "code", "metadata": {}, "source": "", "outputs": [error]}
    (executed / f"{name}.failed.ipynb").write_text(json.dumps({"cells": [{"cell_type": "markdown"}, injected, bad]}))
    with Store("runs").claim(watch.mark("tiny", name)):
        _, out, _ = lthlab_command(capsys, "status", "tiny.yaml")
        [study] = json.loads(lthlab_command(capsys, "status", "--json")[1])["studies"]
    again = f"lthlab run tiny.yaml --only {name} {' '.join(sets)}"
    assert out.splitlines() == [
        "tiny: 5 done",
        f"  failed notebook: {name} in cell 2: KeyError: 'lr'; again: {again}",
        f"  at work: {name}",
    ]
    assert (study["at_work"], [each["cell"] for each in study["failed"]]) == ([name], [2])
    (executed / f"{name}.ipynb").write_text("")
    os.utime(executed / f"{name}.failed.ipynb", (1, 1))
    assert lthlab_command(capsys, "status", "tiny.yaml")[1] == "tiny: 5 done\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "required: COMMAND"),
        ("compte tiny.yaml", "invalid choice: 'compte'"),
        ("compute", "required: study"),
        ("statsu", "(did you mean 'status'?)"),
        ("compute tiny.yaml --jsn", "unrecognized arguments: --jsn (did you mean '--json'?)"),
        ("plan tiny.yaml --repplicates=3", "--repplicates=3 (did you mean '--set replicates=…'?)"),
        ("run tiny.yaml --for 9", "--for: '9' is not a time; allowed: a number and s, min or h, as 30s or 9min"),
        ("compute tiny.yaml --for 0min", "--for: '0min' is not a time"),
        ("run tiny.yaml --stall-after 1d", "--stall-after: '1d' is not a time"),
        ("run tiny.yaml --cell-timeout -3s", "expected one argument"),
        ("run tiny.yaml --slots 0", "--slots: '0' is not allowed; allowed: 1 and more"),
        ("run tiny.yaml --cores two", "--cores: 'two' is not allowed"),
        ("run tiny.yaml --cluster 127.0.0.1:8786", "'127.0.0.1:8786' is not an address; allowed: as tcp://"),
        ("status tiny --json --watch", "--watch: not allowed with argument --json"),
        ("completion fish", "invalid choice: 'fish'"),
    ],
)
def test_a_wrong_command_line(folder, capsys, arguments, says):
    code, out, err = lthlab_command(capsys, *arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("usage: lthlab")
    assert says in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("9min", 540), ("2h", 7200), ("0.5min", 30)])
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("command", ["plan", "run", "compute"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_anything_begins(folder, capsys, monkeypatch, command, number):
    def stop(*arguments):
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(spec, "read", stop)
    code, out, err = lthlab_command(capsys, command, "tiny.yaml")
    assert (code, out) == (128 + number, "")
    assert "stopped; the same command goes on from here" in err
    assert signal.getsignal(signal.SIGTERM) is before


# --- as a process ---------------------------------------------------------------------------------------------


def python_m_lthlab(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lthlab", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)


def test_version(folder):
    done = python_m_lthlab("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"lthlab {lthlab.__version__}\n", "")


def test_a_process_prints_results_on_stdout_and_all_else_on_stderr(folder):
    done = python_m_lthlab("compute", "tiny.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trained"] == 2
    done = python_m_lthlab("status", "tiny.yml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("study tiny.yml: no such file; ")
    assert "Traceback" not in done.stderr


def test_output_that_nobody_reads_is_no_error(folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lthlab", "plan", "tiny.yaml"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_errors_of_the_operating_system_in_words(folder, capsys, monkeypatch):
    def fail(*arguments):
        raise PermissionError(13, "Permission denied", "tiny.yaml")

    monkeypatch.setattr(spec, "read", fail)
    assert lthlab_command(capsys, "plan", "tiny.yaml") == (2, "", "tiny.yaml: permission denied\n")


def test_status_needs_no_torch(folder):
    Store("runs").check_writable()
    script = "import sys, lthlab.cli as c; code = c.main(['status']); print('torch' in sys.modules); sys.exit(code)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "no studies in runs\nFalse\n"


def test_slots_do_not_share_cores(folder, capsys, monkeypatch):
    monkeypatch.setattr(cli, "cores", lambda: 4)
    for given, asked in (("--slots 5", "5 of 1 cores each"), ("--slots 2 --cores 3", "2 of 3 cores each")):
        code, _, err = lthlab_command(capsys, "run", "tiny.yaml", *given.split())
        assert code == 2 and asked in err and "allowed: 4 cores in all" in err
    assert not Path("runs").exists()


def test_the_command_that_runs_again_has_the_options_that_were_given():
    given = "--device cpu --deterministic --slots 2 --cores 1 --cell-timeout {} --stall-after 30s"
    options = cli.parser(cli.RUNS).parse(["run", "a.yaml", *given.format("5min").split()])
    again = cli._command(options, "run", ["find.lr=0.1"], "--only", "x")
    assert again == "lthlab run a.yaml --only x --set find.lr=0.1 " + given.format("300s")
    assert cli._command(cli.parser(cli.RUNS).parse(["run", "a.yaml"]), "run", []) == "lthlab run a.yaml"
