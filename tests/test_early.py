"""Tables of early tickets: by hand, and of a small study whose weights, masks and metrics are read in plain NumPy."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest

from lthlab import advisor, early, lab, reports, results, saturation, spec, timelines
from lthlab.derive import mask as read_mask
from lthlab.derive import state
from lthlab.runs import read_metrics
from lthlab.store import Store
from lthlab.tickets import expand

STUDY = """
name: sooner
net: lenet_300_100
data: {name: digits, train_size: 96, val_size: 50}
replicates: 2
find: {epochs: 6, batch_size: 32, lr: 0.2, weight_decay: 0.01, lr_schedule: step, milestones: [4ep]}
prune:
  sparsities: [0.8]
  at: [1ep, 2ep, 3ep, 4ep, 5ep, 6ep]
  gradual: [{points: [[2ep, 0.5], [4ep, 0.7]]}]
protocol: {schedule: restart}
tickets:
  LT: {methods: OMP}
  WR: {methods: OMP, rewind: 2ep}
  LRR: {methods: OMP}
  PPR: {lr: [0.2, 0.01]}
measures:
  weight_std:
  hamming:
  memorization: {train_sizes: [32, 96], epochs: 3, lr: 0.1}
"""
EPOCHS = [1, 2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    config = spec.parse(STUDY)
    store = Store(tmp_path_factory.mktemp("runs"))
    lab.compute_study(config, store, "cpu")
    frame = results.load(store, config)
    assert (frame["status"] == "done").all()
    return config, store, frame


def measured(computed, name):
    _, store, frame = computed
    return results.measured(store, frame[frame["what"] == name])


def values(computed, **columns):
    """Values of a study in their roles."""
    return [
        (item.value, item.role) for item in expand(computed[0])
        if all(item.role.get(name) == value for name, value in columns.items())
    ]  # fmt: skip


# --- spread of weights --------------------------------------------------------------------------------------------


def spreads(**columns):
    """Two layers whose spread is 1, 0.8 and 0.6 in one replicate, and falls by a tenth in the other."""
    rows = []
    for replicate, layer in itertools.product((0, 1), (1, 2)):
        path = [1.0, 0.8, 0.6] if replicate == 0 else [2.0, 1.8, 1.62]
        for epoch, value in enumerate(path):
            predicted = None if epoch == 0 else path[epoch - 1] * (0.9 if epoch == 1 else 0.99)
            rows.append(
                {"study": "s", "panel": "p", "network": "n", "data": "d", "train_size": 96, "find_batch_size": 32}
                | {"find_lr": 0.1, "eval_lr": 0.1, "find_milestones": ["2ep"], "ticket": "dense", "what": "weight_std"}
                | {"replicate": replicate, "layer": f"l{layer}.weight", "number": layer, "epoch": float(epoch)}
                | {"step": f"{epoch}ep"}
                | {"value": value / layer, "predicted": None if predicted is None else predicted / layer}
                | {"status": "done", "metric": "weight_std", "key": f"{replicate:032x}", **columns}
            )
    return pd.DataFrame(rows)


def test_ratios_to_equation_5_by_hand():
    found = early.spreads(spreads()).set_index(["replicate", "number", "at_epoch"]).sort_index()
    for number in (1, 2):
        assert np.isnan(found.loc[(0, number, 0), ["change", "expected", "ratio", "since_epoch"]].astype(float)).all()
        assert found.loc[(0, number, 1), ["change", "expected", "ratio"]].tolist() == pytest.approx([-0.2, -0.1, 2])
        assert found.loc[(0, number, 2), ["change", "expected", "ratio"]].tolist() == pytest.approx([-0.25, -0.01, 25])
        assert found.loc[(1, number, 1), "ratio"] == pytest.approx(1)
        assert found.loc[(1, number, 2), "since_epoch"] == 1
    means = early.slopes(early.spreads(spreads())).set_index(["replicate", "at_epoch"])
    assert means["value"].to_dict() == pytest.approx({(0, 1): 2, (0, 2): 25, (1, 1): 1, (1, 2): 10})
    assert (means["least"] - means["most"]).abs().max() < 1e-12


def test_without_prediction_or_without_decay_there_is_no_ratio():
    assert early.slopes(early.spreads(spreads(predicted=None))).empty
    assert early.slopes(early.spreads(pd.DataFrame(columns=["find_lr", "status", "replicate"]))).empty
    still = spreads()
    still["predicted"] = still["value"].shift()
    assert early.spreads(still.iloc[1:3])["ratio"].isna().all(), "an expected change of zero divides nothing"


def test_spreads_of_a_study_are_those_of_its_weights(computed):
    """On plain NumPy; the prediction is that of 3 steps an epoch at 0.2, then 0.02."""
    found = early.spreads(measured(computed, "weight_std"))
    (run, _), *_ = values(computed, what="weight_std", replicate=0)
    for at in run.of:
        epoch = at.run.iteration(at.step) / 3
        weights = state(at, computed[1])
        own = found[(found["replicate"] == 0) & (found["at_epoch"] == epoch)]
        assert own["value"].tolist() == pytest.approx([weights[name].numpy().std(dtype=float) for name in own["layer"]])
        if epoch:
            rate = 0.2 if epoch <= 4 else 0.02
            assert own["expected"].tolist() == pytest.approx([-3 * rate * 0.01 / 0.1] * len(own))
    assert set(found["at_epoch"]) == set(range(7))


# --- rewinding, PPR -----------------------------------------------------------------------------------------------


def test_dense_accuracy_is_that_of_the_metrics(computed):
    _, store, frame = computed
    found = early.dense(store, frame)
    (run, _) = next(iter(values(computed, what="train", ticket="dense", replicate=1)))
    rows = read_metrics(store, run.key, store.parts(run.key))
    own = found[found["replicate"] == 1]
    assert own["epoch"].tolist() == [0, *EPOCHS]
    assert own["value"].tolist() == [row["test_accuracy"] for row in rows]
    assert own["validation"].tolist() == [row["val_accuracy"] for row in rows]


def test_the_grid_has_every_pair_of_steps(computed):
    _, store, frame = computed
    baseline = early.dense(store, frame)
    found = early.grid(early.tickets(frame), baseline)
    names = ["dense at s", "v = 0", "v = 2", "v = s"]
    assert list(dict.fromkeys(found["row"])) == names
    cells = found.pivot(index="row", columns="prune_epoch", values="mean")
    assert list(cells) == EPOCHS and cells.notna().all().all() and (found["n"] == 2).all()
    lr = frame[(frame["ticket"] == "LRR") & (frame["prune_at"] == "3ep")]
    assert cells.loc["v = s", 3] == pytest.approx(lr["value"].mean())
    wr = frame[(frame["ticket"] == "WR") & (frame["prune_at"] == "6ep")]
    assert cells.loc["v = 2", 6] == pytest.approx(wr["value"].mean())
    assert cells.loc["v = s", 2] == cells.loc["v = 2", 2], "the same training in two roles"
    assert cells.loc["dense at s", 4] == pytest.approx(baseline.loc[baseline["epoch"] == 4, "value"].mean())
    alone = early.grid(early.tickets(frame, "LRR"))
    assert set(alone["row"]) == {"v = s"}
    assert early.grid(early.tickets(frame[:0])).empty


def test_tickets_of_other_rates_and_schedules_give_way_to_those_of_the_paper(computed):
    frame = computed[2]
    other = frame[frame["ticket"] == "WR"]
    both = pd.concat([frame, other.assign(schedule="resume", value=0.0), other.assign(eval_lr=9.0, value=0.0)])
    pd.testing.assert_frame_equal(early.tickets(both), early.tickets(frame))
    assert len(early.tickets(other.assign(schedule="resume"))) == len(other)


SCHEDULES = """
name: windows
net: lenet_300_100
data: {name: digits, train_size: 96}
replicates: 2
find: {epochs: 6, batch_size: 32, lr: 0.1}
prune: {sparsities: [0.8], at: [2ep, 6ep], gradual: [{start: 1ep, end: 3ep}, {start: 3ep, end: 5ep}]}
protocol: {schedule: restart}
tickets: {LRR: {methods: [OMP, GMP]}, WR: {methods: GMP, rewind: 1ep}, GMP: }
panels:
  - {}
  - prune: {sparsities: [], levels: 7, at: last, gradual: []}
    tickets: {LRR: {methods: IMP}, WR: false, GMP: false}
