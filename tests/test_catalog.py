"""What is known of data sets, compared with torchvision and plain NumPy, and what is installed."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sets

from lthlab import catalog, datasets, install, parts
from lthlab.catalog import KNOWN
from lthlab.datasets import DATASETS, DataFacts
from lthlab.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LTHLAB_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def mine(tmp_path):
    """A set of one's own, installed from class folders."""
    sets.class_folders(tmp_path / "images", sets.sets_of((3, 6, 5), 3), ("a", "b", "c"))
    return install.import_set("mine", tmp_path / "images")


@pytest.fixture
def files(tmp_path):
    """A set of one's own whose images differ in size."""
    sets.class_folders(tmp_path / "files", sets.sets_of((3, 6, 5), 3), ("a", "b", "c"))
    sets.save(sets.images(9, 3, 9, 7), tmp_path / "files" / "train" / "b" / "large.png")
    return install.import_set("files", tmp_path / "files")


# --- what is known --------------------------------------------------------------------------------------------


def test_addresses_and_checksums_are_those_of_torchvision():
    from torchvision.datasets import MNIST as TheirMNIST
    from torchvision.datasets import SVHN, FashionMNIST, places365

    for name, theirs in (("mnist", TheirMNIST), ("fashion_mnist", FashionMNIST)):
        assert [(a.name, a.md5) for a in KNOWN[name].archives] == list(theirs.resources)
        assert all(a.url.removesuffix(a.name) in theirs.mirrors for a in KNOWN[name].archives)
    assert [(a.url, a.name, a.md5) for a in KNOWN["svhn"].archives] == [
        tuple(SVHN.split_list[part]) for part in ("train", "test")
    ]
    theirs = places365.Places365
    known = [
        theirs._DEVKIT_META["standard"],
        theirs._IMAGES_META["train-standard", True],
        theirs._IMAGES_META["val", True],
    ]
    assert [(a.name, a.md5) for a in KNOWN["places365"].archives] == known
    assert all(a.url == theirs._BASE_URL + a.name for a in KNOWN["places365"].archives)
    assert KNOWN["fashion_mnist"].classes == tuple(FashionMNIST.classes)


def test_every_known_set_has_facts_terms_and_a_way_to_get_it():
    assert KNOWN.keys() == DATASETS.keys() - {"digits"}
    for name, known in KNOWN.items():
        assert known.about and known.terms and bool(known.archives) != bool(known.by_hand)
        assert len(set(known.classes)) in (0, DATASETS[name].classes)
        assert all(len(bytes.fromhex(archive.md5)) == 16 for archive in known.archives)
    # Krizhevsky 2009; Netzer et al. 2011; Russakovsky et al. 2015; Zhou et al. 2017
    counts = {"cifar100": (50_000, 10_000, 100), "svhn": (73_257, 26_032, 10), "imagenet": (1_281_167, 50_000, 1000)}
    counts |= {"tiny_imagenet": (100_000, 10_000, 200), "places365": (1_803_460, 36_500, 365)}
    counts |= {"miniplaces": (100_000, 10_000, 100)}  # the challenge's own page
    for name, allowed in counts.items():
        assert (DATASETS[name].train, DATASETS[name].test, DATASETS[name].classes) == allowed
    for facts in DATASETS.values():
        for part in ("train", "test"):
            each = getattr(facts, f"{part}_counts")
            assert not each or (len(each), sum(each)) == (facts.classes, getattr(facts, part))
    assert {name for name, facts in DATASETS.items() if facts.streamed} == {"imagenet", "places365", "miniplaces"}


def test_cifar10_is_pinned_with_its_well_known_moments():
    facts = DATASETS["cifar10"]
    assert facts.fingerprint == "7f0e3800e32b36f2784447a699106179"
    assert [round(mean / 255, 5) for mean in facts.mean] == [0.49140, 0.48216, 0.44653]
    assert [round(std / 255, 5) for std in facts.std] == [0.24703, 0.24349, 0.26159]


def test_moments_are_those_of_numpy():
    x = sets.images(0, 5000, 2, 4, 3)
    mean, std = catalog.moments(catalog.histogram(x))
    for channel in range(2):
        assert mean[channel] == pytest.approx(x[:, channel].mean(), rel=1e-14)
        assert std[channel] == pytest.approx(x[:, channel].std(), rel=1e-13)


def test_the_canonical_order_is_by_class_then_by_hash():
    drawn = sets.sets_of((2, 3, 3), 4)
    x, y = catalog.canonical(*drawn[0])
    theirs = sets.expected(drawn)[0]
    assert np.array_equal(x, theirs[0]) and y.tolist() == theirs[1] and (x.dtype, y.dtype) == (np.uint8, np.int64)


