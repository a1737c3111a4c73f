"""Bills of several studies: what each takes, what they share, and what is wrong with some."""

import json
from pathlib import Path

import helpers
import pytest

from lthlab import bills, cli, lab, spec, stages, tickets
from lthlab.plan import needs
from lthlab.store import Store

ONE = """\
name: one
net: lenet_300_100
data: {name: digits, train_size: 128}
replicates: 2
find: {epochs: 2, batch_size: 64, lr: [0.05, 0.1]}
prune: {levels: [1, 2]}
tickets: {LT: }
"""
TWO = ONE.replace("one", "two").replace("[0.05, 0.1]", "[0.1, 0.2]").replace("LT: ", "LT: , RR: ")
THREE = ONE.replace("one", "three").replace("epochs: 2", "epochs: 1")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a folder with three studies."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("one", ONE), ("two", TWO), ("three", THREE)):
        Path(f"{name}.yaml").write_text(text)
    return tmp_path


def lthlab_command(capsys, *arguments):
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def planned(capsys, *arguments):
    code, out, _ = lthlab_command(capsys, "plan", *arguments, "--device", "cpu", "--json")
    return code, json.loads(out)


def trainings(*texts):
    return set(needs(item.value for text in texts for item in tickets.expand(spec.parse(text))))


def test_what_several_studies_ask_for_is_counted_once(folder, capsys):
    code, found = planned(capsys, "one.yaml", "two.yaml", "three.yaml")
    each, whole = found["studies"], found["together"]
    assert (code, [bill["study"] for bill in each]) == (0, ["one", "two", "three"])
    assert [bill["trainings"] for bill in each] == [len(trainings(text)) for text in (ONE, TWO, THREE)]
    assert whole["trainings"] == len(trainings(ONE, TWO, THREE))
    both = trainings(ONE) & trainings(TWO)
    shared = whole["in_common"]
    assert both and shared["trainings"] == len(both)
    assert shared["by_study"] == {"one": len(both), "two": len(both), "three": 0}
    assert shared["less"]["trainings"] == shared["less"]["left"] == len(both)
    assert shared["less"]["epochs"] == sum(bill["epochs"] for bill in each) - whole["epochs"] == 2 * len(both)
    assert shared["less"]["hours"] > 0 and shared["less"]["bytes"] > 0


def test_a_training_that_one_study_takes_farther_is_counted_to_its_end():
    short = ONE.replace("name: one", "name: short").replace("levels: [1, 2]", "levels: [1], at: 1ep")
    short = short.replace("LT: ", "LT: {methods: OMP}")
    texts = [ONE, short]
    store, settings = Store("nowhere"), stages.Settings(device="cpu")
    found = bills.together([bills.bill(spec.parse(text), store, settings) for text in texts], store, settings)
    dense = trainings(ONE) & trainings(short)
    assert len(dense) == 4
    assert found.forecast.whole.epochs == sum(
        need.until // 2 for need in needs(i.value for text in texts for i in tickets.expand(spec.parse(text))).values()
    ) - sum(train.start // 2 for train in trainings(*texts))


def test_studies_of_configurations_of_one_name_are_kept_apart(folder):
    store, settings = Store("nowhere"), stages.Settings(device="cpu")
    each = [bills.bill(spec.parse(text), store, settings) for text in (ONE, TWO)]
    found = bills.together(each, store, settings)
    assert len(found.forecast.configurations) == sum(len(bill.forecast.configurations) for bill in each) == 4
    assert len({work.name for work in found.forecast.configurations}) == 4


def test_what_is_done_is_done_for_all(folder, capsys):
    store = helpers.store(folder / "runs")
    lab.compute_study(spec.parse(ONE), store, "cpu")
    _, found = planned(capsys, "one.yaml", "two.yaml")
    assert [bill["left"] for bill in found["studies"]] == [0, len(trainings(TWO) - trainings(ONE))]
    assert found["together"]["left"] == found["studies"][1]["left"]
    assert found["together"]["done"] == len(trainings(ONE))


def test_a_line_for_each_study_and_one_for_all(folder, capsys):
    code, out, _ = lthlab_command(capsys, "plan", "one.yaml", "two.yaml", "--device", "cpu")
    first, _, *lines = out.splitlines()
    both, every = len(trainings(ONE) & trainings(TWO)), len(trainings(ONE, TWO))
    assert (code, first) == (0, "2 studies, on cpu:")
    assert [line.split()[:4] for line in lines[:3]] == [
        ["one", "2", str(len(trainings(ONE))), str(both)],
        ["two", "2", str(len(trainings(TWO))), str(both)],
        ["together", "4", str(every), str(both)],
    ]
    assert f"together that is {both} trainings, {2 * both} epochs and " in lines[3]


def test_one_study_is_planned_stage_by_stage_also_if_it_is_named_twice(folder, capsys):
    once = lthlab_command(capsys, "plan", "one.yaml", "--device", "cpu")
    assert once == lthlab_command(capsys, "plan", "one.yaml", "one.yaml", "--device", "cpu")
    assert once[1].splitlines()[0] == "one, on cpu:"


def test_what_is_wrong_with_some_studies_hides_neither_each_other_nor_the_rest(folder, capsys):
    Path("two.yaml").write_text(TWO.replace("epochs: 2", "epochs: 0"))
    Path("three.yaml").write_text(THREE.replace("LT: ", "TL: "))
    Path("four.yaml").write_text(ONE)
    names = [f"{name}.yaml" for name in ("one", "two", "three", "four", "five")]
    code, out, err = lthlab_command(capsys, "plan", *names, "--device", "cpu")
    assert (code, out.splitlines()[0]) == (2, "one, on cpu:")
    for words in (
        "two.yaml:5:8: find.epochs: 0 is not allowed",
        "three.yaml:7:11: tickets.TL: unknown field",
        "four.yaml: a study 'one' is asked for already",
        "study five.yaml: no such file",
        "left out: 4 of 5 studies",
    ):
        assert words in err
    code, out, err = lthlab_command(capsys, "plan", "two.yaml", "three.yaml", "--device", "cpu")
    assert (code, out) == (2, "")
    assert "two.yaml:5:8" in err and "three.yaml:7:11" in err


def test_settings_and_small_forms_of_several_studies(folder, capsys):
    code, found = planned(capsys, "one.yaml", "two.yaml", "--set", "find.lr=0.3", "--set", "tickets.RR=false")
    assert (code, found["together"]["trainings"]) == (0, found["studies"][0]["trainings"])
    for name, text in (("one", ONE), ("two", TWO)):
        Path(f"{name}.yaml").write_text(text + "mini: {replicates: 1}\n")
    code, found = planned(capsys, "one.yaml", "two.yaml", "--mini")
    assert (code, [bill["study"] for bill in found["studies"]]) == (0, ["one_mini", "two_mini"])
    assert found["studies"][0]["trainings"] == len(trainings(ONE)) // 2
