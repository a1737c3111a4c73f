"""Studies of several panels: grids, overrides, presets, settings of the command line, configurations."""

import json
import os
from pathlib import Path

import jsonschema
import pydantic
import pytest
from ruamel.yaml import YAML

from lthlab import schema, spec, studies, tickets, trees
from lthlab.errors import InputError
from lthlab.spec import StudyError

STUDY = """
name: small
net: [lenet_300_100, {name: resnet8, width: 4}]
data: digits
replicates: 2
find: {epochs: 3, batch_size: 64, lr: [0.1, 0.2]}
prune: {levels: [2, 4]}
tickets: {LT: {methods: IMP}}
"""


def parsed(text=STUDY, sets=(), **changes):
    for old, new in changes.values():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return spec.parse(text, "study.yaml", sets)


def problems(text, sets=(), name="study.yaml"):
    with pytest.raises(StudyError) as caught:
        spec.parse(text, name, sets)
    return [(p.line, p.column, p.field, p.message) for p in caught.value.problems]


def names(config):
    return [piece.name for piece in studies.configurations(tickets.expand(config))]


# --- panels ---------------------------------------------------------------------------------------------------


def test_lists_of_networks_and_data_sets_make_panels():
    config = parsed(data=("data: digits", "data: [digits, {name: digits, train_size: 100}]"))
    found = [(panel.net.name, panel.net.width, panel.data.images) for panel in config.panels]
    assert found == [("lenet_300_100", 16, 1297), ("lenet_300_100", 16, 100), ("resnet8", 4, 1297), ("resnet8", 4, 100)]
    assert {panel.replicates for panel in config.panels} == {2}
    assert names(config)[:2] == ["find_tickets.lenet_300_100.digits", "find_tickets.lenet_300_100.digits.2"]
    assert len(names(config)) == len(set(names(config))) == 8


def test_panels_override_fields_of_sections():
    one, other = parsed(
        STUDY
        + "panels:\n  - {net: lenet_300_100}\n"
        + "  - {net: {name: resnet8, width: 4}, find: {lr: 0.3}, prune: {levels: 1}}\n",
        net=("net: [lenet_300_100, {name: resnet8, width: 4}]\n", ""),
    ).panels
    assert (one.net.name, len(one.recipes), len(one.levels)) == ("lenet_300_100", 2, 2)
    assert (other.net.width, [find.lr for find, _ in other.recipes], other.recipes[0][0].epochs) == (4, [0.3], 3)
    assert [level.k for level in other.levels] == [1]


def test_a_panel_adds_fields_to_a_network_that_the_study_names():
    text = STUDY.replace("[lenet_300_100, {name: resnet8, width: 4}]", "{name: resnet8, shortcut: A}")
    first, second, third = parsed(
        text + "panels: [{net: {width: 8}}, {net: resnet14}, {net: {name: resnet14, width: 2}}]"
    ).panels
    assert (first.net.name, first.net.width, first.net.shortcut) == ("resnet8", 8, "A")
    assert (second.net.name, second.net.shortcut) == ("resnet14", "B")
    assert (third.net.name, third.net.width, third.net.shortcut) == ("resnet14", 2, "B")


