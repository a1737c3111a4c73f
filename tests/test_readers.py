"""Readers on tiny files in the true on-disk forms, compared with what was drawn, and with Pillow and torchvision."""

import gzip
import shutil

import numpy as np
import pytest
import sets
from PIL import Image

from lthlab import readers
from lthlab.errors import InputError
from lthlab.readers import Listing, read


def same(arrays, drawn):
    """Compare arrays with what was written, in the order of the files."""
    for part, (x, y) in zip(("train", "test"), drawn, strict=True):
        assert np.array_equal(arrays[f"{part}_x"], x) and arrays[f"{part}_x"].dtype == np.uint8
        assert arrays[f"{part}_y"].tolist() == y.tolist() and arrays[f"{part}_y"].dtype == np.int64


def decoded(listing):
    """Decode what a listing lists, with Pillow alone."""
    return {
        part: [
            (np.asarray(Image.open(listing.root / name).convert("RGB")), label)
            for name, label in zip(listing.names[part], listing.labels[part], strict=True)
        ]
        for part in ("train", "test")
    }


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(tmp_path, name, packed):
    drawn = sets.sets_of((1, 28, 28), 10)
    arrays, source = read(name, sets.mnist(tmp_path, drawn, packed))
    same(arrays, drawn)
    assert source == "train-images-idx3-ubyte.gz"


def test_idx_files_are_read_as_torchvision_does(tmp_path):
    from torchvision.datasets import MNIST

    sets.mnist(tmp_path / "MNIST" / "raw", sets.sets_of((1, 28, 28), 10), packed=False)
    arrays, _ = read("mnist", tmp_path / "MNIST")
    theirs = MNIST(tmp_path, train=False)
    assert np.array_equal(arrays["test_x"][:, 0], theirs.data) and arrays["test_y"].tolist() == theirs.targets.tolist()


def test_svhn_has_zero_as_ten(tmp_path, monkeypatch):
    from torchvision.datasets import SVHN

    drawn = sets.sets_of((3, 32, 32), 10)
    arrays, _ = read("svhn", sets.svhn(tmp_path, drawn))
    same(arrays, drawn)
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    theirs = SVHN(tmp_path, split="train")
    assert np.array_equal(arrays["train_x"], theirs.data) and arrays["train_y"].tolist() == theirs.labels.tolist()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar_binaries(tmp_path, name, unpacked):
    drawn = sets.sets_of((3, 32, 32), 10 if name == "cifar10" else 100, 30 if name == "cifar10" else 120)
    path = sets.cifar(tmp_path, drawn, coarse=name == "cifar100")
    if unpacked:
        shutil.unpack_archive(path, tmp_path)
        path.unlink()
    arrays, source = read(name, tmp_path)
    same(arrays, drawn)
    assert source == path.name


def test_tiny_imagenet_is_tested_on_its_validation_images(tmp_path):
    drawn = sets.sets_of((3, 64, 64), 3)
    with pytest.MonkeyPatch.context() as patch:
        sets.shrink(patch, "tiny_imagenet", 24, 9, classes=3)
        sets.tiny_imagenet(tmp_path, drawn, form="png")
        listing, source = read("tiny_imagenet", tmp_path)
    assert source == "val/val_annotations.txt" and listing.classes == tuple(sorted(sets.WNIDS))
    for part, (x, y) in zip(("train", "test"), drawn, strict=True):
        found = {(pixels.transpose(2, 0, 1).tobytes(), label) for pixels, label in decoded(listing)[part]}
        assert found == {(pixels.tobytes(), label) for pixels, label in zip(x, y, strict=True)}


