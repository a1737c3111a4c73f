"""Importing, fetching from a server of the test, and verifying; what is installed compared with what was drawn."""

import functools
import hashlib
import http.server
import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import sets

from lthlab import catalog, data, datasets, install, parts, readers
from lthlab.catalog import KNOWN, Archive
from lthlab.errors import InputError
from lthlab.install import fetch, import_set, verify
from lthlab.parts import Data


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LTHLAB_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def holds(name, drawn):
    """Compare an installed set with what was drawn, in canonical order."""
    arrays = catalog.installed(name).contents
    for part, (x, y) in zip(("train", "test"), sets.expected(drawn), strict=True):
        assert np.array_equal(arrays[f"{part}_x"], x) and arrays[f"{part}_y"].tolist() == y


# --- importing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "webp", "bmp"])
def test_cifar10_is_the_same_from_its_binaries_and_from_class_folders(tmp_path, monkeypatch, form):
    sets.shrink(monkeypatch, "cifar10", 30, 20)
    drawn = sets.sets_of((3, 32, 32), 10, 30, 20)
    facts = import_set("cifar10", sets.cifar(tmp_path / "binary", drawn).parent)
    holds("cifar10", drawn)
    key = Data(name="cifar10").form()
    assert key == {"name": "cifar10", "fingerprint": facts.fingerprint}
    names = ("plane", "car", *sets.CIFAR10[2:])
    again = import_set("cifar10", sets.class_folders(tmp_path / "folders", drawn, names, form))
    assert again == facts and Data(name="cifar10").form() == key
    holds("cifar10", drawn)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "svhn", "cifar100"])
def test_official_files_and_class_folders_give_one_fingerprint(tmp_path, monkeypatch, name):
    shape, classes = datasets.DATASETS[name].shape, datasets.DATASETS[name].classes
    sets.shrink(monkeypatch, name, 2 * classes, classes)
    drawn = sets.sets_of(shape, classes, 2 * classes, classes)
    writer = {"svhn": sets.svhn, "cifar100": functools.partial(sets.cifar, coarse=True)}.get(name, sets.mnist)
    writer(tmp_path / "official", drawn)
    facts = import_set(name, tmp_path / "official")
    holds(name, drawn)
    assert facts.mean == pytest.approx(drawn[0][0].mean((0, 2, 3)), rel=1e-14)
    names = [text.replace("/", "_") for text in KNOWN[name].classes]
    assert import_set(name, sets.class_folders(tmp_path / "folders", drawn, names)) == facts


def test_tiny_imagenet_is_kept_decoded(tmp_path, monkeypatch):
    sets.shrink(monkeypatch, "tiny_imagenet", 24, 9, classes=3)
    drawn = sets.sets_of((3, 64, 64), 3)
    facts = import_set("tiny_imagenet", sets.tiny_imagenet(tmp_path, drawn, "png").parent)
    holds("tiny_imagenet", drawn)
    assert import_set("tiny_imagenet", sets.class_folders(tmp_path / "folders", drawn, sorted(sets.WNIDS))) == facts


@pytest.mark.parametrize("name", ["imagenet", "places365"])
def test_large_sets_are_installed_as_an_index(tmp_path, monkeypatch, name):
    sets.shrink(monkeypatch, name, 24, 9, classes=3)
    getattr(sets, name)(tmp_path / "images", sets.sets_of((3, 10, 8), 3))
    facts = import_set(name, tmp_path / "images")
    found = catalog.installed(name)
    assert (facts.shape, facts.train, facts.test) == (datasets.DATASETS[name].shape, 24, 9)
    for part in ("train", "test"):
        images, labels, digests = found.contents[f"{part}_x"], found.contents[f"{part}_y"], found.digests[part]
        rows = list(zip(labels.tolist(), (digest.tobytes() for digest in digests), strict=True))
        assert rows == sorted(rows)
        decoded = [readers.decode(images.root / each, 3).tobytes() for each in images.names]
        assert [hashlib.sha256(pixels).digest() for pixels in decoded] == [digest for _, digest in rows]
    assert sum(1 for _ in (tmp_path / "home").iterdir()) == 3
    seen = data.load(name, None)
    assert list(seen.train_x.names) == list(found.contents["train_x"].names) and len(seen.test_y) == 9


