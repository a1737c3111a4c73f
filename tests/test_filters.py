"""Masks of whole filters: what goes with them, and that they make the network the physically smaller one."""

import json

import helpers
import numpy as np
import pytest
import torch
from torch import nn

from lthlab import derive, filters, lab, layers, masks, nets, results
from lthlab.analyses import Measure
from lthlab.engine import Job, Training
from lthlab.errors import InputError
from lthlab.lanes import Lane
from lthlab.parts import Data, Level, Net
from lthlab.values import At, Fresh, Gradual, Magnitude, Permuted, Train

DATA = Data(name="digits", train_size=64, size=16)
SMALL = Data(name="digits", train_size=64)
NETWORKS = {
    "lenet": (helpers.LENET, SMALL),
    "conv2": (Net(name="conv2"), SMALL),
    "vgg11": (Net(name="vgg11", width=6, bias=True), DATA),
    "resnet8": (helpers.narrow(4), SMALL),
    "resnet8, shortcut A": (helpers.narrow(4, shortcut="A"), SMALL),
    "resnet8, no shortcut": (helpers.narrow(8, shortcut="none"), SMALL),
    "resnet50": (Net(name="resnet50", width=3), SMALL),
    "mobilenet_v1": (Net(name="mobilenet_v1", width=6), DATA),
}
SHARE = "0.45"
TRAINED = [*((name, "sgd") for name in NETWORKS), ("lenet", "adam"), ("resnet8", "adam")]


@pytest.fixture
def batches(monkeypatch):
    """Images and labels of every step that is taken, of the first replica."""
    found, original = [], Lane.backward

    def backward(self, images, labels):
        found.append((images[0].clone(), labels[0].clone()))
        return original(self, images, labels)

    monkeypatch.setattr(Lane, "backward", backward)
    return found


def smaller(net, data, state, mask):
    """Build the physically smaller network in plain torch from the slices that a mask keeps of a state."""
    network = nets.build(net, data)
    for name, layer in list(network.layers()):
        parts = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        whole = mask.get(f"{name}.weight", torch.ones(parts["weight"].shape, dtype=torch.bool))
        outputs = whole.flatten(1).any(1) if whole.dim() > 1 else whole
        if "bias" in parts:
            assert torch.equal(mask.get(f"{name}.bias", torch.ones_like(outputs)), outputs)
        sliced = {key: part[outputs] if part.dim() else part for key, part in parts.items()}
        number = int(outputs.sum())
        made: nn.Module
        if isinstance(layer, layers.BatchNorm2d):
            made = nn.BatchNorm2d(number)
        else:
            inputs = whole.transpose(0, 1).flatten(1).any(1)
            assert torch.equal(whole.flatten(2).all(2) if whole.dim() > 2 else whole, outputs[:, None] & inputs)
            sliced["weight"] = sliced["weight"][:, inputs]
            bias, read = "bias" in parts, int(inputs.sum())
            if isinstance(layer, layers.Linear):
                made = nn.Linear(read, number, bias)
            else:
                groups, size = number if layer.groups > 1 else 1, layer.shape[2]
                made = nn.Conv2d(read * groups, number, size, layer.stride, size // 2, groups=groups, bias=bias)
        made = made.double()
        made.load_state_dict(sliced)
        if getattr(layer, "relu", False):
            made = nn.Sequential(made, nn.ReLU())
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, made)
    return network


def pruned(net, data, sparsity=SHARE, scope="global", norm="l1", **fields):
    """Train a dense network a little, prune filters of it, and train on; returns mask, training and dense state."""
    value = helpers.train(net, data, precision="fp64", batch_size=16, momentum=0.9, **fields)
    dense = helpers.run([helpers.job(value)]).group.state(0)
    found = filters.norms(dense, filters.of(net, data, "all_but_head"), norm)
    mask = filters.cover(filters.largest(found, sparsity, scope), net, data, "all_but_head")
    return value, dense, mask


