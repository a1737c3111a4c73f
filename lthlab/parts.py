"""The plain parts of descriptions: networks, data sets, recipes, steps and sparsities, checked."""

import difflib
import functools
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator


class InputError(ValueError):
    """Something that was asked for cannot be had; says what, where and what is allowed."""


def nearest(name: object, allowed: Iterable[str]) -> str:
    """Word what is allowed, and the nearest match to a misspelt name."""
    options = {option.lower(): option for option in sorted(allowed)}
    text = str(name).lower()
    match = difflib.get_close_matches(text, options, n=1, cutoff=0.5)
    match = [option for option in options if len(text) > 3 and option.startswith(text)][:1] or match
    return f"allowed: {', '.join(options.values())}" + (f"; did you mean '{options[match[0]]}'?" if match else "")


def device_names(text: str) -> list[str]:
    """Read the name of a device, or those of several that share each training, as 'cuda:0,cuda:1' or 'cpu,cpu'.

    Raises
    ------
    InputError
        If no device has such a name, or if the devices are not different GPUs or the CPU several times.
    """
    names = text.split(",")
    for name in names:
        if not _DEVICE.fullmatch(name):
            raise InputError(f"device '{name}' is not known; {nearest(name, DEVICES)}")
    several, kinds = len(names) > 1, set(names)
    if several and kinds != {"cpu"} and (len(kinds) < len(names) or not all(":" in name for name in names)):
        raise InputError(
            f"devices '{text}' cannot share a training; allowed: different GPUs as 'cuda:0,cuda:1', 'cpu,cpu'"
        )
    return names


# --- facts about data sets and networks -----------------------------------------------------------------------


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
    folder = Path(os.environ.get("XDG_DATA_HOME") or "")
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
    path = data_home() / f"{name}.json"
    if DATA_NAME.fullmatch(name):
        with suppress(FileNotFoundError):
            return _installed_facts(path, path.stat().st_mtime_ns)
    if known is not None:
        return known
    raise InputError(f"data set '{name}' is not known; {nearest(name, data_sets())}")


@functools.lru_cache
def _installed_facts(path: Path, changed: int) -> DataFacts:
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
NETS: dict[str, frozenset[str]] = {
    "lenet_300_100": frozenset(),
    **{f"resnet{depth}": frozenset({"width", "shortcut"}) for depth in (8, 14, 20, 26, 32, 44, 56, 110)},
}
"""Known networks, each with the fields of `Net` that it has."""
WITHOUT_BATCHNORM = frozenset({"lenet_300_100"})
"""Networks of which it is known that they have no BatchNorm."""
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "cuda:1")
"""Names of devices, as far as messages list them."""
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?", re.ASCII)
POLICIES = ("all", "all_but_head", "first_last_dense", "ma_resnet20", "ma_resnet32")
"""Prunable sets by name; `lthlab.nets.prunable` says what each means."""


# --- steps and sparsities -------------------------------------------------------------------------------------

_STEP = re.compile(r"(0|[1-9][0-9]{0,11})(ep|it)")
_NAMED_STEPS = ("last", "best_val", "best_test")


def step(text: object) -> str:
    """Check a step: '8ep', '500it', 'last', 'best_val' or 'best_test' (the earliest of ties).

    Raises
    ------
    ValueError
        If `text` is none of these.
    """
    if isinstance(text, str) and (text in _NAMED_STEPS or _STEP.fullmatch(text)):
        return text
    raise ValueError(f"step {text!r} is not understood; allowed: '8ep', '500it', " + ", ".join(map(repr, _NAMED_STEPS)))


def duration(text: object) -> str:
    """Check a step that is a fixed number of epochs or iterations.

    Raises
    ------
    ValueError
        If `text` is not of the form '8ep' or '500it'.
    """
    if isinstance(text, str) and _STEP.fullmatch(text):
        return text
    raise ValueError(f"{text!r} is not a number of epochs or iterations; allowed: '8ep', '500it'")


def iterations(text: str, steps_per_epoch: int) -> int:
    """Convert '8ep' or '500it' to a number of iterations."""
    number, unit = int(text[:-2]), text[-2:]
    return number * steps_per_epoch if unit == "ep" else number


