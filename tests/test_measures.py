"""Measures from the store: compared with plain NumPy and torch on the stored states; parts, stops and damage."""

import json
import shutil

import helpers
import numpy as np
import pytest
import torch

from lthlab import curvature, data, derive, lab, measures, results, scores, spec, tickets
from lthlab.analyses import Measure
from lthlab.parts import Data, Level
from lthlab.runs import Outlook, Run
from lthlab.store import Store
from lthlab.values import At, Fresh, Magnitude, Permuted, Train


@pytest.fixture
def store(tmp_path):
    return helpers.store(tmp_path / "runs")


def rows(value, store):
    return [json.loads(line) for part in store.parts(value.key) for line in _lines(value, store, part)]


def _lines(value, store, part):
    return store.read(value.key, "frame.jsonl", part.number).splitlines()


def arrays(at, store, names):
    return {name: derive.state(at, store)[name].double().numpy() for name in names}


FC = ("fc1.weight", "fc2.weight")


def test_the_control_of_the_indicator_is_that_of_numpy_under_a_mask_that_is_not_the_tickets(store):
    run = Train(helpers.LENET, helpers.DIGITS, helpers.recipe(), Fresh(0), 0)
    mask = Magnitude(At(run, "last"), Level(8))
    ticket = Train(helpers.LENET, helpers.DIGITS, helpers.recipe(), Fresh(0), 0, mask)
    control = Permuted(mask, "layer", 0)
    settings = {"p": "0.1", "prunable": "all_but_head"}
    ends = (At(run, "0ep"), At(run, "last"))
    value = Measure("correlation_indicator", ends, settings, control)
    refused = Measure("correlation_indicator", (At(ticket, "0ep"), At(run, "last")), settings, control)
    lab.compute([value, refused], store)
    kept = {name: layer.numpy().ravel() for name, layer in derive.mask(control, store).items()}
    large = {}
    for at in ends:
        for name, weights in arrays(at, store, FC).items():
            left = np.abs(weights.ravel()[kept[name]])
            large.setdefault(name, []).append(np.argsort(-left)[: int(np.floor(0.1 * len(left) + 0.5))])
    overlap = sum(len(np.intersect1d(*pair)) for pair in large.values())
    record = store.parts(value.key)[0].record
    assert record["value"] == pytest.approx(overlap / sum(len(pair[0]) for pair in large.values()))
    failed = store.parts(refused.key)[0].record["failed"]
    assert failed == f"the mask keeps weights that {At(ticket, '0ep')!r} has pruned; allowed: masks within its own"


def test_spread_is_that_of_numpy_with_the_slope_of_eq_5(store):
    run = Train(helpers.LENET, helpers.DIGITS, helpers.recipe(epochs=3, lr=0.01, momentum=0.5), Fresh(0), 0)
    value = Measure("weight_std", tuple(At(run, step) for step in ("0ep", "2it", "last")))
    lab.compute([value], store)
    found = rows(value, store)
    assert [(row["step"], row["epoch"], row["layer"], row["number"]) for row in found] == [
        (step, epoch, layer, number)
        for step, epoch in (("0ep", 0), ("2it", 0.5), ("3ep", 3))
        for number, layer in enumerate(FC, start=1)
    ]
    for place, at in enumerate(value.of):
        for layer, row in zip(FC, found[2 * place :], strict=False):
            weights = arrays(at, store, FC)[layer]
            assert row["n"] == weights.size and row["value"] == pytest.approx(weights.std(), rel=1e-12)
            assert row["mean"] == pytest.approx(weights.mean(), rel=1e-9)
    steps = {2: 2, 4: 10}  # iterations since the state before
    for place, count in steps.items():
        for row, before in zip(found[place : place + 2], found[place - 2 : place], strict=True):
            assert row["predicted"] == pytest.approx(before["value"] * (1 - count * 0.01 * 1e-3 / (1 - 0.5)), rel=1e-12)
    assert found[0]["predicted"] is None
    everything = np.concatenate([w.ravel() for w in arrays(value.of[-1], store, FC).values()])
    assert store.parts(value.key)[0].record["value"] == pytest.approx(everything.std(), rel=1e-9)


