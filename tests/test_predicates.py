"""Claims put to frames whose answer is known: supported, contradicted, left open, not yet run, and not asked at all."""

import helpers
import numpy as np
import pytest

from lthlab import evidence, predicates, published, spec
from lthlab.errors import InputError
from lthlab.published import Claim

SEEDS = np.array([0.001, -0.001, 0.0005, -0.0005])
STUDY = """
name: s
net: {name: resnet8, width: 4}
data: digits
replicates: 4
find: {epochs: 12, batch_size: 64, lr: [0.01, 0.1, 0.5], weight_decay: 1.0e-4}
eval: {lr: [0.01, 0.1, 0.5]}
prune: {levels: [2, 8]}
tickets: {LT: , RR: , RT: {methods: IMP, scope: [layer, global]}}
"""
EARLY = """
name: e
net: {name: resnet8, width: 4}
data: digits
replicates: 4
find: {epochs: 12, batch_size: 64, lr: 0.1, lr_schedule: step, milestones: [8ep]}
prune: {sparsities: [0.8], at: [1ep, 6ep, 12ep], gradual: [{start: 2ep, end: 6ep}]}
protocol: {schedule: restart}
tickets: {LT: {methods: OMP}, LRR: {methods: OMP}, GMP: }
"""


def source(text=STUDY, value=lambda row: 0.9, status=lambda row: "done"):
    """A study whose trainings have known accuracies, and replicates that differ alike in all of them."""
    config = spec.parse(text)
    frame = helpers.frame_of(config).assign(validation=None)
    rows = frame.to_dict("records")
    values = [value(row) + SEEDS[row["replicate"]] * (1 + 0.3 * (row["ticket"] == "LT")) for row in rows]
    states = ["missing" if row["what"] == "mask" else status(row) for row in rows]
    return evidence.Source(config, frame.assign(value=values, status=states), None)


def ask(found, expected="more", predicate="difference", **settings):
    claim = Claim("c", "lan", "Fig. 0", "A claim.", predicate, settings, expected, (), ())
    return list(predicates.evaluate(claim, found))


def lt_rr(**more):
    return {"at": {"method": "IMP", "lr": "smallest", "level": "sparsest"}, "first": {"ticket": "LT"}} | {
        "second": {"ticket": "RR"}, **more
    }  # fmt: skip


@pytest.mark.parametrize(
    "expected, low, high, outcome",
    [
        ("more", 0.1, 2, "supports"), ("more", 0, 2, "undecided"), ("more", -2, 0.4, "contradicts"),
        ("more", -2, 0.5, "undecided"), ("less", -2, -0.1, "supports"), ("less", -0.4, 2, "contradicts"),
        ("alike", -0.5, 0.5, "supports"), ("alike", -0.5, 0.6, "undecided"), ("alike", 0.6, 2, "contradicts"),
        ("alike", -2, -0.6, "contradicts"), ("more", np.nan, np.nan, "undecided"),
    ],
)  # fmt: skip
def test_what_an_interval_says(expected, low, high, outcome):
    assert predicates.decide(expected, low, high, 0.5) == outcome


@pytest.mark.parametrize("gap, outcome", [(0.02, "supports"), (-0.02, "contradicts"), (0.0003, "contradicts")])
def test_a_difference_of_two_tickets_is_found_with_its_interval(gap, outcome):
    found = source(value=lambda row: 0.9 + gap * (row["ticket"] == "LT"))
    (effect,) = ask(found, **lt_rr())
    assert effect.outcome == outcome and effect.n == 4 and effect.unit == "points"
    assert effect.effect == pytest.approx(100 * gap) and effect.panel == "resnet8 (width 4) on digits"
    sd = np.std(100 * 0.3 * SEEDS, ddof=1)
    assert effect.high - effect.low == pytest.approx(2 * 3.1824 * sd / 2, rel=1e-3)  # t of 3 degrees of freedom
    assert effect.words == "learning rate 0.01; 16.8 % left"


def test_what_scatters_is_left_open():
    found = source(value=lambda row: 0.9 + 0.01 * (row["ticket"] == "LT") * (1 - 2 * (row["replicate"] % 2)) * 2)
    assert [effect.outcome for effect in ask(found, **lt_rr())] == ["undecided"]


def test_one_replicate_decides_nothing():
    (effect,) = ask(source(STUDY.replace("replicates: 4", "replicates: 1")), **lt_rr())
    assert effect.outcome == "undecided" and effect.n == 1 and np.isnan(effect.low)
    assert "one replicate gives no interval" in effect.words


def test_what_is_asked_for_and_not_done_is_not_yet_run():
    found = source(status=lambda row: "missing" if row["ticket"] == "RR" else "done")
    (effect,) = ask(found, **lt_rr())
    assert effect.outcome == "not yet run" and effect.n == 0


def test_a_study_that_asks_for_no_such_ticket_says_nothing():
    assert ask(source(), **lt_rr(second={"ticket": "SDT"})) == []
    assert ask(source(EARLY), **lt_rr()) == []


