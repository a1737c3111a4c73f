"""Named data sets as tensors, their order in an epoch, and augmentation of whole batches."""

import functools
import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from lthlab.draws import Stream
from lthlab.parts import DATASETS, nearest

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[np.generic]]
"""A decoded set: train_x and test_x, uint8 [N, C, H, W]; train_y and test_y, integers [N] from 0 on."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels, ready to train on.

    Attributes
    ----------
    name : str
        Name it is registered under.
    fingerprint : str
        32 hexadecimal characters that identify all images, labels and the division into train and test.
    train_x, val_x, test_x : tensor
        Images, uint8 [N, C, H, W]; N of validation may be 0.
    train_y, val_y, test_y : tensor
        Labels, int64 [N], in 0 … classes - 1.
    classes : int
        Number of classes.
    mean, std : tuple of float
        Mean and standard deviation of the pixels of each channel over all training images, in pixel units.
    """

    name: str
    fingerprint: str
    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class _Source:
    decode: Callable[[], Arrays]
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


_sources: dict[str, _Source] = {}


def register(
    name: str, *, fingerprint: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Callable[[], Arrays]], Callable[[], Arrays]]:
    """Register the decorated function as the data set `name`.

    Parameters
    ----------
    name : str
        Name for `load`, not in use yet.
    fingerprint : str
        What `load` must find; where it finds another, its error tells which.
    mean, std : tuple of float
        Mean and standard deviation of each channel over the training images, in pixel units 0 … 255.

    Returns
    -------
    callable
        Decorator of a function without arguments that returns `Arrays`, in any order of images.

    Raises
    ------
    ValueError
        If `name` is registered already.
    """
    if name in _sources:
        raise ValueError(f"data set {name!r} is registered already; registered are {', '.join(_sources)}")

    def add(decode: Callable[[], Arrays]) -> Callable[[], Arrays]:
        _sources[name] = _Source(decode, fingerprint, tuple(mean), tuple(std))
        return decode

    return add


def load(name: str, cache: Path | None, *, train_size: int | None = None, val_size: int = 0) -> Dataset:
    """Load a data set and divide it.

    Images are in canonical order, by class, then by the SHA-256 of their pixels. The test set is the
    official one (digits: the first 50 images of each class). Validation takes the last images of the
    classes in turn from the others, training the first ones of what then is left, so classes are
    balanced as far as they have images and nothing is drawn at random.

    Parameters
    ----------
    name : str
        A registered name, such as ``"digits"``.
    cache : Path or None
        Folder that keeps the decoded set as ``<name>.safetensors``; None decodes it anew.
    train_size : int, optional
        Number of images to train on, at least 1; all that validation leaves if not given.
    val_size : int, default 0
        Number of images for validation.

    Returns
    -------
    Dataset
        On the CPU.

    Raises
    ------
    ValueError
        If the name is unknown, there are too few images for the sizes, or the set has another
        fingerprint than it is registered with.
    """
    if name not in _sources:
        raise ValueError(f"data set '{name}' is not known; {nearest(name, _sources)}")
    source = _sources[name]
    arrays = _decoded(name, source, cache)
    x, y = (torch.from_numpy(arrays[key]) for key in ("train_x", "train_y"))
    if not 0 <= val_size < len(x):
        raise ValueError(f"val_size is {val_size}: data set {name!r} allows 0 … {len(x) - 1}")
    left = len(x) - val_size
    size = left if train_size is None else train_size
    if not 1 <= size <= left:
        besides = f" besides {val_size} for validation" if val_size else ""
        raise ValueError(f"train_size is {size}: data set {name!r} allows 1 … {left}{besides}")
    val = len(x) - 1 - _balanced(y.flip(0), val_size).flip(0)
    others = torch.ones(len(x), dtype=torch.bool).index_fill(0, val, False).nonzero().flatten()
    train = others[_balanced(y[others], size)]
    test_x, test_y = (torch.from_numpy(arrays[key]) for key in ("test_x", "test_y"))
    return Dataset(
        name=name,
        fingerprint=source.fingerprint,
        train_x=x[train],
        train_y=y[train],
        val_x=x[val],
        val_y=y[val],
        test_x=test_x,
        test_y=test_y,
        classes=int(max(y.max(), test_y.max())) + 1,
        mean=source.mean,
        std=source.std,
    )


def order(n: int, replicate: int, epoch: int) -> Tensor:
    """Permutation in which a replicate sees its `n` training images in an epoch, int64 [n] on the CPU."""
    return torch.from_numpy(Stream(replicate, "order", epoch).permutation(n))


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


@register("digits", fingerprint=DATASETS["digits"].fingerprint, mean=(4.886878373168851,), std=(6.014557028580646,))
def _digits() -> Arrays:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = _canonical(images.astype(np.uint8).reshape(-1, 1, 8, 8), labels)
    test = _balanced(torch.from_numpy(y), 500).numpy()
    return {
        "train_x": np.delete(x, test, 0),
        "train_y": np.delete(y, test),
        "test_x": x[test],
        "test_y": y[test],
    }


def _decoded(name: str, source: _Source, cache: Path | None) -> Arrays:
    path = None if cache is None else cache / f"{name}.safetensors"
    if path is not None and path.exists():
        try:
            arrays = load_file(path)
            if _fingerprint(arrays) == source.fingerprint:
                return arrays
            reason = "has another fingerprint"
        except (SafetensorError, KeyError) as error:
            reason = f"cannot be read ({error})"
        log.warning("%s %s: decoded again", path, reason)
    decoded = source.decode()
    arrays = {}
    for part in ("train", "test"):
        x, y = decoded[f"{part}_x"], decoded[f"{part}_y"]
        if x.dtype != np.uint8 or x.ndim != 4 or y.shape != x.shape[:1] or y.min() < 0:
            given = f"{part} images {x.dtype} {x.shape}, labels {y.shape} from {y.min()} on"
            raise ValueError(f"data set {name!r} has {given}: allowed are uint8 (N, C, H, W), (N,) from 0 on")
        arrays[f"{part}_x"], arrays[f"{part}_y"] = _canonical(x, y)
    found = _fingerprint(arrays)
    if found != source.fingerprint:
        where = f"what {source.decode.__name__} decoded"
        raise ValueError(f"fingerprint of data set {name!r} is {found} in {where}: allowed is {source.fingerprint}")
    if path is not None:
        _write(path, arrays)
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    with aside.open("wb") as file:
        file.write(save(arrays))
        file.flush()
        os.fsync(file.fileno())
    with suppress(FileNotFoundError):  # another process wrote the same and was first
        aside.replace(path)


def _canonical(x: NDArray[np.generic], y: NDArray[np.generic]) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    digests = [hashlib.sha256(image.tobytes()).digest() for image in x]
    places = sorted(range(len(x)), key=lambda i: (y[i], digests[i]))
    return np.ascontiguousarray(x[places], np.uint8), np.ascontiguousarray(y[places], np.int64)


def _fingerprint(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for key, kind in (("train_x", "u1"), ("train_y", "<i8"), ("test_x", "u1"), ("test_y", "<i8")):
        digest.update(f"{key} {kind} {list(arrays[key].shape)}\n".encode())
        digest.update(arrays[key].astype(kind).tobytes())
    return digest.hexdigest()[:32]


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
