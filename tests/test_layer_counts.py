"""How many weights of each layer go: imposed counts (Lan Fig. 7), even ones, floors, and layers that vanish."""

import helpers
import numpy as np
import pytest

from lthlab import derive, lab, masks, nets, reports, results, spec
from lthlab.errors import InputError
from lthlab.parts import Data, Level, pruned_count
from lthlab.tickets import Protocol, dense, imp, rewound
from lthlab.values import At, Fresh, Magnitude, Permuted, Train

TRUNK = helpers.train(epochs=1)
END = At(TRUNK, "last")
PROTOCOL = Protocol(helpers.LENET, helpers.DIGITS, 0)


@pytest.fixture
def store(tmp_path):
    return helpers.store(tmp_path / "runs")


def layers(value, store):
    return store.parts(value.key)[0].record["layers"]


# --- imposed counts -------------------------------------------------------------------------------------------


def test_a_chain_under_the_layer_counts_of_another_at_every_level(store):
    first, second = helpers.recipe(lr=0.3), helpers.recipe(lr=0.01)
    counts = [mask for _, mask in imp(PROTOCOL, first, 4)]
    trunk = dense(PROTOCOL, second)
    run, chain = trunk, []
    for mask in counts:
        chain.append((run, Magnitude(At(run, "last"), layer_counts_of=mask)))
        run = rewound(PROTOCOL, second, trunk, chain[-1][1], "0ep", "restart")
    own = [mask for _, mask in imp(PROTOCOL, second, 4)]
    lab.compute([*(mask for _, mask in chain), *own], store, "cpu")
    before = {
        name: np.ones(shape, bool) for name, shape in nets.prunable(helpers.LENET, "digits", "all_but_head").items()
    }
    for (run, mask), imposed, free in zip(chain, counts, own, strict=True):
        weights, found = derive.state(At(run, "last"), store), derive.mask(mask, store)
        for name, kept in before.items():
            rank = np.where(kept, weights[name].abs().numpy(), -1).ravel()
            number = layers(imposed, store)[name]
            by_hand = np.zeros(rank.size, bool)
            by_hand[np.argsort(rank, kind="stable")[rank.size - number :]] = True
            before[name] = by_hand.reshape(kept.shape)
            assert np.array_equal(found[name].numpy(), before[name])
        assert layers(mask, store) == layers(imposed, store) != layers(free, store)


def test_counts_are_of_the_same_layers():
    mask = Magnitude(END, "0.5")
    wider = At(helpers.train(helpers.narrow(8)), "last")
    with pytest.raises(ValueError, match=r"has other layers than .* masks of the same network, for images of the same"):
        Magnitude(wider, layer_counts_of=mask)
    larger = helpers.train(dataset=Data(name="digits", size=12))
    with pytest.raises(ValueError, match="has other layers than"):
        Magnitude(At(larger, "last"), layer_counts_of=mask)
    noisy = helpers.train(dataset=Data(name="digits", train_size=90, random_labels=0))
    assert Magnitude(At(noisy, "last"), layer_counts_of=mask).policy == "all_but_head"


def test_counts_that_would_revive_weights_are_refused_before_any_training_where_they_are_known(store):
    even = Magnitude(END, "0.5", scope="layer")
    ticket = Train(TRUNK.net, TRUNK.data, TRUNK.recipe, At(TRUNK, "0ep"), 0, even)
    fewer = Permuted(Magnitude(END, "0.4", scope="layer"))
    for imposed, message in {
        fewer.mask: "prunes 7680 of 19200 prunable weights of 'fc1.weight'; allowed: 9600 to 19200",
        Magnitude(END, "0.4"): "prunes 19680 of 49200 prunable weights; allowed: 24600 to 49200",
    }.items():
        with pytest.raises(InputError, match=message):
            lab.compute([Magnitude(At(ticket, "last"), layer_counts_of=imposed)], store, "cpu")
    assert not store.keys()
    unknown = Magnitude(At(ticket, "last"), layer_counts_of=fewer)
    assert lab.compute([unknown], store, "cpu").failed == [unknown]
    message = store.parts(unknown.key)[0].record["failed"]
    assert message == "to prune in layer 'fc1.weight': 7680; allowed is 9600 … 19200 (9600 are pruned already)"


def test_even_random_masks(store):
    net, share = helpers.narrow(4), "0.83"
    start = At(helpers.train(net), "0ep")
    even = Magnitude(start, share, scope="layer")
    values = [Permuted(even, seed=seed) for seed in (0, 1)]
    lab.compute(values, store, "cpu")
    sizes = {name: shape.numel() for name, shape in nets.prunable(net, "digits", "all_but_head").items()}
    pruned = {name: sizes[name] - kept for name, kept in layers(values[0], store).items()}
    assert all(abs(pruned[name] - 0.83 * size) <= 0.5 for name, size in sizes.items())
    assert sum(pruned.values()) == sum(pruned_count(share, size) for size in sizes.values())
    assert layers(values[0], store) == layers(values[1], store)
    first, second, ranked = (derive.mask(value, store) for value in (*values, even))
    chance = 2 * 0.83 * 0.17
    for one, other in ((first, second), (first, ranked)):
        assert masks.hamming(one, other) == pytest.approx(chance, abs=0.03)


