"""The small form of a study: what its section `mini` changes, takes away and refuses."""

import json
from pathlib import Path

import jsonschema
import pytest
import test_run

from lthlab import cli, schema, spec, tickets, trees
from lthlab.spec import StudyError

STUDY = """\
name: large
title: A large study
net: {name: resnet20, width: 16}
data: {name: cifar10, augment: crop_flip}
replicates: 3
find: {epochs: 160, batch_size: 64, lr: [0.01, 0.1], warmup: 20ep}
prune: {levels: [4, 8, 11]}
tickets:
  LT: {methods: [IMP, OMP]}
  RR: {methods: [IMP, OMP]}
  WR: {methods: [IMP], rewind: 8ep}
measures: {correlation_indicator: {p: 0.1}, weight_std: }
reports: [winning_tickets]
"""
MINI = """\
mini:
  net: {width: 4}
  data: {name: digits, train_size: 256}
  replicates: 1
  find: {epochs: 3, warmup: }
  prune: {levels: [2]}
  tickets: {WR: {rewind: 1ep}, RR: null}
  measures: {weight_std: null}
"""


def small(text=STUDY + MINI, sets=()):
    return spec.parse(text, "study.yaml", sets, mini=True)


def problems(text, mini=True, sets=()):
    with pytest.raises(StudyError) as caught:
        spec.parse(text, "study.yaml", sets, mini)
    return [(p.line, p.column, p.field, p.message) for p in caught.value.problems]


def test_the_mini_form_lies_over_the_study():
    config = small()
    [panel] = config.panels
    assert (panel.net.name, panel.net.width, panel.replicates) == ("resnet20", 4, 1)
    assert (panel.data.name, panel.data.images, panel.data.augment) == ("digits", 256, "none")  # a set of its own
    assert [(find.epochs, find.batch_size, find.lr) for find, _ in panel.recipes] == [(3, 64, 0.01), (3, 64, 0.1)]
    assert [level.k for level in panel.levels] == [2]
    assert config.reports == ("winning_tickets",)


def test_null_takes_away_and_what_is_not_named_stays():
    [panel] = small().panels
    assert {name for name, ticket in panel.tickets if ticket is not None} == {"LT", "WR"}
    assert (panel.tickets.WR.methods, panel.tickets.WR.rewind) == (["IMP"], ["1ep"])
    assert {find.warmup for find, _ in panel.recipes} == {"0ep"}
    assert {name for name, measure in panel.measures if measure is not None} == {"correlation_indicator"}
    text = STUDY + "eval: {lr: [0.1, 0.2]}\n" + MINI
    assert len(small(text).panels[0].recipes) == 4
    assert len(small(text + "  eval: null\n").panels[0].recipes) == 2


def test_name_and_title_say_that_it_is_small():
    config = small()
    assert (config.name, config.title) == ("large_mini", "A large study (mini)")
    assert config.named == ["large", "--mini"]
    whole = spec.parse(STUDY + MINI, "study.yaml")
    assert (whole.name, whole.title, whole.named) == ("large", "A large study", ["large"])
    assert small(sets=["name=other"]).name == "other_mini"


def test_without_the_option_the_study_is_as_without_the_section():
    assert spec.parse(STUDY + MINI, "study.yaml") == spec.parse(STUDY, "study.yaml")


def test_the_document_says_all_of_the_mini_form():
    config = small(sets=["find.lr=0.3"])
    again = spec.resolved(json.loads(json.dumps(config.document)), config.sets)
    assert again == config
    assert tickets.expand(again) == tickets.expand(config)


def test_settings_lie_over_the_mini_form():
    [panel] = small(sets=["find.epochs=5", "data.train_size=100"]).panels
    assert ({find.epochs for find, _ in panel.recipes}, panel.data.images) == ({5}, 100)


PANELS = """\
panels:
  - {find: {lr: 0.1}}
  - {net: resnet14, prune: {levels: [4]}}
"""


def test_the_mini_form_lies_over_every_panel():
    first, second = small(STUDY + PANELS + MINI.replace("net: {width: 4}\n", "net: {width: 8}\n")).panels
    assert [(p.net.name, p.net.width, p.data.name) for p in (first, second)] == [
        ("resnet20", 8, "digits"), ("resnet14", 8, "digits")
    ]  # fmt: skip
    assert [[find.lr for find, _ in panel.recipes] for panel in (first, second)] == [[0.1], [0.01, 0.1]]
    assert [[level.k for level in panel.levels] for panel in (first, second)] == [[2], [2]]


