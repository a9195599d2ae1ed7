"""Floats as integers of the same order, so that a histogram of integers is a histogram of scores without any loss.

The bits of a non-negative IEEE float, read as an integer, are ordered as the float is; the bits of a negative one are ordered the
wrong way round and are inverted but for the sign. -0.0 has other bits than 0.0, though they are equal: add 0.0 first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
Floats = NDArray[Any]
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}  # the integers that are as wide


def bits_of(dtype: Any) -> np.dtype[np.signedinteger[Any]]:
    """`BITS` of NumPy's types."""
    return np.dtype(np.int64 if np.dtype(dtype) == np.float64 else np.int32)


def ordered_keys(values: Tensor) -> Tensor:
    """Integers ordered as the values: int32 for float32, int64 for float64, same shape; `values` holds no -0.0 and no NaN."""
    bits = values.view(BITS[values.dtype])
    return (bits >> (8 * bits.element_size() - 1)).bitwise_and_(torch.iinfo(bits.dtype).max).bitwise_xor_(bits)


def keys_of(values: Floats) -> Ints:
    """`ordered_keys` of a float32 or float64 array, widened to int64."""
    values = np.ascontiguousarray(values) + values.dtype.type(0)
    bits: NDArray[Any] = values.view(bits_of(values.dtype))
    keys: Ints = (bits ^ ((bits >> (8 * bits.itemsize - 1)) & np.iinfo(bits.dtype).max)).astype(np.int64)
    return keys


def values_of(keys: Ints, dtype: Any) -> Floats:
    """The inverse of `keys_of`, as an array of `dtype` (float32 or float64)."""
    bits: NDArray[Any] = keys.astype(bits_of(dtype))
    bits = bits ^ ((bits >> (8 * bits.itemsize - 1)) & np.iinfo(bits.dtype).max)
    return bits.view(dtype)