@pytest.mark.parametrize(("name", "optimizer"), TRAINED)
def test_a_network_without_filters_is_the_smaller_network_and_trains_alike(name, optimizer, batches):
    net, data = NETWORKS[name]
    lr = {"sgd": 0.02, "adam": 0.001}[optimizer]
    value, dense, mask = pruned(net, data, epochs=1, optimizer=optimizer, lr=lr, weight_decay=0.01)
    assert all(kept.any() for kept in mask.values()) and not all(kept.all() for kept in mask.values())
    batches.clear()
    training = Training([Job(value, dense, mask, frozenset())], helpers.load(data))
    before = training.group.state(0)
    assert not any(before[key][~kept].any() for key, kept in mask.items())
    for key, layer in nets.build(net, data).layers():
        if isinstance(layer, layers.BatchNorm2d) and f"{key}.weight" in mask:
            assert before[f"{key}.running_mean"][~mask[f"{key}.weight"]].all()  # of what is pruned
    compare(net, data, before, mask)
    small = smaller(net, data, before, mask).train()
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    own = kind(small.parameters(), lr=lr, weight_decay=0.01, **({"momentum": 0.9} if optimizer == "sgd" else {}))
    while training.iteration < value.end:
        training.advance(value.end)
    after = training.group.state(0)
    assert len(batches) == 4
    for images, labels in batches:
        own.zero_grad()
        nn.functional.cross_entropy(small(images), labels).backward()
        own.step()
    assert not any(after[key][~kept].any() for key, kept in mask.items()) and training.group.revived(0) == []
    expected = smaller(net, data, after, mask).state_dict()
    for key, tensor in small.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-7, atol=1e-9)
    compare(net, data, after, mask)


def compare(net, data, state, mask):
    """Compare the outputs of a network under a mask with those of the smaller one, in both modes."""
    images = torch.rand(6, *data.facts.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for training in (False, True):
        network = nets.build(net, data).double().train(training)
        network.load([state])
        small = smaller(net, data, state, mask).train(training)
        assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in network.parameters())
        out = network(images)
        torch.testing.assert_close(small(images), out, rtol=1e-9, atol=1e-11)
    assert out.std(0).min() > 1e-6  # of the images, which get through


