"""Networks, written once for any number of replicas, their initial weights and their prunable weights."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lthlab import sizes
from lthlab.datasets import DataFacts
from lthlab.draws import Stream
from lthlab.errors import InputError
from lthlab.layers import BatchNorm2d, Conv2d, Layer, Linear, Normalise, Weights
from lthlab.parts import NETS, Data, Net
from lthlab.values import Narrow, plain

Shape = tuple[int, int, int]
_B = TypeVar("_B", bound="Builder")


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

    def beside(self, x: Tensor) -> Tensor:
        """Lay the images of replicas side by side, as convolutions take them: [batch, replica × channel, y, x]."""
        return x if self.replicas == 1 else x.transpose(0, 1).flatten(1, 2)

    def apart(self, x: Tensor) -> Tensor:
        """Undo `beside`, also for maps that are averaged: to [replica, batch, channel, …]."""
        return x if self.replicas == 1 else x.unflatten(1, (self.replicas, -1)).transpose(0, 1)

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
        """Fill the replicas with states of ordinary shapes.

        Raises
        ------
        InputError
            If a state has other names or shapes than one replica, as one for other classes.
        """
        own = self.state_dict()
        shapes = {name: tuple(tensor.shape[self.replicas > 1 :]) for name, tensor in own.items()}
        for state in states:
            _check(state, shapes)
        for name, tensor in own.items():
            tensor.copy_(states[0][name] if self.replicas == 1 else torch.stack([state[name] for state in states]))

    def state(self, replica: int) -> Weights:
        """Copy the state of one replica, with ordinary names and shapes."""
        own = self.state_dict().items()
        one = ((name, tensor if self.replicas == 1 else tensor[replica]) for name, tensor in own)
        return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in one}


def _check(state: Weights, shapes: dict[str, tuple[int, ...]]) -> None:
    """Compare a state with what a network has."""
    problems = [f"'{name}' is missing" for name in shapes.keys() - state.keys()]
    for name, tensor in state.items():
        found = tuple(tensor.shape)
        if name not in shapes:
            problems.append(f"the network has no '{name}'")
        elif found != shapes[name]:
            problems.append(f"'{name}' has the shape {found}; allowed: {shapes[name]}")
    if problems:
        raise InputError("the state is not one of this network: " + "; ".join(sorted(problems)))


class LeNet(Network):
    """LeNet-300-100: three fully connected layers (LeCun et al. 1998; Frankle and Carbin 2019).

    Takes the arguments of a builder (see `register`), and the units of the two hidden layers.
    """

    def __init__(self, net: Net, shape: Shape, classes: int, replicas: int, widths: Sequence[int]) -> None:
        super().__init__(replicas)
        first, second = widths
        self.fc1 = Linear(replicas, math.prod(shape), first, "first", net.init, relu=True)
        self.fc2 = Linear(replicas, first, second, "body", net.init, relu=True)
        self.fc3 = Linear(replicas, second, classes, "head", net.init)
        self.chain = self.fc1, self.fc2, self.fc3

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.fc2(self.fc1(x.flatten(-3))))


class _Residual(nn.Module):
    """Some layers, and a shortcut around them, if any."""

    downsample: nn.Module | None

    def join(self, out: Tensor, x: Tensor) -> Tensor:
        """Add the shortcut of what came in to what the layers made of it."""
        return F.relu(out if self.downsample is None else out + self.downsample(x))


class Block(_Residual):
    """Two 3×3 convolutions with BatchNorm and a shortcut around them (He et al. 2016), if any."""

    expansion = 1

    def __init__(self, net: Net, replicas: int, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(replicas, inputs, width, 3, stride, init=net.init)
        self.bn1 = BatchNorm2d(replicas, width)
        self.conv2 = Conv2d(replicas, width, width, 3, 1, init=net.init)
        self.bn2 = BatchNorm2d(replicas, width)
        self.downsample = _shortcut(net, replicas, inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))), x)


class Bottleneck(_Residual):
    """A 3×3 convolution between two of 1×1, the last four times as wide (He et al. 2016, Fig. 5).

    The 3×3 convolution has the stride, as in torchvision.
    """

    expansion = 4

    def __init__(self, net: Net, replicas: int, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = Conv2d(replicas, inputs, width, 1, 1, init=net.init)
        self.bn1 = BatchNorm2d(replicas, width)
        self.conv2 = Conv2d(replicas, width, width, 3, stride, init=net.init)
        self.bn2 = BatchNorm2d(replicas, width)
        self.conv3 = Conv2d(replicas, width, outputs, 1, 1, init=net.init)
        self.bn3 = BatchNorm2d(replicas, outputs)
        self.downsample = _shortcut(net, replicas, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return self.join(self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out))))), x)


class _Padded(nn.Module):
    """Every `stride`-th pixel, and channels of zeros on both sides of those of each replica (He et al. 2016, A)."""

    def __init__(self, replicas: int, more: int, stride: int) -> None:
        super().__init__()
        self.replicas, self.more, self.stride = replicas, more, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride].unflatten(1, (self.replicas, -1))
        before = self.more // 2
        return F.pad(x, (0, 0, 0, 0, before, self.more - before)).flatten(1, 2)


def _shortcut(net: Net, replicas: int, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if net.shortcut == "none":
        return None
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if net.shortcut == "A":
        return _Padded(replicas, outputs - inputs, stride)
    conv = Conv2d(replicas, inputs, outputs, 1, stride, "shortcut", net.init)
    return nn.Sequential(conv, BatchNorm2d(replicas, outputs))


class ResNet(Network):
    """ResNet: of 6n+2 layers for small images (He et al. 2016, section 4.2), or of 18, 34 or 50 (Table 1).

    Takes the arguments of a builder (see `register`), and the channels of the stages. The names of the state are those
    of torchvision.
    """

    def __init__(self, net: Net, shape: Shape, classes: int, replicas: int, widths: Sequence[int]) -> None:
        super().__init__(replicas)
        size, stride, self.pooled = sizes.STEMS[net.stem]
        self.conv1 = Conv2d(replicas, shape[0], widths[0], size, stride, "first", net.init)
        self.bn1 = BatchNorm2d(replicas, widths[0])
        kind = Bottleneck if net.name == "resnet50" else Block
        inputs, self.stages = widths[0], list[str]()
        for number, (width, blocks) in enumerate(zip(widths, sizes.stages(net), strict=True), start=1):
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(kind(net, replicas, inputs, width, 2 if number > 1 and block == 0 else 1))
                inputs = kind.expansion * width
            self.stages.append(f"layer{number}")
            self.add_module(self.stages[-1], stage)
        self.fc = Linear(replicas, inputs, classes, "head", net.init)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.beside(x))))
        if self.pooled:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.fc(self.apart(x.mean((2, 3))))


class VGG(Network):
    """VGG of 11, 16 or 19 layers with BatchNorm (Simonyan and Zisserman 2015), its head a linear layer of averages.

    Stages are max-pooled but for the last, whose maps are averaged (Morcos et al. 2019, A.1). Takes the arguments of a
    builder (see `register`), and the channels of the stages. The names of the features' state are torchvision's.
    """

    def __init__(self, net: Net, shape: Shape, classes: int, replicas: int, widths: Sequence[int]) -> None:
        super().__init__(replicas)
        self.features = nn.Sequential()
        inputs = shape[0]
        for width, layers in zip(widths, sizes.stages(net), strict=True):
            if len(self.features):
                self.features.append(nn.MaxPool2d(2))
            for _ in range(layers):
                role = "body" if len(self.features) else "first"
                self.features.append(Conv2d(replicas, inputs, width, 3, 1, role, net.init, net.bias))
                self.features.append(BatchNorm2d(replicas, width)).append(nn.ReLU(inplace=True))
                inputs = width
        self.fc = Linear(replicas, inputs, classes, "head", net.init)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.apart(self.features(self.beside(x)).mean((2, 3))))


class ConvNet(Network):
    """Conv-2, -4 or -6: pairs of convolutions, pooled, and three linear layers (Frankle and Carbin 2019, Fig. 2).

    Takes the arguments of a builder (see `register`), and the channels of the pairs with the units of the hidden
    layers.
    """

    def __init__(self, net: Net, shape: Shape, classes: int, replicas: int, widths: Sequence[int]) -> None:
        super().__init__(replicas)
        *channels, first, second = widths
        self.features = nn.Sequential()
        inputs, *size = shape
        for width in channels:
            for _ in range(2):
                role = "body" if len(self.features) else "first"
                self.features.append(Conv2d(replicas, inputs, width, 3, 1, role, net.init, bias=True))
                self.features.append(nn.ReLU(inplace=True))
                inputs = width
            self.features.append(nn.MaxPool2d(2))
            size = [side // 2 for side in size]
        self.fc1 = Linear(replicas, inputs * math.prod(size), first, "body", net.init, relu=True)
        self.fc2 = Linear(replicas, first, second, "body", net.init, relu=True)
        self.fc3 = Linear(replicas, second, classes, "head", net.init)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.fc2(self.fc1(self.apart(self.features(self.beside(x))).flatten(-3))))


class Separable(nn.Module):
    """A depthwise and a 1×1 convolution, each with BatchNorm (Howard et al. 2017, Fig. 3)."""

    def __init__(self, net: Net, replicas: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(replicas, inputs, inputs, 3, stride, "depthwise", net.init)
        self.bn1 = BatchNorm2d(replicas, inputs)
        self.conv2 = Conv2d(replicas, inputs, outputs, 1, 1, init=net.init)
        self.bn2 = BatchNorm2d(replicas, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class MobileNet(Network):
    """MobileNet-v1 (Howard et al. 2017, Table 1), by default in the form for CIFAR that Ma's code has.

    Takes the arguments of a builder (see `register`), and the channels of the first convolution and of the stages.
    """

    def __init__(self, net: Net, shape: Shape, classes: int, replicas: int, widths: Sequence[int]) -> None:
        super().__init__(replicas)
        inputs, *others = widths
        self.conv1 = Conv2d(replicas, shape[0], inputs, 3, 1 if net.stem == "cifar" else 2, "first", net.init)
        self.bn1 = BatchNorm2d(replicas, inputs)
        self.features = nn.Sequential()
        for number, (width, blocks) in enumerate(zip(others, sizes.stages(net), strict=True)):
            for block in range(blocks):
                stride = 2 if number and block == 0 else 1
                self.features.append(Separable(net, replicas, inputs, width, stride))
                inputs = width
        self.fc = Linear(replicas, inputs, classes, "head", net.init)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.beside(x))))
        return self.fc(self.apart(self.features(x).mean((2, 3))))


_KINDS: tuple[tuple[str, type[LeNet | ResNet | VGG | ConvNet | MobileNet]], ...] = (
    ("lenet", LeNet), ("resnet", ResNet), ("vgg", VGG), ("conv", ConvNet), ("mobilenet", MobileNet)
)  # fmt: skip
Builder = Callable[[Net, Shape, int, int], Network]
_BUILDERS: dict[str, Builder] = {}


@overload
def register(name: str) -> Callable[[_B], _B]: ...
@overload
def register(name: str, builder: _B) -> _B: ...
def register(name: str, builder: Builder | None = None) -> Any:
    """Add a network of one's own; `@register("name")` before a class or function does the same.

    Parameters
    ----------
    name : str
        Name that studies use.
    builder : callable
        Called with the `Net`, image shape (channels, height, width), classes and replicas; returns a `Network` made of
        layers of `lthlab.layers`, and of modules without parameters that treat each channel by itself.

    Returns
    -------
    callable
        The builder.

    Raises
    ------
    ValueError
        If the name is taken.
    """
    if builder is None:
        return functools.partial(register, name)
    if name in NETS:
        raise ValueError(f"network '{name}' is already registered")
    NETS[name] = {}
    _BUILDERS[name] = builder
    return builder


def module_of(name: str) -> str | None:
    """Name the module whose builder was registered for a network; None for the networks of this package."""
    return _BUILDERS[name].__module__ if name in _BUILDERS else None


def widths(net: Net | Narrow, data: Data | DataFacts | str) -> tuple[int, ...] | None:
    """Widths of a network's stages, as `lthlab.sizes.own_widths`, or of a narrow one, as `lthlab.sizes.narrow`.

    Raises
    ------
    InputError
        For a narrow network of a size that there is not.
    """
    if isinstance(net, Narrow):
        return sizes.narrow(net.net, data, net.level, net.prunable, net.denominator).widths
    return sizes.own_widths(net)


def build(
    net: Net | Narrow, data: Data | DataFacts | str, replicas: int = 1, device: str | torch.device = "cpu"
) -> Network:
    """Build a network with all parameters zero.

    Parameters
    ----------
    net : Net or Narrow
        The network; a narrow one has the widths that `lthlab.sizes.narrow` finds.
    data : Data, DataFacts or str
        Data set, or the facts of one, whose images and classes it fits.
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
        For a narrow network of a size that there is not, or if the images are too small.
    """
    shape, classes = sizes.seen(data)
    sizes.check(plain(net), data)
    found, net = widths(net, data), plain(net)
    if found is None:
        return _BUILDERS[net.name](net, shape, classes, replicas).to(device)
    kind = next(kind for family, kind in _KINDS if net.name.startswith(family))
    return kind(net, shape, classes, replicas, found).to(device)


def outline(net: Net | Narrow, data: Data | DataFacts | str) -> Network:
    """Build a network without numbers, on torch's device 'meta': names, shapes and types; raises as `build`."""
    with torch.device("meta"):
        return build(net, data, device="meta")


