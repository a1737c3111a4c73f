"""The tidy frame: every value once per role, whatever became of it; intervals and differences."""

import json
import math
import sys
from collections import Counter

import helpers
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from lthlab import lab, packing, results, sizes, spec
from lthlab.analyses import Measure
from lthlab.data import load as load_data
from lthlab.derive import mask as read_mask
from lthlab.derive import state
from lthlab.nodes import KINDS, canonical
from lthlab.parts import Data, Level, Net
from lthlab.store import Store
from lthlab.tickets import expand
from lthlab.values import At, Fresh, Magnitude, Train, ancestors

torch.set_num_threads(1)  # The networks here are so small that a second thread only gets in the way.

TINY = """
name: {name}
net: lenet_300_100
data: {{name: digits, train_size: 128, val_size: 40}}
replicates: {replicates}
find: {{epochs: 2, batch_size: 64, lr: {lr}}}
eval: {evaluate}
prune: {{levels: {levels}, rate: {rate}}}
protocol: {{report: {report}}}
tickets: {{{asked}}}
measures: {measures}
"""
PLAIN = {
    "name": "tiny",
    "replicates": 1,
    "lr": 0.05,
    "evaluate": "null",
    "levels": "[1, 2]",
    "rate": 0.2,
    "report": "last",
    "asked": "LT: {}, RR: {methods: OMP}, WR: {methods: IMP, rewind: 1ep}",
    "measures": "{correlation_indicator: {p: 0.1}}",
}


def study(**fields):
    return spec.parse(TINY.format(**PLAIN | fields))


def compute(config, folder):
    store = Store(folder)
    return store, lab.compute_study(config, store, "cpu")


def roles_of(config):
    """What must be in the frame: roles with keys, as text."""
    return Counter((config.name, item.value.key, *map(str, item.role.values())) for item in expand(config))


def roles_in(frame, config):
    columns = ["study", "key", *expand(config)[0].role]
    return Counter(tuple(str(row[name]) for name in columns) for row in frame.astype(object).to_dict("records"))