def test_distances_are_counts_of_differing_positions(store):
    run = Train(helpers.LENET, helpers.DIGITS, helpers.recipe(), Fresh(0), 0)
    value = Measure("hamming", tuple(Magnitude(At(run, step), Level(4)) for step in ("0ep", "1it", "last")))
    lab.compute([value], store)
    kept = [np.concatenate([layer.numpy().ravel() for layer in derive.mask(item, store).values()]) for item in value.of]
    steps, density = ("0ep", "1it", "2ep"), kept[0].mean()
    found = {(row["first"], row["second"]): row for row in rows(value, store)}
    assert list(found) == [("0ep", "1it"), ("0ep", "2ep"), ("1it", "2ep")]
    for (first, second), row in found.items():
        a, b = kept[steps.index(first)], kept[steps.index(second)]
        assert row["value"] == pytest.approx((a != b).mean()) and row["value"] > 0
        assert row["overlap"] == pytest.approx((a & b).sum() / a.sum())
        assert row["random"] == pytest.approx(2 * density * (1 - density))
        assert row["maximum"] == pytest.approx(2 * min(density, 1 - density))
    assert (found["0ep", "1it"]["first_epoch"], found["0ep", "1it"]["second_epoch"]) == (0, 0.25)
    assert store.parts(value.key)[0].record["value"] == found["0ep", "2ep"]["value"]


@pytest.mark.parametrize("net", [helpers.LENET, helpers.narrow()], ids=["lenet", "resnet"])
def test_training_accuracy_is_that_of_plain_torch_on_the_labels_that_were_learnt(net, store):
    labels = Data(name="digits", train_size=60, random_labels=3)
    run = Train(net, labels, helpers.recipe(epochs=12, batch_size=20, lr=0.1), Fresh(0), 0)
    value = Measure("training_accuracy", (At(run, "last"),))
    lab.compute([value], store)
    network = helpers.plain(net, labels.facts)
    network.load_state_dict(derive.state(value.of[0], store))
    seen = data.load(labels, None)
    images = (seen.train_x.float() - torch.tensor(seen.mean).view(-1, 1, 1)) / torch.tensor(seen.std).view(-1, 1, 1)
    right = (network.eval()(images).argmax(1) == seen.train_y).double().mean().item()
    assert store.parts(value.key)[0].record["value"] == pytest.approx(right) and right > 0.3


def test_measuring_leaves_the_bits_of_trainings_alone(store, tmp_path):
    run = Train(helpers.narrow(), helpers.DIGITS, helpers.recipe(), Fresh(0), 0)
    lab.compute([run, At(run, "1ep"), At(run, "last")], store)
    before = helpers.bits(store.root / run.key)
    states = (At(run, "1ep"), At(run, "last"))
    masks = tuple(Magnitude(at, Level(2)) for at in states)
    asked = [Measure("weight_std", states), Measure("hamming", masks), Measure("training_accuracy", states[1:])]
    lab.compute(asked, store)
    assert helpers.bits(store.root / run.key) == before
    together = helpers.store(tmp_path / "together")
    lab.compute([run, *asked], together)
    names = [name for name in before if name.endswith((".safetensors", ".jsonl"))]
    found = helpers.bits(together.root / run.key)
    assert names and all(found[name] == before[name] for name in names)


# --- part by part -----------------------------------------------------------------------------------------------


class InParts:
    """A measure that takes five parts, one row each, of what the store lacks."""

    def __init__(self, monkeypatch):
        self.made = []
        monkeypatch.setitem(measures._MEASURES, "sharpness", self)

    def __call__(self, value, store, device):
        there = len(store.parts(value.key)) if store.has(value.key) else 0
        for number in range(there, 5):
            self.made.append(number)
            yield measures.outcome([{"point": number}], 0.5, left=4 - number)