def test_a_set_of_ones_own_trains_without_python(tmp_path):
    drawn = sets.sets_of((1, 6, 5), 3)
    facts = import_set("mine", sets.class_folders(tmp_path / "images", drawn, ("a", "b", "c")))
    holds("mine", drawn)
    assert (facts.shape, facts.classes, facts.train, facts.test) == ((1, 6, 5), 3, 24, 9)
    shutil.rmtree(tmp_path / "images")
    found = data.load(parts.Data(name="mine", val_size=6), None)
    assert (found.classes, found.fingerprint, found.mean) == (3, facts.fingerprint, facts.mean)
    assert found.train_x.shape == (18, 1, 6, 5) and found.val_y.tolist() == [0, 0, 1, 1, 2, 2]


def test_images_are_brought_to_one_size_if_asked_for(tmp_path):
    sets.class_folders(tmp_path, sets.sets_of((3, 6, 5), 3), ("a", "b", "c"))
    path = sets.save(sets.images(9, 3, 30, 40), tmp_path / "train" / "b" / "large.png")
    facts = import_set("mine", tmp_path, 4)
    assert facts.shape == (3, 4, 4) and facts.train == 25
    assert readers.decode(path, 3, 4).tobytes() in {x.tobytes() for x in catalog.installed("mine").contents["train_x"]}


def test_what_does_not_fit_into_memory_is_streamed(tmp_path, monkeypatch):
    sets.class_folders(tmp_path, sets.sets_of((3, 6, 5), 3), ("a", "b", "c"))
    monkeypatch.setattr(install, "IN_MEMORY", (24 + 9) * 3 * 6 * 5)
    import_set("mine", tmp_path)
    assert not catalog.installed("mine").digests
    monkeypatch.setattr(install, "IN_MEMORY", (24 + 9) * 3 * 6 * 5 - 1)
    facts = import_set("mine", tmp_path)
    assert catalog.installed("mine").digests and facts.streamed and facts.shape == (3, 6, 5)
    with pytest.raises(InputError, match="--size 6: the images have 3,564 bytes; allowed: 2,969 at most"):
        import_set("mine", tmp_path, 6)


def test_many_images_are_decoded_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "CHUNK", 3)
    drawn = sets.sets_of((3, 3, 3), 3, 50, 20)
    import_set("mine", sets.class_folders(tmp_path, drawn, ("a", "b", "c")))
    holds("mine", drawn)


# --- what is refused ------------------------------------------------------------------------------------------


def refused(home, message, *arguments):
    before = sets.tree(home)
    with pytest.raises(InputError) as error:
        import_set(*arguments)
    assert message in str(error.value)
    assert sets.tree(home) == before


def test_names_that_cannot_be_used(home, tmp_path):
    for name in ("../mine", "Mine", "1st", "", "a.b", "a" * 65):
        refused(home, f"the name '{name}' is not allowed", name, tmp_path)
    refused(home, "'digits' is registered already", "digits", tmp_path)
    refused(home, "--size 16: 'cifar10' has images of a size of its own", "cifar10", tmp_path, 16)
    refused(home, "gone: no such folder", "mine", tmp_path / "gone")


def test_wrong_numbers_of_images(home, tmp_path, monkeypatch):
    sets.shrink(monkeypatch, "cifar10", 30, 20)
    drawn = sets.sets_of((3, 32, 32), 10, 30, 19)
    message = "has 19 test images of 'cifar10'; allowed: 20"
    refused(home, message, "cifar10", sets.cifar(tmp_path / "binary", drawn).parent)
    refused(home, message, "cifar10", sets.class_folders(tmp_path / "folders", drawn, sets.CIFAR10))


