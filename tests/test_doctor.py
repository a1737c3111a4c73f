"""What `doctor` finds: every check right where all is well, and each fault found with its remedy."""

import json
import os
import re
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import helpers
import pytest
import sets
import torch

from lthlab import cli, datasets, devices, doctor, install
from lthlab.doctor import examine
from lthlab.files import Files
from lthlab.kernels import cores
from lthlab.store import Store


def found(store):
    """Findings by what they are about."""
    return {finding.what: finding for finding in examine(store)}


@pytest.fixture
def store(tmp_path):
    """A store with one result."""
    made = Store(tmp_path / "runs")
    key = made.describe('{"kind":"Train"}')
    made.commit(key, 0, {"metrics.jsonl": b"{}"}, {"kind": "train"})
    return made


def test_a_sound_store_on_a_sound_machine(store):
    findings = found(store)
    assert {finding.state for name, finding in findings.items() if name != "GPU"} == {"ok"}
    assert {finding.remedy for name, finding in findings.items() if name != "GPU"} == {""}
    assert findings["results"].text == "1 in 0 studies, all checksums right"
    assert findings["torch"].text.startswith(torch.__version__)
    assert findings["packages to compute"].text.startswith("all ")
    assert findings["allocator"].text == devices.allocator()
    assert findings["cores"].text.startswith(f"{cores()} ")


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    findings = found(Store(tmp_path / "a" / "runs"))
    assert (findings["store"].state, findings["locks"].state) == ("ok", "ok")
    assert "is not there yet" in findings["store"].text
    assert "results" not in findings
    assert list(tmp_path.iterdir()) == []


def test_looking_leaves_nothing(store):
    store.check_writable()
    before = sorted(store.root.rglob("*"))
    found(store)
    assert sorted(store.root.rglob("*")) == before


def test_damaged_results_are_named(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [path] = store.root.rglob("metrics.jsonl")
    helpers.flip(path)
    store.write_study("demo", {"roles": []})
    helpers.flip(store.root / "studies" / "demo.json")
    finding = found(store)["results"]
    assert (finding.state, finding.remedy != "") == ("problem", True)
    assert f"{path}: does not match its checksum" in finding.text and "demo.json" in finding.text
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.startswith("problem  results ")]
    assert cli.main(["doctor", "--json"]) == 1
    listed = json.loads(capsys.readouterr().out)
    assert listed["schema"] == 1
    assert [each["what"] for each in listed["findings"] if each["state"] == "problem"] == ["results"]


def test_what_is_no_part_of_a_result_is_to_be_removed(store):
    (store.root / store.keys()[0] / "notes.txt").write_text("")
    finding = found(store)["results"]
    assert "notes.txt: is no part of a result" in finding.text and "remove what is no part" in finding.remedy


def test_many_damaged_results_are_counted(store):
    for number in range(5):
        store.commit(store.describe(f'{{"kind":"{number}"}}'), 0, {"metrics.jsonl": b"{}"}, {"kind": "train"})
    for path in store.root.rglob("metrics.jsonl"):
        helpers.flip(path)
    assert found(store)["results"].text.endswith("; and 3 more")


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/runs"):
        finding = found(Store(tmp_path / place))["store"]
        assert finding.state == "problem" and "--runs" in finding.remedy


def test_missing_and_old_packages(store, monkeypatch):
    version = metadata.version

    def other(name):
        if name == "papermill":
            raise metadata.PackageNotFoundError
        return {"rich": "9.1", "torch": "2.9.1+cpu"}.get(name) or version(name)

    monkeypatch.setattr(metadata, "version", other)
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRED)
    findings = found(store)
    finding = findings["packages for notebooks"]
    assert finding.state == "warning"
    assert finding.text == "papermill missing, rich 9.1; only run, publish and notebooks do"
    assert finding.remedy == "python -m pip install 'papermill>=2.6' 'rich>=13.7.1'"
    finding = findings["packages to compute"]
    assert (finding.state, finding.remedy) == ("problem", "python -m pip install 'torch>=2.11'")


REQUIRED = ["numpy>=2.0", "torch>=2.11", 'papermill>=2.6; extra == "notebooks"', "rich>=13.7.1; extra == 'notebooks'",
            'pytest>=99; extra == "test"']  # fmt: skip


