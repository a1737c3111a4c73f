"""The plain parts of descriptions: networks, data sets, recipes, steps and sparsities, checked."""

import functools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator

from lthlab.datasets import REFERENCE, DataFacts, facts_of, seen
from lthlab.errors import InputError, nearest


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


# --- networks and devices -------------------------------------------------------------------------------------

_SMALL_RESNETS = tuple(f"resnet{depth}" for depth in (8, 14, 20, 26, 32, 44, 56, 110))
_VGGS, _CONVS = ("vgg11", "vgg16", "vgg19"), ("conv2", "conv4", "conv6")
NETS: dict[str, dict[str, Any]] = {
    "lenet_300_100": {"init": "glorot_normal"},
    **{name: {"width": 16, "shortcut": "B", "init": "he_fan_out"} for name in _SMALL_RESNETS},
    **{f"resnet{depth}": {"width": 64, "stem": "cifar", "init": "he_fan_out"} for depth in (18, 34, 50)},
    **{name: {"width": 64, "bias": False, "init": "he_fan_out_small_head"} for name in _VGGS},
    "mobilenet_v1": {"width": 32, "stem": "cifar", "init": "torch"},
    **{name: {"init": "glorot_normal"} for name in _CONVS},
}
"""Known networks, each with the fields of `Net` that it has, and their values where nothing else is said."""
WITHOUT_BATCHNORM = frozenset({"lenet_300_100", *_CONVS})
"""Networks of which it is known that they have no BatchNorm."""
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "cuda:1")
"""Names of devices, as far as messages list them."""
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?", re.ASCII)
POLICIES = (
    "all", "all_but_head", "first_last_dense", "first_last_depthwise_dense", "ma_resnet20", "ma_resnet32"
)  # fmt: skip
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
def sparsity_fraction(sparsity: Sparsity | Fraction) -> Fraction:
    """Exact value of a sparsity."""
    return sparsity.fraction if isinstance(sparsity, Level) else Fraction(sparsity)


def pruned_count(sparsity: Sparsity | Fraction, total: int) -> int:
    """Count the weights to prune out of `total`: sparsity × total in exact arithmetic, rounded half up."""
    return int(sparsity_fraction(sparsity) * total + Fraction(1, 2))


# --- parts of a training's description ------------------------------------------------------------------------