BLOCKS = [f"layer{stage}.{block}" for stage, blocks in enumerate((3, 4, 6, 3), 1) for block in range(blocks)]
NAMES = {
    "lenet": ["fc1", "fc2"],
    "conv2": ["features.0", "features.2"],
    "vgg11": [f"features.{number}" for number in (0, 4, 8, 11, 15, 18, 22, 25)],
    "resnet8": ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"],
    "resnet8, shortcut A": ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"],
    "resnet8, no shortcut": ["conv1", *(f"layer{stage}.0.conv{k}" for stage in (1, 2, 3) for k in (1, 2))],
    "resnet50": [f"{block}.conv{k}" for block in BLOCKS for k in (1, 2)],
    "mobilenet_v1": ["conv1", *(f"features.{number}.conv2" for number in range(13))],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_that_have_filters(name):
    found = filters.of(*NETWORKS[name], "all_but_head")
    assert list(found) == [f"{layer}.weight" for layer in NAMES[name]]


def test_filters_of_layers_that_are_not_prunable_stay():
    without = filters.of(*NETWORKS["vgg11"], "first_last_dense")
    assert list(without) == [f"{layer}.weight" for layer in NAMES["vgg11"][1:]]
    assert list(filters.of(*NETWORKS["mobilenet_v1"], "first_last_depthwise_dense")) == [
        f"{layer}.weight" for layer in NAMES["mobilenet_v1"][1:]
    ]


def test_a_filter_of_a_mobilenet_has_its_depthwise_channel():
    net, data = NETWORKS["mobilenet_v1"]
    item = filters.of(net, data, "all_but_head")["features.2.conv2.weight"]
    assert item == (("features.2.conv2", "features.2.bn2", "features.3.conv1", "features.3.bn1"), "features.3.conv2")
    state = nets.fresh(net, data, 0)
    norms = filters.norms(state, {"x": item}, "l2")["x"].numpy()
    both = [state[f"{name}.weight"].double().flatten(1).numpy() for name in ("features.2.conv2", "features.3.conv1")]
    expected = [np.sqrt((a @ a + b @ b) / (len(a) + len(b))) for a, b in zip(*both, strict=True)]
    np.testing.assert_allclose(norms, expected, rtol=1e-12)


def test_replicas_that_train_together_have_masks_of_their_own():
    net, data = NETWORKS["resnet8"]
    found, jobs = filters.of(net, data, "all_but_head"), []
    for replicate in range(3):
        value = helpers.train(net, data, replicate, batch_size=16)
        state = nets.fresh(net, data, replicate)
        chosen = filters.largest(filters.norms(state, found, "l1"), SHARE, "global")
        jobs.append(Job(value, state, filters.cover(chosen, net, data, "all_but_head"), frozenset()))
    assert masks.hamming(jobs[0].mask, jobs[1].mask) > 0
    together = helpers.run(jobs, form="stacked").group
    for number, job in enumerate(jobs):
        state = together.state(number)
        assert helpers.equal(state, helpers.run([job]).group.state(0)) and together.revived(number) == []
        assert not any(state[name][~kept].any() for name, kept in job.mask.items())


# --- which filters go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_filters_of_least_norm_go_as_sorted_with_numpy(scope, norm):
    net, data = NETWORKS["resnet8, no shortcut"]
    state = nets.fresh(net, data, 0)
    state["layer1.0.conv2.weight"] *= 0.01  # its filters would all go
    state["layer2.0.conv1.weight"][3] = state["layer2.0.conv1.weight"][0]  # of equal ones, the first goes first
    rows = {name: state[f"{name}.weight"].double().flatten(1).numpy() for name in NAMES["resnet8, no shortcut"]}
    size = {"l1": lambda row: np.abs(row).sum() / len(row), "l2": lambda row: np.linalg.norm(row) / len(row) ** 0.5}
    ranks = [
        (size[norm](row), number, at, name)
        for number, (name, layer) in enumerate(rows.items())
        for at, row in enumerate(layer)
    ]
    kept = {name: set(range(len(layer))) for name, layer in rows.items()}
    counts = {"conv1": 4, "layer1.0.conv1": 4, "layer1.0.conv2": 4, "layer2.0.conv1": 7}
    counts |= {"layer2.0.conv2": 7, "layer3.0.conv1": 14, "layer3.0.conv2": 14}
    left = int(0.45 * sum(map(len, rows.values())) + 0.5)
    for _, _, at, name in sorted(ranks):
        room = len(rows[name]) - len(kept[name]) < counts[name] if scope == "layer" else left and len(kept[name]) > 1
        if room:
            kept[name].remove(at)
            left -= 1
    found = filters.largest(filters.norms(state, filters.of(net, data, "all_but_head"), norm), SHARE, scope)
    assert {name.removesuffix(".weight"): set(np.flatnonzero(layer)) for name, layer in found.items()} == kept
    assert scope == "layer" or len(kept["layer1.0.conv2"]) == 1


def test_the_last_filter_of_a_layer_stays():
    measured = {"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([9.0])}
    kept = filters.largest(measured, "0.99", "layer")
    assert kept["a"].tolist() == [True, False, False] and kept["b"].tolist() == [True]
    with pytest.raises(ValueError, match=r"to prune in all layers together: 3; allowed with these floors is 0 … 2"):
        filters.largest(measured, "0.7", "global")


# --- in a store -----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    return helpers.store(tmp_path / "runs")


def test_a_ticket_under_a_mask_of_filters(store):
    net, recipe = helpers.narrow(4), helpers.recipe(epochs=1)
    trunk = Train(net, helpers.DIGITS, recipe, Fresh(0), 0)
    mask = Magnitude(At(trunk, "last"), "0.5", scope="layer", granularity="filter")
    moved = Permuted(mask, seed=1)
    ticket = Train(net, helpers.DIGITS, recipe, At(trunk, "0ep"), 0, mask)
    measure = Measure("correlation_indicator", (At(ticket, "0ep"), At(ticket, "last")))
    counts = Magnitude(At(trunk, "0ep"), layer_counts_of=mask)
    summary = lab.compute([ticket, At(ticket, "0ep"), moved, measure, counts], store, "cpu")
    assert summary.failed == summary.blocked == []
    found, record = derive.mask(mask, store), store.parts(mask.key)[0].record
    prunable = nets.prunable(net, helpers.DIGITS, "all_but_head")
    assert list(record["layers"]) == list(prunable) and record["total"] == sum(s.numel() for s in prunable.values())
    assert record["kept"] == sum(int(found[name].sum()) for name in prunable) and record["collapsed"] == []
    widths = {"layer1.0.conv1.weight": 4, "layer2.0.conv1.weight": 8, "layer3.0.conv1.weight": 16}
    assert record["filters"] == {name: {"kept": n // 2, "total": n} for name, n in widths.items()}
    assert set(found) - set(prunable) == {f"layer{k}.0.bn1.{part}" for k in (1, 2, 3) for part in ("weight", "bias")}
    assert record["layers"]["layer1.0.conv1.weight"] == record["layers"]["layer1.0.conv2.weight"] == 4 * 2 * 9
    for step in ("0ep", "last"):
        state = derive.state(At(ticket, step), store)
        assert not any(state[name][~kept].any() for name, kept in found.items())
    other = derive.mask(moved, store)
    assert list(other) == list(found) and store.parts(moved.key)[0].record["filters"] == record["filters"]
    assert {n: int(kept.sum()) for n, kept in other.items()} == {n: int(kept.sum()) for n, kept in found.items()}
    rows = {n: other[n].flatten(1).any(1) for n in widths}
    again = filters.cover(rows, net, helpers.DIGITS, "all_but_head")
    assert all(torch.equal(again[name], other[name]) for name in other) and masks.hamming(found, other) > 0
    imposed = store.parts(counts.key)[0].record
    assert imposed["layers"] == record["layers"] and "filters" not in imposed
    frame = [json.loads(line) for line in store.read(measure.key, "frame.jsonl").splitlines()]
    assert {row["layer"]: row["n"] for row in frame} == record["layers"]
    assert list(results._layers(store, mask.key)) == list(prunable)
    status = results.statuses(store, [ticket.key, mask.key, measure.key])
    assert set(status.values()) == {"done"}


TRUNK = helpers.train(helpers.narrow(4))
MASK = Magnitude(At(TRUNK, "last"), "0.5", granularity="filter")
TICKET = Train(TRUNK.net, TRUNK.data, TRUNK.recipe, At(TRUNK, "0ep"), 0, MASK)
FEWER = Data(name="digits", train_size=100, classes=(5, 6, 7))
GRADUAL = Gradual("0ep", "1ep", "1it", "0.5")
REFUSED = {
    "filters under a mask": (
        lambda: Magnitude(At(TICKET, "last"), "0.7", granularity="filter"),
        "filters are pruned in one shot, and .* is pruned already; allowed: a dense training",
    ),
    "filters of a training that prunes": (
        lambda: Magnitude(At(helpers_pruning(), "last"), "0.7", granularity="filter"),
        "is pruned already",
    ),
    "weights under filters": (
        lambda: Magnitude(At(TICKET, "last"), "0.7"),
        "under a mask of filters, under which single weights are not pruned",
    ),
    "counts of filters": (
        lambda: Magnitude(At(TRUNK, "last"), layer_counts_of=MASK, granularity="filter"),
        "granularity 'filter' takes no layer_counts_of; allowed: a sparsity",
    ),
    "permuted globally": (lambda: Permuted(MASK, "global"), "scope 'global' of a mask of filters .* allowed: 'layer'"),
    "floor": (
        lambda: Magnitude(At(TRUNK, "last"), "0.5", granularity="filter", floor="0.1"),
        "floor 0.1 with scope 'global' and granularity 'filter'; allowed: scope 'global' and granularity 'weight'",
    ),
    "other classes": (
        lambda: Train(TRUNK.net, FEWER, TRUNK.recipe, Fresh(0), 0, MASK),
        "of filters covers what they feed, for images of another shape or other classes",
    ),
    "pruning on the way": (
        lambda: Train(TRUNK.net, TRUNK.data, TRUNK.recipe, Fresh(0), 0, MASK, pruning=GRADUAL),
        "pruning on the way under .*, a mask of filters; allowed: a mask of weights",
    ),
}


def helpers_pruning():
    return Train(TRUNK.net, TRUNK.data, TRUNK.recipe, Fresh(0), 0, pruning=GRADUAL)


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_what_cannot_be_is_refused_before_any_training(store):
    with pytest.raises(InputError, match=r"prunes 27 of 28 filters; allowed: 0 to 25, which leaves one in each layer"):
        lab.compute([Magnitude(At(TRUNK, "last"), "0.95", granularity="filter")], store, "cpu")
    assert not store.keys()


def test_filters_of_a_network_of_ones_own_are_not_known(store, monkeypatch):
    monkeypatch.setattr(nets, "_BUILDERS", dict(nets._BUILDERS))
    monkeypatch.setattr("lthlab.parts.NETS", nets.NETS)
    try:
        nets.register("own", lambda net, shape, classes, replicas: nets.LeNet(net, shape, classes, replicas, (8, 4)))
        run = helpers.train(Net(name="own"))
        with pytest.raises(InputError, match=r"the filters of network 'own' are not known; allowed: granularity 'weig"):
            lab.compute([Magnitude(At(run, "last"), Level(1), granularity="filter")], store, "cpu")
    finally:
        nets.NETS.pop("own")
    assert not store.keys()
