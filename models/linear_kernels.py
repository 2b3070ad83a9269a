"""The arithmetic of linear models in Numba: predict, learn row by row, forget.

No fastmath: NaN means missing, and results are the same bits whatever the cuts. All arithmetic is float64; the state
may be stored as float32.

Letters: B rows, N numeric columns, K categories, R = 2**bits slots of the table, P numbers per weight. A weight is a
row of P numbers: SGD (w,), AdaGrad (w, n), FTRL (z, n); n is the evidence, the sum of squared gradients.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy import ndarray

from ..jit import njit
from .prefetch import AHEAD
from .slot_kernels import look_ahead, slot_of
from .weight_kernels import SGD, Settings, forget_row, step, weight_at

LOGISTIC, SQUARED, ABSOLUTE, QUANTILE, POISSON, HUBER = 0, 1, 2, 3, 4, 5


LARGEST_RAW = 1e30  # raw scores, values and gradients are held within these, so finite input never makes a NaN
LARGEST_LOGIT = 700.0
LARGEST_LOG = 80.0  # of a Poisson rate: exp(80) still fits float32
LARGEST_SLOPE = 1e12  # of the loss; as River's clip_gradient


@njit(cache=True, nogil=True, error_model="numpy")
def offset_of(loss: int, base_rate: bool, mean: float, count: float) -> float:
    """Where the raw score starts: the running mean of the labels, as the link of the loss sees it."""
    if not base_rate or (count <= 0.0 and loss != LOGISTIC and loss != POISSON):
        return 0.0
    if loss == LOGISTIC:
        p = min(max(mean, 1e-6), 1.0 - 1e-6)
        return math.log(p / (1.0 - p))
    if loss == POISSON:
        return math.log(max(mean, 1e-3))
    return mean


@njit(cache=True, nogil=True, error_model="numpy")
def value_of(loss: int, raw: float) -> float:
    """What is predicted for a raw score: a probability, a rate or the value itself; always finite."""
    if loss == LOGISTIC:
        return 1.0 / (1.0 + math.exp(-min(max(raw, -LARGEST_LOGIT), LARGEST_LOGIT)))
    if loss == POISSON:
        return math.exp(min(max(raw, -LARGEST_LOG), LARGEST_LOG))
    return min(max(raw, -LARGEST_RAW), LARGEST_RAW)


@njit(cache=True, nogil=True, error_model="numpy")
def slope_of(loss: int, raw: float, y: float, parameter: float) -> float:
    """Derivative of the loss by the raw score, at a kink as River has it; parameter: the quantile, or Huber's delta."""
    value = value_of(loss, raw)
    if loss == SQUARED:
        return 2.0 * (value - y)
    if loss == ABSOLUTE:
        return 1.0 if value > y else -1.0
    if loss == QUANTILE:
        return (1.0 if y < value else 0.0) - parameter
    if loss == HUBER:
        return min(max(value - y, -parameter), parameter)
    return value - y