@pytest.mark.parametrize("flat", [True, False])
def test_imagenet_numbers_classes_by_their_wordnet_ids(tmp_path, monkeypatch, flat):
    sets.shrink(monkeypatch, "imagenet", 24, 9, classes=3)
    grey = [
        (
            np.repeat(sets.labels(seed, count, 3)[:, None, None, None] * 80, 3, 1).repeat(8, 2).repeat(8, 3),
            sets.labels(seed, count, 3),
        )
        for seed, count in ((1, 24), (2, 9))
    ]
    listing, source = read("imagenet", sets.imagenet(tmp_path, grey, flat))
    assert source == ("ILSVRC2012_devkit_t12" if flat else "class folders")
    assert [len(listing.names[part]) for part in ("train", "test")] == [24, 9]
    for part in ("train", "test"):  # the grey of an image tells its class
        assert all(round(pixels.mean() / 80) == label for pixels, label in decoded(listing)[part])


def test_places365_reads_lists(tmp_path, monkeypatch):
    sets.shrink(monkeypatch, "places365", 24, 9, classes=3)
    grey = [
        (
            np.full((count, 3, 8, 8), 0, np.uint8) + sets.labels(seed, count, 3)[:, None, None, None] * 80,
            sets.labels(seed, count, 3),
        )
        for seed, count in ((1, 24), (2, 9))
    ]
    listing, _ = read("places365", sets.places365(tmp_path, grey))
    assert listing.classes == ("/a/airfield", "/a/alley", "/b/bow_window/indoor")
    assert [len(listing.names[part]) for part in ("train", "test")] == [24, 9]
    for part in ("train", "test"):
        assert all(round(pixels.mean() / 80) == label for pixels, label in decoded(listing)[part])


# --- class folders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["test", "val"])
def test_class_folders_of_ones_own_are_numbered_by_name(tmp_path, held):
    drawn = sets.sets_of((3, 6, 5), 3)
    sets.class_folders(tmp_path, drawn, ("zebra", "ant", "mouse"), test=held)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    listing, source = read("mine", tmp_path)
    assert source == "class folders" and listing.classes == ("ant", "mouse", "zebra")
    numbers = {0: 2, 1: 0, 2: 1}
    for part, (x, y) in zip(("train", "test"), drawn, strict=True):
        found = {(pixels.transpose(2, 0, 1).tobytes(), label) for pixels, label in decoded(listing)[part]}
        assert found == {(pixels.tobytes(), numbers[int(label)]) for pixels, label in zip(x, y, strict=True)}


def test_class_folders_of_a_known_set_have_its_official_numbers(tmp_path):
    drawn = sets.sets_of((3, 32, 32), 10, 30, 20)
    names = ("Plane", "CAR", *sets.CIFAR10[2:])
    listing, _ = read("cifar10", sets.class_folders(tmp_path, drawn, names))
    assert listing.classes == sets.CIFAR10
    found = {(pixels.transpose(2, 0, 1).tobytes(), label) for pixels, label in decoded(listing)["train"]}
    assert found == {(pixels.tobytes(), label) for pixels, label in zip(*drawn[0], strict=True)}


