"""What a study may ask of masks and tickets: each becomes the value that the papers mean, or a located error."""

import math
from collections import Counter

import pytest

from lthlab import plan, pruning, spec
from lthlab.parts import Level, Recipe
from lthlab.sections import Curve, Protocol
from lthlab.spec import StudyError
from lthlab.tickets import expand
from lthlab.values import (
    At,
    Dense,
    Explicit,
    Fresh,
    Gradual,
    Graft,
    Magnitude,
    MaskOf,
    Permuted,
    Train,
)

STUDY = """
name: study
net: {net}
data: {data}
replicates: 1
find: {{epochs: 10, batch_size: 64, lr: {lr}{recipe}}}
eval: {evaluate}
prune: {prune}
protocol: {protocol}
targets: {targets}
tickets: {{{asked}}}
"""
PLAIN = {
    "net": "lenet_300_100",
    "data": "digits",
    "lr": 0.1,
    "recipe": "",
    "evaluate": "null",
    "prune": "{levels: [1, 3]}",
    "protocol": "{}",
    "targets": "[]",
}


def text(**fields):
    return STUDY.format(**PLAIN | fields)


def asked(tickets, **fields):
    return expand(spec.parse(text(asked=tickets, **fields)))


def pick(labelled, what="train", **fields):
    """Values of the roles that have the given columns."""
    fields["what"] = what
    return [i.value for i in labelled if all(i.role[name] == value for name, value in fields.items())]


# --- steps ----------------------------------------------------------------------------------------------------


def test_masks_of_every_step_are_trained_from_weights_of_every_step():
    """Expand the grid of Sooner Fig. 1: 3 × 4 cells, with v beyond s, of one trunk; the diagonal is LR rewinding."""
    prune = "{sparsities: [0.8], at: [2ep, 5ep, last]}"
    tickets = "LT: {methods: OMP}, WR: {methods: OMP, rewind: [1ep, 5ep, 10ep]}, LRR: {methods: OMP}"
    labelled = asked(tickets, prune=prune, protocol="{schedule: restart}")
    trunk = Train(*_parts(labelled), Fresh(0), 0)
    cells = {
        (s, v): Train(*_parts(labelled), At(trunk, v), 0, Magnitude(At(trunk, s), "0.8"))
        for s in ("2ep", "5ep", "10ep")
        for v in ("0ep", "1ep", "5ep", "10ep", s)
    }
    for (s, v), value in cells.items():
        ticket, rewind = ("LT", "0ep") if v == "0ep" else ("WR", v)
        if v in ("0ep", "1ep", "5ep", "10ep"):
            assert pick(labelled, ticket=ticket, prune_at=s, rewind=rewind) == [value]
        if v == s:
            assert pick(labelled, ticket="LRR", prune_at=s) == [value]
    costs = {
        (i.role["prune_at"], i.role["rewind"]): i.role["search_epochs"]
        for i in labelled
        if i.role["ticket"] in ("LT", "WR") and i.role["what"] == "train"
    }
    assert costs == {(s, v): max(int(s[:-2]), int(v[:-2])) for s, v in costs} and len(costs) == 12


def _parts(labelled):
    (dense,) = pick(labelled, ticket="dense")[:1]
    return dense.net, dense.data, dense.recipe


