import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from safetensors.numpy import load_file, save
from torchvision import transforms
from torchvision.transforms import functional

from lthlab import data, datasets, parts
from lthlab.datasets import DataFacts
from lthlab.errors import InputError
from lthlab.parts import Data


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "data"
    data.load("digits", folder)
    return folder


@pytest.fixture
def registered(monkeypatch):
    """Data sets registered by a test are forgotten after it."""
    monkeypatch.setattr(data, "_sources", dict(data._sources))
    before = dict(datasets.DATASETS)
    yield
    datasets.DATASETS.clear()
    datasets.DATASETS.update(before)


def images(dataset, part):
    return [x.numpy().tobytes() for x in getattr(dataset, f"{part}_x")]


def test_digits_are_those_of_scikit_learn(cache):
    from sklearn.datasets import load_digits

    d = data.load("digits", cache)
    assert (d.name, d.classes, d.fingerprint) == ("digits", 10, "988bfb497fd200f239bee36699206e13")
    assert d.train_x.shape == (1297, 1, 8, 8) and d.test_x.shape == (500, 1, 8, 8)
    assert d.val_x.shape == (0, 1, 8, 8) and d.val_y.shape == (0,)
    assert {t.dtype for t in (d.train_x, d.val_x, d.test_x)} == {torch.uint8}
    assert {t.dtype for t in (d.train_y, d.val_y, d.test_y)} == {torch.int64}
    assert torch.bincount(d.test_y).tolist() == [50] * 10
    x, y = load_digits(return_X_y=True)
    theirs = {image.astype(np.uint8).tobytes(): label for image, label in zip(x, y, strict=True)}
    ours = images(d, "train") + images(d, "test")
    assert len(theirs) == len(set(ours)) == len(ours) == 1797
    assert [theirs[image] for image in ours] == torch.cat([d.train_y, d.test_y]).tolist()


def test_canonical_order_is_by_class_then_hash(cache):
    d = data.load("digits", cache)
    for part in ("train", "test"):
        places = [
            (label, hashlib.sha256(image).hexdigest())
            for label, image in zip(getattr(d, f"{part}_y").tolist(), images(d, part), strict=True)
        ]
        assert places == sorted(places)
    last = {y: hashlib.sha256(x).hexdigest() for y, x in zip(d.test_y.tolist(), images(d, "test"), strict=True)}
    for label, image in zip(d.train_y.tolist(), images(d, "train"), strict=True):
        assert hashlib.sha256(image).hexdigest() > last[label]


def test_constants_are_those_of_the_training_images(cache):
    d = data.load("digits", cache)
    pixels = d.train_x.flatten().tolist()
    n, total, squares = len(pixels), sum(pixels), sum(pixel**2 for pixel in pixels)
    assert d.mean == pytest.approx([total / n], rel=1e-15)
    assert d.std == pytest.approx([(n * squares - total**2) ** 0.5 / n], rel=1e-15)


def in_turn(classes, size):
    """Take one of each class after the other until `size` are taken."""
    taken, turn = [], 0
    while len(taken) < size:
        taken += [members[turn] for members in classes if turn < len(members)][: size - len(taken)]
        turn += 1
    return sorted(taken)


@pytest.mark.parametrize(
    ("train", "val"), [(None, 0), (None, 300), (100, 0), (1000, 297), (1250, 47), (7, 3), (1, 1296)]
)
def test_divisions_take_classes_in_turn_from_either_end(cache, train, val):
    everything = data.load("digits", cache)
    d = data.load(Data(name="digits", train_size=train, val_size=val), cache)
    classes = [(everything.train_y == c).nonzero().flatten().tolist() for c in range(10)]
    in_val = in_turn([members[::-1] for members in classes], val)
    left = [[i for i in members if i not in in_val] for members in classes]
    in_train = in_turn(left, 1297 - val if train is None else train)
    assert len(in_val) == val and not set(in_val) & set(in_train)
    for part, places in (("val", in_val), ("train", in_train)):
        assert getattr(d, f"{part}_x").equal(everything.train_x[places])
        assert getattr(d, f"{part}_y").equal(everything.train_y[places])
    assert d.test_x.equal(everything.test_x) and d.test_y.equal(everything.test_y)
    assert d.fingerprint == everything.fingerprint


