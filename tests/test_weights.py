from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal

import helpers
import hypothesis.extra.numpy as arrays
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from lthlab import weights
from lthlab.weights import correlation_indicator


def normal(seed, **shapes):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_small_tensors_by_hand():
    """Of 5 and 4 weights, p = 0.5 takes 3 (2.5 half up) and 2; 2 and 1 of them are large in both."""
    a = {"x": torch.tensor([5.0, -4, 3, 2, 1]), "y": torch.tensor([[1.0, 2], [3, 4]])}
    b = {"x": torch.tensor([-9.0, 0, 8, 7, 1]), "y": torch.tensor([[9.0, 2], [-3, -8]])}
    r = correlation_indicator(a, b, 0.5)
    assert r.value == pytest.approx(3 / 5)
    assert r.chance == pytest.approx((9 / 5 + 4 / 4) / 5)
    assert r.z == pytest.approx((3 - 2.8) / np.sqrt(3 * 3 / 5 * 2 / 5 * 2 / 4 + 2 * 2 / 4 * 2 / 4 * 2 / 3))
    expected = pd.DataFrame(
        {
            "layer": ["x", "y"],
            "n": [5, 4],
            "k": [3, 2],
            "overlap": [2, 1],
            "value": [2 / 3, 1 / 2],
            "chance": [3 / 5, 1 / 2],
        }
    )
    pd.testing.assert_frame_equal(r.layers, expected)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.29, 0.5, 1.0])
def test_equal_weights_give_1(p):
    theta = normal(0, x=(16, 3, 3, 3), y=(10, 61), z=(7,))
    mask = {n: w.abs() > 0.8 for n, w in theta.items()}
    assert correlation_indicator(theta, {n: -w for n, w in theta.items()}, p).value == 1
    if p > 0.001:
        assert correlation_indicator(theta, theta, p, mask).value == 1


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5])
def test_independent_weights_give_chance(p):
    z = []
    for seed in range(40):
        r = correlation_indicator(normal(2 * seed, x=4000, y=900), normal(2 * seed + 1, x=4000, y=900), p)
        z.append(r.z)
    assert r.chance == pytest.approx(p, rel=1e-9)
    assert abs(np.mean(z)) < 4 / np.sqrt(40)
    assert 0.6 < np.std(z) < 1.5


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5])
def test_z_is_that_of_the_hypergeometric_distribution(p):
    """Layers of 40, 7 and 301 weights left: mean and variance of the sum of overlaps are those of SciPy."""
    sizes = {"x": 40, "y": 7, "z": 301}
    mask = {n: torch.arange(size + 9) < size for n, size in sizes.items()}
    a, b = (normal(seed, **{n: size + 9 for n, size in sizes.items()}) for seed in (0, 1))
    r = correlation_indicator(a, b, p, mask)
    large = r.layers[r.layers["k"] > 0]
    moments = [scipy.stats.hypergeom.stats(row.n, row.k, row.k, moments="mv") for row in large.itertuples()]
    mean, variance = np.sum(moments, axis=0)
    assert r.chance == pytest.approx(mean / large["k"].sum())
    assert r.z == pytest.approx((large["overlap"].sum() - mean) / np.sqrt(variance))


def test_overlaps_under_chance_are_drawn_from_the_hypergeometric_distribution():
    """1000 random orders of the weights of two small layers, against the law of the sum of two overlaps."""
    theta, random = normal(0, x=30, y=11), np.random.default_rng(0)
    orders = [{n: w[torch.from_numpy(random.permutation(len(w)))] for n, w in theta.items()} for _ in range(1000)]
    found = [correlation_indicator(theta, order, 0.3) for order in orders]
    assert np.mean([r.value for r in found]) == pytest.approx(found[0].chance, abs=4 * 0.11 / np.sqrt(1000))
    z = np.array([r.z for r in found])
    assert abs(z.mean()) < 4 / np.sqrt(1000) and z.std() == pytest.approx(1, abs=0.08)
    laws = [scipy.stats.hypergeom(n, k, k).pmf(np.arange(10)) for n, k in ((30, 9), (11, 3))]
    expected = np.convolve(*laws)
    overlaps = [round(r.value * 12) for r in found]
    seen = np.bincount(overlaps, minlength=len(expected)) / 1000
    assert np.abs(seen - expected).max() < 0.05


