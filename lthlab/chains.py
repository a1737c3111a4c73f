"""Gradients of networks that are chains of linear layers, without autograd."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lthlab.nets import Network

_softmax_backward = torch.ops.aten._log_softmax_backward_data.default
_relu_backward = torch.ops.aten.threshold_backward.grad_input


def fits(network: Network) -> bool:
    """Tell whether `Chain` can compute the gradients of a network: all layers are in its chain, and none is padded."""
    return len(network.chain) == len(list(network.layers())) and not any(layer.padded for layer in network.chain)


class Chain:
    """Replicas of a network that applies linear layers one after the other.

    What it computes is what autograd would have computed, by the same kernels, so all bits are the same. A small
    network spends more time on being recorded, and on what Python does between kernels, than on products.

    Parameters
    ----------
    network : Network
        One for which `fits`.
    weights, gradients : mapping of str to Tensor
        Its parameters and where their gradients go by name, [slot, …].
    """

    def __init__(self, network: Network, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        names = {layer: name for name, layer in network.layers()}
        self._forward: list[tuple[Tensor, Tensor, bool]] = []
        self._backward: list[tuple[Tensor, Tensor, Tensor, bool]] = []
        for layer in network.chain:
            weight, bias = f"{names[layer]}.weight", f"{names[layer]}.bias"
            self._forward.append((weights[weight].mT, weights[bias].unsqueeze(1), layer.relu))
            self._backward.insert(0, (weights[weight], gradients[weight], gradients[bias], layer.relu))

    def backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute gradients, mean losses and numbers of right answers, as `lthlab.lanes.Lane.backward`."""
        values = [images.flatten(2)]
        for matrix, bias, relu in self._forward:
            out = torch.baddbmm(bias, values[-1], matrix)
            values.append(out.relu_() if relu else out)
        logits, truth = values[-1], labels.unsqueeze(-1)
        logs = torch.log_softmax(logits, -1)
        gradient = torch.zeros_like(logs).scatter_(-1, truth, -1 / labels.shape[1])
        gradient = _softmax_backward(gradient, logs, -1, logs.dtype)
        for weight, to_weight, to_bias, relu in self._backward:
            out = values.pop()
            if relu:
                _relu_backward(gradient, out, 0, grad_input=gradient)
            torch.bmm(gradient.mT, values[-1], out=to_weight)
            torch.sum(gradient, 1, out=to_bias)
            if len(values) > 1:
                gradient = torch.bmm(gradient, weight)
        losses = logs.gather(-1, truth).squeeze(-1).mean(1).neg_()
        return losses, (logits.argmax(-1) == labels).sum(-1)
