"""Planes, surfaces and paths: against closed forms, plain torch, and what trainings recorded."""

import re

import helpers
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import ours
from lthlab import landscape, layers, nets, parts, scores
from lthlab.landscape import Plane, Score
from lthlab.parts import Data, Net
from lthlab.scores import Scorer, images_of

DIGITS = helpers.DIGITS
LARGER = Data(name="cifar10", train_size=80)
NETS = {
    "lenet": (Net(name="lenet_300_100"), DIGITS),
    "conv2": (Net(name="conv2"), DIGITS),
    "resnet8": (helpers.narrow(), DIGITS),
    "resnet8-A": (helpers.narrow(shortcut="A"), DIGITS),
    "resnet8-none": (helpers.narrow(shortcut="none"), DIGITS),
    "resnet18": (Net(name="resnet18", width=4), LARGER),
    "vgg11": (Net(name="vgg11", width=4, bias=True), LARGER),
    "mobilenet": (Net(name="mobilenet_v1", width=4), LARGER),
}
every_net = pytest.mark.parametrize(("net", "dataset"), NETS.values(), ids=NETS)


class Own(nets.Network):
    """A network of one's own, with BatchNorm before the convolution: nothing to fold it into is known."""

    def __init__(self, net, shape, classes, replicas):
        super().__init__(replicas)
        self.bn = layers.BatchNorm2d(replicas, shape[0])
        self.conv = layers.Conv2d(replicas, shape[0], 6, 3, 2, "first", bias=True)
        self.fc = layers.Linear(replicas, 6, classes, "head", "he_fan_in")

    def forward(self, x):
        return self.fc(self.apart(F.relu(self.conv(self.bn(self.beside(x)))).mean((2, 3))))


def normal(seed, **shapes):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def scored_by(loss):
    """Score states by a function, one after the other."""
    return lambda make, places: [Score(float(loss(make(place))), 0.5) for place in places]


