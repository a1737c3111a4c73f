"""Images that are read, and changed where need be, by processes of their own while a network trains.

What is read depends on replicate, epoch and position in it alone; how many processes read it changes nothing.
"""

import importlib
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data as loading

from lthlab import draws, images
from lthlab.data import Dataset, Images
from lthlab.errors import InputError
from lthlab.images import Files
from lthlab.lanes import Source
from lthlab.values import Train

_PIECE = 128  # images that a process reads at a time
_MOST = 16  # processes
_NOTE = 4096  # bytes in which a process notes what it reads


class ReaderEnded(ChildProcessError):
    """A process that reads images has ended; what was in a checkpoint is not lost."""


class Piece(NamedTuple):
    """What a process reads at a time.

    Attributes
    ----------
    images : list of str or Tensor
        Paths; or images, uint8 [image, channel, y, x].
    crops : tuple of int or None
        Replicate, epoch, and position in it of the first image, for resized crops at random; None if images are only
        brought to their size.
    """

    images: list[str] | Tensor
    crops: tuple[int, int, int] | None = None


class _Reading(loading.Dataset[Any]):
    """Makes images of pieces, uint8 [image, channel, y, x]; or says what cannot be read."""

    def __init__(self, shape: tuple[int, int, int], channels: int, notes: Tensor) -> None:
        self.shape, self.channels, self.notes = shape, channels, notes

    def __getitem__(self, piece: Piece) -> Tensor | str:
        found = torch.empty(len(piece.images), *self.shape, dtype=torch.uint8)
        for place, (target, image) in enumerate(zip(found.numpy(), piece.images, strict=True)):
            try:
                target[:] = self._image(image, piece.crops, place)
            except Exception as error:  # Pillow raises many kinds
                first = piece.crops[2] if piece.crops else 0
                name = image if isinstance(image, str) else f"at position {first + place}"
                return f"image {name} cannot be read: {error}"
        return found

    def _image(self, image: str | Tensor, crops: tuple[int, int, int] | None, place: int) -> NDArray[np.uint8]:
        if isinstance(image, str):
            self._note(image)
            found = images.decode(image, self.channels)
        else:
            found = images.picture(image.numpy())
        channels, height, width = self.shape
        if crops is None:
            return images.array(images.fitted(found, height, width), channels)
        replicate, epoch, first = crops
        stream = draws.Stream(replicate, "augmentation", epoch).skip((first + place) * images.NUMBERS)
        return images.array(images.resized_crop(found, height, width, stream.uniform(images.NUMBERS)), channels)

    def _note(self, path: str) -> None:
        """Note what this process reads, for the case that it does not survive it."""
        process = loading.get_worker_info()
        words = torch.frombuffer(bytearray(f"{os.getpid()} {path}".encode()[:_NOTE]), dtype=torch.uint8)
        self.notes[process.id if process else 0].zero_()[: len(words)] = words


class _Plan:
    """What is read in the next round, of which a `DataLoader` asks anew."""

    pieces: Iterable[Piece] = ()

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.pieces)


def processes(device: torch.device) -> int:
    """How many processes read images.

    On a CPU none: the process that trains has all cores, and reads between its steps. For a GPU one for each thread of
    this process but one, at least 1 and at most 16.
    """
    return 0 if device.type == "cpu" else min(_MOST, max(1, torch.get_num_threads() - 1))


