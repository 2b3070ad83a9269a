"""Which columns a leaf observes in Numba: those it has seen, or has drawn, and the values of them that it keeps."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from .compiling import kernel
from .random_kernels import uniform


@kernel
def find_value(value: np.uint64, values: ndarray) -> int:
    """Where a value stands among those kept, (V,); -1: it is not kept."""
    for v in range(values.shape[0]):
        if values[v] == value:
            return v
    return -1


@kernel
def draw_columns(
    numeric: ndarray, categories: ndarray, features: int, slot: int, seen: ndarray, first: ndarray,
    category_first: ndarray, columns: ndarray, key: np.uint64, drawn: ndarray, member: int,
) -> None:  # fmt: skip
    """Choose so many of the columns that a row has for the leaf with this slot: it sees them now, and no others later.

    columns     int32 (N + K,)  scratch
    key, drawn, member          as in `uniform`
    """
    many = 0
    N = numeric.shape[0]
    for j in range(N):
        x = np.float64(numeric[j])
        if x - x == 0.0:
            columns[many] = j
            many += 1
    for k in range(categories.shape[0]):
        if categories[k] != 0:
            columns[many] = N + k
            many += 1
    for i in range(min(features, many)):
        p = columns[i]
        if many >= features:
            other = i + int(uniform(key, drawn, member) * (many - i))
            p = columns[other]
            columns[other] = columns[i]
        if p < N:
            see_column(first, p, slot, seen)
        else:
            see_column(category_first, p - N, slot, seen)


@kernel
def see_column(first: ndarray, j: int, slot: int, seen: ndarray) -> None:
    """Note when the leaf with this slot first sees column j: first (., S), seen (S,)."""
    if first[j, slot] == 0:
        seen[slot] += 1
        first[j, slot] = seen[slot]
