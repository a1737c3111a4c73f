"""What a study measures: which trainings and masks, in which readings, and what is refused."""

from collections import Counter

import pytest

from lthlab import probes, spec
from lthlab.analyses import Measure
from lthlab.tickets import expand
from lthlab.trees import StudyError
from lthlab.values import At, Fresh, MaskOf, Permuted, Train

STUDY = """
name: probed
net: {name: resnet8, width: 4}
data: {name: digits, train_size: 200}
replicates: 2
find: {epochs: 4, batch_size: 50, lr: [0.1, 0.02], momentum: 0.9}
prune: {levels: [2, 4], at: [1ep, 2ep, last]}
tickets: {LT: {methods: [IMP, OMP]}, RR: {methods: OMP}}
"""


def expanded(more="", sets=()):
    return expand(spec.parse(STUDY + more, sets=sets))


def found(items, what, **columns):
    return [
        i for i in items if i.role["what"] == what and all(i.role[name] == value for name, value in columns.items())
    ]


def problems(more):
    with pytest.raises(StudyError) as caught:
        expanded(more)
    return str(caught.value)


def test_readings_of_the_correlation_indicator_compare_what_they_say():
    items = expanded("measures: {correlation_indicator: {p: [0.1, 0.5], partner: [own, dense, trained, permuted]}}")
    place = {"ticket": "RR", "method": "OMP", "level": 4, "prune_at": "4ep", "find_lr": 0.1, "replicate": 1}
    (trained,) = found(items, "train", **place)
    (dense,) = found(items, "train", ticket="dense", find_lr=0.1, replicate=1)
    value, trunk = trained.value, dense.value
    assert value.init == Fresh(1, draw=1)
    expected = {
        "own": (At(value, "0ep"), At(value, "last"), None),
        "dense": (At(value, "0ep"), At(trunk, "last"), value.mask),
        "trained": (At(value, "last"), At(trunk, "last"), value.mask),
    }
    assert found(items, "correlation_indicator", reading="permuted", **place) == []
    for reading, (first, second, mask) in expected.items():
        for p in (0.1, 0.5):
            (item,) = found(items, "correlation_indicator", reading=reading, p=p, measured_at="4ep", **place)
            settings = {"p": p, "prunable": "all_but_head"}
            assert item.value == Measure("correlation_indicator", (first, second), settings, mask)
    own = found(items, "correlation_indicator", ticket="dense")
    assert {item.role["reading"] for item in own} == {"own"} and len(own) == 2 * 2 * 2


def test_the_control_begins_with_weights_of_the_dense_training_that_no_mask_has_touched():
    """Under the ticket's own mask pruned weights are zero, so a permuted one would compare zeros with small weights."""
    sets = ["tickets.WR={methods: OMP, rewind: 1ep}", "prune.at=last"]
    options = "measures: {correlation_indicator: {of: [LT, RR, WR], partner: permuted, at: [2ep, last]}}"
    items = found(expanded(options, sets), "correlation_indicator", find_lr=0.1, replicate=1, level=4)
    (dense,) = found(expanded("", sets), "train", ticket="dense", find_lr=0.1, replicate=1)
    trunk = dense.value
    for item in items:
        (train,) = found(
            expanded("", sets), "train", find_lr=0.1, replicate=1, level=4, ticket=item.role["ticket"],
            method=item.role["method"],
        )  # fmt: skip
        begun = At(trunk, "1ep" if item.role["ticket"] == "WR" else "0ep")
        control = Permuted(train.value.mask, "layer", 1)
        settings = {"p": 0.1, "prunable": "all_but_head"}
        pair = (begun, At(trunk, item.role["measured_at"]))
        assert item.value == Measure("correlation_indicator", pair, settings, control)
    assert Counter((i.role["ticket"], i.role["method"]) for i in items) == {
        ("LT", "IMP"): 2, ("LT", "OMP"): 2, ("WR", "OMP"): 2,
    }  # fmt: skip


def test_the_control_alone_cannot_be_had_of_rr():
    message = problems("measures: {correlation_indicator: {of: [dense, RR], partner: [own, permuted]}}")
    words = "'permuted' needs other tickets, for no dense training begins with the weights of RR; "
    words += "allowed with: LT, WR in of"
    assert message.endswith(f"measures.correlation_indicator.partner.1: {words}")


def test_the_indicator_over_epochs_is_that_of_states_on_the_way():
    items = expanded("measures: {correlation_indicator: {of: LT, partner: [own, trained], at: [1ep, 2ep, last, 4ep]}}")
    one = found(items, "correlation_indicator", method="OMP", level=2, prune_at="1ep", find_lr=0.02, replicate=0)
    assert Counter((i.role["reading"], i.role["measured_at"]) for i in one) == {
        ("own", "1ep"): 1, ("own", "2ep"): 1, ("own", "4ep"): 1, ("trained", "4ep"): 1,
    }  # fmt: skip
    assert [i.value.of[1].step for i in one if i.role["reading"] == "own"] == ["1ep", "2ep", "4ep"]