def test_wrong_numbers_of_images_of_a_class(home, tmp_path, monkeypatch):
    sets.shrink(monkeypatch, "cifar10", 30, 20)
    drawn = sets.sets_of((3, 32, 32), 10, 30, 20)
    drawn[1][1][drawn[1][1] == 3] = 4
    message = "has 0 test images of class 3 of 'cifar10'; allowed: 2"
    refused(home, message, "cifar10", sets.cifar(tmp_path / "binary", drawn).parent)
    sets.shrink(monkeypatch, "svhn", 24, 9)
    drawn = sets.sets_of((3, 32, 32), 10)
    counts = tuple(np.bincount(drawn[0][1], minlength=10).tolist())
    facts = import_set("svhn", sets.svhn(tmp_path / "svhn", drawn))
    assert (facts.train_counts, facts.test_counts) == (counts, (1,) * 9 + (0,))
    wrong = replace(datasets.DATASETS["svhn"], train_counts=(counts[0] - 1, counts[1] + 1, *counts[2:]))
    monkeypatch.setitem(datasets.DATASETS, "svhn", wrong)
    refused(home, "has 3 train images of class 0 of 'svhn'; allowed: 2", "svhn", tmp_path / "svhn")


def test_images_and_labels_that_are_not_as_many(home, tmp_path, monkeypatch):
    sets.shrink(monkeypatch, "mnist", 24, 9)
    sets.mnist(tmp_path, sets.sets_of((1, 28, 28), 10))
    sets.idx(tmp_path / "t10k-images-idx3-ubyte.gz", sets.images(0, 8, 28, 28))
    refused(home, "has 8 test images and 9 labels", "mnist", tmp_path)


def test_images_of_another_size(home, tmp_path, monkeypatch):
    sets.shrink(monkeypatch, "cifar10", 31, 20)
    sets.class_folders(tmp_path, sets.sets_of((3, 32, 32), 10, 30, 20), sets.CIFAR10)
    path = sets.save(sets.images(0, 3, 32, 33), tmp_path / "train" / "cat" / "wide.png")
    refused(home, f"{path} has 32 × 33 pixels; those of 'cifar10' have 32 × 32", "cifar10", tmp_path)
    sets.shrink(monkeypatch, "mnist", 24, 9)
    sets.mnist(tmp_path / "mnist", sets.sets_of((1, 27, 28), 10))
    refused(home, "images of shape (1, 27, 28); those of 'mnist' have (1, 28, 28)", "mnist", tmp_path / "mnist")


def test_test_images_of_another_size_than_the_training_images(home, tmp_path, monkeypatch):
    sets.shrink(monkeypatch, "mnist", 24, 9)
    sets.mnist(tmp_path, [sets.sets_of((1, 28, 28), 10)[0], sets.sets_of((1, 27, 28), 10)[1]])
    message = "test images of shape (1, 27, 28); those of 'mnist' have (1, 28, 28)"
    refused(home, message, "mnist", tmp_path)


def test_another_fingerprint_than_the_pinned_one(home, tmp_path, monkeypatch):
    sets.shrink(monkeypatch, "cifar10", 30, 20)
    drawn = sets.sets_of((3, 32, 32), 10, 30, 20)
    folder = sets.cifar(tmp_path, drawn).parent
    found = import_set("cifar10", folder).fingerprint
    monkeypatch.setitem(datasets.DATASETS, "cifar10", replace(datasets.DATASETS["cifar10"], fingerprint=found))
    import_set("cifar10", folder)
    drawn[1][0][7, 0, 0, 0] ^= 1
    message = "cifar-10-binary.tar.gz has other images or labels than 'cifar10': its fingerprint is "
    refused(home, message, "cifar10", sets.cifar(tmp_path / "other", drawn).parent)
    holds("cifar10", sets.sets_of((3, 32, 32), 10, 30, 20))


