"""Gradients of chains of linear layers: those of autograd, bit for bit, and where autograd is left to compute them."""

import math

import helpers
import pytest
import torch
import torch.nn.functional as F

from lthlab import chains, nets
from lthlab.lanes import Lane, Source
from lthlab.parts import Data, Level
from lthlab.values import Narrow

DATA = Data(name="digits", train_size=150, val_size=30)


class Own(nets.Network):
    """Layers of some sizes, with the ReLU where it is said, all or all but the first of them declared as a chain."""

    def __init__(self, replicas, sizes, relus, declared=0):
        super().__init__(replicas)
        pairs = zip(sizes, sizes[1:], relus, strict=False)
        layers = [nets.Linear(replicas, a, b, "body", "torch", relu) for a, b, relu in pairs]
        self.body = torch.nn.Sequential(*layers)
        self.chain = tuple(layers[declared:])

    def forward(self, x):
        return self.body(x.flatten(-3))


NETS = {
    "lenet": lambda count: nets.build(helpers.LENET, DATA, count),
    "one layer": lambda count: Own(count, (64, 10), [False]),
    "relus here and there": lambda count: Own(count, (64, 36, 20, 8, 7), [True, False, True, True]),
}


def rows(network, count):
    """Parameters by name with the replica in front, and room for their gradients, off the places of one another."""
    weights = {n: p.detach().view(count, *p.shape[count > 1 :]) for n, p in network.named_parameters()}
    wide = {n: torch.full((count, 16 + w[0].numel()), math.nan, dtype=w.dtype) for n, w in weights.items()}
    return weights, {n: wide[n][:, 16:].view(w.shape) for n, w in weights.items()}


@pytest.mark.parametrize("size", [64, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("net", NETS)
def test_bits_are_those_of_autograd(net, count, dtype, size):
    network, draws = NETS[net](count).to(dtype), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draws) / 4)
    images = torch.randn(count, size, 1, 8, 8, generator=draws).to(dtype)
    labels = torch.randint(7, (count, size), generator=draws)
    logits = network(images)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(count, size).mean(1)
    found = torch.autograd.grad(expected.sum(), list(network.parameters()))
    weights, gradients = rows(network, count)
    assert chains.fits(network)
    losses, correct = chains.Chain(network, weights, gradients).backward(images, labels)
    assert torch.equal(losses, expected.detach())
    assert correct.tolist() == (logits.argmax(-1) == labels).sum(-1).tolist()
    for gradient, other in zip(gradients.values(), found, strict=True):
        assert torch.equal(gradient.view(other.shape), other)


def test_gradients_are_those_of_plain_torch():
    value = helpers.train(dataset=DATA, precision="fp64")
    lane, theirs = lane_of(value), helpers.plain(value.net, DATA.facts).double()
    theirs.load_state_dict(lane.state(0))
    images = torch.randn(28, *DATA.facts.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(28) % 10
    loss = F.cross_entropy(theirs(images), labels)
    loss.backward()
    losses, _ = lane.backward(images[None], labels[None])
    assert losses.item() == pytest.approx(loss.item(), rel=1e-12)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(lane.view(lane.gradient, name)[0], parameter.grad, rtol=1e-12, atol=1e-12)


def lane_of(value):
    dataset, cpu = helpers.load(DATA), torch.device("cpu")
    source = Source(dataset, dataset.train_x, dataset.train_y, torch.float32, cpu)
    return Lane([value], [helpers.job(value).state], source, cpu, 1)


@pytest.mark.parametrize(
    "net, fields, short",
    [
        (helpers.LENET, {"precision": "fp32"}, True),
        (helpers.LENET, {"precision": "fp64"}, True),
        (helpers.LENET, {"nesterov": True}, True),
        (helpers.LENET, {"precision": "bf16"}, False),
        (helpers.LENET, {"label_smoothing": 0.1}, False),
        (helpers.LENET, {"mixup": 0.2}, False),
        (helpers.narrow(4), {}, False),
        (Narrow(helpers.LENET, Level(19)), {}, False),
    ],
)
def test_what_takes_the_short_way(net, fields, short, monkeypatch):
    lane = lane_of(helpers.train(net, DATA, **fields))
    asked = []
    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: asked.append(True) or lane._gradients)
    images = torch.randn(1, 8, *DATA.facts.shape, dtype=lane.dtype)
    lane.backward(images, torch.zeros(1, 8, dtype=torch.int64))
    assert asked == [] if short else asked == [True]


@pytest.mark.parametrize(
    "sizes, declared, fit",
    [((64, 8, 10), 0, True), ((64, 8, 10), 1, False), ((64, 7, 10), 0, False), ((64, 8, 1), 0, False)],
)
def test_a_chain_is_all_layers_and_none_is_padded(sizes, declared, fit):
    assert chains.fits(Own(1, sizes, [True, False], declared)) == fit
    assert not chains.fits(nets.build(helpers.narrow(4), DATA))