def test_the_fingerprint_hashes_shapes_pixels_and_labels_in_turn():
    tensors = {
        f"{part}_{name}": array
        for part, drawn in zip(("test", "train"), sets.sets_of((1, 2, 3), 3), strict=True)
        for name, array in zip("yx", (drawn[1].astype(np.int64), drawn[0]), strict=True)
    }
    text = b""
    for part in ("train", "test"):
        for name, kind in (("x", "u1"), ("y", "<i8")):
            tensor = tensors[f"{part}_{name}"]
            text += f"{part}_{name} {kind} {list(tensor.shape)}\n".encode() + tensor.tobytes()
    assert catalog.fingerprint(tensors) == hashlib.sha256(text).hexdigest()[:32]


# --- the data home --------------------------------------------------------------------------------------------


def test_the_home_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTHLAB_DATA", "sets")
    assert datasets.data_home() == Path.cwd() / "sets"
    monkeypatch.delenv("LTHLAB_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert datasets.data_home() == tmp_path / "share" / "lthlab"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative"):  # which the XDG specification says to ignore
        monkeypatch.setenv("XDG_DATA_HOME", unset)
        assert datasets.data_home() == tmp_path / ".local" / "share" / "lthlab"


def test_an_installed_set_is_known_by_name(mine, home, tmp_path):
    assert datasets.facts_of("mine") == mine and "mine" in datasets.data_sets()
    assert parts.Data(name="mine", val_size=4).images == 20
    assert parts.Data(name="mine").form() == {"name": "mine", "fingerprint": mine.fingerprint}
    shutil.copytree(home, tmp_path / "elsewhere")
    for name in ("../elsewhere/mine", "Mine", "mine.names", "other"):
        with pytest.raises(InputError, match=f"data set '{name}' is not known; allowed: .*mine"):
            datasets.facts_of(name)


def test_facts_follow_what_is_installed(monkeypatch, tmp_path):
    sets.shrink(monkeypatch, "svhn", 24, 9)
    assert datasets.facts_of("svhn").fingerprint is None
    facts = install.import_set("svhn", sets.svhn(tmp_path / "svhn", sets.sets_of((3, 32, 32), 10)))
    assert datasets.facts_of("svhn") == facts and facts.fingerprint and len(facts.mean) == 3


def test_facts_of_a_set_that_is_installed_anew_are_the_new_ones(mine, tmp_path):
    sets.save(sets.images(8, 3, 6, 5), tmp_path / "images" / "train" / "a" / "more.png")
    again = install.import_set("mine", tmp_path / "images")
    assert (mine.train, again.train) == (24, 25) and again.fingerprint != mine.fingerprint
    assert datasets.facts_of("mine") == again == catalog.installed("mine").facts


def test_installed_facts_that_cannot_be_read_are_named(mine, home):
    for text in ("{", "[]", '{"facts": {}}', json.dumps({"facts": dataclasses.asdict(mine) | {"more": 1}})):
        (home / "mine.json").write_text(text)
        with pytest.raises(
            InputError, match=r"mine\.json does not describe a data set .*`lthlab data import mine FOLDER`"
        ):
            datasets.facts_of("mine")


def test_missing_sets_are_refused_with_where_and_how(home, monkeypatch):
    monkeypatch.setitem(DATASETS, "registered", DataFacts((1, 2, 2), 2, 4, 4, "0" * 32))
    catalog.refuse_missing(["digits", "registered"])
    with pytest.raises(InputError) as error:
        catalog.refuse_missing(["cifar10", "digits", "imagenet", "mine", "cifar10"])
    by_hand = KNOWN["imagenet"].by_hand
    assert "https://image-net.org" in by_hand
    assert str(error.value).splitlines() == [
        f"data set 'cifar10' is not installed: there is no {home}/cifar10.json; `lthlab data fetch cifar10` downloads "
        "it (170 MB), `lthlab data import cifar10 FOLDER` takes what you have",
        f"data set 'imagenet' is not installed: there is no {home}/imagenet.json; {by_hand}; then `lthlab data import "
        "imagenet FOLDER`",
        f"data set 'mine' is not installed: there is no {home}/mine.json; `lthlab data import mine FOLDER`",
    ]