def test_a_trunk_is_trained_as_far_as_it_is_asked_for_and_no_further():
    """Lan Fig. 9: masks of epochs 2 and 5 of a run that is no baseline by itself."""
    fields = {"lr": "[0.1, 0.2]", "evaluate": "{lr: 0.3}", "asked": "LT: {methods: [OMP, IMP]}"}
    early = expand(spec.parse(text(prune="{levels: [2], at: [2ep, 5ep]}", **fields)))
    reached = {
        (train.recipe.lr, isinstance(train.mask, Dense)): need.until // train.steps_per_epoch
        for train, need in plan.needs(item.value for item in early).items()
        if train.recipe.lr != 0.3
    }
    assert reached == {(0.1, True): 5, (0.2, True): 5, (0.1, False): 5, (0.2, False): 5}
    late = expand(spec.parse(text(prune="{levels: [2], at: [2ep, last]}", **fields)))
    needs = plan.needs(item.value for item in late)
    assert {need.until // train.steps_per_epoch for train, need in needs.items() if train.init == Fresh(0)} == {10}
    assert pick(early, ticket="dense", eval_lr=0.1) == [] and len(pick(late, ticket="dense", eval_lr=0.1)) == 1


def test_every_round_of_iterative_pruning_is_ranked_at_the_step():
    labelled = asked("LT: {methods: IMP}", prune="{levels: [3], at: 4ep}")
    mask = pick(labelled, "mask", level=3)[0]
    for level in (3, 2, 1):
        assert (mask.of.step, mask.sparsity) == ("4ep", Level(level))
        mask = mask.of.run.mask
    assert mask == Dense()
    costs = {item.role["level"]: item.role["search_epochs"] for item in labelled if item.role["what"] == "mask"}
    assert costs == {1: 4, 2: 8, 3: 12}
    assert pick(labelled, ticket="search") == []


# --- rewinding, fine-tuning -----------------------------------------------------------------------------------


def test_learning_rate_rewinding_under_imp_goes_on_from_the_weights_that_were_ranked():
    labelled = asked("LRR: {methods: IMP}", prune="{levels: [2]}")
    (leaf,) = pick(labelled, ticket="LRR")
    first = leaf.mask.of.run
    trunk = first.mask.of.run
    assert (leaf.init, leaf.schedule, leaf.start) == (At(first, "last"), "restart", 0)
    assert (first.init, first.recipe, trunk.init) == (At(trunk, "last"), trunk.recipe, Fresh(0))
    assert [item.role["rewind"] for item in labelled if item.role["ticket"] == "search"] == ["ranked"] * 3


@pytest.mark.parametrize("method", ["IMP", "OMP"])
def test_fine_tuning_trains_on_at_the_last_rate(method):
    labelled = asked(
        f"FT: {{methods: {method}, epochs: 3}}",
        prune="{levels: [2], at: [6ep, last]}",
        recipe=", lr_schedule: step, milestones: [8ep], warmup: 1ep, weight_decay: 1.0e-4",
    )
    for at, lr in (("6ep", 0.1 * 0.1), ("10ep", 0.1 * 0.1)):
        (leaf,) = pick(labelled, ticket="FT", prune_at=at)
        assert leaf.recipe == Recipe(epochs=3, batch_size=64, lr=lr, weight_decay=1e-4)
        assert (leaf.start, leaf.end) == (0, 3 * leaf.steps_per_epoch)
        ranked = leaf.mask.of
        assert leaf.init == ranked
        if method == "IMP":
            assert (ranked.step, ranked.run.recipe) == ("3ep", leaf.recipe)
            ranked = ranked.run.mask.of
        assert (ranked.step, ranked.run.mask) == (at, Dense())
    (spent,) = {i.role["search_epochs"] for i in labelled if i.role["ticket"] == "FT" and i.role["prune_at"] == "10ep"}
    assert spent == (13 if method == "IMP" else 10)
    assert {item.role["train_epochs"] for item in labelled if item.role["ticket"] == "FT"} == {3}
    (own,) = pick(asked("FT: {methods: OMP, epochs: 3, lr: 0.02}", prune="{sparsities: 0.5}"), ticket="FT")
    assert own.recipe.lr == 0.02


@pytest.mark.parametrize(
    ("recipe", "rate"),
    [
        (", lr_schedule: cosine", 0.1 * 0.5 * (1 + math.cos(math.pi * 209 / 210))),
        (", lr_schedule: linear", 0.1 * (1 - 209 / 210)),
        ("", 0.1),
    ],
)
def test_the_last_rate_is_that_of_the_last_step(recipe, rate):
    (leaf,) = pick(asked("FT: {methods: OMP, epochs: 1}", prune="{sparsities: 0.5}", recipe=recipe), ticket="FT")
    assert leaf.recipe.lr == pytest.approx(rate, rel=1e-3)


# --- random tickets -------------------------------------------------------------------------------------------


def test_random_tickets_are_every_mask_with_every_source_of_weights():
    tickets = "LT: {methods: OMP}, RT: {methods: OMP, scope: [layer, global, even], weights: [initial, fresh, 2ep]}"
    labelled = asked(tickets, prune="{sparsities: 0.9}")
    random = [item for item in labelled if item.role["ticket"] == "RT" and item.role["what"] == "train"]
    assert Counter((item.role["scope"], item.role["rewind"]) for item in random) == {
        (scope, rewind): 1 for scope in ("layer", "global", "even") for rewind in ("0ep", None, "2ep")
    }
    (own,) = pick(labelled, "mask", ticket="search")
    trunk = own.of.run
    starts = {"0ep": At(trunk, "0ep"), "2ep": At(trunk, "2ep"), None: Fresh(0, draw=1)}
    shares = Magnitude(At(trunk, "0ep"), "0.9", scope="layer")
    masks = {
        "layer": Permuted(own, "layer", 0),
        "global": Permuted(own, "global", 0),
        "even": Permuted(shares, "layer", 0),
    }
    for item in random:
        assert item.value.init == starts[item.role["rewind"]]
        assert item.value.mask == masks[item.role["scope"]]
        assert item.role["method"] == (None if item.role["scope"] == "even" else "OMP")
    spent = {(item.role["scope"], item.role["rewind"]): item.role["search_epochs"] for item in random}
    assert spent == {
        (scope, rewind): 10 if scope == "layer" else 2 if rewind == "2ep" else 0
        for scope, rewind in spent
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tickets", "rewound_masks", "found", "trainings"),
    [
        ("", "rewound", "1ep", 3),  # Morcos A.2: the preserved or permuted mask is the winning ticket's
        ("LT: {methods: IMP}, ", "rewound", "0ep", 5),
        ("", "initial", "0ep", 3),
    ],
)
def test_random_tickets_have_the_masks_of_late_reset_tickets_where_these_are_alone(
    tickets, rewound_masks, found, trainings
):
    tickets += "WR: {methods: IMP, rewind: 1ep}, RR: {methods: IMP}, RT: {methods: IMP, weights: fresh}"
    labelled = asked(tickets, protocol=f"{{schedule: restart, rewound_masks: {rewound_masks}}}")
    masks = pick(labelled, "mask", ticket="search", level=3, rewind=found)
    assert len(masks) == 1 and masks[0].of.run.init.step == found
    assert [value.mask for value in pick(labelled, ticket="RR", level=3)] == masks
    assert [value.mask for value in pick(labelled, ticket="RT", level=3)] == [Permuted(masks[0], "layer", 0)]
    rounds = {item.value.of.run for item in labelled if item.role["what"] == "mask" and item.role["ticket"] == "search"}
    assert len(rounds) == trainings


# --- imposed counts -------------------------------------------------------------------------------------------


def test_counts_of_another_chain_are_imposed_at_every_level():
    """Lan Fig. 7: chain B is pruned with the layer counts that chain A has at the same level."""
    labelled = asked("LT: {methods: [IMP, OMP]}", prune="{levels: [1, 3], layer_counts: {lr: [0.1, 0.4]}}")
    swapped = pick(labelled, "mask", method="IMP", layer_counts="lr 0.4")
    assert [mask.sparsity for mask in swapped] == [None] * 3
    other = pick(asked("LT: {methods: IMP}", lr=0.4), "mask", method="IMP")
    assert [mask.layer_counts_of for mask in swapped] == other
    for before, mask in zip(swapped, swapped[1:], strict=False):
        assert (mask.of.run.mask, mask.of.run.recipe.lr) == (before, 0.1)
    assert pick(labelled, "mask", layer_counts="lr 0.1") == []
    (one,) = pick(labelled, "mask", method="OMP", layer_counts="lr 0.4", level=3)
    (own,) = pick(labelled, "mask", method="OMP", layer_counts=None, level=3)
    assert (one.of, one.layer_counts_of.of.run.recipe.lr) == (own.of, 0.4)
    spent = {i.role["layer_counts"]: i.role["search_epochs"] for i in labelled if i.role["level"] == 3}
    assert spent == {None: 10, "lr 0.4": 20}


# --- gradual pruning ------------------------------------------------------------------------------------------


def test_gradual_masks_are_those_of_trainings_that_prune():
    prune = "{levels: [4], sparsities: [0.9], gradual: [{start: 2ep, end: 8ep, every: 21it}, " + (
        "{points: [[3ep, 0.4], [5ep, 0.8]]}]}"
    )
    labelled = asked("GMP: , LT: {methods: GMP}, WR: {methods: GMP, rewind: 3ep}, LRR: {methods: GMP}", prune=prune)
    runs = pick(labelled, ticket="GMP")
    assert [run.pruning for run in runs] == [
        Gradual("2ep", "8ep", "1ep", Level(4)),
        Gradual("2ep", "8ep", "1ep", "0.9"),
        Explicit((("3ep", "0.4"), ("5ep", "0.8"))),
    ]
    assert pick(labelled, "mask") == [MaskOf(run, at) for run, at in zip(runs, ("8ep", "8ep", "5ep"), strict=True)]
    assert [value.init for value in pick(labelled, ticket="LT")] == [At(run, "0ep") for run in runs]
    assert [value.init for value in pick(labelled, ticket="WR")] == [At(run, "3ep") for run in runs]
    assert [value.init.step for value in pick(labelled, ticket="LRR")] == ["8ep", "8ep", "5ep"]
    words = ["cubic 2ep to 8ep every 21it", "0.4 at 3ep, 0.8 at 5ep"]
    found = [(i.role["pruning"], i.role["level"], i.role["sparsity"], i.role["search_epochs"])
             for i in labelled if i.role["ticket"] == "LT"]  # fmt: skip
    assert found == [(words[0], 4, 0.5904, 8), (words[0], None, 0.9, 8), (words[1], None, 0.8, 5)]
    assert all(value.schedule == "resume" for value in pick(labelled, ticket="WR"))


def test_a_floor_is_of_all_masks_but_even_ones():
    prune = "{levels: [3], gradual: {start: 1ep, end: 3ep}, layer_counts: {lr: 0.3}}"
    tickets = "LT: {methods: [IMP, OMP, GMP]}, RT: {methods: OMP, scope: even}"
    labelled = asked(tickets, prune=prune, protocol="{floor: 0.020}")
    found = {}
    for item in labelled:
        if item.role["what"] == "mask" and item.role["ticket"] == "search":
            value = item.value.run.pruning if item.role["method"] == "GMP" else item.value
            found.setdefault((item.role["method"], item.role["layer_counts"]), set()).add(value.floor)
    assert found == {
        ("IMP", None): {"0.02"}, ("OMP", None): {"0.02"}, ("GMP", None): {"0.02"},
        ("IMP", "lr 0.3"): {None}, ("OMP", "lr 0.3"): {None},
    }  # fmt: skip
    (even,) = pick(labelled, "mask", scope="even")
    assert even.mask.floor is None


def test_a_schedule_has_the_rules_of_the_protocol():
    rules = Protocol(prunable="first_last_dense", scope="layer")
    made = pruning.schedule(Curve(start="1ep", end="3ep", initial=0.2, shape="linear"), "0.5", rules)
    assert made == Gradual("1ep", "3ep", "1ep", "0.5", "0.2", "linear", "first_last_dense", "layer")
    assert pruning.words(Curve(start="1ep", end="3ep", initial=0.2)) == "cubic 1ep to 3ep every 1ep from 0.2"


# --- transfer -------------------------------------------------------------------------------------------------

HALF = "{name: digits, classes: [0, 1, 2, 3, 4]}"
OTHER = "{name: digits, classes: [5, 6, 7, 8, 9]}"


def test_mask_and_weights_travel_and_the_head_is_new():
    """Morcos 3.3: mask and late-reset weights of the source, recipe of the target; random tickets are the target's."""
    labelled = asked(
        "LT: {methods: IMP}, WR: {methods: IMP, rewind: 1ep}, RR: {methods: IMP}, "
        "RT: {methods: IMP, scope: global, weights: fresh}",
        data=HALF,
        targets=f"[{{data: {OTHER}, eval: {{lr: 0.02, optimizer: adam, epochs: 6}}}}, {{data: {HALF}}}]",
    )
    target = "digits (classes 5-6-7-8-9)"
    own = "digits (classes 0-1-2-3-4)"
    there = {i.role["ticket"]: i.value for i in labelled if i.role["target"] == target and i.role["level"] in (0, 3)}
    here = {i.role["ticket"]: i.value for i in labelled if i.role["target"] == own and i.role["level"] in (0, 3)}
    for ticket in ("LT", "WR"):
        assert there[ticket].init == Graft(here[ticket].init, Fresh(0))
        assert there[ticket].mask == here[ticket].mask
        assert there[ticket].schedule == "restart" and there[ticket].end == 6 * there[ticket].steps_per_epoch
    assert here["WR"].schedule == "resume" and there["WR"].init.body.step == "1ep"
    assert (there["RR"].init, there["RR"].mask) == (Fresh(0, draw=1), here["RR"].mask)
    assert there["RT"].mask == Permuted(here["LT"].mask, "global", 0)
    for ticket, value in there.items():
        assert (value.data.classes, value.recipe.optimizer, value.recipe.lr) == ((5, 6, 7, 8, 9), "adam", 0.02), ticket
    assert {i.role["source"] for i in labelled} == {own} and {i.role["target"] for i in labelled} == {own, target}
    assert there["dense"].init == Fresh(0) and there["dense"].mask == Dense()


def test_rounds_that_were_ranked_at_their_best_are_listed():
    """Of IMP with three rounds, the second and the third train under masks of the levels before them."""
    for rules in ("{masks_from: best_test}", "{}"):
        labelled = asked("LT: {methods: IMP}", protocol=rules, evaluate="{lr: 0.5}")
        found = [i for i in labelled if i.role["ticket"] == "search" and i.role["what"] == "train"]
        assert [(i.role["level"], i.role["train_epochs"]) for i in found] == [(1, 10), (2, 10)], rules


def test_imposed_counts_are_of_the_end_of_trainings_of_their_own_length():
    """'last' of ten epochs is not that of four: every recipe is ranked at its own end, or at the step that is named."""
    for at, step in (("", "4ep"), (", at: last", "4ep"), (", at: 3ep", "3ep"), (", at: best_test", "best_test")):
        labelled = asked("LT: {methods: [IMP, OMP]}", prune=f"{{levels: [2]{at}, layer_counts: {{epochs: 4}}}}")
        imposed = pick(labelled, "mask", layer_counts="epochs 4")
        assert {mask.layer_counts_of.of.step for mask in imposed} == {step}, at
        assert {mask.layer_counts_of.of.run.recipe.epochs for mask in imposed} == {4}


def test_imposed_counts_under_fine_tuning_come_from_the_recipe_that_they_are_named_by():
    """Tune rounds of the other recipe with its own weight decay and the last rate of its own schedule."""
    prune = "{levels: [2], layer_counts: {lr: 0.3, weight_decay: 0.01}}"
    labelled = asked("FT: {methods: IMP, epochs: 2}", prune=prune)
    (mask,) = pick(labelled, "mask", level=2, layer_counts="lr 0.3, weight decay 0.01")
    for ranked, lr, decay in ((mask.of.run, 0.1, 0.0), (mask.layer_counts_of.of.run, 0.3, 0.01)):
        assert (ranked.recipe.epochs, ranked.recipe.lr, ranked.recipe.weight_decay) == (2, lr, decay)


def test_tuning_on_a_target_ends_at_the_rate_of_the_target():
    """The last of the 2 steps of an epoch of 70 images has another rate of a cosine than that of 21 steps."""
    targets = "[{data: {name: digits, train_size: 70}}]"
    labelled = asked("FT: {methods: OMP, epochs: 2}", recipe=", lr_schedule: cosine", targets=targets)
    rates = {len_: 0.1 * 0.5 * (1 + math.cos(math.pi * (1 - 1 / (10 * len_)))) for len_ in (21, 2)}
    for value in pick(labelled, ticket="FT"):
        assert math.isclose(value.recipe.lr, rates[value.steps_per_epoch])
    assert {value.steps_per_epoch for value in pick(labelled, ticket="FT")} == {21, 2}


def test_close_numbers_are_told_apart():
    """Keep both of what differs in the eighth digit: recipes with imposed counts, and schedules."""
    curves = ", ".join(f"{{start: 1ep, end: 2ep, initial: 0.1234567{digit}}}" for digit in (1, 2))
    prune = f"{{levels: [1], layer_counts: {{lr: [0.12345671, 0.12345672]}}, gradual: [{curves}]}}"
    labelled = asked("LT: {methods: [OMP, GMP]}", prune=prune)
    assert len({mask.key for mask in pick(labelled, "mask")}) == 3 + 2


def test_rounds_that_are_longer_than_what_was_ranked_first_cost_their_own_epochs():
    """Ranked at θ_0, the first round costs nothing; each round of fine-tuning is ranked at its end, of 12 epochs."""
    labelled = asked("FT: {methods: IMP, epochs: 12}", prune="{levels: [3], at: 0ep}")
    spent = {i.role["level"]: i.role["search_epochs"] for i in labelled if i.role["what"] == "mask"}
    assert spent == {1: 0, 2: 12, 3: 24}


def test_the_gradual_training_is_there_whatever_tickets_are_trained_with():
    prune = "{sparsities: [0.8], gradual: {start: 2ep, end: 8ep}}"
    for evaluate in ("null", "{lr: 0.5}"):
        (value,) = pick(asked("GMP: ", prune=prune, evaluate=evaluate), ticket="GMP")
        assert value.recipe.lr == 0.1 and value.pruning.sparsity == "0.8"


# --- what is refused ------------------------------------------------------------------------------------------

REFUSED = {
    "step after the end": (
        {"prune": "{levels: [1], at: [2ep, 11ep]}"},
        "prune.at.1: 11ep is after the end; allowed: up to 10ep, 210it",
    ),
    "no step": ({"prune": "{levels: [1], at: [soon]}"}, "prune.at.0: step 'soon' is not understood; allowed: '8ep'"),
    "two sayings of the step": (
        {"prune": "{levels: [1], at: 2ep}", "protocol": "{masks_from: last}"},
        "prune.at: together with protocol.masks_from 'last'; allowed: one of the two",
    ),
    "validation step without images": (
        {"prune": "{levels: [1], at: best_val}"},
        "prune.at: best_val needs validation images; set data.val_size above 0",
    ),
    "rewinding past the end": (
        {"asked": "WR: {methods: OMP, rewind: [1ep, 11ep]}", "protocol": "{schedule: restart}"},
        "tickets.WR.rewind: 11ep is after the end; allowed: up to 10ep, 210it",
    ),
    "random weights past the end": (
        {"asked": "RT: {weights: [fresh, 300it]}"},
        "tickets.RT.weights: 300it is after the end; allowed: up to 10ep, 210it",
    ),
    "source of weights": (
        {"asked": "RT: {weights: inital}"},
        "tickets.RT.weights: 'inital' is not known; allowed: initial, fresh, or a step such as '8ep'",
    ),
    "rounds that end before they begin": (
        {"asked": "WR: {rewind: 4ep}", "prune": "{levels: [2], at: 3ep}"},
        "tickets.WR.rewind: 4ep is not before 3ep, where rounds that resume there are ranked (prune.at)",
    ),
    "gradual without a schedule": (
        {"asked": "LT: {methods: GMP}"},
        "prune.gradual: missing; masks of LT by GMP need a schedule, such as {start: 2ep, end: 8ep}",
    ),
    "gradual ticket without a schedule": ({"asked": "GMP: "}, "prune.gradual: missing; masks of GMP by GMP"),
    "gradual without an end": (
        {"prune": "{levels: [1], gradual: {start: 2ep}}", "asked": "GMP: "},
        "prune.gradual.end: missing; a curve needs start and end, a list points",
    ),
    "gradual outside the run": (
        {"prune": "{levels: [1], gradual: {start: 2ep, end: 12ep}}", "asked": "GMP: "},
        "prune.gradual: pruning end 12ep is outside the training; allowed: 0ep to 10ep",
    ),
    "gradual backwards": (
        {"prune": "{levels: [1], gradual: {start: 5ep, end: 2ep}}", "asked": "GMP: "},
        "prune.gradual: pruning from 5ep to 2ep: the end is not behind the start",
    ),
    "gradual that grows": (
        {"prune": "{levels: [1], gradual: {start: 1ep, end: 2ep, initial: 0.5}}", "asked": "GMP: "},
        "is below the initial one, 0.5",
    ),
    "list that grows": (
        {"prune": "{gradual: {points: [[1ep, 0.5], [2ep, 0.4]]}}", "asked": "GMP: "},
        "prune.gradual: points: sparsity '0.4' at 2ep falls; allowed: '0.5' or more",
    ),
    "list and curve": (
        {"prune": "{gradual: {end: 3ep, points: [[1ep, 0.5]]}}", "asked": "GMP: "},
        "prune.gradual.points: not together with end",
    ),
    "gradual to nothing": (
        {"prune": "{gradual: {start: 1ep, end: 3ep}}", "asked": "GMP: "},
        "prune.levels: missing; masks of GMP need levels, such as [4, 8]",
    ),
    "counts of an unknown recipe": (
        {"prune": "{levels: [1], layer_counts: {lrate: 0.1}}"},
        "prune.layer_counts.lrate: unknown field",
    ),
    "counts of a wrong recipe": (
        {"prune": "{levels: [1], layer_counts: {warmup: 10ep}}"},
        "prune.layer_counts.warmup: 10ep is not before the end; allowed: below 10ep",
    ),
    "filters one by one": (
        {"protocol": "{granularity: filter}", "asked": "LT: "},
        "tickets.LT.methods: IMP with granularity 'filter'; allowed: OMP",
    ),
    "filters elsewhere": (
        {"protocol": "{granularity: filter}", "asked": "LT: {methods: OMP}", "targets": f"[{{data: {OTHER}}}]"},
        "targets: not with protocol.granularity 'filter'; allowed with: weight",
    ),
    "other images on a target": (
        {"targets": "[{data: {name: digits, val_size: 9}}, {data: {name: digits, size: 12}}]"},
        "targets.1.data: layer 1 of 'lenet_300_100' has 19200 weights on 'digits' and would need 43200; "
        "allowed: data 'digits' with size: 12",
    ),
    "other channels on a target": (
        {"net": "resnet8", "targets": "[{data: {name: digits, channels: 3, size: 16}}]"},
        "targets.0.data: layer 1 of 'resnet8' has 144 weights on 'digits' and would need 432; "
        "allowed: data 'digits' with channels: 3",
    ),
    "images of a target that are too small": (
        {"net": "vgg11", "data": "{name: digits, size: 16}", "targets": "[{data: digits}]"},
        "targets.0.data: 'vgg11' halves images 4 times, and those of 8×8 pixels are too small",
    ),
    "batch of one image on a target": (
        {
            "net": "vgg11",
            "data": "{name: digits, size: 16, train_size: 128}",
            "targets": "[{data: {name: digits, size: 16, train_size: 129}}]",
        },
        "targets.0.eval: the last batch of an epoch has one image",
    ),
    "head of a target": (
        {"protocol": "{prunable: all}", "targets": f"[{{data: {OTHER}}}]"},
        "protocol.prunable: 'all' covers the head, which is new on targets; allowed: all_but_head, first_last_dense",
    ),
    "recipe of a target": (
        {"targets": f"[{{data: {OTHER}, eval: {{batch_size: 5000}}}}]"},
        "targets.0.eval.batch_size: 5000 is larger than the training set; allowed: 1 to ",
    ),
    "data of a target": ({"targets": "[{data: digit}]"}, "targets.0.data.name: data set 'digit' is not known"),
    "floor of layers": (
        {"protocol": "{floor: 0.1, scope: layer}"},
        "protocol.floor: 0.1 with scope 'layer'; allowed with: global",
    ),
    "floor that leaves too little": (
        {"prune": "{levels: [1, 20]}", "protocol": "{floor: 0.5}"},
        "prune.levels.1: level 20 of 'lenet_300_100' prunes 48633 of 49200 prunable weights; allowed: 0 to 24600",
    ),
    "layers of unlike counts": (
        {
            "protocol": "{denominator: all}",
            "prune": "{sparsities: [0.5], gradual: {start: 1ep, end: 2ep}}",
            "asked": "GMP: ",
        },
        "protocol.denominator: 'all' with GMP by GMP; allowed: prunable",
    ),
    "even shares of all parameters": (
        {"protocol": "{denominator: all}", "asked": "RT: {scope: even}"},
        "protocol.denominator: 'all' with RT of scope 'even'; allowed: prunable",
    ),
    "targets that are chosen by validation": (
        {"data": "{name: digits, val_size: 100}", "targets": f"[{{data: {OTHER}}}]", "protocol": "{report: best_val}"},
        "targets.0.data: protocol.report best_val needs validation images; set val_size above 0",
    ),
    "filters all over": (
        {"protocol": "{granularity: filter}", "asked": "RT: {methods: OMP, scope: [layer, global]}"},
        "tickets.RT.scope: not with protocol.granularity 'filter'; allowed with: weight, scope 'layer'",
    ),
    "counts of shorter trainings": (
        {"prune": "{levels: [1], at: 5ep, layer_counts: {epochs: [4, 6]}}"},
        "prune.layer_counts: 5ep of prune.at is after the end of its trainings; allowed: up to 4ep, 84it",
    ),
    "counts of chains that nothing is left of": (
        {"prune": "{levels: [1], layer_counts: {epochs: [4, 6]}}", "asked": "WR: {rewind: 4ep}"},
        "prune.layer_counts: 4ep of tickets.WR.rewind is not before the end; allowed: below 4ep, 84it",
    ),
    "floor": ({"protocol": "{floor: 1.0}"}, "protocol.floor: 1.0 is not allowed; allowed: below 1"),
}


def test_what_the_network_does_not_mind_is_transferred():
    """Morcos 3.3: the last maps are averaged, so other sizes fit; for another recipe a mask may cover the head."""
    wide = "[{data: {name: digits, size: 12}}]"
    assert pick(asked("LT: ", net="resnet8", targets=wide), ticket="LT", target="digits (size 12)")
    recipe = "[{data: digits, eval: {optimizer: adam}}]"
    labelled = asked("LT: ", protocol="{prunable: all}", targets=recipe)
    (ticket,) = pick(labelled, ticket="LT", method="IMP", level=3, eval_optimizer="adam")
    assert isinstance(ticket.init, At)


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_at_its_place(name):
    fields, expected = REFUSED[name]
    with pytest.raises(StudyError) as caught:
        spec.parse(text(**{"asked": "LT: "} | fields))
    assert len(caught.value.problems) == 1, caught.value
    (problem,) = caught.value.problems
    assert expected in f"{problem.field}: {problem.message}"
    assert problem.line > 1
