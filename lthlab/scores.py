"""Loss and accuracy of many states of one network on a fixed set of images."""

import math
import queue
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lthlab import nets
from lthlab.data import Dataset, normalise
from lthlab.draws import Stream
from lthlab.errors import InputError
from lthlab.images import Files
from lthlab.landscape import Score
from lthlab.layers import BatchNorm2d, Normalise, Weights
from lthlab.parts import Data, Net
from lthlab.replicas import single_threads
from lthlab.streams import Piece, Reader
from lthlab.values import Narrow

_T = TypeVar("_T")
_NUMBERS = 1 << 21  # of images that are evaluated at a time
_MOST_THREADS = 16


def images_of(dataset: Dataset, data: Data, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Choose images and labels, the same ones whenever they are asked for: the first of a random order.

    Parameters
    ----------
    dataset, data : Dataset, Data
        Images and labels; what they are.
    split : {'train', 'test'}
        Training images, as labelled for training but not augmented, or test images.
    count : int
        How many.

    Returns
    -------
    tuple of Tensor
        uint8 [image, channel, y, x] and int64 [image], on the CPU.

    Raises
    ------
    InputError
        If there are not so many images, or for another split.
    """
    if split not in ("train", "test"):
        raise InputError(f"split '{split}'; allowed: train, test")
    stored, labels = (getattr(dataset, f"{split}_{kind}") for kind in "xy")
    if not 0 < count <= len(labels):
        raise InputError(f"{count} images of split '{split}' of {dataset.name}; allowed: 1 to {len(labels)}")
    chosen = torch.from_numpy(Stream(0, "landscape").permutation(len(labels))[:count])
    if not isinstance(stored, Files):
        return stored[chosen], labels[chosen]
    reader = Reader(data.facts.shape, data.source.shape[0], torch.device("cpu"))
    return torch.cat(list(reader.read([Piece(stored.paths(chosen.tolist()))]))), labels[chosen]


class Scorer:
    """Scores states of a network by a fixed set of images; an `lthlab.landscape.Evaluate`.

    On a CPU every state is computed on one core, and as many at once as torch has threads, up to 16. So the score of a
    state has the same bits whatever is scored beside it. Memory follows from the size of the images and the number of
    threads, not from the number of states or images: up to 2²¹ numbers of images are computed at a time.

    Parameters
    ----------
    net, data : Net or Narrow, Data
        As in `lthlab.nets.build`.
    dataset : Dataset
        Says by what pixels are normalised.
    images, labels : Tensor
        As of `images_of`.
    batchnorm : {'fixed', 'recompute'}, optional
        Normalise by the statistics that a state has, or by those of its weights on these images: mean and variance of
        each channel over all images, or the average of those of parts, where they are computed in parts.
    device : str or torch.device, optional
        Where to compute.
    dtype : torch.dtype, optional
        Type of weights and images.

    Raises
    ------
    InputError
        For another `batchnorm`, or one image whose statistics are to be computed.
    """

    def __init__(
        self,
        net: Net | Narrow,
        data: Data,
        dataset: Dataset,
        images: Tensor,
        labels: Tensor,
        batchnorm: str = "fixed",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if batchnorm not in ("fixed", "recompute"):
            raise InputError(f"batchnorm '{batchnorm}' of a landscape; allowed: fixed, recompute")
        self.device = torch.device(device)
        count = min(torch.get_num_threads(), _MOST_THREADS) if self.device.type == "cpu" else 1
        self.networks = [nets.build(net, data, device=self.device).to(dtype).eval() for _ in range(count)]
        norms = any(isinstance(layer, BatchNorm2d) for _, layer in self.networks[0].layers())
        self.recomputed = norms and batchnorm == "recompute"
        if self.recomputed and len(labels) < 2:
            raise InputError("batchnorm 'recompute' with 1 image; allowed: 2 or more")
        parts = -(-images.numel() // _NUMBERS)
        ready = normalise(images.to(self.device), dataset, dtype)
        self.images, self.labels = ready.tensor_split(parts), labels.to(self.device).tensor_split(parts)
        self.count = len(labels)

    def __call__(self, make: Callable[[_T], Weights], places: Sequence[_T], /) -> list[Score]:
        """Score the states that `make` makes of places, in the threads that compute them."""
        left = queue.SimpleQueue[int]()
        for number in range(len(places)):
            left.put(number)
        found: list[Score] = [Score(math.nan, math.nan)] * len(places)

        @torch.no_grad()
        def work(network: nets.Network) -> None:
            while True:
                try:
                    number = left.get_nowait()
                except queue.Empty:
                    return
                found[number] = self._score(network, make(places[number]))

        if len(self.networks) == 1:
            work(self.networks[0])
        else:
            with single_threads(len(self.networks)) as pool:
                list(pool.map(work, self.networks))
        return found

    def _score(self, network: nets.Network, state: Weights) -> Score:
        network.load([state])
        if self.recomputed:
            self._recompute(network)
        loss, correct = 0.0, 0
        for images, labels in zip(self.images, self.labels, strict=True):
            logits = network(images)
            loss += F.cross_entropy(logits, labels, reduction="none").double().sum().item()
            correct += int((logits.argmax(1) == labels).count_nonzero())
        return Score(loss / self.count, correct / self.count)

    def _recompute(self, network: nets.Network) -> None:
        seen = 0
        network.train()
        for images in self.images:
            seen += len(images)
            network.normalise_by(_averaging(len(images) / seen))
            network(images)
        network.eval()

    def losses(self) -> list[Callable[[Weights], Tensor]]:
        """Give the mean loss of a state as a sum of functions, which autograd can differentiate.

        BatchNorm is in evaluation mode, with the statistics of the state.
        """
        network = self.networks[0]

        def part(images: Tensor, labels: Tensor) -> Callable[[Weights], Tensor]:
            def loss(state: Weights) -> Tensor:
                logits = torch.func.functional_call(network, state, (images,))
                return F.cross_entropy(logits, labels, reduction="sum") / self.count

            return loss

        return [part(images, labels) for images, labels in zip(self.images, self.labels, strict=True)]


def _averaging(share: float) -> Normalise:
    """Normalise a part of the images by its own statistics, and average these with those of the parts before."""

    def normalise(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, weight, bias, training=True, momentum=share)

    return normalise