def test_a_panel_may_go_without_a_ticket_of_the_study():
    _, second = parsed(
        STUDY.replace("IMP}}", "IMP}, RR: }") + "panels: [{}, {tickets: {RR: false}}]",
        net=("net: [lenet_300_100, {name: resnet8, width: 4}]", "net: resnet8"),
    ).panels
    assert second.tickets.RR is None and second.tickets.LT is not None


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("panels: 3\n", (9, 1, "panels", "3 is not allowed; allowed: one panel or more")),
        ("panels: []\n", (9, 1, "panels", "[] is not allowed; allowed: one panel or more")),
        ("panels:\n  - 3\n", (10, 5, "panels.0", "3 is not allowed; allowed: a mapping")),
        ("panels:\n  - {title: x}\n", (10, 6, "panels.0.title", "not for a panel; allowed: data, eval, find")),
        ("panels:\n  - {fnid: {lr: 1}}\n", (10, 6, "panels.0.fnid", "unknown field; …did you mean 'find'?")),
        ("panels:\n  - find: {epcohs: 3}\n", (10, 12, "panels.0.find.epcohs", "did you mean 'epochs'?")),
        ("panels:\n  - find: {lr: [0.1, x]}\n", (10, 22, "panels.0.find.lr.1", "'x' is not allowed")),
        ("panels: [{}, {}]\nstages: []\n", (10, 1, "stages", "one value or more")),
        ("stages: [find_ticket]\n", (9, 10, "stages.0", "did you mean 'find_tickets'?")),
        ("panel_by: [eval.rl]\n", (9, 12, "panel_by.0", "'eval.rl' is no axis; …did you mean 'eval.lr'?")),
        ("reports: [../x]\n", (9, 11, "reports.0", "'../x' is not allowed; allowed: up to 64 letters, digits")),
        ("reports: ['a b']\n", (9, 11, "reports.0", "'a b' is not allowed")),
        ("reports: [a, index]\n", (9, 14, "reports.1", "'index' is the page that lists the others")),
        ("verdicts: {readng: literal}\n", (9, 12, "verdicts.readng", "did you mean 'reading'?")),
        ("verdicts: {reading: litteral}\n", (9, 12, "verdicts.reading", "did you mean 'literal'?")),
        ("verdicts: {tolerance: -1}\n", (9, 12, "verdicts.tolerance", "-1 is not allowed; allowed: 0 or more")),
        ("presets: [none]\n", (9, 11, "presets.0", "preset 'none' is not known; allowed: frankle_carbin_cifar10, ")),
        ("presets: {a: 1}\n", (9, 1, "presets", "preset {'a': 1} is not known")),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_its_place(more, expected):
    [(line, column, field, message)] = problems(STUDY + more)
    assert (line, column, field) == expected[:3]
    assert [part for part in expected[3].split("…") if part not in message] == []


def test_what_all_panels_have_wrong_is_said_once():
    assert [p[2] for p in problems(STUDY.replace("epochs: 3", "epochs: 0"))] == ["find.epochs"]


def test_a_ticket_that_no_network_is_as_small_as_is_refused():
    text = STUDY.replace("{LT: {methods: IMP}}", "{SDT: }").replace("[2, 4]", "[2, 60]").replace("width: 4", "width: 1")
    found = problems(text)
    assert {field for _, _, field, _ in found} == {"tickets.SDT"}
    assert all("level 60" in message for *_, message in found)


# --- presets --------------------------------------------------------------------------------------------------


def write(folder, **files):
    (folder / "presets").mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / "presets" / f"{name}.yaml").write_text(text)


def test_presets_lie_below_the_study(tmp_path):
    write(tmp_path, first="find: {epochs: 7, momentum: 0.5}\nprotocol: {scope: layer}", second="find: {momentum: 0.6}")
    (tmp_path / "s.yaml").write_text("presets: [first, second]\n" + STUDY)
    config = spec.read(tmp_path / "s.yaml")
    recipe = config.panels[0].recipes[0][0]
    assert (recipe.epochs, recipe.momentum, config.panels[0].protocol.scope) == (3, 0.6, "layer")
    assert "presets" not in config.document


def test_presets_of_a_panel_lie_above_those_of_the_study_and_below_it(tmp_path):
    write(tmp_path, first="find: {epochs: 7, momentum: 0.5, weight_decay: 1e-4}", second="find: {momentum: 0.6}")
    text = STUDY + "presets: first\npanels: [{}, {presets: second}, {presets: [second], find: {weight_decay: 1e-3}}]\n"
    (tmp_path / "s.yaml").write_text(text.replace("net: [lenet_300_100, {name: resnet8, width: 4}]", "net: resnet8"))
    config = spec.read(tmp_path / "s.yaml")
    recipes = [panel.recipes[0][0] for panel in config.panels]
    assert [(r.epochs, r.momentum, r.weight_decay) for r in recipes] == [(3, 0.5, 1e-4), (3, 0.6, 1e-4), (3, 0.6, 1e-3)]
    assert not any("presets" in panel for panel in config.document["panels"])
    (tmp_path / "s.yaml").write_text(STUDY + "presets: first\npanels:\n  - presets: [second, frist]\n")
    with pytest.raises(StudyError) as caught:
        spec.read(tmp_path / "s.yaml")
    [(line, column, field)] = {(p.line, p.column, p.field) for p in caught.value.problems}
    assert (line, column, field) == (11, 23, "panels.0.presets.1")


