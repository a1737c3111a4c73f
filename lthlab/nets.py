"""Networks, written once for any number of replicas, their initial weights and their prunable weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lthlab import sizes
from lthlab.draws import Stream
from lthlab.layers import BatchNorm2d, Conv2d, Layer, Linear, Normalise, Weights
from lthlab.parts import DATASETS, NETS, Data, Net
from lthlab.values import Narrow, plain


class Network(nn.Module):
    """A network of `replicas` independent copies.

    One replica is an ordinary module: images [batch, channel, y, x] to logits [batch, class], and a state dict
    with the usual names and shapes. More replicas take [replica, batch, channel, y, x] and give
    [replica, batch, class].
    """

    def __init__(self, replicas: int) -> None:
        super().__init__()
        self.replicas = replicas

    def layers(self) -> Iterator[tuple[str, Layer]]:
        """Iterate over named layers in the order of the network."""
        return ((name, module) for name, module in self.named_modules() if isinstance(module, Layer))

    def draw(self, stream: Stream) -> Weights:
        """Draw the initial state of one replica."""
        return {f"{name}.{key}": value for name, layer in self.layers() for key, value in layer.draw(stream).items()}

    def reset_batchnorm(self, state: Weights) -> Weights:
        """Return a replica's state with BatchNorm statistics of a replica that has seen no batch."""
        norms = ((name, layer) for name, layer in self.layers() if isinstance(layer, BatchNorm2d))
        return state | {f"{n}.{key}": value for n, layer in norms for key, value in layer.fresh_statistics().items()}

    def normalise_by(self, normalise: Normalise) -> None:
        """Choose what BatchNorm does in training."""
        for _, layer in self.layers():
            if isinstance(layer, BatchNorm2d):
                layer.normalise = normalise

    def load(self, states: list[Weights]) -> None:
        """Fill the replicas with states of ordinary shapes."""
        own = self.state_dict()
        for name, tensor in own.items():
            tensor.copy_(states[0][name] if self.replicas == 1 else torch.stack([state[name] for state in states]))

    def state(self, replica: int) -> Weights:
        """Copy the state of one replica, with ordinary names and shapes."""
        own = self.state_dict().items()
        one = ((name, tensor if self.replicas == 1 else tensor[replica]) for name, tensor in own)
        return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in one}


class LeNet(Network):
    """LeNet-300-100: three fully connected layers (LeCun et al. 1998; Frankle and Carbin 2019).

    Takes the arguments of a builder (see `register`), and the units of the two hidden layers.
    """

    def __init__(
        self, net: Net, shape: tuple[int, int, int], classes: int, replicas: int, widths: Sequence[int]
    ) -> None:
        super().__init__(replicas)
        first, second = widths
        self.fc1 = Linear(replicas, math.prod(shape), first, "first", "glorot_normal", relu=True)
        self.fc2 = Linear(replicas, first, second, "body", "glorot_normal", relu=True)
        self.fc3 = Linear(replicas, second, classes, "head", "glorot_normal")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.fc2(self.fc1(x.flatten(-3))))