def test_panels_of_the_mini_form_replace_those_of_the_study():
    more = "  panels: [{net: {name: resnet8, width: 2}}, {find: {lr: 0.2}, tickets: {LT: null}}]\n"
    first, second = small(STUDY + PANELS + MINI + more).panels
    assert [(p.net.name, p.net.width) for p in (first, second)] == [("resnet8", 2), ("resnet20", 4)]
    assert [[find.lr for find, _ in panel.recipes] for panel in (first, second)] == [[0.01, 0.1], [0.2]]
    assert [panel.tickets.LT is None for panel in (first, second)] == [False, True]
    assert len(spec.parse(STUDY + PANELS + MINI + more).panels) == 2


def test_a_list_of_networks_is_replaced_as_a_whole():
    text = STUDY.replace("net: {name: resnet20, width: 16}", "net: [resnet20, resnet14]")
    found = small(text + MINI.replace("{width: 4}", "[{name: resnet8, width: 2}, lenet_300_100]"))
    assert [panel.net.name for panel in found.panels] == ["resnet8", "lenet_300_100"]
    assert [panel.net.width for panel in found.panels][0] == 2


def test_presets_stay_below(tmp_path):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "one.yaml").write_text("find: {momentum: 0.5, warmup: 2ep}\n")
    text = STUDY.replace("warmup: 20ep", "weight_decay: 1e-4")
    (tmp_path / "s.yaml").write_text("presets: one\n" + text + MINI)
    find, _ = spec.read(tmp_path / "s.yaml", mini=True).panels[0].recipes[0]
    assert (find.momentum, find.warmup, find.weight_decay) == (0.5, "0ep", 1e-4)


WRONG = [
    ("  net: {widht: 4}\n", (15, 9, "mini.net.widht", "did you mean 'width'?")),
    ("  nett: resnet8\n", (15, 3, "mini.nett", "unknown field; …did you mean 'net'?")),
    ("  presets: ma_cifar\n", (15, 3, "mini.presets", "not for mini; allowed: data, eval, find")),
    ("  name: x\n", (15, 3, "mini.name", "not for mini; allowed: data, eval, find")),
    ("  find: {epochs: 0}\n", (15, 10, "mini.find.epochs", "0 is not allowed")),
    ("  find: {lr: [0.1, x]}\n", (15, 20, "mini.find.lr.1", "'x' is not allowed")),
    ("  tickets: {RT: }\n", (15, 13, "mini.tickets.RT", "there is nothing; to ask for it, write {}")),
    ("  panels: [{title: x}]\n", (15, 13, "mini.panels.0.title", "not for a panel")),
    ("  panels: []\n", (15, 3, "mini.panels", "[] is not allowed; allowed: one panel or more")),
    ("  panels: [{tickets: {RT: }}]\n", (15, 23, "mini.panels.0.tickets.RT", "there is nothing")),
]  # fmt: skip


@pytest.mark.parametrize("mini", [True, False])
@pytest.mark.parametrize(("more", "expected"), WRONG)
def test_what_is_wrong_is_said_at_its_place_with_and_without_the_option(more, expected, mini):
    fitting = "  data: digits\n" if "data" not in more else ""
    [(line, column, field, message)] = problems(f"{STUDY}mini:\n{more}{fitting}", mini)
    assert (line, column, field) == expected[:3]
    assert [part for part in expected[3].split("…") if part not in message] == []


def test_what_is_wrong_with_the_study_in_its_mini_form_alone_is_told_apart():
    found = problems(STUDY + "mini:\n  find: {epochs: 6, warmup: }\n", mini=False)
    assert {(line, field) for line, _, field, _ in found} == {(11, "tickets.WR.rewind")}
    assert all(message.startswith("in the mini form: ") for *_, message in found)
    [asked] = problems(STUDY + "mini:\n  find: {epochs: 6, warmup: }\n")
    assert f"in the mini form: {asked[3]}" == found[0][3]


def test_what_both_forms_have_wrong_is_said_once():
    found = problems((STUDY + MINI).replace("batch_size: 64", "batch_size: 0"), mini=False)
    assert [field for _, _, field, _ in found] == ["find.batch_size"]


def test_settings_need_not_fit_the_form_that_is_not_asked_for():
    config = spec.parse(STUDY + MINI, "study.yaml", ["tickets.WR.rewind=20ep"])
    assert config.panels[0].tickets.WR.rewind == ["20ep"]