def step_text(iteration: int, steps_per_epoch: int) -> str:
    """Name an iteration: in epochs where it ends one."""
    epochs, rest = divmod(iteration, steps_per_epoch)
    return f"{iteration}it" if rest else f"{epochs}ep"


MAX_LEVEL = 1000


@dataclass(frozen=True)
class Level:
    """Level `k` of the sparsity ladder 1 - (1 - rate)**k (Ma Table 1; Morcos 3.1).

    Parameters
    ----------
    k : int
        Level, from 1 to 1000.
    rate : float or str, optional
        Share of the remaining weights that goes at every level, in (0, 1).

    Raises
    ------
    ValueError
        If `k` or `rate` is out of range.
    """

    k: int
    rate: str = "0.2"

    def __init__(self, k: int, rate: float | str = "0.2") -> None:
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_LEVEL:
            allowed = f"whole numbers from 1 to {MAX_LEVEL} (level 0 is the dense network)"
            raise ValueError(f"level {k!r} is not allowed; allowed: {allowed}")
        object.__setattr__(self, "k", k)
        object.__setattr__(self, "rate", decimal_text(rate, "rate"))
        if self.rate == "0":
            raise ValueError("rate 0 prunes nothing; allowed: (0, 1)")

    @property
    def fraction(self) -> Fraction:
        """Exact sparsity."""
        return 1 - (1 - Fraction(self.rate)) ** self.k


Sparsity = Level | str


def decimal_text(value: object, name: str = "sparsity") -> str:
    """Write a number of [0, 1) as shortest decimal text: 0.50 becomes '0.5'.

    Raises
    ------
    ValueError
        If `value` is no number or outside [0, 1).
    """
    try:
        number = Decimal(str(value)) if not isinstance(value, bool) else Decimal("NaN")
    except InvalidOperation:
        number = Decimal("NaN")
    if not (number.is_finite() and 0 <= number < 1):
        raise ValueError(f"{name} {value!r} is not allowed; allowed: numbers from 0 up to but not including 1")
    return plain_decimal(number)