def plain(counter):
    """Write whole numbers, which pandas turns into floats beside missing ones, and what is missing alike."""
    words = {"nan": "None", "NaT": "None"}
    return Counter(
        {tuple(words.get(w, w.removesuffix(".0")) for w in role): number for role, number in counter.items()}
    )


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Compute a small study; `lr` 1e6 diverges."""
    config = study(lr="[0.05, 1.0e+6]")
    store, summary = compute(config, tmp_path_factory.mktemp("runs"))
    return config, store, summary


# --- roles ----------------------------------------------------------------------------------------------------


def test_every_value_is_there_exactly_once_per_role(computed):
    config, store, _ = computed
    frame = results.load(store.root, study=None)
    assert plain(roles_in(frame, config)) == plain(roles_of(config))
    assert set(roles_of(config).values()) == {1}
    assert len(frame) == len(expand(config))
    assert list(frame["key"]) == [item.value.key for item in expand(config)]


@given(
    lr=st.sampled_from(["0.05", "[0.05, 0.1]"]),
    evaluate=st.sampled_from(["null", "{lr: 0.1}"]),
    levels=st.lists(st.integers(1, 3), min_size=1, max_size=2, unique=True),
    rate=st.sampled_from([0.2, 0.5]),
    asked=st.lists(st.sampled_from(["LT: {}", "RR: {methods: OMP}", "WR: {rewind: 1ep}"]), unique=True),
    measured=st.booleans(),
)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_every_value_of_any_study_is_there_exactly_once_per_role(tmp_path_factory, asked, measured, **fields):
    measures = "{correlation_indicator: {of: [dense]}}" if measured else "{}"
    config = study(asked=", ".join(asked), measures=measures, **fields)
    store, summary = compute(config, tmp_path_factory.mktemp("runs"))
    frame = results.load(store)
    assert plain(roles_in(frame, config)) == plain(roles_of(config))
    assert results.count_statuses(frame)["done"] == len(frame) == len(expand(config))
    trainings = {item.value for item in expand(config) if isinstance(item.value, Train)}
    assert (summary.trainings, summary.trained) == (len(trainings), len(trainings))
    assert set(filter(store.has, store.keys())) == set(frame["key"])


def test_one_value_with_two_roles_is_two_rows_and_one_training(computed):
    config, store, summary = computed
    frame = results.load(store)
    both = frame[(frame["what"] == "train") & (frame["find_lr"] == 0.05) & (frame["level"] == 1)]
    both = both[(both["method"] == "IMP") & (both["rewind"] == "0ep")]
    assert sorted(both["ticket"]) == ["LT", "search"]
    assert both["key"].nunique() == both["value"].nunique() == 1
    trained = {item.value for item in expand(config) if isinstance(item.value, Train)}
    rows = sum(isinstance(item.value, Train) for item in expand(config))
    assert (summary.trainings, summary.shared) == (len(trained), rows - len(trained))
    assert summary.shared > 0


def test_two_studies_in_one_store(tmp_path):
    one, other = study(name="one", asked="LT: {}"), study(name="other", asked="RR: {methods: IMP}")
    store, first = compute(one, tmp_path)
    _, second = compute(other, tmp_path)
    assert (first.trained, second.trained) == (1 + 2 + 1, 2)  # The masks of IMP and OMP at level 1 are one.
    frame = results.load(store)
    assert plain(roles_in(frame, one)) == plain(roles_of(one) + roles_of(other))
    for config in (one, other):
        assert plain(roles_in(results.load(store, config.name), config)) == plain(roles_of(config))
    compute(study(name="one", asked=""), tmp_path)
    assert Counter(results.load(store)["study"]) == {"one": 2, "other": len(expand(other))}


def test_a_study_as_it_is_whatever_ran_last_under_its_name(tmp_path):
    first, second = study(levels="[1]", measures="{}"), study(levels="[1]", measures="{}", lr=0.2)
    store, _ = compute(first, tmp_path)
    assert results.load(store, first).equals(results.load(store, "tiny"))
    compute(second, tmp_path)
    frame = results.load(store, first)
    assert set(frame["find_lr"]) == {0.05} and set(frame["status"]) == {"done"}
    assert set(results.load(store, "tiny")["find_lr"]) == {0.2}
    third = results.load(store, study(levels="[2]"))
    assert len(third) == len(expand(study(levels="[2]"))) and "missing" in set(third["status"])


def test_before_computing_every_row_is_missing(tmp_path):
    config, store = study(), Store(tmp_path)
    roles = [{"key": item.value.key, **item.role} for item in expand(config)]
    facts = {
        "title": "",
        "net": config.panels[0].net.form(),
        "data": config.panels[0].data.form(),
        "report": "last",
        "roles": roles,
    }
    store.write_study(config.name, facts)
    frame = results.load(store)
    assert plain(roles_in(frame, config)) == plain(roles_of(config))
    assert set(frame["status"]) == {"missing"}
    assert frame["note"].str.contains("is missing").all()
    for item in expand(config):
        store.describe(canonical(item.value.form()))
    frame = results.load(store)
    assert results.count_statuses(frame) == dict.fromkeys(results.STATUSES, 0) | {"missing": len(frame)}
    assert frame[["value", "note", "epoch", "kept"]].isna().all(axis=None)
    assert set(frame["metric"]) == {"test_accuracy", "kept", "correlation_indicator"}


def test_a_chain_may_be_long(tmp_path):
    config = study(levels="[300]", rate=0.001, asked="LT: {methods: IMP}", measures="{}")
    store = Store(tmp_path)
    for value in ancestors(item.value for item in expand(config)):
        store.describe(canonical(value.form()))
    roles = [{"key": item.value.key, **item.role} for item in expand(config)]
    store.write_study("tiny", {"title": "", "roles": roles[-1:]})
    record = {"kind": "train", "until": 21, "end": 42, "diverged": 1, "inputs": {}}
    first = next(role for role in roles if (role["what"], role["ticket"], role["level"]) == ("train", "search", 1))
    store.commit(first["key"], 0, {"metrics.jsonl": b""}, record)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    try:
        [row] = results.load(store).to_dict("records")
    finally:
        sys.setrecursionlimit(limit)
    assert row["status"] == "blocked"


def test_an_empty_store_gives_an_empty_frame(tmp_path):
    assert len(results.load(tmp_path / "none")) == 0
    assert results.count_statuses(results.load(tmp_path)) == dict.fromkeys(results.STATUSES, 0)


def test_an_unknown_study_gives_the_nearest(computed):
    with pytest.raises(LookupError, match="'tyny' is not in .*; run it first: lthlab run tyny; allowed: tiny; did"):
        results.load(computed[1], "tyny")


# --- values ---------------------------------------------------------------------------------------------------


def plain_accuracy(state, dataset):
    """Test accuracy of LeNet-300-100 in plain torch."""
    x = dataset.test_x.float().sub(dataset.mean[0]).div(dataset.std[0]).reshape(500, 64)
    *hidden, (weight, bias) = [(state[f"{n}.weight"], state[f"{n}.bias"]) for n in ("fc1", "fc2", "fc3")]
    for w, b in hidden:
        x = torch.relu(x @ w.T + b)
    return float(((x @ weight.T + bias).argmax(1) == dataset.test_y).float().mean())


def test_values_are_those_of_plain_torch(computed):
    config, store, _ = computed
    dataset = load_data(config.panels[0].data, None)
    runs = [item.value for item in expand(config) if isinstance(item.value, Train) and item.role["find_lr"] == 0.05]
    lab.compute([At(run, "last") for run in runs], store, "cpu")
    values = results.load(store).set_index("key")["value"]
    for run in runs:
        found = plain_accuracy(state(At(run, "last"), store), dataset)
        assert list(set(values[[run.key]])) == pytest.approx([found], abs=1e-6)
    assert values[[run.key for run in runs]].nunique() > 3


def test_masks_have_the_number_of_weights_they_keep(computed):
    config, store, _ = computed
    done = results.load(store).query("status == 'done' and what == 'mask'").set_index("key")
    masks = {item.value.key: item.value for item in expand(config)}
    assert len(done) == 6
    for key, row in done.iterrows():
        kept = sum(int(layer.sum()) for layer in read_mask(masks[key], store).values())
        assert row["value"] == row["kept"] == kept


def test_kept_is_that_of_the_mask_and_joins_imp_with_omp(computed):
    frame = results.load(computed[1])
    done = frame[(frame["status"] == "done") & (frame["level"] > 0)]
    assert (done.groupby("level")["kept"].nunique() == 1).all()
    total = 64 * 300 + 300 * 100
    assert dict(done.groupby("level")["kept"].first()) == {1: round(total * 0.8), 2: round(total * 0.64)}
    assert {row["method"] for row in done.to_dict("records")} == {"IMP", "OMP"}
    assert frame.loc[frame["ticket"] == "dense", "kept"].isna().all()


def write_metrics(store, config, rows):
    """Store metrics of a study's dense training as if it had been computed."""
    [item] = expand(config)
    store.describe(canonical(item.value.form()))
    end = item.value.end
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    record = {"kind": "train", "from": 0, "until": end, "end": end, "keep": [], "diverged": None, "digest": "x"}
    store.commit(item.value.key, 0, {"metrics.jsonl": lines}, record)
    store.write_study(config.name, {"title": "", "roles": [{"key": item.value.key, **item.role}]})