def test_a_resumed_training_has_no_state_before_it_begins():
    more = "protocol: {schedule: resume, rewound_masks: initial}\n"
    more += "measures: {correlation_indicator: {of: WR, at: [0ep, 1ep, 3ep]}}\n"
    items = expanded(more, ["tickets.WR={methods: OMP, rewind: 2ep}", "prune.at=last"])
    steps = {(i.value.of[0].step, i.value.of[1].step) for i in found(items, "correlation_indicator")}
    assert steps == {("2ep", "3ep")}


def test_spread_of_weights_is_of_every_epoch_of_every_dense_training():
    items = found(expanded("measures: {weight_std: }"), "weight_std")
    assert len(items) == 4 and {i.role["ticket"] for i in items} == {"dense"}
    assert all([at.step for at in i.value.of] == ["0ep", "1ep", "2ep", "3ep", "4ep"] for i in items)
    (item, *_) = found(expanded("measures: {weight_std: {at: [2ep, 0ep, 8it]}}"), "weight_std")
    assert [at.step for at in item.value.of] == ["0ep", "2ep"]  # 8 iterations are two epochs


def test_distances_are_of_one_shot_masks_of_one_training_and_sparsity_in_order_of_the_step():
    items = expanded("measures: {hamming: }", ["prune.at=[last, 1ep, best_test, 2ep]"])
    measured = found(items, "hamming")
    assert len(measured) == 2 * 2 * 2
    for item in measured:
        assert [mask.of.step for mask in item.value.of] == ["1ep", "2ep", "4ep"]
        (run,) = {mask.of.run for mask in item.value.of}
        place = {"method": "OMP", "level": item.role["level"], "find_lr": run.recipe.lr, "replicate": run.order}
        masks = {i.value for i in found(items, "mask", ticket="search", **place)}
        assert set(item.value.of) < masks


def test_random_labels_are_learnt_by_dense_one_shot_and_gradually_pruned_networks():
    sets = ["prune.gradual=[{points: [[1ep, 0.4], [3ep, 0.7]]}]", "prune.at=[1ep, last]", "prune.levels=4"]
    items = expanded("measures: {memorization: {train_sizes: [60, 100], epochs: 7, lr: 0.3}}", sets)
    own = found(items, "training_accuracy", replicate=1, find_lr=0.02)
    places = Counter((i.role["method"], i.role["prune_at"], round(i.role["sparsity"], 4)) for i in own)
    level = round(1 - 0.8**4, 4)
    assert places == Counter({
        (None, None, 0.0): 2, ("OMP", "1ep", level): 2, ("OMP", "4ep", level): 2, ("OMP", "1ep", 0.4): 2,
        ("GMP", "1ep", 0.4): 2, ("OMP", "3ep", 0.7): 2, ("GMP", "3ep", 0.7): 2,
    })  # fmt: skip
    assert {i.role["images"] for i in own} == {60, 100}
    for item in own:
        (at,) = item.value.of
        run = at.run
        assert at.step == "7ep" and run.data.images == item.role["images"]
        assert (run.data.random_labels, run.data.augment, run.data.val_size) == (1, "none", 0)
        assert (run.recipe.lr, run.recipe.lr_schedule, run.recipe.epochs) == (0.3, "constant", 7)
        assert isinstance(run.init, At) and run.init.run.data.random_labels is None
        if item.role["method"] == "GMP":
            assert run.mask == MaskOf(run.init.run, item.role["prune_at"]) == MaskOf(run.init.run, run.init.step)
        elif item.role["method"] == "OMP":
            assert run.mask.of == run.init and run.init.run.pruning is None
        else:
            assert not run.mask.stored and run.init.step == "4ep"


def test_pseudo_pruned_networks_are_the_ranked_weights_trained_for_one_epoch_at_each_rate():
    items = expanded(sets=["tickets.PPR={lr: [0.1, 0.01]}", "eval={lr: [0.5, 0.2]}"])
    probed = found(items, "ppr")
    steps, rates, levels, finding, replicates = 3, 2, 2, 2, 2
    assert len(probed) == steps * rates * levels * finding * replicates
    for item in probed:
        run = item.value
        assert run.init == run.mask.of and run.recipe.epochs == 1 and run.recipe.lr_schedule == "constant"
        assert item.role["eval_lr"] == run.recipe.lr in (0.1, 0.01) and item.role["train_epochs"] == 1
        assert item.role["find_lr"] == run.init.run.recipe.lr
        assert (item.role["ticket"], item.role["rewind"]) == ("PPR", "ranked")


SURFACE = "measures: {loss_surface: {of: [dense, LT], methods: OMP, points: 5, snapshots: 3, planes: [pca, random]}}"


