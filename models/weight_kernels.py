"""The arithmetic of the optimizers of linear models in Numba: read a weight, move it, forget.

P numbers per weight: SGD (w,), AdaGrad (w, n), FTRL (z, n); n is the evidence, the sum of squared gradients. All
arithmetic is float64; the state may be stored as float32. No fastmath.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from ..jit import njit

SGD, ADAGRAD, FTRL = 0, 1, 2

Settings = tuple[float, float, float, float]  # lr or alpha, eps or beta, l1, l2
Slot = int | np.intp

LARGEST_GRADIENT = 1e15  # of one weight: slope times feature; so finite input never makes a NaN


@njit(cache=True, nogil=True, error_model="numpy")
def weight_at(kind: int, rows: ndarray, r: Slot, inverse: float, beta: float, l1: float, l2: float) -> float:
    """The weight in row r of (., P); inverse is 1 / alpha."""
    first: float = np.float64(rows[r, 0])
    if kind != FTRL:
        return first
    if abs(first) <= l1:
        return 0.0
    return -(first - math.copysign(l1, first)) / ((beta + math.sqrt(np.float64(rows[r, 1]))) * inverse + l2)


@njit(cache=True, nogil=True, error_model="numpy")
def step(
    kind: int, rows: ndarray, r: Slot, w: float, g: float, lr: float, inverse: float, eps: float, l2: float
) -> None:
    """Move row r of (., P), whose weight is w, along the gradient g."""
    if kind != FTRL:
        g += l2 * w
    g = min(max(g, -LARGEST_GRADIENT), LARGEST_GRADIENT)
    if kind == SGD:
        rows[r, 0] -= lr * g
        return
    n = np.float64(rows[r, 1])
    m = n + g * g
    rows[r, 1] = m
    if kind == FTRL:
        rows[r, 0] += g - (math.sqrt(m) - math.sqrt(n)) * inverse * w
    else:
        rows[r, 0] -= lr / math.sqrt(m + eps) * g


@njit(cache=True, nogil=True, error_model="numpy")
def forget_row(
    kind: int, rows: ndarray, r: int, factor: float, inverse: float, beta: float, l1: float, l2: float
) -> None:
    """Scale the evidence of row r by factor; its weight stays."""
    n = np.float64(rows[r, 1])
    m = n * factor
    rows[r, 1] = m
    if kind == FTRL:
        z = np.float64(rows[r, 0])
        if abs(z) > l1:
            edge = math.copysign(l1, z)
            stiffer = (beta + math.sqrt(n)) * inverse + l2
            softer = (beta + math.sqrt(m)) * inverse + l2
            rows[r, 0] = edge + (z - edge) * (softer / stiffer)
