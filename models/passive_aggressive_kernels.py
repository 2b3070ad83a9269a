"""The arithmetic of passive-aggressive models in Numba: predict, learn row by row.

No fastmath: NaN means missing, and results are the same bits whatever the cuts. All arithmetic is float64; the state
may be stored as float32.

Letters: B rows, N numeric columns, K categories, R = 2**bits slots of the table.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy import ndarray

from ..jit import njit
from .prefetch import AHEAD
from .slot_kernels import look_ahead, slot_of

LARGEST_RAW = 1e30  # raw scores, and steps below, are held within these, so finite input never makes a NaN
LARGEST_LOGIT = 700.0
LARGEST_STEP = 1e15


@njit(cache=True, nogil=True, error_model="numpy")
def raw_score(
    numeric: ndarray, categories: ndarray, i: int, shift: np.uint64, columns: ndarray, missing: ndarray,
    table: ndarray, bias: ndarray,
) -> float:  # fmt: skip
    """The raw score of row i; always finite."""
    raw = np.float64(bias[0, 0])
    for j in range(numeric.shape[1]):
        x = np.float64(numeric[i, j])
        if x - x == 0.0:
            raw += np.float64(columns[j, 0]) * x
        else:
            raw += np.float64(missing[j, 0])
    for k in range(categories.shape[1]):
        if categories[i, k] != 0:
            raw += np.float64(table[slot_of(categories[i, k], shift), 0])
    return min(max(raw, -LARGEST_RAW), LARGEST_RAW)


@njit(cache=True, nogil=True, error_model="numpy")
def value_of(binary: bool, raw: float) -> float:
    """What is predicted for a raw score: its sigmoid, or the score itself."""
    return 1.0 / (1.0 + math.exp(-min(max(raw, -LARGEST_LOGIT), LARGEST_LOGIT))) if binary else raw


@njit(cache=True, nogil=True, error_model="numpy")
def step_of(binary: bool, mode: int, most: float, eps: float, raw: float, y: float, norm: float) -> float:
    """How far the weights go along the features: tau times the direction, within LARGEST_STEP.

    most  how aggressive a step may be: C times the weight of the example, above 0
    norm  sum of the squared features
    """
    if binary:
        direction = 1.0 if y >= 0.5 else -1.0
        loss = 1.0 - direction * raw
    else:
        direction = 1.0 if y > raw else -1.0
        loss = abs(y - raw) - eps
    if loss <= 0.0 or (mode == 1 and norm == 0.0):
        return 0.0
    tau = min(most, loss / norm) if mode == 1 else loss / (norm + 0.5 / most)
    return direction * min(tau, LARGEST_STEP)


@njit(cache=True, nogil=True)
def add(rows: ndarray, r: int | np.intp, change: float) -> None:
    """Add to the weight in row r, within LARGEST_STEP."""
    rows[r, 0] += min(max(change, -LARGEST_STEP), LARGEST_STEP)


@njit(cache=True, nogil=True, error_model="numpy")
def predict_rows(
    numeric: ndarray, categories: ndarray, binary: bool, shift: np.uint64, columns: ndarray, missing: ndarray,
    table: ndarray, bias: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, 1); nothing else is changed.

    Arguments as in `learn_rows`.
    """
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, table, shift)
        out[i, 0] = value_of(binary, raw_score(numeric, categories, i, shift, columns, missing, table, bias))


@njit(cache=True, nogil=True, error_model="numpy")
def learn_rows(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray,
    binary: bool, mode: int, aggressiveness: float, eps: float, learn_intercept: bool, shift: np.uint64,
    columns: ndarray, missing: ndarray, table: ndarray, touched: ndarray, bias: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i], which is the same row after it was observed.

    before, numeric  float   (B, N)  NaN or infinite: missing, a feature of 1 whose weight is the indicator's
    categories       uint64  (B, K)  0: missing, adds nothing
    y, weight        float32 (B, 1), (B,)  a row where y is not finite, or weight not finite and above 0, is predicted
                     and not learned
    binary           hinge loss and a sigmoid, or the loss beyond eps and the raw score
    mode             1 or 2: PA-I or PA-II; aggressiveness is their C
    learn_intercept  whether the bias moves by the step too, which does not count it in the norm of the features
    shift            uint64, 64 - bits
    columns, missing (N, 1), table (R, 1), bias (1, 1)  weights        changed in place
    touched  uint8 (R / 64,)                            slots written  changed in place
    out      float (B, 1)

    Result does not depend on where the stream is cut. Two categories of one row that meet in one slot count as two
    features.
    """
    N, K = numeric.shape[1], categories.shape[1]
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, table, shift)
        raw_before = raw_score(before, categories, i, shift, columns, missing, table, bias)
        out[i, 0] = value_of(binary, raw_before)

        t = np.float64(y[i, 0])
        v = np.float64(weight[i])
        if not (t - t == 0.0 and v - v == 0.0 and v > 0.0):
            continue
        raw = raw_score(numeric, categories, i, shift, columns, missing, table, bias)
        norm = 0.0
        for j in range(N):
            x = np.float64(numeric[i, j])
            norm += x * x if x - x == 0.0 else 1.0
        for k in range(K):
            norm += 1.0 if categories[i, k] != 0 else 0.0
        step = step_of(binary, mode, aggressiveness * v, eps, raw, t, norm)
        if step == 0.0:
            continue
        for j in range(N):
            x = np.float64(numeric[i, j])
            if x - x == 0.0:
                add(columns, j, step * x)
            else:
                add(missing, j, step)
        for k in range(K):
            if categories[i, k] != 0:
                r = slot_of(categories[i, k], shift)
                add(table, r, step)
                touched[r >> 6] = 1
        if learn_intercept:
            add(bias, 0, step)


@njit(cache=True, nogil=True, error_model="numpy")
def explain_rows(
    numeric: ndarray, categories: ndarray, binary: bool, shift: np.uint64, columns: ndarray, missing: ndarray,
    table: ndarray, bias: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Write what each feature adds to the raw score of B rows to out (B, 1, N + K + 1); nothing else is changed.

    Last in out is the bias. Arguments as in `predict_rows`, `binary` among them, which raw scores do not look at.
    """
    N, K = numeric.shape[1], categories.shape[1]
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, table, shift)
        for j in range(N):
            x = np.float64(numeric[i, j])
            part = np.float64(columns[j, 0]) * x if x - x == 0.0 else np.float64(missing[j, 0])
            out[i, 0, j] = min(max(part, -LARGEST_RAW), LARGEST_RAW)
        for k in range(K):
            out[i, 0, N + k] = 0.0
            if categories[i, k] != 0:
                out[i, 0, N + k] = table[slot_of(categories[i, k], shift), 0]
        out[i, 0, N + K] = bias[0, 0]


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
