"""Transfer (Morcos et al. 2019, 3.3): mask and weights of one data set train on another, under a fresh head."""

import re

import helpers
import numpy as np
import pytest
import torch

from lthlab import catalog, data, datasets, derive, lab, nets, sizes
from lthlab.errors import InputError
from lthlab.parts import POLICIES, Data, Level, Net
from lthlab.runs import Run
from lthlab.store import Store
from lthlab.values import At, Fresh, Gradual, Graft, Magnitude, MaskOf, Permuted, Train, ancestors

LOW = Data(name="digits", classes=[0, 1, 2, 3, 4], train_size=128)
HIGH = Data(name="digits", classes=[5, 6, 7, 8, 9], train_size=128)
NOISY = Data(name="digits", train_size=128, random_labels=3)
CLEAN = Data(name="digits", train_size=128)
RESNET = helpers.narrow(4)
HEADS = {"lenet_300_100": "fc3", "resnet8": "fc"}


@pytest.fixture
def store(tmp_path):
    return helpers.store(tmp_path / "runs")


@pytest.fixture
def sets(monkeypatch):
    """Register `three` and `seven`, colour images of as many classes, as ImageNet and Places have other numbers."""
    for name, classes in (("three", 3), ("seven", 7)):
        random, arrays = np.random.default_rng(classes), {}
        for kind, count in (("train", 12 * classes), ("test", 3 * classes)):
            x = random.integers(0, 256, (count, 3, 8, 8), np.uint8)
            arrays[f"{kind}_x"], arrays[f"{kind}_y"] = catalog.canonical(x, np.arange(count) % classes)
        monkeypatch.setitem(datasets.DATASETS, name, data._described(name, arrays))
        monkeypatch.setitem(data._sources, name, lambda arrays=arrays: arrays)


def searched(net, source, late="1ep", level=2, **fields):
    """Search on the source: the trunk, and the mask of a level of IMP that rewinds to a step."""
    trunk = helpers.train(net, source, 0, **fields)
    mask = Magnitude(At(trunk, "last"), Level(1))
    for number in range(2, level + 1):
        ranked = helpers.train(net, source, 0, At(trunk, late), **fields)
        ranked = Train(net, source, ranked.recipe, At(trunk, late), 0, mask)
        mask = Magnitude(At(ranked, "last"), Level(number))
    return trunk, mask


def start(value, store):
    """State that a training begins with."""
    return derive.state(At(value, "0ep"), store)


def pruned(state, mask):
    return {n: tensor.masked_fill(~mask[n], 0) if n in mask else tensor for n, tensor in state.items()}


@pytest.mark.parametrize("batchnorm", ["rewound", "reset"])
@pytest.mark.parametrize(
    "net, source, target",
    [
        (helpers.LENET, LOW, HIGH),
        (RESNET, LOW, HIGH),
        (RESNET, CLEAN, NOISY),
        (helpers.LENET, CLEAN, HIGH),
        (RESNET, "seven", "three"),
    ],
    ids=["lenet, classes", "resnet, classes", "resnet, noise", "lenet, 10 to 5", "resnet, 7 to 3"],
)
def test_a_graft_begins_with_the_body_of_the_source_and_a_fresh_head(net, source, target, batchnorm, store, sets):
    source, target = (Data(name=each) if isinstance(each, str) else each for each in (source, target))
    trunk, found = searched(net, source, batch_size=32)
    recipe = helpers.recipe(batch_size=16, optimizer="adam", lr=0.003)
    body = At(trunk, "1ep")
    ticket = Train(net, target, recipe, Graft(body, Fresh(7, draw=2)), 7, found, batchnorm=batchnorm)
    lab.compute([ticket, At(ticket, "0ep"), At(ticket, "1ep"), body], store)
    began, mask = start(ticket, store), derive.mask(found, store)
    head = [f"{HEADS[net.name]}.weight", f"{HEADS[net.name]}.bias"]
    drawn, there = nets.fresh(net, target, 7, 2), derive.state(body, store)
    assert list(began) == list(there) == list(drawn) and not mask.keys() & set(head)
    for name, tensor in began.items():
        expected = drawn[name] if name in head else pruned(there, mask)[name]
        if batchnorm == "reset" and name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            expected = torch.full_like(tensor, name.endswith("var"))
        assert tensor.dtype == expected.dtype and tensor.numpy().tobytes() == expected.numpy().tobytes(), name
    assert began[head[0]].shape[0] == target.facts.classes and began[head[0]].all()
    later = derive.state(At(ticket, "1ep"), store)
    assert not any(later[name][~kept].any() for name, kept in mask.items())
    assert all((later[name] != began[name]).any() for name in (*mask, *head))
    alone = helpers.run([helpers.Job(ticket, began, mask)], data.load(target, None), until=ticket.iteration("1ep"))
    assert helpers.equal(later, alone.group.state(0))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_random_tickets_and_reinitialised_ones_train_on_the_target(scope, store):
    _, found = searched(RESNET, LOW, level=1)
    random = Permuted(found, scope, 5)
    tickets = [
        Train(RESNET, HIGH, helpers.recipe(), Fresh(1, draw), 1, mask) for draw, mask in ((1, found), (0, random))
    ]
    lab.compute([At(ticket, "0ep") for ticket in tickets], store)
    for ticket in tickets:
        mask = derive.mask(ticket.mask, store)
        assert helpers.equal(start(ticket, store), pruned(nets.fresh(RESNET, HIGH, 1, ticket.init.draw), mask))
        assert sum(int(kept.sum()) for kept in mask.values()) == sum(
            int(kept.sum()) for kept in derive.mask(found, store).values()
        )


