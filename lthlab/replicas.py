"""How a group of replicas of one shape executes on a device.

Two forms give the same numbers. *Stacked* runs all replicas in one set of kernels, and pays where a single
network leaves the machine idle. *Sequential* runs them one after the other. Which is used follows from network,
image size and device alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from lthlab import nets
from lthlab.nets import Weights
from lthlab.parts import Data, Net
from lthlab.values import Narrow

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


def form_of(net: Net | Narrow, data: Data) -> str:
    """Choose how a group executes: 'stacked' for fully connected networks and small images, else 'sequential'."""
    return "stacked" if not convolutional(net, data) or max(data.facts.shape[1:]) <= 16 else "sequential"


def convolutional(net: Net | Narrow, data: Data) -> bool:
    """Tell whether a network has convolutions."""
    return any(isinstance(layer, nets.Conv2d) for _, layer in nets.build(net, data).layers())


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use `count` threads within; None leaves the number as it is."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Group:
    """Replicas of one network that train together.

    Parameters
    ----------
    net, data : Net or Narrow, Data
        Network and the data that it fits.
    states : sequence of dict of str to Tensor
        Initial state of each replica, ordinary shapes.
    precision : {'fp32', 'fp64'}
        Of all arithmetic.
    device : torch.device
        Where the replicas live.
    form : {'stacked', 'sequential'}, optional
        Override of `form_of`.

    Attributes
    ----------
    parameters, gradients : dict of str to Tensor
        [slot, …] for every parameter. A stacked group of one has an idle twin in a second slot, since one
        replica alone would be computed by other kernels.
    slots : int
        Number of replicas, the twin included.
    """

    def __init__(
        self,
        net: Net | Narrow,
        data: Data,
        states: Sequence[Weights],
        precision: str,
        device: torch.device,
        form: str | None = None,
    ) -> None:
        self.form = form or form_of(net, data)
        self.replicas = len(states)
        self.device, self.dtype = device, DTYPES[precision]
        stacked = self.form == "stacked"
        # A grouped convolution splits sums among threads by the number of groups, so a replica's bits would
        # depend on its group with more than one.
        self.thread_count = 1 if stacked and device.type == "cpu" and convolutional(net, data) else None
        self.slots = max(2, self.replicas) if stacked else self.replicas
        states = [*states, *states[:1]][: self.slots]
        if stacked:
            self.networks = [nets.build(net, data, self.slots, device).to(self.dtype)]
            self.networks[0].load(states)
        else:
            self.networks = [nets.build(net, data, 1, device).to(self.dtype) for _ in states]
            for network, state in zip(self.networks, states, strict=True):
                network.load([state])
        self.decayed = {on: nets.decayed(self.networks[0], on) for on in ("all", "weights")}
        self._link(stacked)

    def _link(self, stacked: bool) -> None:
        self.parameters: Weights = {}
        self.gradients: Weights = {}
        for name, parameter in self.networks[0].named_parameters():
            if stacked:
                self.parameters[name] = parameter.data
                self.gradients[name] = parameter.grad = torch.zeros_like(parameter.data)
                continue
            siblings = [network.get_parameter(name) for network in self.networks]
            self.parameters[name] = torch.stack([sibling.data for sibling in siblings])
            self.gradients[name] = torch.zeros_like(self.parameters[name])
            for slot, sibling in enumerate(siblings):
                sibling.data = self.parameters[name][slot]
                sibling.grad = self.gradients[name][slot]

    def _fill(self, tensor: Tensor) -> Tensor:
        missing = self.slots - tensor.shape[0]
        return torch.cat([tensor, tensor[:missing]]) if missing else tensor

    def _logits(self, images: Tensor) -> Tensor:
        if self.form == "stacked":
            return self.networks[0](images)
        return torch.stack([network(batch) for network, batch in zip(self.networks, images, strict=True)])

    def backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute every replica's gradient of its own mean loss, in training mode.

        Parameters
        ----------
        images : Tensor
            [replica, batch, channel, y, x].
        labels : Tensor
            [replica, batch], int64.

        Returns
        -------
        losses, correct : Tensor
            [replica]: mean cross-entropy and number of images classified correctly.
        """
        with threads(self.thread_count):
            for gradient in self.gradients.values():
                gradient.zero_()
            images, labels = self._fill(images), self._fill(labels)
            if self.form == "stacked":
                losses, correct = _loss(self.networks[0].train()(images), labels)
                losses.sum().backward()
                return losses.detach()[: self.replicas], correct[: self.replicas]
            parts = []
            for network, batch, truth in zip(self.networks, images, labels, strict=True):
                loss, right = _loss(network.train()(batch)[None], truth[None])
                loss.sum().backward()
                parts.append((loss.detach(), right))
            return torch.cat([loss for loss, _ in parts]), torch.cat([right for _, right in parts])

    @torch.no_grad()
    def evaluate(
        self, images: Tensor, labels: Tensor, stop: Callable[[], bool] | None = None, batch: int = 1000
    ) -> tuple[Tensor, Tensor] | None:
        """Compute mean loss and accuracy of every replica in evaluation mode.

        Parameters
        ----------
        images : Tensor
            [image, channel, y, x].
        labels : Tensor
            [image], int64.
        stop : callable, optional
            Asked between batches: whether to give up.
        batch : int, optional
            Number of images at a time.

        Returns
        -------
        loss, accuracy : Tensor
            [replica], fp64; accuracy in [0, 1]. None if it was stopped.
        """
        loss = torch.zeros(self.replicas, dtype=torch.float64)
        correct = torch.zeros(self.replicas, dtype=torch.int64)
        for network in self.networks:
            network.eval()
        with threads(self.thread_count):
            for first in range(0, len(labels), batch):
                if first and stop is not None and stop():
                    return None
                part, truth = images[first : first + batch], labels[first : first + batch]
                shared = part.expand(self.slots, *part.shape)
                losses, right = _loss(self._logits(shared), truth.expand(self.slots, -1))
                loss += losses[: self.replicas].double().cpu() * len(truth)
                correct += right[: self.replicas].cpu()
        return loss / len(labels), correct.double() / len(labels)

    def state(self, replica: int) -> Weights:
        """Copy the state of one replica, on the CPU, with ordinary names and shapes."""
        network = self.networks[0] if self.form == "stacked" else self.networks[replica]
        return {name: tensor.cpu() for name, tensor in network.state(replica).items()}


def _loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    log_probability = F.log_softmax(logits, dim=-1)
    losses = -log_probability.gather(-1, labels[..., None])[..., 0].mean(-1)
    return losses, (logits.detach().argmax(-1) == labels).sum(-1)
