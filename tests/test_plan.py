"""What computing values takes: how far each training goes, what it keeps, and what trains together."""

from pathlib import Path

from lthlab import spec, tickets
from lthlab.analyses import Measure
from lthlab.parts import Data, Net, Recipe
from lthlab.plan import Need, depths, families, groups, needs, shape_of
from lthlab.values import (
    At,
    Explicit,
    Fresh,
    Gradual,
    Magnitude,
    MaskOf,
    Permuted,
    Train,
    ancestors,
)

DEMO = Path(__file__).parent / "lenet.yaml"
RULES = tickets.Protocol(Net(name="lenet_300_100"), Data(name="digits"), 0)
RECIPE = Recipe(epochs=20, batch_size=64, lr=0.1)
STEPS = 21
TRUNK = tickets.dense(RULES, RECIPE)


def train(**fields):
    return Train(**{"net": RULES.net, "data": RULES.data, "recipe": RECIPE, "init": Fresh(0), "order": 0} | fields)


def need(epochs, *keep):
    return Need(epochs * STEPS, frozenset(keep))


def test_a_training_is_asked_for_to_its_end():
    assert needs([TRUNK]) == {TRUNK: need(20)}


def test_a_state_is_asked_for_as_far_as_its_step():
    assert needs([At(TRUNK, "5ep")]) == {TRUNK: need(5, "5ep")}
    assert needs([At(TRUNK, "5ep"), At(TRUNK, "30it")]) == {TRUNK: need(5, "5ep", "30it")}
    assert needs([At(TRUNK, "5ep"), TRUNK]) == {TRUNK: need(20, "5ep")}
    assert needs([At(TRUNK, "best_test")]) == {TRUNK: need(20, "best_test")}


def test_a_mask_asks_for_the_ranked_state_only():
    assert needs([Magnitude(At(TRUNK, "8ep"), "0.5")]) == {TRUNK: need(8, "8ep")}


def test_an_early_ticket_asks_for_the_later_of_its_steps():
    for s, v in ((3, 8), (8, 3)):
        ticket = train(init=At(TRUNK, f"{v}ep"), mask=Magnitude(At(TRUNK, f"{s}ep"), "0.5"))
        assert needs([ticket]) == {TRUNK: need(8, "3ep", "8ep"), ticket: need(20)}


def test_the_mask_of_a_pruning_training_asks_for_its_step():
    run = train(pruning=Gradual("1ep", "10ep", "1ep", "0.9"))
    assert needs([MaskOf(run, "5ep")]) == {run: need(5, "5ep")}
    assert needs([MaskOf(run, "5ep"), MaskOf(run, "best_test"), At(run, "30it")]) == {
        run: need(20, "5ep", "30it", "best_test")
    }
    ticket = train(init=At(TRUNK, "2ep"), mask=Permuted(MaskOf(run, "9ep")))
    assert needs([ticket]) == {run: need(9, "9ep"), TRUNK: need(2, "2ep"), ticket: need(20)}
    assert depths(ancestors([ticket])) == {TRUNK: 0, run: 0, MaskOf(run, "9ep"): 1, ticket.mask: 1, ticket: 1}


def test_trainings_that_prune_differently_form_a_group_without_those_that_do_not():
    kinds = [
        train(pruning=pruning)
        for pruning in (
            Gradual("1ep", "10ep", "1ep", "0.9"),
            Gradual("2ep", "9ep", "30it", "0.5", "0.1", "linear", scope="layer"),
            Explicit((("4ep", "0.4"), ("8ep", "0.8"))),
        )
    ]
    assert len({shape_of(value) for value in kinds}) == 1 and shape_of(TRUNK) != shape_of(kinds[0])
    found = list(groups([TRUNK, *kinds], shape_of, families(ancestors([TRUNK, *kinds])), lambda value: 8))
    assert found == [[TRUNK], kinds]


def test_a_resuming_training_counts_on_the_schedules_clock():
    ticket = train(init=At(TRUNK, "8ep"), mask=Magnitude(At(TRUNK, "last"), "0.5"), schedule="resume")
    assert needs([At(ticket, "8ep")]) == {TRUNK: need(20, "8ep", "20ep"), ticket: need(8, "8ep")}


def test_needs_of_the_demo():
    labelled = tickets.expand(spec.read(DEMO))
    found = needs(item.value for item in labelled)
    assert len(found) == 594
    assert {n.until for n in found.values()} == {20 * STEPS}
    dense = [found[item.value] for item in labelled if item.role["ticket"] == "dense" and item.role["what"] == "train"]
    assert set(dense) == {need(20, "0ep", "1ep", "20ep")}
    searched = {}
    for item in labelled:
        if (item.role["what"], item.role["ticket"]) == ("train", "search"):
            searched.setdefault(item.role["level"], set()).add(found[item.value])
    measured = need(20, "0ep", "20ep")
    assert searched == {k: {measured if k in (4, 8, 12) else need(20, "20ep")} for k in range(1, 16)}
    assert {found[item.value] for item in labelled if item.role["ticket"] == "WR"} == {need(20)}


def test_inputs_come_first():
    everything = list(needs(item.value for item in tickets.expand(spec.read(DEMO))))
    position = {run: n for n, run in enumerate(everything)}
    for run in everything:
        for item in ancestors(run.inputs):
            assert not isinstance(item, Train) or position[item] < position[run]


def test_depths_count_trainings():
    rounds = tickets.imp(RULES, RECIPE, 3)
    last = tickets.rewound(RULES, RECIPE, rounds[0][0], rounds[-1][1], "0ep", "restart")
    measure = Measure("correlation_indicator", (At(last, "0ep"), At(last, "last")))
    found = depths(ancestors([measure]))
    assert [(found[run], found[mask]) for run, mask in rounds] == [(0, 1), (1, 2), (2, 3)]
    assert (found[last], found[measure]) == (3, 4)


def test_families_join_replicates_and_rates_of_one_level_and_ticket():
    labelled = [
        i for i in tickets.expand(spec.read(DEMO)) if i.role["what"] == "train" and i.role["ticket"] != "search"
    ]
    found = families(ancestors(item.value for item in labelled))
    kinds = {}
    for item in labelled:
        kinds.setdefault(found[item.value], set()).add((item.role["ticket"], item.role["method"], item.role["level"]))
    assert len(kinds) == 1 + 5 * 4
    assert {len(members) for members in kinds.values()} == {1}
    assert {sum(found[item.value] == family for item in labelled) for family in kinds} == {18}