class Reader:
    """Processes that read images ahead of their use.

    They are started when the first images are asked for, and end with this object, or with this process.

    Parameters
    ----------
    shape : tuple of int
        Channels, height and width that images are brought to.
    channels : {1, 3}
        Whether files are decoded as grey or as red, green and blue.
    device : torch.device
        Where images will be used.

    Raises
    ------
    ModuleNotFoundError
        If there is no Pillow.
    """

    def __init__(self, shape: tuple[int, int, int], channels: int, device: torch.device) -> None:
        importlib.import_module("PIL")  # that it is missing is not said of an image
        count = processes(device)
        self.shape, self._plan = shape, _Plan()
        self._notes = torch.zeros(max(count, 1), _NOTE, dtype=torch.uint8).share_memory_()
        self._loader = loading.DataLoader(
            _Reading(shape, channels, self._notes),
            batch_size=None,
            sampler=self._plan,
            num_workers=count,
            multiprocessing_context="spawn" if count else None,  # nothing is forked while lanes have threads
            persistent_workers=count > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),
        )

    def read(self, pieces: Iterable[Piece]) -> Iterator[Tensor]:
        """Yield the images of each piece, in their order, on the CPU; what is left of an earlier round is dropped.

        Raises
        ------
        InputError
            If an image cannot be read.
        ReaderEnded
            If one of the processes has ended.
        """
        self._plan.pieces = pieces
        try:
            with _without_interrupts():
                found = iter(self._loader)
            for item in found:
                if isinstance(item, str):
                    raise InputError(item)
                yield item
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ReaderEnded(self._ended(str(error))) from error

    def _ended(self, said: str) -> str:
        notes = [bytes(note.tolist()).rstrip(b"\0").decode(errors="replace").partition(" ") for note in self._notes]
        paths = [path for number, _, path in notes if number and number in said] or [path for *_, path in notes if path]
        return f"a process that reads images has ended; it was at {' or '.join(paths) or 'its start'}"


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that an interrupt from the keyboard does not reach; this one finishes its step first."""
    resource_tracker.ensure_running()  # to start it would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Streamed(Source):
    """Images that are read while a network trains.

    On the device are two batches for each replicate, of which one is filled while the other is trained on. They stay
    where they are, so that a captured step finds the images of each step.

    Parameters
    ----------
    reader : Reader
        Reads the images; several sources may share it, one after the other.
    dataset : Dataset
        Has the images and labels.
    part : {'train', 'val', 'test'}
        Which of them.
    dtype : torch.dtype
        Type of the batches.
    device : torch.device
        Where they are used.
    cropped : bool, optional
        Whether each image is a resized crop at random.
    replicates, batch_size : int, optional
        Of the training; none for images that are only evaluated.
    """

    def __init__(
        self,
        reader: Reader,
        dataset: Dataset,
        part: str,
        dtype: torch.dtype,
        device: torch.device,
        cropped: bool = False,
        replicates: int = 0,
        batch_size: int = 0,
    ) -> None:
        self.reader, self.cropped, self.replicates, self.batch_size = reader, cropped, replicates, batch_size
        self.stored: Images = getattr(dataset, f"{part}_x")
        self.truth: Tensor = getattr(dataset, f"{part}_y")
        count = 2 * replicates * batch_size
        pixels = torch.zeros(count, *reader.shape, dtype=torch.uint8, device=device)
        super().__init__(dataset, pixels, torch.zeros(count, dtype=torch.int64), dtype, device, given=True)
        self._reading: Iterator[tuple[tuple[int, Tensor, Any], Tensor]] = iter(())
        self._copying: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copying = torch.cuda.Stream(device)
            self._copying.wait_stream(torch.cuda.current_stream(device))
        self._half = 0  # that was filled last
        self._used: list[list[torch.cuda.Event]] = [[], []]  # events after the steps that used each half

    def begin(self, orders: Mapping[int, Tensor], epoch: int, step: int) -> Mapping[int, Tensor]:
        """As of `Source`."""
        size, stored, cropped = self.batch_size, self.stored, self.cropped  # this object does not refer to itself
        plan = (orders, epoch, step, size)
        pieces = (Piece(_taken(stored, at), crops if cropped else None) for _, at, crops in _plan(*plan))
        self._reading = zip(_plan(*plan), self.reader.read(pieces), strict=True)
        self._half = 1 - step % 2  # no step is under way: the metrics of the epoch before have been read
        place = torch.arange(len(self.truth))
        place = place // size % 2 * self.replicates * size + place % size
        return {replicate: place + row * size for row, replicate in enumerate(orders)}

    def feed(self, size: int, streams: Sequence[torch.cuda.Stream]) -> None:
        """As of `Source`."""
        with self._beside(streams):
            for (place, chosen, _), pixels in islice(self._reading, self.replicates * -(-size // _PIECE)):
                self.images[place : place + len(chosen)].copy_(pixels, non_blocking=True)
                self.labels[place : place + len(chosen)].copy_(self.truth[chosen], non_blocking=True)

    @contextmanager
    def _beside(self, streams: Sequence[torch.cuda.Stream]) -> Iterator[None]:
        """Fill a half while steps that were started use the other one; steps that are started after wait for it."""
        if self._copying is None:
            yield
            return
        self._used[self._half] = [stream.record_event() for stream in streams]
        self._half = 1 - self._half
        with torch.cuda.stream(self._copying):
            for event in self._used[self._half]:
                event.wait()
            yield
        for stream in streams:
            stream.wait_stream(self._copying)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As of `Source`."""
        stored, chosen = self.stored, torch.arange(len(self.truth)).split(size)
        pieces = (Piece(_taken(stored, places)) for places in chosen)
        for places, pixels in zip(chosen, self.reader.read(pieces), strict=True):
            yield self._normalised(pixels.to(self.device, non_blocking=True)), self.truth[places].to(self.device)


def _taken(stored: Images, places: Tensor) -> list[str] | Tensor:
    return stored.paths(places.tolist()) if isinstance(stored, Files) else stored[places]


def _plan(
    orders: Mapping[int, Tensor], epoch: int, step: int, size: int
) -> Iterator[tuple[int, Tensor, tuple[int, int, int]]]:
    """List the pieces of an epoch: where they go, which images they are, and what their crops depend on."""
    count = len(next(iter(orders.values())))
    for first in range(step * size, count, size):
        for row, (replicate, order) in enumerate(orders.items()):
            for at in range(first, min(first + size, count), _PIECE):
                place = (first // size % 2 * len(orders) + row) * size + at - first
                yield place, order[at : min(at + _PIECE, first + size)], (replicate, epoch, at)


def sources_of(
    dataset: Dataset, trains: Sequence[Train], dtype: torch.dtype, device: torch.device
) -> dict[str, Source]:
    """Make the sources of a group of trainings.

    Parameters
    ----------
    dataset : Dataset
        Images and labels.
    trains : sequence of Train
        The group, of one shape.
    dtype : torch.dtype
        Type of the batches.
    device : torch.device
        Where they are used.

    Returns
    -------
    dict of str to Source
        'train', 'val' and 'test', as far as there are images. Streamed are images in files, and those that are changed
        by resized crops.
    """
    described, reader, found = trains[0].data, None, dict[str, Source]()
    for part in ("train", "val", "test"):
        stored, labels = getattr(dataset, f"{part}_x"), getattr(dataset, f"{part}_y")
        augment = described.augment if part == "train" else "none"
        cropped = augment == "resized_crop_flip"
        if not len(labels):
            continue
        if not (cropped or isinstance(stored, Files)):
            found[part] = Source(dataset, stored, labels, dtype, device, augment)
            continue
        reader = reader or Reader(described.facts.shape, described.source.shape[0], device)
        size = (len({train.order for train in trains}), trains[0].recipe.batch_size) if part == "train" else (0, 0)
        found[part] = Streamed(reader, dataset, part, dtype, device, cropped, *size)
    return found