@pytest.mark.parametrize("p", [1e-4, 0.1, 0.77, 1.0])
def test_layers_are_those_of_sorting_with_numpy(p):
    shapes = {"conv": (16, 3, 3, 3), "fc": (10, 640), "small": (3, 5)}
    theta = normal(0, **shapes)
    theta_prime = {n: w + noise for (n, w), noise in zip(theta.items(), normal(1, **shapes).values(), strict=True)}
    r = correlation_indicator(theta, theta_prime, p)
    for row in r.layers.itertuples():
        k = int(np.floor(p * theta[row.layer].numel() + 0.5))
        tops = [np.argsort(-np.abs(w[row.layer].numpy().ravel()))[:k] for w in (theta, theta_prime)]
        assert (row.k, row.overlap) == (k, len(np.intersect1d(*tops)))


def test_anticorrelated_weights_give_less_than_chance():
    theta = normal(0, x=1000)
    r = correlation_indicator(theta, {"x": 1 / theta["x"]}, 0.2)
    assert r.value == 0 and r.chance == pytest.approx(0.2) and r.z < -7


def test_everything_is_large_at_p_1():
    r = correlation_indicator(normal(0, x=50), normal(1, x=50), 1)
    assert r.value == r.chance == 1 and np.isnan(r.z)


def test_only_remaining_weights_enter():
    theta, other = normal(0, x=(30, 40), y=(200,)), normal(1, x=(30, 40), y=(200,))
    mask = {n: w.abs() > 0.5 for n, w in normal(2, x=(30, 40), y=(200,)).items()}
    cut = correlation_indicator(
        {n: w[mask[n]] for n, w in theta.items()}, {n: w[mask[n]] for n, w in other.items()}, 0.3
    )
    masked = {n: w * mask[n] for n, w in theta.items()}
    loud = {n: torch.where(mask[n], w, 1e9) for n, w in other.items()}
    for r in (
        correlation_indicator(theta, other, 0.3, mask),
        correlation_indicator(masked, loud, 0.3, (mask, {n: m.clone() for n, m in mask.items()})),
    ):
        assert (r.value, r.chance, r.z) == (cut.value, cut.chance, cut.z)
        pd.testing.assert_frame_equal(r.layers, cut.layers)
    assert cut.layers["n"].tolist() == [int(m.sum()) for m in mask.values()]
    assert correlation_indicator(theta, other, 0.3).value != cut.value


def test_layers_without_weights_are_dropped_and_those_without_large_ones_count_nothing():
    theta = normal(0, empty=5, tiny=2, x=100)
    mask = {n: torch.full_like(w, n != "empty", dtype=torch.bool) for n, w in theta.items()}
    r = correlation_indicator(theta, normal(1, empty=5, tiny=2, x=100), 0.1, mask)
    assert r.layers["layer"].tolist() == ["tiny", "x"] and r.dropped == ("empty",)
    assert r.layers["k"].tolist() == [0, 10]
    assert r.layers.loc[0, ["value", "chance"]].isna().all()
    assert r.value == r.layers.loc[1, "value"] and r.chance == pytest.approx(0.1)


def test_one_weight_left_is_large_in_both_or_counts_nothing():
    mask = {"x": torch.arange(4) == 2}
    r = correlation_indicator(WEIGHTS, {"x": -WEIGHTS["x"]}, 0.5, mask)
    assert (r.value, r.chance, r.dropped) == (1, 1, ()) and np.isnan(r.z)
    with pytest.raises(ValueError) as error:
        correlation_indicator(WEIGHTS, WEIGHTS, 0.49, mask)
    assert str(error.value) == "no weight is large at p = 0.49: the largest layer has 1 weight left"


def test_what_is_pruned_may_be_anything():
    broken = {"x": torch.tensor([0.0, torch.nan, torch.inf, 3.0])}
    mask = {"x": torch.tensor([True, False, False, True])}
    assert correlation_indicator(WEIGHTS, broken, 0.5, mask).value == 1


def test_rounding_is_exact_where_floats_are_not():
    """0.29 * 50 is 14.499999999999998 in floats."""
    theta = normal(0, x=50)
    assert correlation_indicator(theta, theta, 0.29).layers["k"].tolist() == [15]


WEIGHTS = {"x": torch.arange(4.0)}
HALF = {"x": torch.arange(4) < 2}


