"""A study expands into labelled values: which, how many, and how they hang together."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lthlab import spec, tickets
from lthlab.analyses import Measure
from lthlab.parts import Level
from lthlab.roles import ROLE
from lthlab.tickets import expand
from lthlab.values import At, Dense, Fresh, Magnitude, Train

DEMO = Path(__file__).parent / "lenet.yaml"
STUDY = """
name: study
net: {net}
data: {{name: digits, val_size: 97}}
replicates: {replicates}
find: {{epochs: {epochs}, batch_size: 64, lr: {lr}}}
eval: {evaluate}
prune: {{levels: {levels}, sparsities: {sparsities}, rate: {rate}}}
protocol: {{schedule: {schedule}, rewound_masks: {rewound}, scope: {scope}, batchnorm: {batchnorm},
  masks_from: {masks_from}}}
tickets: {{{asked}}}
measures: {measures}
"""
PLAIN = {
    "net": "resnet20",
    "replicates": 1,
    "epochs": 160,
    "lr": 0.1,
    "evaluate": "null",
    "levels": "[11]",
    "sparsities": "[]",
    "rate": 0.2,
    "schedule": "resume",
    "rewound": "rewound",
    "scope": "global",
    "batchnorm": "rewound",
    "masks_from": "last",
    "asked": "LT: {methods: IMP}",
    "measures": "{}",
}


def study(**fields):
    return spec.parse(STUDY.format(**PLAIN | fields))


def pick(labelled, **fields):
    """Values of the roles that have the given columns."""
    return [i.value for i in labelled if all(i.role[name] == value for name, value in fields.items())]


@st.composite
def studies(draw):
    """Make small studies of every kind."""
    levels = draw(st.lists(st.integers(1, 5), max_size=3, unique=True))
    sparsities = draw(st.lists(st.sampled_from([0.1, 0.55, 0.9]), max_size=2, unique=True))
    methods = [method for method, there in (("IMP", levels), ("OMP", levels or sparsities)) if there]
    asked = []
    for ticket in draw(st.lists(st.sampled_from(["LT", "RR", "WR"]), max_size=3, unique=True)) if methods else ():
        chosen = draw(st.lists(st.sampled_from(methods), min_size=1, unique=True))
        rewind = f", rewind: {draw(st.sampled_from(['0ep', '1ep', '7it']))}" if ticket == "WR" else ""
        asked.append(f"{ticket}: {{methods: [{', '.join(chosen)}]{rewind}}}")
    measured = ["dense", *(text[:2] for text in asked)]
    fields = {
        "net": draw(st.sampled_from(["resnet20", "lenet_300_100"])),
        "replicates": draw(st.integers(1, 2)),
        "epochs": draw(st.integers(2, 4)),
        "lr": draw(st.sampled_from(["0.1", "[0.1, 0.2]"])),
        "evaluate": draw(st.sampled_from(["null", "{lr: 0.1}", "{lr: [0.2, 0.3]}", "{epochs: 3}"])),
        "levels": levels,
        "sparsities": sparsities,
        "rate": draw(st.sampled_from([0.2, 0.5])),
        "schedule": draw(st.sampled_from(["resume", "restart"])),
        "rewound": draw(st.sampled_from(["rewound", "initial"])),
        "scope": draw(st.sampled_from(["global", "layer"])),
        "batchnorm": draw(st.sampled_from(["rewound", "reset"])),
        "asked": ", ".join(asked),
        "measures": draw(st.sampled_from(["{}", f"{{correlation_indicator: {{of: [{', '.join(measured)}]}}}}"])),
    }
    return study(**fields)


# --- the demo, counted by hand --------------------------------------------------------------------------------


def test_demo_counts():
    """Work out the rows of one of 18 pairs of learning rate and replicate, and what they share.

    The IMP chain is 16 masks and, beside the dense training, 15 trainings; OMP 4 masks. LT and RR are trained on
    4 + 4 masks, WR on 4; dense, LT and RR are measured. LT on the chain's levels 4, 8 and 12 is the chain itself.
    """
    labelled = expand(spec.read(DEMO))
    kinds = Counter((item.role["what"], item.role["ticket"]) for item in labelled)
    assert kinds == {
        ("train", "dense"): 18,
        ("mask", "search"): 18 * (16 + 4),
        ("train", "search"): 18 * 15,
        ("train", "LT"): 18 * 8,
        ("train", "RR"): 18 * 8,
        ("train", "WR"): 18 * 4,
        ("correlation_indicator", "dense"): 18,
        ("correlation_indicator", "LT"): 18 * 8,
        ("correlation_indicator", "RR"): 18 * 8,
    }
    assert len(labelled) == 18 * (1 + 20 + 15 + 8 + 8 + 4 + 1 + 8 + 8) == 1314
    trainings = [item.value for item in labelled if isinstance(item.value, Train)]
    assert len(set(trainings)) == 18 * (1 + 15 + 1 + 4 + 4 + 4 + 4) == 594
    assert len(trainings) - len(set(trainings)) == 18 * 3 == 54
    assert len({item.value for item in labelled}) == 594 + 18 * (16 + 4) + 18 * (1 + 8 + 8)


@pytest.mark.parametrize("level", range(17))
def test_demo_counts_by_ticket_and_level(level):
    labelled = [item.role for item in expand(spec.read(DEMO)) if item.role["level"] == level]
    found = Counter((role["what"], role["ticket"], role["method"]) for role in labelled)
    if level == 0:
        expected = {("train", "dense", None): 18, ("correlation_indicator", "dense", None): 18}
    else:
        expected = {("mask", "search", "IMP"): 18} | ({("train", "search", "IMP"): 18} if level < 16 else {})
    if level in (4, 8, 12, 16):
        expected |= {("train", ticket, "IMP"): 18 for ticket in ("LT", "RR", "WR")}
        expected |= {("train", ticket, "OMP"): 18 for ticket in ("LT", "RR")}
        expected |= {("correlation_indicator", t, m): 18 for t in ("LT", "RR") for m in ("IMP", "OMP")}
        expected[("mask", "search", "OMP")] = 18
    assert found == expected


def test_demo_search_epochs():
    found = defaultdict(set)
    for item in expand(spec.read(DEMO)):
        role = item.role
        found[role["what"], role["ticket"], role["method"], role["level"]].add(role["search_epochs"])
    for level in (4, 8, 12, 16):
        for ticket in ("LT", "RR", "WR"):
            assert found["train", ticket, "IMP", level] == {20 * level}
        assert found["train", "RR", "OMP", level] == found["mask", "search", "OMP", level] == {20}
    assert found["mask", "search", "IMP", 11] == {20 * 11}
    assert found["train", "search", "IMP", 11] == {20 * 11}
    assert found["train", "dense", None, 0] == {0}


# --- search epochs --------------------------------------------------------------------------------------------


def test_search_epochs_of_ma():
    """IMP to level 11 takes 11 trainings of 160 epochs: 1760 (Ma section 1)."""
    labelled = expand(study())
    assert {item.role["search_epochs"] for item in labelled if item.role["ticket"] == "LT"} == {1760}


@pytest.mark.parametrize(
    ("schedule", "rewound", "epochs"),
    [
        ("resume", "rewound", 160 + 10 * 152),
        ("restart", "rewound", 1760),
        ("resume", "initial", 1760),
        ("restart", "initial", 1760),
    ],
)
def test_search_epochs_after_rewinding(schedule, rewound, epochs):
    config = study(asked="WR: {methods: IMP, rewind: 8ep}", schedule=schedule, rewound=rewound)
    assert {item.role["search_epochs"] for item in expand(config) if item.role["ticket"] == "WR"} == {epochs}


def test_search_epochs_of_one_shot_pruning():
    labelled = expand(study(asked="LT: {methods: OMP}", sparsities="[0.5]"))
    assert {item.role["search_epochs"] for item in labelled if item.role["ticket"] == "LT"} == {160}


# --- structure ------------------------------------------------------------------------------------------------


@given(studies())
@settings(max_examples=60)
def test_roles_are_unique_and_complete(config):
    labelled = expand(config)
    roles = [tuple(map(str, item.role.values())) for item in labelled]
    assert len(set(roles)) == len(roles)
    assert len({tuple(item.role) for item in labelled}) == 1
    assert set(labelled[0].role) >= {*ROLE, "network", "width", "shortcut", "data", "train_size", "report"}
    panel = config.panels[0]
    shortcut = panel.net.shortcut if panel.net.name.startswith("resnet") else None
    assert {item.role["shortcut"] for item in labelled} == {shortcut}
    assert all((item.role["rate"] is None) == (not item.role["level"]) for item in labelled)
    assert [item.value for item in labelled] == [item.value for item in expand(config)]
    what = {Train: "train", Magnitude: "mask", Measure: "correlation_indicator"}
    assert all(item.role["what"] == what[type(item.value)] for item in labelled)
    points = [*config.panels[0].levels, *config.panels[0].sparsities]
    for name, ticket in config.panels[0].tickets:
        for method in ticket.methods if ticket else ():
            found = [item for item in labelled if (item.role["ticket"], item.role["method"]) == (name, method)]
            trained = Counter(str(item.role["sparsity"]) for item in found if item.role["what"] == "train")
            expected = config.panels[0].levels if method == "IMP" else points
            assert trained.keys() == {str(float(tickets.sparsity_fraction(point))) for point in expected}
            assert set(trained.values()) == {len(config.panels[0].recipes) * config.panels[0].replicates}
    asked = {name for name, ticket in config.panels[0].tickets if ticket}
    assert {item.role["ticket"] for item in labelled} <= {"dense", "search", *asked}


@given(studies())
@settings(max_examples=60)
def test_chains_hang_together(config):
    labelled = expand(config)
    columns = [name for name in labelled[0].role if name.startswith("find_")]
    for item in labelled:
        role, value = item.role, item.value
        if not isinstance(value, Train):
            continue
        side = "eval" if role["ticket"] != "search" else "find"
        assert value.recipe.model_dump(mode="json") == {c[5:]: role[side + c[4:]] for c in columns}
        assert (value.net, value.data, value.order) == (config.panels[0].net, config.panels[0].data, role["replicate"])
        if role["ticket"] == "dense":
            assert (value.init, value.mask) == (Fresh(role["replicate"]), Dense())
            continue
        mask = value.mask
        if role["method"] == "OMP":
            assert mask.of.run.mask == Dense()
        else:
            rounds = 0
            while mask != Dense():
                rounds += 1
                assert mask.sparsity == Level(role["level"] + 1 - rounds, config.panels[0].levels[0].rate)
                assert mask.scope == config.panels[0].protocol.scope
                assert mask.of.step == f"{mask.of.run.recipe.epochs}ep"
                mask = mask.of.run.mask
            assert rounds == role["level"]
        run = value.mask.of.run
        assert run.recipe.model_dump(mode="json") == {c[5:]: role[c] for c in columns}
        if role["ticket"] == "RR":
            assert value.init == Fresh(role["replicate"], 1)
            assert role["rewind"] is None
        elif role["ticket"] != "search":
            assert isinstance(value.init, At)
            assert value.init.run.init == Fresh(role["replicate"])
            assert value.init == At(value.init.run, role["rewind"])
            assert value.batchnorm == config.panels[0].protocol.batchnorm
            assert (value.schedule == "resume") == (
                config.panels[0].protocol.schedule == "resume" and value.init.step != "0ep"
            )


@given(studies())
@settings(max_examples=60)
def test_lt_is_the_search_and_rr_differs_only_in_its_weights(config):
    labelled = expand(config)
    by_role = {tuple(map(str, list(item.role.values())[1:])): item.value for item in labelled}

    def other(role, **fields):
        return by_role.get(tuple(map(str, list((role | fields).values())[1:])))

    same = all(find == evaluate for find, evaluate in config.panels[0].recipes)
    for item in labelled:
        role = item.role
        if (role["what"], role["ticket"], role["method"]) == ("train", "LT", "IMP"):
            assert role["rewind"] == "0ep"
            if same and role["level"] < config.panels[0].levels[-1].k:
                assert other(role, ticket="search") == item.value
        if (role["what"], role["ticket"]) == ("train", "RR"):
            lt = other(role, ticket="LT", rewind="0ep")
            if lt is not None:
                one, two = item.value.form(), lt.form()
                assert one.pop("init") == {"kind": "Fresh", "replicate": role["replicate"], "draw": 1}
                assert two.pop("init")["kind"] == "At"
                two.pop("batchnorm", None)
                assert one == two


def test_an_imp_step_and_lt_are_one_value_in_two_roles():
    labelled = expand(study(levels="[1, 2, 3]"))
    assert len(pick(labelled, what="train")) == 1 + 2 + 3
    for level in (1, 2):
        [search] = pick(labelled, what="train", ticket="search", level=level)
        [lt] = pick(labelled, what="train", ticket="LT", level=level)
        assert search is not lt
        assert search == lt
    assert pick(labelled, what="train", ticket="search", level=3) == []


def test_search_and_evaluation_with_other_recipes():
    labelled = expand(study(levels="[2]", lr="[0.1, 0.2]", evaluate="{lr: [0.2, 0.3]}"))
    tickets_ = [item for item in labelled if item.role["ticket"] == "LT"]
    pairs = [(item.role["find_lr"], item.role["eval_lr"]) for item in tickets_]
    assert pairs == [(0.1, 0.2), (0.1, 0.3), (0.2, 0.2), (0.2, 0.3)]
    for item in tickets_:
        assert item.value.recipe.lr == item.role["eval_lr"]
        assert item.value.mask.of.run.recipe.lr == item.role["find_lr"]
        assert item.value.init.run.recipe.lr == item.role["find_lr"]
    masks = {item.value.mask for item in tickets_}
    assert len(masks) == 2
    assert len(pick(labelled, ticket="dense", eval_lr=0.3)) == 2
    assert len(set(pick(labelled, ticket="dense", eval_lr=0.3))) == 1
    assert {item.role["eval_lr"] for item in labelled if item.role["ticket"] == "search"} == {0.1, 0.2}


@pytest.mark.parametrize("schedule", ["resume", "restart"])
@pytest.mark.parametrize("rewound", ["rewound", "initial"])
def test_weight_rewinding(schedule, rewound):
    asked = "LT: {methods: IMP}, WR: {methods: IMP, rewind: 8ep}"
    labelled = expand(study(levels="[3]", asked=asked, schedule=schedule, rewound=rewound))
    [lt] = pick(labelled, what="train", ticket="LT")
    [wr] = pick(labelled, what="train", ticket="WR")
    trunk = lt.init.run
    assert (lt.init, lt.schedule) == (At(trunk, "0ep"), "restart")
    assert (wr.init, wr.schedule) == (At(trunk, "8ep"), schedule)
    assert wr.start == (8 * wr.steps_per_epoch if schedule == "resume" else 0)
    if rewound == "initial":
        assert wr.mask == lt.mask
        assert len(pick(labelled, ticket="search", what="mask")) == 3
    else:
        before = wr.mask.of.run
        assert (before.init, before.schedule) == (At(trunk, "8ep"), schedule)
        assert before.mask.of.run.init == At(trunk, "8ep")
        assert before.mask.of.run.mask.of.run == trunk
        assert Counter(item.role["rewind"] for item in labelled if item.role["ticket"] == "search") == {
            "0ep": 5,
            "8ep": 5,
        }
        assert len(pick(labelled, ticket="search", what="mask")) == 6


def test_one_shot_masks_rank_one_state_at_rising_sparsities():
    labelled = expand(study(levels="[1, 2, 3]", sparsities="[0.9, 0.1]", asked="RR: {methods: OMP}", scope="layer"))
    masks = pick(labelled, what="mask")
    [trunk] = pick(labelled, ticket="dense")
    assert {mask.of for mask in masks} == {At(trunk, "last")}
    assert [mask.sparsity for mask in masks] == [Level(1), Level(2), Level(3), "0.9", "0.1"]
    assert {mask.scope for mask in masks} == {"layer"}
    levels = [item.role["level"] for item in labelled if item.role["what"] == "mask"]
    assert levels == [1, 2, 3, None, None]
    shares = [item.role["sparsity"] for item in labelled if item.role["what"] == "mask"]
    assert shares == pytest.approx([0.2, 0.36, 0.488, 0.9, 0.1], abs=1e-12)


def test_masks_rank_the_epoch_that_the_protocol_names():
    labelled = expand(study(levels="[1, 2]", asked="LT: {}", masks_from="best_test"))
    masks = pick(labelled, what="mask")
    assert len(masks) == 4 and {mask.of.step for mask in masks} == {"best_test"}
    [first] = [mask.of.run for mask in pick(labelled, what="mask", method="IMP", level=2)]
    assert first.mask in masks and first.init.step == "0ep"


def test_measures_compare_the_first_and_the_last_weights():
    measures = "{correlation_indicator: {p: 0.2, of: [dense, LT, RR, WR]}}"
    asked = "LT: {methods: IMP}, RR: {methods: IMP}, WR: {methods: IMP, rewind: 8ep}"
    labelled = expand(study(levels="[2]", asked=asked, measures=measures))
    for ticket, first in (("dense", "0ep"), ("LT", "0ep"), ("RR", "0ep"), ("WR", "8ep")):
        [measure] = pick(labelled, what="correlation_indicator", ticket=ticket)
        [run] = pick(labelled, what="train", ticket=ticket)
        assert measure.of == (At(run, first), At(run, "160ep"))
        assert dict(measure.settings) == {"p": "0.2", "prunable": "all_but_head"}


def test_without_tickets_only_dense_runs():
    labelled = expand(study(asked="", replicates=3))
    assert [item.value.init for item in labelled] == [Fresh(0), Fresh(1), Fresh(2)]


@pytest.mark.parametrize("ticket", ["LT", "RR"])
def test_the_partner_of_a_correlation_is_the_tickets_own_training_or_the_dense_one(ticket):
    text = DEMO.read_text(encoding="utf-8")
    for partner in ("own", "dense"):
        config = spec.parse(text.replace("p: 0.1,", f"p: 0.1, partner: {partner},"))
        labelled = expand(config)
        runs = {item.value.key: item.value for item in labelled if isinstance(item.value, Train)}
        measures = [
            item.value for item in labelled if isinstance(item.value, Measure) and item.role["ticket"] == ticket
        ]
        assert len(measures) == 144
        for measure in measures:
            first, second = measure.of
            assert (first.step, second.step) == ("0ep", "20ep")
            if partner == "own":
                assert first.run == second.run and measure.mask is None
            else:
                trunk = first.run.mask
                while isinstance(trunk, Magnitude):
                    trunk, last = trunk.of.run.mask, trunk.of.run
                assert second.run == last and runs[last.key].mask == Dense() and measure.mask == first.run.mask
