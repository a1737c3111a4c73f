"""Every network learns handwritten digits: its loss falls in a few steps, alone as in a group; some reach 97 %."""

import functools

import helpers
import pytest

from lthlab.parts import NETS, Data, Net

WIDTH = 4
NEEDS: dict[str, tuple[dict, dict]] = {
    **dict.fromkeys(("vgg11", "vgg16", "vgg19"), ({"size": 32}, {})),
    "mobilenet_v1": ({"size": 16}, {"lr": 0.001, "epochs": 6}),
    "conv6": ({}, {"lr": 0.001, "epochs": 5}),
}
"""What a network needs besides, by name: fields of the data (digits are grey, of 8×8 pixels) and of the recipe."""


def small(name, **fields):
    """Describe a network, of few channels if it can have few."""
    return Net(name=name, **({"width": WIDTH} if "width" in NETS[name] else {}) | fields)


def digits(name, **fields):
    """Describe digits as a network can take them."""
    images, _ = NEEDS.get(name, ({}, {}))
    return Data(name="digits", **images | fields)


@functools.cache
def loaded(data):
    return helpers.load(data, thin=1)


@pytest.mark.parametrize("name", sorted(NETS))
def test_loss_falls_with_finite_gradients_alone_as_in_a_group(name):
    data, (_, fields) = digits(name, train_size=100), NEEDS.get(name, ({}, {}))
    recipe = {"epochs": 4, "batch_size": 32, "optimizer": "adam", "lr": 0.003, "weight_decay": 1e-4} | fields
    jobs = [helpers.job(helpers.train(small(name), data, replicate, **recipe)) for replicate in range(2)]
    dataset = helpers.load(data, thin=20)
    together, alone = helpers.run(jobs, dataset), helpers.run(jobs[1:], dataset)
    for progress in together.progress:
        _, first, *_, last = progress.metrics
        assert last["train_loss"] < 0.97 * first["train_loss"]
    for lane in together.group.lanes:
        for parameter in dict(lane.network.named_parameters()):
            gradient = lane.view(lane.gradient, parameter)[: lane.replicas]
            assert gradient.isfinite().all() and gradient.flatten(1).any(1).all(), parameter
    assert helpers.equal(together.group.state(1), alone.group.state(0))
    assert together.progress[1].metrics == alone.progress[0].metrics


GOOD = {
    "lenet_300_100": ({}, {"epochs": 20, "lr": 0.05, "lr_schedule": "linear", "mixup": 0.2}),
    "resnet8": ({"width": 8}, {"epochs": 12, "lr": 0.1, "lr_schedule": "cosine", "nesterov": True}),
    "vgg11": ({"width": 8}, {"epochs": 10, "lr": 0.05, "lr_schedule": "cosine", "nesterov": True}),
}
"""By network: its fields, and a recipe with which it learns the digits well."""


@pytest.mark.parametrize("name", GOOD)
def test_digits_are_learnt_to_97_percent(name):
    """Three replicates, each by its last epoch on the 500 test images."""
    fields, recipe = GOOD[name]
    data, recipe = digits(name), {"batch_size": 32, "weight_decay": 5e-4} | recipe
    jobs = [helpers.job(helpers.train(small(name, **fields), data, replicate, **recipe)) for replicate in range(3)]
    progress = helpers.run(jobs, loaded(data)).progress
    assert len(loaded(data).test_y) == 500
    assert min(found.metrics[-1]["test_accuracy"] for found in progress) >= 0.97


def test_a_network_that_cannot_learn_is_seen(monkeypatch):
    """What the tests above rest on: without steps of the optimizer the loss stays."""
    monkeypatch.setattr("lthlab.lanes.Lane.update", lambda self, rates: None)
    with pytest.raises(AssertionError):
        test_loss_falls_with_finite_gradients_alone_as_in_a_group("lenet_300_100")