# --- floors ---------------------------------------------------------------------------------------------------


def test_a_floor_of_a_value():
    plain, floored = Magnitude(END, "0.9"), Magnitude(END, "0.9", floor=0.010)
    assert floored.floor == "0.01" and floored.key != plain.key
    assert Magnitude(END, "0.9", floor="0.0") == plain
    counts = Magnitude(END, layer_counts_of=plain)
    assert Magnitude(END, layer_counts_of=plain, floor="0.2") == counts
    for wrong in (1, -0.1, "some"):
        with pytest.raises(ValueError, match=f"floor {wrong!r} is not allowed; allowed: numbers from 0 up to"):
            Magnitude(END, "0.9", floor=wrong)
    with pytest.raises(
        ValueError, match=r"floor 0\.1 with scope 'layer' and granularity 'weight'; allowed: scope 'glo"
    ):
        Magnitude(END, "0.9", scope="layer", floor="0.1")


def test_floors_keep_weights_of_every_layer_along_a_chain(store):
    net = helpers.narrow(4)
    start = Train(net, helpers.DIGITS, helpers.recipe(epochs=1), Fresh(0), 0)
    run, chain = start, []
    for level in (8, 14, 19):
        chain.append(Magnitude(At(run, "last"), Level(level), floor="0.01"))
        run = Train(net, start.data, start.recipe, At(start, "0ep"), 0, chain[-1])
    free = Magnitude(At(start, "last"), Level(19))
    lab.compute([*chain, free], store, "cpu")
    sizes = {name: shape.numel() for name, shape in nets.prunable(net, "digits", "all_but_head").items()}
    least = {name: max(1, int(0.01 * size + 0.5)) for name, size in sizes.items()}
    total, before = sum(sizes.values()), None
    for level, value in zip((8, 14, 19), chain, strict=True):
        found, record = derive.mask(value, store), store.parts(value.key)[0].record
        assert record["kept"] == total - pruned_count(Level(level), total)
        assert all(record["layers"][name] >= least[name] for name in sizes) and record["collapsed"] == []
        assert before is None or masks.nested(found, before)
        before = found
    assert any(layers(chain[-1], store)[name] == least[name] for name in sizes)
    assert any(layers(free, store)[name] < least[name] for name in sizes)
    most = total - sum(least.values())
    far = Magnitude(At(start, "last"), "0.995", floor="0.01")
    with pytest.raises(InputError, match=rf"prunes {pruned_count('0.995', total)} of {total} .*; allowed: 0 to {most}"):
        lab.compute([far], store, "cpu")


# --- layers that vanish ---------------------------------------------------------------------------------------

STUDY = """
name: deep
net: {name: resnet8, width: 2}
data: {name: digits, train_size: 100}
replicates: 2
find: {epochs: 1, batch_size: 50, lr: 0.05}
prune: {levels: [1, 28]}
tickets: {LT: {methods: OMP}, RT: {methods: OMP}}
"""


def test_layers_that_vanish_are_counted_and_named(store):
    config = spec.parse(STUDY)
    lab.compute_study(config, store, "cpu")
    frame = results.load(store, config)
    assert frame.loc[frame["ticket"] == "dense", "collapsed"].isna().all()
    deep = frame[(frame["level"] == 28) & (frame["what"] == "mask") & (frame["ticket"] == "search")]
    first = frame[frame["level"] == 1]
    assert (first["collapsed"] == 0).all() and first["note"].isna().all()
    for row in deep.to_dict("records"):
        found = store.read_tensors(row["key"], "mask.safetensors")
        gone = [name for name, kept in masks.unpack(found).items() if not kept.any()]
        assert gone and row["collapsed"] == len(gone) and row["note"] == f"keeps nothing of {', '.join(gone)}"
        under = frame[(frame["level"] == 28) & (frame["replicate"] == row["replicate"]) & (frame["ticket"] == "LT")]
        assert under["what"].tolist() == ["train"] and under["collapsed"].tolist() == [len(gone)]
        assert under["note"].isna().all()
    cut = results.collapsed(frame)
    assert set(deep["key"]) <= set(cut["key"]) and set(cut["what"]) == {"mask"} and set(cut["level"]) == {28}
    text = reports.limits(config, frame)
    assert f"{len(cut)} of {len(frame[frame['what'] == 'mask'])} masks cut through layers" in text
    for row in deep.to_dict("records"):
        assert f"search OMP, level 28 (0.193 % of the prunable weights left): 1 that {row['note']}" in text
    assert "Every mask keeps something of each layer." in reports.limits(config, first)