def test_a_cached_set_needs_no_decoding(cache, registered, monkeypatch):
    assert [path.name for path in cache.iterdir()] == ["digits.safetensors"]
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda **_: pytest.fail("was decoded again"))
    cached = data.load("digits", cache)
    monkeypatch.undo()
    for part in ("train_x", "train_y", "test_x", "test_y"):
        assert getattr(cached, part).equal(getattr(data.load("digits", None), part))


def test_a_damaged_or_foreign_cache_is_named_and_decoded_again(cache, tmp_path, caplog):
    path = tmp_path / "digits.safetensors"
    whole = (cache / path.name).read_bytes()
    arrays = load_file(cache / path.name)
    contents = [b"", whole[:5000], save({"train_x": arrays["train_x"]})]
    for key in ("test_x", "train_y", "test_y", "train_x"):
        changed = {k: a.copy() for k, a in arrays.items()}
        changed[key].flat[-1] += 1
        contents.append(save(changed))
    for content in contents:
        path.write_bytes(content)
        caplog.clear()
        assert data.load("digits", tmp_path).train_x.equal(data.load("digits", cache).train_x)
        assert str(path) in caplog.text and "decoded again" in caplog.text
        assert path.read_bytes() == whole


def test_processes_that_decode_a_set_at_once_write_files_of_their_own(tmp_path, monkeypatch):
    seen, sync = [], os.fsync

    def meanwhile(number):
        seen.append({path.name for path in tmp_path.iterdir()})
        if len(seen) == 1:
            data.load("digits", tmp_path)
        sync(number)

    monkeypatch.setattr(os, "fsync", meanwhile)
    data.load("digits", tmp_path)
    assert [len(names) for names in seen] == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["digits.safetensors"]


COLOURS = np.random.default_rng(0).integers(0, 256, (12, 3, 5, 4), np.uint8)


def colours(places=slice(None)):
    labels = np.arange(12) % 3
    return {
        "train_x": COLOURS[places],
        "train_y": labels[places],
        "test_x": COLOURS[:3],
        "test_y": np.array([0, 1, 3]),
    }


FACTS = DataFacts(
    (3, 5, 4),
    4,
    12,
    3,
    "f8dbf3cd0a400427ee0b0b1890e7a3e3",
    tuple(float(COLOURS[:, c].mean()) for c in range(3)),
    tuple(float(COLOURS[:, c].std()) for c in range(3)),
)


def registered_as(name, decode=colours):
    """Register a set with the facts that the error of its first load tells."""
    data.register(name, DataFacts((3, 5, 4), 4, 12, 3))(decode)
    with pytest.raises(InputError) as error:
        data.load(name, None)
    facts = eval(str(error.value).rpartition(" is described by ")[2])
    del datasets.DATASETS[name]
    data.register(name, facts)(decode)
    return facts


def test_the_first_load_tells_the_facts_to_register(registered, tmp_path):
    facts = registered_as("colours")
    assert (facts.fingerprint, facts.shape, facts.train, facts.test) == (FACTS.fingerprint, (3, 5, 4), 12, 3)
    assert facts.mean == pytest.approx(FACTS.mean, rel=1e-14) and facts.std == pytest.approx(FACTS.std, rel=1e-14)
    found = data.load("colours", tmp_path)
    assert (found.fingerprint, found.mean, found.std) == (facts.fingerprint, facts.mean, facts.std)
    assert parts.Data(name="colours").form() == {"name": "colours", "fingerprint": facts.fingerprint}


@pytest.mark.parametrize("field", ["shape", "classes", "train", "test", "fingerprint", "mean", "std"])
def test_facts_that_are_not_those_of_the_images_are_refused(registered, tmp_path, field):
    facts = registered_as("colours")
    data.load("colours", tmp_path)  # the cache does not help
    value = getattr(facts, field)
    wrong = value + 1 if isinstance(value, int) else value[:-1] + ("0" if field == "fingerprint" else (9,))
    datasets.DATASETS["colours"] = replace(facts, **{field: wrong})
    with pytest.raises(InputError, match="data set 'colours' is registered with DataFacts"):
        data.load("colours", tmp_path)


