"""Measures from the store: compared with plain NumPy and torch on the stored states; parts, stops and damage."""

import json

import helpers
import numpy as np
import pytest
import torch

from lthlab import data, derive, lab, measures, results, spec, tickets
from lthlab.analyses import Measure
from lthlab.parts import Data, Level
from lthlab.runs import Outlook
from lthlab.store import Store
from lthlab.values import At, Fresh, Magnitude, Train


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
