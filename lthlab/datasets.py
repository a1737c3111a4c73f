"""What is known of data sets before they are loaded, and where they are installed."""

import functools
import itertools
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from lthlab.errors import InputError, nearest


@dataclass(frozen=True)
class DataFacts:
    """What must be known of a data set to describe experiments on it.

    Attributes
    ----------
    shape : tuple of int
        Channels, height and width of an image; of a streamed set, what its images are brought to.
    classes, train, test : int
        Number of classes, of training images (validation images included) and of test images.
    fingerprint : str or None
        Hash of the decoded images and labels in canonical order. None where it is not known before the set is
        installed; a key that is made then has no lasting meaning.
    mean, std : tuple of float
        Mean and standard deviation of each channel over all training images, in pixel units 0 … 255; empty where
        they are not known before the set is loaded.
    train_counts, test_counts : tuple of int
        Number of training and of test images of each class; empty where all classes have equally many.
    streamed : bool
        Whether images are read from files while a network trains. They need not have the same size.
    """

    shape: tuple[int, int, int]
    classes: int
    train: int
    test: int
    fingerprint: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    train_counts: tuple[int, ...] = ()
    test_counts: tuple[int, ...] = ()
    streamed: bool = False

    @classmethod
    def read(cls, form: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` made and JSON may have carried; raises TypeError if it is anything else."""
        tuples = {name: tuple(value) for name, value in form.items() if isinstance(value, list)}
        return cls(**{**form, **tuples})

    def counts(self, kind: str) -> tuple[int, ...]:
        """Count the images of each class, those of 'train' or of 'test'."""
        each, more = divmod(getattr(self, kind), self.classes)
        return getattr(self, f"{kind}_counts") or tuple(each + (number < more) for number in range(self.classes))


DATASETS: dict[str, DataFacts] = {
    "digits": DataFacts(
        (1, 8, 8),
        10,
        1297,
        500,
        "988bfb497fd200f239bee36699206e13",
        (4.886878373168851,),
        (6.014557028580646,),
        train_counts=(128, 132, 127, 133, 131, 132, 131, 129, 124, 130),
    ),
    "mnist": DataFacts(
        (1, 28, 28),
        10,
        60_000,
        10_000,
        train_counts=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        test_counts=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ),
    "fashion_mnist": DataFacts((1, 28, 28), 10, 60_000, 10_000),
    "svhn": DataFacts(
        (3, 32, 32),
        10,
        73_257,
        26_032,
        train_counts=(4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
        test_counts=(1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
    ),
    "cifar10": DataFacts(
        (3, 32, 32),
        10,
        50_000,
        10_000,
        "7f0e3800e32b36f2784447a699106179",
        (125.306918046875, 122.950394140625, 113.86538318359375),
        (62.99321927813691, 62.088707640014164, 66.70489964063096),
    ),
    "cifar100": DataFacts((3, 32, 32), 100, 50_000, 10_000),
    "tiny_imagenet": DataFacts((3, 64, 64), 200, 100_000, 10_000),
    "imagenet": DataFacts((3, 224, 224), 1000, 1_281_167, 50_000, streamed=True),
    "places365": DataFacts((3, 224, 224), 365, 1_803_460, 36_500, streamed=True),
    "miniplaces": DataFacts((3, 128, 128), 100, 100_000, 10_000, streamed=True),
}
"""Data sets that are known before any is installed; those that are registered join them."""
HOME = "LTHLAB_DATA"
"""Variable of the environment that names the data home."""
DATA_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""Names that a data set may be installed under."""


def data_home() -> Path:
    """Return the folder of installed data sets, which all studies and stores of a user share.

    Returns
    -------
    Path
        What the variable LTHLAB_DATA names; else `lthlab` in the user's data folder (XDG Base Directory Specification).
    """
    if named := os.environ.get(HOME):
        return Path(named).absolute()
    return _own_home(os.environ.get("XDG_DATA_HOME"), os.environ.get("HOME"))


@functools.lru_cache
def _own_home(xdg: str | None, user: str | None) -> Path:
    """Find the user's data folder; the variables that say where it is are given, so that this is found out once."""
    folder = Path(xdg or "")
    return (folder if folder.is_absolute() else Path.home() / ".local" / "share") / "lthlab"


def data_sets() -> list[str]:
    """Name all data sets that can be described: known, registered and installed ones."""
    installed = (path.stem for path in data_home().glob("*.json"))
    return sorted({*DATASETS, *filter(DATA_NAME.fullmatch, installed)})


def facts_of(name: str) -> DataFacts:
    """Look up what is known of a data set: in this package, of registered sets, then of installed ones.

    Raises
    ------
    InputError
        If there is no such set, or what its installation says cannot be read.
    """
    known = DATASETS.get(name)
    if known is not None and known.fingerprint is not None:
        return known
    facts = installed_facts(name) or known
    if facts is None:
        raise InputError(f"data set '{name}' is not known; {nearest(name, data_sets())}")
    return facts


def installed_facts(name: str) -> DataFacts | None:
    """Read what is known of an installed set; None if there is none; raises InputError as `facts_of` does."""
    if DATA_NAME.fullmatch(name):
        path = f"{data_home()}{os.sep}{name}.json"  # without pathlib: studies ask for the same set many times
        with suppress(FileNotFoundError):
            return _read_facts(Path(path), os.stat(path).st_mtime_ns)
    return None


@functools.lru_cache
def _read_facts(path: Path, changed: int) -> DataFacts:
    try:
        return DataFacts.read(json.loads(path.read_bytes())["facts"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        text = f"{path} does not describe a data set ({type(error).__name__}: {error})"
        raise InputError(f"{text}; `lthlab data import {path.stem} FOLDER` writes it anew") from error


REFERENCE = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Mean and standard deviation in the reference code of Ma et al., by data set, of pixels from 0 to 1."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation in use for ImageNet, of pixels from 0 to 1."""


@functools.cache
def seen(
    source: DataFacts, classes: tuple[int, ...] | None, part: str | None, channels: int | None, size: int | None
) -> DataFacts:
    """Say what a network sees of a set; parameters as of `lthlab.parts.Data`."""
    own, height, width = source.shape
    facts = replace(source, shape=(channels or own, size or height, size or width))
    if classes is None and part is None:
        return facts
    train, test = (source.counts(kind) for kind in ("train", "test"))
    if part is not None:
        ends = list(itertools.accumulate(train, initial=part == "a"))
        train = tuple(end // 2 - begin // 2 for begin, end in itertools.pairwise(ends))
    chosen = range(source.classes) if classes is None else classes
    train, test = (tuple(each[number] for number in chosen) for each in (train, test))
    return replace(facts, classes=len(chosen), train=sum(train), test=sum(test), train_counts=train, test_counts=test)
