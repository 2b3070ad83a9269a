"""Where a table holds what belongs to a category."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from ..jit import njit
from .prefetch import prefetch

MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: Fibonacci hashing takes the slot from the product's top bits


@njit(cache=True, nogil=True)
def slot_of(category: np.uint64, shift: np.uint64) -> np.intp:
    """The slot of a category's hash in a table of 2 ** (64 - shift)."""
    return np.intp((category * MIX) >> shift)


@njit(cache=True, nogil=True)
def look_ahead(categories: ndarray, i: int, table: ndarray, shift: np.uint64) -> None:
    """Have what belongs to row i fetched, if there is one."""
    if i < categories.shape[0]:
        for k in range(categories.shape[1]):
            prefetch(table.ctypes.data + slot_of(categories[i, k], shift) * table.strides[0])