@pytest.mark.parametrize("data", ["digits", "[digits]", "{name: digits}", "[{name: digits}, digits]"])
def test_a_preset_says_how_data_are_used_and_the_study_which(data, tmp_path):
    write(tmp_path, augmented="data: {augment: crop_flip}")
    (tmp_path / "s.yaml").write_text("presets: augmented\n" + STUDY.replace("data: digits", f"data: {data}"))
    config = spec.read(tmp_path / "s.yaml")
    assert {(panel.data.name, panel.data.augment) for panel in config.panels} == {("digits", "crop_flip")}


def test_what_is_wrong_in_a_preset_is_said_there(tmp_path):
    write(tmp_path, wrong="find:\n  epcohs: 3\nname: x\n", list="[1]")
    (tmp_path / "s.yaml").write_text("presets: [wrong, list]\n" + STUDY)
    with pytest.raises(StudyError) as caught:
        spec.read(tmp_path / "s.yaml")
    found = {(os.path.relpath(p.file, tmp_path), p.line, p.column, p.field) for p in caught.value.problems}
    assert found == {
        ("presets/wrong.yaml", 2, 3, "find.epcohs"),
        ("presets/wrong.yaml", 3, 1, "name"),
        ("presets/list.yaml", 1, 1, ""),
    }  # fmt: skip


def test_presets_beside_the_study_come_before_those_of_the_project(tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    (tmp_path / "mine").mkdir()
    write(tmp_path / "params", one="replicates: 3", two="replicates: 4")
    write(tmp_path / "mine", two="replicates: 5")
    monkeypatch.chdir(tmp_path / "params")
    for name, count in (("one", 3), ("two", 5)):
        text = STUDY.replace("replicates: 2\n", "") + f"presets: {name}\n"
        assert spec.parse(text, str(tmp_path / "mine" / "s.yaml")).panels[0].replicates == count
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.raises(StudyError, match="preset 'ma' is not known; allowed: one, two"):
        spec.parse(STUDY + "presets: ma\n", "s.yaml")


def test_where_there_is_no_preset_that_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match="there are none beside the study nor in params/presets"):
        spec.parse(STUDY + "presets: ma\n", "s.yaml")


def test_a_wrong_network_hides_nothing_else():
    text = STUDY.replace("[lenet_300_100, {name: resnet8, width: 4}]", "lenet_300_10").replace("[2, 4]", "[]")
    assert [field for _, _, field, _ in problems(text)] == ["net.name", "prune.levels"]
    text = text.replace("lenet_300_10", "resnet21") + "protocol: {prunable: ma_resnet20}\n"
    assert [field for _, _, field, _ in problems(text)] == ["net.name", "prune.levels"]


def test_sparsities_of_more_than_is_prunable_are_located():
    rules = "protocol: {denominator: all, prunable: first_last_dense}\n"
    found = problems(STUDY.replace("[2, 4]", "[2, 60], sparsities: [0.5, 0.9999]").replace("IMP", "OMP") + rules)
    assert {(line, field) for line, _, field, _ in found} == {(7, "prune.levels.1"), (7, "prune.sparsities.1")}
    assert len(found) == 4  # two networks
    assert all("prunable weights; allowed: 0 to " in message for *_, message in found)


# --- settings of the command line -----------------------------------------------------------------------------


def test_settings_come_last_and_hold_for_all_panels():
    sets = [
        "find.lr=0.3,0.4",
        "replicates=5",
        "prune.levels=1",
        "title='a: b'",
        "tickets.LT.methods=OMP",
        "data.train_size=500",
    ]
    config = parsed(STUDY + "panels: [{find: {lr: 0.7}}, {replicates: 9}]", sets)
    assert len(config.panels) == 4
    assert {panel.replicates for panel in config.panels} == {5}
    assert {find.lr for panel in config.panels for find, _ in panel.recipes} == {0.3, 0.4}
    assert {panel.data.images for panel in config.panels} == {500}
    assert (config.title, config.sets) == ("a: b", tuple(sets))