def test_names_of_classes_may_have_other_punctuation(tmp_path):
    names = ("t-shirt_top", "Trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
    drawn = sets.sets_of((1, 28, 28), 10, 20, 10)
    listing, _ = read("fashion_mnist", sets.class_folders(tmp_path, drawn, names))
    assert {
        name.split("/")[1]: label for name, label in zip(listing.names["test"], listing.labels["test"], strict=True)
    } == {name: number for number, name in enumerate(names)}


@pytest.mark.parametrize("form", ["png", "bmp", "webp", "tiff", "ppm"])
def test_lossless_forms_decode_to_what_was_written(tmp_path, form):
    pixels = sets.images(0, 3, 7, 9)
    path = sets.save(pixels, tmp_path / f"a.{form}", **{"lossless": True} if form == "webp" else {})
    assert np.array_equal(readers.decode(path, 3), pixels)
    assert readers.header(path) == (3, 7, 9)


def test_images_are_brought_to_channels_and_size(tmp_path):
    grey = sets.save(np.full((1, 4, 8), 100, np.uint8), tmp_path / "grey.png")
    assert readers.header(grey) == (1, 4, 8)
    assert np.array_equal(readers.decode(grey, 3), np.full((3, 4, 8), 100))
    halves = np.zeros((3, 8, 16), np.uint8)
    halves[:, :, 8:] = 200
    found = readers.decode(sets.save(halves, tmp_path / "halves.png"), 3, 4)
    assert found.shape == (3, 4, 4) and np.array_equal(
        found[:, :, [0, 3]], np.array([0, 200])[None, None].repeat(3, 0).repeat(4, 1)
    )
    colour = sets.save(sets.images(1, 3, 5, 5), tmp_path / "colour.png")
    assert np.array_equal(readers.decode(colour, 1)[0], np.asarray(Image.open(colour).convert("L")))
    Image.fromarray(np.dstack([sets.images(2, 5, 5, 3), np.zeros((5, 5), np.uint8)])).save(tmp_path / "clear.png")
    assert np.array_equal(readers.decode(tmp_path / "clear.png", 3), sets.images(2, 5, 5, 3).transpose(2, 0, 1))


def test_a_resized_image_is_as_torchvision_makes_it(tmp_path):
    from torchvision.transforms import v2

    path = sets.save(sets.images(3, 3, 40, 40), tmp_path / "a.png")
    theirs = v2.Resize(16)(Image.open(path))
    assert np.array_equal(readers.decode(path, 3, 16), np.asarray(theirs).transpose(2, 0, 1))


# --- what is wrong --------------------------------------------------------------------------------------------


def refused(name, folder, *words):
    with pytest.raises(InputError) as error:
        found, _ = read(name, folder)
        if isinstance(found, Listing):
            for names in found.names.values():
                for each in names:
                    readers.decode(found.root / each, 3)
    for word in words:
        assert str(word) in str(error.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "imagenet", "mine"])
def test_a_folder_with_nothing_of_it(tmp_path, name):
    words = {
        "mine": ["does not have class folders", "train/<class>/"],
        "imagenet": ["neither ILSVRC2012_devkit_t12 nor", "image-net.org"],
    }
    fetch = f"`lthlab data fetch {name}`"
    refused(name, tmp_path, tmp_path, *words.get(name, ["nor class folders", fetch]))


@pytest.mark.parametrize("damage", ["short", "short inside", "noise", "labels", "count", "missing", "floats"])
def test_damaged_idx_files(tmp_path, damage):
    drawn = sets.sets_of((1, 28, 28), 10)
    sets.mnist(tmp_path, drawn)
    images, labels = tmp_path / "t10k-images-idx3-ubyte.gz", tmp_path / "t10k-labels-idx1-ubyte.gz"
    data = images.read_bytes()
    if damage == "short":
        images.write_bytes(data[:-100])
    elif damage == "short inside":
        images.write_bytes(gzip.compress(gzip.decompress(data)[:-100]))
    elif damage == "noise":
        images.write_bytes(data[:50] + b"\0" * 50 + data[100:])
    elif damage == "labels":
        sets.idx(labels, np.array([0, 10, 3]))
    elif damage == "missing":
        images.unlink()
    elif damage == "floats":
        images.write_bytes(gzip.compress(b"\0\0\x0d\x03" + gzip.decompress(data)[4:]))
    else:
        images.write_bytes(gzip.compress(gzip.decompress(data)[:3] + b"\x01" + gzip.decompress(data)[4:]))
    if damage == "labels":
        refused("mnist", tmp_path, tmp_path / "t10k-labels-idx1-ubyte", "has the label 10; allowed: 0 to 9")
    else:
        refused("mnist", tmp_path, images, "cannot be read")


