"""One network of one or more replicas that takes whole training steps by itself."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lthlab import chains, layers, nets
from lthlab.data import PAD, Dataset, crop_flip, mixup, normalise
from lthlab.layers import Weights
from lthlab.masks import Mask
from lthlab.parts import Recipe
from lthlab.values import Train

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""Types of the weights that are trained, by precision; bf16 is the type of the arithmetic between them."""
MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2}
"""Number of buffers that an optimizer has for each parameter."""
_ALIGNED = 16  # numbers; rows and parameters begin at multiples of 64 bytes
_WHOLE = 1 << 26  # numbers of images that are normalised once, not batch by batch
_EVALUATED = 1 << 25  # numbers of images that are evaluated at a time
Mixing = tuple[Tensor, Tensor]
"""How the images of a step are mixed: partners, int64 [slot, image], and shares, [slot]."""
_PLAIN = {"dampening": 0.0, "maximize": False, "is_first_step": False}
_OWN_THREAD = "thread_local"  # those that read images do to the GPU what must not happen while it captures
_EAGER = 2  # steps before one is captured in a CUDA graph: libraries set themselves up in them


class Source:
    """Images on a device, of which batches are made: those of training, validation or test.

    Parameters
    ----------
    dataset : Dataset
        Says by what pixels are normalised.
    images, labels : Tensor
        uint8 [image, channel, y, x] and int64 [image].
    dtype : torch.dtype
        Type of the batches.
    device : torch.device
        Where images are kept, as uint8 unless they are few and not augmented.
    augment : str, optional
        As in `lthlab.parts.Data`.
    given : bool, optional
        Whether images and labels are filled in anew for each step, as of `lthlab.streams.Streamed`.

    Attributes
    ----------
    given : tuple of Tensor
        Images and labels, if they are filled in anew for each step.
    """

    def __init__(
        self,
        dataset: Dataset,
        images: Tensor,
        labels: Tensor,
        dtype: torch.dtype,
        device: torch.device,
        augment: str = "none",
        given: bool = False,
    ) -> None:
        self.dataset, self.dtype, self.device = dataset, dtype, device
        self.images, self.labels = images.to(device), labels.to(device)
        self.given = (self.images, self.labels) if given else ()
        self.whole = not given and normalised_once(images.numel(), augment)
        if self.whole:
            self.images = normalise(self.images, dataset, dtype)

    def begin(self, orders: Mapping[int, Tensor], epoch: int, step: int) -> Mapping[int, Tensor]:
        """Prepare the steps of an epoch from a step on.

        Parameters
        ----------
        orders : mapping of int to Tensor
            Of each replicate the images in the order in which it sees them, int64 [image].
        epoch, step : int
            The epoch, and the number of the next step within it.

        Returns
        -------
        mapping of int to Tensor
            Where `batch` finds these images.
        """
        return orders

    def feed(self, size: int, streams: Sequence[torch.cuda.Stream]) -> None:
        """Have the next `size` images of each replicate ready for what is started next on the streams of a GPU."""

    def batch(self, chosen: Tensor, moves: Tensor | None) -> Tensor:
        """Make a batch of the images [slot, batch] that are chosen; `moves` [slot, batch, 3] augments them."""
        images = self.images.index_select(0, chosen.flatten()).unflatten(0, chosen.shape)
        if moves is not None:
            images = crop_flip(images.flatten(0, 1), PAD, moves.flatten(0, 1)).view(images.shape)
        return self._normalised(images)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images and labels in their order, `size` at a time."""
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            yield self._normalised(images), labels

    def _normalised(self, images: Tensor) -> Tensor:
        return images if self.whole else normalise(images, self.dataset, self.dtype)


def normalised_once(numbers: int, augment: str) -> bool:
    """Tell whether images of so many numbers in all are normalised once, not batch by batch."""
    return augment == "none" and numbers <= _WHOLE


def evaluation_batch(shape: tuple[int, ...]) -> int:
    """Number of images of a shape that are evaluated at a time: 1000, or fewer large ones."""
    return max(1, min(1000, _EVALUATED // math.prod(shape)))


class Lane:
    """Replicas of one network that are computed together, from the choice of a batch to the optimizer.

    All numbers that a step needs are in tensors that stay where they are, so a step can be captured in a CUDA
    graph; it then needs the host no more than to be started.

    Parameters
    ----------
    trains : sequence of Train
        What the replicas train, of one shape.
    states : sequence of dict of str to Tensor
        Their states to begin with, ordinary shapes.
    source : Source
        Images and labels.
    device : torch.device
        Where to compute. On a GPU, a lane has a stream of its own.
    slots : int
        Places for replicas. If there are more than replicas, the first is computed again in the others.

    Attributes
    ----------
    weights, gradient : Tensor
        [slot, number]: all parameters of a replica in one row, which `view` shows by name.
    moments : list of Tensor
        Buffers of the optimizer, laid out alike.
    loss_sum, correct_sum : Tensor
        [slot]: summed over the images since the sums were cleared: loss, fp64, and images classified correctly.
    """

    def __init__(
        self, trains: Sequence[Train], states: Sequence[Weights], source: Source, device: torch.device, slots: int
    ) -> None:
        first = trains[0]
        self.recipe, self.replicas, self.slots, self.source = first.recipe, len(trains), slots, source
        self.device, self.dtype = device, DTYPES[first.recipe.precision]
        self.network = nets.build(first.net, first.data, slots, device).to(self.dtype)
        computed = [*range(len(trains)), 0][:slots]
        self._classes = first.data.facts.classes
        self._recipes = [trains[number].recipe for number in computed]
        self.network.load([states[number] for number in computed])
        if self.recipe.processes > 1:
            self.network.normalise_by(layers.in_parts(self.recipe.processes))
        self.model: nn.Module = self.network
        self.convolutional = nets.convolutional(self.network)
        self._places: dict[str, tuple[int, torch.Size]] = {}
        self._lay_out()
        self._chain = self._without_autograd()
        self.momentum = self.column([recipe.momentum for recipe in self._recipes])
        self.decay = self._decay()
        self._fused_rows = [self._rows_of(recipe) for recipe in dict.fromkeys(self._recipes)]
        self.pruned: Tensor | None = None
        self.loss_sum = torch.zeros(slots, dtype=torch.float64, device=device)
        self.correct_sum = torch.zeros(slots, dtype=torch.int64, device=device)
        self._ones = torch.ones(slots, dtype=self.dtype, device=device)
        self._ranges: dict[int, Tensor] = {}
        self._number = 0  # of the next step within the epoch; on a GPU, the device counts
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._inputs: dict[str, Tensor] = {}
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._steps: Counter[int] = Counter()

    @property
    def fused(self) -> bool:
        """Whether a step of the optimizer is one pass over each row, which on CPUs is the fastest form."""
        return self.recipe.optimizer == "sgd" and self.device.type == "cpu"

    # --- parameters -----------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        parameters, total = dict(self.network.named_parameters()), 0
        for name, parameter in parameters.items():
            shape = parameter.shape[self.slots > 1 :]
            self._places[name] = total, shape
            total += -(-shape.numel() // _ALIGNED) * _ALIGNED
        self.weights, self.gradient, *self.moments = (
            torch.zeros(self.slots, total, dtype=self.dtype, device=self.device)
            for _ in range(2 + MOMENTS[self.recipe.optimizer])
        )
        self._scratch = torch.empty_like(self.weights)
        for name, parameter in parameters.items():
            view = self.view(self.weights, name)
            parameter.data = (view[0] if self.slots == 1 else view).copy_(parameter.data)
        self._parameters = list(parameters.values())
        gradients = (self.view(self.gradient, name) for name in parameters)
        self._gradients = [view[0] if self.slots == 1 else view for view in gradients]

    def view(self, rows: Tensor, name: str) -> Tensor:
        """Show the part of rows [slot, number] that belongs to a parameter, [slot, …]."""
        first, shape = self._places[name]
        part = rows[:, first : first + shape.numel()]
        if self.slots == 1 and len(shape) == 4:  # as convolutions over images in channels_last want them
            outputs, inputs, *size = shape
            return part.view(len(rows), outputs, *size, inputs).permute(0, 1, 4, 2, 3)
        return part.view(len(rows), *shape)

    def column(self, numbers: Sequence[float]) -> Tensor:
        """Put a number of each slot beside its row, [slot, 1]."""
        return torch.tensor(numbers, dtype=self.dtype, device=self.device)[:, None]

    def _decay(self) -> Tensor | None:
        """Coefficients of weight decay, as they are multiplied with the weights; None if that is no step by itself."""
        column = self.column([recipe.weight_decay for recipe in self._recipes])
        if not column.any() or (self.fused and self.recipe.decay_on == "all"):
            return None
        decayed = torch.full_like(self.weights, self.recipe.decay_on == "all")
        if self.recipe.decay_on == "weights":
            for name in nets.decayed(self.network):
                self.view(decayed, name).fill_(1)
        return decayed * column

    def _rows_of(self, recipe: Recipe) -> tuple[int, list[list[Tensor]], dict[str, Any]]:
        """A slot, the rows, and the settings of all replicas of a recipe, for the fused step of SGD.

        It has no velocity without momentum.
        """
        slots = [slot for slot, own in enumerate(self._recipes) if own == recipe]
        kinds = (self.weights, self.gradient, *self.moments[: recipe.momentum > 0])
        rows = [[kind[slot] for slot in slots] for kind in kinds]
        decay = recipe.weight_decay if self.decay is None else 0.0
        settings = {"momentum": recipe.momentum, "weight_decay": decay, "nesterov": recipe.nesterov, **_PLAIN}
        return slots[0], [*rows, *[[]] * (3 - len(rows))], settings

    def prune(self, slot: int, mask: Mask) -> None:
        """Clear a replica's weights outside a mask, and the optimizer's buffers of them, and keep them so."""
        if self.pruned is None:
            self.pruned = torch.zeros_like(self.weights, dtype=torch.bool)
            self._graphs.clear()
        for place in self.places(slot):
            for name, kept in mask.items():
                self.view(self.pruned, name)[place] |= ~kept.to(self.device)
            for rows in (self.weights, *self.moments):
                rows[place].masked_fill_(self.pruned[place], 0)

    def places(self, slot: int) -> list[int]:
        """Slots in which the replica of a slot is computed."""
        return [slot, *range(self.replicas, self.slots)] if slot == 0 else [slot]

    def revived(self, slot: int) -> list[str]:
        """Name the parameters of a replica of which a pruned weight is not zero."""
        if self.pruned is None:
            return []
        alive = (self.weights[slot : slot + 1] != 0) & self.pruned[slot : slot + 1]
        return [name for name in self._places if self.view(alive, name).any()] if alive.any() else []

    # --- steps ----------------------------------------------------------------------------------------------

    def begin(self, step: int, **inputs: Tensor) -> None:
        """Prepare the steps of an epoch from a step on.

        Parameters
        ----------
        step : int
            Number of the next step within the epoch.
        **inputs : Tensor
            `order`, int64 [slot, image]; `moves`, int64 [slot, image, 3], if images are augmented; `partners`, int64
            [slot, image], and `shares`, [slot, step], if they are mixed; `rates` [step, term, slot, 1], the numbers
            that an optimizer needs at a step: the learning rate; of Adam that divided by the correction of its first
            moment, the correction of its second one, and the learning rate as it is.
        """
        self._number = step
        self._place.fill_(step)
        for name, tensor in inputs.items():
            if name in self._inputs:
                self._inputs[name].copy_(tensor)
            else:
                self._inputs[name] = tensor.to(self.device, copy=True)

    def step(self, size: int) -> None:
        """Train on the next `size` images; on a GPU this only starts it."""
        if self.stream is None:
            self._step(size)
            return
        with torch.cuda.stream(self.stream):
            if size not in self._graphs and self._steps[size] < _EAGER:
                self._steps[size] += 1
                self._step(size)
                return
            if size not in self._graphs:
                graph = torch.cuda.CUDAGraph()
                pool = next((known.pool() for known in self._graphs.values()), None)  # nothing in it outlives a step
                with torch.cuda.graph(graph, pool, self.stream, _OWN_THREAD):
                    self._step(size)
                self._graphs[size] = graph
            self._graphs[size].replay()

    def _step(self, size: int) -> None:
        chosen, rates, moves, mixing = self._now(size)
        images, labels = self._batch(chosen, moves, mixing)
        losses, correct = self.backward(images, labels)
        self.update(rates)
        self.loss_sum += losses.double() * images.shape[1]
        self.correct_sum += correct

    def _batch(self, chosen: Tensor, moves: Tensor | None, mixing: Mixing | None) -> tuple[Tensor, Tensor]:
        """Make the images of a step, and their labels."""
        images, labels = self.source.batch(chosen, moves), self.source.labels.take(chosen)
        return (images, labels) if mixing is None else mixup(images, labels, self._classes, *mixing)

    def _now(self, size: int) -> tuple[Tensor, Tensor, Tensor | None, Mixing | None]:
        """Find the inputs of the next step: images, rates, moves, and the partners and shares that mix images."""
        order, moves, rates = self._inputs["order"], self._inputs.get("moves"), self._inputs["rates"]
        partners, shares = self._inputs.get("partners"), self._inputs.get("shares")
        if self.stream is None:
            place, self._number = self._number, self._number + 1
            part = slice(place * self.recipe.batch_size, place * self.recipe.batch_size + size)
            mixing = None if partners is None or shares is None else (partners[:, part], shares[:, place])
            return order[:, part], rates[place], None if moves is None else moves[:, part], mixing
        if size not in self._ranges:
            self._ranges[size] = torch.arange(size, device=self.device)
        at = self._place * self.recipe.batch_size + self._ranges[size]
        rate, mixing = rates.index_select(0, self._place)[0], None
        if partners is not None and shares is not None:
            mixing = partners.index_select(1, at), shares.index_select(1, self._place)[:, 0]
        self._place += 1
        return order.index_select(1, at), rate, None if moves is None else moves.index_select(1, at), mixing

    def backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute every replica's gradient of its own mean loss, in training mode.

        Parameters
        ----------
        images : Tensor
            [slot, batch, channel, y, x].
        labels : Tensor
            [slot, batch], int64; or of mixed images [slot, batch, class], the share of each class.

        Returns
        -------
        losses, correct : Tensor
            [slot]: mean cross-entropy, with the recipe's label smoothing, and number of images classified correctly,
            of mixed ones as the class with the largest share.
        """
        if self._chain is not None:
            return self._chain.backward(images, labels)
        if not self.network.training:
            self.network.train()
        losses, correct = self._loss(images, labels, self.recipe.label_smoothing)
        found = torch.autograd.grad(losses, self._parameters, self._ones, allow_unused=True, materialize_grads=True)
        torch._foreach_copy_(self._gradients, found)
        return losses.detach(), correct

    def _without_autograd(self) -> chains.Chain | None:
        """Find the shorter way to gradients, where there is one; a CUDA graph is as short."""
        plain = self.recipe.precision != "bf16" and not (self.recipe.label_smoothing or self.recipe.mixup)
        if self.device.type != "cpu" or not plain or not chains.fits(self.network):
            return None
        parts = [{name: self.view(rows, name) for name in self._places} for rows in (self.weights, self.gradient)]
        return chains.Chain(self.network, *parts)

    def update(self, rates: Tensor) -> None:
        """Apply one step of the optimizer.

        What is computed rounds alike at every place of a tensor: single additions, products, quotients and roots,
        and the fused step of SGD, which is given whole rows, as it may differ between a vector's body and its tail.
        """
        gradient, weights, scratch = self.gradient, self.weights, self._scratch
        if self.pruned is not None:
            gradient.masked_fill_(self.pruned, 0)
        if self.decay is not None:
            decayed = torch.mul(weights, self.decay, out=scratch)
            if self.recipe.optimizer == "adamw":
                weights.sub_(decayed.mul_(rates[2]))
            else:
                gradient.add_(decayed)
        if self.fused:
            lrs = rates[0, :, 0].tolist()
            for slot, rows, settings in self._fused_rows:
                torch._fused_sgd_(*rows, lr=lrs[slot], **settings)
            return
        if self.recipe.optimizer == "sgd":
            velocity = self.moments[0].mul_(self.momentum).add_(gradient)
            if self.recipe.nesterov:
                velocity = gradient.add_(torch.mul(velocity, self.momentum, out=scratch))
            weights.sub_(torch.mul(velocity, rates[0], out=scratch))
            return
        (first, second), (beta1, beta2) = self.moments, self.recipe.betas
        first.mul_(beta1).add_(torch.mul(gradient, 1 - beta1, out=scratch))
        second.mul_(beta2).add_(torch.mul(gradient, gradient, out=scratch).mul_(1 - beta2))
        scale = torch.sqrt(second, out=scratch).div_(rates[1]).add_(1e-8)
        weights.sub_(torch.div(first, scale, out=scratch).mul_(rates[0]))

    def settle(self) -> None:
        """Bring the sums of loss and of correctly classified images up to date."""

    # --- evaluation -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean loss and number of images [image, channel, y, x] classified correctly, [replica]."""
        if self.network.training:
            self.network.eval()
        shared = images.expand(self.slots, *images.shape)
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            losses, correct = self._loss(shared, labels.expand(self.slots, -1))
        return losses[: self.replicas], correct[: self.replicas]

    def _loss(self, images: Tensor, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        half = self.recipe.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False) if half else nullcontext():
            logits = self._logits(images)
        logits = logits.to(self.dtype)
        whole = labels if labels.dim() == 2 else labels.argmax(-1)
        losses = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(0, 1), reduction="none", label_smoothing=smoothing
        )
        return losses.view(whole.shape).mean(1), (logits.argmax(-1) == whole).sum(-1)

    def _logits(self, images: Tensor) -> Tensor:
        if self.slots > 1 or not self.convolutional:
            return self.model(images)
        return self.model(images[0].contiguous(memory_format=torch.channels_last))[None]

    def state(self, slot: int) -> Weights:
        """Copy the state of one replica, on the CPU, with ordinary names and shapes."""
        return {name: tensor.cpu() for name, tensor in self.network.state(slot).items()}

    def carried(self, slot: int) -> Iterator[tuple[str, Tensor]]:
        """Name and show the optimizer's buffers of a replica."""
        for index, moment in enumerate(self.moments):
            for name in self._places:
                yield f"moment{index}.{name}", self.view(moment, name)[slot]