@pytest.mark.parametrize(
    ("report", "epoch", "value"),
    [("last", 4, 0.3), ("best_val", 2, 0.1), ("best_test", 1, 0.5)],
)
def test_the_reported_epoch(tmp_path, report, epoch, value):
    """Accuracies are made up: validation is best in epochs 2 and 3, test in 1 and 3; the earliest of ties counts.

    The state before training is best of all, but no result of it.
    """
    config = study(report=report, asked="", measures="{}")
    tests, validation = (0.5, 0.1, 0.5, 0.3), (0.2, 0.9, 0.9, 0.4)
    rows = [{"epoch": 0, "test_accuracy": 0.95, "val_accuracy": 0.95}] + [
        {"epoch": n + 1, "train_loss": 1.0, "test_accuracy": t, "val_accuracy": v}
        for n, (t, v) in enumerate(zip(tests, validation, strict=True))
    ]
    store = Store(tmp_path)
    write_metrics(store, config, rows)
    [row] = results.load(store).to_dict("records")
    assert (row["epoch"], row["value"], row["status"]) == (epoch, value, "done")


# --- statuses -------------------------------------------------------------------------------------------------


def test_diverged_and_what_stands_on_it(computed):
    _, store, summary = computed
    frame = results.load(store)
    assert set(frame.loc[frame["find_lr"] == 0.05, "status"]) == {"done"}
    rest = frame[frame["find_lr"] == 1e6]
    [diverged] = rest[rest["status"] == "diverged"].to_dict("records")
    assert (diverged["ticket"], diverged["what"], diverged["note"]) == ("dense", "train", "loss not finite in epoch 1")
    blocked = rest[rest["status"] == "blocked"]
    assert len(blocked) == len(rest) - 1 > 10
    assert set(blocked["note"]) == {f"needs {diverged['key']}, whose loss is not finite"}
    assert rest["value"].isna().all()
    assert {value.key for value in summary.blocked} == set(blocked["key"])
    assert [value.key for value in summary.diverged] == [diverged["key"]]


