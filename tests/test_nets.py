"""Networks: counts, agreement with plain torch, initial weights."""

import math
import re
from collections import OrderedDict
from functools import partial
from pathlib import Path

import helpers
import pytest
import torch
import torchvision

from benchmarks.plain import PlainBlock
from lthlab import datasets, layers, nets, parts
from lthlab.draws import Stream
from lthlab.errors import InputError
from lthlab.parts import Data, Net


@pytest.fixture(autouse=True)
def sets(monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "cifar", helpers.CIFAR)
    hundred = datasets.DataFacts((3, 32, 32), 100, 50000, 10000, "d" * 32)
    monkeypatch.setitem(datasets.DATASETS, "cifar100", hundred)
    thousand = datasets.DataFacts((3, 64, 64), 1000, 100000, 10000, "e" * 32)
    monkeypatch.setitem(datasets.DATASETS, "tiny1000", thousand)
    monkeypatch.setitem(datasets.DATASETS, "tiny", datasets.DataFacts((3, 64, 64), 200, 100000, 10000, "f" * 32))
    monkeypatch.setitem(datasets.DATASETS, "small", datasets.DataFacts((2, 16, 19), 7, 100, 100, "a" * 32))


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
        (Net(name="vgg16"), "cifar", 14_724_042),
        (Net(name="vgg19"), "cifar", 20_035_018),
        (Net(name="vgg19", bias=True), "cifar", 20_040_522),
        (Net(name="mobilenet_v1"), "cifar", 3_217_226),
        (Net(name="resnet18"), "cifar", 11_173_962),
        (Net(name="resnet18"), "cifar100", 11_220_132),
        (Net(name="resnet18"), "tiny", 11_271_432),
        (Net(name="resnet18", stem="tiny_imagenet"), "tiny1000", 11_681_832),
        (Net(name="resnet18", stem="imagenet"), "tiny1000", 11_689_512),
        (Net(name="resnet50", stem="imagenet"), "tiny1000", 25_557_032),
    ],
)
def test_parameters_are_as_many_as_published(net, dataset, expected):
    assert count(nets.build(net, dataset, device="meta").parameters()) == expected
    assert count(nets.build(net, dataset, 3, "meta").parameters()) == 3 * expected


@pytest.mark.parametrize(
    "name, of_convolutions, millions", [("conv2", 38_592, 4.3), ("conv4", 259_776, 2.4), ("conv6", 1_144_512, 2.3)]
)
def test_conv_networks_have_the_weights_of_frankle_and_carbin(name, of_convolutions, millions):
    """38K, 260K and 1.1M of convolutions; 4.3M and 2.4M in all (their Fig. 2, whose 1.7M of Conv-6 fits no sum)."""
    network = nets.build(Net(name=name), "cifar", device="meta")
    found = [layer.weight for _, layer in network.layers() if isinstance(layer, layers.Conv2d)]
    assert len(found) == int(name[4:]) and count(found) == of_convolutions
    assert count(network.parameters()) == pytest.approx(millions * 1e6, rel=0.02)
    weights = sum(p.numel() for key, p in network.named_parameters() if key.startswith("fc") and key.endswith("weight"))
    side, channels = 32 >> len(found) // 2, found[-1].shape[0]
    assert weights == side * side * channels * 256 + 256 * 256 + 2560


def test_vgg19_has_sixteen_convolutions_and_biases_as_counted_by_morcos():
    network = nets.build(Net(name="vgg19", bias=True), "cifar", device="meta")
    convolutions = [layer for _, layer in network.layers() if isinstance(layer, layers.Conv2d)]
    assert len(convolutions) == 16 and count(convolutions[0].parameters()) == 1792