def trained_like(net, dataset, seed=0):
    """Draw a state with BatchNorm as if it had seen images, and a mask of half of it, which is applied."""
    state = nets.fresh(net, dataset, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
        elif tensor.dim() == 1 and not name.endswith("running_var"):
            tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    mask = helpers.half_mask(net, dataset, seed)
    return {name: tensor * mask[name] if name in mask else tensor for name, tensor in state.items()}, mask


def loaded_of(dataset):
    return helpers.load(dataset) if dataset.name == "digits" else ours.synthetic(dataset)


def probe(net, batchnorm="fixed", count=60, split="train", dataset=DIGITS, device="cpu"):
    loaded = loaded_of(dataset)
    return Scorer(net, dataset, loaded, *images_of(loaded, dataset, split, count), batchnorm, device)


def norms(tensors):
    return {name: tensor.double().flatten(1).norm(dim=1) for name, tensor in tensors.items()}


# --- directions and planes ------------------------------------------------------------------------------------


@every_net
def test_filters_of_a_random_plane_are_as_long_as_what_remains_of_them_and_orthogonal(net, dataset):
    state, mask = trained_like(net, dataset)
    plane = landscape.random_plane(state, mask, seed=3)
    names = [name for name in state if state[name].dim() > 1]
    expected = norms({name: state[name] for name in names})
    for direction in (plane.first, plane.second):
        assert list(direction) == names
        for name, found in norms(direction).items():
            torch.testing.assert_close(found, expected[name])
            if name in mask:
                assert not direction[name][~mask[name]].any()
    assert abs(landscape.dot(plane.first, plane.second)) < 1e-9 * landscape.dot(plane.first, plane.first)


def test_a_filter_that_is_pruned_whole_has_no_direction():
    state = normal(0, w=(4, 3, 3, 3), b=(4,))
    mask = {"w": torch.ones(4, 3, 3, 3, dtype=torch.bool)}
    mask["w"][1] = False
    state["w"][1] = 0
    found = landscape.direction(state, mask, seed=0)
    assert not found["w"][1].any() and found["w"].isfinite().all() and found["w"][0].any()


def test_a_direction_leaves_biases_and_batchnorm_alone_unless_asked():
    state, mask = trained_like(helpers.narrow(), DIGITS)
    whole = landscape.direction(state, mask, 0, parameters="all")
    weights = landscape.direction(state, mask, 0)
    assert all(torch.equal(whole[name], weights[name]) for name in weights)
    others = whole.keys() - weights.keys()
    assert {"bn1.weight", "bn1.bias", "fc.bias"} <= others
    assert not any(name.endswith(landscape.STATISTICS) for name in whole)
    torch.testing.assert_close(whole["bn1.bias"].norm(), state["bn1.bias"].double().norm())


def test_directions_are_drawn_from_counters_and_paired_between_masks():
    state = normal(0, w=(5, 7))
    mask = {"w": state["w"].abs() > 0.5}
    sparse, dense = landscape.direction(state, mask, 2), landscape.direction(state, None, 2)
    assert torch.equal(dense["w"].sign() * mask["w"], sparse["w"].sign())
    assert torch.equal(dense["w"], landscape.direction(state, None, 2)["w"])
    for other in ((3, 0), (2, 1)):
        assert not torch.equal(dense["w"], landscape.direction(state, None, *other)["w"])


def line_of(*places, axes=None, rest=0.0):
    """States at places of a plane in eight dimensions; `rest` is added across it."""
    axes = torch.eye(8, dtype=torch.float64)[:2] if axes is None else axes
    last = torch.eye(8, dtype=torch.float64)[7]
    return [{"w": (torch.tensor(place, dtype=torch.float64) @ axes + rest * last).view(2, 4)} for place in places]


def test_the_plane_of_a_path_is_found_again():
    random = torch.linalg.qr(torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0].T
    places = [(4.0, 0.5), (3.0, -1.0), (1.0, 1.0), (0.0, 0.0)]
    snapshots = line_of(*places, axes=random)
    plane = landscape.path_plane(snapshots, None)
    both = torch.stack([plane.first["w"].flatten(), plane.second["w"].flatten()])
    torch.testing.assert_close(both @ both.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(both @ random.T @ random, both)
    assert sum(plane.explained) == pytest.approx(1)
    matrix = np.array(places[:3])
    assert plane.explained == pytest.approx(np.linalg.svd(matrix)[1] ** 2 / (matrix**2).sum())
    for state, place in zip(snapshots, places, strict=True):
        found = plane.place(state)
        assert np.hypot(found.x, found.y) == pytest.approx(np.hypot(*place)) and found.residual < 1e-12


def test_what_lies_across_a_plane_is_the_residual():
    plane = landscape.path_plane(line_of((2.0, 0.0), (1.0, 1.0), (0.0, 0.0)), None)
    inside, outside = line_of((1.5, 0.5)), line_of((1.5, 0.5), rest=3.0)
    assert plane.place(outside[0])[:2] == pytest.approx(plane.place(inside[0])[:2])
    assert plane.place(outside[0]).residual == pytest.approx(3.0)


def test_least_squares_where_directions_are_not_orthonormal():
    first, second = ({"w": t} for t in torch.tensor([[[2.0, 0, 0]], [[1.0, 3, 0]]], dtype=torch.float64))
    plane = Plane({"w": torch.zeros(1, 3)}, first, second)
    found = plane.place({"w": torch.tensor([[2 * 0.5 + 1 * -2.0, 3 * -2.0, 5.0]])})
    assert found == pytest.approx((0.5, -2.0, 5.0))


def test_the_path_of_a_training_ends_at_the_origin_and_has_its_loss():
    net, dataset = helpers.narrow(), DIGITS
    value = helpers.train(net, dataset)
    mask = helpers.half_mask(net, dataset, 0)
    training = helpers.run([helpers.job(value, mask, ["0ep", "1ep", "2ep"])])
    progress = training.progress[0]
    snapshots = [progress.snapshots[step] for step in ("0ep", "1ep", "2ep")]
    plane = landscape.path_plane(snapshots, mask)
    loaded = helpers.load(dataset)
    fixed = probe(net, count=len(loaded.test_y), split="test")
    rows = landscape.path(plane, snapshots, fixed)
    assert (rows[-1]["x"], rows[-1]["y"], rows[-1]["residual"]) == (0, 0, 0)
    assert rows[-1]["loss"] == rows[-1]["plane_loss"]
    for row, metrics in zip(rows, progress.metrics, strict=True):
        assert row["loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)
        assert row["accuracy"] == metrics["test_accuracy"]
    assert helpers.equal(plane.at((0.0, 0.0)), snapshots[-1])
    for direction in (plane.first, plane.second):
        assert not any(direction[name][~kept].any() for name, kept in mask.items())
    assert landscape.dot(plane.first, plane.second) == pytest.approx(0, abs=1e-12)
    assert landscape.dot(plane.first, plane.first) == pytest.approx(1)


# --- surfaces -------------------------------------------------------------------------------------------------


def test_the_surface_of_a_quadratic_loss():
    """Of L = ½ θᵀAθ on θ = c + x·u + y·v it is a quadratic in x and y with known coefficients."""
    centre = normal(0, w=(3, 4))
    half = normal(1, a=(12, 12))["a"].double()
    matrix = half @ half.T
    plane = landscape.random_plane({"w": centre["w"].double()}, None, 0)
    c, u, v = (t["w"].flatten().double() for t in (centre, plane.first, plane.second))

    def loss(state):
        return 0.5 * state["w"].flatten() @ matrix @ state["w"].flatten()

    axes = landscape.square(2.0, 5)
    rows = landscape.surface(plane, axes, range(25), scored_by(loss))
    assert [(row["i"], row["j"]) for row in rows[:6]] == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (0, 1)]
    for row in rows:
        x, y = row["x"], row["y"]
        assert (x, y) == (-2 + row["i"], -2 + row["j"])
        expected = 0.5 * (c @ matrix @ c + x * x * u @ matrix @ u + y * y * v @ matrix @ v)
        expected += x * c @ matrix @ u + y * c @ matrix @ v + x * y * u @ matrix @ v
        assert row["loss"] == pytest.approx(float(expected), rel=1e-9)


def plain_torch(net, dataset):
    """Build a network with torch's own layers in the places of ours."""
    network = nets.build(net, dataset)
    for name, layer in list(network.layers()):
        parent, _, child = name.rpartition(".")
        bias = getattr(layer, "bias", None) is not None
        if isinstance(layer, layers.BatchNorm2d):
            made = torch.nn.BatchNorm2d(layer.channels, momentum=None)
        elif isinstance(layer, layers.Linear):
            made = torch.nn.Linear(*layer.shape[::-1])
            if layer.relu:
                made.register_forward_hook(lambda module, inputs, out: F.relu(out))
        else:
            inputs = layer.shape[1] * layer.groups
            made = torch.nn.Conv2d(
                inputs, *layer.shape[:1], layer.shape[2], layer.stride, layer.shape[2] // 2, 1, layer.groups, bias
            )
        setattr(network.get_submodule(parent), child, made)
    return network


def slow(net, dataset, state, images, labels, recompute):
    """Score a state in plain torch."""
    network, loaded = plain_torch(net, dataset), loaded_of(dataset)
    network.load_state_dict(state)
    x = (images - torch.tensor(loaded.mean).view(-1, 1, 1)) / torch.tensor(loaded.std).view(-1, 1, 1)
    if recompute:
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
        network.train()(x)
    logits = network.eval()(x)
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


def check_surface(net, dataset, batchnorm):
    state, mask = trained_like(net, dataset)
    before = {name: tensor.clone() for name, tensor in state.items()}
    plane = landscape.random_plane(state, mask, 0)
    images, labels = images_of(loaded_of(dataset), dataset, "train", 60)
    rows = landscape.surface(plane, landscape.square(0.5, 3), range(9), probe(net, batchnorm, dataset=dataset))
    with torch.no_grad():
        for row in rows:
            there = {
                name: tensor + row["x"] * plane.first[name].float() + row["y"] * plane.second[name].float()
                if name in plane.first
                else tensor.clone()
                for name, tensor in state.items()
            }
            loss, accuracy = slow(net, dataset, there, images, labels, batchnorm == "recompute")
            assert row["loss"] == pytest.approx(loss, rel=2e-4)
            assert abs(row["accuracy"] - accuracy) < 1.01 / 60
    assert helpers.equal(state, before)


@pytest.mark.parametrize("batchnorm", ["fixed", "recompute"])
@every_net
def test_surfaces_are_those_of_a_plain_loop(net, dataset, batchnorm):
    check_surface(net, dataset, batchnorm)


@pytest.mark.gpu
@pytest.mark.parametrize("batchnorm", ["fixed", "recompute"])
@every_net
def test_surfaces_on_a_gpu_are_those_on_the_cpu(net, dataset, batchnorm):
    state, mask = trained_like(net, dataset)
    found = []
    for device in ("cpu", "cuda"):
        there = {name: tensor.to(device) for name, tensor in state.items()}
        plane, axes = landscape.random_plane(there, mask, seed=3), landscape.square(0.5, 3)
        found.append(landscape.surface(plane, axes, range(9), probe(net, batchnorm, dataset=dataset, device=device)))
    for here, there in zip(*found, strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-3)


def test_surfaces_of_a_network_of_ones_own(monkeypatch):
    monkeypatch.setattr(nets, "_BUILDERS", dict(nets._BUILDERS))
    try:
        nets.register("of_landscapes", Own)
        for batchnorm in ("fixed", "recompute"):
            check_surface(Net(name="of_landscapes"), DIGITS, batchnorm)
    finally:
        parts.NETS.pop("of_landscapes", None)


def test_pruned_weights_are_zero_on_the_whole_surface():
    net = helpers.narrow()
    state, mask = trained_like(net, DIGITS)
    for plane in (
        landscape.random_plane(state, mask, 0),
        landscape.path_plane([nets.fresh(net, DIGITS, r) for r in (1, 2, 3)] + [state], mask),
    ):
        for place in ((0.3, -0.7), (-1.0, 1.0), (5.0, 2.0)):
            there = plane.at(place)
            assert not any(there[name][~kept].any() for name, kept in mask.items())
            assert not torch.equal(there["conv1.weight"], state["conv1.weight"])
            assert all(there[n] is t for n, t in state.items() if n not in plane.first)


@pytest.mark.parametrize("batchnorm", ["fixed", "recompute"])
def test_a_point_does_not_depend_on_those_beside_it(batchnorm, monkeypatch):
    net = helpers.narrow()
    state, mask = trained_like(net, DIGITS)
    plane, axes = landscape.random_plane(state, mask, 0), landscape.square(1.0, 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    several = probe(net, batchnorm)
    monkeypatch.undo()
    assert len(several.networks) == 3
    whole = landscape.surface(plane, axes, range(16), several)
    single = probe(net, batchnorm)
    far = [score.loss for score in single(plane.at, [(1e30, 1e30)])]
    assert not np.isfinite(far).all()
    assert [landscape.surface(plane, axes, [cell], single)[0] for cell in reversed(range(16))] == whole[::-1]


def test_statistics_of_images_in_parts_are_averaged(monkeypatch):
    net = helpers.narrow()
    state, _ = trained_like(net, DIGITS)
    whole = probe(net, "recompute", 60)
    monkeypatch.setattr(scores, "_NUMBERS", 25 * 64)
    parts = probe(net, "recompute", 60)
    assert [len(part) for part in parts.images] == [20, 20, 20] and len(whole.images) == 1
    parts(lambda s: s, [state])
    found = parts.networks[0].state(0)
    averages = []
    for images in parts.images:
        plain = helpers.plain(net, DIGITS.facts)
        plain.load_state_dict(state)
        plain.bn1.momentum = None
        plain.bn1.reset_running_stats()
        plain.train()(images)
        averages.append(plain.bn1.running_var)
    torch.testing.assert_close(found["bn1.running_var"], torch.stack(averages).mean(0))
    assert parts(lambda s: s, [state])[0].loss == pytest.approx(whole(lambda s: s, [state])[0].loss, rel=0.2)


def test_images_are_the_same_ones_and_not_in_the_order_of_classes():
    loaded = helpers.load()
    few, labels = images_of(loaded, DIGITS, "train", 40)
    more, _ = images_of(loaded, DIGITS, "train", 50)
    assert torch.equal(few, more[:40]) and len(labels.unique()) > 5
    rows = {image.numpy().tobytes() for image in loaded.train_x}
    assert {image.numpy().tobytes() for image in few} <= rows
    test, _ = images_of(loaded, DIGITS, "test", 30)
    assert {image.numpy().tobytes() for image in test} <= {image.numpy().tobytes() for image in loaded.test_x}


# --- bad input ------------------------------------------------------------------------------------------------


def test_axes():
    assert landscape.square(1.0, 3) == ([-1, 0, 1], [-1, 0, 1])
    x, y = landscape.around([landscape.Place(4, -2, 0), landscape.Place(0, 0, 0)], 5)
    assert (x[0], x[-1], y[0], y[-1]) == (-1, 5, -2.5, 0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: landscape.path_plane(line_of((1.0, 0.0), (0.0, 0.0)), None), "2 snapshots do not span a plane"),
        (lambda: landscape.path_plane(line_of((1.0, 1.0), (2.0, 2.0), (0.0, 0.0)), None), "3 snapshots lie on a line"),
        (lambda: landscape.path_plane(line_of(*[(1.0, 1.0)] * 4), None), "4 snapshots lie at one point"),
        (
            lambda: landscape.path_plane([*line_of((1.0, 1.0), (2.0, 0.0)), normal(0, w=(3, 4))], None),
            "snapshot 1 has layer 'w' of shape (2, 4): allowed is (3, 4)",
        ),
        (
            lambda: landscape.path_plane([*line_of((1.0, 1.0), (2.0, 0.0)), normal(0, v=(2, 4))], None),
            "snapshot 1 names a layer 'w'; allowed: v",
        ),
        (
            lambda: landscape.random_plane(normal(0, w=(2, 2)), {"w": torch.zeros(2, 2, dtype=torch.bool)}, 0),
            "the mask keeps none of 4 weights; allowed: some",
        ),
        (
            lambda: landscape.direction(normal(0, w=(2, 2)), {"w": torch.ones(2, 3, dtype=torch.bool)}, 0),
            "mask has layer 'w' of shape (2, 3): allowed is (2, 2)",
        ),
        (
            lambda: landscape.direction(normal(0, w=(2, 2)), {"v": torch.ones(2, 2, dtype=torch.bool)}, 0),
            "mask names a layer 'v'",
        ),
        (lambda: landscape.random_plane({"w": torch.zeros(2, 2)}, None, 0), "all weights that remain are zero"),
        (
            lambda: landscape.random_plane(normal(0, w=(2, 2)), {"w": torch.eye(2, dtype=torch.bool)}, 0),
            "2 weights are left, too few for two orthogonal directions; allowed: several in a filter",
        ),
        (lambda: landscape.direction(normal(0, w=(2, 2)), None, 0, 0, "biases"), "allowed: 'weights', 'all'"),
        (lambda: landscape.square(0.0, 5), "span of a plane: 0.0; allowed: numbers above 0"),
        (lambda: landscape.square(1.0, 1), "points along an axis: 1; allowed: 2 or more"),
        (lambda: probe(helpers.narrow(), "trained"), "batchnorm 'trained' of a landscape; allowed: fixed, recompute"),
        (lambda: probe(helpers.narrow(), "recompute", 1), "batchnorm 'recompute' with 1 image; allowed: 2 or more"),
        (lambda: probe(helpers.narrow(), count=500), "500 images of split 'train' of digits; allowed: 1 to 200"),
        (lambda: probe(helpers.narrow(), split="val"), "split 'val'; allowed: train, test"),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        make()