def test_a_package_that_is_not_installed(store, monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", requires)
    assert found(store)["packages"].state == "warning"


def test_versions_are_compared_as_numbers():
    assert doctor._release("2.11.0+cu132") == (2, 11, 0) > doctor._release("2.9")
    assert doctor._release("3.0rc1") == (3, 0)
    assert doctor._release("") == ()


@pytest.mark.parametrize(("free", "state"), [(2e9, "ok"), (5e8, "warning"), (1e6, "problem")])
def test_little_room_on_the_disk(store, monkeypatch, free, state):
    usage = namedtuple("Usage", "total used free")(0, 0, free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert found(store)["disk"].state == state


def test_locks_that_do_not_lock(store, monkeypatch):
    lock = Files.lock
    monkeypatch.setattr(Files, "lock", lambda self, path: lock(self, path.with_name(os.urandom(8).hex())))
    assert found(store)["locks"].state == "warning"

    def refuse(self, path):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Files, "lock", refuse)
    finding = found(store)["locks"]
    assert finding.state == "problem" and "Operation not supported" in finding.text
    assert not list(store.root.glob(".lthlab-*"))


def test_more_threads_than_cores(store, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores()))
    assert "threads" not in found(store)
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores() + 1))
    finding = found(store)["threads"]
    assert (finding.state, finding.remedy) == ("warning", "unset OMP_NUM_THREADS")