def test_a_network_is_set_as_a_whole_or_by_field():
    assert [panel.net.name for panel in parsed(sets=["net=resnet8,resnet14"]).panels] == ["resnet8", "resnet14"]
    text = STUDY.replace("[lenet_300_100, {name: resnet8, width: 4}]", "[resnet8, resnet14]")
    assert [panel.net.width for panel in parsed(text, ["net.width=6"]).panels] == [6, 6]


@pytest.mark.parametrize(
    ("option", "field", "words"),
    [
        ("find.rl=0.1", "find.rl", "did you mean 'lr'?"),
        ("fnd.lr=0.1", "fnd", "did you mean 'find'?"),
        ("find.lr=x", "find.lr", "'x' is not allowed; allowed: a number"),
        ("find.lr=", "", "allowed: field=value[,value…]"),
        ("find.lr", "", "allowed: field=value[,value…]"),
        ("=3", "", "allowed: field=value[,value…]"),
        ("find.lr=[", "find.lr", "not valid YAML"),
        ("find.lr=a]: 1\nb: [2", "find.lr", "not understood; allowed: a value"),
        ("find.lr=*x", "find.lr", "alias *x: not allowed"),
        ("find.lr=!!python/name:os.system", "find.lr", "not allowed; write plain values"),
        ("panels=1", "panels", "cannot be set"),
        ("presets=ma", "presets", "cannot be set"),
        ("name=__import__('os')", "name", "is not allowed"),
        ("name=a/b", "name", "is not allowed"),
        ("net.width=4", "net.width", "network 'lenet_300_100' has no such field"),
    ],
)
def test_wrong_settings_name_the_option(option, field, words):
    with pytest.raises(StudyError) as caught:
        parsed(sets=[option])
    problem = caught.value.problems[0]
    assert (problem.file, problem.line, problem.field) == (f"--set {option}", 0, field)
    assert words in problem.message
    assert str(problem).startswith(f"--set {option}: {field}: " if field else f"--set {option}: ")


def test_settings_as_yaml_say_the_same():
    sets = ["find.lr=0.1,0.3", "find.epochs=4", "title='x: #'", "net=resnet14", "prune.levels=[1, 3]"]
    text = trees.as_yaml(sets)
    assert YAML(typ="safe", pure=True).load(text)["prune"] == {"levels": [1, 3]}
    whole, _ = trees.load(STUDY, "a")
    over, _ = trees.load(text, "b")
    again = spec.parse(trees.dump(whole.merged(over).plain))
    assert again.panels == parsed(sets=sets).panels and again.title == "x: #"


# --- the document ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", ["", "panels: [{}, {replicates: 3}]\n", "stages: find_tickets\nverdicts: {gap: 0.7}\n"]
)
def test_the_document_says_the_whole_study(more):
    config = parsed(STUDY + more, ["find.lr=0.3"])
    again = spec.resolved(json.loads(json.dumps(config.document)), config.sets)
    assert again == config
    assert tickets.expand(again) == tickets.expand(config)


# --- configurations -------------------------------------------------------------------------------------------


def test_axes_cut_panels_into_configurations():
    config = parsed(STUDY + "panel_by: [find.lr, eval.epochs, replicate]\neval: {epochs: [2, 3]}\nreports: [a]\n")
    found = names(config)
    assert len([name for name in found if name.startswith("find_tickets.")]) == 2 * 2 * 2
    assert len([name for name in found if name.startswith("evaluate_tickets.")]) == 2 * 2 * 2 * 2
    assert "find_tickets.resnet8.digits.find_lr-0.2.replicate-1" in found
    assert "evaluate_tickets.resnet8.digits.find_lr-0.2.eval_epochs-2.replicate-1" in found


