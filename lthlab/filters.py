"""Filters of networks, and masks that remove them whole (structured one-shot pruning; Li et al. 2017, Lan Fig. 5).

A filter is what makes one channel of a layer: its weights, bias, and BatchNorm's γ and β. A mask without it covers
these, and the weights of the next layer for the channel, the head's too. Under it, the network computes the same as the
physically smaller one without the channel, and trains alike: the statistics that BatchNorm keeps of a removed channel
no longer matter.

In LeNet the hidden units are the filters, in Conv-2, -4 and -6 and VGG all convolutions have them. In ResNets a
convolution whose channels enter a residual sum has none, so only those inside a block do; without residual connections,
all convolutions. In MobileNet, a filter is one of a 1×1 convolution, or of the first, with the depthwise one that its
channel goes through.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from lthlab import masks, nets, sizes
from lthlab.errors import InputError
from lthlab.layers import BatchNorm2d, Conv2d, Layer, Linear
from lthlab.masks import Mask
from lthlab.parts import Data, Net, Sparsity, pruned_count
from lthlab.values import Narrow, plain


class Filters(NamedTuple):
    """The filters of a layer.

    Attributes
    ----------
    layers : tuple of str
        The layer, and those that its channels go through one by one: BatchNorm and depthwise convolutions.
    reader : str
        The layer that they feed.
    """

    layers: tuple[str, ...]
    reader: str


def of(net: Net | Narrow, data: Data, policy: str) -> dict[str, Filters]:
    """Name the layers whose filters can be pruned, in the order of the network.

    Parameters
    ----------
    net, data : Net or Narrow, Data
        As in `lthlab.nets.build`.
    policy : str
        One of `lthlab.parts.POLICIES`: the filters of a layer are prunable where its weights are.

    Returns
    -------
    dict of str to Filters
        By the name of the layer's weights.

    Raises
    ------
    InputError
        For a network of one's own, of which it is not known, or if the policy is not for the network.
    """
    if sizes.own_widths(plain(net)) is None:
        raise InputError(f"the filters of network '{plain(net).name}' are not known; allowed: granularity 'weight'")
    network, prunable = nets.build(net, data), nets.prunable(net, data, policy)
    layers = list(network.layers())
    blocks = [
        [(name, layer) for name, layer in layers if name.startswith(f"{block}.") and ".downsample" not in name]
        for block, module in network.named_modules()
        if isinstance(module, nets.Block | nets.Bottleneck) and module.downsample is not None
    ]
    kind = Conv2d if nets.convolutional(network) else Linear
    found = [pair for sequence in blocks or [layers] for pair in _filters(sequence, kind)]
    return {f"{item.layers[0]}.weight": item for item in found if f"{item.layers[0]}.weight" in prunable}


def _filters(layers: Iterable[tuple[str, Layer]], kind: type[Layer]) -> list[Filters]:
    """List the filters of layers of a kind, of layers that are applied one after the other."""
    found: list[Filters] = []
    through: list[str] = []
    for name, layer in layers:
        if isinstance(layer, BatchNorm2d) or layer.role == "depthwise":
            through.append(name)
        else:
            found += [Filters(tuple(through), name)] if through else []
            through = [name] if isinstance(layer, kind) else []
    return found


def counts(found: Mapping[str, Filters], net: Net | Narrow, data: Data) -> dict[str, int]:
    """Count the filters of each layer."""
    parameters = dict(nets.build(net, data).named_parameters())
    return {name: len(parameters[name]) for name in found}


def norms(weights: Mapping[str, torch.Tensor], found: Mapping[str, Filters], norm: str) -> dict[str, torch.Tensor]:
    """Measure each filter so that those of different layers compare.

    Parameters
    ----------
    weights : mapping of str to Tensor
        State of the ordinary network.
    found : mapping of str to Filters
        As from `of`.
    norm : {'l1', 'l2'}
        Mean of the absolute weights of a filter, or the root of their mean square: within a layer, the order is that of
        the norm.

    Returns
    -------
    dict of str to Tensor
        fp64, [filter].
    """
    measured = {}
    for name, item in found.items():
        parts = [weights[f"{layer}.weight"] for layer in item.layers]
        rows = torch.cat([part.double().flatten(1) for part in parts if part.dim() > 1], 1)
        measured[name] = rows.abs().mean(1) if norm == "l1" else rows.square().mean(1).sqrt()
    return measured


def largest(measured: Mapping[str, torch.Tensor], sparsity: Sparsity, scope: str) -> Mask:
    """Keep the filters of largest norm; at least one of each layer.

    Parameters
    ----------
    measured : mapping of str to Tensor
        As from `norms`.
    sparsity : Level or str
        Share of the filters to prune, rounded half up.
    scope : {'global', 'layer'}
        Rank all together, or prune the same share of each layer, but for its last filter (Li et al. 2017, 3.1).

    Returns
    -------
    Mask
        Of the filters, [filter] for each layer; True = kept.

    Raises
    ------
    ValueError
        If ranked together, and more are to go than all but one of each layer.
    """
    if scope == "layer":
        most = {name: len(layer) - 1 for name, layer in measured.items()}
        return masks.per_layer(measured, {name: min(pruned_count(sparsity, n + 1), n) for name, n in most.items()})
    total = sum(map(len, measured.values()))
    return masks.magnitude(measured, pruned_count(sparsity, total), floor=dict.fromkeys(measured, 1))


def cover(chosen: Mask, net: Net | Narrow, data: Data, policy: str) -> Mask:
    """Extend a mask of filters to all that goes with them.

    Parameters
    ----------
    chosen : Mask
        Of the filters, [filter] for each layer; True = kept.
    net, data, policy
        As in `of`.

    Returns
    -------
    Mask
        Of the prunable weights, and of all other parameters that have to do with the filters of `chosen`.
    """
    shapes = {name: parameter.shape for name, parameter in nets.build(net, data).named_parameters()}
    whole = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    touched = set(nets.prunable(net, data, policy))
    for name, item in of(net, data, policy).items():
        outputs = {f"{layer}.{part}" for layer in item.layers for part in ("weight", "bias")} & shapes.keys()
        for output in outputs:
            whole[output][~chosen[name]] = False
        reader = whole[f"{item.reader}.weight"]
        places = reader.shape[1] // len(
            chosen[name]
        )  # a map of several places becomes as many inputs of a linear layer
        reader[:, ~chosen[name].repeat_interleave(places)] = False
        touched |= {*outputs, f"{item.reader}.weight"}
    return {name: layer for name, layer in whole.items() if name in touched}


def left(mask: Mask, found: Mapping[str, Filters]) -> Mask:
    """Tell which filters a mask of filters keeps, [filter] for each layer."""
    return {name: mask[name].flatten(1).any(1) for name in found}
