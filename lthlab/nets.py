"""Networks, written once for any number of replicas, their initial weights and their prunable weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lthlab import sizes
from lthlab.draws import Stream
from lthlab.parts import DATASETS, NETS, Data, Net
from lthlab.values import Narrow, plain

Weights = dict[str, Tensor]


class Layer(nn.Module):
    """A layer of `replicas` independent copies.

    With one replica, parameters have their ordinary shapes. With more, every parameter and buffer has the
    replica as its first dimension.
    """

    role = "body"

    def __init__(self, replicas: int) -> None:
        super().__init__()
        self.replicas = replicas

    def _parameter(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(shape if self.replicas == 1 else (self.replicas, *shape)))

    def draw(self, stream: Stream) -> Weights:
        """Draw initial values of one replica, by name within this layer."""
        raise NotImplementedError


class _BatchedLinear(torch.autograd.Function):
    """Products of batches [replica, batch, in] and weights [replica, out, in], plus biases [replica, out].

    A single replica, whose arguments may lack the first dimension, is computed alike, so that it has the bits that it
    has among others. Gradients of weights come out in the order of the weights, where autograd of a batched product
    would have them transposed. Only arguments and the result are saved: so the gradients can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        factors, added = (x, weight), bias
        if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            factors, added = (x.to(kind), weight.to(kind)), bias.to(kind)
        images, matrix = (t if t.dim() == 3 else t.unsqueeze(0) for t in factors)
        out = torch.baddbmm(added.unsqueeze(-2), images, matrix.mT)
        out = out.relu_() if relu else out
        out = out.squeeze(0) if x.dim() == 2 else out
        ctx.save_for_backward(x, weight, out if relu else None)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight, out = ctx.saved_tensors
        if out is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        kind = gradient.dtype
        ordinary, alone = x.dim() == 2, weight.dim() == 2
        x, matrix = x.to(kind), weight.to(kind)
        x, matrix, gradient = (t if t.dim() == 3 else t.unsqueeze(0) for t in (x, matrix, gradient))
        to_x = torch.bmm(gradient, matrix) if ctx.needs_input_grad[0] else None
        to_weight, to_bias = torch.bmm(gradient.mT, x), gradient.sum(1)
        if to_x is not None and ordinary:
            to_x = to_x.squeeze(0)
        return to_x, *((to_weight.squeeze(0), to_bias.squeeze(0)) if alone else (to_weight, to_bias)), None


class Linear(Layer):
    """Linear layer; [batch, in] to [batch, out], or [replica, batch, in] to [replica, batch, out].

    Parameters
    ----------
    replicas, inputs, outputs : int
        Copies; features in and out.
    role : {'first', 'body', 'head'}
        Place in the network, for policies of what is prunable.
    init : {'glorot_normal', 'torch'}
        Glorot's normal distribution with zero bias, or PyTorch's default.
    relu : bool, optional
        Whether negative outputs become 0.
    """

    def __init__(self, replicas: int, inputs: int, outputs: int, role: str, init: str, relu: bool = False) -> None:
        super().__init__(replicas)
        self.role, self.init, self.relu, self.shape = role, init, relu, (outputs, inputs)
        self.weight, self.bias = self._parameter(outputs, inputs), self._parameter(outputs)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        outputs, inputs = self.shape
        if spare := -inputs % 4:  # matrices that begin off 16 bytes are multiplied in another order on CPUs
            x, weight = F.pad(x, (0, spare)), F.pad(weight, (0, spare))
        if vector := outputs == 1:  # a product with a vector is added up in another order for one replica
            weight, bias = F.pad(weight, (0, 0, 0, 1)), F.pad(bias, (0, 1))
        out = _BatchedLinear.apply(x, weight, bias, self.relu)
        return out[..., :1] if vector else out

    @property
    def padded(self) -> bool:
        """Whether zeros are put beside the parameters, without which bits would depend on the group."""
        outputs, inputs = self.shape
        return inputs % 4 > 0 or outputs == 1

    def draw(self, stream: Stream) -> Weights:
        outputs, inputs = self.shape
        if self.init == "glorot_normal":
            scale = math.sqrt(2 / (inputs + outputs))
            weight = torch.from_numpy(stream.normal(inputs * outputs)) * scale
            bias = torch.zeros(outputs)
        else:
            bound = 1 / math.sqrt(inputs)
            weight = torch.from_numpy(stream.uniform(inputs * outputs) * 2 - 1) * bound
            bias = torch.from_numpy(stream.uniform(outputs) * 2 - 1) * bound
        return {"weight": weight.float().view(outputs, inputs), "bias": bias.float()}