def plain_decimal(number: Decimal) -> str:
    """Write a finite number without exponent and without zeros that say nothing."""
    text = format(number, "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text) if number else "0"


@functools.cache
def sparsity_fraction(sparsity: Sparsity) -> Fraction:
    """Exact value of a sparsity."""
    return sparsity.fraction if isinstance(sparsity, Level) else Fraction(sparsity)


def pruned_count(sparsity: Sparsity, total: int) -> int:
    """Count the weights to prune out of `total`: sparsity × total in exact arithmetic, rounded half up."""
    return int(sparsity_fraction(sparsity) * total + Fraction(1, 2))


# --- parts of a training's description ------------------------------------------------------------------------

Count = Annotated[int, Strict(), Field(ge=1, le=10**9)]
Natural = Annotated[int, Strict(), Field(ge=0)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(ge=0, lt=1, allow_inf_nan=False), AfterValidator(abs)]
Duration = Annotated[str, AfterValidator(duration)]


class Part(BaseModel):
    """A bundle of plain fields; only those not at their defaults enter a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def form(self) -> dict[str, Any]:
        """Return the fields that are not at their defaults."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def _reset(self, *names: str) -> None:
        """Set fields that have no effect to their defaults, so that one experiment has one key."""
        for name in names:
            object.__setattr__(self, name, type(self).model_fields[name].default)


class Net(Part):
    """A network by name.

    Parameters
    ----------
    name : str
        One of `NETS`; a network of one's own is added by `lthlab.nets.register`.
    width : int, optional
        Channels of a ResNet's first stage; 16 is He et al.'s.
    shortcut : {'A', 'B'}, optional
        Shortcut where shapes change: padded identity (A) or 1×1 convolution with BatchNorm (B).
    """

    name: str
    width: Count = 16
    shortcut: Literal["A", "B"] = "B"

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in NETS:
            raise ValueError(f"name: network '{self.name}' is not known; {nearest(self.name, NETS)}")
        for field in sorted(self.model_fields_set - {"name"} - NETS[self.name]):
            raise ValueError(
                f"{field}: network '{self.name}' has no such field; {nearest(field, NETS[self.name] | {'name'})}"
            )
        return self


class Data(Part):
    """A data set by name, and what a network sees of it.

    Fields that change nothing are set to their defaults: all classes, the size and channels that images have.

    Parameters
    ----------
    name : str
        One of `DATASETS`, or of the sets that are installed in the data home.
    classes : list of int, optional
        Numbers of the classes that are used, of training and test images, such as [0, 1, 2, 3, 4]; all by default.
        Labels are numbered anew from 0, in ascending order of the classes.
    part : {'a', 'b'}, optional
        Half of the training images: every other one in canonical order, hence of each class, and not in the other
        half (Morcos et al. 2019, section 4.1: CIFAR-10a and CIFAR-10b).
    train_size : int, optional
        Number of training images, class-balanced; all by default.
    val_size : int, optional
        Training images set aside for validation, class-balanced. Validation chooses; the test set only reports.
    channels : {1, 3}, optional
        3 repeats grey images in three channels.
    size : int, optional
        Side that images are padded to with black, as much on either side; before normalisation, so that the border is
        black. Of a streamed set the side that images are brought to (see `lthlab.images.fitted`).
    normalise : {'own', 'reference', 'imagenet'}, optional
        Mean and standard deviation of each channel that pixels are normalised by: over all training images of the set
        as they are stored, whatever part of them is used; the numbers of the reference code of Ma et al. (2021), whose
        deviations are averages over images, for CIFAR-10 and CIFAR-100; or those in use for ImageNet.
    augment : {'none', 'crop', 'crop_flip', 'resized_crop_flip'}, optional
        What happens to a training image before each use. 'crop' pads by 4 pixels and crops at random, 'crop_flip' also
        flips at random (He et al. 2016, section 4.2). 'resized_crop_flip' brings a crop of random area and aspect to
        full size, and flips at random (Szegedy et al. 2015, section 6).
    random_labels : int, optional
        Seed of labels drawn at random once for the training images (Sooner Fig. 5); true labels by default. They
        depend on neither replicate nor epoch; an image has the same one whatever `train_size` and `val_size` are.
        Labels of validation and test images stay true.
    """

    name: str
    classes: tuple[Natural, ...] | None = None
    part: Literal["a", "b"] | None = None
    train_size: Count | None = None
    val_size: Natural = 0
    channels: Literal[1, 3] | None = None
    size: Count | None = None
    normalise: Literal["own", "reference", "imagenet"] = "own"
    augment: Literal["none", "crop", "crop_flip", "resized_crop_flip"] = "none"
    random_labels: Natural | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        try:
            wrong = [*self._wrong_classes(), *self._wrong_shape()]
        except InputError as error:
            raise ValueError(f"name: {error}") from error
        if wrong:
            raise ValueError("\n".join(wrong))
        pool, these = self.facts.train, self._these
        if self.val_size >= pool:
            raise ValueError(f"val_size: {self.val_size} of {pool} images of {these}; allowed: 0 to {pool - 1}")
        if self.train_size is not None and self.train_size > pool - self.val_size:
            raise ValueError(f"train_size: {self.train_size} images; allowed: 1 to {pool - self.val_size}")
        if self.train_size == pool - self.val_size:
            self._reset("train_size")
        return self

    def _wrong_classes(self) -> Iterator[str]:
        """Say what is wrong with `classes`, or put them in order."""
        if self.classes is None:
            return
        known = self.source.classes
        unknown = [number for number in self.classes if number >= known]
        twice = [number for number in dict.fromkeys(self.classes) if self.classes.count(number) > 1]
        if unknown:
            yield f"classes: '{self.name}' has no class {_listed(unknown)}; allowed: 0 to {known - 1}"
        if twice:
            yield f"classes: {_listed(twice)} is given more than once; allowed: each class once"
        if len(self.classes) < 2:
            yield f"classes: {len(self.classes)} of the {known} classes of '{self.name}'; allowed: 2 to {known}"
        for kind in ("train", "test"):
            if not getattr(self.source, f"{kind}_counts") and getattr(self.source, kind) % known:
                yield f"classes: it is not known how many {kind} images each class of '{self.name}' has"
        object.__setattr__(self, "classes", tuple(sorted(self.classes)))
        if self.classes == tuple(range(known)):
            self._reset("classes")

    def _wrong_shape(self) -> Iterator[str]:
        """Say what is wrong with the fields of single images, or set those without effect to their defaults."""
        channels, height, width = self.source.shape
        if self.channels not in (None, channels) and channels != 1:
            yield f"channels: {self.channels}, but images of '{self.name}' have {channels}; allowed: {channels}"
        if self.size is not None and self.size < max(height, width) and not self.source.streamed:
            allowed = f"allowed: {max(height, width)} or more"
            yield f"size: {self.size} is less than images of '{self.name}' have, {height} × {width}; {allowed}"
        if self.normalise == "reference" and self.name not in REFERENCE:
            yield f"normalise: 'reference' has no numbers for '{self.name}'; allowed with: {', '.join(REFERENCE)}"
        if self.normalise == "imagenet" and 3 not in (channels, self.channels):
            yield f"normalise: 'imagenet' is for 3 channels, and '{self.name}' has 1; allowed with: channels 3"
        if self.augment == "resized_crop_flip" and channels not in (1, 3):
            yield f"augment: 'resized_crop_flip' is for images of 1 or 3 channels, not of {channels}"
        if self.channels == channels:
            self._reset("channels")
        if self.size == height == width:
            self._reset("size")

    @property
    def source(self) -> DataFacts:
        """What is known of the whole data set."""
        return facts_of(self.name)

    @property
    def facts(self) -> DataFacts:
        """What is known of the images as a network sees them; `train` counts validation images too."""
        return _seen(self.source, self.classes, self.part, self.channels, self.size)

    @property
    def _these(self) -> str:
        """Name the images that a part and classes leave."""
        of = f"part {self.part} of " if self.part else ""
        return f"{of}'{self.name}'" + (f" with classes {_listed(self.classes)}" if self.classes else "")

    @property
    def view(self) -> str:
        """Say what differs from the whole set as it is, but for the number of training images."""
        fields = self.model_dump(exclude_defaults=True, exclude={"name", "train_size"})
        texts = {name: _listed(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in texts.items())

    @property
    def images(self) -> int:
        """Number of training images."""
        return self.train_size or self.facts.train - self.val_size

    @property
    def streamed(self) -> bool:
        """Whether images are read and changed by processes of their own while a network trains."""
        return self.source.streamed or self.augment == "resized_crop_flip"

    def steps_per_epoch(self, batch_size: int) -> int:
        """Count the steps of an epoch; the last may have a smaller batch."""
        return -(-self.images // batch_size)

    def smallest_batch(self, batch_size: int) -> int:
        """Count the images in the last batch of an epoch."""
        return self.images % batch_size or batch_size

    def form(self) -> dict[str, Any]:
        return {**super().form(), "fingerprint": self.source.fingerprint}


@functools.cache
def _seen(
    source: DataFacts, classes: tuple[int, ...] | None, part: str | None, channels: int | None, size: int | None
) -> DataFacts:
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


def _listed(numbers: Iterable[int]) -> str:
    return "-".join(map(str, numbers))


class Recipe(Part):
    """How a network is trained, from the first epoch of the schedule to the last.

    Fields that have no effect are set to their defaults: `betas` with SGD, `momentum` with Adam, `decay_on`
    without decay, `gamma` without milestones, `processes` with synchronised BatchNorm and the other way round.

    Parameters
    ----------
    epochs, batch_size : int
        Length of the schedule; images per step. An epoch's last batch may be smaller.
    lr : float
        Learning rate after warmup and before any decay.
    optimizer : {'sgd', 'adam'}, optional
        As in PyTorch; weight decay is added to the gradient.
    momentum : float, optional
        Of SGD, in [0, 1).
    betas : tuple of float, optional
        Of Adam.
    weight_decay : float, optional
        Coefficient of the decay.
    decay_on : {'all', 'weights'}, optional
        What decays: every parameter, or only the weights of convolutions and linear layers.
    lr_schedule : {'constant', 'step', 'cosine'}, optional
        'step' multiplies by `gamma` at each milestone; 'cosine' goes from the end of warmup to 0, per step.
    milestones : tuple of str, optional
        Steps such as '80ep', counted from the beginning of the schedule.
    gamma : float, optional
        Factor at a milestone.
    warmup : str, optional
        '5ep' or '500it' over which the learning rate grows linearly to `lr`.
    precision : {'fp32', 'bf16', 'fp64'}, optional
        Of the arithmetic; bf16 keeps fp32 weights.
    batchnorm : {'synchronised', 'per_process'}, optional
        What BatchNorm normalises by in training: all images of a step, or those of one process (Morcos et al. 2019).
    processes : int, optional
        Among how many processes the images of a step are divided, as evenly as they can be, the first ones having
        one more. Running statistics are those of the first process. On how many devices it is computed is no part
        of a recipe.
    """

    epochs: Count
    batch_size: Count
    lr: Positive
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: Share = 0.9
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    decay_on: Literal["all", "weights"] = "all"
    lr_schedule: Literal["constant", "step", "cosine"] = "constant"
    milestones: tuple[Duration, ...] = ()
    gamma: Positive = 0.1
    warmup: Duration = "0ep"
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    batchnorm: Literal["synchronised", "per_process"] = "synchronised"
    processes: Count = 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        wrong = []
        for name, moment in self._moments():
            if moment.endswith("ep") and int(moment[:-2]) >= self.epochs:
                wrong.append(f"{name}: {moment} is not before the end; allowed: below {self.epochs}ep")
        if self.milestones and self.lr_schedule != "step":
            wrong.append(f"milestones: given with lr_schedule '{self.lr_schedule}'; allowed with: step")
        if self.lr_schedule == "step" and not self.milestones:
            wrong.append("milestones: missing; allowed with lr_schedule 'step': steps such as [80ep, 120ep]")
        if wrong:
            raise ValueError("\n".join(wrong))
        self._reset("betas" if self.optimizer == "sgd" else "momentum")
        if not self.weight_decay:
            self._reset("decay_on")
        if not self.milestones:
            self._reset("gamma")
        if self.batchnorm == "synchronised" or self.processes == 1:
            self._reset("batchnorm", "processes")
        return self

    def _moments(self) -> list[tuple[str, str]]:
        return [*(("milestones", milestone) for milestone in self.milestones), ("warmup", self.warmup)]

    def aligned(self, steps_per_epoch: int) -> Self:
        """Bring milestones and warmup to the one form that they have in keys.

        Raises
        ------
        ValueError
            If one of them does not lie before the end.
        """
        end = self.epochs * steps_per_epoch
        late = [(name, moment) for name, moment in self._moments() if iterations(moment, steps_per_epoch) >= end]
        if late:
            allowed = f"allowed: below {self.epochs}ep, {end}it"
            raise ValueError("\n".join(f"{name}: {moment} is not before the end; {allowed}" for name, moment in late))
        counts = sorted(iterations(milestone, steps_per_epoch) for milestone in self.milestones)
        milestones = tuple(step_text(count, steps_per_epoch) for count in counts)
        warmup = step_text(iterations(self.warmup, steps_per_epoch), steps_per_epoch)
        if (milestones, warmup) == (self.milestones, self.warmup):
            return self
        return self.model_copy(update={"milestones": milestones, "warmup": warmup})

    def divided(self, net: Net, data: Data) -> Self:
        """Bring `batchnorm` and `processes` to the form that they have in keys.

        Parameters
        ----------
        net : Net
            What is trained; without BatchNorm they have no effect.
        data : Data
            What it is trained on.

        Raises
        ------
        ValueError
            If there are more processes than images in the smallest batch of an epoch.
        """
        if net.name in WITHOUT_BATCHNORM and self.processes > 1:
            return self.model_copy(update={"batchnorm": "synchronised", "processes": 1})
        smallest = data.smallest_batch(self.batch_size)
        if self.processes > smallest:
            raise ValueError(
                f"processes: {self.processes} cannot share the last batch of an epoch, which has {smallest} of the "
                f"{data.images} images; allowed: 1 to {smallest}"
            )
        return self
