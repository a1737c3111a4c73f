"""The script of real runs, at toy size: cut off and continued on another machine, it comes to the same bits."""

import re

import helpers
import pytest

from benchmarks import parcels
from lthlab import results
from lthlab.store import Store

DENSE = """\
name: cifar10_dense
net: lenet_300_100
data: {name: digits, train_size: 1200}
replicates: 4
find: {epochs: 200, batch_size: 16, lr: 0.02}
measures: {correlation_indicator: {p: 0.1, of: [dense]}}
"""
OMP = """\
name: cifar10_omp
net: lenet_300_100
data: {name: digits, train_size: 1200}
find: {epochs: 200, batch_size: 16, lr: 0.02}
prune: {levels: [3]}
tickets: {LT: {methods: [OMP]}, RR: {methods: [OMP]}}
"""


@pytest.fixture
def studies(tmp_path):
    folder = tmp_path / "studies"
    folder.mkdir()
    for name, text in (("dense", DENSE), ("omp", OMP)):
        (folder / f"cifar10_{name}.yaml").write_text(text)
    return folder


def run(studies, tmp_path, machine, minutes, *more, data="data"):
    store = helpers.store(tmp_path / machine)
    command = ["--minutes", str(minutes), "--device", "cpu", "--runs", str(store.root), "--studies", str(studies)]
    return parcels.main([*command, "--data", str(tmp_path / data), *more])


def test_parcels_go_on_from_machine_to_machine_to_the_same_bits(studies, tmp_path, capsys, monkeypatch):
    """The first piece has three seconds for the dense networks, which take longer."""
    run_command = parcels.command

    def cut(*arguments):
        return run_command(*arguments[:-1], "3s") if arguments[0] == "compute" else run_command(*arguments)

    assert run(studies, tmp_path, "whole", 10, data="undisturbed") == 0
    text = capsys.readouterr().out
    assert re.search(r"^cifar10_dense: 800 epochs left, about [\d,]+ s, parcels 1 to 1$", text, re.MULTILINE)
    assert re.search(r"^cifar10_omp: 400 epochs in [\d,]+ s, 0 left\ncifar10_omp: exported", text, re.MULTILINE)
    with monkeypatch.context() as patch:
        patch.setattr(parcels, "command", cut)
        assert run(studies, tmp_path, "first", 10) == 0
    left = [int(number) for number in re.findall(r" s, (\d+) left", capsys.readouterr().out)]
    assert left[0] > 0 and left[1] > 0
    assert run(studies, tmp_path, "second", 10) == 0
    text = capsys.readouterr().out
    again = re.search(r"^cifar10_dense: (\d+) epochs left, about", text)
    assert again and 0 < int(again[1]) <= left[0], "the tickets' piece trains dense networks too"
    assert text.count(" s, 0 left") == 2
    assert run(studies, tmp_path, "third", 10) == 0
    assert capsys.readouterr().out == "cifar10_dense: done\ncifar10_omp: done\n"
    for name in ("cifar10_dense", "cifar10_omp"):
        whole, parts = (results.load(Store(tmp_path / store), name) for store in ("whole", "second"))
        assert whole.equals(parts) and set(whole["status"]) == {"done"}


def test_more_seeds_come_last_and_stay(studies, tmp_path, capsys, monkeypatch):
    """One seed is done once its part of three is, and does not take their place."""
    (studies / "cifar10_imp.yaml").write_text(OMP.replace("cifar10_omp", "cifar10_imp").replace("200,", "2,"))
    (studies / "cifar10_dense.yaml").unlink()
    (studies / "cifar10_omp.yaml").unlink()
    assert run(studies, tmp_path, "one", 10) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == 3 * ["cifar10_imp"] + 3 * ["cifar10_imp replicates=3"]
    assert run(studies, tmp_path, "two", 10) == 0
    assert capsys.readouterr().out == "cifar10_imp: done\ncifar10_imp replicates=3: done\n"
    frame = results.load(Store(tmp_path / "two"), "cifar10_imp")
    assert set(frame["replicate"]) == {0, 1, 2} and set(frame["status"]) == {"done"}


def test_the_list_computes_nothing(studies, tmp_path, capsys):
    assert run(studies, tmp_path, "new", 9, "--list") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 and not (tmp_path / "data").exists()
