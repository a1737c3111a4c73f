"""Named data sets as tensors, their order in an epoch, and augmentation of whole batches."""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from lthlab.catalog import PARTS, Arrays, canonical, describe, histogram, installed, replacing
from lthlab.datasets import DATASETS, IMAGENET, REFERENCE, DataFacts, facts_of
from lthlab.draws import Stream
from lthlab.errors import InputError
from lthlab.images import Files
from lthlab.parts import Data

log = logging.getLogger(__name__)

PAD = 4
"""Border in pixels that images are padded by before they are cropped."""

Images = Any
"""Images, uint8 [N, C, H, W]: a tensor, or `Files`, which has the length and the indices that are used of one."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels, ready to train on.

    Attributes
    ----------
    name : str
        Name it is registered under.
    fingerprint : str
        32 hexadecimal characters that identify all images, labels and the division into train and test.
    train_x, val_x, test_x : tensor or Files
        Images, uint8 [N, C, H, W]; N of validation may be 0.
    train_y, val_y, test_y : tensor
        Labels, int64 [N], in 0 … classes - 1.
    classes : int
        Number of classes.
    mean, std : tuple of float
        What pixels of each channel are normalised by, in pixel units; see `lthlab.parts.Data`.
    """

    name: str
    fingerprint: str
    train_x: Images
    train_y: Tensor
    val_x: Images
    val_y: Tensor
    test_x: Images
    test_y: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_sources: dict[str, Callable[[], Arrays]] = {}


def register(name: str, facts: DataFacts) -> Callable[[Callable[[], Arrays]], Callable[[], Arrays]]:
    """Register the decorated function as the data set `name`, which studies then can name.

    Parameters
    ----------
    name : str
        Not in use yet.
    facts : DataFacts
        What `load` must find. Where it finds anything else, its error tells the facts to write here, so
        `fingerprint` may be None, and `mean` and `std` empty, until the first time.

    Returns
    -------
    callable
        Decorator of a function without arguments that returns `lthlab.catalog.Arrays`, in any order of images.

    Raises
    ------
    ValueError
        If `name` is in use.
    """
    if name in DATASETS:
        raise ValueError(f"data set '{name}' is in use already; allowed: other names than {', '.join(DATASETS)}")
    DATASETS[name] = facts
    return _decoder(name)


def _decoder(name: str) -> Callable[[Callable[[], Arrays]], Callable[[], Arrays]]:
    def add(decode: Callable[[], Arrays]) -> Callable[[], Arrays]:
        _sources[name] = decode
        return decode

    return add


def load(described: Data | str, cache: Path | None) -> Dataset:
    """Load what a description says of a data set.

    Images are in canonical order, by class, then by the SHA-256 of their pixels. The test set is the
    official one (digits: the first 50 images of each class). Of the training images that are left of a
    part and classes, validation takes the last ones of the classes in turn, training the first ones of
    what then is left, so classes are balanced as far as they have images and nothing is drawn at random.

    Parameters
    ----------
    described : Data or str
        What to load; a name stands for the whole set as it is. It is registered or installed.
    cache : Path or None
        Folder that keeps a registered set, decoded, as ``<name>.safetensors``; None decodes it anew.

    Returns
    -------
    Dataset
        On the CPU.

    Raises
    ------
    InputError
        If the name is unknown, or the set is not installed, or not what it is registered or installed as.
    """
    described = Data(name=described) if isinstance(described, str) else described
    name, facts = described.name, described.facts
    contents, whole = _decoded(name, cache)

    def taken(kind: str, places: Tensor) -> tuple[Images, Tensor]:
        labels = torch.from_numpy(contents[f"{kind}_y"])[places]
        if described.classes is not None:
            labels = torch.searchsorted(torch.tensor(described.classes), labels)
        return _seen(contents[f"{kind}_x"], places, facts.shape), labels

    y, test_y = (torch.from_numpy(contents[f"{kind}_y"]) for kind in PARTS)
    pool, test = _chosen(y, described.classes, described.part), _chosen(test_y, described.classes)
    train, val = _divided(y, pool, described)
    (train_x, train_y), (val_x, val_y), (test_x, test_y) = (
        taken("train", train),
        taken("train", val),
        taken("test", test),
    )
    if described.random_labels is not None:
        drawn = random_labels(len(y), facts.classes, described.random_labels)[train]
        train_y = torch.where(_mislabelled(len(y), described)[train], drawn, train_y)
    mean, std = scale_of(described, whole)
    return Dataset(
        name, str(whole.fingerprint), train_x, train_y, val_x, val_y, test_x, test_y, facts.classes, mean, std
    )


