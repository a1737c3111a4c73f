"""Which data sets there are, what their official archives are, and what is installed in the data home."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lthlab.datasets import DATASETS, DataFacts, data_home, data_sets, facts_of, installed_facts
from lthlab.errors import InputError
from lthlab.images import Files

Array = NDArray[Any]
Arrays = dict[str, Any]
"""A decoded set: train_x and test_x, uint8 [N, C, H, W]; train_y and test_y, integers [N] from 0 on. Of a streamed set,
train_x and test_x are `lthlab.images.Files`, and all is in canonical order."""
PARTS = ("train", "test")
PLACES = "http://data.csail.mit.edu/places/places365/"
MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


@dataclass(frozen=True)
class Archive:
    """A file that a data set is distributed in.

    Attributes
    ----------
    url : str
        Its official address.
    size : int
        Bytes, about.
    md5 : str
        Its checksum, as its authors or torchvision state it.
    """

    url: str
    size: int
    md5: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Known:
    """What is known of a public data set besides its `DataFacts`.

    Attributes
    ----------
    about : str
        What it shows, in a line.
    terms : str
        Licence, or terms of use.
    archives : tuple of Archive
        What `lthlab data fetch` downloads; empty where that takes an account.
    by_hand : str
        How to get it where it cannot be fetched.
    classes : tuple of str
        Names of the classes in official order; sorted names of class folders where it is empty.
    aliases : mapping of str to str
        Other names of classes.
    unpacked : bool
        Whether the archives are unpacked before they are read.
    mean, std : tuple of float
        Well-known moments of the training pixels in [0, 1], which an import must meet; empty where there are none.
    """

    about: str
    terms: str
    archives: tuple[Archive, ...] = ()
    by_hand: str = ""
    classes: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    unpacked: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


_TEN = tuple("0123456789")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
_NO_LICENCE = "no licence stated"
_RESEARCH = "non-commercial research and education only"

KNOWN: dict[str, Known] = {
    "mnist": Known(
        "handwritten digits",
        "CC BY-SA 3.0",
        (
            Archive(MNIST + "train-images-idx3-ubyte.gz", 9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            Archive(MNIST + "train-labels-idx1-ubyte.gz", 28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
            Archive(MNIST + "t10k-images-idx3-ubyte.gz", 1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
            Archive(MNIST + "t10k-labels-idx1-ubyte.gz", 4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
        classes=_TEN,
        mean=(0.13066,),
        std=(0.30811,),
    ),
    "fashion_mnist": Known(
        "clothes of Zalando",
        "MIT",
        (
            Archive(FASHION + "train-images-idx3-ubyte.gz", 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            Archive(FASHION + "train-labels-idx1-ubyte.gz", 29_515, "25c81989df183df01b3e8a0aad5dffbe"),
            Archive(FASHION + "t10k-images-idx3-ubyte.gz", 4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
            Archive(FASHION + "t10k-labels-idx1-ubyte.gz", 5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
        classes=_CLOTHES,
        aliases={"t-shirt": "T-shirt/top", "boot": "Ankle boot"},
        mean=(0.28604,),
        std=(0.35302,),
    ),
    "svhn": Known(
        "digits of house numbers",
        "non-commercial use only",
        (
            Archive(
                "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
                182_040_794,
                "e26dedcc434d2e4c54c9b2d4a06d8373",
            ),
            Archive(
                "http://ufldl.stanford.edu/housenumbers/test_32x32.mat", 64_275_384, "eb5a983be6a315427106f1b164d9cef3"
            ),
        ),
        classes=_TEN,
        mean=(0.43768, 0.44377, 0.47280),
        std=(0.19803, 0.20102, 0.19704),
    ),
    "cifar10": Known(
        "animals and vehicles",
        _NO_LICENCE,
        (
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                170_052_171,
                "c32a1d4ab5d03f1284b67883e8d87530",
            ),
        ),
        classes=_CIFAR10,
        aliases={"plane": "airplane", "car": "automobile"},
        mean=(0.49140, 0.48216, 0.44653),
        std=(0.24703, 0.24349, 0.26159),
    ),
    "cifar100": Known(
        "animals, plants, people and things",
        _NO_LICENCE,
        (
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                168_513_733,
                "03b5dce01913d631647c71ecec9e9cb8",
            ),
        ),
        classes=tuple(_CIFAR100.split()),
        mean=(0.50708, 0.48655, 0.44092),
        std=(0.26733, 0.25644, 0.27615),
    ),
    "tiny_imagenet": Known(
        "200 classes of ImageNet, small; its validation images are the test set",
        _RESEARCH,
        (Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip", 248_100_043, "90528d7ca1a48142e341f4ef8d21d0de"),),
        unpacked=True,
    ),
    "imagenet": Known(
        "ILSVRC 2012; its validation images are the test set",
        f"{_RESEARCH}, by an agreement with image-net.org",
        by_hand="download ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from "
        "https://image-net.org with an account, unpack them to FOLDER/train/<wnid>/, FOLDER/val/ and "
        "FOLDER/ILSVRC2012_devkit_t12/",
    ),
    "places365": Known(
        "scenes, 256 × 256; its validation images are the test set",
        _RESEARCH,
        (
            Archive(PLACES + "filelist_places365-standard.tar", 68_000_000, "35a0585fee1fa656440f3ab298f8479c"),
            Archive(PLACES + "train_256_places365standard.tar", 26_100_000_000, "53ca1c756c3d1e7809517cc47c5561c5"),
            Archive(PLACES + "val_256.tar", 525_000_000, "e27b17d8d44f4af9a78502beb927f808"),
        ),
        unpacked=True,
    ),
    "miniplaces": Known(
        "100 classes of Places, 128 × 128; its validation images are the test set",
        _RESEARCH,
        by_hand="download images and lists as https://github.com/CSAILVision/miniplaces says, and bring the images to "
        "FOLDER/train/<class>/ and FOLDER/val/<class>/",
    ),
}
"""Public data sets by name. Addresses and checksums are those of the authors' pages or of torchvision."""