class Block(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut around them (He et al. 2016)."""

    def __init__(self, replicas: int, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.replicas, self.stride, self.outputs = replicas, stride, outputs
        self.conv1 = Conv2d(replicas, inputs, outputs, 3, stride)
        self.bn1 = BatchNorm2d(replicas, outputs)
        self.conv2 = Conv2d(replicas, outputs, outputs, 3, 1)
        self.bn2 = BatchNorm2d(replicas, outputs)
        self.downsample: nn.Module | None = None
        self.pad = outputs - inputs
        if shortcut == "B" and (stride != 1 or inputs != outputs):
            self.downsample = nn.Sequential(
                Conv2d(replicas, inputs, outputs, 1, stride, role="shortcut"), BatchNorm2d(replicas, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            return self.downsample(x)
        if self.stride == 1 and not self.pad:
            return x
        x = x[:, :, :: self.stride, :: self.stride].unflatten(1, (self.replicas, -1))
        before = self.pad // 2
        return F.pad(x, (0, 0, 0, 0, before, self.pad - before)).flatten(1, 2)


class ResNet(Network):
    """ResNet of 6n+2 layers for small images: three stages of n blocks (He et al. 2016, section 4.2).

    Takes the arguments of a builder (see `register`), and the channels of the stages.
    """

    def __init__(
        self, net: Net, shape: tuple[int, int, int], classes: int, replicas: int, widths: Sequence[int]
    ) -> None:
        super().__init__(replicas)
        self.conv1 = Conv2d(replicas, shape[0], widths[0], 3, 1, role="first")
        self.bn1 = BatchNorm2d(replicas, widths[0])
        inputs = widths[0]
        for number, outputs in enumerate(widths, start=1):
            stage = nn.Sequential()
            for block in range(sizes.blocks(net)):
                stride = 2 if number > 1 and block == 0 else 1
                stage.append(Block(replicas, inputs, outputs, stride, net.shortcut))
                inputs = outputs
            self.add_module(f"layer{number}", stage)
        self.fc = Linear(replicas, inputs, classes, "head", "torch")

    def forward(self, x: Tensor) -> Tensor:
        if self.replicas > 1:
            x = x.transpose(0, 1).flatten(1, 2)
        x = F.relu(self.bn1(self.conv1(x)))
        for number in (1, 2, 3):
            x = self.get_submodule(f"layer{number}")(x)
        x = x.mean((2, 3))
        if self.replicas > 1:
            x = x.unflatten(1, (self.replicas, -1)).transpose(0, 1)
        return self.fc(x)


Builder = Callable[[Net, tuple[int, int, int], int, int], Network]
_BUILDERS: dict[str, Builder] = {}


def register(name: str, builder: Builder) -> None:
    """Add a network of one's own.

    Parameters
    ----------
    name : str
        Name that studies use.
    builder : callable
        Called with the `Net`, image shape (channels, height, width), classes and replicas; returns a `Network`
        made of this module's layers.

    Raises
    ------
    ValueError
        If the name is taken.
    """
    if name in NETS:
        raise ValueError(f"network '{name}' is already registered")
    NETS[name] = frozenset()
    _BUILDERS[name] = builder


def module_of(name: str) -> str | None:
    """Name the module whose builder was registered for a network; None for the networks of this package."""
    return _BUILDERS[name].__module__ if name in _BUILDERS else None


def build(net: Net | Narrow, data: Data | str, replicas: int = 1, device: str | torch.device = "cpu") -> Network:
    """Build a network with all parameters zero.

    Parameters
    ----------
    net : Net or Narrow
        The network; a narrow one has the widths that `lthlab.sizes.narrow` finds.
    data : Data or str
        Data set, whose images and classes it fits.
    replicas : int, optional
        Number of independent copies.
    device : str or torch.device, optional
        Where its parameters live.

    Returns
    -------
    Network

    Raises
    ------
    InputError
        For a narrow network of a size that there is not.
    """
    facts = DATASETS[data] if isinstance(data, str) else data.facts
    if isinstance(net, Narrow):
        widths = sizes.narrow(net.net, data, net.level, net.prunable, net.denominator).widths
        net = net.net
    else:
        widths = sizes.own_widths(net) or ()
    if not widths:
        return _BUILDERS[net.name](net, facts.shape, facts.classes, replicas).to(device)
    kind = ResNet if net.name.startswith("resnet") else LeNet
    return kind(net, facts.shape, facts.classes, replicas, widths).to(device)


def fresh(net: Net | Narrow, data: Data | str, replicate: int, draw: int = 0) -> Weights:
    """Draw the initial state of a replicate.

    Parameters
    ----------
    net, data : Net or Narrow, Data or str
        As in `build`.
    replicate, draw : int
        As in `lthlab.values.Fresh`.

    Returns
    -------
    dict of str to Tensor
        State dict of the ordinary network, fp32, on the CPU.
    """
    return build(net, data).draw(Stream(replicate, "init", draw=draw))


def prunable(net: Net | Narrow, data: Data | str, policy: str) -> dict[str, torch.Size]:
    """Name the prunable weights of a network, in its order.

    Policies: 'all' is every weight of a convolution or linear layer; 'all_but_head' leaves out the last linear
    layer; 'first_last_dense' the first layer too (Sooner A.1); 'ma_resnet20' is the same set for ResNet-20, with
    the shortcuts pruned; 'ma_resnet32' leaves out the shortcuts as well (peer code of Ma). BatchNorm and biases
    are never prunable.

    Parameters
    ----------
    net, data : Net or Narrow, Data or str
        As in `build`.
    policy : str
        One of `lthlab.parts.POLICIES`.

    Returns
    -------
    dict of str to torch.Size
        Shapes by name.

    Raises
    ------
    InputError
        If the policy is not known, or is one of ResNets and the network is none.
    """
    without = sizes.left_out(plain(net), policy)
    layers = ((name, layer) for name, layer in build(net, data).layers() if not isinstance(layer, BatchNorm2d))
    return {
        f"{name}.weight": layer.get_parameter("weight").shape for name, layer in layers if layer.role not in without
    }


def convolutional(network: Network) -> bool:
    """Tell whether a network has convolutions."""
    return any(isinstance(layer, Conv2d) for _, layer in network.layers())


def decayed(network: Network, on: str) -> set[str]:
    """Name the parameters that weight decay applies to ('all' or 'weights')."""
    names: Any = (name for name, _ in network.named_parameters())
    if on == "weights":
        names = (f"{n}.weight" for n, layer in network.layers() if not isinstance(layer, BatchNorm2d))
    return set(names)