def test_pixels_that_are_not_those_of_the_set(home, tmp_path, monkeypatch):
    well_known = KNOWN["svhn"]
    sets.shrink(monkeypatch, "svhn", 24, 9)
    drawn = sets.sets_of((3, 32, 32), 10)
    folder = sets.svhn(tmp_path, drawn)
    mean, std = (tuple(each / 255) for each in (drawn[0][0].mean((0, 2, 3)), drawn[0][0].std((0, 2, 3))))
    monkeypatch.setitem(KNOWN, "svhn", replace(well_known, mean=mean, std=std))
    import_set("svhn", folder)
    for wrong in ({"mean": mean[::-1]}, {"std": tuple(each + 1e-4 for each in std)}):
        monkeypatch.setitem(KNOWN, "svhn", replace(well_known, **{"mean": mean, "std": std} | wrong))
        refused(home, "the pixels of train_32x32.mat have mean [", "svhn", folder)


@pytest.mark.parametrize("more", [0, 1])
def test_a_constant_channel_is_named(home, tmp_path, more):
    drawn = sets.sets_of((3, 6, 5), 3)
    drawn[0][0][:, 2] = 0
    sets.class_folders(tmp_path, drawn, ("a", "b", "c"))
    if more:  # which makes it a streamed set
        sets.save(sets.images(9, 3, 9, 7) * np.uint8([[[1]], [[1]], [[0]]]), tmp_path / "train" / "b" / "large.png")
    message = "data set 'mine': channel 2 of all training images is 0 everywhere, so it cannot be normalised; "
    refused(home, message + "leave it out", "mine", tmp_path)


def test_an_unreadable_image_is_named_and_nothing_is_installed(home, tmp_path):
    sets.class_folders(tmp_path, sets.sets_of((3, 60, 50), 3), ("a", "b", "c"))
    path = next((tmp_path / "test" / "b").iterdir())
    path.write_bytes(path.read_bytes()[:4000])
    refused(home, f"{path} cannot be read", "mine", tmp_path)