class StopAfter:
    def __init__(self, asked):
        self.left = asked

    def begin(self, *numbers): ...

    def advance(self, *numbers): ...

    def stop(self):
        self.left -= 1
        return self.left < 0


@pytest.fixture
def measure():
    run = Train(helpers.LENET, helpers.DIGITS, helpers.recipe(epochs=1), Fresh(0), 0)
    return Measure("sharpness", (At(run, "last"),))


def test_a_measure_that_was_stopped_goes_on_from_its_last_part(measure, store, monkeypatch):
    lab.compute([measure.of[0]], store)
    parts = InParts(monkeypatch)
    stops = 0
    for asked in range(60):
        try:
            lab.compute([measure], store, watcher=StopAfter(asked))
            break
        except lab.Stopped:
            stops += 1
    assert stops > 2 and parts.made == [0, 1, 2, 3, 4]
    assert [row["point"] for row in rows(measure, store)] == [0, 1, 2, 3, 4]
    assert Outlook([measure], store).settled(measure)
    lab.compute([measure], store)
    assert len(parts.made) == 5


def test_a_damaged_part_is_computed_again_with_those_behind_it(measure, store, monkeypatch):
    parts = InParts(monkeypatch)
    lab.compute([measure], store)
    helpers.flip(store.root / measure.key / "3" / "frame.jsonl")
    lab.compute([measure], store)
    assert parts.made == [0, 1, 2, 3, 4, 3, 4] and [row["point"] for row in rows(measure, store)] == [0, 1, 2, 3, 4]


def test_what_is_not_whole_is_missing_in_the_frame(store, monkeypatch):
    text = """
name: part
net: lenet_300_100
data: {name: digits, train_size: 200}
find: {epochs: 1, batch_size: 50, lr: 0.1}
measures: {sharpness: }
"""
    config = spec.parse(text)
    InParts(monkeypatch)
    states = [at for item in tickets.expand(config) for at in item.value.moments]
    lab.compute(states, store)
    watcher = StopAfter(5)
    with pytest.raises(lab.Stopped):
        lab.compute_study(config, store, watcher=watcher)
    frame = results.load(store, config)
    (value,) = (item.value for item in tickets.expand(config) if isinstance(item.value, Measure))
    assert 0 < len(store.parts(value.key)) < 5
    (row,) = frame[frame["what"] == "sharpness"].to_dict("records")
    assert row["status"] == "missing" and results.measured(store, frame[frame["what"] == "sharpness"]).empty
    lab.compute_study(config, store)
    frame = results.load(store, config)
    (row,) = frame[frame["what"] == "sharpness"].to_dict("records")
    assert (row["status"], row["value"]) == ("done", 0.5)
    found = results.measured(Store(store.root), frame[frame["what"] == "sharpness"])
    assert found["point"].tolist() == [0, 1, 2, 3, 4] and set(found["key"]) == {row["key"]}


def test_one_that_its_inputs_do_not_allow_says_why(measure, store, monkeypatch):
    def refuse(value, store, device):
        raise ValueError("a plane of zero extent")
        yield

    monkeypatch.setitem(measures._MEASURES, "sharpness", refuse)
    assert lab.compute([measure], store).failed == [measure]
    assert store.parts(measure.key)[0].record["failed"] == "a plane of zero extent"


# --- losses about trained weights -------------------------------------------------------------------------------