def test_another_revision_is_stale(computed, monkeypatch):
    monkeypatch.setattr(Magnitude, "revision", 2)
    frame = results.load(computed[1])
    frame = frame[frame["find_lr"] == 0.05]
    fresh = frame["ticket"] == "dense"
    assert set(frame.loc[fresh, "status"]) == {"done"}
    assert set(frame.loc[~fresh, "status"]) == {"stale"}
    assert set(frame.loc[~fresh, "note"]) == {"computed by revision 1 of Magnitude, now 2"}
    assert frame.loc[~fresh, "value"].isna().all()


def test_bits_that_could_not_be_repeated_are_stale(tmp_path):
    config = study(asked="LT: {methods: OMP}")
    store, _ = compute(config, tmp_path)
    frame = results.load(store)
    [lt] = set(frame.loc[(frame["ticket"] == "LT") & (frame["level"] == 1) & (frame["what"] == "train"), "key"])
    store.commit(lt, len(store.parts(lt)), {}, {"kind": "stale", "reason": "epoch 1 came out differently"})
    frame = results.load(store)
    stale = frame[frame["status"] == "stale"]
    assert sorted(stale["what"]) == ["correlation_indicator", "train"]
    assert set(zip(stale["level"], stale["note"], strict=True)) == {(1, "epoch 1 came out differently")}
    assert set(frame["status"]) == {"stale", "done"}


def test_a_measure_that_refuses_is_failed(tmp_path):
    config = study(asked="", measures="{correlation_indicator: {p: 1.0e-9, of: dense}}")
    store, _ = compute(config, tmp_path)
    frame = results.load(store).set_index("what")
    assert dict(frame["status"]) == {"train": "done", "correlation_indicator": "failed"}
    assert "no weight is large at p = 1e-09" in frame.loc["correlation_indicator", "note"]
    assert math.isnan(frame.loc["correlation_indicator", "value"])


def test_a_measure_of_weights_under_differing_masks_is_failed(tmp_path):
    config = study(asked="LT: {methods: OMP}", measures="{}")
    store, _ = compute(config, tmp_path)
    one, other = (i.value for i in expand(config) if i.role["ticket"] == "LT")
    measure = Measure("correlation_indicator", (At(one, "last"), At(other, "last")))
    lab.compute([measure], store, "cpu")
    assert "masks differ" in results._Reader(store).status(measure.key)[1]
    assert results._Reader(store).status(measure.key)[0] == "failed"


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"{}"), lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["description.json", "manifest.json"])
def test_what_is_damaged_counts_as_missing_and_is_named(tmp_path, damage, name):
    config = study(asked="")
    store, _ = compute(config, tmp_path)
    [dense] = set(results.load(store).query("what == 'train'")["key"])
    [path] = [path for path in (tmp_path / dense).rglob(name)]
    damage(path)
    frame = results.load(store).set_index("what")
    assert frame.loc["train", "status"] == "missing"
    if path.exists():
        assert frame.loc["train", "note"].startswith(f"{path.relative_to(tmp_path)}: ")
    assert frame.loc["correlation_indicator", "status"] == "done"
    lab.compute_study(config, store, "cpu")
    assert set(results.load(store)["status"]) == {"done"}


