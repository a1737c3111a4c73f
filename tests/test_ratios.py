"""Layer-wise pruning ratios, against numbers made by hand, plain NumPy and scipy."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lthlab import lab, profiles, ratios, reports, results, spec
from lthlab.derive import mask as read_mask
from lthlab.derive import state
from lthlab.store import Store
from lthlab.tickets import expand
from lthlab.values import At

SIZES = (10, 40, 50)


def layers(*masks, **columns):
    """Rows as `results.layers` makes them, of masks that keep so many weights of three layers."""
    rows = []
    for number, (kept, own) in enumerate(masks):
        pruned = 1 - sum(kept) / sum(SIZES)
        mask = {"study": "s", "panel": "p", "network": "n", "train_size": 100, "find_batch_size": 32, "find_lr": 0.1}
        mask |= {"find_milestones": ["1ep"], "what": "mask", "ticket": "search", "method": "OMP", "prune_at": "4ep"}
        mask |= {"layer_counts": None, "rewind": None, "level": 5, "sparsity": pruned, "replicate": 0}
        mask |= {"status": "done", "metric": "pruned share", "key": f"{number:032x}"} | columns | own
        for place, (size, left) in enumerate(zip(SIZES, kept, strict=True), start=1):
            row = {"layer": f"l{place}.weight", "number": place, "weights": size, "kept": left}
            rows.append(mask | row | {"value": 1 - left / size})
    return pd.DataFrame(rows)


def test_the_ratio_to_even_pruning_by_hand():
    """Morcos Fig. 1b: of 100 weights 70 go, of the layers 2 of 10, 20 of 40 and 48 of 50."""
    frame = layers(([8, 20, 2], {}), ([3, 12, 15], {}), ([10, 40, 50], {}))
    found = ratios.to_even(pd.concat([frame, frame]))
    first, even = (found[found["key"] == f"{number:032x}"]["value"].to_numpy()[:3] for number in (0, 1))
    np.testing.assert_allclose(first, [0.2 / 0.7, 0.5 / 0.7, 0.96 / 0.7])
    np.testing.assert_allclose(even, [1, 1, 1])
    assert set(found["key"]) == {f"{number:032x}" for number in (0, 1)}
    assert found["metric"].eq("ratio to even pruning").all()
    weighted = np.average(first, weights=SIZES)
    assert weighted == pytest.approx(1)


def test_the_first_layer_minus_the_last_by_hand():
    found = ratios.first_to_last(layers(([8, 20, 2], {}), ([0, 20, 50], {})))
    assert found["value"].tolist() == pytest.approx([0.2 - 0.96, 1.0])
    assert not {"layer", "number", "kept"} & set(found)


@pytest.mark.parametrize("field, low, high", [("find_lr", 0.02, 0.3), ("find_weight_decay", 0.0, 5e-4)])
@pytest.mark.parametrize("sign", [1, -1])
def test_settings_are_compared_pair_by_pair_whatever_the_sign(field, low, high, sign):
    kept = ([8, 20, 2], [6, 20, 4])[::sign]
    masks = [(kept[0], {field: low}), ([1, 1, 1], {field: (low + high) / 2}), (kept[1], {field: high})]
    masks += [([9, 20, 1], {field: low, "replicate": 1}), ([9, 10, 11], {field: high, "replicate": 1})]
    masks += [([5, 5, 5], {field: low, "replicate": 2})]
    frame = layers(*masks, sparsity=0.7)
    found = ratios.by_setting(frame, field).sort_values(["replicate", "number"])
    assert found["value"].tolist() == pytest.approx([-0.2 * sign, 0, 0.04 * sign, 0, -0.25, 0.2])
    assert found["setting"].unique().tolist() == [
        f"{'learning rate' if field == 'find_lr' else 'weight decay'} {low:g} − {high:g}"
    ]
    ends = ratios.by_setting(ratios.first_to_last(frame), field).sort_values("replicate")
    assert ends["value"].tolist() == pytest.approx([-0.24 * sign, -0.2])
    assert found["metric"].eq("pruned share").all()
    assert ratios.by_setting(frame[frame[field] == low], field).empty
    assert ratios.varied(frame) == field
    named = ratios.found_with(frame, field)
    word = "learning rate" if field == "find_lr" else "weight decay"
    assert named["ticket"].unique().tolist() == [f"{word} {value:g}" for value in (low, (low + high) / 2, high)]
    assert field not in named


def test_settings_of_two_panels_are_compared_each_by_its_own_values():
    one = layers(([8, 20, 2], {"find_lr": 0.1}), ([7, 20, 3], {"find_lr": 0.2}))
    two = layers(([8, 20, 2], {"find_lr": 1.0}), ([10, 20, 0], {"find_lr": 2.0}), panel="q")
    found = ratios.by_setting(pd.concat([one, two]), "find_lr")
    assert found.groupby("setting")["value"].first().round(9).to_dict() == {
        "learning rate 0.1 − 0.2": -0.1,
        "learning rate 1 − 2": 0.2,
    }


def test_how_ratios_move_with_the_step_by_hand():
    """Layer 1 has 0.5, 0.3, 0.4 at epochs 1, 3 and 12: it walks 0.2 and 0.1, and is 0.1 below its end at first."""
    masks = [([6, 20, 4], {"prune_at": "12ep"}), ([5, 20, 5], {"prune_at": "1ep"}), ([7, 16, 7], {"prune_at": "3ep"})]
    frame = layers(*masks, ([1, 1, 1], {"prune_at": "best_val"}), sparsity=0.7)
    found = ratios.by_step(frame)
    first = found[found["number"] == 1]
    assert first["prune_epoch"].tolist() == [1, 3, 12]
    assert first["change"].tolist() == pytest.approx([-0.1, 0.1, 0])
    assert first["variation"].tolist() == pytest.approx([0.3, 0.1, 0])
    assert (found["variation"] >= found["change"].abs() - 1e-12).all()
    second, third = (found[found["number"] == number]["variation"].tolist() for number in (2, 3))
    assert second == pytest.approx([0.2, 0.1, 0]) and third == pytest.approx([0.1, 0.06, 0])
    moving = ratios.left_to_move(found)
    assert moving["value"].tolist() == pytest.approx([0.6 / 3, 0.26 / 3, 0])


def test_steps_within_an_epoch_are_parts_of_it_and_replicates_stay_apart():
    """100 images in batches of 32 are four steps an epoch."""
    masks = [([5, 20, 5], {"prune_at": "6it"}), ([6, 20, 4], {"prune_at": "2ep"})]
    masks += [(kept, own | {"replicate": 1}) for kept, own in (([9, 20, 1], masks[0][1]), ([9, 20, 1], masks[1][1]))]
    found = ratios.by_step(layers(*masks, sparsity=0.7))
    assert found["prune_epoch"].unique().tolist() == [1.5, 2]
    start = found[(found["number"] == 1) & (found["prune_epoch"] == 1.5)].set_index("replicate")["variation"]
    assert start.to_dict() == pytest.approx({0: 0.1, 1: 0})


def test_layers_that_masks_cut_through_are_found():
    found = ratios.collapsed(layers(([8, 20, 2], {}), ([10, 20, 0], {})))
    assert found[["key", "layer"]].to_numpy().tolist() == [[f"{1:032x}", "l3.weight"]]


def test_masks_of_one_kind_are_chosen():
    own = [{"prune_at": "2ep"}, {}, {"layer_counts": "lr 0.1"}, {"prune_at": "best_val"}]
    chains = [{"method": "IMP", "rewind": step} for step in ("1ep", "0ep")]
    frame = layers(*(([8, 20, 2], columns) for columns in [*own, *chains]))
    assert ratios.alike(frame)["key"].unique().tolist() == [f"{1:032x}"]
    best = frame[frame["prune_at"].str.startswith("best")]
    assert ratios.alike(pd.concat([best, best.assign(prune_at="best_test", key="t")]))["key"].unique().tolist() == [
        f"{3:032x}"
    ]
    chains = pd.concat([frame[frame["method"] == "IMP"].assign(rewind=step, key=step) for step in ("10ep", "2ep")])
    assert ratios.alike(chains, "IMP")["key"].unique().tolist() == ["2ep"]
    assert ratios.alike(frame, latest=False)["key"].unique().tolist() == [f"{number:032x}" for number in (0, 1, 3)]
    assert ratios.alike(frame, "IMP")["key"].unique().tolist() == [f"{5:032x}"]
    assert ratios.alike(frame, "GMP").empty
    assert ratios.alike(chains)["key"].unique().tolist() == ["2ep"]  # of IMP, since there are no others


def test_a_row_of_titles_tells_tickets_of_several_learning_rates_apart():
    frame = trained().assign(study="s", network="n", data="d", train_size=100, find_batch_size=32)
    frame["layer_counts"] = None
    again = frame.assign(eval_lr=0.4, key=frame["key"] + "b")
    assert set(ratios.contrasts(frame)["facet"]) == {"mask found at learning rate 0.1"}
    pairs = ratios.alike(ratios.contrasts(pd.concat([again, frame])))
    titles = [f"mask found at learning rate 0.1, trained at {lr}" for lr in (0.2, 0.4)]
    assert pairs["facet"].unique().tolist() == titles
    shown = reports.figure(profiles.contrasts_by_sparsity, pairs, "facet")
    assert all(title in shown for title in titles)


def test_of_an_unfinished_study_the_functions_give_no_row(tmp_path):
    frame = layers(([8, 20, 2], {})).drop(columns=["layer", "number", "weights"]).assign(status="missing")
    none = results.layers(Store(tmp_path), frame)
    assert none.empty and set(frame) <= set(none)
    for found in (ratios.alike(none), ratios.by_step(none), ratios.to_even(none), ratios.by_setting(none, "find_lr")):
        assert found.empty
    assert ratios.left_to_move(ratios.by_step(none)).empty and ratios.found_with(none).empty


# --- what the counts per layer carry --------------------------------------------------------------------------

PARTS = {"LT": [0.9, 0.86, 0.91], "layer": [0.86, 0.85, 0.88], "global": [0.8, 0.8, 0.79], "even": [0.7, 0.75, 0.74]}


def trained():
    """Accuracies of a ticket and of random tickets, of three replicates at two steps; even ones have no step."""
    rows = []
    for kind, values in PARTS.items():
        for step in (None,) if kind == "even" else ("1ep", "4ep"):
            for replicate, value in enumerate(values):
                row = {"panel": "p", "what": "train", "ticket": "LT" if kind == "LT" else "RT", "rewind": "0ep"}
                row |= {"method": None if kind == "even" else "OMP", "prune_at": step, "level": 5, "sparsity": 0.7}
                row |= {"scope": None if kind == "LT" else kind, "find_lr": 0.1, "eval_lr": 0.2, "replicate": replicate}
                row |= {"value": value - (0.05 if step == "1ep" and kind == "LT" else 0), "status": "done"}
                rows.append(row | {"key": f"{len(rows):032x}"})
    fresh = rows[-1] | {"rewind": None, "scope": "layer", "value": 0.1, "key": "f"}
    return pd.DataFrame([*rows, fresh])


def test_tickets_and_random_ones_are_compared_pair_by_pair():
    found = ratios.contrasts(trained())
    late = found[found["prune_at"] == "4ep"]
    names = {"ticket − global", "ticket − layer", "layer − global", "layer − even"}
    assert set(ratios.CONTRASTS) == names == set(late["ticket"])
    for name in names:
        first, second = name.replace("ticket", "LT").split(" − ")
        sides = (PARTS[first], PARTS[second])
        own = late[late["ticket"] == name].sort_values("replicate")["value"]
        np.testing.assert_allclose(own, np.subtract(*sides))
    early = found[(found["prune_at"] == "1ep") & (found["ticket"] == "ticket − layer")].sort_values("replicate")
    np.testing.assert_allclose(early["value"], np.subtract(PARTS["LT"], PARTS["layer"]) - 0.05)
    assert len(found) == 2 * 3 * len(ratios.CONTRASTS)


def test_the_share_that_counts_carry_has_fiellers_interval():
    """At either end of the interval the paired t test of 'part = share · whole' is just at the threshold."""
    pairs = ratios.contrasts(trained())
    (row,) = ratios.carried(pairs[pairs["prune_at"] == "4ep"], ["level"]).to_dict("records")
    part = np.subtract(PARTS["layer"], PARTS["global"])
    whole = np.subtract(PARTS["LT"], PARTS["global"])
    assert row["mean"] == pytest.approx(part.sum() / whole.sum()) and row["n"] == 3
    for end in (row["low"], row["high"]):
        assert stats.ttest_1samp(part - end * whole, 0).pvalue == pytest.approx(0.05)
    assert row["low"] < row["mean"] < row["high"]


def test_where_there_is_no_advantage_there_is_no_share():
    frame = trained()
    same = frame["ticket"].eq("LT")
    frame.loc[same, "value"] = frame.loc[same, "replicate"].map(dict(enumerate([0.81, 0.79, 0.8])))
    pairs = ratios.contrasts(frame)
    (row,) = ratios.carried(pairs[pairs["prune_at"] == "4ep"], ["level"]).to_dict("records")
    assert np.isnan([row["mean"], row["low"], row["high"]]).all() and row["n"] == 3
    one = pairs[(pairs["prune_at"] == "4ep") & (pairs["replicate"] == 0)]
    assert ratios.carried(one, ["level"])["mean"].isna().all()


def test_shares_never_mix_what_is_not_a_replicate():
    with pytest.raises(ValueError, match="^several values of one replicate in a cell; add what tells them apart"):
        ratios.carried(ratios.contrasts(trained()), ["level"])


STEPS = {"train_size": 96, "find_batch_size": 32}


def test_global_and_layer_wise_rankings_are_paired_across_panels():
    rows = trained().query("ticket == 'LT' and prune_at == '4ep'").assign(layer_counts=None, **STEPS)
    other = rows.assign(panel="q", ranking="layer", value=rows["value"] - [0.1, 0.2, -0.1])
    found = ratios.by_ranking(pd.concat([rows.assign(ranking="global"), other]))
    assert found.sort_values("replicate")["value"].tolist() == pytest.approx([0.1, 0.2, -0.1])
    assert found["ticket"].eq("global − layer-wise").all()


def test_rankings_are_lines_beside_the_random_ticket_with_new_weights():
    rows = trained().query("prune_at == '4ep'").assign(layer_counts=None, ranking="global", **STEPS)
    fresh = rows.query("scope == 'global'").assign(rewind=None, value=0.5)
    other = rows.query("ticket == 'LT'").assign(panel="q", ranking="layer", value=0.6)
    both = pd.concat([rows, fresh, other])
    late = both[both["ticket"] != "RT"].assign(ticket="WR", method="IMP", rewind="2ep")
    later = late.assign(rewind="3ep", value=0.0)
    for frame, method in ((both, "OMP"), (pd.concat([both[both["ticket"] == "RT"], late, later]), "IMP")):
        found = ratios.rankings(frame)
        assert found.groupby(["order", "series"])["value"].mean().to_dict() == pytest.approx({
            (0, "ranked over all layers"): 0.89, (1, "ranked within layers"): 0.6, (2, "random ticket"): 0.5,
        })  # fmt: skip
        assert found.loc[found["order"] < 2, "facet"].eq(method).all() and len(found) == 9
    several = ratios.rankings(pd.concat([both, both.assign(find_lr=0.3)]))
    assert list(several["facet"].unique()) == [f"OMP, mask found at learning rate {lr}" for lr in (0.1, 0.3)]
    assert ratios.rankings(rows).empty


# --- of a study -----------------------------------------------------------------------------------------------

STUDY = """
name: shares
net: lenet_300_100
data: {name: digits, train_size: 96}
replicates: 2
find: {epochs: 2, batch_size: 32, lr: [0.05, 0.2]}
prune: {sparsities: [0.7], at: [1ep, 2ep]}
tickets: {LT: {methods: OMP}, RT: {methods: OMP, scope: [layer, global, even]}}
panels: [{}, {protocol: {scope: layer}, tickets: {RT: false}}]
"""


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    config = spec.parse(STUDY)
    store = Store(tmp_path_factory.mktemp("runs"))
    lab.compute_study(config, store, "cpu")
    frame = results.load(store, config)
    return config, store, frame, results.layers(store, frame)


def test_ratios_of_a_study_are_those_of_its_weights_in_plain_numpy(computed):
    """A global threshold at an early step is that of all weights then; within layers each has its own."""
    config, store, _, found = computed
    masks = {item.value.key: item.value for item in expand(config) if item.role["what"] == "mask"}
    for key, rows in found.groupby("key"):
        weights = state(At(masks[key].of.run, masks[key].of.step), store)
        flat = {name: np.abs(weights[name].numpy()).ravel() for name in rows["layer"]}
        whole = np.sort(np.concatenate(list(flat.values())))
        for row in rows.to_dict("records"):
            own = flat[row["layer"]]
            if row["ranking"] == "global":
                count = int((own <= whole[int(0.7 * len(whole) + 0.5) - 1]).sum())
            else:
                count = len(own) - row["kept"]
                assert abs(count - 0.7 * len(own)) <= 1
            assert row["value"] == pytest.approx(count / len(own)) and row["weights"] == len(own)
    assert set(found["prune_at"]) == {"1ep", "2ep"} and set(found["ranking"]) == {"global", "layer"}


def test_a_study_has_all_contrasts_and_comparisons(computed):
    _, _, frame, found = computed
    glob = found[found["ranking"] == "global"]
    pairs = ratios.contrasts(frame[frame["ranking"] == "global"])
    assert len(pairs) == len(ratios.CONTRASTS) * 2 * 2 * 2
    assert len(ratios.by_ranking(frame)) == 2 * 2 and len(ratios.rankings(frame)) == 2 * 2 * 3
    assert len(ratios.by_setting(ratios.alike(glob), "find_lr")) == 2 * glob["layer"].nunique()
    steps = ratios.by_step(glob)
    last = steps[steps["prune_epoch"] == 2]
    assert len(steps) == len(glob) and last["variation"].eq(0).all() and steps["variation"].max() > 0
    layered = ratios.to_even(found[found["ranking"] == "layer"])
    assert layered["value"].sub(1).abs().max() < 1e-3 < 1e-2 < ratios.to_even(glob)["value"].sub(1).abs().max()


SWAP = """
name: swap
net: lenet_300_100
data: {name: digits, train_size: 64}
find: {epochs: 1, batch_size: 32, lr: 0.05}
prune: {levels: [1, 2, 3], rate: 0.5, layer_counts: {lr: 1.0}}
tickets: {LT: {methods: [IMP, OMP]}}
protocol: {scope: %s}
"""


def largest(weights, alive, count):
    """Keep so many of the weights that are alive, the largest, of equal ones the later, in plain NumPy."""
    flat = np.where(alive.ravel(), np.abs(weights).ravel(), -1)
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(flat, kind="stable")[flat.size - count :]] = True
    return kept.reshape(weights.shape)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_counts_are_imposed_and_layers_ranked_apart_as_in_plain_numpy(scope, tmp_path):
    """At every level a mask keeps of each layer as many as its pattern does (Lan Fig. 7), its own largest ones."""
    config = spec.parse(SWAP % scope)
    store = Store(tmp_path)
    lab.compute_study(config, store, "cpu")
    values = {item.value.key: item.value for item in expand(config)}
    masks = [item for item in expand(config) if item.role["what"] == "mask"]
    seen = 0
    for value, role in ((item.value, item.role) for item in masks):
        imposed = role["layer_counts"] is not None
        if not imposed and scope == "global":
            continue
        weights, found = state(value.of, store), read_mask(value, store)
        before = value.of.run.mask
        alive = read_mask(before, store) if before.key in values else {name: m | True for name, m in found.items()}
        pattern = read_mask(value.layer_counts_of, store) if imposed else None
        for name, layer in found.items():
            share = 1 - 0.5 ** role["level"]
            count = int(pattern[name].sum()) if imposed else layer.numel() - int(share * layer.numel() + 0.5)
            expected = largest(weights[name].numpy(), alive[name].numpy(), count)
            np.testing.assert_array_equal(layer.numpy(), expected)
            seen += 1
        if imposed:
            assert value.layer_counts_of.of.run.recipe.lr == 1.0 and value.of.run.recipe.lr == 0.05
    assert seen == 2 * 3 * 2 * (1 if scope == "global" else 2)  # methods, levels, layers, own and imposed
