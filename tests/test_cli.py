"""The command line: exit codes, what goes to which stream, and that bad input leaves nothing behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import lthlab
from lthlab import cli, results, spec
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


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (("lr: 0.05", "lr: 0"), [], "tiny.yaml:4:35: find.lr: 0 is not allowed; allowed: above 0"),
        (("tickets: {LT", "tickets: {TL"), [], "tickets.TL: unknown field; allowed: LT, RR, WR"),
        (("name: tiny", "nme: tiny"), [], "tiny.yaml:1:1: nme: unknown field"),
        (("net: lenet_300_100", "net: lenet"), [], "did you mean 'lenet_300_100'?"),
        (("levels: 1", "levels: 0"), [], "tiny.yaml:5:9: prune.levels: 0 is not allowed; allowed: 1 or more"),
        (("{LT: }", "{WR: {rewind: 1ep}}"), [], "tickets.WR.rewind: 1ep is not before the end; allowed: below 1ep"),
        (("lr: 0.05", "lr: 0.05, precision: bf16"), [], "this version does not compute precision bf16"),
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


@pytest.mark.parametrize("study", ["none.yaml", "."])
def test_a_study_that_cannot_be_read(folder, capsys, study):
    code, out, err = lthlab_command(capsys, "compute", study)
    assert (code, out) == (2, "")
    assert err.startswith(f"{study}:1:1: cannot be read: ")
    assert not Path("runs").exists()


def test_a_store_that_cannot_be_written(folder, capsys):
    Path("file").write_text("in the way")
    before = contents(".")
    for place in ("file", "file/runs", "file/a/b"):
        code, out, err = lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu", "--runs", place)
        assert (code, out) == (2, "")
        assert str(folder / "file") in err
        assert "Traceback" not in err
    assert contents(".") == before


@pytest.mark.parametrize("study", ["tyny", "other.yaml"])
def test_status_of_an_unknown_study(folder, capsys, study):
    lthlab_command(capsys, "compute", "tiny.yaml", "--device", "cpu")
    Path("other.yaml").write_text(STUDY.replace("name: tiny", "name: tyny"))
    code, out, err = lthlab_command(capsys, "status", study)
    assert (code, out) == (2, "")
    assert err == f"study 'tyny' is not in {folder / 'runs'}; allowed: tiny; did you mean 'tiny'?\n"


@pytest.mark.parametrize("arguments", [[], ["compte", "tiny.yaml"], ["compute"], ["compute", "tiny.yaml", "--jsn"]])
def test_a_wrong_command_line(folder, capsys, arguments):
    code, out, err = lthlab_command(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: lthlab")
    assert not Path("runs").exists()


def test_ctrl_c_exits_with_130(folder, capsys, monkeypatch):
    def stop(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(spec, "read", stop)
    code, out, err = lthlab_command(capsys, "compute", "tiny.yaml")
    assert (code, out) == (130, "")
    assert "stopped; the same command goes on from here" in err


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
    assert done.stderr.startswith("tiny.yml:1:1: cannot be read: ")
    assert "Traceback" not in done.stderr


def test_status_needs_no_torch(folder):
    Store("runs").check_writable()
    script = "import sys, lthlab.cli as c; code = c.main(['status']); print('torch' in sys.modules); sys.exit(code)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "no studies in runs\nFalse\n"