# --- intervals and differences --------------------------------------------------------------------------------


def frame_of(**columns):
    return pd.DataFrame({"what": "train", "status": "done"} | columns)


def test_summary_by_hand():
    """Work out 1, 2, 3, 4: mean 2.5, sd sqrt(5/3), t(0.975, 3) = 3.182446, half = 3.182446 · 1.290994 / 2."""
    frame = frame_of(lr=[0.1] * 4 + [0.2], value=[1.0, 2.0, 3.0, 4.0, 7.0])
    one, two = results.summarise(frame, ["lr"]).to_dict("records")
    assert (one["lr"], one["n"], one["mean"]) == (0.1, 4, 2.5)
    assert one["sd"] == pytest.approx(1.2909944487)
    assert one["low"] == pytest.approx(2.5 - 2.0542602)
    assert one["high"] == pytest.approx(2.5 + 2.0542602)
    assert (two["n"], two["mean"]) == (1, 7.0)
    assert all(math.isnan(two[name]) for name in ("sd", "low", "high"))


@given(
    st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=2, max_size=9, unique=True),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_intervals_are_those_of_scipy(values, confidence):
    [row] = results.summarise(frame_of(cell=0, value=values), ["cell"], confidence).to_dict("records")
    low, high = stats.t.interval(confidence, len(values) - 1, np.mean(values), stats.sem(values))
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert row["mean"] == pytest.approx(np.mean(values))


def test_only_what_is_done_counts_and_missing_cells_stay_apart():
    frame = frame_of(method=["IMP", None, None, "IMP"], value=[1.0, 2.0, 4.0, 9.0])
    frame["status"] = ["done", "done", "done", "stale"]
    before = frame.copy()
    out = results.summarise(frame, ["method"])
    assert [(row["n"], row["mean"]) for row in out.to_dict("records")] == [(1, 1.0), (2, 3.0)]
    pd.testing.assert_frame_equal(frame, before)


def test_a_value_in_several_roles_counts_once():
    frame = frame_of(
        find_lr=[0.1, 0.2] * 2, eval_lr=0.1, replicate=[0, 0, 1, 1], value=[1.0, 1.0, 3.0, 3.0], key=[*"aabb"]
    )
    [row] = results.summarise(frame, ["eval_lr"]).to_dict("records")
    assert (row["n"], row["mean"], row["sd"]) == (2, 2.0, pytest.approx(2**0.5))
    assert list(results.summarise(frame, ["find_lr", "eval_lr"])["n"]) == [2, 2]
    layers = frame.assign(layer=[*"xyxy"], value=[0.1, 0.2, 0.3, 0.4])
    with pytest.raises(ValueError, match="differ in: find_lr, layer; add these to by"):
        results.summarise(layers, ["eval_lr"])


def test_several_values_of_one_replicate_are_no_replicates():
    frame = frame_of(
        find_lr=[0.1, 0.2] * 2, eval_lr=0.1, milestones=[[1], [1, 2]] * 2, replicate=[0, 0, 1, 1],
        value=[1.0, 2.0, 3.0, 4.0], key=[*"abcd"], kept=[5, 6, 7, 8],
    )  # fmt: skip
    message = (
        r"several values of one replicate in a cell \(eval_lr 0.1, replicate 0\); they differ in: find_lr, milestones; "
    )
    with pytest.raises(ValueError, match=message + "add these to by, or select rows"):
        results.summarise(frame, ["eval_lr"])
    with pytest.raises(ValueError, match="differ in: nothing; select rows"):
        results.summarise(pd.concat([frame, frame.assign(key=[*"efgh"])]), ["eval_lr", "find_lr"])
    assert list(results.summarise(frame, ["eval_lr", "find_lr"])["n"]) == [2, 2]
    frame.loc[frame["find_lr"] == 0.2, "status"] = "missing"
    assert list(results.summarise(frame, ["eval_lr"])["n"]) == [2]


