"""The arithmetic of softmax regression in Numba: predict, learn row by row, forget.

No fastmath: NaN means missing, and results are the same bits whatever the cuts. All arithmetic is float64; the state
may be stored as float32.

Letters: B rows, N numeric columns, K categories, R = 2**bits slots of the table, C classes, P numbers per weight. A
feature has C weights, one row of P numbers each, side by side: those of feature j are rows j C to j C + C - 1. A row is
SGD (w,), AdaGrad (w, n), FTRL (z, n); n is the evidence, the sum of squared gradients.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy import ndarray

from ..jit import njit
from .prefetch import AHEAD, prefetch
from .slot_kernels import slot_of
from .weight_kernels import SGD, Settings, forget_row, step, weight_at

LINE = 64  # bytes that memory fetches at once
RAREST = 1e-6  # no class is held to be rarer, or it would not be learned when it comes after all
LARGEST_RAW = 1e30  # contributions to raw scores are held within these
LARGEST_SLOPE = 1e12  # of the loss by a raw score


@njit(cache=True, nogil=True)
def look_ahead(categories: ndarray, i: int, table: ndarray, shift: np.uint64, classes: int) -> None:
    """Have the weights of row i fetched, if there is one."""
    if i < categories.shape[0]:
        nbytes = classes * table.strides[0]
        for k in range(categories.shape[1]):
            first = table.ctypes.data + slot_of(categories[i, k], shift) * nbytes
            for at in range(0, nbytes, LINE):
                prefetch(first + at)


@njit(cache=True, nogil=True, error_model="numpy")
def read_base(base_rate: bool, counts: ndarray, base: ndarray) -> None:
    """Write where the raw scores start to base (C,): the logarithms of the frequencies of the classes, or zeros."""
    total = 0.0
    for c in range(counts.shape[0]):
        total += counts[c]
    for c in range(base.shape[0]):
        base[c] = math.log(max(counts[c] / total, RAREST)) if base_rate and total > 0.0 else 0.0


@njit(cache=True, nogil=True)
def read_slots(categories: ndarray, i: int, shift: np.uint64, classes: int, firsts: ndarray) -> None:
    """Write the first rows of the slots of row i's categories to firsts (K,)."""
    for k in range(firsts.shape[0]):
        firsts[k] = slot_of(categories[i, k], shift) * classes


@njit(cache=True, nogil=True, error_model="numpy")
def exponentials(raw: ndarray) -> float:
    """Make raw scores (C,) their exponentials, in place, the largest 1; their sum, by which they are probabilities."""
    most = raw[0]
    for c in range(raw.shape[0]):
        most = max(most, raw[c])
    total = 0.0
    for c in range(raw.shape[0]):
        raw[c] = math.exp(raw[c] - most)
        total += raw[c]
    return total


# In the kernels the classes are the outer loop: inner loops over a few of them are compiled to vector code that costs
# several times what it saves.