def test_a_failed_write_leaves_the_old_set(home, tmp_path, monkeypatch):
    sets.class_folders(tmp_path, sets.sets_of((3, 6, 5), 3), ("a", "b", "c"))
    facts = import_set("mine", tmp_path)
    before = sets.tree(home)
    monkeypatch.setattr(install, "save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        import_set("mine", tmp_path)
    assert sets.tree(home) == before and catalog.installed("mine").facts == facts


# --- fetching -------------------------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files; goes on where a client asks it to, unless `plain`; ends after `most` bytes."""

    plain, most, asked = False, None, []

    def do_GET(self):
        path = self.translate_path(self.path)
        wanted = self.headers.get("Range")
        type(self).asked.append(wanted)
        try:
            content = open(path, "rb").read()  # noqa: SIM115
        except OSError:
            return self.send_error(404)
        begin = int(wanted[6:-1]) if wanted and not self.plain else 0
        if begin >= len(content):
            return self.send_error(416)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin : None if self.most is None else begin + self.most])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """CIFAR-10, tiny, at the address of a server of the test."""
    sets.shrink(monkeypatch, "cifar10", 30, 20)
    path = sets.cifar(tmp_path / "served", sets.sets_of((3, 32, 32), 10, 30, 20))
    handler = type("Own", (Handler,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=path.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{path.name}"
    archive = Archive(url, path.stat().st_size, hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setitem(KNOWN, "cifar10", replace(KNOWN["cifar10"], archives=(archive,)))
    yield handler, path
    server.shutdown()
    server.server_close()


def test_fetching_tells_size_terms_and_checksum_then_installs(home, served):
    told = []
    facts = fetch("cifar10", lambda text: told.append((text, home.exists())))
    archive = KNOWN["cifar10"].archives[0]
    size = f"{archive.size / 1e6:,.1f} MB"
    assert told == [
        (f"cifar10: animals and vehicles; {size}; no licence stated", False),
        (f"  {archive.url}  {size}  MD5 {archive.md5}", False),
    ]
    holds("cifar10", sets.sets_of((3, 32, 32), 10, 30, 20))
    assert facts == datasets.facts_of("cifar10")
    assert sets.tree(home) == ["cifar10.json", "cifar10.safetensors"]


@pytest.mark.parametrize("plain", [False, True])
def test_a_download_that_ended_goes_on(home, served, plain):
    handler, path = served
    handler.most = 10_000
    with pytest.raises(InputError, match=r"it ended after 10,000 of .*\.part has 10,000 bytes of it so far; the same"):
        fetch("cifar10", print)
    assert sets.tree(home) == [f"downloads/cifar10/{path.name}.part"]
    handler.most, handler.plain = None, plain
    fetch("cifar10", print)
    assert handler.asked == [None, "bytes=10000-"]
    holds("cifar10", sets.sets_of((3, 32, 32), 10, 30, 20))


def test_a_download_that_was_whole_but_not_checked_is_checked(home, served):
    handler, path = served
    part = home / "downloads" / "cifar10" / f"{path.name}.part"
    part.parent.mkdir(parents=True)
    shutil.copy(path, part)
    fetch("cifar10", print)
    holds("cifar10", sets.sets_of((3, 32, 32), 10, 30, 20))


def test_another_checksum_is_refused(home, served):
    _, path = served
    right = path.read_bytes()
    path.write_bytes(right[:-1] + b"x")
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(
        InputError, match=f"has MD5 {found}; allowed: {hashlib.md5(right).hexdigest()}; what was received"
    ):
        fetch("cifar10", print)
    assert sets.tree(home) == []
    path.write_bytes(right)
    fetch("cifar10", print)


def test_what_cannot_be_fetched(home, served, monkeypatch):
    handler, path = served
    with pytest.raises(
        InputError, match="'cifar' cannot be fetched; allowed: cifar10, cifar100, .*did you mean 'cifar10'"
    ):
        fetch("cifar", print)
    with pytest.raises(
        InputError, match="'imagenet' cannot be fetched .*with an account.*`lthlab data import imagenet FOLDER`"
    ):
        fetch("imagenet", print)
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name}: 404 Not Found"):
        fetch("cifar10", print)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(InputError, match="has 0 MB free; 0 are needed"):
        fetch("cifar10", print)
    assert not catalog.is_installed("cifar10") and handler.asked == [None]


def test_room_is_needed_for_what_is_not_there_yet(home, served, monkeypatch):
    """For a set in memory: what is left of its archives, and its decoded images."""
    handler, path = served
    size, decoded = path.stat().st_size, (30 + 20) * 3 * 32 * 32
    room = {"free": 0}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, room["free"]))

    def refused_with(free):
        room["free"] = free
        with pytest.raises(
            InputError, match="MB free; .* are needed; make room, or name another folder in LTHLAB_DATA"
        ):
            fetch("cifar10", print)

    refused_with(size + decoded - 1)
    part = home / "downloads" / "cifar10" / f"{path.name}.part"
    part.write_bytes(path.read_bytes()[:1000])
    refused_with(size + decoded - 1001)
    part.unlink()
    shutil.copy(path, part.with_suffix(""))
    refused_with(decoded - 1)
    assert handler.asked == []
    room["free"] = decoded
    fetch("cifar10", print)
    assert handler.asked == [] and catalog.is_installed("cifar10")


def test_room_for_what_is_unpacked(home, tmp_path, monkeypatch):
    """Small files take whole blocks of the disk; a streamed set is not decoded."""
    packed("places365", tmp_path, monkeypatch)
    [archive] = KNOWN["places365"].archives
    monkeypatch.setitem(KNOWN, "places365", replace(KNOWN["places365"], archives=(replace(archive, size=1000),)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 2999))
    with pytest.raises(InputError, match="are needed"):
        fetch("places365", print)
    (home / "downloads" / "places365" / archive.name).write_bytes(b"x" * 1)
    fetch("places365", print)


