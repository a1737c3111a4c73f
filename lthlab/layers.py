"""Layers of any number of replicas, with their initial weights."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lthlab.draws import Stream

Weights = dict[str, Tensor]


def draw(stream: Stream, shape: tuple[int, ...], init: str, head: bool = False) -> tuple[Tensor, Tensor]:
    """Draw initial weights and biases of a convolution or linear layer.

    Fans are counted as by `torch.nn.init`. The last layer, which no rectifier follows, is drawn as PyTorch does by
    itself where the others are drawn as by He et al.

    - 'he_fan_out', 'he_fan_in': normal of variance 2 / fan (He et al. 2015, eq. 14 and 10). Fan out is what torchvision
      and Ma's code for CIFAR have, fan in what Ma's code for ImageNet has.
    - 'he_fan_out_small_head': the last layer is normal with standard deviation 0.01 (torchvision's VGG; Ma's code for
      VGG and ResNet-32).
    - 'glorot_normal': normal of variance 2 / (fan in + fan out) in all layers (Glorot and Bengio 2010; Frankle and
      Carbin 2019; Morcos et al. 2019, A.1, where it is called Xavier normal).
    - 'torch': what PyTorch does by itself: weights and biases uniform up to 1 / √(fan in) (Ma's code for MobileNet).

    Biases are 0 but for 'torch'.

    Parameters
    ----------
    stream : Stream
        Where random numbers come from.
    shape : tuple of int
        (outputs, inputs of each, …).
    init : str
        As listed.
    head : bool, optional
        Whether it is the last layer.

    Returns
    -------
    weight, bias : Tensor
        fp32, of this shape and [outputs].
    """
    fan_in, fan_out = math.prod(shape[1:]), shape[0] * math.prod(shape[2:])
    if init == "torch" or (head and init in ("he_fan_out", "he_fan_in")):
        bound = 1 / math.sqrt(fan_in)
        drawn = torch.from_numpy(stream.uniform(math.prod(shape)) * 2 - 1) * bound
        bias = torch.from_numpy(stream.uniform(shape[0]) * 2 - 1) * bound
        return drawn.float().view(shape), bias.float()
    scales = {
        "he_fan_out": math.sqrt(2 / fan_out),
        "he_fan_in": math.sqrt(2 / fan_in),
        "glorot_normal": math.sqrt(2 / (fan_in + fan_out)),
        "he_fan_out_small_head": 0.01 if head else math.sqrt(2 / fan_out),
    }
    drawn = torch.from_numpy(stream.normal(math.prod(shape))) * scales[init]
    return drawn.float().view(shape), torch.zeros(shape[0])


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
    init : str
        As in `draw`.
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
        weight, bias = draw(stream, self.shape, self.init, self.role == "head")
        return {"weight": weight, "bias": bias}


class Conv2d(Layer):
    """Convolution; replicas lie side by side in the channels, [batch, replica × channel, y, x].

    Parameters
    ----------
    replicas, inputs, outputs : int
        Copies; channels in and out of each.
    size, stride : int
        Side of the square kernel, padded to keep the size; step between its places.
    role : {'first', 'body', 'shortcut', 'depthwise'}, optional
        Place in the network, for policies of what is prunable. A depthwise one has a kernel for each channel.
    init : str, optional
        As in `draw`.
    bias : bool, optional
        Whether a number is added to each channel.
    """

    def __init__(
        self,
        replicas: int,
        inputs: int,
        outputs: int,
        size: int,
        stride: int,
        role: str = "body",
        init: str = "he_fan_out",
        bias: bool = False,
    ) -> None:
        super().__init__(replicas)
        self.role, self.stride, self.init = role, stride, init
        self.groups = inputs if role == "depthwise" else 1
        self.shape = (outputs, inputs // self.groups, size, size)
        self.weight = self._parameter(*self.shape)
        self.bias = self._parameter(outputs) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.replicas == 1 else self.weight.flatten(0, 1)
        bias = self.bias if self.bias is None else self.bias.flatten()
        few = (2, 3) if self.bias is None or self.groups > 1 else (1, 2, 3)
        if self.replicas > 1 and self.shape[1] in few:  # the kernel changes at 8 channels of all replicas together
            spare = 4 - self.shape[1]
            x = F.pad(x.unflatten(1, (self.replicas, -1)), (0, 0, 0, 0, 0, spare)).flatten(1, 2)
            weight = F.pad(weight, (0, 0, 0, 0, 0, spare))
        groups = self.replicas * self.groups
        return F.conv2d(x, weight, bias, stride=self.stride, padding=self.shape[2] // 2, groups=groups)

    def draw(self, stream: Stream) -> Weights:
        weight, bias = draw(stream, self.shape, self.init)
        return {"weight": weight} if self.bias is None else {"weight": weight, "bias": bias}


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


class _Synchronised(torch.autograd.Function):
    """Batch normalisation by mean and variance over the images of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        var, mean = torch.var_mean(x.to(weight.dtype), (0, 2, 3), correction=0)
        count = torch.full_like(mean[:1], x.numel() // x.shape[1])
        own = torch.cat([count, mean, var])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        counts, means, variances = torch.stack(parts).split([1, len(mean), len(mean)], 1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        var = (counts * (variances + (means - mean).square())).sum(0) / total
        running_mean.lerp_(mean, 0.1)
        running_var.lerp_(var * (total / (total - 1)), 0.1)
        ctx.save_for_backward(x, mean, var, weight, total)
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, weight, total = ctx.saved_tensors
        through, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, var, None, None, False, 1e-5, [True, True, True]
        )
        sums = torch.stack([of_bias, of_weight])
        dist.all_reduce(sums)
        scale = (var + 1e-5).rsqrt()
        slope = weight * scale * scale * sums[1] / total
        offset = weight * scale * sums[0] / total - slope * mean
        moved = x * slope[:, None, None] + offset[:, None, None]
        return through - moved.to(x.dtype), None, None, of_weight, of_bias


def synchronised(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise by the mean and variance over the images of all processes."""
    return _Synchronised.apply(x, mean, var, weight, bias)


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