def test_a_registered_set_is_put_in_order_whatever_its_order(registered, tmp_path):
    facts = registered_as("colours")
    data.register("reversed", facts)(lambda: colours(slice(None, None, -1)))
    a, b = data.load("colours", tmp_path), data.load("reversed", tmp_path)
    assert a.train_x.equal(b.train_x) and a.train_y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert a.classes == 4
    with pytest.raises(ValueError) as error:
        data.register("digits", facts)
    assert str(error.value) == "data set 'digits' is in use already; allowed: other names than " + ", ".join(
        datasets.DATASETS
    )


ALLOWED = "allowed are uint8 (N, C, H, W), all of one size, and integers (N,) from 0 on, N at least 1"


@pytest.mark.parametrize(
    ("change", "given"),
    [
        ({"train_x": COLOURS / 255}, "train images float64 (12, 3, 5, 4), labels int64 (12,) from 0 on"),
        ({"train_x": COLOURS[:, 0]}, "train images uint8 (12, 5, 4), labels int64 (12,) from 0 on"),
        ({"test_y": np.arange(4)}, "test images uint8 (3, 3, 5, 4), labels int64 (4,) from 0 on"),
        ({"test_y": np.arange(3) - 1}, "test images uint8 (3, 3, 5, 4), labels int64 (3,) from -1 on"),
        ({"test_x": COLOURS[:3, :, 1:]}, "train images (3, 5, 4) and test images (3, 4, 4)"),
        ({"test_y": np.array([0, 1.5, 3])}, "test images uint8 (3, 3, 5, 4), labels float64 (3,)"),
        ({"train_y": np.array(["a"] * 12)}, "train images uint8 (12, 3, 5, 4), labels <U1 (12,)"),
        ({"train_y": [0] * 12}, "ndarray as train_x and list as train_y"),
        ({"test_x": None}, "NoneType as test_x and ndarray as test_y"),
        ({"test_x": COLOURS[:0], "test_y": np.arange(0)}, "test images uint8 (0, 3, 5, 4), labels int64 (0,)"),
    ],
)
def test_a_registered_set_of_another_form_is_refused(registered, change, given):
    data.register("bad", FACTS)(lambda: colours() | change)
    with pytest.raises(InputError) as error:
        data.load("bad", None)
    assert str(error.value) == f"data set 'bad' has {given}: {ALLOWED}"


@pytest.mark.parametrize(
    ("returned", "given"),
    [
        ([COLOURS], "list in place of a dict"),
        ({"train_x": COLOURS, "train_y": np.arange(12)}, "NoneType as test_x and NoneType as test_y"),
    ],
)
def test_a_function_that_returns_no_set_is_refused(registered, returned, given):
    data.register("bad", FACTS)(lambda: returned)
    with pytest.raises(InputError) as error:
        data.load("bad", None)
    assert str(error.value) == f"data set 'bad' has {given}: {ALLOWED}"


def test_a_constant_channel_is_refused(registered):
    constant = COLOURS.copy()
    constant[:, 1] = 7
    data.register("bad", FACTS)(lambda: colours() | {"train_x": constant})
    with pytest.raises(InputError, match="data set 'bad': channel 1 of all training images is 7 everywhere, "):
        data.load("bad", None)


def test_test_images_of_another_size_are_not_taken_from_the_cache(registered, tmp_path):
    """Earlier versions kept such a set, with facts that fit."""
    arrays = colours() | {"test_x": COLOURS[:3, :, 1:]}
    for part in ("train", "test"):
        arrays[f"{part}_x"], arrays[f"{part}_y"] = data.canonical(arrays[f"{part}_x"], arrays[f"{part}_y"])
    (tmp_path / "bad.safetensors").write_bytes(save(arrays))
    data.register("bad", data._described("bad", arrays))(lambda: arrays)
    with pytest.raises(InputError, match="test images"):
        data.load("bad", tmp_path)