def test_git_is_missing(store, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert found(store)["git"].state == "warning"


def test_a_driver_that_torch_cannot_use(store, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "version")
    assert found(store)["GPU"].state == "ok"
    doctor.DRIVER.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13\n")
    finding = found(store)["GPU"]
    assert finding.state == "warning" and "NVIDIA driver 470.57.02" in finding.text


@pytest.mark.parametrize(
    ("major", "minor", "state"), [(9, 0, "ok"), (8, 9, "ok"), (7, 0, "problem"), (8, 0, "problem")]
)
def test_a_gpu_that_torch_has_no_code_for(store, monkeypatch, major, minor, state):
    facts = namedtuple("Facts", "name total_memory major minor")("A GPU", 16e9, major, minor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: facts)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_86", "sm_90", "sm_120a", "compute_120"])
    finding = found(store)["cuda:0"]
    able = "neither TF32 nor bf16" if major == 7 else "TF32 and bf16"
    assert (finding.state, finding.text.startswith(f"A GPU, 16 GB, {able}")) == (state, True)
    assert ("groups of at most 8 of resnet20 on cifar10, batch size 128" in finding.text) == (state == "ok")


def test_the_allocator(store, monkeypatch):
    monkeypatch.setenv("LTHLAB_ALLOCATOR", "system")
    assert found(store)["allocator"].state == "ok"
    monkeypatch.setenv("LTHLAB_ALLOCATOR", "mine")
    finding = found(store)["allocator"]
    assert (finding.state, finding.remedy) == ("problem", "unset LTHLAB_ALLOCATOR")
    assert "is 'mine'; allowed: system" in finding.text


def test_torch_that_cannot_be_imported(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert found(store)["torch"].state == "problem"


def test_data_sets_that_are_installed_and_damaged_ones(store, monkeypatch, tmp_path):
    monkeypatch.setenv("LTHLAB_DATA", str(tmp_path / "home"))
    assert found(store)["data sets"].text.startswith(f"installed in {tmp_path / 'home'}: none; `lthlab data list`")
    for name, shape in (("first", (3, 6, 5)), ("second", (1, 4, 4))):
        install.import_set(name, sets.class_folders(tmp_path / name, sets.sets_of(shape, 3), ("a", "b", "c")))
    assert ": first, second; " in found(store)["data sets"].text
    (tmp_path / "home" / "first.safetensors").unlink()
    findings = [finding for finding in examine(store) if finding.what == "data sets"]
    assert [finding.state for finding in findings] == ["warning", "ok"]
    assert "first.safetensors is damaged" in findings[0].text and ": second; " in findings[1].text
    assert findings[0].remedy == "`lthlab data import first FOLDER`"


def test_a_streamed_set_whose_images_are_gone(store, monkeypatch, tmp_path):
    monkeypatch.setenv("LTHLAB_DATA", str(tmp_path / "home"))
    sets.class_folders(tmp_path / "images", sets.sets_of((3, 6, 5), 3), ("a", "b", "c"))
    sets.save(sets.images(9, 3, 9, 7), tmp_path / "images" / "train" / "b" / "large.png")
    install.import_set("mine", tmp_path / "images")
    assert found(store)["data sets"].state == "ok"
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert f"'mine' is installed, but {tmp_path / 'images'} is not there" in found(store)["data sets"].text


def test_nothing_is_imported_but_torch(tmp_path):
    script = "import sys, lthlab.cli as c; c.main(['doctor']); print(*sorted(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.splitlines()[-1].split())
    assert "torch" in modules
    assert not modules & {"dask", "distributed", "IPython", "matplotlib", "nbconvert", "pandas", "papermill", "rich"}


# --- networks -------------------------------------------------------------------------------------------------


def test_a_network_is_shown_layer_by_layer(monkeypatch, capsys):
    monkeypatch.setitem(datasets.DATASETS, "cifar", helpers.CIFAR)
    command = ["doctor", "--net", "resnet20", "--data", "cifar", "--prunable", "ma_resnet20"]
    assert cli.main(command) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    assert last == "272,474 parameters; policy 'ma_resnet20' lets 269,824 of them be pruned, 99 %"
    cells = [re.split("  +", row.strip()) for row in rows]
    assert cells[0] == ["layer", "role", "shape", "parameters", "prunable"]
    assert cells[1] == ["conv1", "first", "16×3×3×3", "432", "0"]
    assert cells[2] == ["bn1", "BatchNorm", "16", "32", "0"]
    assert ["layer2.0.downsample.0", "shortcut", "32×16×1×1", "512", "512"] in cells
    assert cells[-1] == ["fc", "head", "10×64", "650", "0"]
    assert len(cells) == 1 + 2 * 21 + 1
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["parameters"], found["prunable"]) == (272_474, 269_824)
    assert found["layers"][-1] == {
        "name": "fc", "role": "head", "shape": [10, 64], "parameters": 650, "prunable": 0
    }  # fmt: skip
    assert found["net"] == {"name": "resnet20"} and found["policy"] == "ma_resnet20"


def test_fields_of_a_network_are_given_behind_its_name(monkeypatch, capsys):
    monkeypatch.setitem(datasets.DATASETS, "cifar", helpers.CIFAR)
    assert cli.main(["doctor", "--net", "vgg19,bias=true,width=64", "--data", "cifar", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 20_040_522 and found["layers"][0]["parameters"] == 1792
    assert found["net"] == {"name": "vgg19", "bias": True}


def test_a_network_of_ones_own_is_shown():
    own = Path(__file__).resolve().parent.parent / "notebooks" / "own.py"
    command = ["doctor", "--net", "two_convolutions", "--data", "odd_digits", "--with", own, "--json"]
    done = subprocess.run([sys.executable, "-m", "lthlab", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["net"], found["data"]) == ({"name": "two_convolutions"}, "odd_digits")
    assert [layer["name"] for layer in found["layers"]] == ["conv1", "bn1", "conv2", "bn2", "fc"]
    assert found["layers"][-1]["shape"] == [2, 24]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--net", "vgg61"], "--net name: network 'vgg61' is not known; allowed: conv2, … did you mean 'vgg1"),
        (["--net", "vgg16,widht=3"], "--net widht: unknown field; allowed: bias, … did you mean 'width'?"),
        (["--net", "vgg16,width=0"], "--net width: 0 is not allowed; allowed: 1 or more"),
        (["--net", "vgg16"], "'vgg16' halves images 4 times, and those of 8×8 pixels are too small"),
        (["--net", "conv4", "--data", "digit"], "--data name: data set 'digit' is not known; allowed: …digits"),
        (["--net", "conv4", "--prunable", "ma_resnet20"], "policy 'ma_resnet20' is for ResNets, not for 'conv4'"),
        (["--net", "conv4", "--prunable", "everything"], "policy 'everything' is not known; allowed: all, "),
    ],
)
def test_what_there_is_not_is_refused(arguments, words, capsys):
    assert cli.main(["doctor", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and [part for part in words.split("…") if part not in printed.err] == [], printed.err