def test_differences_pair_replicates():
    rows = [
        ("LT", 0, 0.9, "done"),
        ("LT", 1, 0.8, "done"),
        ("LT", 2, 0.7, "done"),
        ("LT", 3, math.nan, "diverged"),
        ("RR", 1, 0.5, "done"),
        ("RR", 0, 0.7, "done"),
        ("RR", 3, 0.6, "done"),
        ("WR", 0, 0.1, "done"),
    ]
    frame = frame_of(
        ticket=[r[0] for r in rows],
        level=4,
        replicate=[r[1] for r in rows],
        value=[r[2] for r in rows],
        status=[r[3] for r in rows],
    )
    out = results.differences(frame, "LT", "RR", ["level"])
    assert list(out["replicate"]) == [0, 1]
    assert list(out["value"]) == pytest.approx([0.2, 0.3])
    assert list(out.columns) == ["level", "replicate", "value", "status"]
    [row] = results.summarise(out, ["level"]).to_dict("records")
    test = stats.ttest_rel([0.9, 0.8], [0.7, 0.5]).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((test.low, test.high))


def test_differences_leave_masks_and_measures_aside(computed):
    frame = results.load(computed[1])
    out = results.differences(frame, "LT", "RR", ["method", "level", "find_lr"])
    assert len(out) == 2
    for row in out.to_dict("records"):
        both = frame[(frame["what"] == "train") & (frame["level"] == row["level"]) & (frame["find_lr"] == 0.05)]
        both = both[both["method"] == "OMP"].set_index("ticket")["value"]
        assert row["value"] == pytest.approx(both["LT"] - both["RR"])


# --- panels, configurations, replicates, sizes -----------------------------------------------------------------------

PANELS = """
name: panels
net: [lenet_300_100, {name: resnet8, width: 4}, {name: resnet8, width: 8}]
data: digits
replicates: 2
find: {epochs: 2, batch_size: 64, lr: [0.1, 0.2]}
eval: {epochs: [2, 3], lr: [0.1, 0.3]}
prune: {levels: [1, 2], sparsities: [0.7]}
tickets: {LT: {}, RR: {}, WR: {rewind: 1ep}, SDT: {}, RT: {}}
measures: {correlation_indicator: {}}
panel_by: [eval.lr]
"""


@pytest.fixture(scope="module")
def described():
    """A study with panels and its frame, nothing of which was trained."""
    config = spec.parse(PANELS)
    return config, helpers.frame_of(config)


def test_panels_are_networks_on_data_sets_under_one_recipe(described):
    _, frame = described
    found = dict(results.panels(frame))
    assert list(found) == [
        f"{network} on digits, eval epochs {epochs}"
        for network in ("lenet_300_100", "resnet8 (width 4)", "resnet8 (width 8)")
        for epochs in (2, 3)
    ]
    for name, rows in found.items():
        assert rows[["network", "width"]].drop_duplicates().shape == (1, 2)
        own = rows[rows["ticket"] != "search"]
        assert set(own["eval_epochs"]) == {int(name[-1])} and set(own["eval_lr"]) == {0.1, 0.2, 0.3} - (
            {0.2} if name.endswith("3") else set()
        )
        assert set(rows["ticket"]) == {"dense", "search", "LT", "RR", "WR", "SDT", "RT"}
        assert set(rows.loc[rows["ticket"] == "search", "find_lr"]) == {0.1, 0.2}
    tickets = frame[~frame["ticket"].isin(["dense", "search"])]
    assert sum(len(rows[rows.index.isin(tickets.index)]) for rows in found.values()) == len(tickets)


