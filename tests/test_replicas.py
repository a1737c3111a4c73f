"""Groups of replicas: both forms agree, and a replica's bits do not depend on its group."""

import functools

import helpers
import pytest
import torch

from benchmarks import ours
from lthlab import datasets, layers, nets, parts, replicas, sizes
from lthlab.data import normalise
from lthlab.datasets import DataFacts
from lthlab.engine import Training
from lthlab.lanes import Source
from lthlab.parts import Data, Level, Net
from lthlab.values import Narrow

FORMS = ("stacked", "sequential")
NETS = {
    "lenet": helpers.LENET,
    "resnet8 of 4": helpers.narrow(4),
    "resnet8 of 5": helpers.narrow(5),
    "resnet8 of 3 A": helpers.narrow(3, shortcut="A"),
    "lenet narrowed": Narrow(helpers.LENET, Level(19)),
    "resnet8 of 8 narrowed": Narrow(helpers.narrow(8), Level(9)),
}
DATA = Data(name="digits", train_size=150, val_size=30, augment="crop_flip")
KINDS = {
    "sgd": {},
    "adam": {"optimizer": "adam"},
    "adamw, smoothed": {"optimizer": "adamw", "label_smoothing": 0.1},
    "nesterov, mixed": {"nesterov": True, "mixup": 0.4, "label_smoothing": 0.1},
}


@functools.cache
def dataset():
    return helpers.load(DATA)


