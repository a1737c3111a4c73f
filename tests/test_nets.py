"""Networks: counts, agreement with plain torch, initial weights."""

import math

import helpers
import pytest
import torch

from lthlab import layers, nets, parts
from lthlab.draws import Stream
from lthlab.parts import Data, Net


@pytest.fixture(autouse=True)
def sets(monkeypatch):
    monkeypatch.setitem(parts.DATASETS, "cifar", helpers.CIFAR)
    hundred = parts.DataFacts((3, 32, 32), 100, 50000, 10000, "d" * 32)
    monkeypatch.setitem(parts.DATASETS, "cifar100", hundred)


def count(tensors):
    return sum(math.prod(t.shape) if hasattr(t, "shape") else math.prod(t) for t in tensors)


@pytest.mark.parametrize(
    "net, dataset, expected",
    [
        (Net(name="resnet20"), "cifar", 272_474),
        (Net(name="resnet20", shortcut="A"), "cifar", 269_722),
        (Net(name="resnet20"), "cifar100", 278_324),
        (Net(name="resnet56"), "cifar", 855_770),
        (Net(name="resnet56", shortcut="A"), "cifar", 853_018),
        (Net(name="resnet32", width=32), "cifar", 1_860_522),
        (Net(name="lenet_300_100"), "digits", 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10),
    ],
)
def test_parameters_are_as_many_as_published(net, dataset, expected):
    assert count(nets.build(net, dataset).parameters()) == expected
    assert count(nets.build(net, dataset, 3).parameters()) == 3 * expected


@pytest.mark.parametrize(
    "net, dataset, policy, expected",
    [
        (Net(name="resnet20"), "cifar", "ma_resnet20", 269_824),
        (Net(name="resnet32", width=32), "cifar", "ma_resnet32", 1_843_200),
        (Net(name="resnet20"), "cifar", "ma_resnet32", 269_824 - 16 * 32 - 32 * 64),
        (Net(name="resnet20"), "cifar", "first_last_dense", 269_824),
        (Net(name="resnet20"), "cifar", "all_but_head", 269_824 + 3 * 16 * 9),
        (Net(name="resnet20"), "cifar", "all", 269_824 + 3 * 16 * 9 + 640),
        (Net(name="lenet_300_100"), "digits", "all", 64 * 300 + 300 * 100 + 100 * 10),
        (Net(name="lenet_300_100"), "digits", "all_but_head", 64 * 300 + 300 * 100),
        (Net(name="lenet_300_100"), "digits", "first_last_dense", 300 * 100),
    ],
)
def test_prunable_weights(net, dataset, policy, expected):
    found = nets.prunable(net, dataset, policy)
    assert count(found.values()) == expected
    weights = nets.fresh(net, dataset, 0)
    assert {name: weights[name].shape for name in found} == found
    assert list(found) == [name for name in weights if name in found]
    assert all(weights[name].dim() > 1 for name in found)


def test_a_policy_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"'all_but_heads' is not known.*did you mean 'all_but_head'"):
        nets.prunable(helpers.LENET, "digits", "all_but_heads")
    with pytest.raises(ValueError, match="'ma_resnet20' is for ResNets, not for 'lenet_300_100'"):
        nets.prunable(helpers.LENET, "digits", "ma_resnet20")


NETS = [
    helpers.LENET,
    helpers.narrow(4),
    helpers.narrow(5, shortcut="A"),
    helpers.narrow(3),
    Net(name="resnet14", width=4, shortcut="A"),
]


def somewhere(net, dataset, replicate):
    """A state with no value at its default, so that a layer left out is noticed."""
    state = nets.fresh(net, dataset, replicate)
    noise = torch.Generator().manual_seed(replicate)
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = tensor + 0.1 * torch.rand(tensor.shape, generator=noise)
    return state