@pytest.mark.parametrize("damage", ["short", "noise", "label", "another", "missing"])
def test_damaged_svhn_files(tmp_path, damage):
    from scipy.io import savemat

    path = sets.svhn(tmp_path, sets.sets_of((3, 32, 32), 10)) / "test_32x32.mat"
    data = path.read_bytes()
    words = ["cannot be read"]
    if damage == "short":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "noise":
        path.write_bytes(b"\xff" * 1000)
    elif damage == "missing":
        path.unlink()
    elif damage == "another":
        savemat(path, {"images": np.zeros(3)})
        words = ["does not have images X"]
    else:
        savemat(path, {"X": sets.images(0, 32, 32, 3, 2), "y": np.array([[0], [11]], np.uint8)})
        words = ["labels from 0 to 11; allowed: 1 to 10"]
    refused("svhn", tmp_path, path, *words)


@pytest.mark.parametrize("damage", ["short archive", "noise", "short file", "missing", "label"])
def test_damaged_cifar_binaries(tmp_path, damage):
    drawn = sets.sets_of((3, 32, 32), 10, 30)
    if damage == "label":
        drawn[1][1][4] = 10
    path = sets.cifar(tmp_path, drawn)
    if damage == "short archive":
        path.write_bytes(path.read_bytes()[:-5000])
    elif damage == "noise":
        path.write_bytes(b"no archive")
    elif damage == "short file":
        sets.tarred(
            path,
            {
                f"{name}.bin": b"\0" * 3073
                for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")
            }
            | {"test_batch.bin": b"\0" * 3000},
        )
    elif damage == "missing":
        sets.tarred(path, {"cifar-10-batches-bin/data_batch_1.bin": b"\0" * 3073})
    words = {
        "short file": "test_batch.bin has 3,000 bytes, no multiple of 3,073",
        "missing": "lacks data_batch_2.bin; it has data_batch_1.bin",
        "label": "test_batch.bin has the label 10; allowed: 0 to 9",
    }
    refused("cifar10", tmp_path, path, words.get(damage, "cannot be read"))


@pytest.mark.parametrize("damage", ["annotation", "class", "image", "classes", "line"])
def test_damaged_tiny_imagenet(tmp_path, monkeypatch, damage):
    sets.shrink(monkeypatch, "tiny_imagenet", 24, 9, classes=3)
    root = sets.tiny_imagenet(tmp_path, sets.sets_of((3, 64, 64), 3))
    source = root / "val" / "val_annotations.txt"
    if damage == "annotation":
        (root / "val" / "images" / "val_3.JPEG").unlink()
        refused("tiny_imagenet", tmp_path, root / "val" / "images" / "val_3.JPEG", "is missing", source)
    elif damage == "class":
        source.write_text(source.read_text().replace("n01443537", "n01443538"))
        refused("tiny_imagenet", tmp_path, source, "'n01443538'", "did you mean 'n01443537'?")
    elif damage == "image":
        path = next((root / "train" / "n01443537" / "images").iterdir())
        path.write_bytes(path.read_bytes()[:300])
        refused("tiny_imagenet", tmp_path, path, "cannot be read")
    elif damage == "classes":
        shutil.rmtree(root / "train" / "n01443537")
        refused("tiny_imagenet", tmp_path, root / "train", "has 2 class folders; allowed: 3")
    else:
        source.write_text("val_0.JPEG\n")
        refused("tiny_imagenet", tmp_path, f"{source}, line 1: 'val_0.JPEG' has fewer than 2 columns")


@pytest.mark.parametrize("damage", ["meta", "truth", "image", "wnid", "val"])
def test_damaged_imagenet(tmp_path, monkeypatch, damage):
    sets.shrink(monkeypatch, "imagenet", 24, 9, classes=3)
    root = sets.imagenet(tmp_path, sets.sets_of((3, 9, 9), 3))
    data = root / "ILSVRC2012_devkit_t12" / "data"
    truth = data / "ILSVRC2012_validation_ground_truth.txt"
    if damage == "meta":
        (data / "meta.mat").write_bytes((data / "meta.mat").read_bytes()[:200])
        refused("imagenet", tmp_path, data / "meta.mat", "cannot be read")
    elif damage == "truth":
        truth.write_text(truth.read_text() + "4\n")
        refused("imagenet", tmp_path, truth, "has the label '4'; allowed: 1 to 3")
    elif damage == "image":
        (root / "val" / "ILSVRC2012_val_00000009.JPEG").unlink()
        refused("imagenet", tmp_path, "ILSVRC2012_val_00000009.JPEG is missing", truth)
    elif damage == "wnid":
        (root / "train" / "n01443537").rename(root / "train" / "n01443538")
        refused("imagenet", tmp_path, "'n01443537'", root / "train")
    else:
        shutil.rmtree(root / "ILSVRC2012_devkit_t12")
        refused("imagenet", tmp_path, "neither test/<class>/ nor val/<class>/", "ILSVRC2012_devkit_t12")