def test_dense_networks_of_another_recipe_than_the_tickets_are_no_panel():
    frame = helpers.frame_of(spec.parse(PANELS.replace("[2, 3]", "3")))
    found = results.panels(frame)
    assert [name for name, _ in found] == [f"{n} on digits" for n in ("lenet_300_100", *SMALL)]
    for _, rows in found:
        dense = rows[rows["ticket"] == "dense"]
        assert set(dense["eval_epochs"]) == {3} and set(rows.loc[rows["ticket"] == "search", "eval_epochs"]) == {2}


def test_panels_of_one_network_and_data_set_are_told_apart():
    text = PANELS.replace("{name: resnet8, width: 8}", "{name: resnet8, width: 4, shortcut: A}")
    names = [name for name, _ in results.panels(helpers.frame_of(spec.parse(text.replace("[2, 3]", "2"))))]
    small = "resnet8 (width 4) on digits, shortcut"
    assert names == ["lenet_300_100 on digits", f"{small} B", f"{small} A"]
    none = text.replace("shortcut: A", "shortcut: none").replace(
        "data: digits", "data: [digits, {name: digits, train_size: 90}]"
    )
    frame = helpers.frame_of(spec.parse(none.replace("[2, 3]", "2")))
    assert [name for name, _ in results.panels(frame)] == [
        f"{net} on digits, train size {size}"
        for net in ("lenet_300_100", "resnet8 (width 4)", "resnet8 (width 4, no shortcuts)")
        for size in (1297, 90)
    ]


def test_panels_of_one_data_set_seen_differently_are_told_apart():
    two = "{name: digits, part: a}, {name: digits, part: b, val_size: 40}"
    text = PANELS.replace("[2, 3]", "2").replace("data: digits", f"data: [{two}]")
    frame = helpers.frame_of(spec.parse(text.replace(", {name: resnet8, width: 8}", "")))
    found = results.panels(frame)
    names = [
        f"{n} on digits ({view})"
        for n in ("lenet_300_100", "resnet8 (width 4)")
        for view in ("part a", "part b, val size 40")
    ]
    assert [name for name, _ in found] == names
    assert [set(rows["train_size"]) for _, rows in found] == [{649}, {608}] * 2
    assert len({key for _, rows in found for key in rows["key"]}) == frame["key"].nunique()
    old = frame.assign(view=float("nan"))  # as of a version that did not note it
    assert results.panels(old)[0][0].startswith("lenet_300_100 on digits, ")


def test_panels_of_one_stage_and_of_differences(described):
    _, frame = described
    found = results.panels(results.select(frame, "find_tickets"))
    assert [name for name, _ in found] == [f"{n} on digits" for n in ("lenet_300_100", *SMALL)]
    assert all(set(rows["ticket"]) == {"dense", "search"} for _, rows in found)
    pairs = results.differences(frame, "LT", "RR")
    assert [(name, len(rows)) for name, rows in results.panels(pairs)] == [
        (name, 2 * 2 * 2 * 5) for name, _ in results.panels(frame)
    ]  # replicates, learning rates of masks and of tickets, and methods with their levels
    cell = pairs.iloc[17]
    same = frame[(frame["what"] == "train") & (frame["replicate"] == cell["replicate"])]
    for name in ("network", "width", "method", "sparsity", "find_lr", "eval_lr", "eval_epochs"):
        same = same[same[name] == cell[name]]
    both = same.set_index("ticket")["value"]
    assert cell["value"] == pytest.approx(both["LT"] - both["RR"])


SMALL = ("resnet8 (width 4)", "resnet8 (width 8)")


def test_rows_of_a_configuration_or_stage(described):
    _, frame = described
    name = "evaluate_tickets.resnet8.digits.eval_lr-0.1"
    assert set(results.select(frame, name)["configuration"]) == {name}
    stages = [results.select(frame, stage) for stage in ("find_tickets", "evaluate_tickets")]
    assert sorted(index for rows in stages for index in rows.index) == list(frame.index)
    with pytest.raises(LookupError, match="configuration 'find_ticket' has no rows; .* did you mean 'find_tickets"):
        results.select(frame, "find_ticket")


