"""Sharpness, eigenvalues and barriers: against closed forms, NumPy, and full Hessians by torch."""

import re

import helpers
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lthlab import curvature, landscape, nets
from lthlab.landscape import Score
from lthlab.scores import Scorer, images_of


def scored_by(loss, accuracy=lambda state: 0.5):
    """Score states by functions, one after the other."""
    return lambda make, places: [Score(float(loss(made)), float(accuracy(made))) for made in map(make, places)]


def vector(*numbers):
    return {"w": torch.tensor([numbers], dtype=torch.float64)}


def state_of(net, replicate=0):
    state = nets.fresh(net, helpers.DIGITS, replicate)
    generator = torch.Generator().manual_seed(replicate)
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return state


def probe(net, batchnorm="fixed", count=50, dtype=torch.float32):
    loaded = helpers.load()
    return Scorer(
        net, helpers.DIGITS, loaded, *images_of(loaded, helpers.DIGITS, "train", count), batchnorm, dtype=dtype
    )


# --- sharpness ------------------------------------------------------------------------------------------------


def test_sharpness_of_a_sphere_is_half_the_squared_distance():
    """Of L = a·|θ - c|² / 2 every direction of length |c| gives a·(r|c|)² / 2, both ways."""
    centre = vector(3.0, -4.0, 12.0)
    found = curvature.sharpness(
        centre, None, scored_by(lambda s: 0.5 * 2 * (s["w"] - centre["w"]).square().sum()), radius=0.5, directions=4
    )
    assert found.value == pytest.approx((0.5 * 13) ** 2)
    assert found.error == pytest.approx(0, abs=1e-12)
    assert [(row["direction"], row["sign"]) for row in found.rows] == [(d, s) for d in range(4) for s in (1, -1)]


def test_sharpness_of_a_slope_is_0_since_both_ways_are_gone():
    centre, slope = vector(3.0, -4.0, 12.0), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = curvature.sharpness(centre, None, scored_by(lambda s: s["w"].flatten() @ slope), directions=3)
    assert found.value == pytest.approx(0, abs=1e-12) and found.error == pytest.approx(0, abs=1e-12)
    assert max(abs(row["value"]) for row in found.rows) > 0.1


def test_the_error_of_the_sharpness_is_over_directions():
    centre, scale = vector(3.0, -4.0, 12.0), torch.tensor([1.0, 5.0, 0.0], dtype=torch.float64)
    found = curvature.sharpness(
        centre, None, scored_by(lambda s: ((s["w"] - centre["w"]).flatten().square() * scale).sum()), 0.3, 6
    )
    values = np.array([row["value"] for row in found.rows]).reshape(6, 2).mean(1)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / np.sqrt(6))
    one = curvature.sharpness(centre, None, scored_by(lambda s: s["w"].square().sum()), directions=1)
    assert one.error is None


def test_sharpness_has_no_scale_and_leaves_pruned_weights_alone():
    net = helpers.narrow()
    state, mask = state_of(net), helpers.half_mask(net, helpers.DIGITS, 0)
    state = {name: t * mask[name] if name in mask else t for name, t in state.items()}
    scaled = dict(state) | {"layer1.0.conv1.weight": state["layer1.0.conv1.weight"] * 8}
    scaled["layer1.0.bn1.running_mean"] = state["layer1.0.bn1.running_mean"] * 8
    scaled["layer1.0.bn1.running_var"] = state["layer1.0.bn1.running_var"] * 64 + 63e-5  # 1e-5 is added to either
    seen = []
    found, same = (curvature.sharpness(s, mask, probe(net), directions=2).value for s in (state, scaled))
    assert found == pytest.approx(same, rel=1e-3) and abs(found) > 1e-4

    def watched(make, places):
        seen.extend(map(make, places))
        return [Score(0.0, 0.0)] * len(places)

    curvature.sharpness(state, mask, watched, directions=2)
    assert len(seen) == 5
    assert not any(s[name][~kept].any() for s in seen for name, kept in mask.items())