def test_only_the_chosen_learning_rate_and_coupled_recipes_count():
    def value(row):
        other = row["find_lr"] != row["eval_lr"] or row["eval_lr"] != 0.01 or row["method"] != "IMP"
        return 0.1 if other or row["level"] == 2 else 0.9 + 0.03 * (row["ticket"] == "LT")

    (effect,) = ask(source(value=value), **lt_rr())
    assert effect.effect == pytest.approx(3)


def test_a_difference_of_differences():
    found = source(value=lambda row: 0.9 + (row["ticket"] == "LT") * (0.03 if row["eval_lr"] == 0.01 else 0.01))
    (effect,) = ask(found, **lt_rr(than={"lr": "largest"}))
    assert effect.effect == pytest.approx(2) and effect.outcome == "supports"
    assert "compared with learning rate 0.5" in effect.words


def test_rates_that_find_masks_are_compared_at_each_rate_that_trains():
    found = source(value=lambda row: 0.9 - 0.02 * (row["find_lr"] == 0.5) - 0.3 * (row["eval_lr"] == 0.5))
    settings = {"at": {"ticket": "LT", "level": "sparsest"}}
    settings |= {"first": {"find_lr": "largest"}, "second": {"find_lr": "smallest"}}
    (effect,) = ask(found, "less", **settings)
    assert effect.effect == pytest.approx(-2) and effect.outcome == "supports"
    (other,) = ask(found, "less", **settings | {"first": {"eval_lr": "largest"}, "second": {"eval_lr": "next"}})
    assert other.effect == pytest.approx(-30)


def test_tickets_are_compared_with_the_dense_network_that_is_trained_like_them():
    def value(row):
        return 0.9 + 0.05 * (row["eval_lr"] == 0.5) - 0.01 * (row["ticket"] == "LT" and row["level"] == 2)

    at = {"method": "IMP", "lr": "largest", "level": "least"}
    (effect,) = ask(source(value=value), "less", at=at, first={"ticket": "LT"}, second={"ticket": "dense"})
    assert effect.effect == pytest.approx(-1, abs=0.05) and effect.n == 4


def test_steps_of_ranking_are_shares_of_the_training():
    def value(row):
        late = {"1ep": 0.80, "6ep": 0.90, "12ep": 0.91}.get(row["prune_at"], 0.95)
        return 0.92 if row["ticket"] == "GMP" else late

    found = source(EARLY, value)
    at = {"ticket": "LRR", "level": "sparsest"}
    (early,) = ask(found, "less", at=at, first={"step": "first"}, second={"step": "last"})
    (half,) = ask(found, "alike", at=at, first={"step": "half"}, second={"step": "last"}, margin=1.5)
    assert (early.effect, early.outcome) == (pytest.approx(-11), "supports")
    assert (half.effect, half.outcome) == (pytest.approx(-1), "supports")
    second = {"ticket": "LRR", "method": "OMP", "step": "last"}
    (gradual,) = ask(found, at={"level": "sparsest"}, first={"ticket": "GMP"}, second=second)
    assert gradual.effect == pytest.approx(1)


def test_masks_of_earlier_steps_count_only_where_a_claim_names_them():
    def value(row):
        return 0.9 if row["ticket"] == "dense" else 0.88 if row["prune_at"] == "12ep" else 0.1

    at = {"lr": "usual", "level": "sparsest"}
    (effect,) = ask(source(EARLY, value), "less", at=at, first={"ticket": "LT"}, second={"ticket": "dense"})
    assert effect.effect == pytest.approx(-2)


def test_recipes_that_a_claim_compares_are_one_panel():
    text = STUDY.replace("lr: [0.01, 0.1, 0.5], weight_decay: 1.0e-4", "lr: 0.1, weight_decay: [0.0, 1.0e-3]")
    text = text.replace("eval: {lr: [0.01, 0.1, 0.5]}", "eval: {weight_decay: [0.0, 1.0e-3]}")
    found = source(text, lambda row: 0.9 - 0.02 * (row["find_weight_decay"] > 0) - 0.2 * (row["eval_weight_decay"] > 0))
    at = {"ticket": "LT", "level": "sparsest"}
    sides = {"first": {"find_weight_decay": "smallest"}, "second": {"find_weight_decay": "largest"}}
    (effect,) = ask(found, at=at, **sides)
    assert effect.effect == pytest.approx(2) and effect.n == 4
    assert len(ask(found, **lt_rr(at={"method": "IMP", "lr": "usual", "level": "sparsest"}))) == 2


def test_a_trend_over_learning_rates():
    found = source(value=lambda row: 0.9 - 0.1 * row["eval_lr"])
    (effect,) = ask(found, "less", "trend", of={"ticket": "LT"}, along="eval_lr", at={"level": "sparsest"}, margin=0.2)
    assert (effect.effect, effect.outcome, effect.n) == (-1, "supports", 4)