@njit(cache=True, nogil=True, error_model="numpy")
def predict_rows(
    numeric: ndarray, categories: ndarray, kind: int, bias_kind: int, loss: int, settings: Settings,
    base_rate: bool, shift: np.uint64, columns: ndarray, missing: ndarray, table: ndarray, bias: ndarray,
    base_mean: ndarray, base_count: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, 1); nothing else is changed.

    Arguments as in `learn_rows`.
    """
    lr, beta, l1, l2 = settings
    inverse = 1.0 / lr
    start = offset_of(loss, base_rate, base_mean[0], base_count[0])
    start += weight_at(bias_kind, bias, 0, inverse, beta, 0.0, 0.0)
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, table, shift)
        raw = start
        for j in range(numeric.shape[1]):
            x = np.float64(numeric[i, j])
            if x - x == 0.0:
                raw += weight_at(kind, columns, j, inverse, beta, l1, l2) * x
            else:
                raw += weight_at(kind, missing, j, inverse, beta, l1, l2)
        for k in range(categories.shape[1]):
            if categories[i, k] != 0:
                r = slot_of(categories[i, k], shift)
                raw += weight_at(kind, table, r, inverse, beta, l1, l2)
        out[i, 0] = value_of(loss, raw)


@njit(cache=True, nogil=True, error_model="numpy")
def learn_rows(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray,
    kind: int, bias_kind: int, loss: int, parameter: float, settings: Settings, bias_lr: float,
    base_rate: bool, shift: np.uint64, columns: ndarray, missing: ndarray, table: ndarray, used: ndarray,
    touched: ndarray, bias: ndarray, base_mean: ndarray, base_count: ndarray,
    weights: ndarray, slots: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i], which is the same row after it was observed.

    before, numeric  float   (B, N)  NaN or infinite: missing, the weight of the indicator stands in
    categories       uint64  (B, K)  0: missing, adds nothing
    y, weight        float32 (B, 1), (B,)  a row where either is not finite is predicted and not learned
    kind, bias_kind  which optimizer moves the weights and the bias (constants above); the bias has no l1 and l2
    loss, parameter  which loss (constants above); its quantile in (0, 1), or the delta of Huber
    settings         lr or alpha, eps or beta, l1, l2; bias_lr is the lr of the bias
    base_rate        whether the raw score starts at the running mean of the labels
    shift            uint64, 64 - bits
    columns, missing (N, P), table (R, P), bias (1, P)   weights        changed in place
    used     uint8 (R / 8,), touched uint8 (R / 64,)     slots written  changed in place
    base_mean, base_count  float64 (1,)                  labels so far  changed in place
    weights  float64 (N + K,), slots intp (K,)           scratch
    out      float (B, 1)

    Result does not depend on where the stream is cut. Where two categories of one row meet in one slot, both
    gradients are made from the weight before the row.
    """
    lr, beta, l1, l2 = settings
    inverse = 1.0 / lr
    B, N = numeric.shape
    K = categories.shape[1]
    offset = offset_of(loss, base_rate, base_mean[0], base_count[0])
    for i in range(B):
        look_ahead(categories, i + AHEAD, table, shift)
        b = weight_at(bias_kind, bias, 0, inverse, beta, 0.0, 0.0)
        raw_before = raw = offset + b
        for j in range(N):
            x = np.float64(numeric[i, j])
            if x - x == 0.0:
                w = weight_at(kind, columns, j, inverse, beta, l1, l2)
                raw_before += w * before[i, j]
                raw += w * x
            else:
                w = weight_at(kind, missing, j, inverse, beta, l1, l2)
                raw_before += w
                raw += w
            weights[j] = w
        for k in range(K):
            if categories[i, k] != 0:
                r = slot_of(categories[i, k], shift)
                w = weight_at(kind, table, r, inverse, beta, l1, l2)
                raw_before += w
                raw += w
                weights[N + k] = w
                slots[k] = r
        out[i, 0] = value_of(loss, raw_before)

        t = np.float64(y[i, 0])
        v = np.float64(weight[i])
        if not (t - t == 0.0 and v - v == 0.0):
            continue
        # The first label of a regression only sets the base: a step as long as its distance from zero would be learned
        # as evidence that the weights move in such steps.
        if not base_rate or base_count[0] > 0.0:
            slope = min(max(slope_of(loss, raw, t, parameter) * v, -LARGEST_SLOPE), LARGEST_SLOPE)
            step(bias_kind, bias, 0, b, slope, bias_lr, inverse, beta, 0.0)
            for j in range(N):
                x = np.float64(numeric[i, j])
                if x - x == 0.0:
                    step(kind, columns, j, weights[j], slope * x, lr, inverse, beta, l2)
                else:
                    step(kind, missing, j, weights[j], slope, lr, inverse, beta, l2)
            for k in range(K):
                if categories[i, k] != 0:
                    r = slots[k]
                    step(kind, table, r, weights[N + k], slope, lr, inverse, beta, l2)
                    used[r >> 3] = 1
                    touched[r >> 6] = 1
        if base_rate:
            count = base_count[0] + v
            if count > 1e-9:
                base_mean[0] += v / count * (t - base_mean[0])
                base_count[0] = count
            else:
                base_count[0] = 0.0
            offset = offset_of(loss, base_rate, base_mean[0], base_count[0])