def test_every_value_is_in_one_configuration_and_stages_choose():
    config = parsed(STUDY.replace("IMP}}", "IMP}, RR: , SDT: , RT: }"))
    labelled = tickets.expand(config)
    pieces = studies.configurations(labelled)
    assert sum(len(piece.labelled) for piece in pieces) == len(labelled)
    assert [piece.stage for piece in pieces] == ["find_tickets"] * 2 + ["evaluate_tickets"] * 2
    found = {piece.stage: {item.role["ticket"] for item in piece.labelled} for piece in pieces}
    assert found == {"find_tickets": {"dense", "search"}, "evaluate_tickets": {"LT", "RR", "SDT", "RT"}}
    only = tickets.expand(parsed(STUDY + "stages: find_tickets\n"))
    assert {item.role["ticket"] for item in only} == {"dense", "search"}


def test_dense_networks_of_another_recipe_are_evaluated():
    labelled = tickets.expand(parsed(STUDY + "eval: {epochs: 5}\n"))
    dense = [item.role for item in labelled if item.role["ticket"] == "dense"]
    stages = {(role["configuration"].partition(".")[0], role["eval_epochs"]) for role in dense}
    assert stages == {("find_tickets", 3), ("evaluate_tickets", 5)}


def test_long_names_are_cut_and_stay_apart():
    text = STUDY + "panel_by: [find.lr, find.milestones, find.warmup, find.momentum, find.weight_decay, find.gamma]\n"
    text = text.replace("lr: [0.1, 0.2]", "lr: [0.1, 0.2], lr_schedule: step, milestones: [[1ep], [2ep]]")
    found = names(parsed(text))
    assert len(found) == len(set(found)) and max(map(len, found)) <= 90


@pytest.mark.parametrize("chosen", ["find_tickets", "find_tickets.resnet8.digits"])
def test_a_configuration_or_stage_is_selected(chosen):
    labelled = tickets.expand(parsed())
    found = studies.select(labelled, chosen)
    assert found and len(found) < len(labelled)
    assert all(item.configuration.startswith(chosen) for item in found)
    assert studies.select(labelled, None) == labelled


def test_an_unknown_configuration_is_refused():
    with pytest.raises(InputError, match="configuration 'find_ticket'.*did you mean 'find_tickets'"):
        studies.select(tickets.expand(parsed()), "find_ticket")


# --- finding and opening --------------------------------------------------------------------------------------


def test_a_study_is_found_by_name_from_folders_below(tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "small.yaml").write_text(STUDY)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.delenv("LTHLAB_RUNS", raising=False)
    assert studies.find("small") == tmp_path / "params" / "small.yaml"
    opened = studies.open('{"study": "small", "configuration": "find_tickets"}')
    assert (opened.config.name, opened.configuration, opened.device) == ("small", "find_tickets", "auto")
    assert opened.store.root == tmp_path / "runs"
    monkeypatch.setenv("LTHLAB_RUNS", str(tmp_path / "elsewhere"))
    assert studies.open('{"study": "../params/small.yaml"}').store.root == tmp_path / "elsewhere"
    for name in ("smal", "../params/smal.yaml"):
        with pytest.raises(InputError, match="did you mean 'small'"):
            studies.find(name)


def test_notebooks_open_the_document_of_a_study(tmp_path, monkeypatch):
    monkeypatch.setenv("LTHLAB_RUNS", str(tmp_path))
    config = parsed(sets=["replicates=1"])
    opened = studies.open(json.dumps({"study": config.document, "sets": config.sets, "configuration": None}))
    assert opened.config == config


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ('{"stduy": "small"}', "parameter 'stduy' is not known; .*did you mean 'study'"),
        ('{"configuration": "find_tickts"}', "did you mean 'find_tickets'"),
    ],
)
def test_wrong_parameters_are_refused(parameters, words, monkeypatch, tmp_path):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "demo.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        studies.open(parameters)


# --- small dense networks and random tickets ------------------------------------------------------------------


def test_small_dense_networks_stand_against_each_level():
    config = parsed(STUDY.replace("{LT: {methods: IMP}}", "{LT: {methods: IMP}, SDT: }"))
    roles = [item.role for item in tickets.expand(config) if item.role["what"] == "train"]
    for panel in config.panels:
        for level in panel.levels:
            mine = [r for r in roles if (r["network"], r["level"]) == (panel.net.name, level.k)]
            small = [role for role in mine if role["ticket"] == "SDT"]
            [kept] = {role["parameters"] for role in mine if role["ticket"] == "LT"}
            assert len(small) == 4 and {(r["method"], r["rewind"], r["search_epochs"]) for r in small} == {
                (None, None, 0)
            }
            assert all(0.98 * kept <= role["parameters"] <= kept for role in small)
            assert all(role["widths"] != mine[0]["widths"] for role in small)