def test_a_value_above_chance():
    text = STUDY.replace("name: s", "name: s\nmeasures: {correlation_indicator: {partner: [own, dense]}}")
    found = source(text, lambda row: 0.3 if row["reading"] == "dense" else 0.1)
    of = {"ticket": "LT", "reading": "dense"}
    at = {"method": "IMP", "eval_lr": "smallest", "level": "sparsest"}
    (effect,) = ask(found, "more", "level", table="indicator", at=at, of=of, reference="chance", margin=0.05)
    assert effect.effect == pytest.approx(0.2) and effect.outcome == "supports" and effect.unit == ""


def test_claims_about_some_networks_and_data_are_put_to_these():
    settings = lt_rr()
    assert ask(source(), **settings, on={"networks": "residual", "data": "small"})
    assert not ask(source(), **settings, on={"networks": "plain"})
    assert not ask(source(), **settings, on={"networks": ["vgg19"]})
    assert not ask(source(), **settings, on={"data": ["cifar10"]})
    assert not ask(source(), **settings, on={"data": "large"})


def test_verdicts_answer_claims_about_prizes():
    text = STUDY.replace("RT: {methods: IMP, scope: [layer, global]}", "SDT: ").replace(
        "eval: {lr: [0.01, 0.1, 0.5]}\n", ""
    )
    text += "verdicts: {epochs: 12}\n"

    def value(row):
        return 0.9 - 0.05 * (row["ticket"] in ("RR", "SDT")) - 0.03 * (row["ticket"] == "LT")

    (none,) = ask(source(text, value), "no", "verdict", question="jackpot")
    assert none.outcome == "supports" and none.effect == pytest.approx(-3) and none.words.startswith("no; ⑤")
    won = source(text, lambda row: 0.9 - 0.05 * (row["ticket"] in ("RR", "SDT")))
    assert [effect.outcome for effect in ask(won, "no", "verdict", question="jackpot")] == ["contradicts"]
    few = source(text.replace("epochs: 12}", "epochs: 20}"), value)
    assert ask(few, "no", "verdict", question="jackpot") == []  # condition 1 alone says no


HALVES = """
name: h
net: {name: resnet8, width: 4}
data: {name: digits, part: a}
replicates: 4
find: {epochs: 12, batch_size: 64, lr: 0.1}
prune: {levels: [2, 8]}
tickets: {LT: {methods: IMP}, RT: {methods: IMP, scope: global, weights: fresh}}
panels:
  - targets: {data: {name: digits, part: b}}
  - data: {part: b}
    targets: {data: {name: digits, part: a}}
"""


def test_tickets_of_other_data_are_compared_with_random_ones_and_with_the_targets_own():
    def value(row):
        moved = row["source"] != row["target"]
        return 0.7 if row["ticket"] == "RT" else 0.88 if moved else 0.9

    found = source(HALVES, value)
    at, of = {"level": "sparsest"}, {"across": "data"}
    above = ask(found, "more", "level", table="transfer random", at=at, of=of)
    own = ask(found, "alike", "level", table="transfer own", at=at, of=of, margin=1)
    assert [effect.effect for effect in above] == pytest.approx([18, 18], abs=0.1)
    assert [effect.outcome for effect in own] == ["contradicts"] * 2
    assert [effect.effect for effect in own] == pytest.approx([-2, -2])
    assert own[0].panel == "resnet8 (width 4) on digits (part a) to digits (part b)"
    assert own[1].panel == "resnet8 (width 4) on digits (part b) to digits (part a)"
    assert ask(found, "more", "level", table="transfer random", at=at, of={"across": "sgd to adam"}) == []


def test_the_best_cell_is_asked_only_where_all_were_validated():
    text = STUDY.replace("data: digits", "data: {name: digits, val_size: 100}")
    found = source(text, lambda row: 0.9 + 0.03 * (row["find_lr"] == 0.01 and row["eval_lr"] == 0.5))
    settings = {"table": "gains", "of": {"hyperparameter": "lr", "ticket": "LT"}}
    assert ask(found, "more", "cells", **settings) == []
    validated = found.frame.assign(validation=found.frame["value"])
    effects = ask(evidence.Source(found.config, validated, None), "more", "cells", **settings)
    assert len(effects) == 2 and all(effect.outcome == "supports" for effect in effects)
    assert effects[0].effect == pytest.approx(3) and effects[0].words.startswith("IMP masks; 16.8 % left")


def test_what_is_not_known_is_refused():
    with pytest.raises(InputError, match="predicate 'differense': .*did you mean 'difference'"):
        ask(source(), predicate="differense")
    with pytest.raises(InputError, match="setting 'fisrt' is not known; .*did you mean 'first'"):
        ask(source(), fisrt={})
    with pytest.raises(LookupError, match="table 'trainde' is not known"):
        ask(source(), table="trainde", first={}, second={})


def test_every_claim_can_be_asked_of_a_study_with_all_of_it():
    for found in (source(), source(EARLY)):
        for claim in published.claims():
            if claim.predicate in predicates.PREDICATES and claim.settings.get("table") not in ("layers", "to_even"):
                assert all(effect.outcome in predicates.OUTCOMES for effect in predicates.evaluate(claim, found))
