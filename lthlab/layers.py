"""Layers of any number of replicas, with their initial weights."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lthlab.draws import Stream

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