# --- canonical order and fingerprint --------------------------------------------------------------------------


def digest(image: Array) -> bytes:
    """Hash the pixels of an image, uint8 [C, H, W], by which images of a class are ordered: 32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()


def places(labels: Sequence[int] | Array, digests: Sequence[bytes]) -> list[int]:
    """Return the canonical order of images: by class, then by digest."""
    return sorted(range(len(digests)), key=lambda place: (labels[place], digests[place]))


def canonical(x: Array, y: Array) -> tuple[Array, Array]:
    """Bring images, uint8 [N, C, H, W], and labels, int [N], to canonical order."""
    order = places(y, [digest(image) for image in x])
    return np.ascontiguousarray(x[order], np.uint8), np.ascontiguousarray(y[order], np.int64)


def fingerprint(tensors: Mapping[str, Array]) -> str:
    """Hash a set in canonical order.

    Parameters
    ----------
    tensors : mapping of str to array
        For each of train and test, the labels, `_y`, with the images, `_x`, or, of a streamed set, their digests,
        `_digest`, uint8 [N, 32].

    Returns
    -------
    str
        32 hexadecimal characters.
    """
    found = hashlib.sha256()
    for part in PARTS:
        for name, kind in (("x", "u1"), ("digest", "u1"), ("y", "<i8")):
            if (tensor := tensors.get(f"{part}_{name}")) is not None:
                found.update(f"{part}_{name} {kind} {list(tensor.shape)}\n".encode())
                found.update(np.ascontiguousarray(tensor, kind).data)
    return found.hexdigest()[:32]


def histogram(x: Array) -> Array:
    """Count the pixels of each channel by value, int64 [C, 256], of images uint8 [N, C, H, W]."""
    counts = np.zeros((x.shape[1], 256), np.int64)
    for start in range(0, len(x), 4096):
        for channel, pixels in enumerate(x[start : start + 4096].swapaxes(0, 1)):
            counts[channel] += np.bincount(pixels.ravel(), minlength=256)
    return counts


def describe(name: str, tensors: Mapping[str, Array], shape: Sequence[int], classes: int, pixels: Array) -> DataFacts:
    """Put together the facts of a set.

    Parameters
    ----------
    name : str
        What an error calls the set.
    tensors : mapping of str to array
        As of `fingerprint`.
    shape : sequence of int
        Channels, height and width.
    classes : int
        Number of classes.
    pixels : array
        `histogram` of all training images.

    Raises
    ------
    InputError
        If a channel has one value throughout, so that it cannot be normalised.
    """
    mean, std = moments(pixels)
    if 0 in std:
        text = (
            f"data set '{name}': channel {std.index(0)} of all training images is {mean[std.index(0)]:.0f} everywhere"
        )
        raise InputError(f"{text}, so it cannot be normalised; leave it out; allowed: channels of two values or more")
    channels, height, width = map(int, shape)
    train, test = (np.bincount(tensors[f"{part}_y"], minlength=classes).tolist() for part in PARTS)
    return DataFacts(
        (channels, height, width),
        classes,
        sum(train),
        sum(test),
        fingerprint(tensors),
        mean,
        std,
        train_counts=tuple(train) if len(set(train)) > 1 else (),
        test_counts=tuple(test) if len(set(test)) > 1 else (),
        streamed="train_digest" in tensors,
    )


def moments(counts: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation of each channel from its `histogram`, in exact arithmetic up to the last."""
    mean, std = [], []
    for channel in counts.tolist():
        n = sum(channel)
        total = sum(value * count for value, count in enumerate(channel))
        squares = sum(value**2 * count for value, count in enumerate(channel))
        mean.append(total / n)
        std.append(math.sqrt(n * squares - total**2) / n)
    return tuple(mean), tuple(std)