def shaped(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Repeat grey images in several channels, and pad images to a size with black, as much on either side.

    Parameters
    ----------
    x : tensor
        Images [..., C, H, W].
    shape : tuple of int
        Channels, height and width of the result; a side that is odd longer gets one more on the right or below.
    """
    channels, height, width = shape
    top, left = (height - x.shape[-2]) // 2, (width - x.shape[-1]) // 2
    x = x.expand(*x.shape[:-3], channels, -1, -1)
    border = (left, width - x.shape[-1] - left, top, height - x.shape[-2] - top)
    return torch.nn.functional.pad(x, border) if any(border) else x.contiguous()


def random_labels(n: int, classes: int, seed: int) -> Tensor:
    """Draw a label for each training image of a set, uniformly; int64 [n] on the CPU."""
    return torch.from_numpy((Stream(seed, "labels").uniform(n) * classes).astype(np.int64))


def order(n: int, replicate: int, epoch: int) -> Tensor:
    """Permutation in which a replicate sees its `n` training images in an epoch, int64 [n] on the CPU."""
    return torch.from_numpy(Stream(replicate, "order", epoch).permutation(n))


def moves(augment: str, n: int, replicate: int, epoch: int) -> Tensor | None:
    """Draw how the images of an epoch are moved on the device; None if they are not.

    Parameters
    ----------
    augment : str
        As in `lthlab.parts.Data`.
    n : int
        Number of images of the epoch.
    replicate, epoch : int
        What the draws depend on.

    Returns
    -------
    tensor or None
        As of `crop_flip_draws`.
    """
    if augment not in ("crop", "crop_flip"):
        return None
    draws = crop_flip_draws(n, PAD, replicate, epoch)
    return draws if augment == "crop_flip" else draws * torch.tensor([1, 1, 0])


def normalise(x: Tensor, dataset: Dataset, dtype: torch.dtype) -> Tensor:
    """Scale images to mean 0 and standard deviation 1 in each channel, over the training images.

    Parameters
    ----------
    x : tensor
        Images, uint8 [..., C, H, W].
    dataset : Dataset
        Gives mean and standard deviation.
    dtype : torch.dtype
        Floating type of the result; computed in float32 at least.

    Returns
    -------
    tensor
        [..., C, H, W] on the device of `x`.
    """
    mean, std = _scale(dataset.mean, dataset.std, x.device, torch.promote_types(dtype, torch.float32))
    return x.sub(mean).div_(std).to(dtype)


def crop_flip_draws(n: int, pad: int, replicate: int, epoch: int) -> Tensor:
    """Draw how `crop_flip` moves each image of an epoch.

    Parameters
    ----------
    n : int
        Number of images of the epoch.
    pad : int
        Border in pixels, as for `crop_flip`.
    replicate, epoch : int
        What the draws depend on, with the position in the epoch and `pad`, and nothing else.

    Returns
    -------
    tensor
        int64 [n, 3] on the CPU, by position in the epoch: top and left edge of the crop in the padded
        image, 0 … 2·pad, and 1 where it is flipped.
    """
    uniform = Stream(replicate, "augmentation", epoch).uniform(3 * n).reshape(n, 3)
    return torch.from_numpy((uniform * [2 * pad + 1, 2 * pad + 1, 2]).astype(np.int64))


def crop_flip(x: Tensor, pad: int, draws: Tensor) -> Tensor:
    """Pad images with zeros, crop them to their old size and flip some left to right.

    Parameters
    ----------
    x : tensor
        Images, [B, C, H, W], before normalisation so that the border is black.
    pad : int
        Border in pixels, at least 0.
    draws : tensor
        The rows of `crop_flip_draws` that belong to the batch, int64 [B, 3], on the device of `x`.

    Returns
    -------
    tensor
        [B, C, H, W], of the type of `x`.

    Notes
    -----
    He et al. 2016, section 4.2, with pad = 4.
    """
    channels, height, width = x.shape[1:]
    padded = torch.nn.functional.pad(x, (pad, pad, pad, pad))
    top, left, flip = (column[:, None] for column in draws.unbind(1))
    rows = top + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device)
    columns = left + torch.where(flip == 1, width - 1 - columns, columns)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    places = places.flatten(1)[:, None, :].expand(-1, channels, -1)
    return padded.flatten(2).gather(2, places).view(x.shape)


def mixup_draws(n: int, batch_size: int, alpha: float, replicate: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Draw how `mixup` mixes the images of an epoch.

    Parameters
    ----------
    n, batch_size : int
        Number of images of the epoch, and of a step; the last step may have fewer.
    alpha : float
        Both parameters of the Beta distribution, above 0.
    replicate, epoch : int
        What the draws depend on, with the position in the epoch, and nothing else but those above.

    Returns
    -------
    partners : tensor
        int64 [n] on the CPU, by position in the epoch: position of the partner within the step's images. The partners
        of a step are a permutation of its images.
    shares : tensor
        fp32 [step] on the CPU: share of the image itself, Beta(α, α), one for all images of a step.

    Notes
    -----
    Zhang et al. 2018, section 2. A symmetric Beta comes from Student's t with 2α degrees of freedom, and that from two
    uniform numbers (Bailey 1994); nothing is rejected, so each step has numbers of its own.
    """
    step = np.arange(n) // batch_size
    partners = np.lexsort((Stream(replicate, "mixup", epoch).bits(n), step)) - step * batch_size
    first, second = Stream(replicate, "mixup", epoch, draw=1).uniform(2 * (int(step[-1]) + 1)).reshape(-1, 2).T
    exponent, cosine = np.log1p(-first) / alpha, np.cos(2.0 * np.pi * second)
    near, far = np.exp(exponent), -np.expm1(exponent)
    shares = 0.5 * (1 + cosine * np.sqrt(far / (near + far * cosine**2)))
    return torch.from_numpy(partners), torch.from_numpy(shares.astype(np.float32))


def mixup(x: Tensor, labels: Tensor, classes: int, partners: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mix images with their partners, and labels likewise.

    Parameters
    ----------
    x : tensor
        Normalised images, [slot, B, C, H, W].
    labels : tensor
        int64 [slot, B].
    classes : int
        Number of classes.
    partners, shares : tensor
        Of each slot those of `mixup_draws` that belong to the step, [slot, B] and [slot], on the device of `x`.

    Returns
    -------
    images, labels : tensor
        [slot, B, C, H, W] and, for each class its share, [slot, B, class]; of the type of `x`.

    Notes
    -----
    Zhang et al. 2018, section 2.
    """
    slots = torch.arange(len(x), device=x.device)[:, None]
    truth = (labels[..., None] == torch.arange(classes, device=x.device)).to(x.dtype)

    def blend(items: Tensor) -> Tensor:
        own = shares.to(x.dtype).view(-1, *[1] * (items.dim() - 1))
        return items * own + items[slots, partners] * (1 - own)  # as separate steps, they round alike at every place

    return blend(x), blend(truth)


@_decoder("digits")
def _digits() -> Arrays:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = canonical(images.astype(np.uint8).reshape(-1, 1, 8, 8), labels)
    test = _balanced(torch.from_numpy(y), 500).numpy()
    return {
        "train_x": np.delete(x, test, 0),
        "train_y": np.delete(y, test),
        "test_x": x[test],
        "test_y": y[test],
    }


def _decoded(name: str, cache: Path | None) -> tuple[Arrays, DataFacts]:
    """Read an installed set, or a registered one from the cache or from its function."""
    facts = facts_of(name)
    if name not in _sources:
        found = installed(name)
        return found.contents, found.facts
    path = None if cache is None else cache / f"{name}.safetensors"
    if path is not None and path.exists():
        try:
            arrays: Arrays = load_file(path)
            if not _malformed(arrays) and _described(name, arrays) == facts:
                return arrays, facts
            reason = "has other images or labels"
        except SafetensorError as error:
            reason = f"cannot be read ({error})"
        log.warning("%s %s: decoded again", path, reason)
    decoded = _sources[name]()
    if given := _malformed(decoded):
        allowed = "uint8 (N, C, H, W), all of one size, and integers (N,) from 0 on, N at least 1"
        raise InputError(f"data set {name!r} has {given}: allowed are {allowed}")
    arrays = {}
    for part in PARTS:
        arrays[f"{part}_x"], arrays[f"{part}_y"] = canonical(decoded[f"{part}_x"], decoded[f"{part}_y"])
    if (described := _described(name, arrays)) != facts:
        where = f"what {_sources[name].__name__} decoded is described by {described}"
        raise InputError(f"data set {name!r} is registered with {facts}; {where}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as aside:
            save_file(arrays, aside)
    return arrays, facts


def _malformed(decoded: Any) -> str:
    """Say what is wrong with the form of a decoded set; empty if nothing is."""
    if not isinstance(decoded, Mapping):
        return f"{type(decoded).__name__} in place of a dict"
    shapes = []
    for part in PARTS:
        x, y = (decoded.get(f"{part}_{kind}") for kind in "xy")
        if not (isinstance(x, np.ndarray) and isinstance(y, np.ndarray)):
            return f"{type(x).__name__} as {part}_x and {type(y).__name__} as {part}_y"
        lowest = int(y.min()) if y.size and y.dtype.kind in "iu" else None
        if x.dtype != np.uint8 or x.ndim != 4 or not x.size or y.shape != x.shape[:1] or lowest is None or lowest < 0:
            begin = "" if lowest is None else f" from {lowest} on"
            return f"{part} images {x.dtype} {x.shape}, labels {y.dtype} {y.shape}{begin}"
        shapes.append(x.shape[1:])
    train, test = shapes
    return "" if train == test else f"train images {train} and test images {test}"


def _described(name: str, arrays: Arrays) -> DataFacts:
    images, classes = arrays["train_x"], 1 + int(max(arrays["train_y"].max(), arrays["test_y"].max()))
    return describe(name, arrays, images.shape[1:], classes, histogram(images))


def _seen(x: Images, places: Tensor, shape: tuple[int, int, int]) -> Images:
    """Take some images as a network sees them; files are brought to their shape when they are read."""
    return x[places.tolist()] if isinstance(x, Files) else shaped(torch.from_numpy(x)[places], shape)


def _chosen(labels: Tensor, classes: tuple[int, ...] | None, part: str | None = None) -> Tensor:
    """Find the images of a part and of classes, in their order."""
    places = torch.arange(len(labels))[part == "b" :: 2 if part else 1]
    return places if classes is None else places[torch.isin(labels[places], torch.tensor(classes))]


def _mislabelled(n: int, described: Data) -> Tensor:
    """Choose the images of a set that get random labels, each by itself: more of them with a larger share."""
    share = 1.0 if described.label_noise is None else described.label_noise
    return torch.from_numpy(Stream(described.random_labels or 0, "labels", draw=1).uniform(n) < share)


def _divided(labels: Tensor, pool: Tensor, described: Data) -> tuple[Tensor, Tensor]:
    """Divide images, of which all labels are given, into training and validation."""
    val = pool[len(pool) - 1 - _balanced(labels[pool].flip(0), described.val_size).flip(0)]
    others = pool[~torch.isin(pool, val)]
    return others[_balanced(labels[others], described.images)], val


def scale_of(described: Data, whole: DataFacts) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel that pixels are normalised by, in pixel units; empty if not known."""
    scale = (whole.mean, whole.std)
    if described.normalise != "own":
        numbers = IMAGENET if described.normalise == "imagenet" else REFERENCE[described.name]
        scale = tuple(255 * number for number in numbers[0]), tuple(255 * number for number in numbers[1])
    repeated = described.facts.shape[0] // max(len(scale[0]), 1)
    return scale[0] * repeated, scale[1] * repeated


def _balanced(labels: Tensor, size: int) -> Tensor:
    """Choose `size` positions, the first of each class, then the second of each, and so on; sorted."""
    y = labels.numpy()
    turn = np.empty(len(y), np.int64)
    for label in np.unique(y):
        turn[y == label] = np.arange((y == label).sum())
    return torch.from_numpy(np.sort(np.lexsort((y, turn))[:size]))


@functools.cache
def _scale(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    shape = (-1, 1, 1)
    return (
        torch.tensor(mean, device=device, dtype=dtype).view(shape),
        torch.tensor(std, device=device, dtype=dtype).view(shape),
    )
