"""Masks as bits: what is read back is what was written, and lost bits are noticed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load, save

from lthlab import packing


@given(st.data())
def test_masks_come_back_in_order(data):
    names = data.draw(st.lists(st.sampled_from(["b", "a", "bits", "layer1.0.conv1.weight"]), min_size=1, unique=True))
    shapes = arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
    mask = {name: data.draw(arrays.arrays(bool, shapes)) for name in names}
    back = packing.unpack(load(save(packing.pack(mask))))
    assert list(back) == names
    for name in names:
        np.testing.assert_array_equal(back[name], mask[name], strict=True)


def test_eight_weights_take_a_byte():
    packed = packing.pack({"x": np.ones((3, 4), bool), "y": np.zeros(5, bool)})
    assert packed["bits"].nbytes == 3


@pytest.mark.parametrize("number", [1, 3])
def test_another_number_of_bits_is_refused(number):
    packed = packing.pack({"x": np.ones((3, 4), bool)}) | {"bits": np.zeros(number, np.uint8)}
    with pytest.raises(ValueError, match=rf"^packed mask has {number} bytes: its shapes hold 12 weights, so 2$"):
        packing.unpack(packed)