@njit(cache=True, nogil=True, error_model="numpy")
def predict_rows(
    numeric: ndarray, categories: ndarray, kind: int, bias_kind: int, settings: Settings, base_rate: bool,
    shift: np.uint64, columns: ndarray, missing: ndarray, table: ndarray, bias: ndarray, base_count: ndarray,
    scores: ndarray, firsts: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Write the probabilities of B rows to out (B, C); nothing else is changed but scratch.

    Arguments as in `learn_rows`.
    """
    lr, beta, l1, l2 = settings
    inverse = 1.0 / lr
    C = out.shape[1]
    base, raw = scores[0], scores[1]
    read_base(base_rate, base_count, base)
    for c in range(C):
        base[c] += weight_at(bias_kind, bias, c, inverse, beta, 0.0, 0.0)
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, table, shift, C)
        read_slots(categories, i, shift, C, firsts)
        for c in range(C):
            score = base[c]
            for j in range(numeric.shape[1]):
                x = np.float64(numeric[i, j])
                if x - x == 0.0:
                    score += weight_at(kind, columns, j * C + c, inverse, beta, l1, l2) * x
                else:
                    score += weight_at(kind, missing, j * C + c, inverse, beta, l1, l2)
            for k in range(categories.shape[1]):
                if categories[i, k] != 0:
                    score += weight_at(kind, table, firsts[k] + c, inverse, beta, l1, l2)
            raw[c] = score
        total = exponentials(raw)
        for c in range(C):
            out[i, c] = raw[c] / total


@njit(cache=True, nogil=True, error_model="numpy")
def learn_rows(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray,
    kind: int, bias_kind: int, settings: Settings, bias_lr: float, base_rate: bool, class_weight: ndarray,
    shift: np.uint64, columns: ndarray, missing: ndarray, table: ndarray, used: ndarray, touched: ndarray,
    bias: ndarray, base_count: ndarray, scores: ndarray, weights: ndarray, firsts: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i], which is the same row after it was observed.

    before, numeric  float   (B, N)  NaN or infinite: missing, the weights of the indicator stand in
    categories       uint64  (B, K)  0: missing, adds nothing
    y, weight        float32 (B, 1), (B,)  a row whose y is no class (0 to C - 1, a fraction is cut off) or whose weight
                     is not finite, is predicted and not learned
    kind, bias_kind  which optimizer moves the weights and the bias (constants above); the bias has no l1 and l2
    settings         lr or alpha, eps or beta, l1, l2; bias_lr is the lr of the bias
    base_rate        whether the raw scores start at the logarithms of the frequencies of the classes
    class_weight     float64 (C,)  by which the weight of an example is multiplied
    shift            uint64, 64 - bits
    columns, missing (N C, P), table (R C, P), bias (C, P)          weights        changed in place
    used     uint8 (R / 8,) slots, touched uint8 (ceil(R C / 64),) rows  written   changed in place
    base_count  float64 (C,)                                        labels so far  changed in place
    scores   float64 (3, C), weights float64 (C, N + K + 1), firsts intp (K,)      scratch
    out      float (B, C)

    Result does not depend on where the stream is cut. Where two categories of one row meet in one slot, both
    gradients are made from the weights before the row.
    """
    lr, beta, l1, l2 = settings
    inverse = 1.0 / lr
    B, N = numeric.shape
    K = categories.shape[1]
    C = out.shape[1]
    base, raw, raw_before = scores[0], scores[1], scores[2]
    read_base(base_rate, base_count, base)
    for i in range(B):
        look_ahead(categories, i + AHEAD, table, shift, C)
        read_slots(categories, i, shift, C, firsts)
        for c in range(C):
            w = weight_at(bias_kind, bias, c, inverse, beta, 0.0, 0.0)
            weights[c, N + K] = w
            score_before = score = base[c] + w
            for j in range(N):
                x = np.float64(numeric[i, j])
                if x - x == 0.0:
                    w = weight_at(kind, columns, j * C + c, inverse, beta, l1, l2)
                    score_before += w * before[i, j]
                    score += w * x
                else:
                    w = weight_at(kind, missing, j * C + c, inverse, beta, l1, l2)
                    score_before += w
                    score += w
                weights[c, j] = w
            for k in range(K):
                if categories[i, k] != 0:
                    w = weight_at(kind, table, firsts[k] + c, inverse, beta, l1, l2)
                    score_before += w
                    score += w
                    weights[c, N + k] = w
            raw_before[c] = score_before
            raw[c] = score
        total = exponentials(raw_before)
        for c in range(C):
            out[i, c] = raw_before[c] / total

        t = np.float64(y[i, 0])
        v = np.float64(weight[i])
        if not (0.0 <= t < C and t == math.floor(t) and v - v == 0.0):
            continue
        label = np.intp(t)
        v *= class_weight[label]
        total = exponentials(raw)
        for c in range(C):
            slope = (raw[c] / total - (1.0 if c == label else 0.0)) * v
            slope = min(max(slope, -LARGEST_SLOPE), LARGEST_SLOPE)
            step(bias_kind, bias, c, weights[c, N + K], slope, bias_lr, inverse, beta, 0.0)
            for j in range(N):
                x = np.float64(numeric[i, j])
                if x - x == 0.0:
                    step(kind, columns, j * C + c, weights[c, j], slope * x, lr, inverse, beta, l2)
                else:
                    step(kind, missing, j * C + c, weights[c, j], slope, lr, inverse, beta, l2)
            for k in range(K):
                if categories[i, k] != 0:
                    step(kind, table, firsts[k] + c, weights[c, N + k], slope, lr, inverse, beta, l2)
        for k in range(K):
            if categories[i, k] != 0:
                used[firsts[k] // C >> 3] = 1
                for block in range(firsts[k] >> 6, ((firsts[k] + C - 1) >> 6) + 1):
                    touched[block] = 1
        if base_rate:
            base_count[label] = max(base_count[label] + v, 0.0)
            read_base(base_rate, base_count, base)


@njit(cache=True, nogil=True, error_model="numpy")
def explain_rows(
    numeric: ndarray, categories: ndarray, kind: int, bias_kind: int, settings: Settings, base_rate: bool,
    shift: np.uint64, columns: ndarray, missing: ndarray, table: ndarray, bias: ndarray, base_count: ndarray,
    scores: ndarray, firsts: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Write what each feature adds to the raw scores of B rows to out (B, C, N + K + 1); but for scratch nothing else
    is changed.

    Last in out is where the raw scores start: base and bias. Other arguments as in `learn_rows`.
    """
    lr, beta, l1, l2 = settings
    inverse = 1.0 / lr
    N, K, C = numeric.shape[1], categories.shape[1], out.shape[1]
    base = scores[0]
    read_base(base_rate, base_count, base)
    for c in range(C):
        base[c] += weight_at(bias_kind, bias, c, inverse, beta, 0.0, 0.0)
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, table, shift, C)
        read_slots(categories, i, shift, C, firsts)
        for c in range(C):
            for j in range(N):
                x = np.float64(numeric[i, j])
                if x - x == 0.0:
                    part = weight_at(kind, columns, j * C + c, inverse, beta, l1, l2) * x
                    out[i, c, j] = min(max(part, -LARGEST_RAW), LARGEST_RAW)
                else:
                    out[i, c, j] = weight_at(kind, missing, j * C + c, inverse, beta, l1, l2)
            for k in range(K):
                out[i, c, N + k] = 0.0
                if categories[i, k] != 0:
                    out[i, c, N + k] = weight_at(kind, table, firsts[k] + c, inverse, beta, l1, l2)
            out[i, c, N + K] = base[c]


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
    factor: float, kind: int, bias_kind: int, settings: Settings, classes: int,
    columns: ndarray, missing: ndarray, table: ndarray, used: ndarray, touched: ndarray, bias: ndarray,
) -> None:  # fmt: skip
    """Scale the evidence of every weight by factor, 0 < factor < 1; what is predicted stays. In place.

    Of the table only the blocks of 8 slots that were ever written (`used`) are visited. SGD has no evidence.
    """
    if kind == SGD:
        return
    lr, beta, l1, l2 = settings
    inverse = 1.0 / lr
    if bias_kind != SGD:
        for c in range(classes):
            forget_row(bias_kind, bias, c, factor, inverse, beta, 0.0, 0.0)
    for r in range(columns.shape[0]):
        forget_row(kind, columns, r, factor, inverse, beta, l1, l2)
        forget_row(kind, missing, r, factor, inverse, beta, l1, l2)
    for block in range(used.shape[0]):
        if used[block] != 0:
            first, stop = 8 * block * classes, 8 * (block + 1) * classes
            for r in range(first, stop):
                forget_row(kind, table, r, factor, inverse, beta, l1, l2)
            for marked in range(first >> 6, ((stop - 1) >> 6) + 1):
                touched[marked] = 1