def test_nothing_listens(home, served, monkeypatch):
    archive = replace(KNOWN["cifar10"].archives[0], url="http://127.0.0.1:9/file")
    with pytest.raises(InputError, match="127.0.0.1:9/file: .*nothing was received; the same command"):
        install.download(archive, home / "file")


def packed(name, tmp_path, monkeypatch):
    """Put a set of images into an archive, which is what a download then gives."""
    sets.shrink(monkeypatch, name, 24, 9, classes=3)
    root = getattr(sets, name)(tmp_path / "tree", sets.sets_of((3, 64, 64), 3))
    top = root.parent if name == "tiny_imagenet" else root
    made = shutil.make_archive(str(tmp_path / "archive"), "zip" if name == "tiny_imagenet" else "tar", top)
    url = KNOWN[name].archives[0].url
    monkeypatch.setitem(KNOWN, name, replace(KNOWN[name], archives=(Archive(url, 1, "0" * 32),)))
    monkeypatch.setattr(install, "download", lambda archive, path: shutil.copy(made, path))
    shutil.rmtree(top)


@pytest.mark.parametrize("name", ["tiny_imagenet", "places365"])
def test_archives_of_images_are_unpacked(home, tmp_path, monkeypatch, name):
    packed(name, tmp_path, monkeypatch)
    fetch(name, print)
    found = catalog.installed(name)
    if name == "places365":
        assert found.contents["train_x"].root == (home / name).resolve() and verify(name) == []
    else:
        assert len(found.contents["train_x"]) == 24
        assert sets.tree(home) == [f"{name}.json", f"{name}.safetensors"]
    assert not (home / "downloads" / name).exists()


@pytest.mark.parametrize("imported", [False, True])
def test_a_folder_is_never_replaced(home, tmp_path, monkeypatch, imported):
    packed("places365", tmp_path, monkeypatch)
    folder = home / "places365"
    if imported:
        sets.places365(folder, sets.sets_of((3, 10, 8), 3))
        import_set("places365", folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.txt").write_text("mine")
    before = sets.tree(home)
    with pytest.raises(InputError) as error:
        fetch("places365", lambda text: pytest.fail("was told to download"))
    text = f"{folder} is there already and is not replaced; `lthlab data import places365 {folder}` installs what it "
    assert str(error.value) == text + "holds; to fetch it anew, move it away"
    assert sets.tree(home) == before
    shutil.rmtree(folder)
    fetch("places365", print)
    assert verify("places365") == []


# --- verifying ------------------------------------------------------------------------------------------------


def test_verifying_looks_at_every_image(tmp_path):
    sets.class_folders(tmp_path, sets.sets_of((3, 20, 20), 3), ("a", "b", "c"))
    sets.save(sets.images(9, 3, 9, 7), tmp_path / "train" / "b" / "large.png")
    import_set("mine", tmp_path)
    assert verify("mine") == []
    changed, gone, cut = (sorted((tmp_path / "train" / name).iterdir())[0] for name in "abc")
    sets.save(sets.images(5, 3, 20, 20), changed)
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:500])
    wrong = sorted(verify("mine"))
    assert len(wrong) == 3
    assert wrong[0] == f"{changed} is another image than the installed one"
    assert wrong[1].startswith(f"{gone} cannot be read") and wrong[2].startswith(f"{cut} cannot be read")


def test_provenance_is_written(home, tmp_path):
    sets.class_folders(tmp_path, sets.sets_of((3, 6, 5), 3), ("a", "b", "c"))
    import_set("mine", tmp_path)
    about = json.loads((home / "mine.json").read_text())
    assert about.keys() == {"facts", "source", "classes", "created", "versions"}
    assert about["versions"].keys() == {"lthlab", "numpy", "pillow"}