@pytest.mark.parametrize(
    "net, dataset, policy, expected",
    [
        (Net(name="resnet20"), "cifar", "ma_resnet20", 269_824),
        (Net(name="resnet32", width=32), "cifar", "ma_resnet32", 1_843_200),
        (Net(name="resnet20"), "cifar", "ma_resnet32", 269_824 - 16 * 32 - 32 * 64),
        (Net(name="resnet20"), "cifar", "first_last_dense", 269_824),
        (Net(name="resnet20"), "cifar", "all_but_head", 269_824 + 3 * 16 * 9),
        (Net(name="resnet20"), "cifar", "all", 269_824 + 3 * 16 * 9 + 640),
        (Net(name="resnet20", shortcut="none"), "cifar", "ma_resnet20", 269_824 - 16 * 32 - 32 * 64),
        (Net(name="mobilenet_v1"), "cifar", "all", 3_217_226 - 2 * (32 + 5952 + 4960) - 10),
        (Net(name="mobilenet_v1"), "cifar", "first_last_depthwise_dense", 3_139_584),
        (Net(name="resnet18"), "cifar", "ma_resnet32", 11_173_962 - 9600 - 27 * 64 - 5130 - 128 * 64 * (1 + 4 + 16)),
        (Net(name="vgg16", bias=True), "cifar", "all_but_head", 14_710_464),
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


@pytest.mark.parametrize("net", [Net(name="conv2"), helpers.narrow()])
def test_decay_on_weights_spares_biases_and_batchnorm(net):
    network = nets.build(net, helpers.DIGITS)
    assert nets.decayed(network) == {name for name, own in network.named_parameters() if own.dim() > 1}


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
    facts = datasets.DATASETS[dataset]
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


class Separable(torch.nn.Sequential):
    """Howard et al. 2017, Fig. 3, in plain torch."""

    def __init__(self, inputs, outputs, stride):
        depthwise = torch.nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        pointwise = torch.nn.Conv2d(inputs, outputs, 1, bias=False)
        norms = torch.nn.BatchNorm2d(inputs), torch.nn.BatchNorm2d(outputs)
        pieces = {"conv1": depthwise, "bn1": norms[0], "relu1": torch.nn.ReLU()}
        super().__init__(OrderedDict(pieces | {"conv2": pointwise, "bn2": norms[1], "relu2": torch.nn.ReLU()}))


def mobilenet(shape, classes, stride, unit):
    """Howard et al. 2017, Table 1, as lists of outputs and strides."""
    table = [(2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *[(16, 1)] * 5, (32, 2), (32, 1)]
    features, inputs = torch.nn.Sequential(), unit
    for factor, step in table:
        features.append(Separable(inputs, factor * unit, step))
        inputs = factor * unit
    first = {"conv1": torch.nn.Conv2d(shape[0], unit, 3, stride, 1, bias=False), "bn1": torch.nn.BatchNorm2d(unit)}
    last = {"pool": torch.nn.AdaptiveAvgPool2d(1), "flat": torch.nn.Flatten(), "fc": torch.nn.Linear(inputs, classes)}
    return torch.nn.Sequential(OrderedDict(first | {"relu": torch.nn.ReLU(), "features": features} | last))


def conv(pairs, shape, classes):
    """Frankle and Carbin 2019, Fig. 2, in plain torch."""
    features, inputs = torch.nn.Sequential(), shape[0]
    for width in (64, 128, 256)[:pairs]:
        for channels in (inputs, width):
            features.append(torch.nn.Conv2d(channels, width, 3, padding=1)).append(torch.nn.ReLU())
        features.append(torch.nn.MaxPool2d(2))
        inputs = width
    flat = inputs * math.prod(side // 2**pairs for side in shape[1:])
    linear = torch.nn.Linear(flat, 256), torch.nn.Linear(256, 256), torch.nn.Linear(256, classes)
    hidden = {"fc1": linear[0], "relu1": torch.nn.ReLU(), "fc2": linear[1], "relu2": torch.nn.ReLU(), "fc3": linear[2]}
    return torch.nn.Sequential(OrderedDict({"features": features, "flat": torch.nn.Flatten()} | hidden))


def no_residuals(net, facts):
    """A ResNet of plain torch whose blocks add nothing."""
    found = helpers.plain(net, facts)
    for block in found.modules():
        if isinstance(block, PlainBlock):
            block.downsample = torch.nn.Sequential()
            block.downsample.forward = lambda x: 0
    return found


def resnet(name, stem, facts):
    """torchvision's, with the stem that users put before small images."""
    found = getattr(torchvision.models, name)(num_classes=facts.classes)
    if stem != "imagenet":
        found.conv1 = torch.nn.Conv2d(facts.shape[0], 64, 3, 1 if stem == "cifar" else 2, 1, bias=False)
        found.maxpool = torch.nn.Identity()
    return found


def vgg(name, facts):
    """torchvision's features without the last pooling, averaged, before a linear layer."""
    pieces = {"features": getattr(torchvision.models, f"{name}_bn")().features[:-1]}
    pieces |= {"pool": torch.nn.AdaptiveAvgPool2d(1), "flat": torch.nn.Flatten()}
    return torch.nn.Sequential(OrderedDict(pieces | {"fc": torch.nn.Linear(512, facts.classes)}))


OTHERS = {
    "resnet18": (Net(name="resnet18"), "cifar", partial(resnet, "resnet18", "cifar")),
    "resnet34, stride 2": (Net(name="resnet34", stem="tiny_imagenet"), "tiny", partial(resnet, "resnet34", "tiny")),
    "resnet50": (Net(name="resnet50", stem="imagenet"), "cifar", partial(resnet, "resnet50", "imagenet")),
    "vgg11": (Net(name="vgg11", bias=True), "cifar", partial(vgg, "vgg11")),
    "vgg16": (Net(name="vgg16", bias=True), "cifar", partial(vgg, "vgg16")),
    "vgg19": (Net(name="vgg19", bias=True), "cifar", partial(vgg, "vgg19")),
    "mobilenet": (Net(name="mobilenet_v1", width=4), "small", lambda facts: mobilenet(facts.shape, 7, 1, 4)),
    "mobilenet, stride 2": (
        Net(name="mobilenet_v1", width=4, stem="imagenet"), "cifar", lambda facts: mobilenet(facts.shape, 10, 2, 4)
    ),
    "conv2": (Net(name="conv2"), "small", lambda facts: conv(1, facts.shape, 7)),
    "conv4": (Net(name="conv4"), "digits", lambda facts: conv(2, facts.shape, 10)),
    "conv6": (Net(name="conv6"), "small", lambda facts: conv(3, facts.shape, 7)),
    "no residuals": (
        Net(name="resnet14", width=4, shortcut="none"),
        "small",
        partial(no_residuals, Net(name="resnet14", width=4, shortcut="A")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_networks_are_those_of_torchvision_and_of_plain_torch(name):
    """State by name, logits in evaluation and training, and BatchNorm's statistics after it."""
    net, dataset, make = OTHERS[name]
    torch.manual_seed(0)
    facts = datasets.DATASETS[dataset]
    theirs = make(facts).double()
    for buffer in theirs.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    ours = nets.build(net, dataset).double()
    ours.load([theirs.state_dict()])
    x = torch.randn(3, *facts.shape, dtype=torch.float64)
    for training in (False, True):
        logits = ours.train(training)(x)
        torch.testing.assert_close(logits, theirs.train(training)(x), rtol=1e-9, atol=1e-9)
        assert logits.std() > 1e-3
    found = ours.state(0)
    for key, tensor in theirs.state_dict().items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-9, atol=1e-9)


SMALL = [
    *NETS,
    Net(name="resnet8", width=4, shortcut="none"),
    Net(name="resnet18", width=3),
    Net(name="resnet50", width=2, stem="imagenet"),
    Net(name="vgg11", width=3),
    Net(name="vgg11", width=2, bias=True),
    Net(name="mobilenet_v1", width=3),
    Net(name="conv4"),
]


@pytest.mark.parametrize("net", SMALL, ids=str)
def test_replicas_are_independent_networks(net):
    dataset = "cifar" if net.name in ("resnet50", "vgg11", "mobilenet_v1") else "digits"
    states = [somewhere(net, dataset, r) for r in range(3)]
    together = nets.build(net, dataset, 3)
    together.load(states)
    shape = datasets.DATASETS[dataset].shape
    x = torch.randn(3, 6, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits = together.double().train()(x)
    logits.square().sum().backward()
    for number, state in enumerate(states):
        alone = nets.build(net, dataset)
        alone.load([state])
        found = alone.double().train()(x[number])
        torch.testing.assert_close(logits[number], found, rtol=1e-9, atol=1e-9)
        found.square().sum().backward()
        mine = together.state(number)
        for name, tensor in alone.state(0).items():
            torch.testing.assert_close(mine[name], tensor, rtol=1e-9, atol=1e-9)
        gradients = dict(together.named_parameters())
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(gradients[name].grad[number], parameter.grad, rtol=1e-7, atol=1e-9)


def test_a_state_of_another_network_is_refused():
    network = nets.build(Net(name="resnet18", stem="imagenet"), "tiny", device="meta")
    words = r"'fc.bias' has the shape \(1000,\); allowed: \(200,\); 'fc.weight' has the shape \(1000, 512\)"
    with pytest.raises(InputError, match=words):
        network.load([torchvision.models.resnet18().state_dict()])
    state = nets.fresh(Net(name="resnet8"), "digits", 0)
    bias = state.pop("fc.bias")
    with pytest.raises(InputError, match="'fc.bias' is missing; the network has no 'bias'"):
        nets.build(Net(name="resnet8"), "digits", 2).load([state | {"fc.bias": bias}, state | {"bias": bias}])


@pytest.mark.parametrize("net, side", [("resnet18", 5), ("mobilenet_v1", 9), ("vgg11", 16), ("conv2", 2), ("conv6", 8)])
def test_images_must_be_as_large_as_a_network_needs(net, side, monkeypatch):
    for smaller in (0, 1):
        facts = datasets.DataFacts((1, 40, side - smaller), 10, 100, 100, "9" * 32)
        monkeypatch.setitem(datasets.DATASETS, "narrow", facts)
        if smaller:
            words = (
                f"'{net}'.* halves images . times, and those of 40×{side - 1} pixels .* at least {side}×{side} pixels"
            )
            with pytest.raises(InputError, match=words):
                nets.build(Net(name=net), "narrow")
        else:
            network = nets.build(Net(name=net), "narrow", device="meta")
            assert network(torch.zeros(2, *facts.shape, device="meta")).shape == (2, 10)


def test_state_is_a_copy():
    network = nets.build(helpers.LENET, "digits", 2)
    state = network.state(1)
    network.fc1.weight.data.add_(1)
    assert not state["fc1.weight"].any()


NORMAL, UNIFORM = 3.0, 1.8  # fourth moment over the squared second one


def law(net, scheme, head, shape):
    """Standard deviation and kind of distribution, as the sources have them."""
    fan_in, fan_out = math.prod(shape[1:]), shape[0] * math.prod(shape[2:])
    if scheme == "torch" or (head and scheme in ("he_fan_out", "he_fan_in")):
        return 1 / math.sqrt(3 * fan_in), UNIFORM
    if head and scheme == "he_fan_out_small_head":
        return 0.01, NORMAL
    if scheme == "glorot_normal":
        return math.sqrt(2 / (fan_in + fan_out)), NORMAL
    return math.sqrt(2 / (fan_in if scheme == "he_fan_in" else fan_out)), NORMAL


OWN = {
    "lenet_300_100": "glorot_normal",
    "resnet20": "he_fan_out",
    "resnet18": "he_fan_out",
    "vgg11": "he_fan_out_small_head",
    "mobilenet_v1": "torch",
    "conv4": "glorot_normal",
}
SCHEMES = ["he_fan_out", "he_fan_in", "glorot_normal", "torch", "he_fan_out_small_head"]
DRAWN = [(Net(name=name, **({"width": 16} if "width" in parts.NETS[name] else {})), own) for name, own in OWN.items()]
DRAWN += [(Net(name=name, init=scheme), scheme) for name in ("resnet8", "conv2") for scheme in SCHEMES]
DRAWN += [(Net(name="vgg11", width=16, bias=True, init="glorot_normal"), "glorot_normal")]


@pytest.mark.parametrize("net, scheme", DRAWN, ids=str)
def test_initial_weights_are_of_the_law_of_their_source(net, scheme):
    state = nets.fresh(net, "cifar", 0)
    heads = ("fc3.", "fc.") if "fc3.weight" in state else ("fc.",)
    large = 0
    for name, weight in state.items():
        head, bias = name.startswith(heads[0]), f"{name[:-6]}bias"
        if weight.dim() < 2:
            continue
        std, kurtosis = law(net, scheme, head, weight.shape)
        error = 5 / math.sqrt(weight.numel())  # of both moments in units of theirs, five times over
        assert weight.mean().item() == pytest.approx(0, abs=std * error)
        assert weight.std().item() == pytest.approx(std, rel=error), name
        if weight.numel() > 1500:
            large += 1
            fourth = (weight.double() / std).pow(4).mean().item()
            assert fourth == pytest.approx(kurtosis, rel=4 * error), name
        if kurtosis == UNIFORM:
            assert weight.abs().max() <= math.sqrt(3) * std
        if bias in state:
            width = state[bias].abs().max().item()
            assert width <= math.sqrt(3) * std and (width > 0) == (kurtosis == UNIFORM), bias
    assert large
    for name, norm in state.items():
        if name.endswith("weight") and name.replace("weight", "running_var") in state:
            assert (norm == 1).all() and not state[name.replace("weight", "bias")].any()


def test_fans_are_counted_as_by_torch():
    for shape in ((8, 4, 3, 3), (6, 1, 3, 3), (5, 7)):
        for init, normal in (("he_fan_out", "fan_out"), ("he_fan_in", "fan_in")):
            unit = torch.from_numpy(Stream(0, "init").normal(math.prod(shape))).view(shape)
            found = layers.draw(Stream(0, "init"), shape, init)[0]
            fan = torch.nn.init._calculate_correct_fan(torch.empty(shape), normal)
            torch.testing.assert_close(found, (unit * math.sqrt(2 / fan)).float())


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


def test_the_network_of_the_readme_groups_and_prunes():
    """Under 20 lines; each replica has the bits that it has alone, and what its mask prunes stays zero."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "nets.register" in block)
    assert len(code.splitlines()) < 20
    try:
        exec(code, names := {})
        own, data = Net(name="little"), Data(name="digits", train_size=100)
        assert nets.module_of("little") is not None and names["Little"].__name__ == "Little"
        jobs = [helpers.job(helpers.train(own, data, r), helpers.half_mask(own, data, r)) for r in range(3)]
        together = helpers.run(jobs)
        assert together.group.form == "stacked" and set(jobs[0].mask) == {"conv.weight"}
        for number, job in enumerate(jobs):
            state = together.group.state(number)
            assert helpers.equal(state, helpers.run([job]).group.state(0))
            assert not state["conv.weight"][~job.mask["conv.weight"]].any() and state["conv.weight"].any()
    finally:
        parts.NETS.pop("little", None)
        nets._BUILDERS.pop("little", None)


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