def test_a_replicate_that_a_cell_lacks_is_found(described):
    _, frame = described
    assert results.uneven(frame).empty
    for ticket in ("dense", "search", "LT", "RR", "WR", "SDT", "RT"):
        lost = frame.index[(frame["ticket"] == ticket) & (frame["replicate"] == 1)][-1]
        [row] = results.uneven(frame.drop(index=lost)).to_dict("records")
        assert row["replicates"] == 1 and row["ticket"] == ticket and row["network"] == frame.loc[lost, "network"]
    # Panels may differ in their numbers of replicates.
    assert results.uneven(frame[(frame["network"] == "resnet8") | (frame["replicate"] == 0)]).empty


def test_sizes_of_small_networks_stand_beside_those_of_tickets(described):
    config, frame = described
    found = results.sizes(frame)
    assert len(found) == 6 * 3 and found["gap"].between(0, 1).all()
    for panel in config.panels:
        for sparsity in (*panel.levels, *panel.sparsities):
            size = sizes.narrow(panel.net, panel.data, sparsity, "all_but_head")
            rows = found[(found["widths"] == sizes.text(size.widths)) & (found["target"] == size.target)]
            assert len(rows) == 2 and set(rows["parameters"]) == {size.parameters}
            assert rows["gap"].tolist() == pytest.approx([1 - size.parameters / size.target] * 2)
    assert results.sizes(frame[frame["ticket"] != "SDT"]).empty


def test_layers_of_masks_are_counted_as_plain_torch_counts_them(computed):
    config, store, _ = computed
    frame = results.load(store, config.name)
    found = results.layers(store, frame)
    values = {item.value.key: item.value for item in expand(config) if item.role["what"] == "mask"}
    searched = frame[(frame["what"] == "mask") & (frame["status"] == "done")]
    assert len(found) == 2 * len(searched) > 0
    for key, rows in found.groupby("key"):
        mask = read_mask(values[key], store)
        for row in rows.to_dict("records"):
            layer = mask[row["layer"]]
            assert (row["weights"], row["kept"]) == (layer.numel(), int(layer.sum()))
            assert row["value"] == pytest.approx(float((~layer).float().mean()))
        names = rows.sort_values("number")["layer"]
        assert list(names.unique()) == list(mask)


def test_masks_of_a_chain_are_nested_and_others_are_found_out(computed, monkeypatch):
    config, store, _ = computed
    frame = results.load(store, config.name)
    masks = frame[(frame["what"] == "mask") & (frame["method"] == "IMP") & (frame["status"] == "done")]
    chains = masks[masks["level"] == 2]
    found = results.revived(store, frame)
    assert len(found) == len(chains) > 0 and found["value"].eq(0).all() and set(found["level"]) == {2}
    first = masks[masks["level"] == 1].iloc[0]
    whole = packing.unpack(store.read_tensors(first["key"], "mask.safetensors"))
    inverse = packing.pack({name: ~layer for name, layer in whole.items()})
    read = store.read_tensors
    monkeypatch.setattr(store, "read_tensors", lambda key, name: inverse if key == first["key"] else read(key, name))
    odd = results.revived(store, frame)
    assert odd["value"].gt(0).any()


def test_a_value_asked_for_in_python_joins_no_study(tmp_path):
    store = Store(tmp_path)
    recipe = study().panels[0].recipes[0][0]
    run = Train(Net(name="lenet_300_100"), Data(name="digits", train_size=64), recipe, Fresh(0), 0)
    mask = Magnitude(At(run, "last"), Level(1))
    lab.compute([mask], store, "cpu")
    assert store.has(mask.key)
    assert len(results.load(store)) == 0


@pytest.mark.parametrize("kind", ["At", "Fresh", "Train", "Magnitude"])
def test_a_raised_revision_of_anything_inside_shows_as_stale(computed, kind, monkeypatch):
    _, store, _ = computed
    monkeypatch.setattr(KINDS[kind], "revision", 2)
    frame = results.load(store)
    stale = frame[frame["status"] == "stale"]
    assert set(stale["note"].str.extract(r"computed by revision 1 of (\w+), now 2")[0]) == {kind}
    assert "mask" in set(stale["what"])