@pytest.mark.parametrize(("weights", "rewind"), [("initial", "0ep"), ("fresh", None)])
def test_random_tickets_permute_a_mask(weights, rewind):
    text = STUDY.replace("{LT: {methods: IMP}}", f"{{RT: {{methods: OMP, weights: {weights}, scope: global}}, RR: }}")
    labelled = tickets.expand(parsed(text))
    random = [item for item in labelled if (item.role["what"], item.role["ticket"]) == ("train", "RT")]
    masks = {item.value for item in labelled if (item.role["what"], item.role["ticket"]) == ("mask", "RT")}
    assert {item.value.mask for item in random} == masks
    assert {(mask.scope, mask.seed) for mask in masks} == {("global", 0), ("global", 1)}
    assert all(isinstance(mask.mask, tickets.Magnitude) for mask in masks)
    assert {item.role["rewind"] for item in random} == {rewind}
    initial = {item.value.init for item in labelled if item.role["ticket"] == "RR" and item.role["what"] == "train"}
    assert ({item.value.init for item in random} == initial) == (weights == "fresh")


# --- the schema -----------------------------------------------------------------------------------------------


def valid(text):
    plain, _ = trees.load(text, "study.yaml")
    return jsonschema.Draft202012Validator(schema.study()).is_valid(plain.plain)


def test_the_schema_that_is_shipped_is_that_of_the_code():
    jsonschema.Draft202012Validator.check_schema(schema.study())
    constraints = (Path(__file__).parent.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if f"pydantic=={pydantic.VERSION}" not in constraints:
        pytest.skip("another version of pydantic may word the same schema in another way")
    assert schema.SHIPPED.read_text(encoding="utf-8") == schema.text()


@pytest.mark.parametrize(
    "more",
    [
        "",
        "panels: [{net: {width: 3}}, {find: {lr: 0.1}, tickets: {RR: false}}]\n",
        "presets: ma\nstages: find_tickets\npanel_by: [eval.lr]\nreports: winning_tickets\n",
        "verdicts: {reading: same_lr, tolerance: 0.5}\nmeasures: {correlation_indicator: }\n",
        "eval: {lr_schedule: step, milestones: [[1ep], [2ep, 30it]], optimizer: [sgd, adam], betas: [0.9, 0.99]}\n",
    ],
)
def test_the_schema_takes_studies(more):
    assert valid(STUDY + more)


def test_the_schema_takes_the_studies_of_the_repository():
    studied = sorted(studies.find("demo").parent.glob("*.yaml"))
    assert studied and all(valid(path.read_text(encoding="utf-8")) for path in studied)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("replicates: 2", "replicates: two"),
        ("replicates: 2", "replicats: 2"),
        ("epochs: 3", "epochs: 0"),
        ("epochs: 3", "epcohs: 3"),
        ("lr: [0.1, 0.2]", "lr: []"),
        ("lr: [0.1, 0.2]", "lr: [0.1, x]"),
        ("methods: IMP", "methods: PIM"),
        ("levels: [2, 4]", "levels: [2, 4.5]"),
        ("data: digits", "data: {nme: digits}"),
        ("width: 4", "widht: 4"),
        ("name: small\n", ""),
        ("name: small", "name: sm/all"),
        ("data: digits", "data: digits\npanels: [{title: x}]"),
        ("data: digits", "data: digits\nprotocol: {prunable: none}"),
    ],
)
def test_the_schema_refuses_what_editors_should_mark(old, new):
    assert STUDY.count(old) == 1
    assert not valid(STUDY.replace(old, new))


def test_the_schema_describes_fields():
    found = schema.study()["$defs"]
    assert "rewinding to t" in found["Protocol"]["properties"]["schedule"]["description"]
    assert all("description" in field for field in found["RecipeGrid"]["properties"].values())