# --- what is installed ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installed:
    """A data set of the data home.

    Attributes
    ----------
    facts : DataFacts
        All of them known.
    about : dict
        Where it came from: `source`, `classes`, `created`, `versions`.
    contents : dict
        Its images and labels; if it is streamed, `train_x` and `test_x` are `lthlab.images.Files`.
    digests : dict
        If it is streamed, `train` and `test`: uint8 [N, 32], `digest` of each image, decoded with as many channels as
        the facts say; else empty.
    """

    facts: DataFacts
    about: dict[str, Any]
    contents: Arrays
    digests: dict[str, Array] = field(default_factory=dict)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a new path beside another; when all is written there, it takes the other's place, else it is removed."""
    number, text = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(number)
    aside = Path(text)
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.chmod(0o644)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def source(name: str) -> str:
    """Say where a known data set is published; '' for others, and for those that take an account."""
    return " and ".join(archive.url for archive in KNOWN[name].archives) if name in KNOWN else ""


def is_installed(name: str) -> bool:
    """Whether the data home says that it has a set."""
    return (data_home() / f"{name}.json").is_file()


def root_of(name: str) -> Path | None:
    """Look up the folder that the images of an installed, streamed set are read from; None if none is known."""
    with suppress(OSError, KeyError, TypeError, ValueError):
        return Path(json.loads((data_home() / f"{name}.json").read_bytes())["root"])
    return None


def installed(name: str) -> Installed:
    """Read a data set of the data home; its fingerprint is checked.

    Raises
    ------
    InputError
        If it is not there, or not what was installed; names the file and the command that installs it.
    """
    refuse_missing([name])
    facts, folder = facts_of(name), data_home()
    path = folder / f"{name}.json"
    try:
        about = json.loads(path.read_bytes())
        path = folder / f"{name}.safetensors"
        tensors: Arrays = load_file(path)
        if (found := fingerprint(tensors)) != facts.fingerprint:
            raise ValueError(f"its fingerprint is {found}; allowed: {facts.fingerprint}")
        if not facts.streamed:
            return Installed(facts, about, tensors)
        path = folder / f"{name}.names.json"
        names = json.loads(path.read_bytes())
        for part in PARTS:
            if len(names[part]) != len(tensors[f"{part}_y"]):
                raise ValueError(f"it has {len(names[part])} {part} images; allowed: {len(tensors[f'{part}_y'])}")
        digests = {part: tensors.pop(f"{part}_digest") for part in PARTS}
        files = {f"{part}_x": Files(Path(about["root"]), names[part]) for part in PARTS}
        return Installed(facts, about, tensors | files, digests)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error}); to install it anew: {remedy(name)}") from error


def missing(names: Iterable[str]) -> list[str]:
    """Say of all data sets that are neither registered nor installed what is not there, and how to get them."""
    return [
        f"data set '{name}' is {absent}; {remedy(name)}"
        for name in dict.fromkeys(names)
        if (name in KNOWN or name not in DATASETS) and (absent := _absent(name))
    ]


def _absent(name: str) -> str | None:
    """Say what a set lacks, of what takes no reading; of a streamed one also its labels, names and images."""
    folder = data_home()
    if not is_installed(name):
        return f"not installed: there is no {folder / name}.json"
    root = root_of(name)
    parts = () if root is None else (root, folder / f"{name}.safetensors", folder / f"{name}.names.json")
    return next((f"installed, but {path} is not there" for path in parts if not path.exists()), None)


def refuse_missing(names: Iterable[str]) -> None:
    """Raise InputError for all data sets that `missing` names."""
    if found := missing(names):
        raise InputError("\n".join(found))


def remedy(name: str) -> str:
    """Say how a data set is installed."""
    known = KNOWN.get(name)
    if known is None:
        return f"`lthlab data import {name} FOLDER`"
    if known.by_hand:
        return f"{known.by_hand}; then `lthlab data import {name} FOLDER`"
    size = f"{sum(archive.size for archive in known.archives) / 1e6:,.0f} MB"
    return f"`lthlab data fetch {name}` downloads it ({size}), `lthlab data import {name} FOLDER` takes what you have"


def listed() -> list[dict[str, Any]]:
    """List all data sets: those of this package, registered and installed ones.

    Returns
    -------
    list of dict
        name; train, test, classes and shape; bytes, of its decoded images; installed, 'yes', 'no', 'streamed',
        'damaged' if what its installation says cannot be read, or 'registered' if a function of this package or a
        module makes it; fingerprint or None; terms and about. Facts that are not known are None.
    """
    rows = []
    for name in data_sets():
        facts, known = DATASETS.get(name), KNOWN.get(name)
        there = "no" if facts is None or known is not None else "registered"
        try:
            if there == "no" and (found := installed_facts(name)):
                facts, there = found, "streamed" if found.streamed else "yes"
        except InputError:
            there = "damaged"
        row: dict[str, Any] = {"name": name, **dict.fromkeys(("train", "test", "classes", "shape", "bytes"))}
        if facts is not None:
            row |= {"train": facts.train, "test": facts.test, "classes": facts.classes, "shape": list(facts.shape)}
            row["bytes"] = decoded_size(facts)
        row |= {"installed": there, "fingerprint": facts and facts.fingerprint}
        rows.append(row | {"terms": known.terms if known else "", "about": known.about if known else ""})
    return rows


def decoded_size(facts: DataFacts) -> int:
    """Count the bytes of all images of a set, decoded."""
    return (facts.train + facts.test) * math.prod(facts.shape)