class Conv2d(Layer):
    """Convolution without bias; replicas lie side by side in the channels, [batch, replica × channel, y, x].

    Parameters
    ----------
    replicas, inputs, outputs : int
        Copies; channels in and out of each.
    size, stride : int
        Side of the square kernel, padded to keep the size; step between its places.
    role : {'first', 'body', 'shortcut'}
        Place in the network, for policies of what is prunable.
    """

    def __init__(self, replicas: int, inputs: int, outputs: int, size: int, stride: int, role: str = "body") -> None:
        super().__init__(replicas)
        self.role, self.shape, self.stride = role, (outputs, inputs, size, size), stride
        self.weight = self._parameter(*self.shape)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.replicas == 1 else self.weight.flatten(0, 1)
        if self.replicas > 1 and self.shape[1] in (2, 3):  # the kernel changes at 8 channels of all replicas together
            spare = 4 - self.shape[1]
            x = F.pad(x.unflatten(1, (self.replicas, -1)), (0, 0, 0, 0, 0, spare)).flatten(1, 2)
            weight = F.pad(weight, (0, 0, 0, 0, 0, spare))
        return F.conv2d(x, weight, stride=self.stride, padding=self.shape[2] // 2, groups=self.replicas)

    def draw(self, stream: Stream) -> Weights:
        outputs, _, size, _ = self.shape
        scale = math.sqrt(2 / (outputs * size * size))  # He et al., fan out
        weight = torch.from_numpy(stream.normal(math.prod(self.shape))) * scale
        return {"weight": weight.float().view(self.shape)}


Normalise = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Normalises a batch in training: images, running mean and variance, which it updates, weight and bias."""


def whole_batch(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise by the mean and variance of all images."""
    return F.batch_norm(x, mean, var, weight, bias, training=True)


def in_parts(number: int) -> Normalise:
    """Normalise each of `number` parts of a batch by its own mean and variance; the first gives running statistics."""

    def normalise(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        first, *others = x.tensor_split(number)
        rest = [F.batch_norm(part, None, None, weight, bias, training=True) for part in others]
        return torch.cat([whole_batch(first, mean, var, weight, bias), *rest])

    return normalise


class BatchNorm2d(Layer):
    """Batch normalisation of each replica's channels; arithmetic and state as in PyTorch.

    Attributes
    ----------
    normalise : callable
        What is done in training, such as `whole_batch`.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, replicas: int, channels: int) -> None:
        super().__init__(replicas)
        self.channels = channels
        self.normalise: Normalise = whole_batch
        self.weight, self.bias = self._parameter(channels), self._parameter(channels)
        shape = (channels,) if replicas == 1 else (replicas, channels)
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", torch.ones(shape))
        self.register_buffer("num_batches_tracked", torch.zeros(shape[:-1], dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            item.flatten() for item in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        if not self.training:
            return F.batch_norm(x, mean, var, weight, bias)
        self.num_batches_tracked += 1
        return self.normalise(x, mean, var, weight, bias)

    def draw(self, stream: Stream) -> Weights:
        return {
            "weight": torch.ones(self.channels),
            "bias": torch.zeros(self.channels),
            **self.fresh_statistics(),
        }

    def fresh_statistics(self) -> Weights:
        """Return the running statistics of a replica that has seen no batch."""
        return {
            "running_mean": torch.zeros(self.channels),
            "running_var": torch.ones(self.channels),
            "num_batches_tracked": torch.zeros((), dtype=torch.int64),
        }


class Network(nn.Module):
    """A network of `replicas` independent copies.

    One replica is an ordinary module: images [batch, channel, y, x] to logits [batch, class], and a state dict
    with the usual names and shapes. More replicas take [replica, batch, channel, y, x] and give
    [replica, batch, class].

    Attributes
    ----------
    chain : tuple of Linear
        All layers, if the network flattens the images, applies linear layers one after the other, and does nothing
        else: its steps then need no autograd. Empty for other networks.
    """

    chain: tuple[Linear, ...] = ()

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
        self.chain = self.fc1, self.fc2, self.fc3

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