@pytest.mark.parametrize("value", ["", " 3", " [1]", " small"])
def test_the_section_is_a_mapping(value):
    [(line, column, field, message)] = problems(f"{STUDY}mini:{value}\n", mini=False)
    assert (line, column, field) == (14, 1, "mini")
    assert message.endswith("is not allowed; allowed: a mapping")


def test_a_study_without_the_section_has_no_mini_form():
    assert problems(STUDY) == [(1, 1, "mini", "missing; --mini needs it")]


def test_no_study_is_named_as_if_it_were_small():
    [(line, column, field, message)] = problems(STUDY.replace("name: large", "name: large_mini"), mini=False)
    assert (line, column, field) == (1, 1, "name")
    assert "'large_mini': only --mini makes names that end so" in message


@pytest.mark.parametrize("option", ["mini=1", "mini.find.lr=0.1"])
def test_the_section_itself_cannot_be_set(option):
    [(_, _, _, message)] = problems(STUDY + MINI, sets=[option])
    assert message.startswith("cannot be set")


def test_the_schema_knows_the_section():
    takes = jsonschema.Draft202012Validator(schema.study()).is_valid

    def valid(text):
        return takes(trees.load(text, "s.yaml")[0].plain)

    assert valid(STUDY + MINI + "  eval: null\n  panels: [{net: {width: 2}}]\n")
    assert not valid(STUDY + "mini: {name: x}\n")
    assert not valid(STUDY + "mini: {find: {epcohs: 3}}\n")
    assert not valid(STUDY + "mini: 3\n")


# --- the command line -----------------------------------------------------------------------------------------

RUN = (
    test_run.STUDY.replace("epochs: 2", "epochs: 200")
    + "mini: {find: {epochs: 1, lr: 0.1}, prune: {levels: 2}, tickets: {RR: null}}\n"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a folder with notebooks and a study that has a mini form."""
    monkeypatch.chdir(tmp_path)
    test_run.prepare(tmp_path, RUN)
    return tmp_path


def lthlab_command(capsys, *arguments):
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_notebooks_of_the_mini_form_are_executed_and_commands_name_it(folder, capsys):
    code, out, _ = lthlab_command(capsys, "run", "tiny.yaml", "--mini", "--device", "cpu", "--json")
    told = json.loads(out)
    assert (code, told["study"], told["counts"]["done"], told["values"]["done"]) == (0, "tiny_mini", 3, 7)
    executed = sorted(path.name for path in (folder / "runs" / "notebooks" / "tiny_mini").glob("*.ipynb"))
    assert executed == [
        "counts.ipynb",
        "evaluate_tickets.lenet_300_100.digits.find_lr-0.1.ipynb",
        "find_tickets.lenet_300_100.digits.find_lr-0.1.ipynb",
    ]
    code, out, _ = lthlab_command(capsys, "status", "tiny.yaml", "--mini")
    assert (code, out) == (0, "tiny_mini: 7 done\n")
    code, out, _ = lthlab_command(capsys, "publish", "tiny.yaml", "--mini", "--json")
    assert code == 0
    assert Path("reports/tiny_mini/counts.html").is_file()
    code, out, _ = lthlab_command(capsys, "plan", "tiny.yaml", "--mini", "--device", "cpu", "--json")
    told = json.loads(out)
    assert (code, told["study"], told["trainings"], told["left"]) == (0, "tiny_mini", 4, 0)


def test_what_is_said_of_a_failure_names_the_option(folder, capsys):
    test_run.notebook(folder / "notebooks" / "counts.ipynb", "1 / 0")
    code, out, _ = lthlab_command(capsys, "run", "tiny.yaml", "--mini", "--device", "cpu")
    assert (code, "again: lthlab run tiny.yaml --mini --only counts" in out) == (1, True)
    for arguments in (["status"], ["status", "tiny_mini"]):
        _, out, _ = lthlab_command(capsys, *arguments)
        assert "again: lthlab run tiny --mini --only counts" in out
    code, _, err = lthlab_command(capsys, "publish", "tiny.yaml", "--mini")
    assert (code, "to make it again: lthlab run tiny.yaml --mini" in err) == (2, True)


def test_what_has_no_mini_form_is_refused_by_every_command(folder, capsys):
    (folder / "tiny.yaml").write_text(test_run.STUDY)
    for command in ("plan", "run", "compute", "status", "publish"):
        code, out, err = lthlab_command(capsys, command, "tiny.yaml", "--mini")
        assert (code, out, err) == (2, "", "tiny.yaml:1:1: mini: missing; --mini needs it\n")
    code, out, err = lthlab_command(capsys, "status", "--mini")
    assert (code, out, err) == (2, "", "--mini needs a study\n")