# --- eigenvalues ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "eigenvalues",
    [np.linspace(-1, 5, 40), np.linspace(-9, 2, 40), np.linspace(-3, -1, 40), [2.0] * 5 + [1.0] * 35, [3.0]],
    ids=["ordinary", "largest magnitude below zero", "all below zero", "repeated", "one"],
)
def test_the_largest_eigenvalue_of_a_matrix(eigenvalues):
    n = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    start = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = curvature.top_eigenvalue(lambda v: matrix @ v, start, 1e-6)
    assert found.converged and found.value == pytest.approx(max(eigenvalues), abs=1e-8)
    assert found.error <= 1e-6 * abs(found.value)
    assert found.error == pytest.approx((matrix @ found.vector - found.value * found.vector).norm().item(), abs=1e-10)
    values = [row["value"] for row in found.rows]
    assert values == sorted(values) and len(values) < 60


def test_an_eigenvalue_that_is_not_found_says_so_and_its_error_bounds_it():
    matrix = torch.diag(torch.linspace(0.9, 1, 200, dtype=torch.float64))
    found = curvature.top_eigenvalue(lambda v: matrix @ v, torch.ones(200, dtype=torch.float64), 1e-9, 3)
    assert not found.converged and len(found.rows) == 3
    assert found.value < 1 and (np.abs(matrix.diagonal().numpy() - found.value) <= found.error).any()


def test_losses_that_are_not_finite_end_the_search():
    found = curvature.top_eigenvalue(lambda v: v * torch.nan, torch.ones(3))
    assert np.isnan(found.value) and not found.converged and len(found.rows) == 1


@pytest.mark.parametrize("sparse", [False, True])
def test_the_eigenvalue_of_a_network_is_that_of_its_whole_hessian(sparse):
    net = helpers.narrow(width=1)
    state = {n: t.double() if t.is_floating_point() else t for n, t in state_of(net).items()}
    mask = helpers.half_mask(net, helpers.DIGITS, 0) if sparse else None
    state = {name: t * mask[name] if name in (mask or {}) else t for name, t in state.items()}
    before = {name: tensor.clone() for name, tensor in state.items()}
    own = probe(net, dtype=torch.float64)
    product, start = curvature.hessian(own.losses(), state, mask)
    found = curvature.top_eigenvalue(product, start, 1e-6, 300)

    names = [name for name in state if state[name].dim() > 1]
    kept = {n: mask[n] if mask and n in mask else torch.ones_like(state[n], dtype=torch.bool) for n in names}
    network = nets.build(net, helpers.DIGITS).double().eval()

    def loss(flat):
        parts, at = {}, 0
        for name in names:
            size = int(kept[name].sum())
            parts[name] = torch.zeros_like(state[name]).masked_scatter(kept[name], flat[at : at + size])
            at += size
        logits = torch.func.functional_call(network, state | parts, (own.images[0],))
        return F.cross_entropy(logits, own.labels[0])

    flat = torch.cat([state[name][kept[name]] for name in names])
    whole = torch.autograd.functional.hessian(loss, flat).numpy()
    assert len(start) == len(whole)
    assert found.converged and found.value == pytest.approx(np.linalg.eigvalsh(whole)[-1], rel=1e-6)
    np.testing.assert_allclose(product(start).numpy(), whole @ start.numpy(), rtol=1e-7, atol=1e-9)
    assert helpers.equal(state, before)


def test_losses_in_parts_add_up(monkeypatch):
    from lthlab import scores

    net = helpers.LENET
    state, whole = state_of(net), probe(net)
    monkeypatch.setattr(scores, "_NUMBERS", 64 * 20)
    parts = probe(net)
    losses = parts.losses()
    assert len(losses) == 3 and len(whole.losses()) == 1
    expected = whole(lambda s: s, [state])[0].loss
    assert sum(loss(state).item() for loss in losses) == pytest.approx(expected, rel=1e-5)
    products = [curvature.hessian(p.losses(), state)[0] for p in (whole, parts)]
    start = curvature.hessian(losses, state)[1]
    torch.testing.assert_close(products[0](start), products[1](start), rtol=1e-3, atol=1e-4)


# --- barriers -------------------------------------------------------------------------------------------------


def test_the_barrier_of_a_double_well():
    """Of L = (w² - 1)² from -1 to 1 it is 1, at 0; of one well it is 0."""
    found = curvature.barrier(vector(-1.0), vector(1.0), scored_by(lambda s: (s["w"].square() - 1).square()), 5)
    assert found.loss == 1 and found.accuracy == 0
    assert [row["fraction"] for row in found.rows] == [0, 0.25, 0.5, 0.75, 1]
    assert [row["loss"] for row in found.rows] == pytest.approx([0, 0.75**2, 1, 0.75**2, 0])
    assert curvature.barrier(vector(-1.0), vector(2.0), scored_by(lambda s: s["w"].square())).loss == 0