@pytest.mark.parametrize(
    ("theta_prime", "p", "mask", "message"),
    [
        (WEIGHTS, 0, None, "p of the correlation indicator is 0: allowed is 0 < p <= 1"),
        (WEIGHTS, 1.5, None, "p of the correlation indicator is 1.5: allowed is 0 < p <= 1"),
        (WEIGHTS, float("nan"), None, "p of the correlation indicator is nan: allowed is 0 < p <= 1"),
        (WEIGHTS, 0.1, None, "no weight is large at p = 0.1: the largest layer has 4 weights left"),
        (WEIGHTS, 0.5, {"x": torch.ones(4) < 0}, "no weight is large at p = 0.5: no weight is left"),
        (
            WEIGHTS,
            0.5,
            (HALF, {"x": ~HALF["x"]}),
            "the two masks differ in 1 of all positions: allowed are equal masks",
        ),
        ({"x": torch.ones(3)}, 0.5, None, "theta_prime has layer 'x' of shape (3,): allowed is (4,)"),
        ({"y": torch.ones(4)}, 0.5, None, "theta_prime names a layer 'y'; allowed: x"),
        (WEIGHTS, 0.5, {"x": torch.ones(3) > 0}, "mask has layer 'x' of shape (3,): allowed is (4,)"),
        (
            WEIGHTS,
            0.5,
            (HALF, {"x": torch.ones(3) > 0}),
            "mask has layer 'x' of shape (3,): allowed is (4,)",
        ),
        (WEIGHTS, 0.5, {"X": HALF["x"]}, "mask names a layer 'X'; allowed: x; did you mean 'x'?"),
        (
            {"x": torch.full((4,), torch.nan)},
            0.5,
            None,
            "theta_prime: weights of layer 'x' hold NaN, which has no rank",
        ),
        (
            {"x": WEIGHTS["x"].half()},
            0.5,
            None,
            "theta_prime: weights of layer 'x' are torch.float16: allowed are float32 and float64",
        ),
        (WEIGHTS, 0.5, {"x": torch.tensor([0, 1, 1, 0])}, "mask has layer 'x' of torch.int64: allowed is torch.bool"),
        ({}, 0.5, None, "theta_prime lacks the layers x"),
    ],
)
def test_errors(theta_prime, p, mask, message):
    with pytest.raises((TypeError, ValueError)) as error:
        correlation_indicator(WEIGHTS, theta_prime, p, mask)
    assert str(error.value) == message


def test_errors_name_the_network():
    with pytest.raises(ValueError, match=r"^theta: weights of layer 'x' hold NaN, which has no rank$"):
        correlation_indicator({"x": WEIGHTS["x"] / 0}, WEIGHTS, 0.5)


def reference(a, b, p, mask):
    """R_p and its chance level from sets of indices."""
    overlap = large = chance = 0
    for name in a:
        left = [i for i, kept in enumerate(mask[name].ravel()) if kept]
        k = int((Decimal(repr(p)) * len(left)).to_integral_value(ROUND_HALF_UP))
        tops = [set(sorted(left, key=lambda i, w=w: (abs(w[name].ravel()[i]), i), reverse=True)[:k]) for w in (a, b)]
        overlap += len(tops[0] & tops[1])
        large += k
        chance += k**2 / len(left) if left else 0
    return (overlap / large, chance / large) if large else None


@given(st.data())
def test_agrees_with_sets_of_indices(data):
    shapes = data.draw(st.lists(arrays.array_shapes(max_dims=2, max_side=6), min_size=1, max_size=3))
    values = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0]), st.floats(-9, 9, width=32))
    a, b = (
        {f"w{i}": data.draw(arrays.arrays(np.float32, s, elements=values)) for i, s in enumerate(shapes)}
        for _ in range(2)
    )
    mask = {n: data.draw(arrays.arrays(bool, w.shape)) for n, w in a.items()}
    p = data.draw(st.one_of(st.sampled_from([0.1, 0.25, 0.5, 1.0]), st.floats(0.001, 1)))
    expected = reference(a, b, p, mask)
    arguments = [{n: torch.from_numpy(w) for n, w in layers.items()} for layers in (a, b)]
    tensors = {n: torch.from_numpy(m) for n, m in mask.items()}
    if expected is None:
        with pytest.raises(ValueError, match="no weight is large"):
            correlation_indicator(*arguments, p, tensors)
    else:
        r = correlation_indicator(*arguments, p, tensors)
        assert (r.value, r.chance) == pytest.approx(expected, rel=1e-12)
        assert r.value == correlation_indicator(*reversed(arguments), p, tensors).value


# --- spread ---------------------------------------------------------------------------------------------------


