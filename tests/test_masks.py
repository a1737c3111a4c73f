import itertools
from contextlib import contextmanager

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from lthlab import masks

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 3e-39, 1e-38, 3.4e38, float("inf"), -float("inf")]

WAYS = {
    "one piece": {"_pieces": lambda layers: [torch.cat([layer.flatten() for layer in layers])]},
    "pieces": {"_PIECE": 7},
}


@contextmanager
def counting(way):
    """Count in one piece, as on a GPU, or in pieces of 7 weights."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WAYS[way].items():
            patch.setattr(masks, name, value)
        yield


@st.composite
def networks(draw, dtypes=(np.float32, np.float64)):
    """Weights with ties, zeros, infinities and denormals, in one to four layers, some of them empty."""
    dtype = draw(st.sampled_from(dtypes))
    free = st.floats(width=32, allow_nan=False)
    values = st.one_of(st.sampled_from(SPECIAL), free, draw(st.sampled_from([st.just(0.25), free])))
    shapes = draw(st.lists(arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5), min_size=1, max_size=4))
    if not sum(np.prod(shape) for shape in shapes):
        shapes[0] = (3,)
    layers = [draw(arrays.arrays(dtype, shape, elements=values)) for shape in shapes]
    return {f"layer{i}.weight": torch.from_numpy(layer) for i, layer in enumerate(layers)}


def reference(layers, count, previous=None):
    """Sort (already pruned, magnitude, position) with NumPy and let the first `count` go."""
    flat = np.concatenate([np.abs(w.numpy()).ravel() for w in layers.values()]).astype(np.float64)
    alive = np.ones(len(flat), bool) if previous is None else flatten(previous)
    keep = np.ones(len(flat), bool)
    keep[np.lexsort((flat, alive))[:count]] = False
    return keep


def flatten(mask):
    return np.concatenate([layer.numpy().ravel() for layer in mask.values()])


def counts(draw, low, high):
    return draw(st.one_of(st.sampled_from([low, high]), st.integers(low, high)))


@pytest.mark.parametrize("way", WAYS)
@given(networks(), st.data())
def test_exactly_the_asked_number_goes_the_smallest_first(way, weights, data):
    size = sum(w.numel() for w in weights.values())
    count = counts(data.draw, 0, size)
    with counting(way):
        mask = masks.magnitude(weights, count)
    assert size - masks.kept(mask) == count
    assert np.array_equal(flatten(mask), reference(weights, count))
    assert [(n, m.shape, m.dtype) for n, m in mask.items()] == [(n, w.shape, torch.bool) for n, w in weights.items()]


@pytest.mark.parametrize("way", WAYS)
@given(networks(), st.data())
def test_what_was_pruned_stays_pruned_and_counts_first(way, weights, data):
    size = sum(w.numel() for w in weights.values())
    scrambled = {
        n: data.draw(arrays.arrays(w.numpy().dtype, w.shape, elements=st.floats(-9, 9, width=32)))
        for n, w in weights.items()
    }
    first = counts(data.draw, 0, size)
    previous = masks.magnitude({n: torch.from_numpy(w) for n, w in scrambled.items()}, first)
    count = counts(data.draw, first, size)
    with counting(way):
        mask = masks.magnitude(weights, count, previous)
    assert size - masks.kept(mask) == count
    assert masks.nested(mask, previous)
    assert np.array_equal(flatten(mask), reference(weights, count, previous))


@pytest.mark.parametrize("way", WAYS)
@given(networks(), st.data())
def test_layers_are_pruned_each_by_its_own_count(way, weights, data):
    first = {n: counts(data.draw, 0, w.numel()) for n, w in weights.items()}
    previous = masks.per_layer({n: -w.flip(0) for n, w in weights.items()}, first)
    assert masks.pruned_per_layer(previous) == first
    count = {n: counts(data.draw, first[n], w.numel()) for n, w in weights.items()}
    with counting(way):
        mask = masks.per_layer(weights, dict(reversed(count.items())), previous)
    assert masks.pruned_per_layer(mask) == count and list(mask) == list(weights)
    assert masks.nested(mask, previous)
    for name in weights:
        one = {name: weights[name]}
        assert np.array_equal(mask[name].numpy().ravel(), reference(one, count[name], {name: previous[name]}))


@given(networks(), st.data())
def test_every_layer_keeps_its_floor_and_as_many_go_in_all(weights, data):
    """One after the other, smallest first, each goes unless its layer has only its floor left."""
    scrambled = {n: w.flip(0) for n, w in weights.items()}
    size = sum(w.numel() for w in weights.values())
    previous = data.draw(st.sampled_from([None, masks.magnitude(scrambled, size // 3)]))
    has = {n: int(previous[n].sum()) if previous else w.numel() for n, w in weights.items()}
    floor = {n: data.draw(st.integers(0, has[n])) for n in weights}
    count = counts(data.draw, size - sum(has.values()), size - sum(floor.values()))
    mask = masks.magnitude(weights, count, previous, floor)
    names = np.repeat(list(weights), [w.numel() for w in weights.values()])
    keep = np.ones(size, bool) if previous is None else flatten(previous).copy()
    ranks = np.concatenate([np.abs(w.numpy()).ravel() for w in weights.values()]).astype(np.float64)
    left = count - (size - keep.sum())
    for at in np.argsort(ranks, kind="stable"):
        if keep[at] and left and (keep & (names == names[at])).sum() > floor[names[at]]:
            keep[at] = False
            left -= 1
    assert np.array_equal(flatten(mask), keep)
    assert size - masks.kept(mask) == count and (previous is None or masks.nested(mask, previous))
    assert (
        masks.hamming(
            masks.magnitude(weights, count, previous, dict.fromkeys(weights, 0)),
            masks.magnitude(weights, count, previous),
        )
        == 0
    )


def test_floors_that_cannot_be_kept_are_refused():
    weights = {"a": torch.arange(4.0), "b": torch.arange(6.0)}
    previous = masks.per_layer(weights, {"a": 3, "b": 1})
    with pytest.raises(ValueError, match=r"to prune in all layers together: 8; allowed with these floors is 0 … 7"):
        masks.magnitude(weights, 8, None, {"a": 1, "b": 2})
    with pytest.raises(ValueError, match=r"to prune in all layers together: 3; allowed with these floors is 4 … 7"):
        masks.magnitude(weights, 3, previous, {"a": 1, "b": 2})
    with pytest.raises(ValueError, match=r"floor of layer 'a' is 2; allowed: 0 to 1, the weights that it has"):
        masks.magnitude(weights, 5, previous, {"a": 2, "b": 2})
    with pytest.raises(ValueError, match=r"floor of layer 'b' is 7; allowed: 0 to 6"):
        masks.magnitude(weights, 5, None, {"a": 2, "b": 7})
    with pytest.raises(ValueError, match=r"floor names a layer 'c'; allowed: a, b"):
        masks.magnitude(weights, 5, None, {"a": 2, "b": 2, "c": 1})


@given(networks(dtypes=(np.float32,)), st.data())
def test_type_and_signs_do_not_matter(weights, data):
    count = counts(data.draw, 0, sum(w.numel() for w in weights.values()))
    mask = masks.magnitude(weights, count)
    for same in ({n: -w for n, w in weights.items()}, {n: w.double() for n, w in weights.items()}):
        assert masks.hamming(masks.magnitude(same, count), mask) == 0


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


EDGES = {
    torch.float32: [0.0, 1e-45, 1.1754942e-38, 2**-126, 1.0, 3.4028235e38, float("inf")],
    torch.float64: [0.0, 5e-324, 2.225073858507201e-308, 2**-1022, 1.0, 1.7976931348623157e308, float("inf")],
}


@pytest.mark.parametrize("dtype", EDGES)
def test_edges_of_the_range_whatever_was_pruned(dtype):
    w = {"w": -torch.tensor(EDGES[dtype], dtype=dtype).flip(0)}
    for alive in itertools.product([True, False], repeat=len(EDGES[dtype])):
        previous = {"w": torch.tensor(alive)}
        for count in range(alive.count(False), len(alive) + 1):
            mask = masks.magnitude(w, count, previous)
            assert np.array_equal(flatten(mask), reference(w, count, previous))


KINDS = ["normal", "rounded", "zeros", "equal", "close"]


def drawn(kind, size, dtype):
    """Weights of which none, some, most, all or only the last digits are equal."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(size, dtype=dtype, generator=generator)
    return {
        "normal": w,
        "rounded": w.bfloat16().to(dtype),
        "zeros": w * (torch.rand(size, generator=generator) < 0.2),
        "equal": torch.full_like(w, -0.3),
        "close": 1 + w * 1e-4,
    }[kind]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_many_weights_with_few_or_many_ties(dtype, kind):
    w = drawn(kind, 100_000, dtype)
    before = w.clone()
    for count in (1, 20_000, 79_999, 80_123, 99_999):
        mask = masks.magnitude({"w": w}, count)
        assert np.array_equal(mask["w"].numpy(), reference({"w": w}, count))
    assert torch.equal(w, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(32767, 2), (32768,), (32769, 0, 3), (5, 65536, 32763), (32768, 1, 32768)])
