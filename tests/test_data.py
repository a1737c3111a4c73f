import hashlib

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save

from lthlab import data, parts
from lthlab.parts import Data, DataFacts


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "data"
    data.load("digits", folder)
    return folder


@pytest.fixture
def registered(monkeypatch):
    """Data sets registered by a test are forgotten after it."""
    monkeypatch.setattr(data, "_sources", dict(data._sources))
    for name in ("wrong", "colours", "reversed", "bad"):
        monkeypatch.setitem(parts.DATASETS, name, DataFacts((3, 5, 4), 4, 12, 3, "0", (4, 4, 4, 0), (1, 1, 0, 1)))


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


COLOURS = np.random.default_rng(0).integers(0, 256, (12, 3, 5, 4), np.uint8)


def colours(places=slice(None)):
    labels = np.arange(12) % 3
    return {
        "train_x": COLOURS[places],
        "train_y": labels[places],
        "test_x": COLOURS[:3],
        "test_y": np.array([0, 1, 3]),
    }


def test_a_registered_set_is_put_in_order_whatever_its_order(registered, tmp_path):
    data.register("wrong", fingerprint="0", mean=(0.0,) * 3, std=(1.0,) * 3)(colours)
    with pytest.raises(ValueError) as error:
        data.load("wrong", tmp_path)
    found = str(error.value).split()[6]
    assert str(error.value) == (f"fingerprint of data set 'wrong' is {found} in what colours decoded: allowed is 0")
    assert not list(tmp_path.iterdir())
    data.register("colours", fingerprint=found, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))(colours)
    data.register("reversed", fingerprint=found, mean=(0.0,) * 3, std=(1.0,) * 3)(
        lambda: colours(slice(None, None, -1))
    )
    a, b = data.load("colours", tmp_path), data.load("reversed", tmp_path)
    assert a.train_x.equal(b.train_x) and a.train_y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (a.classes, a.mean, a.std) == (4, (1, 2, 3), (4, 5, 6))
    with pytest.raises(ValueError) as error:
        data.register("digits", fingerprint="", mean=(), std=())
    assert str(error.value) == (
        "data set 'digits' is registered already; registered are digits, wrong, colours, reversed"
    )


@pytest.mark.parametrize(
    ("change", "given"),
    [
        ({"train_x": COLOURS / 255}, "train images float64 (12, 3, 5, 4), labels (12,) from 0 on"),
        ({"train_x": COLOURS[:, 0]}, "train images uint8 (12, 5, 4), labels (12,) from 0 on"),
        ({"test_y": np.arange(4)}, "test images uint8 (3, 3, 5, 4), labels (4,) from 0 on"),
        ({"test_y": np.arange(3) - 1}, "test images uint8 (3, 3, 5, 4), labels (3,) from -1 on"),
    ],
)
def test_a_registered_set_of_another_form_is_refused(registered, change, given):
    data.register("bad", fingerprint="0", mean=(0.0,), std=(1.0,))(lambda: colours() | change)
    with pytest.raises(ValueError) as error:
        data.load("bad", None)
    assert str(error.value) == f"data set 'bad' has {given}: allowed are uint8 (N, C, H, W), (N,) from 0 on"


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
    data.register("colours", fingerprint="f8dbf3cd0a400427ee0b0b1890e7a3e3", mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))(
        colours
    )
    d = data.load("colours", None)
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