def test_surfaces_are_of_the_sparsest_level_and_one_replicate_unless_more_is_asked_for():
    items = found(expanded(SURFACE), "loss_surface")
    assert {(i.role["ticket"], i.role["method"], i.role["level"]) for i in items} == {
        ("dense", None, 0), ("LT", "OMP", 4),
    }  # fmt: skip
    assert {i.role["replicate"] for i in items} == {0} and {i.role["reading"] for i in items} == {"pca", "random"}
    for item in items:
        steps = [at.step for at in item.value.of]
        assert steps == (["0ep", "2ep", "4ep"] if item.role["reading"] == "pca" else ["4ep"])
        assert item.value.setting["images"] == "200"  # all that there are
    more = SURFACE.replace("points: 5", "points: 5, levels: 2, replicates: 2")
    assert {(i.role["level"], i.role["replicate"]) for i in found(expanded(more), "loss_surface", ticket="LT")} == {
        (2, 0), (2, 1),
    }  # fmt: skip


def test_trajectories_are_spread_evenly_over_the_training():
    run = Train(*[getattr(spec.parse(STUDY).panels[0], name) for name in ("net", "data")],
                spec.parse(STUDY).panels[0].recipes[0][0], Fresh(0), 0)  # fmt: skip
    assert [at.step for at in probes._trajectory(run, 5)] == ["0ep", "1ep", "2ep", "3ep", "4ep"]
    assert [at.step for at in probes._trajectory(run, 9)] == [
        "0ep", "2it", "1ep", "6it", "2ep", "10it", "3ep", "14it", "4ep",
    ]  # fmt: skip


def test_lines_are_between_the_ends_and_between_two_orders_from_one_state():
    items = expanded("measures: {loss_barrier: {of: [dense, LT], methods: OMP, at: [0ep, 2ep], points: 3}}")
    place = {"find_lr": 0.1, "replicate": 1}
    (dense,) = found(items, "train", ticket="dense", **place)
    (ends,) = found(items, "loss_barrier", ticket="dense", reading="ends", **place)
    assert ends.value.of == (At(dense.value, "0ep"), At(dense.value, "last"))
    pairs = {
        i.role["measured_at"]: i.value.of
        for i in found(items, "loss_barrier", ticket="dense", reading="orders", **place)
    }
    assert pairs.keys() == {"0ep", "2ep"} and pairs["0ep"][0].run == dense.value
    for step, pair in pairs.items():
        assert [at.run.order for at in pair] == [1, 1 + probes.OTHER_ORDER] and {at.step for at in pair} == {"4ep"}
        if step == "2ep":
            assert all(at.run.init == At(dense.value, "2ep") and at.run.start == 8 for at in pair)
        else:
            assert all(at.run.init == Fresh(1) for at in pair)
    (orders,) = found(items, "loss_barrier", ticket="LT", reading="orders", prune_at="4ep", **place)
    first, second = (at.run for at in orders.value.of)
    assert (first.mask, first.init) == (second.mask, second.init) and first.order != second.order


REFUSED = {
    "p": ("correlation_indicator: {p: 0}", "measures.correlation_indicator.p", "0 is not allowed"),
    "p above": ("correlation_indicator: {p: [0.1, 1.5]}", "measures.correlation_indicator.p.1", "1.5 is not allowed"),
    "partner": ("correlation_indicator: {partner: denes}", "correlation_indicator.partner", "did you mean 'dense'"),
    "no such ticket": (
        "correlation_indicator: {of: [LT, WR]}",
        "measures.correlation_indicator.of.1",
        "'WR' is not among the study's tickets; allowed: LT, RR, dense",
    ),
    "late": (
        "correlation_indicator: {at: [1ep, 5ep]}",
        "measures.correlation_indicator.at.1",
        "5ep is after the end; allowed: up to 4ep, 16it",
    ),
    "late spread": ("weight_std: {at: 5ep}", "measures.weight_std.at", "5ep is after the end; allowed: up to 4ep"),
    "line from the end": (
        "loss_barrier: {at: 4ep}",
        "measures.loss_barrier.at",
        "4ep is the end; allowed: below 4ep",
    ),
    "small set": (
        "memorization: {train_sizes: [40, 200]}",
        "measures.memorization.train_sizes.0",
        "40 images; allowed: 50, the batch size, to 1297",
    ),
    "level": (
        "sharpness: {levels: [4, 3]}",
        "measures.sharpness.levels.1",
        "3 is not among prune.levels; allowed: 2, 4",
    ),
    "method": (
        "hessian_eigenvalue: {of: RR, methods: IMP}",
        "measures.hessian_eigenvalue.methods",
        "'IMP' finds no mask of RR; allowed: OMP",
    ),
    "two snapshots": ("loss_surface: {snapshots: 2}", "measures.loss_surface.snapshots", "2 is not allowed"),
    "plane": ("loss_surface: {planes: pac}", "measures.loss_surface.planes", "allowed: pca, random"),
    "radius": ("sharpness: {radius: 0}", "measures.sharpness.radius", "0 is not allowed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_at_its_place(name):
    section, place, message = REFUSED[name]
    said = problems(f"measures: {{{section}}}")
    assert place in said and message in said


def test_distances_need_two_steps_that_are_known_beforehand():
    with pytest.raises(StudyError, match=r"measures.hamming: steps known beforehand: 1 in prune.at, and 2 sparsities"):
        expanded("measures: {hamming: }", ["prune.at=[last, 4ep, best_test]"])