def shapes(net: Net | Narrow, data: Data | DataFacts | str, head: bool = True) -> dict[str, torch.Size]:
    """Shapes of the ordinary network's state by name, without those of the last layer where `head` is False."""
    network = outline(net, data)
    without = set() if head else head_of(network)
    return {name: tensor.shape for name, tensor in network.state_dict().items() if name not in without}


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


def grafted(net: Net | Narrow, data: Data | str, body: Weights, replicate: int, draw: int = 0) -> Weights:
    """Put a freshly drawn last layer on the rest of a state (Morcos et al. 2019, section 3.3).

    Parameters
    ----------
    net, data, replicate, draw
        As in `fresh`, whose last layer it is.
    body : dict of str to Tensor
        State dict of the same network, for any classes.

    Returns
    -------
    dict of str to Tensor
        State dict; all but the last layer is that of `body`, BatchNorm's running statistics included.
    """
    whole = fresh(net, data, replicate, draw)
    return body | {name: whole[name] for name in head_of(outline(net, data))}


def prunable(net: Net | Narrow, data: Data | DataFacts | str, policy: str) -> dict[str, torch.Size]:
    """Name the prunable weights of a network, in its order.

    Policies: 'all' is every weight of a convolution or linear layer; 'all_but_head' leaves out the last linear
    layer; 'first_last_dense' the first layer too (Sooner A.1), and 'first_last_depthwise_dense' depthwise convolutions
    as well (Zhu and Gupta 2018, for MobileNet; what Ma prunes there is not told); 'ma_resnet20' is 'first_last_dense'
    for ResNet-20, with the shortcuts pruned; 'ma_resnet32' leaves out the shortcuts as well (peer code of Ma).
    BatchNorm and biases are never prunable.

    Parameters
    ----------
    net, data
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


def head_of(network: Network) -> set[str]:
    """Name the parameters of a network's last layer."""
    heads = ((name, layer) for name, layer in network.layers() if layer.role == "head")
    return {f"{name}.{key}" for name, layer in heads for key in layer.state_dict()}


def decayed(network: Network) -> set[str]:
    """Name the parameters that weight decay applies to if it is on weights: no biases, and none of BatchNorm."""
    return {f"{name}.weight" for name, layer in network.layers() if not isinstance(layer, BatchNorm2d)}