NET = helpers.narrow()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with a dense training and one under a mask, of 3 epochs, and all of their states."""
    store = helpers.store(tmp_path_factory.mktemp("trained") / "runs")
    dense = Train(NET, helpers.DIGITS, helpers.recipe(epochs=3), Fresh(0), 0)
    mask = Magnitude(At(dense, "last"), Level(4))
    sparse = Train(NET, helpers.DIGITS, helpers.recipe(epochs=3), At(dense, "0ep"), 0, mask)
    other = Train(NET, helpers.DIGITS, helpers.recipe(epochs=3), At(dense, "0ep"), 7, mask)
    states = [At(run, f"{epoch}ep") for run in (dense, sparse) for epoch in range(4)]
    lab.compute([*states, At(other, "last")], store)
    return store, states[:4], states[4:], At(other, "last")


def copied(store, tmp_path):
    shutil.copytree(store.root, tmp_path / "copy")
    return Store(tmp_path / "copy")


def test_a_surface_goes_on_where_it_was_stopped_and_fills_what_is_missing(trained, tmp_path, monkeypatch):
    store, _, sparse, _ = trained
    settings = {"plane": "pca", "points": 5, "images": 40, "batchnorm": "fixed"}
    value = Measure("loss_surface", tuple(sparse), tuple(settings.items()))
    parts, whole = copied(store, tmp_path / "a"), copied(store, tmp_path / "b")
    lab.compute([value], whole)
    assert len(whole.parts(value.key)) == 1
    monkeypatch.setattr(measures, "PART_S", 0.0)
    seen, evaluate = [], scores.Scorer.__call__

    def watched(scorer, make, places):
        seen.extend(places)
        return evaluate(scorer, make, places)

    monkeypatch.setattr(scores.Scorer, "__call__", watched)
    stops = 0
    for asked in range(40):
        try:
            lab.compute([value], parts, watcher=StopAfter(asked))
            break
        except lab.Stopped:
            stops += 1
    assert stops > 1 and len(parts.parts(value.key)) == 5
    assert rows(value, parts) == rows(value, whole)
    assert parts.read(value.key, "path.jsonl", 0) == whole.read(value.key, "path.jsonl", 0)
    assert len(seen) == 25 + 2 * 4
    record = parts.parts(value.key)[0].record
    assert (record["points"], record["batchnorm"], record["images"], record["plane"]) == (5, "fixed", 40, "pca")
    assert 0 < record["explained_2"] <= record["explained_1"] and record["explained_1"] + record["explained_2"] <= 1
    path = [json.loads(line) for line in parts.read(value.key, "path.jsonl", 0).splitlines()]
    assert [(row["step"], row["epoch"]) for row in path] == [(f"{epoch}ep", epoch) for epoch in range(4)]
    assert (path[-1]["x"], path[-1]["y"], path[-1]["loss"]) == (0, 0, record["value"])
    xs, ys = ({row[axis] for row in path} for axis in "xy")
    for row in rows(value, parts):
        assert row["loss"] > 0 and row["x"] == pytest.approx(
            min(xs) - 0.25 * (max(xs) - min(xs)) + row["i"] * 1.5 * (max(xs) - min(xs)) / 4
        )
    assert min(ys) < 0 or max(ys) > 0


def test_the_end_of_a_path_has_the_loss_that_the_training_recorded(trained):
    store, _, sparse, _ = trained
    settings = {"plane": "pca", "points": 3, "images": 500, "split": "test", "batchnorm": "fixed"}
    value = Measure("loss_surface", tuple(sparse), tuple(settings.items()))
    lab.compute([value], store)
    path = [json.loads(line) for line in store.read(value.key, "path.jsonl", 0).splitlines()]
    metrics = [row for row in Run(sparse[0].run, store).metrics() if "test_loss" in row]
    assert [row["loss"] for row in path] == pytest.approx([row["test_loss"] for row in metrics], rel=1e-5)
    assert [row["accuracy"] for row in path] == pytest.approx([row["test_accuracy"] for row in metrics])
    assert path[-1]["plane_loss"] == path[-1]["loss"] and path[-1]["residual"] == 0
    assert store.parts(value.key)[0].record["value"] == path[-1]["loss"]


def test_a_random_plane_is_drawn_by_its_seed_about_the_last_state(trained):
    store, dense, _, _ = trained
    fields = {"points": 3, "images": 30, "span": 0.5}
    first, second = (Measure("loss_surface", (dense[-1],), tuple((fields | {"seed": seed}).items())) for seed in (0, 1))
    lab.compute([first, second], store)
    found, other = rows(first, store), rows(second, store)
    assert [(row["x"], row["y"]) for row in found[:4]] == [(-0.5, -0.5), (0, -0.5), (0.5, -0.5), (-0.5, 0)]
    centre = store.parts(first.key)[0].record["value"]
    assert found[4]["loss"] == other[4]["loss"] == centre and found[0]["loss"] != other[0]["loss"]


def test_curvature_and_barriers_are_those_of_the_stored_states(trained):
    store, dense, sparse, other = trained
    asked = [
        Measure("sharpness", (sparse[-1],), (("images", 40), ("directions", 3), ("seed", 2))),
        Measure("hessian_eigenvalue", (sparse[-1],), (("images", 40),)),
        Measure("loss_barrier", (sparse[0], sparse[-1]), (("images", 40), ("points", 5))),
        Measure("loss_barrier", (sparse[-1], other), (("images", 40), ("points", 5), ("batchnorm", "fixed"))),
    ]
    lab.compute(asked, store)
    states, mask = ([derive.state(at, store) for at in ats] for ats in (sparse, [other]))
    kept = derive.mask_at(sparse[-1], store)
    dataset = data.load(helpers.DIGITS, None)
    images = scores.images_of(dataset, helpers.DIGITS, "train", 40)
    fixed, recomputed = (scores.Scorer(NET, helpers.DIGITS, dataset, *images, kind) for kind in ("fixed", "recompute"))
    record = [store.parts(value.key)[0].record for value in asked]
    sharp = curvature.sharpness(states[-1], kept, recomputed, directions=3, seed=2)
    assert (record[0]["value"], record[0]["error"]) == (sharp.value, sharp.error) and rows(
        asked[0], store
    ) == sharp.rows
    top = curvature.top_eigenvalue(*curvature.hessian(fixed.losses(), states[-1], kept))
    assert (record[1]["value"], record[1]["error"]) == pytest.approx((top.value, top.error), rel=1e-3, abs=1e-3)
    assert record[1]["converged"] is top.converged is True and len(rows(asked[1], store)) == record[1]["iterations"]
    for value, noted, ends, scorer in (
        (asked[2], record[2], (states[0], states[-1]), recomputed),
        (asked[3], record[3], (states[-1], mask[0]), fixed),
    ):
        found = curvature.barrier(*ends, scorer, 5)
        assert (noted["value"], noted["accuracy_barrier"]) == (found.loss, found.accuracy)
        assert rows(value, store) == found.rows and noted["batchnorm"] == value.setting["batchnorm"]


def test_probing_the_loss_leaves_the_bits_of_trainings_alone(trained):
    store, dense, sparse, _ = trained
    before = helpers.bits(store.root / sparse[0].run.key)
    lab.compute(
        [
            Measure("loss_surface", tuple(sparse), (("plane", "pca"), ("points", 3), ("images", 20))),
            Measure("loss_surface", tuple(sparse[-1:]), (("points", 3), ("images", 20))),
            Measure("sharpness", (sparse[-1],), (("images", 20), ("directions", 1))),
            Measure("hessian_eigenvalue", (sparse[-1],), (("images", 20), ("iterations", 2))),
            Measure("loss_barrier", (sparse[0], sparse[-1]), (("images", 20),)),
        ],
        store,
    )
    assert helpers.bits(store.root / sparse[0].run.key) == before


def test_a_training_that_never_moved_spans_no_plane(store):
    run = Train(NET, helpers.DIGITS, helpers.recipe(epochs=2, lr=1e-12), Fresh(0), 0)
    value = Measure("loss_surface", tuple(At(run, f"{e}ep") for e in range(3)), (("plane", "pca"), ("points", 3)))
    assert lab.compute([value], store).failed == [value]
    assert "the plane has no extent" in store.parts(value.key)[0].record["failed"]