def test_barriers_are_measured_from_the_line_between_the_ends():
    """Of L = w + h(w) with a bump h of height 2 at the middle; the accuracy has a dip of 0.25 there."""

    def bump(state):
        return float(state["w"].item() == 1)

    found = curvature.barrier(
        vector(0.0),
        vector(2.0),
        scored_by(lambda s: s["w"] + 2 * bump(s), lambda s: 0.4 + 0.1 * s["w"] - 0.25 * bump(s)),
        points=3,
    )
    assert found.loss == pytest.approx(2) and found.accuracy == pytest.approx(0.25)


def test_a_barrier_with_numbers_that_are_not_finite_is_not_a_number():
    found = curvature.barrier(vector(0.0), vector(2.0), scored_by(lambda s: torch.nan if s["w"] == 1 else s["w"]), 3)
    assert np.isnan(found.loss) and found.accuracy == 0


@pytest.mark.parametrize("batchnorm", ["fixed", "recompute"])
def test_the_way_between_two_networks_is_that_of_a_plain_loop(batchnorm):
    net = helpers.narrow()
    first, last = state_of(net, 0), state_of(net, 1)
    found = curvature.barrier(first, last, probe(net, batchnorm), 5)
    loaded = helpers.load()
    images, labels = images_of(loaded, helpers.DIGITS, "train", 50)
    x = (images - loaded.mean[0]) / loaded.std[0]
    network = helpers.plain(net, helpers.DIGITS.facts)
    for row in found.rows:
        f = row["fraction"]
        network.load_state_dict({n: ((1 - f) * t + f * last[n]).to(t.dtype) for n, t in first.items()})
        if batchnorm == "recompute":
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = None
                    module.reset_running_stats()
            network.train()(x)
        with torch.no_grad():
            assert row["loss"] == pytest.approx(F.cross_entropy(network.eval()(x), labels).item(), rel=1e-4)
    ends = probe(net, batchnorm)(lambda s: s, [first, last])
    assert [found.rows[i]["loss"] for i in (0, -1)] == [score.loss for score in ends]
    accuracies = [row["accuracy"] for row in found.rows]
    line = np.linspace(accuracies[0], accuracies[-1], 5)
    assert found.accuracy == pytest.approx(max(line - accuracies))


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda s: curvature.sharpness(vector(1.0), None, s, radius=0), "radius of the sharpness: 0; allowed"),
        (lambda s: curvature.sharpness(vector(1.0), None, s, directions=0), "directions of the sharpness: 0"),
        (lambda s: curvature.top_eigenvalue(lambda v: v, torch.ones(2), 0), "tolerance of the eigenvalue: 0; allowed"),
        (lambda s: curvature.top_eigenvalue(lambda v: v, torch.ones(2), 1, 0), "iterations of the eigenvalue: 0"),
        (lambda s: curvature.top_eigenvalue(lambda v: v, torch.zeros(2)), "the vector that the eigenvalue is sought"),
        (lambda s: curvature.barrier(vector(1.0), vector(2.0), s, 2), "points between two states: 2; allowed: 3"),
        (lambda s: curvature.barrier(vector(1.0), vector(2.0, 3.0), s), "last has layer 'w' of shape (1, 2): allowed"),
        (lambda s: curvature.barrier(vector(1.0), {"v": torch.ones(1)}, s), "last names a layer 'v'; allowed: w"),
        (
            lambda s: curvature.hessian([], vector(1.0), {"w": torch.zeros(1, 1, dtype=torch.bool)}),
            "the mask keeps none of 1 weights",
        ),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        make(scored_by(lambda state: 0.0))


def test_directions_of_sharpness_and_of_planes_are_the_same():
    state = vector(3.0, -4.0, 12.0)
    seen = []

    def watched(make, places):
        seen.extend(map(make, places))
        return [Score(0.0, 0.0)] * len(places)

    curvature.sharpness(state, None, watched, radius=1, directions=1, seed=5)
    torch.testing.assert_close(seen[1]["w"] - state["w"], landscape.direction(state, None, 5)["w"])