def test_batches_are_those_of_the_targets_replicate(store):
    """The first step of the head follows from the images that the order of the target's replicate takes first."""
    trunk, found = searched(helpers.LENET, LOW, level=1)
    graft = Graft(At(trunk, "1ep"), Fresh(3))
    same, other = (Train(helpers.LENET, HIGH, helpers.recipe(epochs=1), graft, order, found) for order in (3, 4))
    lab.compute([same, other, At(same, "0ep"), At(same, "1it"), At(other, "1it")], store)
    dataset, began = data.load(HIGH, None), start(same, store)
    taken = {ticket: data.order(len(dataset.train_y), ticket.order, 0)[:64] for ticket in (same, other)}
    network = helpers.plain(helpers.LENET, HIGH.facts)
    for ticket, places in taken.items():
        network.load_state_dict(began)
        network.zero_grad()
        x = data.normalise(dataset.train_x[places], dataset, torch.float32)
        torch.nn.functional.cross_entropy(network(x), dataset.train_y[places]).backward()
        step = derive.state(At(ticket, "1it"), store)["fc3.bias"] - began["fc3.bias"]
        decayed = network.fc3.bias.grad + ticket.recipe.weight_decay * began["fc3.bias"]
        torch.testing.assert_close(step, -ticket.recipe.lr * decayed, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("optimizers", [("sgd", "adam"), ("adam", "sgd")], ids=" to ".join)
def test_a_ticket_moves_from_one_optimizer_to_another(optimizers, store):
    rates = {"sgd": 0.05, "adam": 0.002}
    fields = [{"optimizer": name, "lr": rates[name]} for name in optimizers]
    trunk, found = searched(helpers.LENET, LOW, **fields[0])
    recipe = helpers.recipe(epochs=6, batch_size=32, **fields[1])
    ticket = Train(helpers.LENET, LOW, recipe, Graft(At(trunk, "1ep"), Fresh(0)), 0, found)
    lab.compute([ticket, At(ticket, "0ep")], store)
    began = pruned(derive.state(At(trunk, "1ep"), store), derive.mask(found, store))
    head = nets.fresh(helpers.LENET, LOW, 0)
    assert helpers.equal(start(ticket, store), began | {name: head[name] for name in ("fc3.weight", "fc3.bias")})
    assert Run(ticket, store).metrics()[-1]["test_accuracy"] > 0.8


def test_the_mask_of_a_transferred_ticket_can_be_ranked_further(store):
    trunk, found = searched(RESNET, LOW, level=1)
    ticket = Train(RESNET, HIGH, helpers.recipe(), Graft(At(trunk, "1ep"), Fresh(1)), 1, found)
    second = Magnitude(At(ticket, "last"), Level(2))
    lab.compute([second], store)
    first, second = (derive.mask(value, store) for value in (found, second))
    assert all(not (second[name] & ~first[name]).any() for name in first) and list(first) == list(second)


# --- what is refused ------------------------------------------------------------------------------------------


def grafted(net, source, target, **fields):
    trunk = helpers.train(net, source, batch_size=16)
    recipe = helpers.recipe(batch_size=16)
    mask = Magnitude(At(trunk, "last"), "0.5", **fields)
    return Train(net, target, recipe, Graft(At(trunk, "1ep"), Fresh(0)), 0, mask)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_mask_that_covers_the_head_is_refused(policy):
    net = helpers.narrow(4)
    covers = "head" not in sizes.left_out(net, policy)
    trunk = helpers.train(net, LOW)
    mask = Magnitude(At(trunk, "last"), "0.5", prunable=policy)
    graft = Graft(At(trunk, "1ep"), Fresh(0))
    pruning = Train(net, LOW, trunk.recipe, Fresh(0), 0, pruning=Gradual("1it", "1ep", "1it", "0.5", prunable=policy))
    for each in (mask, Permuted(mask), MaskOf(pruning)):
        if covers:
            says = re.escape(f"mask {each!r} covers the head, which") + ".* such as 'all_but_head'"
            with pytest.raises(ValueError, match=says):
                Train(net, HIGH, trunk.recipe, graft, 0, each)
        else:
            assert Train(net, HIGH, trunk.recipe, graft, 0, each).mask == each


def test_a_mask_of_filters_covers_inputs_of_the_head():
    for wrap in (lambda mask: mask, Permuted):
        with pytest.raises(ValueError, match="covers the head, which a graft draws anew; allowed: masks of weights"):
            trunk = helpers.train(RESNET, LOW)
            mask = wrap(Magnitude(At(trunk, "last"), "0.5", granularity="filter"))
            Train(RESNET, HIGH, trunk.recipe, Graft(At(trunk, "1ep"), Fresh(0)), 0, mask)


def test_a_body_or_a_mask_of_another_network_is_refused():
    trunk, other = helpers.train(RESNET, LOW), helpers.train(helpers.narrow(8), LOW)
    recipe = trunk.recipe
    with pytest.raises(ValueError, match=rf"weights of Train\({other.key}\) are for another network than .*resnet8"):
        Train(RESNET, HIGH, recipe, Graft(At(other, "1ep"), Fresh(0)), 0)
    with pytest.raises(ValueError, match=r"is for another network than .*resnet8"):
        Train(RESNET, HIGH, recipe, Graft(At(trunk, "1ep"), Fresh(0)), 0, Magnitude(At(other, "last"), "0.5"))


GREY, COLOUR, WIDE = {"name": "digits"}, {"name": "three"}, {"name": "digits", "size": 12}
SHAPES = r"'fc1.weight' has the shape \(300, 64\) and would need \(300, 144\); allowed: data 'digits' with size: 12$"
MISFITS = {
    "channels": (RESNET, GREY, COLOUR, "'conv1.weight' .*allowed: data 'digits' with channels: 3"),
    "channels, back": (RESNET, COLOUR, GREY, "'conv1.weight' .*allowed: data 'digits' with channels: 3"),
    "size": (helpers.LENET, GREY, WIDE, SHAPES),
    "both": (helpers.LENET, WIDE, COLOUR, "allowed: data 'digits' with channels: 3, data 'three' with size: 12"),
}


@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("kind", ["graft", "reinitialised"])
def test_networks_that_differ_beyond_the_head_are_refused_before_any_work(name, kind, sets, tmp_path):
    net, source, target, says = MISFITS[name]
    ticket = grafted(net, Data(**source), Data(**target))
    if kind == "reinitialised":
        ticket = Train(net, ticket.data, ticket.recipe, Fresh(0), 0, ticket.mask)
    with pytest.raises(InputError) as caught:
        lab.compute([ticket], Store(tmp_path / "runs"))
    lines = str(caught.value).splitlines()
    whats = ["weights", "mask"] if kind == "graft" else ["mask"]
    assert all(line.startswith(f"{ticket!r}: {what} of ") for line, what in zip(lines, whats, strict=True))
    assert all(re.search(says, line) for line in lines), lines
    assert not (tmp_path / "runs").exists()


def test_the_fields_that_are_named_bring_them_together(sets):
    grey = Data(name="digits", channels=3, size=12)
    derive.refuse_impossible(ancestors([grafted(helpers.LENET, grey, Data(name="three", size=12))]))
    derive.refuse_impossible(ancestors([grafted(RESNET, Data(name="digits", channels=3, size=12), Data(**COLOUR))]))


def test_channels_that_no_field_changes(sets, monkeypatch):
    facts = datasets.DATASETS["three"]
    monkeypatch.setitem(datasets.DATASETS, "two", datasets.replace(facts, shape=(2, 8, 8), mean=(1, 1), std=(1, 1)))
    ticket = grafted(RESNET, Data(name="two"), Data(**COLOUR))
    with pytest.raises(InputError, match=r"weights of resnet8 on 'two' on 'three': .*; no field of data brings them"):
        derive.refuse_impossible(ancestors([ticket]))


def test_whole_weights_for_other_classes_are_refused_with_the_way_out():
    trunk, found = searched(RESNET, CLEAN, level=1)
    ticket = Train(RESNET, HIGH, helpers.recipe(), At(trunk, "1ep"), 0, found)
    whole = Magnitude(At(trunk, "last"), "0.5", prunable="all")
    fresh = Train(RESNET, HIGH, helpers.recipe(), Fresh(0), 0, whole)
    with pytest.raises(InputError) as caught:
        derive.refuse_impossible(ancestors([ticket, fresh]))
    way = r"allowed: a graft, which draws the head anew, under a mask that does not cover it"
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{ticket!r}: weights of") and "(10, 16) and would need (5, 16)" in first and way in first
    assert second.startswith(f"{fresh!r}: mask of") and way in second


def test_sizes_do_not_matter_where_maps_are_averaged():
    """Morcos et al. 2019, 3.3: the last maps are averaged, so images of other sizes need no change of the network."""
    derive.refuse_impossible(ancestors([grafted(RESNET, Data(**GREY), Data(**WIDE))]))


@pytest.mark.parametrize(
    "net, size", [(helpers.LENET, 8), (RESNET, 8), (Net(name="vgg11", width=2), 32), (Net(name="conv2"), 8)]
)
def test_the_head_is_the_last_linear_layer(net, size):
    seen = Data(name="digits", size=size)
    assert nets.head_of(nets.build(net, seen)) == set(list(nets.fresh(net, seen, 0))[-2:])