def test_order_depends_on_replicate_and_epoch():
    orders = {(r, e): data.order(1297, r, e) for r in range(3) for e in range(3)}
    assert all(o.dtype == torch.int64 and o.sort().values.equal(torch.arange(1297)) for o in orders.values())
    assert len({tuple(o.tolist()) for o in orders.values()}) == 9
    assert data.order(1297, 2, 1).equal(orders[2, 1])
    assert data.order(8, 3, 7).tolist() == [5, 2, 4, 1, 3, 7, 0, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalised_images_have_mean_0_and_deviation_1(cache, dtype):
    d = data.load("digits", cache)
    before = d.train_x.clone()
    x = data.normalise(d.train_x, d, dtype)
    assert x.dtype == dtype and x.shape == d.train_x.shape and d.train_x.equal(before)
    assert x.double().mean().abs() < (2e-3 if dtype == torch.bfloat16 else 1e-6)
    assert abs(x.double().std(correction=0) - 1) < (2e-3 if dtype == torch.bfloat16 else 1e-6)


def test_channels_are_normalised_each_by_its_own_constants(registered):
    registered_as("colours")
    d = replace(data.load("colours", None), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    grouped = d.train_x.view(2, 6, 3, 5, 4)
    x = data.normalise(grouped, d, torch.float64)
    for channel in range(3):
        expected = (grouped[:, :, channel].numpy() - (channel + 1.0)) / (channel + 4.0)
        assert np.allclose(x[:, :, channel].numpy(), expected, rtol=1e-15)


def plainly_cropped(image, pad, top, left, flip):
    """Move pixel by pixel."""
    channels, height, width = image.shape
    moved = np.zeros_like(image)
    for c, y, x in np.ndindex(channels, height, width):
        row, column = y + top - pad, (width - 1 - x if flip else x) + left - pad
        if 0 <= row < height and 0 <= column < width:
            moved[c, y, x] = image[c, row, column]
    return moved


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_crop_and_flip_agree_with_moving_pixels(pad):
    x = torch.from_numpy(COLOURS)
    before = x.clone()
    draws = data.crop_flip_draws(len(x), pad, 5, 2)
    moved = data.crop_flip(x, pad, draws)
    assert moved.dtype == torch.uint8 and x.equal(before)
    for image, result, (top, left, flip) in zip(COLOURS, moved.numpy(), draws.tolist(), strict=True):
        assert np.array_equal(result, plainly_cropped(image, pad, top, left, flip))
    assert not moved.equal(x)


def test_an_image_that_is_not_moved_stays():
    x = torch.from_numpy(COLOURS)
    assert data.crop_flip(x, 3, torch.tensor([[3, 3, 0]] * 12)).equal(x)
    assert data.crop_flip(x, 3, torch.tensor([[3, 3, 1]] * 12)).equal(x.flip(3))


def test_draws_go_by_position_in_the_epoch():
    draws = data.crop_flip_draws(50_000, 4, 1, 3)
    assert draws.dtype == torch.int64
    assert data.crop_flip_draws(100, 4, 1, 3).equal(draws[:100])
    for other in ((2, 3), (1, 4)):
        assert (data.crop_flip_draws(50_000, 4, *other) == draws).all(1).float().mean() < 0.01
    for column, values in ((0, 9), (1, 9), (2, 2)):
        counts = torch.bincount(draws[:, column], minlength=values)
        assert len(counts) == values
        assert ((counts - 50_000 / values).abs() < 4.5 * (50_000 / values) ** 0.5).all()
    assert torch.corrcoef(draws.T.double()).sub(torch.eye(3)).abs().max() < 4 / 50_000**0.5


def test_batches_of_an_epoch_are_moved_as_the_whole():
    x = torch.from_numpy(COLOURS)
    draws = data.crop_flip_draws(12, 2, 0, 0)
    parts = [data.crop_flip(x[i : i + 5], 2, draws[i : i + 5]) for i in (0, 5, 10)]
    assert torch.cat(parts).equal(data.crop_flip(x, 2, draws))


# --- mixing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 4.0, 1e6])
def test_shares_have_a_beta_distribution(alpha):
    """Below a half, where fp32 is finest; it is symmetric."""
    _, shares = data.mixup_draws(40_000, 1, alpha, 3, 5)
    low = shares[shares < 0.5]
    assert shares.dtype == torch.float32 and len(shares) == 40_000
    assert abs(len(low) / 40_000 - 0.5) < 0.01 and shares.mean() == pytest.approx(0.5, abs=0.01)
    assert scipy.stats.kstest(low.double(), lambda x: 2 * scipy.stats.beta(alpha, alpha).cdf(x)).pvalue > 0.01


def test_partners_of_a_step_are_its_images():
    partners, shares = data.mixup_draws(150, 64, 0.2, 3, 5)
    for first, size in ((0, 64), (64, 64), (128, 22)):
        assert sorted(partners[first : first + size].tolist()) == list(range(size))
    assert partners.dtype == torch.int64 and len(partners) == 150 and len(shares) == 3
    assert (partners[:64] != partners[64:128]).any()


def test_mixing_goes_by_replicate_epoch_and_position():
    """What is drawn for a step does not depend on how many follow; these numbers stand for stored results."""
    partners, shares = data.mixup_draws(20, 8, 0.2, 3, 5)
    fewer, first = data.mixup_draws(16, 8, 0.2, 3, 5)
    assert fewer.equal(partners[:16]) and first.equal(shares[:2])
    for other in ((2, 5), (3, 4)):
        changed, unlike = data.mixup_draws(20, 8, 0.2, *other)
        assert not changed.equal(partners) and not (unlike == shares).any()
    assert partners[:8].tolist() == [0, 3, 1, 2, 7, 5, 4, 6]
    assert shares.tolist() == pytest.approx([0.99956626, 0.96114856, 0.0034134777], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixed_images_and_labels_are_weighted_sums(dtype):
    x, labels = torch.rand(2, 5, 3, 4, 4).to(dtype), torch.tensor([[0, 1, 2, 3, 0], [3, 3, 1, 2, 2]])
    partners, shares = torch.tensor([[4, 0, 1, 3, 2], [1, 0, 3, 2, 4]]), torch.tensor([0.75, 0.125])
    images, mixed = data.mixup(x, labels, 4, partners, shares)
    for slot, share in enumerate((0.75, 0.125)):
        for place, partner in enumerate(partners[slot].tolist()):
            expected = share * x[slot, place].numpy() + (1 - share) * x[slot, partner].numpy()
            assert images[slot, place].numpy() == pytest.approx(expected, rel=1e-6)
            whole = np.zeros(4)
            np.add.at(whole, [labels[slot, place], labels[slot, partner]], [share, 1 - share])
            assert mixed[slot, place].tolist() == whole.tolist()
    assert images.dtype == mixed.dtype == dtype


# --- what a network sees of a set -----------------------------------------------------------------------------


@pytest.fixture
def cifar(registered, monkeypatch):
    """Register sets of the numbers and names of CIFAR-10 and CIFAR-100, with images of a single pixel."""

    def register(name, classes):
        counts = {"train": 50_000, "test": 10_000}
        random = np.random.default_rng(classes)
        arrays = {f"{part}_x": random.integers(0, 256, (n, 3, 1, 1), np.uint8) for part, n in counts.items()}
        arrays |= {f"{part}_y": random.permutation(np.arange(n) % classes) for part, n in counts.items()}
        facts = DataFacts((3, 1, 1), classes, 50_000, 10_000, "c", (125.0, 123.0, 114.0), (63.0, 62.0, 67.0))
        monkeypatch.setattr(
            data, "_described", lambda name, arrays: datasets.DATASETS[f"cifar{arrays['train_y'].max() + 1}"]
        )
        monkeypatch.setitem(datasets.DATASETS, name, facts)
        monkeypatch.setitem(data._sources, name, lambda: arrays)

    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        register(name, classes)


def test_halves_are_disjoint_and_have_2500_images_of_each_class(cifar, monkeypatch):
    monkeypatch.setattr(data, "canonical", lambda x, y: (x[o := np.argsort(y, kind="stable")], y[o]))
    whole = data.load("cifar10", None)
    halves = [data.load(Data(name="cifar10", part=part), None) for part in ("a", "b")]
    for number, half in enumerate(halves):
        assert torch.bincount(half.train_y).tolist() == [2500] * 10
        assert half.train_x.equal(whole.train_x[number::2]) and half.train_y.equal(whole.train_y[number::2])
        assert half.test_x.equal(whole.test_x) and half.test_y.equal(whole.test_y)
    small = data.load(Data(name="cifar10", part="b", classes=[7, 2], val_size=3000, train_size=1000), None)
    assert [torch.bincount(y).tolist() for y in (small.train_y, small.val_y, small.test_y)] == [
        [500, 500], [1500, 1500], [1000, 1000],
    ]  # fmt: skip


@pytest.mark.parametrize("part", [None, "a", "b"])
@pytest.mark.parametrize("classes", [None, [0, 1, 2, 3, 4], [9, 5]])
@pytest.mark.parametrize(("train", "val"), [(None, 0), (60, 41), (None, 50)])
def test_parts_and_classes_are_chosen_before_the_set_is_divided(cache, part, classes, train, val):
    everything = data.load("digits", cache)
    described = Data(name="digits", part=part, classes=classes, train_size=train, val_size=val)
    d = data.load(described, cache)
    kept = sorted(classes or range(10))
    half = [i for i in range(1297) if part is None or i % 2 == "ab".index(part)]
    pool = [[i for i in half if everything.train_y[i] == c] for c in kept]
    in_val = in_turn([members[::-1] for members in pool], val)
    left = [[i for i in members if i not in in_val] for members in pool]
    in_train = in_turn(left, sum(map(len, left)) if train is None else train)
    for name, places in (("val", in_val), ("train", in_train)):
        assert getattr(d, f"{name}_x").equal(everything.train_x[places])
        assert getattr(d, f"{name}_y").tolist() == [kept.index(y) for y in everything.train_y[places].tolist()]
    tested = [i for i in range(500) if everything.test_y[i] in kept]
    assert d.test_x.equal(everything.test_x[tested])
    assert d.test_y.tolist() == [kept.index(y) for y in everything.test_y[tested].tolist()]
    facts = described.facts
    assert (d.classes, len(d.train_y), len(d.test_y)) == (facts.classes, described.images, facts.test)
    assert facts.train == sum(facts.train_counts or [1297]) == sum(map(len, pool))
    assert (d.mean, d.std, d.fingerprint) == (everything.mean, everything.std, everything.fingerprint)


def test_random_labels_are_uniform_fixed_and_those_of_single_images(cache):
    def labels(**fields):
        return data.load(Data(name="digits", random_labels=7, **fields), cache)

    whole, true = labels(), data.load("digits", cache)
    label_of = {x.numpy().tobytes(): y for x, y in zip(whole.train_x, whole.train_y.tolist(), strict=True)}
    for fields in ({"train_size": 100}, {"val_size": 300, "train_size": 500}, {"part": "b"}, {"augment": "crop_flip"}):
        d = labels(**fields)
        assert [label_of[x.numpy().tobytes()] for x in d.train_x] == d.train_y.tolist()
    held_out, truth = labels(val_size=300), data.load(Data(name="digits", val_size=300), cache)
    assert held_out.val_y.equal(truth.val_y) and held_out.test_y.equal(true.test_y)
    assert whole.train_x.equal(true.train_x) and whole.train_y.dtype == torch.int64
    assert abs((whole.train_y == true.train_y).float().mean().item() - 0.1) < 4 * (0.09 / 1297) ** 0.5
    other = data.load(Data(name="digits", random_labels=8), cache).train_y
    assert abs((whole.train_y == other).float().mean().item() - 0.1) < 4 * (0.09 / 1297) ** 0.5
    few = labels(classes=[3, 8, 9])
    assert set(few.train_y.tolist()) == {0, 1, 2}
    words = np.random.Philox(key=[3, 5], counter=[0, 0, 0, 0]).random_raw(100).tolist()
    assert data.random_labels(100, 10, 3).tolist() == [word * 10 >> 64 for word in words]


def test_a_share_of_the_labels_is_random_and_grows_by_adding_images(cache):
    def labels(**fields):
        return data.load(Data(name="digits", **fields), cache).train_y

    true, drawn = labels(), labels(random_labels=3)
    some, more = labels(random_labels=3, label_noise=0.2), labels(random_labels=3, label_noise=0.5)
    assert ((some == true) | (some == drawn)).all() and ((more == drawn) | (some == true)).all()
    share = ((some != true).sum() / (drawn != true).sum()).item()
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / len(true)) ** 0.5
    few = labels(random_labels=3, label_noise=0.2, train_size=300, val_size=100)
    clean, wrong = labels(train_size=300, val_size=100), labels(random_labels=3, train_size=300, val_size=100)
    assert ((few == clean) | (few == wrong)).all() and 0 < (few != clean).sum() < 90
    assert torch.equal(labels(random_labels=3, label_noise=1.0), drawn)
    assert Data(name="digits", label_noise=0.2) == Data(name="digits", random_labels=0, label_noise=0.2)
    assert Data(name="digits", random_labels=3, label_noise=1.0).form() == Data(name="digits", random_labels=3).form()
    halves = labels(classes=[5, 6], label_noise=0.5)
    assert set(halves.tolist()) == {0, 1}


def test_random_labels_pass_a_test_of_chi_square():
    from scipy.stats import chi2

    for classes, seed in ((10, 0), (10, 1), (200, 0)):
        counts = torch.bincount(data.random_labels(50_000, classes, seed), minlength=classes)
        statistic = ((counts - 50_000 / classes) ** 2 / (50_000 / classes)).sum().item()
        assert len(counts) == classes and 0.001 < chi2.cdf(statistic, classes - 1) < 0.999


@pytest.mark.parametrize(("channels", "size"), [(3, None), (1, 11), (3, 32), (None, 12)])
def test_grey_images_are_repeated_and_small_ones_padded_with_black(cache, channels, size):
    d, true = (
        data.load(Data(name="digits", channels=channels, size=size, val_size=40), cache),
        data.load("digits", cache),
    )
    before = ((size or 8) - 8) // 2
    border = (before, (size or 8) - 8 - before)
    expected = np.repeat(np.pad(true.test_x.numpy(), ((0, 0), (0, 0), border, border)), channels or 1, 1)
    assert d.test_x.dtype == torch.uint8 and np.array_equal(d.test_x, expected)
    assert d.train_x.shape[1:] == d.val_x.shape[1:] == (channels or 1, size or 8, size or 8)
    assert d.mean == true.mean * (channels or 1) and d.std == true.std * (channels or 1)
    assert d.train_x.is_contiguous() and d.train_x.sum() + d.val_x.sum() == true.train_x.sum() * (channels or 1)
    assert Data(name="digits", channels=channels, size=size).facts.shape == d.test_x.shape[1:]


def test_sides_that_are_odd_longer_get_one_more_on_the_right_and_below():
    found = data.shaped(torch.ones(2, 1, 5, 4, dtype=torch.uint8), (1, 8, 8))
    assert found[0, 0].nonzero().min(0).values.tolist() == [1, 2] and found.sum() == 2 * 5 * 4


@pytest.mark.parametrize(
    ("name", "normalise", "mean", "std"),
    [
        ("cifar10", "reference", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("cifar100", "reference", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("cifar10", "imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("cifar10", "own", (125 / 255, 123 / 255, 114 / 255), (63 / 255, 62 / 255, 67 / 255)),
    ],
)
def test_named_normalisations_are_those_of_torchvision_with_these_numbers(cifar, name, normalise, mean, std):
    d = data.load(Data(name=name, normalise=normalise, train_size=100), None)
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    expected = torch.stack([usual(x.permute(1, 2, 0).numpy()) for x in d.train_x])
    torch.testing.assert_close(data.normalise(d.train_x, d, torch.float32), expected, rtol=1e-5, atol=1e-6)


def test_crops_without_flips_have_the_places_of_those_with_flips():
    flipped, cropped = (data.moves(augment, 500, 3, 2) for augment in ("crop_flip", "crop"))
    assert flipped.equal(data.crop_flip_draws(500, 4, 3, 2)) and flipped[:, 2].sum() > 200
    assert cropped[:, :2].equal(flipped[:, :2]) and not cropped[:, 2].any()
    assert data.moves("none", 500, 3, 2) is data.moves("resized_crop_flip", 500, 3, 2) is None


def test_moved_images_are_those_of_torchvision():
    x, draws = torch.from_numpy(COLOURS), data.moves("crop_flip", 12, 0, 5)
    for image, moved, (top, left, flip) in zip(x, data.crop_flip(x, data.PAD, draws), draws.tolist(), strict=True):
        picture = functional.pad(Image.fromarray(image.permute(1, 2, 0).numpy()), 4)
        picture = functional.crop(picture, top, left, 5, 4)
        assert moved.equal(functional.pil_to_tensor(functional.hflip(picture) if flip else picture))