@njit(cache=True, nogil=True, error_model="numpy")
def explain_rows(
    numeric: ndarray, categories: ndarray, kind: int, bias_kind: int, loss: int, settings: Settings,
    base_rate: bool, shift: np.uint64, columns: ndarray, missing: ndarray, table: ndarray, bias: ndarray,
    base_mean: ndarray, base_count: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Write what each feature adds to the raw score of B rows to out (B, 1, N + K + 1); nothing else is changed.

    Last in out is where the raw score starts: base and bias. Other arguments as in `learn_rows`.
    """
    lr, beta, l1, l2 = settings
    inverse = 1.0 / lr
    N, K = numeric.shape[1], categories.shape[1]
    start = offset_of(loss, base_rate, base_mean[0], base_count[0])
    start += weight_at(bias_kind, bias, 0, inverse, beta, 0.0, 0.0)
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, table, shift)
        for j in range(N):
            x = np.float64(numeric[i, j])
            if x - x == 0.0:
                part = weight_at(kind, columns, j, inverse, beta, l1, l2) * x
                out[i, 0, j] = min(max(part, -LARGEST_RAW), LARGEST_RAW)
            else:
                out[i, 0, j] = weight_at(kind, missing, j, inverse, beta, l1, l2)
        for k in range(K):
            out[i, 0, N + k] = 0.0
            if categories[i, k] != 0:
                r = slot_of(categories[i, k], shift)
                out[i, 0, N + k] = weight_at(kind, table, r, inverse, beta, l1, l2)
        out[i, 0, N + K] = min(max(start, -LARGEST_RAW), LARGEST_RAW)


@njit(cache=True, nogil=True, error_model="numpy")
def explain_then_learn_rows(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray,
    explain: Any, learn: Any, out: ndarray, contributions: ndarray,
) -> None:  # fmt: skip
    """Row by row: explain before[i] to contributions[i], then as `learn_rows`.

    explain, learn   tuples: what `explain_rows` and `learn_rows` take between the rows and their outputs
    """
    for i in range(numeric.shape[0]):
        row = slice(i, i + 1)
        explain_rows(before[row], categories[row], *explain, contributions[row])  # type: ignore[call-arg]
        told = before[row], numeric[row], categories[row], y[row], weight[row]
        learn_rows(*told, *learn, out[row])  # type: ignore[call-arg]


@njit(cache=True, nogil=True, error_model="numpy")
def forget(
    factor: float, kind: int, bias_kind: int, settings: Settings,
    columns: ndarray, missing: ndarray, table: ndarray, used: ndarray, touched: ndarray, bias: ndarray,
) -> None:  # fmt: skip
    """Scale the evidence of every weight by factor, 0 < factor < 1; what is predicted stays. In place.

    Of the table only the blocks of 8 rows that were ever written (`used`) are visited. SGD has no evidence.
    """
    if kind == SGD:
        return
    lr, beta, l1, l2 = settings
    inverse = 1.0 / lr
    if bias_kind != SGD:
        forget_row(bias_kind, bias, 0, factor, inverse, beta, 0.0, 0.0)
    for j in range(columns.shape[0]):
        forget_row(kind, columns, j, factor, inverse, beta, l1, l2)
        forget_row(kind, missing, j, factor, inverse, beta, l1, l2)
    for block in range(used.shape[0]):
        if used[block] != 0:
            for r in range(8 * block, 8 * block + 8):
                forget_row(kind, table, r, factor, inverse, beta, l1, l2)
            touched[block >> 3] = 1