@pytest.mark.parametrize("gone", ["files", "home/files.safetensors", "home/files.names.json"])
def test_a_streamed_set_without_its_files_is_missing(files, mine, tmp_path, gone):
    assert catalog.missing(["files", "mine"]) == []
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    text = f"data set 'files' is installed, but {tmp_path / gone} is not there; `lthlab data import files FOLDER`"
    assert catalog.missing(["files", "mine"]) == [text]
    with pytest.raises(InputError) as error:
        catalog.installed("files")
    assert str(error.value) == text


def test_installed_arrays(mine):
    found = catalog.installed("mine")
    assert found.facts == mine and not found.digests
    assert found.about["source"] == "class folders" and found.about["classes"] == ["a", "b", "c"]
    for part, (x, y) in zip(("train", "test"), sets.expected(sets.sets_of((3, 6, 5), 3)), strict=True):
        assert np.array_equal(found.contents[f"{part}_x"], x) and found.contents[f"{part}_y"].tolist() == y


def test_installed_files(files, tmp_path):
    found = catalog.installed("files")
    assert found.contents["train_x"].root == (tmp_path / "files").resolve()
    drawn = sets.sets_of((3, 6, 5), 3)
    drawn[0] = ([*drawn[0][0], sets.images(9, 3, 9, 7)], [*drawn[0][1], 1])
    for part, (x, y) in zip(("train", "test"), drawn, strict=True):
        rows = sorted(
            (int(label), hashlib.sha256(pixels.tobytes()).digest()) for pixels, label in zip(x, y, strict=True)
        )
        assert found.contents[f"{part}_y"].tolist() == [label for label, _ in rows]
        assert [digest.tobytes() for digest in found.digests[part]] == [digest for _, digest in rows]
        kept = found.contents[f"{part}_x"]
        assert len(set(kept.names)) == len(kept) and all((kept.root / name).is_file() for name in kept.names)
    assert (files.shape, files.train, files.test, files.classes) == ((3, 224, 224), 25, 9, 3)
    pixels = np.concatenate([np.reshape(x, (3, -1)) for x in drawn[0][0]], axis=1)
    assert files.mean == pytest.approx(pixels.mean(1), rel=1e-13) and files.std == pytest.approx(
        pixels.std(1), rel=1e-12
    )


@pytest.mark.parametrize("damage", ["byte", "short", "gone", "other", "names", "count"])
def test_damaged_sets_are_named_and_never_used(mine, files, home, damage):
    path = home / ("files.names.json" if damage in ("names", "count") else "mine.safetensors")
    data = path.read_bytes()
    if damage == "byte":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "short":
        path.write_bytes(data[:-100])
    elif damage == "gone":
        path.unlink()
    elif damage == "other":
        path.write_bytes((home / "files.safetensors").read_bytes())
    elif damage == "names":
        path.write_text("{}")
    else:
        names = json.loads(data)
        path.write_text(json.dumps(names | {"train": names["train"][1:]}))
    name = path.name.partition(".")[0]
    with pytest.raises(
        InputError, match=f"{path.name} is damaged .*; to install it anew: `lthlab data import {name} FOLDER`"
    ):
        catalog.installed(name)


def test_all_sets_are_listed(mine, files):
    rows = {row["name"]: row for row in catalog.listed()}
    assert rows.keys() == {*DATASETS, "mine", "files"}
    assert {name: row["installed"] for name, row in rows.items() if row["installed"] != "no"} == {
        "digits": "registered",
        "mine": "yes",
        "files": "streamed",
    }
    assert rows["mine"]["fingerprint"] == mine.fingerprint and rows["mine"]["bytes"] == (24 + 9) * 3 * 6 * 5
    assert rows["cifar100"]["terms"] == "no licence stated" and rows["cifar100"]["fingerprint"] is None


def test_damaged_sets_are_listed_with_the_others(mine, files, home):
    before = {row["name"]: row for row in catalog.listed()}
    (home / "mine.json").write_text("{")
    (home / "svhn.json").write_text("[]")
    rows = {row["name"]: row for row in catalog.listed()}
    facts = dict.fromkeys(("train", "test", "classes", "shape", "bytes", "fingerprint"))
    assert rows["mine"] == before["mine"] | facts | {"installed": "damaged"}
    assert rows["svhn"] == before["svhn"] | {"installed": "damaged"}
    del rows["mine"], before["mine"], rows["svhn"], before["svhn"]
    assert rows == before


def test_a_damaged_description_of_a_pinned_set_is_named(home):
    home.mkdir()
    (home / "cifar10.json").write_text("{")
    with pytest.raises(InputError, match=r"cifar10\.json is damaged .*to install it anew: `lthlab data fetch cifar10`"):
        catalog.installed("cifar10")
    assert next(row for row in catalog.listed() if row["name"] == "cifar10")["installed"] == "damaged"