"""


def windows():
    """Accuracies as if a study were done: dense 0.9 and 0.92, all else 0.01 less for each epoch of the search."""
    frame = pd.DataFrame([{"study": "windows", **i.role, "key": i.value.key} for i in expand(spec.parse(SCHEDULES))])
    dense = 0.9 + 0.02 * frame["replicate"]
    value = dense.where(frame["ticket"] == "dense", dense - 0.01 * frame["search_epochs"])
    return frame.assign(value=value, status="done", metric="test_accuracy")


def test_pruning_at_once_over_a_window_and_iteratively_are_compared_in_accuracy_and_epochs():
    frame = windows()
    found = early.schedules(frame)
    rows = [(row.ticket, row.method, row.prune_at, row.search_epochs, row.train_epochs) for row in found.itertuples()]
    assert rows == [
        ("LRR", "OMP", "2ep", 2, 6), ("LRR", "OMP", "6ep", 6, 6),
        ("GMP", "GMP", "3ep", 0, 6), ("GMP", "GMP", "5ep", 0, 6),
        ("LRR", "GMP", "3ep", 3, 6), ("WR", "GMP", "3ep", 3, 6),
        ("LRR", "GMP", "5ep", 5, 6), ("WR", "GMP", "5ep", 5, 6),
        ("LRR", "IMP", "6ep", 42, 6),
    ]  # fmt: skip
    assert found["n"].eq(2).all()
    np.testing.assert_allclose(found["mean"], 0.91 - 0.01 * found["search_epochs"])
    np.testing.assert_allclose(found["change"], -0.01 * found["search_epochs"], atol=1e-12)
    np.testing.assert_allclose(found["change_high"] - found["change_low"], 0, atol=1e-12)  # paired: replicates agree
    assert (found["high"] - found["low"]).gt(0.1).all()
    assert list(found.loc[found["ticket"] == "LRR", "pruning"].dropna()) == [
        "cubic 1ep to 3ep every 1ep", "cubic 3ep to 5ep every 1ep",
    ]  # fmt: skip
    assert early.schedules(frame[frame["method"] != "GMP"]).empty
    shown = advisor.schedules(frame)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", shown))
    assert "at once, 2ep 80 the ranked weights 2 + 6 89.0 [" in text and "−2.0 [−2.0, −2.0]" in text
    assert "gradually, 1ep to 3ep 80 nothing anew 0 + 6 91.0 [" in text
    assert "iteratively, 6ep 79 the ranked weights 42 + 6 49.0 [" in text
    assert "no tickets on gradual masks" in advisor.schedules(frame[frame["method"] != "GMP"])


def test_lines_of_ppr_are_by_rate_and_beside_the_dense_network(computed):
    _, store, frame = computed
    found = early.ppr(frame, early.dense(store, frame))
    order = dict(zip(found["order"], found["series"], strict=True))
    assert order == {0: "PPR at 0.01", 1: "PPR at 0.2", 2: "dense, not pruned"}
    for _, own in found.groupby("series"):
        assert own.groupby("replicate")["prune_epoch"].apply(list).tolist() == [EPOCHS, EPOCHS]
    assert len(results.panels(found)) == 1, "PPR and the dense network are drawn together"
    assert "epoch" not in found, "it would be said to be the epoch of all accuracies"
    page = reports.figure(timelines.ppr_by_epoch, found, "sparsity")
    assert page.count("<figure>") == 1 and "dense, not pruned" in page
    assert early.ppr(frame[:0], early.dense(store, frame)).empty


# --- distances ----------------------------------------------------------------------------------------------------


def test_distances_of_a_study_are_those_of_its_masks(computed):
    found = early.distances(measured(computed, "hamming"))
    assert len(found) == 15 and (found["n"] == 2).all()
    kept = {}
    for value, role in values(computed, what="mask", ticket="search", method="OMP", sparsity=0.8):
        layers = read_mask(value, computed[1])
        kept[role["replicate"], int(role["prune_at"][:-2])] = np.concatenate(
            [m.numpy().ravel() for m in layers.values()]
        )
    for row in found.to_dict("records"):
        pairs = [(kept[replicate, row["first_epoch"]], kept[replicate, row["second_epoch"]]) for replicate in (0, 1)]
        assert row["mean"] == pytest.approx(np.mean([np.mean(a != b) for a, b in pairs]))
        assert row["overlap"] == pytest.approx(np.mean([np.sum(a & b) / np.sum(a) for a, b in pairs]))
        assert row["random"] == pytest.approx(2 * 0.2 * 0.8, rel=1e-3)
        assert row["maximum"] == pytest.approx(0.4, rel=1e-3)


# --- memorization -------------------------------------------------------------------------------------------------


def memorized():
    """Rows of random labels: two replicates, masks of three steps, pairs with gradual ones; accuracies by hand."""
    base = {"study": "s", "panel": "p", "network": "n", "data": "d", "train_size": 96, "find_batch_size": 32}
    base |= {"find_lr": 0.1, "eval_lr": 0.1, "what": "training_accuracy", "ticket": "memorization", "rate": None}
    base |= {"level": None, "status": "done", "metric": "training_accuracy"}
    rows = []
    for replicate, images in itertools.product((0, 1), (32, 64)):
        own = base | {"replicate": replicate, "images": images}
        rows.append(own | {"method": None, "sparsity": np.nan, "prune_at": None, "value": 0.9 - replicate / 50})
        for step, sparsity, value in (("1ep", 0.8, 0.3), ("2ep", 0.8, 0.4), ("4ep", 0.8, 0.5), ("2ep", 0.5, 0.6)):
            rows.append(
                own | {"method": "OMP", "prune_at": step, "sparsity": sparsity, "value": value + replicate / 100}
            )
        for step, sparsity, value in (("2ep", 0.5, 0.6), ("4ep", 0.8, 0.7 - replicate / 10)):
            rows.append(own | {"method": "GMP", "prune_at": step, "sparsity": sparsity, "value": value})
    return pd.DataFrame(rows).assign(key=[f"{number:032x}" for number in range(len(rows))])


def test_what_is_memorised_is_ordered_by_the_step_of_pruning():
    found = early.memorization(memorized())
    assert set(found["sparsity"]) == {0.8}, "of 0.5 there is one step, and no line"
    lines = dict(sorted(set(zip(found["order"], found["series"], strict=True))))
    assert list(lines.values()) == ["pruned at epoch 1", "pruned at epoch 2", "pruned at epoch 4", "dense"]
    assert found.loc[found["series"] == "dense", "value"].tolist() == [0.9, 0.9, 0.88, 0.88]
    assert len(found) == 2 * 2 * 4


def test_gradual_and_one_shot_pruning_are_paired():
    """At epoch 2: −0 and −0.01; at epoch 4: 0.2 and 0.6 − 0.51 = 0.09."""
    found = early.gradual(memorized()).set_index(["images", "prune_epoch"])
    assert set(found.index) == {(32, 2), (32, 4), (64, 2), (64, 4)} and (found["n"] == 2).all()
    assert found.loc[(32, 2), ["mean", "gradual", "one_shot"]].tolist() == pytest.approx([-0.005, 0.6, 0.605])
    row = found.loc[(64, 4)]
    assert row[["mean", "gradual", "one_shot"]].tolist() == pytest.approx([0.145, 0.65, 0.505])
    assert row["high"] - row["mean"] == pytest.approx(12.7062 * np.std([0.2, 0.09], ddof=1) / 2**0.5, rel=1e-5)
    assert early.gradual(memorized().query("method != 'GMP'")).empty


def test_memorization_of_a_study_has_all_its_networks(computed):
    frame = computed[2]
    found = early.memorization(frame)
    assert len(found) == 2 * 2 * 7
    pairs = early.gradual(frame)
    assert set(zip(pairs["prune_epoch"], pairs["sparsity"].round(3), strict=True)) == {(2, 0.5), (4, 0.7)}
    rows = frame[(frame["what"] == "training_accuracy") & (frame["prune_at"] == "2ep") & (frame["images"] == 96)]
    side = rows[rows["sparsity"].round(3) == 0.5].groupby("method")["value"].mean()
    row = pairs[(pairs["images"] == 96) & (pairs["prune_epoch"] == 2)].iloc[0]
    assert [row["one_shot"], row["gradual"]] == pytest.approx([side["OMP"], side["GMP"]])


# --- signals ------------------------------------------------------------------------------------------------------


def collected(computed):
    _, store, frame = computed
    return early.signals(frame, results.layers(store, frame), measured(computed, "hamming"))


def test_signals_of_a_study_by_hand(computed):
    _, store, frame = computed
    found = collected(computed)
    assert set(found["end"]) == {6} and found.groupby("signal")["probe"].first().to_dict() == {
        "PPR": 1, "LPR": 0, "Hamming": 0
    }  # fmt: skip
    own = found[found["replicate"] == 1].set_index(["signal", "prune_epoch"])["value"]
    slow = frame[(frame["what"] == "ppr") & (frame["eval_lr"] == 0.01) & (frame["replicate"] == 1)]
    assert own["PPR"].tolist() == slow.sort_values("prune_at")["validation"].tolist()
    layers = results.layers(store, frame)
    layers = layers[(layers["replicate"] == 1) & (layers["method"] == "OMP") & np.isclose(layers["sparsity"], 0.8)]
    shares = layers.pivot_table(index="prune_at", columns="layer", values="value")
    moved = shares.diff().abs().mean(axis=1).fillna(0).cumsum()
    assert own["LPR"].tolist() == pytest.approx(moved.tolist(), abs=1e-12)
    pairs = measured(computed, "hamming").query("replicate == 1 and second_epoch == first_epoch + 1")
    assert own["Hamming"].index.tolist() == [2, 3, 4, 5, 6]
    assert own["Hamming"].tolist() == pytest.approx((pairs["value"] / pairs["random"]).tolist())


def test_advice_of_a_study_is_made_and_followed(computed):
    frame, found = computed[2], collected(computed)
    said = saturation.advice(found)
    assert said["signal"].tolist() == ["PPR", "LPR", "Hamming", "vote"]
    judged = saturation.evaluate(found, early.tickets(frame, "LRR"))
    assert len(judged) == 2 * 3 and judged["value"].notna().all()
    drawn = early.scaled(found, said)
    assert len(drawn) == sum(found["signal"].isin(said.loc[said["change"].abs() > 0, "signal"])) > 0
    for row in judged.to_dict("records"):
        own = frame[(frame["ticket"] == "LRR") & (frame["replicate"] == row["replicate"])].set_index("prune_at")[
            "value"
        ]
        assert row["value"] == pytest.approx(own[f"{row['epoch']:g}ep"] - own["6ep"])


def test_ppr_is_judged_on_test_images_where_there_are_no_others(computed):
    _, store, frame = computed
    blind = frame.assign(validation=None)
    found = early.signals(blind, results.layers(store, frame), measured(computed, "hamming"))
    own = found[(found["signal"] == "PPR") & (found["replicate"] == 0)]
    slow = frame[(frame["what"] == "ppr") & (frame["eval_lr"] == 0.01) & (frame["replicate"] == 0)]
    assert set(own["split"]) == {"test"} and own["value"].tolist() == slow["value"].tolist()


@pytest.mark.parametrize("lacking", ["PPR", "LPR", "Hamming"])
def test_signals_may_be_missing(computed, lacking):
    _, store, frame = computed
    layers, rows = results.layers(store, frame), measured(computed, "hamming")
    frame = frame[frame["what"] != "ppr"] if lacking == "PPR" else frame
    layers, rows = layers[:0] if lacking == "LPR" else layers, rows[:0] if lacking == "Hamming" else rows
    found = early.signals(frame, layers, rows)
    assert set(found["signal"]) == {"PPR", "LPR", "Hamming"} - {lacking}
    assert saturation.advice(found).set_index("signal").loc[lacking, "state"] == "missing"


def test_scaled_signals_begin_at_0_and_end_at_1():
    steps = np.arange(12.0)
    rows = [
        {"panel": "p", "sparsity": 0.8, "find_lr": 0.1, "replicate": replicate, "prune_epoch": step, "end": 11.0}
        | {"signal": name, "value": base + sign * min(step, at) / at, "probe": 0.0, "split": "test", "status": "done"}
        for name, base, sign, at in (("PPR", 0.4, 0.3, 4), ("LPR", 0, 2, 6), ("Hamming", 1, -0.5, 5))
        for step in steps
        for replicate in (0, 1)
    ]
    frame = pd.concat([pd.DataFrame(rows), pd.DataFrame(rows).query("signal == 'LPR'").assign(value=1.0, panel="flat")])
    found = early.scaled(frame, saturation.advice(frame))
    assert set(found["panel"]) == {"p"}, "what does not change has no scale"
    for name, at in (("PPR", 4), ("LPR", 6), ("Hamming", 5)):
        own = found[(found["signal"] == name) & (found["replicate"] == 0)]
        assert own["value"].tolist() == pytest.approx(np.minimum(steps, at) / at)
        assert set(own["series"]) == {name} and set(own["saturated"]) == {at} and set(own["advised"]) == {5}
    assert set(found["facet"]) == {"20 % left, saturated: PPR 4; LPR 6; Hamming 5, advised: 5"}