@pytest.mark.parametrize("damage", ["label", "image", "categories", "text"])
def test_damaged_places365(tmp_path, monkeypatch, damage):
    sets.shrink(monkeypatch, "places365", 24, 9, classes=3)
    root = sets.places365(tmp_path, sets.sets_of((3, 9, 9), 3))
    source = root / "places365_val.txt"
    if damage == "label":
        source.write_text(source.read_text().replace(" 2\n", " 3\n"))
        refused("places365", tmp_path, source, "has the label '3'; allowed: 0 to 2")
    elif damage == "image":
        shutil.rmtree(root / "data_256_standard" / "b")
        refused("places365", tmp_path, "is missing", root / "places365_train_standard.txt")
    elif damage == "categories":
        (root / "categories_places365.txt").write_text("/a/airfield 0\n")
        refused("places365", tmp_path, "categories_places365.txt names 1 classes; allowed: 3")
    else:
        source.write_bytes(b"\xff\xfe\xff")
        refused("places365", tmp_path, source, "cannot be read")


@pytest.mark.parametrize("damage", ["missing", "empty", "unknown", "twice", "unlabelled", "one", "nested"])
def test_wrong_class_folders(tmp_path, damage):
    drawn = sets.sets_of((3, 32, 32), 10, 30, 20)
    sets.class_folders(tmp_path, drawn, sets.CIFAR10)
    train, test = tmp_path / "train", tmp_path / "test"
    if damage == "missing":
        shutil.rmtree(test / "frog")
        refused("cifar10", tmp_path, f"{test} has no images of class frog")
    elif damage == "empty":
        shutil.rmtree(train / "frog")
        (train / "frog").mkdir()
        refused("mine", tmp_path, f"{train} has no images of class frog")
    elif damage == "unknown":
        (train / "frog").rename(train / "frogs")
        refused("cifar10", tmp_path, f"{train / 'frogs'} is no class of 'cifar10'", "did you mean 'frog'?")
    elif damage == "twice":
        shutil.copytree(train / "frog", train / "Frog")
        refused("cifar10", tmp_path, "are both class 'frog'")
    elif damage == "nested":
        shutil.copytree(train / "frog", train / "cat" / "frog")
        refused("mine", tmp_path, f"{train / 'cat' / 'frog'} is a folder in a class folder")
    elif damage == "unlabelled":
        shutil.rmtree(test)
        refused("cifar10", tmp_path, "neither test/<class>/ nor val/<class>/", "lthlab data fetch cifar10")
    else:
        for path in list(train.iterdir())[1:]:
            shutil.rmtree(path)
        refused("mine", tmp_path, f"{train} has 1 class folders; allowed: 2 and more")


def test_images_that_cannot_be_read_are_named(tmp_path):
    whole = sets.save(sets.images(0, 3, 50, 50), tmp_path / "a.png")
    whole.write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "b.jpg").write_text("no image")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "c.png")
    for name, word in (
        ("a.png", "truncated"),
        ("b.jpg", "cannot identify"),
        ("c.png", "more than 8 bits"),
        ("d.png", "No such file"),
    ):
        with pytest.raises(InputError, match=f"{name} cannot be read.*{word}"):
            readers.decode(tmp_path / name, 3)
    with pytest.raises(InputError, match=r"b\.jpg cannot be read"):
        readers.header(tmp_path / "b.jpg")
