"""`lthlab data`, and studies on data sets of one's own: registered by a module, or installed."""

import json
import subprocess
import sys
from pathlib import Path

import helpers
import pytest
import sets

from lthlab import catalog, cli, data, datasets, install, results, studies
from lthlab.errors import InputError
from lthlab.store import Store

STUDY = """\
name: own
net: lenet_300_100
data: {name: stripes, val_size: 10}
find: {epochs: 2, batch_size: 50, lr: 0.1}
prune: {levels: 1}
tickets: {LT: }
"""
MODULE = '''\
"""Stripes, lying and standing."""

import numpy as np

from lthlab import data
from lthlab.datasets import DataFacts


@data.register("stripes", DataFacts((1, 8, 8), 2, 200, 60))
def stripes():
    labels = np.arange(260) % 2
    lying = np.random.default_rng(0).integers(0, 256, (260, 1, 8, 1), np.uint8).repeat(8, 3)
    images = np.where(labels[:, None, None, None] == 1, lying.swapaxes(2, 3), lying)
    return {"train_x": images[:200], "train_y": labels[:200], "test_x": images[200:], "test_y": labels[200:]}
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in an empty folder with a study; what is imported and registered is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTHLAB_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("LTHLAB_WITH", "")
    monkeypatch.setattr(data, "_sources", dict(data._sources))
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = dict(datasets.DATASETS)
    Path("own.yaml").write_text(STUDY)
    yield tmp_path
    datasets.DATASETS.clear()
    datasets.DATASETS.update(known)
    sys.modules.pop("mine", None)


def command(capsys, *arguments):
    """Run a command in this process; returns exit code, stdout and stderr."""
    try:
        code = cli.main([*map(str, arguments)])
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- lthlab data ----------------------------------------------------------------------------------------------


def test_import_list_and_verify(folder, capsys):
    sets.class_folders(folder / "images", sets.sets_of((3, 6, 5), 3), ("a", "b", "c"))
    code, out, _ = command(capsys, "data", "import", "mine", folder / "images")
    fingerprint = datasets.facts_of("mine").fingerprint
    assert code == 0
    text = (
        f"mine: 24 training and 9 test images of 3 classes, fingerprint {fingerprint}, installed in {folder / 'home'}"
    )
    assert out.strip() == text
    code, out, _ = command(capsys, "data", "list")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0 and out.startswith(f"data home: {folder / 'home'}\n")
    assert lines["mine"].split() == ["mine", "33", "3", "3×6×5", "0", "MB", "yes", fingerprint]
    assert lines["svhn"].split()[-4:] == ["no", "non-commercial", "use", "only"]
    assert command(capsys, "data", "verify", "mine")[:2] == (0, "mine: what is installed is whole\n")
    path = folder / "home" / "mine.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    code, _, err = command(capsys, "data", "verify", "mine")
    assert code == 2 and "mine.safetensors is damaged" in err


def test_json(folder, capsys):
    sets.class_folders(folder / "images", sets.sets_of((3, 6, 5), 3), ("a", "b", "c"))
    sets.save(sets.images(9, 3, 9, 7), folder / "images" / "train" / "b" / "large.png")
    code, out, _ = command(capsys, "data", "import", "mine", folder / "images", "--json")
    found = json.loads(out)
    assert (code, found["schema"], found["facts"]["train"], found["facts"]["shape"]) == (0, 1, 25, [3, 224, 224])
    code, out, _ = command(capsys, "data", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)["sets"]}
    assert rows["mine"]["installed"] == "streamed" and rows["mnist"]["installed"] == "no"
    path = sets.save(sets.images(8, 3, 9, 7), folder / "images" / "train" / "b" / "large.png")
    code, out, _ = command(capsys, "data", "verify", "mine", "--json")
    assert (code, json.loads(out)["wrong"]) == (1, [f"{path} is another image than the installed one"])
    sets.class_folders(folder / "small", sets.sets_of((3, 6, 5), 3), ("a", "b", "c"))
    assert json.loads(command(capsys, "data", "import", "mine", "small", "--size", 4, "--json")[1])["facts"][
        "shape"
    ] == [3, 4, 4]


def test_a_damaged_set_is_listed(folder, capsys):
    (folder / "home").mkdir()
    (folder / "home" / "mine.json").write_text("{")
    code, out, _ = command(capsys, "data", "list")
    lines = {line.split()[0]: line.split() for line in out.splitlines()}
    assert code == 0 and lines["mine"] == ["mine", "damaged"] and "svhn" in lines


def test_fetching_says_what_comes(folder, capsys, monkeypatch):
    monkeypatch.setattr(install, "download", lambda archive, path: pytest.fail("was downloaded"))
    monkeypatch.setattr(install.shutil, "disk_usage", lambda _: install.shutil._ntuple_diskusage(10, 10, 1000))
    code, out, err = command(capsys, "data", "fetch", "mnist")
    assert code == 2 and "MB free" in err
    assert out.startswith("mnist: handwritten digits; 11.6 MB; CC BY-SA 3.0\n") and out.count("MD5") == 4
    code, out, err = command(capsys, "data", "fetch", "minst")
    assert code == 2 and "did you mean 'mnist'?" in err
    monkeypatch.setattr(catalog, "is_installed", lambda name: True)
    assert command(capsys, "data", "fetch", "mnist")[1].startswith("mnist is installed already")


def test_a_set_whose_images_are_gone_can_be_fetched_again(folder, capsys, monkeypatch):
    monkeypatch.setattr(install, "fetch", lambda name, tell: pytest.fail("was fetched"))
    (folder / "home").mkdir()
    (folder / "home" / "places365.json").write_text(json.dumps({"root": str(folder / "gone")}))
    with pytest.raises(pytest.fail.Exception, match="was fetched"):
        command(capsys, "data", "fetch", "places365")


def test_names_are_completed(folder, capsys):
    Path("completion.bash").write_text(command(capsys, "completion", "bash")[1])
    ask = (
        'source completion.bash; COMP_WORDS=(lthlab data fetch c); COMP_CWORD=3; _shtab_lthlab; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
    assert sorted(done.stdout.split()) == ["cifar10", "cifar100"], done.stderr


# --- studies --------------------------------------------------------------------------------------------------


def test_a_study_on_a_registered_set(folder, capsys):
    """The error of the first load tells the facts; with them the module gives training, masks and results."""
    own = ("--with", "elsewhere/mine.py")
    Path("elsewhere").mkdir()
    Path("elsewhere/mine.py").write_text(MODULE)
    code, _, err = command(capsys, "compute", "own.yaml", "--device", "cpu")
    assert code == 2 and "data set 'stripes' is not known" in err
    code, out, _ = command(capsys, "plan", "own.yaml", *own)
    assert code == 0 and "trainings" in out
    code, _, err = command(capsys, "compute", "own.yaml", *own, "--device", "cpu")
    assert code == 2 and not Path("runs/studies").exists()
    facts = err.strip().rpartition(" is described by ")[2]
    assert facts.startswith("DataFacts(shape=(1, 8, 8), classes=2, train=200, test=60, fingerprint='")
    text = MODULE.replace("DataFacts((1, 8, 8), 2, 200, 60)", facts)
    assert len(text.splitlines()) < 20
    Path("elsewhere/mine.py").write_text(text)
    del datasets.DATASETS["stripes"], sys.modules["mine"]
    code, out, err = command(capsys, "compute", "own.yaml", *own, "--device", "cpu")
    assert (code, out.startswith("own: 2 trainings, 2 of them now")) == (0, True), err
    frame = results.load(Store("runs"), "own")
    assert set(frame["status"]) == {"done"} and set(frame["data"]) == {"stripes"}
    accuracy = frame[(frame["metric"] == "test_accuracy") & (frame["ticket"] == "dense")]["value"]
    assert accuracy.iloc[-1] > 0.9
    assert command(capsys, "status", "own.yaml", *own)[:2] == (0, "own: 5 done\n")
    code, _, err = command(capsys, "publish", "own.yaml", *own)
    assert code == 2 and "not known" not in err


def test_a_study_on_an_installed_set(folder, capsys):
    drawn = sets.sets_of((1, 8, 8), 2, 60, 20)
    Path("own.yaml").write_text(STUDY.replace("stripes", "squares"))
    code, _, err = command(capsys, "plan", "own.yaml")
    assert code == 2 and "data set 'squares' is not known; allowed: cifar10, " in err
    command(capsys, "data", "import", "squares", sets.class_folders(folder / "images", drawn, ("a", "b")))
    code, out, err = command(capsys, "compute", "own.yaml", "--device", "cpu")
    assert (code, out.startswith("own: 2 trainings, 2 of them now")) == (0, True), err
    described = json.loads(next(Path("runs").glob("*/description.json")).read_bytes())
    assert datasets.facts_of("squares").fingerprint in json.dumps(described)
    (folder / "home" / "squares.safetensors").unlink()
    code, out, _ = command(capsys, "compute", "own.yaml", "--device", "cpu")
    assert (code, out.startswith("own: 2 trainings, 0 of them now")) == (0, True)  # what is done needs no images


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_a_set_that_is_not_installed_is_planned_but_not_computed(folder, capsys, name):
    helpers.store(folder / "runs")
    Path("own.yaml").write_text(STUDY.replace("{name: stripes, val_size: 10}", f"[digits, {name}]"))
    code, out, _ = command(capsys, "plan", "own.yaml")
    absent = f"data set '{name}' is not installed: there is no {folder}/home/{name}.json; `lthlab data fetch {name}`"
    assert code == 0 and "trainings" in out and absent in out
    (said,) = json.loads(command(capsys, "plan", "own.yaml", "--json")[1])["absent"]
    assert said.startswith(absent)
    (folder / "notebooks").mkdir()
    for stage in ("find_tickets", "evaluate_tickets"):
        Path(f"notebooks/{stage}.ipynb").write_text(
            (Path(__file__).parent.parent / "notebooks" / f"{stage}.ipynb").read_text()
        )
    for verb in ("compute", "run"):
        code, _, err = command(capsys, verb, "own.yaml", "--device", "cpu")
        assert code == 2
        assert f"there is no {folder}/home/{name}.json; `lthlab data fetch {name}` downloads it" in err
    assert not Path("runs/notebooks").exists()
    assert not list(Path("runs").glob("*/0"))  # digits are not trained either


@pytest.mark.parametrize(
    ("text", "given", "says"),
    [
        (None, "gone.py", "gone.py: no such file"),
        ("1 / 0", "mine.py", "mine.py: ZeroDivisionError: division by zero"),
        ("def", "mine.py", "mine.py: SyntaxError"),
        ("import lthlabb", "mine.py", "ModuleNotFoundError: No module named 'lthlabb'"),
        (None, "no_such_module", "--with no_such_module: ModuleNotFoundError"),
        (MODULE.replace('"stripes"', '"digits"'), "mine.py", "ValueError: data set 'digits' is in use already"),
    ],
)
def test_modules_that_cannot_be_imported(folder, capsys, text, given, says):
    if text is not None:
        Path("mine.py").write_text(text)
    code, _, err = command(capsys, "plan", "own.yaml", "--with", given)
    assert code == 2 and says in err and "Traceback" not in err


def test_another_module_of_the_name(folder):
    Path("json.py").write_text("")
    with pytest.raises(InputError, match="json.py: module 'json' is .*lib.*; allowed: another name"):
        studies.import_modules(["json.py"])


def test_modules_reach_the_commands_that_are_shown():
    options = cli.parser(cli.RUNS).parse(["run", "a.yaml", "--with", "b.py", "--with", "c"])
    assert cli._command(options, "run", ["find.lr=0.1"]) == "lthlab run a.yaml --with b.py --with c --set find.lr=0.1"
