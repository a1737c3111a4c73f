"""Masks as bits: arrays that safetensors can hold, eight weights a byte."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def pack(mask: Mapping[str, NDArray[np.bool_]]) -> dict[str, NDArray[np.generic]]:
    """Write a mask as arrays.

    Parameters
    ----------
    mask : mapping of str to bool array
        True = kept, by layer in network order.

    Returns
    -------
    dict of str to array
        ``bits``, uint8: all positions in network order; ``shape.<number>.<name>``, int64, for each layer.
    """
    flat = np.concatenate([layer.ravel() for layer in mask.values()])
    shapes = {f"shape.{i:05}.{n}": np.array(mask[n].shape, np.int64) for i, n in enumerate(mask)}
    return {"bits": np.packbits(flat), **shapes}


def unpack(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.bool_]]:
    """Read back what `pack` wrote, whatever the order of the arrays.

    Raises
    ------
    ValueError
        If the number of bits is not that of the shapes.
    """
    shapes = {key.split(".", 2)[2]: tuple(arrays[key].tolist()) for key in sorted(arrays) if key != "bits"}
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    n, bits = sum(sizes), np.asarray(arrays["bits"], np.uint8)
    if len(bits) != -(-n // 8):
        raise ValueError(f"packed mask has {len(bits)} bytes: its shapes hold {n} weights, so {-(-n // 8)}")
    layers = np.split(np.unpackbits(bits, count=n).astype(bool), np.cumsum(sizes)[:-1])
    return {name: layer.reshape(shape) for (name, shape), layer in zip(shapes.items(), layers, strict=True)}