@functools.cache
def jobs(net, kind, precision="fp32"):
    """Nine trainings that differ in all in which those of a group may differ."""
    found = []
    for number in range(9):
        value = helpers.train(
            NETS[net],
            DATA,
            number,
            batch_size=64,
            lr=(0.01 if "optimizer" in KINDS[kind] else 0.1) / (1 + number % 3),
            momentum=(0.9, 0.1 if "nesterov" in KINDS[kind] else 0.0, 0.5)[number // 3],
            weight_decay=(0.0, 1e-3)[number % 2],
            warmup=("0ep", "2it")[number // 5],
            precision=precision,
            **KINDS[kind],
        )
        mask = None if number % 4 == 1 else helpers.half_mask(NETS[net], DATA, number)
        found.append(helpers.job(value, mask, {"1ep", "4it", "best_val"}))
    return found


def outcome(training, number):
    """All bits that a replica yields."""
    progress = training.progress[number]
    states = {"last": training.group.state(number), **progress.snapshots, "carry": training.carry(number)}
    bits = {(step, name): t.numpy().tobytes() for step, state in states.items() for name, t in state.items()}
    return bits, progress.metrics


@functools.cache
def alone(net, kind, form, number, threads=1, precision="fp32"):
    with replicas.threads(threads):
        return outcome(helpers.run([jobs(net, kind, precision)[number]], dataset(), form=form), 0)


GROUPS = ([4, 0], [0, 1], [2, 0, 3], [3, 1, 4, 0, 5, 8, 2, 6, 7])
CASES = {
    "sgd": ("sgd", "fp32", 1, GROUPS),
    "adam": ("adam", "fp32", 1, GROUPS),
    "adamw, smoothed": ("adamw, smoothed", "fp32", 1, GROUPS[1:3]),
    "nesterov, mixed": ("nesterov, mixed", "fp32", 1, GROUPS[1:3]),
    "two threads": ("sgd", "fp32", 2, GROUPS[2:]),
    "bf16": ("sgd", "bf16", 2, GROUPS[1:3]),
}


@pytest.mark.parametrize("kind, precision, threads, groups", CASES.values(), ids=CASES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("net", NETS)
def test_bits_do_not_depend_on_the_group(net, form, kind, precision, threads, groups):
    for group in groups:
        members = [jobs(net, kind, precision)[number] for number in group]
        with replicas.threads(threads):
            training = helpers.run(members, dataset(), form=form)
        for slot, number in enumerate(group):
            bits, metrics = outcome(training, slot)
            expected, expected_metrics = alone(net, kind, form, number, threads, precision)
            differing = [place for place in expected if bits.get(place) != expected[place]]
            assert not differing, f"replica {number} in slot {slot} of {group}: {differing}"
            assert bits.keys() == expected.keys() and metrics == expected_metrics


LAYERS = {
    "off 16 bytes, weights": lambda count: (layers.Linear(count, 18, 10, "head", "torch"), (17, 18)),
    "off 16 bytes, gradients": lambda count: (layers.Linear(count, 87, 10, "head", "torch"), (64, 87)),
    "few channels": lambda count: (layers.Conv2d(count, 2, 16, 3, 1), (17, 2, 8, 8)),
    "one channel, biases": lambda count: (layers.Conv2d(count, 1, 8, 3, 1, bias=True), (32, 1, 2, 2)),
    "few channels, stride": lambda count: (layers.Conv2d(count, 3, 8, 3, 2), (17, 3, 8, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gives_every_replica_the_bits_of_a_pair(name):
    """Sizes at which a plain batched product or grouped convolution rounds otherwise for other numbers of replicas."""
    found = []
    for count in (2, 3, 4, 9):
        layer, shape = LAYERS[name](count)
        draws = torch.Generator().manual_seed(0)
        layer.weight.data.copy_(torch.randn(layer.shape, generator=draws).expand(count, *layer.shape))
        if layer.bias is not None:
            layer.bias.data.copy_(torch.linspace(-1, 1, layer.bias.shape[-1]))
        x = torch.randn(1, *shape, generator=draws).expand(count, *shape)
        x = x.transpose(0, 1).flatten(1, 2) if len(shape) == 4 else x.contiguous()
        y = layer(x.requires_grad_())
        (y * torch.linspace(-1, 1, y.shape[-1])).sum().backward()
        parts = [t.unflatten(1, (count, -1)).transpose(0, 1) if len(shape) == 4 else t for t in (y, x.grad)]
        found += list(zip(*parts, layer.weight.grad, strict=True))
    for replica in found[1:]:
        assert all(map(torch.equal, found[0], replica))


@pytest.mark.parametrize("inputs, outputs", [(64, 10), (87, 10), (100, 1), (7, 1), (1, 3)])
def test_a_single_replica_of_a_linear_layer_has_the_bits_that_it_has_among_others(inputs, outputs):
    found = []
    for count in (1, 2, 5):
        layer, draws = layers.Linear(count, inputs, outputs, "head", "torch"), torch.Generator().manual_seed(0)
        weight = torch.randn(outputs, inputs, generator=draws)
        layer.weight.data.copy_(weight.expand(layer.weight.shape))
        x = torch.randn(22, inputs, generator=draws).repeat(*([count, 1, 1] if count > 1 else [1, 1])).requires_grad_()
        y = layer(x)
        (y * torch.linspace(-1, 1, 22)[:, None]).sum().backward()
        parts = (y, x.grad, layer.weight.grad, layer.bias.grad)
        found.append([part if count == 1 else part[-1] for part in parts])
    for replica in found[1:]:
        assert all(map(torch.equal, found[0], replica))


@pytest.mark.parametrize("net", NETS)
def test_forms_agree(net):
    training = {form: helpers.run(jobs(net, "sgd", "fp64")[:3], dataset(), form=form) for form in FORMS}
    for number in range(3):
        first, second = (training[form].progress[number].metrics for form in FORMS)
        for row, other in zip(first, second, strict=True):
            assert row == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_diverging_neighbour_changes_no_bits(form):
    healthy = jobs("resnet8 of 4", "sgd")[:3]
    value = helpers.train(NETS["resnet8 of 4"], DATA, 3, batch_size=64, lr=1e30)
    training = helpers.run([healthy[0], helpers.job(value), *healthy[1:]], dataset(), form=form)
    assert [p.diverged for p in training.progress] == [None, 1, None, None]
    for slot, number in ((0, 0), (2, 1), (3, 2)):
        assert outcome(training, slot) == alone("resnet8 of 4", "sgd", form, number)


@pytest.fixture
def sizes_of_images(monkeypatch):
    """Data sets of the sides 8, 12, 16 and 32, as 's8'."""
    for side in (8, 12, 16, 32):
        monkeypatch.setitem(datasets.DATASETS, f"s{side}", DataFacts((2, side, side), 7, 45, 9, f"{side}" * 8))


FORM_OF = {
    "stacked": [
        (helpers.LENET, 8), (helpers.LENET, 32), (Net(name="resnet20"), 8), (Net(name="resnet20"), 16),
        (Net(name="resnet18", width=8), 16), (Net(name="resnet50", width=4), 16), (Net(name="conv4"), 8),
    ],
    "sequential": [
        (Net(name="resnet20"), 32), (Net(name="resnet20"), 12), (Net(name="resnet18", width=8), 8),
        (Net(name="resnet18"), 16), (Net(name="vgg11", width=8), 16), (Net(name="vgg11", width=8), 32),
        (Net(name="mobilenet_v1", width=4), 16), (Net(name="conv2"), 32),
    ],
}  # fmt: skip


def test_the_form_follows_from_network_and_images(sizes_of_images):
    for form, cases in FORM_OF.items():
        for net, side in cases:
            data = Data(name=f"s{side}")
            assert replicas.form_of(net, data) == form, (net.name, side)
            assert replicas.form_of(net, data, "cuda") == ("stacked" if net == helpers.LENET else "sequential")
            counted = [kind.places for kind in sizes._layers(net, sizes.own_widths(net), data.facts.shape, 7)]
            assert set(replicas._maps(net, data)) == set(counted) - {None}
    narrow = Narrow(Net(name="resnet18"), Level(12))
    assert replicas.form_of(narrow, Data(name="s16")) == "stacked"


def test_the_form_of_a_network_of_ones_own(sizes_of_images, monkeypatch):
    """Its maps have 4×4 places of 8×8 pixels, and 5×5 of 10×10."""
    monkeypatch.setattr(nets, "_BUILDERS", {})

    class Halving(nets.Network):
        def __init__(self, net, shape, classes, replicas):
            super().__init__(replicas)
            self.conv = layers.Conv2d(replicas, shape[0], 4, 3, 2, "first")
            self.fc = layers.Linear(replicas, 4, classes, "head", "torch")

        def forward(self, x):
            return self.fc(self.apart(self.conv(self.beside(x)).relu().mean((2, 3))))

    nets.register("halving", Halving)
    try:
        monkeypatch.setitem(datasets.DATASETS, "s10", DataFacts((2, 10, 10), 7, 45, 9, "10" * 8))
        forms = [replicas.form_of(Net(name="halving"), Data(name=f"s{side}")) for side in (8, 10, 16, 32)]
        assert forms == ["stacked", "sequential", "stacked", "sequential"]
    finally:
        del parts.NETS["halving"]


OTHERS = {
    "resnet18 of 3": (Net(name="resnet18", width=3), 16),
    "resnet50 of 2": (Net(name="resnet50", width=2), 16),
    "resnet8 without shortcuts": (helpers.narrow(3, shortcut="none"), 8),
    "conv4": (Net(name="conv4"), 8),
    "vgg11 of 2, biases": (Net(name="vgg11", width=2, bias=True), 16),
    "mobilenet of 2": (Net(name="mobilenet_v1", width=2), 16),
}


@pytest.mark.parametrize("name", OTHERS)
def test_bits_of_every_network_are_those_that_it_has_alone(name, sizes_of_images):
    net, side = OTHERS[name]
    described = Data(name=f"s{side}", augment="crop_flip")
    images = ours.synthetic(described, 9)

    def job(number):
        value = helpers.train(net, described, number, batch_size=20, epochs=1, lr=0.1 / (1 + number))
        mask = helpers.half_mask(net, described, number) if number % 2 else None
        return helpers.job(value, mask)

    alone = {number: outcome(helpers.run([job(number)], images), 0) for number in range(4)}
    for group in ([1, 0], [2, 3, 0, 1]):
        training = helpers.run([job(number) for number in group], images)
        for slot, number in enumerate(group):
            assert outcome(training, slot) == alone[number], f"replica {number} in slot {slot} of {group}"


@pytest.mark.parametrize("form", FORMS)
def test_evaluation_in_parts_is_that_of_the_whole(form):
    net, facts = helpers.narrow(4), DATA.facts
    states = [nets.fresh(net, DATA, number) for number in range(3)]
    trains = [helpers.train(net, DATA, number, precision="fp64") for number in range(3)]
    group = replicas.Group(trains, states, dataset(), torch.device("cpu"), form)
    pixels = torch.randint(256, (25, *facts.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(25) % 10
    source = Source(dataset(), pixels, labels, torch.float64, torch.device("cpu"))
    loss, accuracy = group.evaluate(source, batch=10)
    images = normalise(pixels, dataset(), torch.float64)
    for number, state in enumerate(states):
        theirs = helpers.plain(net, facts).double().eval()
        theirs.load_state_dict(state)
        with torch.no_grad():
            logits = theirs(images)
        expected = torch.nn.functional.cross_entropy(logits, labels)
        assert loss[number].item() == pytest.approx(expected.item(), rel=1e-12)
        assert accuracy[number].item() == (logits.argmax(1) == labels).sum().item() / 25
    assert not any(lane.gradient.any() for lane in group.lanes)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "precision, tolerance, kind, steps",
    [*(("fp64", 1e-9, kind, 15) for kind in KINDS), ("fp32", 5e-3, "sgd", 3)],
)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("net", ["lenet", "resnet8 of 5"])
def test_cuda_agrees_with_the_cpu(net, form, precision, tolerance, kind, steps):
    """Over 15 steps, whole and smaller batches are captured and replayed, and those after a new mask again."""
    group, more = [], helpers.half_mask(NETS[net], DATA, 7)
    for number in range(3):
        fields = {"batch_size": 64, "lr": 0.01, "precision": precision, "epochs": 5, **KINDS[kind]}
        value = helpers.train(NETS[net], DATA, number, **fields)
        mask = None if number == 1 else helpers.half_mask(NETS[net], DATA, number)
        group.append(helpers.job(value, mask, {"0ep", "1ep", "best_val"}))
    on_cpu, on_cuda = (Training(group, dataset(), device, form=form) for device in ("cpu", "cuda"))
    for training in (on_cpu, on_cuda):
        while training.iteration < steps:
            training.advance(steps)
            if training.iteration == 12:
                training.prune(1, more)
    assert all(len(lane._graphs) == (2 if steps > 3 else 0) for lane in on_cuda.group.lanes)
    for number, job in enumerate(group):
        first, second = on_cpu.group.state(number), on_cuda.group.state(number)
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, rtol=tolerance, atol=tolerance)
        kept_of = (job.mask or {}) | (more if steps > 12 and number == 1 else {})
        assert not any(second[name][~kept].any() for name, kept in kept_of.items())
        ours, theirs = on_cuda.progress[number], on_cpu.progress[number]
        assert ours.snapshots.keys() == theirs.snapshots.keys() >= {"0ep", "1ep"}
        assert helpers.equal(ours.snapshots["0ep"], theirs.snapshots["0ep"])
        assert ours.metrics[0]["val_loss"] == pytest.approx(theirs.metrics[0]["val_loss"], rel=tolerance)