@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("dataset", ["digits", "cifar"])
@pytest.mark.parametrize("training", [False, True])
def test_one_replica_is_the_ordinary_network(net, dataset, training):
    facts = parts.DATASETS[dataset]
    state = somewhere(net, dataset, 0)
    ours, theirs = nets.build(net, dataset), helpers.plain(net, facts)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    theirs.load_state_dict(state, strict=True)
    ours.load([state])
    ours.double().train(training)
    theirs.double().train(training)
    x = torch.randn(6, *facts.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state(0)[name], tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("net", NETS, ids=str)
def test_replicas_are_independent_networks(net):
    states = [somewhere(net, "digits", r) for r in range(3)]
    together = nets.build(net, "digits", 3)
    together.load(states)
    x = torch.randn(3, 6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits = together.double().train()(x)
    for number, state in enumerate(states):
        alone = nets.build(net, "digits")
        alone.load([state])
        torch.testing.assert_close(logits[number], alone.double().train()(x[number]), rtol=1e-12, atol=1e-12)
        for name, tensor in alone.state(0).items():
            torch.testing.assert_close(together.state(number)[name], tensor, rtol=1e-12, atol=1e-12)


def test_state_is_a_copy():
    network = nets.build(helpers.LENET, "digits", 2)
    state = network.state(1)
    network.fc1.weight.data.add_(1)
    assert not state["fc1.weight"].any()


def test_initial_weights_have_the_scale_of_their_source():
    lenet = nets.fresh(helpers.LENET, "digits", 0)
    for name, (outputs, inputs) in {"fc1": (300, 64), "fc2": (100, 300), "fc3": (10, 100)}.items():
        weight = lenet[f"{name}.weight"]
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (inputs + outputs)), rel=0.05)
        assert not lenet[f"{name}.bias"].any()
    resnet = nets.fresh(Net(name="resnet20"), "cifar", 0)
    assert resnet["layer3.1.conv1.weight"].std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert resnet["layer3.0.downsample.0.weight"].std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    for name in ("fc.weight", "fc.bias"):
        assert 0.1 < resnet[name].abs().max() <= 1 / math.sqrt(64)
    assert (resnet["bn1.weight"] == 1).all() and (resnet["bn1.running_var"] == 1).all()
    assert not resnet["bn1.bias"].any() and not resnet["bn1.running_mean"].any()


def test_initial_weights_depend_on_replicate_and_draw_alone():
    states = [nets.fresh(helpers.narrow(), "digits", r, d) for r in (0, 1) for d in (0, 1)]
    assert len({state["conv1.weight"].numpy().tobytes() for state in states}) == 4
    assert helpers.equal(states[1], nets.fresh(helpers.narrow(), "digits", 0, draw=1))
    # The first layer takes the first numbers of the stream, whatever follows.
    scale = math.sqrt(2 / (4 * 9))
    first = torch.from_numpy(Stream(0, "init").normal(36)).mul(scale).float()
    assert torch.equal(states[0]["conv1.weight"].flatten(), first)


def test_batchnorm_statistics_can_be_reset():
    network = nets.build(helpers.narrow(), "digits")
    state = somewhere(helpers.narrow(), "digits", 0)
    state["bn1.num_batches_tracked"] += 7
    reset = network.reset_batchnorm(state)
    for name, tensor in reset.items():
        if name.endswith(("running_mean", "num_batches_tracked")):
            assert not tensor.any()
        elif name.endswith("running_var"):
            assert (tensor == 1).all()
        else:
            assert tensor is state[name]


def test_a_network_of_ones_own(monkeypatch):
    monkeypatch.setattr(nets, "_BUILDERS", dict(nets._BUILDERS))

    class Single(nets.Network):
        def __init__(self, net, shape, classes, replicas):
            super().__init__(replicas)
            self.fc = layers.Linear(replicas, math.prod(shape), classes, "head", "torch")

        def forward(self, x):
            return self.fc(x.flatten(-3))

    try:
        nets.register("single", Single)
        own = Net(name="single")
        value = helpers.train(own, Data(name="digits", train_size=100), epochs=1)
        training = helpers.run([helpers.job(value), helpers.job(helpers.train(own, value.data, 1, epochs=1))])
        assert training.progress[1].metrics[-1]["test_accuracy"] > training.progress[1].metrics[0]["test_accuracy"]
        with pytest.raises(ValueError, match="'single' is already registered"):
            nets.register("single", Single)
    finally:
        parts.NETS.pop("single", None)


# --- products of batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("inputs", [8, 5])
def test_derivatives_of_a_linear_layer(inputs, count, relu):
    """Also of its derivatives: curvature is made of them."""
    layer = layers.Linear(count, inputs, 3, "head", "torch", relu).double()
    draws = torch.Generator().manual_seed(0)
    shapes = (count, 4, inputs), layer.weight.shape, layer.bias.shape
    values = [torch.randn(s, dtype=torch.float64, generator=draws, requires_grad=True) for s in shapes]

    def output(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x).tanh()

    def plain(x, weight, bias):
        out = x @ weight.view(count, 3, inputs).transpose(1, 2) + bias.view(count, 1, 3)
        return (out.relu() if relu else out).tanh()

    torch.testing.assert_close(output(*values), plain(*values), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(output, values) and torch.autograd.gradgradcheck(output, values)