def test_spread_by_hand():
    theta = {"x": torch.tensor([[1.0, -1.0], [9.0, 3.0]]), "y": torch.tensor([2.0, 9.0]), "z": torch.ones(2)}
    mask = {"x": torch.tensor([[True, True], [False, True]]), "y": torch.tensor([True, False]), "z": torch.ones(2) < 0}
    found = weights.spread(theta, mask)
    expected = pd.DataFrame(
        {
            "layer": ["x", "y", "z"],
            "number": [1, 2, 3],
            "n": [3, 1, 0],
            "mean": [1.0, 2.0, np.nan],
            "value": [np.sqrt(8 / 3), 0.0, np.nan],
        }
    )
    pd.testing.assert_frame_equal(found, expected)
    assert weights.pooled(found) == pytest.approx(np.std([1, -1, 3, 2]))
    assert np.isnan(weights.pooled(found[found["n"] == 0]))
    with pytest.raises(ValueError, match="mask names a layer 'w'; allowed: x, y, z"):
        weights.spread(theta, {**mask, "w": torch.ones(1) > 0})


@given(st.data())
def test_spread_of_all_layers_is_that_of_all_weights(data):
    shapes = data.draw(st.lists(arrays.array_shapes(max_dims=3, max_side=5), min_size=1, max_size=4))
    values = [data.draw(arrays.arrays(np.float32, shape, elements=st.floats(-99, 99, width=32))) for shape in shapes]
    found = weights.spread({f"w{i}": torch.from_numpy(each) for i, each in enumerate(values)})
    assert found["value"].tolist() == pytest.approx([each.std(dtype=float) for each in values], abs=1e-9)
    flat = np.concatenate([each.ravel() for each in values])
    assert weights.pooled(found) == pytest.approx(flat.std(dtype=float), abs=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_weights_without_gradient_spread_as_equation_5_says(nesterov):
    """The first layer sees black images; from exact steps of decay and momentum its weights do not differ at all."""
    lr, decay, momentum, epochs = 0.01, 2e-3, 0.9, 12
    recipe = {"epochs": epochs, "lr": lr, "weight_decay": decay, "momentum": momentum, "nesterov": nesterov}
    value = helpers.train(lr_schedule="step", milestones=("8ep",), **recipe)
    seen = helpers.load()
    black = replace(seen, train_x=torch.zeros_like(seen.train_x), mean=(0.0,))
    keep = [f"{epoch}ep" for epoch in range(epochs + 1)]
    snapshots = helpers.run([helpers.job(value, keep=keep)], black).progress[0].snapshots
    found = [weights.spread({"fc1": snapshots[step]["fc1.weight"]})["value"].item() for step in keep]
    w = snapshots["0ep"]["fc1.weight"].double()
    velocity, exact = torch.zeros_like(w), [w.std(correction=0).item()]
    for step in range(4 * epochs):
        velocity = momentum * velocity + decay * w
        rate = value.recipe.rate(step, 4)
        w = w - rate * (decay * w + momentum * velocity if nesterov else velocity)
        if step % 4 == 3:
            exact.append(w.std(correction=0).item())
    assert found == pytest.approx(exact, rel=1e-6)
    change = [after / before - 1 for before, after in zip(found, found[1:], strict=False)]
    predicted = [weights.shrinkage(value.recipe, 4 * epoch, 4 * epoch + 4, 4) - 1 for epoch in range(epochs)]
    assert predicted == pytest.approx([-4 * lr * decay / (1 - momentum)] * 8 + [-4 * lr * decay] * 4)
    settled = range(6, epochs)  # 24 steps after the start, m^24 = 0.08; the change of the rate disturbs nothing
    assert [change[i] for i in settled] == pytest.approx([predicted[i] for i in settled], rel=0.08)
    assert abs(change[0]) < 0.5 * abs(predicted[0]), "the velocity has to build up first"
    lag = lr * decay * momentum ** (2 if nesterov else 1) / (1 - momentum) ** 2
    assert found[8] / found[0] - np.prod([1 + each for each in predicted[:8]]) == pytest.approx(lag, rel=0.06)


def test_what_equation_5_predicts():
    recipe = helpers.recipe(weight_decay=0.01, momentum=0.5, lr=0.1, warmup="2it")
    assert weights.shrinkage(recipe, 0, 3, 4) == pytest.approx(1 - (0.05 + 0.1 + 0.1) * 0.01 / 0.5)
    assert weights.shrinkage(recipe, 3, 3, 4) == 1
    assert weights.shrinkage(helpers.recipe(weight_decay=0.0), 0, 4, 4) == 1
    assert weights.shrinkage(helpers.recipe(optimizer="adam"), 0, 4, 4) is None
    assert weights.shrinkage(helpers.recipe(optimizer="adamw"), 0, 4, 4) is None