def test_borders_of_pieces_with_one_thread_and_two(kind, sizes, threads):
    w = drawn(kind, sum(sizes), torch.float32)
    weights = {f"{i}": layer for i, layer in enumerate(w.split(sizes))}
    previous = masks.magnitude(weights, sum(sizes) // 3)
    before = {name: layer.clone() for name, layer in previous.items()}
    for count in (sum(sizes) // 3, sum(sizes) // 2, sum(sizes) - 1):
        mask = masks.magnitude(weights, count, previous)
        assert np.array_equal(flatten(mask), reference(weights, count, previous))
    assert all(previous[name].equal(layer) for name, layer in before.items())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_a_gpu_are_those_of_the_cpu(dtype, kind):
    sizes = (70_000, 1, 29_999, 100_000)
    weights = {f"{i}": layer for i, layer in enumerate(drawn(kind, sum(sizes), dtype).split(sizes))}
    there = {name: layer.cuda() for name, layer in weights.items()}
    previous = masks.magnitude(weights, 50_000)
    counts = {name: max(gone, len(weights[name]) // 2) for name, gone in masks.pruned_per_layer(previous).items()}
    for old in (None, previous, {name: layer.cuda() for name, layer in previous.items()}):
        here = None if old is None else previous
        for count in (50_000, 123_456, 199_999):
            mask = masks.magnitude(there, count, old)
            assert all(layer.is_cuda for layer in mask.values())
            assert masks.hamming({n: m.cpu() for n, m in mask.items()}, masks.magnitude(weights, count, here)) == 0
        mask = masks.per_layer(there, counts, old)
        assert masks.hamming({n: m.cpu() for n, m in mask.items()}, masks.per_layer(weights, counts, here)) == 0


@pytest.mark.parametrize("place", [0, 32768, 99_999])
@pytest.mark.parametrize("nan", [float("nan"), -float("nan")])
def test_nan_is_found_anywhere(place, nan):
    weights = {"a": torch.full((9,), float("inf")), "empty": torch.ones(0), "b": torch.randn(100_000)}
    weights["b"][place] = nan
    with pytest.raises(ValueError, match="weights of layer 'b' hold NaN, which has no rank"):
        masks.magnitude(weights, 3)


def test_iterative_and_one_shot_masks_keep_the_same_number():
    generator = torch.Generator().manual_seed(0)
    mask, size = None, 1000
    for level in range(1, 31):
        weights = {n: torch.randn(s, generator=generator) for n, s in (("a", (20, 30)), ("b", (400,)))}
        weights = weights if mask is None else {n: w * mask[n] for n, w in weights.items()}
        count = round((1 - 0.8**level) * size)
        mask = masks.magnitude(weights, count, mask)
        assert masks.kept(mask) == masks.kept(masks.magnitude(weights, count)) == size - count
        assert masks.kept(mask) == size - count


def test_noncontiguous_weights_are_ranked_by_position():
    w = torch.arange(12.0).view(3, 4).t()
    assert masks.magnitude({"w": w}, 5)["w"].equal(w >= 5)


WEIGHTS = {"conv1.weight": torch.ones(2, 3), "fc.weight": torch.ones(4)}
PREVIOUS = {"conv1.weight": torch.tensor([[True] * 3, [False] * 3]), "fc.weight": torch.ones(4) > 0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: masks.magnitude(WEIGHTS, 11), "to prune in all layers together: 11; allowed is 0 … 10"),
        (lambda: masks.magnitude(WEIGHTS, -1), "to prune in all layers together: -1; allowed is 0 … 10"),
        (
            lambda: masks.magnitude(WEIGHTS, 2, PREVIOUS),
            "to prune in all layers together: 2; allowed is 3 … 10 (3 are pruned already)",
        ),
        (
            lambda: masks.per_layer(WEIGHTS, {"conv1.weight": 2, "fc.weight": 1}, PREVIOUS),
            "to prune in layer 'conv1.weight': 2; allowed is 3 … 6 (3 are pruned already)",
        ),
        (
            lambda: masks.per_layer(WEIGHTS, {"conv1.weight": 2, "fc.weigth": 1}),
            "pruned names a layer 'fc.weigth'; allowed: conv1.weight, fc.weight; did you mean 'fc.weight'?",
        ),
        (lambda: masks.per_layer(WEIGHTS, {"fc.weight": 1}), "pruned lacks the layers conv1.weight"),
        (
            lambda: masks.magnitude(WEIGHTS, 5, {**PREVIOUS, "fc.weight": torch.ones(2, 2) > 0}),
            "previous has layer 'fc.weight' of shape (2, 2): allowed is (4,)",
        ),
        (
            lambda: masks.magnitude(WEIGHTS, 5, {"fc.weight": PREVIOUS["fc.weight"]}),
            "previous lacks the layers conv1.weight",
        ),
        (
            lambda: masks.magnitude({**WEIGHTS, "fc.weight": torch.tensor([1, float("nan")])}, 1),
            "weights of layer 'fc.weight' hold NaN, which has no rank",
        ),
        (
            lambda: masks.permuted(PREVIOUS, "layers", 0),
            "scope of a permutation is 'layers': allowed are 'layer' and 'global'",
        ),
        (
            lambda: masks.hamming(PREVIOUS, {"fc.weight": PREVIOUS["fc.weight"]}),
            "a names a layer 'conv1.weight'; allowed: fc.weight; did you mean 'fc.weight'?",
        ),
        (lambda: masks.nested({}, PREVIOUS), "inner lacks the layers conv1.weight, fc.weight"),
        (
            lambda: masks.unpack({**masks.pack(PREVIOUS), "bits": np.zeros(3, np.uint8)}),
            "packed mask has 3 bytes: its shapes hold 10 weights, so 2",
        ),
    ],
)
def test_errors_name_place_value_and_what_is_allowed(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


def test_low_precision_is_refused():
    with pytest.raises(TypeError) as error:
        masks.magnitude({"w": torch.ones(3, dtype=torch.bfloat16)}, 1)
    assert str(error.value) == "weights of layer 'w' are torch.bfloat16: allowed are float32 and float64"


MASK = masks.magnitude(
    {
        n: torch.randn(s, generator=torch.Generator().manual_seed(1))
        for n, s in (("conv1.weight", (8, 3, 3, 3)), ("conv2.weight", (16, 8, 3, 3)), ("fc.weight", (10, 61)))
    },
    1600,
)


def test_permuting_within_layers_keeps_each_layers_count():
    mask = masks.permuted(MASK, "layer", 0)
    assert masks.pruned_per_layer(mask) == masks.pruned_per_layer(MASK)
    assert all((mask[n] != MASK[n]).any() and mask[n].shape == MASK[n].shape for n in MASK)


def test_permuting_globally_keeps_the_total_and_spreads_evenly():
    uneven = {"a": torch.ones(60, 100) > 0, "b": torch.ones(4000) < 0}
    mask = masks.permuted(uneven, "global", 0)
    assert masks.kept(mask) == 6000 and {n: m.shape for n, m in mask.items()} == {
        "a": (60, 100),
        "b": (4000,),
    }
    kept = int(mask["b"].sum())
    assert kept == pytest.approx(2400, abs=4 * np.sqrt(4000 * 0.6 * 0.4 * 0.6))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_permutations_depend_on_the_seed_alone(scope):
    mask = masks.permuted(MASK, scope, 3)
    assert masks.hamming(mask, masks.permuted(MASK, scope, 3)) == 0
    density = masks.kept(MASK) / sum(kept.numel() for kept in MASK.values())
    other = masks.hamming(mask, masks.permuted(MASK, scope, 4))
    assert other == pytest.approx(2 * density * (1 - density), abs=0.06)
    outer = {n: MASK[n] | (torch.arange(MASK[n].numel()) % 5 == 0).view(MASK[n].shape) for n in MASK}
    assert masks.nested(mask, masks.permuted(outer, scope, 3))


def test_layers_are_permuted_differently():
    half = torch.arange(200) < 100
    mask = masks.permuted({"a": half, "b": half}, "layer", 0)
    assert 0.3 < (mask["a"] != mask["b"]).float().mean() < 0.7


def test_a_permutation_is_pinned():
    mask = masks.permuted({"a": torch.arange(6) < 3, "b": torch.arange(4) < 1}, "layer", 7)
    assert {n: m.int().tolist() for n, m in mask.items()} == {"a": [1, 0, 1, 0, 0, 1], "b": [0, 1, 0, 0]}


def test_counts_and_distances():
    a = {"x": torch.tensor([True, True, False]), "y": torch.tensor([[False, False]])}
    b = {"x": torch.tensor([True, False, False]), "y": torch.tensor([[False, True]])}
    assert masks.kept(a) == 2
    assert masks.pruned_per_layer(a) == {"x": 1, "y": 2}
    assert masks.collapsed(a) == ["y"] and masks.collapsed(b) == []
    assert masks.hamming(a, b) == 0.4 and masks.hamming(a, a) == 0
    assert not masks.nested(a, b) and not masks.nested(b, a)
    assert masks.nested(a, a)
    assert masks.nested({"x": a["x"] & b["x"], "y": a["y"] & b["y"]}, a)


@given(st.data())
def test_packed_masks_come_back_in_order(data):
    names = data.draw(
        st.lists(st.sampled_from(["fc.weight", "conv1.weight", "bits", "a.b.c"]), min_size=1, unique=True)
    )
    shapes = arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
    mask = {n: torch.from_numpy(data.draw(arrays.arrays(bool, shapes))) for n in names}
    packed = masks.pack(mask)
    size = sum(m.numel() for m in mask.values())
    assert packed["bits"].nbytes == -(-size // 8)
    back = masks.unpack(load(save(packed)))
    assert list(back) == names
    assert all(back[n].equal(mask[n]) and back[n].dtype == torch.bool for n in names)


def test_networks_of_many_layers_come_back_in_order():
    mask = {f"{i}.weight": torch.ones(1) > 0 for i in range(120)}
    assert list(masks.unpack(load(save(masks.pack(mask))))) == list(mask)


def test_distances_by_hand():
    """Of ten positions, a keeps 0 to 3, b keeps 2 to 5, c keeps nothing but 9."""
    named = {name: {"x": torch.zeros(4) > 0, "y": torch.zeros(2, 3) > 0} for name in "abc"}
    for name, kept in {"a": [0, 1, 2, 3], "b": [2, 3, 4, 5], "c": [9]}.items():
        for i in kept:
            layer, at = ("x", i) if i < 4 else ("y", i - 4)
            named[name][layer].view(-1)[at] = True
    expected = [
        {"first": "a", "second": "b", "value": 0.4, "random": 0.48, "maximum": 0.8, "overlap": 0.5},
        {"first": "a", "second": "c", "value": 0.5, "random": 0.4 * 0.9 + 0.1 * 0.6, "maximum": 0.5, "overlap": 0},
        {"first": "b", "second": "c", "value": 0.5, "random": 0.4 * 0.9 + 0.1 * 0.6, "maximum": 0.5, "overlap": 0},
    ]
    for row, known in zip(masks.distances(named), expected, strict=True):
        assert row == pytest.approx(known)


@given(st.data())
def test_distances_agree_with_numpy(data):
    size = data.draw(st.integers(1, 40))
    kept = [data.draw(arrays.arrays(bool, size)) for _ in range(3)]
    found = masks.distances({str(i): {"x": torch.from_numpy(each)} for i, each in enumerate(kept)})
    assert [(row["first"], row["second"]) for row in found] == [("0", "1"), ("0", "2"), ("1", "2")]
    for row in found:
        a, b = kept[int(row["first"])], kept[int(row["second"])]
        assert row["value"] == pytest.approx(np.mean(a != b))
        assert row["maximum"] == pytest.approx(np.mean(np.sort(a) != np.sort(b)[::-1]))
        if a.any() or b.any():
            assert row["overlap"] == pytest.approx(2 * np.sum(a & b) / (a.sum() + b.sum()))
        else:
            assert np.isnan(row["overlap"])


def test_permuted_masks_lie_at_the_random_distance():
    a = {"x": torch.arange(40_000).view(200, 200) < 12_000}
    b = masks.permuted({"x": torch.arange(40_000).view(200, 200) < 4_000}, "global", 3)
    (row,) = masks.distances({"a": a, "b": b})
    assert row["value"] == pytest.approx(row["random"], abs=4 * 0.3 * 0.1 / 200)
    assert row["random"] == pytest.approx(0.3 * 0.9 + 0.1 * 0.7)


def test_one_mask_has_no_distance():
    with pytest.raises(ValueError, match="masks to compare: 1; allowed: two or more"):
        masks.distances({"a": {"x": torch.ones(2) > 0}})