Count = Annotated[int, Strict(), Field(ge=1, le=10**9)]
Natural = Annotated[int, Strict(), Field(ge=0)]
Seed = Annotated[int, Strict(), Field(ge=0, lt=2**63)]
Side = Annotated[int, Strict(), Field(ge=1, le=4096)]
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

    A network has only some of the fields (see `NETS`), and defaults of its own: those of its source.

    Parameters
    ----------
    name : str
        One of `NETS`; a network of one's own is added by `lthlab.nets.register`.
    width : int, optional
        Channels of the first stage, from which those of the others follow: 16 in ResNets of 6n+2 layers (He et al.
        2016, section 4.2), 64 in other ResNets and VGGs, 32 in MobileNet.
    shortcut : {'A', 'B', 'none'}, optional
        Of a ResNet of 6n+2 layers, where shapes change: padded identity (A) or 1×1 convolution with BatchNorm (B); or
        no residual connections at all (Ma Fig. 5).
    stem : {'cifar', 'tiny_imagenet', 'imagenet'}, optional
        What images meet first: a 3×3 convolution of stride 1, or of stride 2, or in ResNets a 7×7 convolution of
        stride 2 and max-pooling, in MobileNet a 3×3 convolution of stride 2. Ma's count for Tiny-ImageNet is that of a
        3×3 convolution, whose stride is not told; stride 2 is our assumption, which brings 64×64 images to the stages
        at CIFAR's size, and 'cifar' the other possibility.
    bias : bool, optional
        Whether the convolutions of a VGG have biases (Morcos et al. 2019 count them).
    init : {'he_fan_out', 'he_fan_in', 'glorot_normal', 'torch', 'he_fan_out_small_head'}, optional
        Law of the initial weights; `lthlab.layers.draw` says what each means.
    """

    name: str
    width: Count = 16
    shortcut: Literal["A", "B", "none"] = "B"
    stem: Literal["cifar", "tiny_imagenet", "imagenet"] = "cifar"
    bias: Annotated[bool, Strict()] = False
    init: Literal["he_fan_out", "he_fan_in", "glorot_normal", "torch", "he_fan_out_small_head"] = "he_fan_out"

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in NETS:
            raise ValueError(f"name: network '{self.name}' is not known; {nearest(self.name, NETS)}")
        own = NETS[self.name]
        for field in sorted(self.model_fields_set - {"name"} - own.keys()):
            raise ValueError(
                f"{field}: network '{self.name}' has no such field; {nearest(field, own.keys() | {'name'})}"
            )
        if (self.name, self.stem) == ("mobilenet_v1", "tiny_imagenet"):
            raise ValueError("stem: 'mobilenet_v1' has no stem 'tiny_imagenet'; allowed: cifar, imagenet")
        for field in own.keys() - self.model_fields_set:
            object.__setattr__(self, field, own[field])
        return self

    def form(self) -> dict[str, Any]:
        """Return the fields that are not at the network's own defaults."""
        own = {"name": None, **NETS[self.name]}
        return {name: value for name, value in self.model_dump(mode="json").items() if value != own.get(name, value)}


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
        black; at most 4096. Of a streamed set the side that images are brought to (see `lthlab.images.fitted`).
    normalise : {'own', 'reference', 'imagenet'}, optional
        Mean and standard deviation of each channel that pixels are normalised by: over all training images of the set
        as they are stored, whatever part of them is used; the numbers of the reference code of Ma et al. (2021), whose
        deviations are averages over images, for CIFAR-10 and CIFAR-100; or those in use for ImageNet.
    augment : {'none', 'crop', 'crop_flip', 'resized_crop_flip'}, optional
        What happens to a training image before each use. 'crop' pads by 4 pixels and crops at random, 'crop_flip' also
        flips at random (He et al. 2016, section 4.2). 'resized_crop_flip' brings a crop of random area and aspect to
        full size, and flips at random (Szegedy et al. 2015, section 6).
    random_labels : int, optional
        Seed of labels drawn at random once for the training images (Sooner Fig. 5), below 2**63; true labels by
        default. They depend on neither replicate nor epoch; an image has the same one whatever `train_size` and
        `val_size` are. Labels of validation and test images stay true.
    label_noise : float, optional
        Share of the training images whose label is drawn, each with this probability, in (0, 1]; all if only
        `random_labels` is given, which is 0 if only this is. A drawn label may be the true one.
    """

    name: str
    classes: tuple[Natural, ...] | None = None
    part: Literal["a", "b"] | None = None
    train_size: Count | None = None
    val_size: Natural = 0
    channels: Literal[1, 3] | None = None
    size: Side | None = None
    normalise: Literal["own", "reference", "imagenet"] = "own"
    augment: Literal["none", "crop", "crop_flip", "resized_crop_flip"] = "none"
    random_labels: Seed | None = None
    label_noise: Annotated[float, Strict(), Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        try:
            facts_of(self.name)
        except InputError as error:
            raise ValueError(f"name: {error}") from error
        wrong = [*self._wrong_classes(), *self._wrong_shape()]
        if wrong:
            raise ValueError("\n".join(wrong))
        pool, these = self.facts.train, self._these
        if self.val_size >= pool:
            raise ValueError(f"val_size: {self.val_size} of {pool} images of {these}; allowed: 0 to {pool - 1}")
        if self.train_size is not None and self.train_size > pool - self.val_size:
            raise ValueError(f"train_size: {self.train_size} images; allowed: 1 to {pool - self.val_size}")
        if self.train_size == pool - self.val_size:
            self._reset("train_size")
        if self.label_noise is not None and self.random_labels is None:
            object.__setattr__(self, "random_labels", 0)
        if self.label_noise == 1:
            self._reset("label_noise")
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
        return seen(self.source, self.classes, self.part, self.channels, self.size)

    @property
    def _these(self) -> str:
        """Name the images that a part and classes leave."""
        of = f"part {self.part} of " if self.part else ""
        return f"{of}'{self.name}'" + (f" with classes {_listed(self.classes)}" if self.classes else "")

    @property
    def view(self) -> str:
        """Say what differs from the whole set as it is, but for the number of training images."""
        left_out = {"name", "train_size"}
        if self.label_noise and not self.random_labels:
            left_out.add("random_labels")
        fields = self.model_dump(exclude_defaults=True, exclude=left_out)
        texts = {name: _listed(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in texts.items())

    @property
    def text(self) -> str:
        """Name it, with what differs from the whole set in brackets."""
        size = f"{self.train_size} images" if self.train_size else ""
        more = ", ".join(filter(None, (self.view, size)))
        return f"{self.name} ({more})" if more else self.name

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


def _listed(numbers: Iterable[int]) -> str:
    return "-".join(map(str, numbers))


class Recipe(Part):
    """How a network is trained, from the first epoch of the schedule to the last.

    Fields that have no effect are set to their defaults: `betas` with SGD, `momentum` with Adam and AdamW, `decay_on`
    without decay, `gamma` without milestones, `processes` with synchronised BatchNorm and the other way round.

    Parameters
    ----------
    epochs, batch_size : int
        Length of the schedule; images per step. An epoch's last batch may be smaller.
    lr : float
        Learning rate after warmup and before any decay.
    optimizer : {'sgd', 'adam', 'adamw'}, optional
        As in PyTorch. Weight decay is added to the gradient; AdamW takes its share of the weights by itself, rate times
        decay (Loshchilov and Hutter 2019).
    momentum : float, optional
        Of SGD, in [0, 1).
    nesterov : bool, optional
        Whether SGD looks ahead, as in PyTorch; needs momentum.
    betas : tuple of float, optional
        Of Adam and AdamW.
    weight_decay : float, optional
        Coefficient of the decay.
    decay_on : {'all', 'weights'}, optional
        What decays: every parameter, or only the weights of convolutions and linear layers.
    lr_schedule : {'constant', 'step', 'cosine', 'linear'}, optional
        'step' multiplies by `gamma` at each milestone; 'cosine' and 'linear' go from the end of warmup to 0, per step.
    milestones : tuple of str, optional
        Steps such as '80ep', counted from the beginning of the schedule.
    gamma : float, optional
        Factor at a milestone.
    warmup : str, optional
        '5ep' or '500it' over which the learning rate grows linearly to `lr`.
    label_smoothing : float, optional
        Share of each label that is spread over all classes in the training loss, in [0, 1) (Szegedy et al. 2016).
    mixup : float, optional
        α of the Beta(α, α) that a step's images and labels are mixed by, two by two (Zhang et al. 2018); 0 mixes
        nothing. The training accuracy then counts the label that has the larger share.
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
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: Share = 0.9
    nesterov: Annotated[bool, Strict()] = False
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    decay_on: Literal["all", "weights"] = "all"
    lr_schedule: Literal["constant", "step", "cosine", "linear"] = "constant"
    milestones: tuple[Duration, ...] = ()
    gamma: Positive = 0.1
    warmup: Duration = "0ep"
    label_smoothing: Share = 0.0
    mixup: Annotated[NonNegative, AfterValidator(abs)] = 0.0
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
        if self.nesterov and self.optimizer != "sgd":
            wrong.append(f"nesterov: given with optimizer '{self.optimizer}'; allowed with: sgd")
        elif self.nesterov and not self.momentum:
            wrong.append("nesterov: given with momentum 0.0; allowed with: momentum above 0")
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

    def rate(self, iteration: int, steps_per_epoch: int) -> float:
        """Learning rate of a step.

        Parameters
        ----------
        iteration : int
            Steps done before this one, on the schedule's clock.
        steps_per_epoch : int
            Length of an epoch.

        Returns
        -------
        float
            Grows linearly to `lr`, reached with the last step of warmup. Then constant; or times `gamma` from each
            milestone on; or half a cosine, or a line, that would be 0 one step after the last.
        """
        warmup = iterations(self.warmup, steps_per_epoch)
        if iteration < warmup:
            return self.lr * (iteration + 1) / warmup
        if self.lr_schedule == "step":
            passed = sum(iterations(milestone, steps_per_epoch) <= iteration for milestone in self.milestones)
            return self.lr * self.gamma**passed
        if self.lr_schedule == "constant":
            return self.lr
        share = (iteration - warmup) / (self.epochs * steps_per_epoch - warmup)
        return self.lr * (1 - share if self.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share)))

    def tuning(self, epochs: int, steps_per_epoch: int, lr: float | None = None) -> Self:
        """Make the recipe of fine-tuning: so many epochs at one rate, by default the last one of the schedule.

        Parameters
        ----------
        epochs : int
            Its length.
        steps_per_epoch : int
            Length of an epoch.
        lr : float, optional
            Its rate.
        """
        last = self.rate(self.epochs * steps_per_epoch - 1, steps_per_epoch) if lr is None else lr
        flat = {"lr_schedule": "constant", "milestones": (), "gamma": 0.1, "warmup": "0ep"}
        return type(self)(**self.model_dump() | flat | {"epochs": epochs, "lr": last})

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
